"""Sort more rows than fit in memory: sorted runs in a temporary file, then a merge.

The merge reads blocks of a few thousand rows. A block is read only when the next rows may be in it,
so runs of different hours or symbols, the usual case, are in memory one at a time.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from k2cli.storage.datafiles import sort_keys

RUN_BYTES: Final = 48_000_000  # of rows in memory; sorting them takes three times as much
_BLOCK_ROWS: Final = 4096
_NULL_LAST: Final = np.iinfo(np.int64).max  # as in the sort order of the tables
Key = tuple[Any, ...]


def sorted_rows(
    parts: Iterable[pa.Table], sort_by: Sequence[str], *, run_bytes: int = RUN_BYTES
) -> Iterator[pa.Table]:
    """Yield the rows of all parts, sorted by some columns: text, times and whole numbers.

    The text is ordered by code point, and null comes last. Rows beyond `run_bytes` are kept in a
    temporary file without a name, which disappears with the process.
    """
    with ExitStack() as stack:
        runs: _Runs | None = None
        pending: list[pa.Table] = []
        size_bytes = 0
        for part in parts:
            if pending and size_bytes + part.nbytes > run_bytes:
                runs = runs or stack.enter_context(_Runs(part.schema, sort_by))
                runs.add(_sorted(pending, sort_by))
                pending, size_bytes = [], 0
            pending.append(part)
            size_bytes += part.nbytes
        if runs is None:
            if pending:
                yield _sorted(pending, sort_by)
            return
        runs.add(_sorted(pending, sort_by))
        del pending, part
        yield from runs.merged()


def regrouped(parts: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of this many rows; the last one may have fewer."""
    pending: list[pa.Table] = []
    count = 0
    for part in parts:
        pending.append(part)
        count += part.num_rows
        if count < rows:
            continue
        whole = pa.concat_tables(pending)
        cut = count - count % rows
        yield from (whole.slice(begin, rows) for begin in range(0, cut, rows))
        pending, count = [whole.slice(cut)], count - cut
    if count:
        yield pa.concat_tables(pending)


def _sorted(parts: Sequence[pa.Table], sort_by: Sequence[str]) -> pa.Table:
    rows = pa.concat_tables(parts)
    order = np.lexsort(sort_keys(rows, sort_by, null=int(_NULL_LAST)))
    if (order[1:] > order[:-1]).all():
        return rows
    return rows.combine_chunks().take(pa.array(order))


@dataclass(slots=True)
class _Block:
    """Consecutive rows of a run, without those that were taken."""

    index: int  # in the file
    first: Key
    last: Key
    taken: int = 0
    rows: pa.Table | None = None  # None: in the file


class _Runs:
    """Sorted runs in one temporary file of Arrow batches."""

    def __init__(self, schema: pa.Schema, sort_by: Sequence[str]) -> None:
        self._sort_by = sort_by
        self._stack = ExitStack()
        temporary = tempfile.TemporaryFile(prefix="k2-sort-")  # noqa: SIM115  the stack closes it
        self._file = self._stack.enter_context(temporary)
        self._written = 0
        self._runs: list[list[_Block]] = []
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        sink = pa.PythonFile(self._file, mode="w")
        self._writer = pa.ipc.new_file(sink, schema, options=options)

    def __enter__(self) -> "_Runs":
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def add(self, rows: pa.Table) -> None:
        """Write a sorted run."""
        run = []
        for begin in range(0, rows.num_rows, _BLOCK_ROWS):
            block = rows.slice(begin, _BLOCK_ROWS).combine_chunks()
            first, last = (_key(block, at, self._sort_by) for at in (0, block.num_rows - 1))
            run.append(_Block(self._written, first, last))
            self._writer.write_batch(block.to_batches()[0])
            self._written += 1
        self._runs.append(run)

    def merged(self) -> Iterator[pa.Table]:
        """Yield the rows of all runs in order; no more can be added."""
        self._writer.close()
        self._file.seek(0)
        reader = pa.ipc.open_file(pa.PythonFile(self._file, mode="r"))
        heads = [(run[0], iter(run[1:])) for run in self._runs if run]
        while heads:
            bound = min(block.last for block, _ in heads)
            pieces, left = [], []
            for block, others in heads:
                head: _Block | None = block
                if block.first <= bound:
                    taken, head = self._split(reader, block, bound)
                    pieces.append(taken)
                    head = head or next(others, None)
                if head is not None:
                    left.append((head, others))
            heads = left
            yield pieces[0] if len(pieces) == 1 else _sorted(pieces, self._sort_by)

    def _split(
        self, reader: pa.ipc.RecordBatchFileReader, block: _Block, bound: Key
    ) -> tuple[pa.Table, _Block | None]:
        """Take the rows of a block up to a key; return them, and the rest of the block."""
        rows = block.rows
        if rows is None:
            rows = pa.Table.from_batches([reader.get_batch(block.index)]).slice(block.taken)
        if block.last <= bound:
            return rows, None
        count = _count_up_to(rows, self._sort_by, bound)
        rest = rows.slice(count)
        block.taken, block.first = block.taken + count, _key(rest, 0, self._sort_by)
        # The next symbol is far: many runs end a symbol, and their rest would fill the memory.
        block.rows = rest if block.first[0] == bound[0] else None
        return rows.slice(0, count), block


def _key(rows: pa.Table, at: int, sort_by: Sequence[str]) -> Key:
    return tuple(_comparable(rows[name], at) for name in sort_by)


def _comparable(column: pa.ChunkedArray, at: int) -> Any:
    value = column[at]
    if pa.types.is_string(column.type):
        return value.as_py()
    number = value.cast(pa.int64()).as_py()
    return _NULL_LAST if number is None else number


def _count_up_to(rows: pa.Table, sort_by: Sequence[str], bound: Key) -> int:
    """Count the sorted rows up to a key by bisection."""
    low, high = 0, rows.num_rows
    while low < high:
        middle = (low + high) // 2
        if _key(rows, middle, sort_by) <= bound:
            low = middle + 1
        else:
            high = middle
    return low
