"""Run k2 and stop its process (SIGSTOP) inside a commit: `stopping.py POINT TIMES ARGUMENT...`.

It stops when it reaches POINT for the TIMES-th time. Whoever started it sees that, and kills it or
lets it go on. k2 itself knows nothing of this.
"""

import itertools
import os
import signal
import sys
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final

from pyiceberg.table import Transaction

import k2cli.storage.append
from k2cli.__main__ import main
from k2cli.ingestion.kafka.consumer import TopicReader


@dataclass(frozen=True)
class Point:
    """A moment in a commit: before or after a call."""

    owner: Any
    name: str
    is_before: bool


POINTS: Final = {
    "data-files-written": Point(k2cli.storage.append, "write_data_files", is_before=False),
    "metadata-written": Point(Transaction, "commit_transaction", is_before=True),
    "committed": Point(Transaction, "commit_transaction", is_before=False),
    "group-offsets-not-committed": Point(TopicReader, "commit_group_offsets", is_before=True),
}


def stop_at(point: Point, times: int) -> None:
    """Wrap the call, so that the process stops at it."""
    call = getattr(point.owner, point.name)
    reached = itertools.count(1)

    def reach() -> None:
        if next(reached) == times:
            os.kill(os.getpid(), signal.SIGSTOP)

    @wraps(call)
    def stopping(*args: Any, **options: Any) -> Any:
        if point.is_before:
            reach()
        result = call(*args, **options)
        if not point.is_before:
            reach()  # not after a commit that another writer forestalled
        return result

    setattr(point.owner, point.name, stopping)


if __name__ == "__main__":
    stop_at(POINTS[sys.argv[1]], int(sys.argv[2]))
    del sys.argv[1:3]
    main()
