"""Parse blocks of lines into batches.

A block of valid lines is parsed column by column. Any other is split into pieces, and a piece that
does not parse is parsed line by line. Batches are bounded: a block of only bad lines yields batches
of a few thousand rejects, so a limit can stop the file there.
"""

import itertools
import re
import time
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from k2cli.columns import Ints, Unfit
from k2cli.flow import Batch
from k2cli.ingestion.csv.headers import MAX_COLUMNS
from k2cli.ingestion.csv.rows import Cells, RowBuilder
from k2cli.rejects import Cause, Fault, Reject

BOM: Final = b"\xef\xbb\xbf"
LONGEST_LINE: Final = 1 << 20  # bytes
_HALVE_ABOVE: Final = 64  # lines; smaller pieces are parsed line by line
_PIECE_LINES: Final = 4096
_PIECE_BYTES: Final = 256 << 10
_MAX_REJECTS: Final = 1000  # of a batch, unless a single piece has more
_BLANK_LINES: Final = re.compile(rb"(?:\r?\n)+")


class BadLine(Exception):
    """A line that is not CSV, with the cause."""

    def __init__(self, reason: str, cause: Cause = Cause.BAD_CSV) -> None:
        super().__init__(reason)
        self.cause: Final = cause


class BlockParser:
    """Parses blocks of lines into batches."""

    def __init__(
        self, names: Sequence[str], builder: RowBuilder, *, delimiter: str, lines_before: int
    ) -> None:
        self._names = names
        self._builder = builder
        self._kind = builder.kind
        self._delimiter = delimiter
        self._lines_before = (
            lines_before  # lines before the first row: the header, and skipped lines
        )
        self._convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        )
        self._read = pa.csv.ReadOptions(column_names=list(names))
        self._parse = pa.csv.ParseOptions(delimiter=delimiter)

    def parse(self, block: bytes, *, first: int) -> Iterator[Batch]:
        """Parse whole lines; the first is line `first` of the file."""
        now_us = time.time_ns() // 1000
        count = count_lines(block)
        cells = self._columns(block, count)
        if cells is not None:
            numbers = np.arange(first, first + count) - self._lines_before
            try:
                rows = self._builder.build_all(cells, numbers, now_us)
            except Unfit:
                pass
            else:
                yield Batch(rows=[(self._kind, rows)], rejects=[], messages=count)
                return
        batches: list[pa.RecordBatch] = []
        rejects: list[Reject] = []
        for piece, start in _pieces(block, first):
            built, faulty = self._parse_piece(piece, start, now_us)
            batches += built
            rejects += faulty
            if len(rejects) >= _MAX_REJECTS:
                yield self._batch(batches, rejects)
                batches, rejects = [], []
        if batches or rejects:
            yield self._batch(batches, rejects)

    def _batch(self, batches: Sequence[pa.RecordBatch], rejects: Sequence[Reject]) -> Batch:
        rows = sum(batch.num_rows for batch in batches)
        return Batch(
            rows=[(self._kind, batch) for batch in _joined(batches)],
            rejects=rejects,
            messages=rows + len(rejects),
        )

    def _parse_piece(
        self, piece: bytes, first: int, now_us: int
    ) -> tuple[Sequence[pa.RecordBatch], list[Reject]]:
        faults: dict[int, Fault] = {}
        cells, indexes = self._table(piece, count_lines(piece), faults)
        built = self._builder.build(cells, indexes + (first - self._lines_before), now_us)
        faults |= {int(indexes[index]): fault for index, fault in built.faults.items()}
        lines = piece.split(b"\n") if faults else []
        rejects = [
            Reject(
                fault=faults[index],
                raw=lines[index].removesuffix(b"\r"),
                position=first + index,
                received_us=now_us,
            )
            for index in sorted(faults)
        ]
        return built.rows, rejects

    def _table(self, block: bytes, count: int, faults: dict[int, Fault]) -> tuple[Cells, Ints]:
        """Split lines into columns; return them with the line index of each row."""
        tables: list[Cells] = []
        indexes: list[Ints] = []
        parts = [(block, 0, count)]
        while parts:
            part, start, size = parts.pop()
            cells = self._columns(part, size)
            if cells is not None:
                tables.append(cells)
                indexes.append(np.arange(start, start + size))
            elif size > _HALVE_ABOVE:
                cut = _middle(part)
                head, tail = part[:cut], part[cut:]
                size_of_head = count_lines(head)
                parts.append((tail, start + size_of_head, size - size_of_head))
                parts.append((head, start, size_of_head))
            else:
                cells, kept = self._line_by_line(part.split(b"\n")[:size], start, faults)
                tables.append(cells)
                indexes.append(kept)
        if len(tables) == 1:
            return tables[0], indexes[0]
        columns = zip(*tables, strict=True)
        return [pa.concat_arrays(column) for column in columns], np.concatenate(indexes)

    def _columns(self, block: bytes, count: int) -> Cells | None:
        """Parse valid lines, the fast path; None if any line is invalid."""
        if b"\0" in block or block.startswith(BOM) or _has_bare_return(block):
            return None
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(_ended(block)),
                read_options=self._read,
                parse_options=self._parse,
                convert_options=self._convert,
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != count:  # blank lines, or quotes over several lines
            return None
        cells = [column.combine_chunks() for column in table.columns]
        # Arrow closes a quote that is open at the end of its input.
        if b'"' in block and pc.any(pc.ends_with(cells[-1], "\n")).as_py():
            return None
        return cells

    def _line_by_line(
        self, lines: Sequence[bytes], start: int, faults: dict[int, Fault]
    ) -> tuple[Cells, Ints]:
        """Parse lines one by one; those that cannot be parsed go to `faults`."""
        rows: list[Sequence[str]] = []
        indexes: list[int] = []
        for index, line in enumerate(lines, start=start):
            if line in (b"", b"\r"):
                continue
            try:
                cells = parse_line(line, self._delimiter)
            except BadLine as exc:
                faults[index] = Fault(reason=str(exc), cause=exc.cause)
                continue
            if len(cells) != len(self._names):
                of = f" (delimiter {self._delimiter!r})" if len(cells) == 1 else ""
                reason = f"has {len(cells)} columns, not {len(self._names)}{of}"
                faults[index] = Fault(reason=reason, cause=Cause.BAD_COLUMN_COUNT)
                continue
            rows.append(cells)
            indexes.append(index)
        columns = zip(*rows, strict=True) if rows else [() for _ in self._names]
        cells_of_all = [pa.array(column, pa.string()) for column in columns]
        return cells_of_all, np.array(indexes, dtype=np.int64)


def parse_line(line: bytes, delimiter: str) -> list[str]:
    """Split one line into cells, exactly as within a block.

    Raises:
        BadLine: it is not CSV.
    """
    line = line.removesuffix(b"\r")
    if b"\0" in line:
        raise BadLine("holds a NUL byte")
    try:
        text = line.decode()
    except UnicodeDecodeError as exc:
        raise BadLine(f"is not UTF-8 at byte {exc.start + 1}", Cause.BAD_ENCODING) from exc
    if b'"' in line:
        return _parse_quoted(line, delimiter)
    if b"\r" in line:
        raise BadLine("holds a carriage return")
    return text.split(delimiter)


def _parse_quoted(line: bytes, delimiter: str) -> list[str]:
    count = line.count(delimiter.encode()) + 1
    if count > MAX_COLUMNS:  # Arrow makes a column of each, unless it is quoted
        count = _count_cells(line, delimiter)
    if count > MAX_COLUMNS:
        reason = f"has too many columns: more than {MAX_COLUMNS:,}"
        raise BadLine(reason, Cause.BAD_COLUMN_COUNT)
    names = [f"f{number}" for number in range(count)]  # Arrow's, at most these
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(_ended(line)),
            read_options=pa.csv.ReadOptions(autogenerate_column_names=True, use_threads=False),
            parse_options=pa.csv.ParseOptions(delimiter=delimiter),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as exc:
        raise BadLine("is not CSV: a quote is not closed") from exc
    if table.num_rows != 1:
        raise BadLine("holds a carriage return")
    return [column[0].as_py() for column in table.columns]


def _count_cells(line: bytes, delimiter: str) -> int:
    """Count the cells of a line as Arrow does, up to one more than allowed."""
    mark = re.escape(delimiter.encode())
    quoted = rb'"(?:[^"]++|"")*+(?:"|\Z)'
    cells = re.finditer(b"(?:" + quoted + b")?+[^" + mark + b"]*+(" + mark + rb"|\Z)", line)
    return 1 + sum(bool(cell[1]) for cell in itertools.islice(cells, MAX_COLUMNS))


def count_lines(block: bytes) -> int:
    """Count lines; the last may lack its line end."""
    return block.count(b"\n") + (not block.endswith(b"\n") and bool(block))


def has_long_line(block: bytes) -> bool:
    """Return whether a line is longer than allowed."""
    start = 0
    while len(block) - start > LONGEST_LINE:
        newline = block.rfind(b"\n", start, start + LONGEST_LINE + 1)
        if newline < 0:
            return True
        start = newline + 1
    return False


def _pieces(block: bytes, first: int) -> Iterator[tuple[bytes, int]]:
    """Split a block into pieces of whole lines; yield each with its first line number."""
    start = 0
    while start < len(block):
        if blank := _BLANK_LINES.match(block, start):
            first += block.count(b"\n", start, blank.end())
            start = blank.end()
            continue
        end = _cut(block, start)
        piece = block[start:end]
        yield piece, first
        first += count_lines(piece)
        start = end


def _cut(block: bytes, start: int) -> int:
    """Return where a piece ends: limited in lines and, if it has several, in bytes."""
    end = start
    for _ in range(_PIECE_LINES):
        newline = block.find(b"\n", end)
        if newline < 0:
            return len(block)
        end = newline + 1
        if end - start >= _PIECE_BYTES:
            break
    return end


def _ended(lines: bytes) -> bytes:
    return lines if lines.endswith(b"\n") else lines + b"\n"


def _has_bare_return(block: bytes) -> bool:
    """Return whether a carriage return is not followed by a line feed."""
    return b"\r" in block and block.count(b"\r") != block.count(b"\r\n") + block.endswith(b"\r")


def _middle(block: bytes) -> int:
    """Return the start of a line near the middle of several lines."""
    before = block.rfind(b"\n", 0, len(block) // 2)
    return 1 + (before if before >= 0 else block.index(b"\n"))


def _joined(batches: Sequence[pa.RecordBatch]) -> Sequence[pa.RecordBatch]:
    if len(batches) < 2:  # noqa: PLR2004
        return batches
    return list(pa.Table.from_batches(batches).combine_chunks().to_batches())
