"""Load files into topics, each file in one transaction."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack

from k2cli.pipelines.load.job import (
    FileSums,
    FileToLoad,
    LoadPolicy,
    Outcome,
    Progress,
    load_each,
    pump_file,
)
from k2cli.pipelines.produce import TopicRows


def transaction_of(topic: str | None, words: Sequence[str]) -> str:
    """Return the transactional id of a load: a second run of the same command fences the first."""
    digest = hashlib.sha256("\0".join([topic or "", *words]).encode()).hexdigest()
    return f"k2-load-{digest[:32]}"


def load_into_topics(
    files: Iterable[FileToLoad], topics: TopicRows, policy: LoadPolicy, progress: Progress
) -> Iterator[Outcome]:
    """Send files to their topics, and close them; consumers see all of a file or nothing.

    Raises:
        K2Error: the brokers refuse a record, or do not answer.
    """

    def load(file: FileToLoad, sums: FileSums, stack: ExitStack) -> None:
        topics.begin()
        try:
            with progress(file) as on_batch:
                pump_file(file, topics.write, policy, sums, on_batch)
            stack.enter_context(policy.uninterrupted())
            topics.commit()
        finally:
            topics.abort()  # does nothing after a commit

    return load_each(files, policy, load)
