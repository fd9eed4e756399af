"""CSV files into batches.

The file is read in blocks of whole lines, and each block is parsed column by column. A block that
does not parse is gone through line by line; so every line becomes a row or a reject, except for
blank ones. A line ends at a line feed, always: a quoted value that holds one is a reject.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

from k2cli.columns import Ints
from k2cli.errors import BadData, UsageError
from k2cli.flow import Batch, Reject
from k2cli.ingestion.binance.symbols import Market, parse_symbol
from k2cli.ingestion.csv.files import compression, hash_plain, open_plain, open_raw, read_plain
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.csv.market import Dump, find_market, plain_name, stem_of
from k2cli.ingestion.csv.names import CsvOptions, file_values
from k2cli.ingestion.csv.rows import Cells, Columns, Facts, RowBuilder, find_columns
from k2cli.ingestion.csv.times import check_zone
from k2cli.records import nth_copy
from k2cli.symbols import normalize_symbol

__all__ = ["BLOCK_BYTES", "CsvOptions", "CsvSource", "read_csv"]

BLOCK_BYTES: Final = 8 << 20
_HALVE_ABOVE: Final = 64  # lines; fewer are parsed one by one
_LONGEST_LINE: Final = 16 << 20
_LOOK_BACK: Final = 1 << 20
_LOOK_FOR_ROW: Final = 1000  # lines
_LOOK_BYTES: Final = 256 << 10  # for these lines
_BOM: Final = b"\xef\xbb\xbf"


def read_csv(source: Path | IO[bytes], layout: Layout, options: CsvOptions) -> "CsvSource":
    """Open a CSV file (plain, .gz, .zst or .zip), or read one from a stream such as stdin.

    Raises:
        NotFound: no such file.
        ConfigError: no permission to read it.
        UsageError: it is a folder, or the time zone is unknown.
    """
    zone = options.timezone or layout.time.zone
    check_zone(zone)
    return CsvSource(source, layout, options, zone=zone)


class CsvSource:
    """A CSV file as a source of batches; iterate it once.

    Iterating raises BadData where the file as a whole does not fit (no such columns, compressed
    data cut off, written to while it was read), and UsageError where an option must be given.
    """

    def __init__(
        self,
        source: Path | IO[bytes],
        layout: Layout,
        options: CsvOptions,
        *,
        zone: str,
    ) -> None:
        self._path = source if isinstance(source, Path) else None
        self._raw = open_raw(source)
        self._layout = layout
        self._options = options
        self._zone = zone
        self._digest: str | None = None
        self._content: str | None = None  # digest of what the file holds, decompressed
        self._start: _Start | None = None
        self._copy = 1
        self._is_growing = False
        self._lines_before = 0  # what is read

    @property
    def name(self) -> str:
        """The file's path, or `stdin`."""
        return self._raw.name

    @property
    def size_bytes(self) -> int:
        """The size of the file as it is, compressed or not."""
        return self._raw.size_bytes

    @property
    def bytes_read(self) -> int:
        """How much of `size_bytes` was read."""
        return self._raw.bytes_read

    def hash(self) -> str:
        """Return the SHA-256 of the file as it is, compressed or not; at any time.

        What is read after that is checked against it.
        """
        self._digest = self._digest or self._raw.hash()
        return self._digest

    def hash_content(self) -> str:
        """Return the SHA-256 of what the file holds, decompressed, in hex.

        Raises:
            BadData: the compressed data is cut off or broken.
        """
        self.hash()  # so that a file that is written to after that is noticed
        self._content = self._content or hash_plain(self._raw, self._suffix)
        return self._content

    def meaning(self) -> str:
        """Return a digest of what the file is loaded as.

        That is the kind of its rows, which column is which field, how times and sides are read, and
        what holds for the whole file: exchange, symbol, asset class and currency. Neither its name
        nor that of the layout matters. Empty for a file that holds nothing.

        Raises:
            BadData: the columns do not fit the layout.
            UsageError: an option must be given.
        """
        return self._started().meaning

    def identity(self) -> str:
        """Return a digest of the content and its meaning: what tells this file from others.

        The same content is the same file under another name, compressed or not; loaded as another
        symbol or in another time zone it is another file.

        Raises:
            BadData, UsageError: see `meaning` and `hash_content`.
        """
        return _digest([self.hash_content(), self.meaning()])

    def _line_file(self) -> str:
        """Name the file in the message ids of rows without ids. See `records.line_series`."""
        return nth_copy(self.identity(), self._copy)

    @property
    def file_values(self) -> Mapping[str, str]:
        """What holds for the whole file: exchange, symbol and so on, where no column has it."""
        return self._started().values

    @property
    def has_ids(self) -> bool:
        """Whether a column has ids, so that rows are not told apart by their lines alone."""
        return self._started().has_ids

    def repeat(self, copy: int) -> None:
        """Give rows without ids the message ids of the file's n-th copy; the first is itself."""
        self._copy = copy

    def starts_with(self, size: int, digest: str) -> bool:
        """Return whether the file's first `size` bytes have this SHA-256."""
        return size <= self.size_bytes and self._raw.hash(size) == digest

    def expect_growth(self) -> None:
        """Take the file for one that grows: a line counts once it is complete.

        Raises:
            UsageError: the file is compressed, or not a regular file.
        """
        path = self._path
        if path is None or not path.is_file():
            raise UsageError(
                f"{self.name} is not a regular file, so its new lines cannot be followed"
            )
        if compression(self._raw, path.suffix):
            raise UsageError(f"{self.name} is compressed", hint="only plain files can be followed")
        self._is_growing = True

    def follow(self, done: int) -> None:
        """Read complete lines alone, and of those what comes after the first `done` bytes.

        The file may go on growing. Rows keep the numbers that they have in the whole file.

        Raises:
            BadData: the first bytes end within a line.
        """
        raw = self._raw
        start = done + self._unended(done)
        raw.cut(self._end_of_lines(start))
        self._digest = self._content = self._start = None
        if start:
            self._lines_before = raw.skip(start)

    def _unended(self, done: int) -> int:
        """Return how many bytes end the last of the lines that are done; 0 if it has its end."""
        raw = self._raw
        after = raw.bytes_at(done, 2)
        if not done or not after or raw.bytes_at(done - 1, 1) == b"\n":
            return 0
        for end in (b"\n", b"\r\n"):
            if after.startswith(end):
                return len(end)
        raise BadData(
            f"{self.name} was loaded when its last line was not complete",
            hint="--force loads all of it",
        )

    def _end_of_lines(self, start: int) -> int:
        """Find where the last complete line ends."""
        end = self.size_bytes
        while end > start:
            begin = max(end - _LOOK_BACK, start)
            place = self._raw.bytes_at(begin, end - begin).rfind(b"\n")
            if place >= 0:
                return begin + place + 1
            end = begin
        return start

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self) -> Iterator[Batch]:
        """Yield the rows and rejects of the file, a block at a time, and close it."""
        with self._raw, open_plain(self._raw, self._suffix) as stream:
            yield from self._parsed(stream)
            self._digest = self._raw.finish(self._digest)

    @property
    def _suffix(self) -> str:
        return self._path.suffix if self._path else ""

    def _parsed(self, stream: IO[bytes]) -> Iterator[Batch]:
        parser: _BlockParser | None = None
        first = 1 + self._lines_before
        for block in self._blocks(stream):
            body = block
            count = _count_lines(block)
            if parser is None:
                parser = self._started().parser(self._line_file)
                if self._started().has_header and not self._lines_before:
                    body = block.partition(b"\n")[2]
            skipped = count - _count_lines(body)
            if body:
                yield parser.parse(body, first=first + skipped)
            first += count

    def _first_lines(self) -> bytes | None:
        """Read the first lines, wherever reading stands; None if the file holds none."""
        with open_plain(self._raw, self._suffix, is_beside=True) as stream:
            lines = b""
            while data := read_plain(stream, _LOOK_BYTES, self.name):
                lines += data
                if b"\n" in lines or len(lines) > _LONGEST_LINE:
                    break
        is_there = b"\n" in lines if self._is_growing else bool(lines)
        return lines.removeprefix(_BOM) if is_there else None

    def _blocks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Cut the stream into blocks of whole lines."""
        rest = b""
        is_first = not self._lines_before
        while data := read_plain(stream, BLOCK_BYTES, self.name):
            if is_first:
                data, is_first = data.removeprefix(_BOM), False
            head, newline, tail = data.rpartition(b"\n")
            if newline:
                yield rest + head + newline
                rest = tail
            else:
                rest += data
            if len(rest) > _LONGEST_LINE:
                raise BadData(f"{self.name} has a line of more than {_LONGEST_LINE >> 20} MB")
        if rest:
            yield rest

    def _started(self) -> "_Start":
        """Settle by the first line what the columns are, once."""
        if self._start is None:
            self._start = self._begin(self._first_lines())
        return self._start

    def _begin(self, block: bytes | None) -> "_Start":
        layout = self._layout
        if block is None:
            return _Start(layout)
        cells = _cells_of(block.partition(b"\n")[0])
        has_header = layout.header == "required" or (
            layout.header == "sniff" and _is_header(layout, cells)
        )
        header = [cell.strip() for cell in cells or ()] if has_header else None
        try:
            row = () if has_header else _first_row(layout, block)
            market = self._market(header or (), row) if layout.market else None
            if market is not None:
                layout = layout.for_market(market)
            names = _unnamed(layout, row) if header is None else header
            columns = find_columns(layout, names)
        except BadData as exc:
            raise BadData(f"{self.name}: {exc}", hint=exc.hint) from exc
        stem = stem_of(self._path) if self._path else ""
        entries = {layout.file_stem: stem} if layout.file_stem and stem.isdecimal() else {}
        facts = Facts(
            zone=self._zone,
            values=file_values(layout, self._options, stem, columns.fields, market),
            entries=entries,
            market=market,
            home=self._options.home,
        )
        return _Start(layout, columns, facts, has_header)

    def _market(self, header: Sequence[str], row: Sequence[str]) -> Market:
        """Infer the market from the file's names, its header, or the first of its rows."""
        options, layout = self._options, self._layout
        dump = Dump(
            path=self._path,
            member=self._raw.member,
            symbol=options.symbol,
            header=header,
            cells=row,
        )
        return find_market(options.market, options.exchange, dump, layout.columns)


@dataclass(frozen=True, slots=True)
class _Start:
    """What the first line of a file settles; without columns the file holds nothing."""

    layout: Layout
    columns: Columns | None = None
    facts: Facts = field(default_factory=lambda: Facts(zone=""))
    has_header: bool = False

    @property
    def has_ids(self) -> bool:
        """Whether rows have ids of a column."""
        return self.columns is not None and "id" in self.columns.fields

    @property
    def values(self) -> Mapping[str, str]:
        """What holds for the whole file, with the symbol as its rows have it."""
        facts = self.facts
        values = dict(facts.values)
        if "symbol" in values:
            symbol, market = values["symbol"], facts.market
            values["symbol"] = (
                normalize_symbol(symbol)
                if market is None
                else parse_symbol(symbol, market, facts.home).symbol
            )
        return values

    @property
    def meaning(self) -> str:
        """See `CsvSource.meaning`."""
        if self.columns is None:
            return ""
        layout, columns, time = self.layout, self.columns, self.layout.time
        patterns = [time.date_format, time.time_format] if time.how == "format" else []
        read = [columns.fields, columns.vendor, sorted(columns.lower)]
        said = [layout.kind, layout.market, layout.side, time.how, patterns, self.facts.zone]
        return _digest([*said, self.values, read])

    def parser(self, line_file: Callable[[], str]) -> "_BlockParser":
        """Return what parses the blocks of the file; `line_file` is for rows without ids."""
        assert self.columns is not None, "a file that holds nothing has no blocks"
        builder = RowBuilder(self.layout, self.columns, replace(self.facts, identity=line_file))
        return _BlockParser(self.columns.names, builder, self.has_header)


def _digest(said: object) -> str:
    """Return the SHA-256 of values, in hex, whatever the order of the keys in mappings."""
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


class _BlockParser:
    """Turn blocks of lines into batches."""

    def __init__(self, names: Sequence[str], builder: RowBuilder, has_header: bool) -> None:
        self._names = names
        self._builder = builder
        self._kind = builder.kind
        self._header_lines = int(has_header)
        self._convert = pa.csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
        )
        self._read = pa.csv.ReadOptions(column_names=list(names))

    def parse(self, block: bytes, *, first: int) -> Batch:
        """Parse whole lines, of which the first is line `first` of the file."""
        now_us = time.time_ns() // 1000
        reasons: dict[int, str] = {}
        count = _count_lines(block)
        cells, places = self._table(block, count, reasons)
        built = self._builder.build(cells, places + (first - self._header_lines), now_us)
        reasons |= {int(places[place]): reason for place, reason in built.faults.items()}
        lines = block.split(b"\n") if reasons else []
        rejects = [
            Reject(
                raw=lines[place].removesuffix(b"\r"),
                position=first + place,
                received_us=now_us,
                reason=reasons[place],
            )
            for place in sorted(reasons)
        ]
        rows = sum(batch.num_rows for batch in built.rows)
        return Batch(
            rows=[(self._kind, batch) for batch in _joined(built.rows)],
            rejects=rejects,
            messages=rows + len(rejects),
        )

    def _table(self, block: bytes, count: int, reasons: dict[int, str]) -> tuple[Cells, Ints]:
        """Cut a block into columns; return them with the place of each row among the lines."""
        tables: list[Cells] = []
        places: list[Ints] = []
        parts = [(block, 0, count)]
        while parts:
            part, start, size = parts.pop()
            cells = self._columns(part, size)
            if cells is not None:
                tables.append(cells)
                places.append(np.arange(start, start + size))
            elif size > _HALVE_ABOVE:
                cut = _middle(part)
                head, tail = part[:cut], part[cut:]
                size_of_head = _count_lines(head)
                parts.append((tail, start + size_of_head, size - size_of_head))
                parts.append((head, start, size_of_head))
            else:
                cells, kept = self._line_by_line(part.split(b"\n")[:size], start, reasons)
                tables.append(cells)
                places.append(kept)
        if len(tables) == 1:
            return tables[0], places[0]
        columns = zip(*tables, strict=True)
        return [pa.concat_arrays(column) for column in columns], np.concatenate(places)

    def _columns(self, block: bytes, count: int) -> Cells | None:
        """Parse lines all of which are good, the fast path; None if one of them is not."""
        if b"\0" in block or block.startswith(_BOM) or _has_bare_return(block):
            return None
        try:
            table = pa.csv.read_csv(
                pa.BufferReader(_ended(block)),
                read_options=self._read,
                convert_options=self._convert,
            )
        except pa.ArrowInvalid:
            return None
        if table.num_rows != count:  # blank lines, or quotes over several lines
            return None
        cells = [column.combine_chunks() for column in table.columns]
        # Arrow closes a quote that is open at the end of what it looks at.
        if b'"' in block and pc.any(pc.ends_with(cells[-1], "\n")).as_py():
            return None
        return cells

    def _line_by_line(
        self, lines: Sequence[bytes], start: int, reasons: dict[int, str]
    ) -> tuple[Cells, Ints]:
        """Parse lines one by one; those that are no row of the file enter `reasons`."""
        rows: list[Sequence[str]] = []
        places: list[int] = []
        for place, line in enumerate(lines, start=start):
            if line in (b"", b"\r"):
                continue
            try:
                cells = _parse_line(line)
            except _BadLine as exc:
                reasons[place] = str(exc)
                continue
            if len(cells) != len(self._names):
                reasons[place] = f"has {len(cells)} columns, not {len(self._names)}"
                continue
            rows.append(cells)
            places.append(place)
        columns = zip(*rows, strict=True) if rows else [() for _ in self._names]
        cells_of_all = [pa.array(column, pa.string()) for column in columns]
        return cells_of_all, np.array(places, dtype=np.int64)


class _BadLine(Exception):
    """A line that is not CSV."""


def _parse_line(line: bytes) -> list[str]:
    """Cut one line into its cells, exactly as it is cut among others."""
    line = line.removesuffix(b"\r")
    if b"\0" in line:
        raise _BadLine("holds a NUL byte")
    try:
        text = line.decode()
    except UnicodeDecodeError as exc:
        raise _BadLine(f"is not UTF-8 at byte {exc.start + 1}") from exc
    if b'"' in line:
        return _parse_quoted(line)
    if b"\r" in line:
        raise _BadLine("holds a carriage return")
    return text.split(",")


def _parse_quoted(line: bytes) -> list[str]:
    names = [f"f{number}" for number in range(line.count(b",") + 1)]  # Arrow's, at most these
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(_ended(line)),
            read_options=pa.csv.ReadOptions(autogenerate_column_names=True, use_threads=False),
            convert_options=pa.csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
        )
    except pa.ArrowInvalid as exc:
        raise _BadLine("is not CSV: a quote is not closed") from exc
    if table.num_rows != 1:
        raise _BadLine("holds a carriage return")
    return [column[0].as_py() for column in table.columns]


def _cells_of(line: bytes) -> list[str] | None:
    try:
        return _parse_line(line) if line.strip() else None
    except _BadLine:
        return None


def _is_header(layout: Layout, cells: Sequence[str] | None) -> bool:
    known = {plain_name(name) for name in layout.columns}
    known |= {plain_name(name) for field in layout.fields for name in layout.candidates(field)}
    return any(plain_name(cell) in known for cell in cells or ())


def _unnamed(layout: Layout, row: Sequence[str]) -> Sequence[str]:
    """Name the columns of a file without header: as many as its first row has, if it has one."""
    return layout.columns[: len(row)] if row else layout.columns


def _first_row(layout: Layout, block: bytes) -> Sequence[str]:
    """Return the first line of as many cells as a row can have; none among the first lines."""
    most = len(layout.columns)
    for line in block.split(b"\n", _LOOK_FOR_ROW)[:_LOOK_FOR_ROW]:
        cells = _cells_of(line) or ()
        if most - len(layout.optional) <= len(cells) <= most:
            return cells
    return ()


def _count_lines(block: bytes) -> int:
    return block.count(b"\n") + (not block.endswith(b"\n") and bool(block))


def _ended(lines: bytes) -> bytes:
    return lines if lines.endswith(b"\n") else lines + b"\n"


def _has_bare_return(block: bytes) -> bool:
    """Tell whether a carriage return stands elsewhere than before a line feed."""
    return b"\r" in block and block.count(b"\r") != block.count(b"\r\n") + block.endswith(b"\r")


def _middle(block: bytes) -> int:
    """Return where a line begins, near the middle of several lines."""
    before = block.rfind(b"\n", 0, len(block) // 2)
    return 1 + (before if before >= 0 else block.index(b"\n"))


def _joined(batches: Sequence[pa.RecordBatch]) -> Sequence[pa.RecordBatch]:
    if len(batches) < 2:  # noqa: PLR2004
        return batches
    return list(pa.Table.from_batches(batches).combine_chunks().to_batches())
