"""Write files as ndjson to stdout."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack

from k2cli.pipelines.load.job import (
    FileSums,
    FileToLoad,
    LoadPolicy,
    Outcome,
    load_each,
    pump_file,
)
from k2cli.pipelines.printing import NdjsonPrinter


def print_files(
    files: Iterable[FileToLoad],
    printer: NdjsonPrinter,
    policy: LoadPolicy,
    *,
    limit: int | None = None,
) -> Iterator[Outcome]:
    """Write the rows of files as ndjson, at most `limit` per file, and close the files."""

    def load(file: FileToLoad, sums: FileSums, _: ExitStack) -> None:
        pump_file(file, printer.first(limit), policy, sums)

    return load_each(files, policy, load)
