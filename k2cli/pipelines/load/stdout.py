"""Write files as ndjson to stdout."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import BinaryIO

import pyarrow as pa

from k2cli.pipelines.load.job import (
    FileSums,
    FileToLoad,
    LoadPolicy,
    Outcome,
    load_each,
    pump_file,
)
from k2cli.query.render import NdjsonRenderer


def print_files(
    files: Iterable[FileToLoad],
    out: BinaryIO,
    renderer: NdjsonRenderer,
    policy: LoadPolicy,
    *,
    limit: int | None = None,
) -> Iterator[Outcome]:
    """Write the rows of files as ndjson, at most `limit` per file, and close the files."""

    def load(file: FileToLoad, sums: FileSums, _: ExitStack) -> None:
        pump_file(file, _Lines(out, renderer, limit), policy, sums)

    return load_each(files, policy, load)


class _Lines:
    """Lines as the target of one file."""

    def __init__(self, out: BinaryIO, renderer: NdjsonRenderer, limit: int | None) -> None:
        self._out = out
        self._renderer = renderer
        self._left = limit

    def write(self, rows: pa.RecordBatch) -> None:
        shown = rows if self._left is None else rows.slice(0, self._left)
        if self._left is not None:
            self._left -= shown.num_rows
        self._out.write(self._renderer.render(shown))
