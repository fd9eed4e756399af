"""Read CSV files into batches.

The file is read in blocks of whole lines (see blocks.py); every line except blank ones becomes a
row or a reject. A line always ends at a line feed: a quoted value with a line feed is a reject.

The module is long because the states of one file (opening, header, growth) share their data.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import IO, Final

import msgspec

from k2cli.errors import BadData, UsageError
from k2cli.flow import Batch
from k2cli.ingestion.csv.blocks import (
    BOM,
    LONGEST_LINE,
    BadLine,
    BlockParser,
    count_lines,
    has_long_line,
    parse_line,
)
from k2cli.ingestion.csv.files import (
    compression,
    hash_plain,
    open_plain,
    open_raw,
    open_text,
    read_plain,
)
from k2cli.ingestion.csv.headers import Columns, find_columns, notices
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.csv.market import (
    Dump,
    check_dump,
    check_period,
    find_market,
    plain_name,
    stem_of,
)
from k2cli.ingestion.csv.names import CsvOptions, file_values
from k2cli.ingestion.csv.rows import FileContext, RowBuilder
from k2cli.ingestion.csv.times import check_zone
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.records import nth_copy
from k2cli.rejects import Cause
from k2cli.symbols import normalize_symbol

__all__ = ["BLOCK_BYTES", "CsvOptions", "CsvSource", "read_csv"]

BLOCK_BYTES: Final = 8 << 20
_LOOK_BACK: Final = 1 << 20
_LOOK_FOR_ROW: Final = 1000  # lines
_LOOK_BYTES: Final = 256 << 10  # for these lines
_UTF16_MARKS: Final = (b"\xff\xfe", b"\xfe\xff")
_DELIMITERS: Final = ",;\t|"
_LOOK_SKIPPED: Final = 10  # lines above the header that a hint considers


def read_csv(source: Path | IO[bytes], layout: Layout, options: CsvOptions) -> "CsvSource":
    """Open a CSV file (plain, .gz, .zst or .zip), or a stream such as stdin.

    Raises:
        NotFound: the file does not exist.
        ConfigError: no permission to read it.
        UsageError: it is a directory, or the time zone is unknown.
    """
    return CsvSource(source, layout, options)


class CsvSource:
    """A CSV file as a source of batches; iterate it once.

    Iterating raises BadData if the file as a whole is invalid (missing columns, truncated
    compressed data, modified while it was read), and UsageError if an option is missing.
    """

    def __init__(self, source: Path | IO[bytes], layout: Layout, options: CsvOptions) -> None:
        self._zone = options.timezone or layout.time.zone
        check_zone(self._zone)
        self._path = source if isinstance(source, Path) else None
        self._raw = open_raw(source)
        self._layout = layout
        self._options = options
        self._digest: str | None = None
        self._content: str | None = None  # digest of the decompressed content
        self._start: Start | None = None
        self._copy = 1
        self._is_growing = False
        self._lines_before = 0  # lines before the part that is read
        self._builder: RowBuilder | None = None

    @property
    def name(self) -> str:
        """The file's path, or `stdin`."""
        return self._raw.name

    @property
    def size_bytes(self) -> int:
        """The size of the file on disk, compressed or not."""
        return self._raw.size_bytes

    @property
    def bytes_read(self) -> int:
        """How many of `size_bytes` were read."""
        return self._raw.bytes_read

    def hash(self) -> str:
        """Return the SHA-256 of the file on disk, compressed or not; at any time.

        Data read after that is checked against it.
        """
        self._digest = self._digest or self._raw.hash()
        return self._digest

    def hash_content(self) -> str:
        """Return the SHA-256 of the decompressed content, in hex.

        Raises:
            BadData: the compressed data is truncated or corrupt.
        """
        self.hash()  # to detect later modification of the file
        self._content = self._content or hash_plain(self._raw, self._suffix)
        return self._content

    def meaning(self) -> str:
        """Return a digest of how the file is interpreted.

        It covers the record kind, the mapping of columns to fields, how times and sides are read,
        and the values of the whole file: exchange, symbol, asset class and currency. The names of
        file and layout do not matter. Empty for an empty file.

        Raises:
            BadData: the columns do not match the layout.
            UsageError: an option is missing.
        """
        return self._started().meaning

    def identity(self) -> str:
        """Return a digest of the content and its meaning, which identifies the file.

        The same content under another name, compressed or not, is the same file; with another
        symbol or time zone it is another file.

        Raises:
            BadData, UsageError: see `meaning` and `hash_content`.
        """
        return _digest([self.hash_content(), self.meaning()])

    def _line_file(self) -> str:
        """Identify the file in the message ids of rows without ids. See `records.line_series`."""
        return nth_copy(self.identity(), self._copy)

    @property
    def file_values(self) -> Mapping[str, str]:
        """The values of the whole file that no column has: exchange, symbol and so on."""
        return self._started().values

    def check_period(self, symbol: str, day: date) -> None:
        """Check that the names of the file and in its archive are not of another symbol or day.

        Raises:
            BadData: they are, or the file cannot be read.
        """
        self._started()  # opens the archive
        try:
            check_period(self._path, self._raw.member, symbol, day)
        except BadData as exc:
            raise BadData(f"{self.name}: {exc}") from exc

    @property
    def has_ids(self) -> bool:
        """Whether a column has ids, so rows are not identified only by their lines."""
        return self._started().has_ids

    def notices(self) -> list[str]:
        """Return notices for the user about how the file was read, after reading it."""
        start = self._started()
        found = list(notices(start.layout, start.columns)) if start.columns else []
        return [*found, *(self._builder.notices() if self._builder else ())]

    def repeat(self, copy: int) -> None:
        """Give rows without ids the message ids of the file's n-th copy; 1 is the file itself."""
        self._copy = copy

    def starts_with(self, size: int, digest: str) -> bool:
        """Return whether the file's first `size` bytes have this SHA-256."""
        return size <= self.size_bytes and self._raw.hash(size) == digest

    def expect_growth(self) -> None:
        """Treat the file as growing: a line counts once it is complete.

        Raises:
            UsageError: the file is compressed, or not a regular file.
        """
        path = self._path
        if path is None or not path.is_file():
            raise UsageError(f"{self.name} is not a regular file and cannot be followed")
        if compression(self._raw, path.suffix):
            raise UsageError(f"{self.name} is compressed", hint="only plain files can be followed")
        if "\n".encode(self._encoding()) != b"\n":
            raise UsageError(
                f"{self.name} is {self._encoding()} and cannot be followed",
                hint="--force loads all of it",
            )
        self._is_growing = True

    def follow(self, done: int) -> None:
        """Read only complete lines after the first `done` bytes.

        The file may keep growing. Rows keep their numbers in the whole file.

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
        """Return how many bytes of line end follow the lines done; 0 if they are included."""
        raw = self._raw
        after = raw.bytes_at(done, 2)
        if not done or not after or raw.bytes_at(done - 1, 1) == b"\n":
            return 0
        for end in (b"\n", b"\r\n"):
            if after.startswith(end):
                return len(end)
        raise BadData(
            f"{self.name} was loaded while its last line was incomplete",
            hint="--force loads all of it",
        )

    def _end_of_lines(self, start: int) -> int:
        """Find the end of the last complete line."""
        end = self.size_bytes
        while end > start:
            begin = max(end - _LOOK_BACK, start)
            newline = self._raw.bytes_at(begin, end - begin).rfind(b"\n")
            if newline >= 0:
                return begin + newline + 1
            end = begin
        return start

    def close(self) -> None:
        """Close the file."""
        self._raw.close()

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(self) -> Iterator[Batch]:
        """Yield the rows and rejects of the file block by block, then close it."""
        with self._raw, open_plain(self._raw, self._suffix) as stream:
            self._started()  # so an empty file is an error
            yield from self._parsed(stream)
            self._digest = self._raw.finish(self._digest)

    @property
    def _suffix(self) -> str:
        return self._path.suffix if self._path else ""

    def _parsed(self, stream: IO[bytes]) -> Iterator[Batch]:
        parser: BlockParser | None = None
        first = 1 + self._lines_before
        left = 0  # lines before the first row
        for block in self._blocks(stream):
            body = block
            if parser is None:
                start = self._started()
                self._builder = start.builder(self._line_file)
                parser = start.parser(self._builder)
                left = max(start.lines_before - self._lines_before, 0)
            count = count_lines(block)
            while left and body:
                body = body.partition(b"\n")[2]
                left -= 1
            if body:
                yield from parser.parse(body, first=first + count - count_lines(body))
            first += count

    def _encoding(self) -> str:
        """Return the encoding of the text: from its byte order mark, or the layout."""
        encoding = self._layout.encoding
        if encoding.lower().replace("_", "-") not in ("utf-8", "utf8"):
            return encoding
        with open_plain(self._raw, self._suffix, is_beside=True) as stream:
            mark = read_plain(stream, 2, self.name)
        return "utf-16" if mark in _UTF16_MARKS else "utf-8"

    def _text(self, stream: IO[bytes]) -> IO[bytes]:
        """Return a stream of the text in UTF-8."""
        return open_text(stream, self._encoding(), self.name)

    def _first_lines(self) -> bytes | None:
        """Read the first lines, independent of the read position; None if the file is empty."""
        needed = self._layout.skip_lines + 1
        with open_plain(self._raw, self._suffix, is_beside=True) as raw:
            stream = self._text(raw)
            lines = b""
            while data := read_plain(stream, _LOOK_BYTES, self.name):
                lines += data
                self._check_lines(lines)
                if lines.count(b"\n") >= needed:
                    break
        is_there = b"\n" in lines if self._is_growing else bool(lines)
        return lines.removeprefix(BOM) if is_there else None

    def _check_lines(self, lines: bytes) -> None:
        if has_long_line(lines):
            raise BadData(f"{self.name} has a line of more than {LONGEST_LINE >> 20} MB")

    def _blocks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """Cut the stream into blocks of whole lines."""
        rest = b""
        is_first = not self._lines_before
        text = self._text(stream)
        while data := read_plain(text, BLOCK_BYTES, self.name):
            if is_first:
                data, is_first = data.removeprefix(BOM), False
            end = data.rfind(b"\n") + 1
            block, rest = (rest + data[:end], data[end:]) if end else (b"", rest + data)
            self._check_lines(block or rest)
            if block:
                yield block
        if rest:
            yield rest

    def _started(self) -> "Start":
        """Determine the columns from the first line, once."""
        if self._start is None:
            self._start = self._begin_file()
        return self._start

    def _begin_file(self) -> "Start":
        layout, block = self._layout, self._first_lines()
        if block is None or (len(block) < _LOOK_BYTES and not block.strip()):
            if not self._is_growing:
                raise BadData(f"{self.name} is empty: it has neither a header nor rows")
            return Start(layout)
        lines = _without_lines(block, layout.skip_lines)
        try:
            header = _header(layout, lines.partition(b"\n")[0], self.name)
            row = () if header is not None else _first_row(layout, lines)
            return self._fit(layout, header, row, encoding=self._encoding())
        except BadData as exc:
            of = f" (delimiter {layout.delimiter!r})" if layout.header == "required" else ""
            raise BadData(f"{exc}{of}", hint=_form_hint(layout, block) or exc.hint) from exc

    def _fit(
        self, layout: Layout, header: Sequence[str] | None, row: Sequence[str], *, encoding: str
    ) -> "Start":
        """Determine the columns and the values of the whole file.

        Raises:
            BadData: the columns do not match the layout.
        """
        try:
            if layout.dump:
                check_dump(self._path, self._raw.member, layout.dump)
            market = self._market(header or (), row) if layout.market else None
            if market is not None:
                layout = layout.for_market(market)
            names = _unnamed(layout, row) if header is None else header
            columns = find_columns(layout, names)
        except BadData as exc:
            raise BadData(f"{self.name}: {exc}", hint=exc.hint) from exc
        stem = stem_of(self._path) if self._path else ""
        entries = {layout.file_stem: stem} if layout.file_stem and stem.isdecimal() else {}
        context = FileContext(
            zone=self._zone,
            values=file_values(layout, self._options, stem, columns.fields, market),
            entries=entries,
            market=market,
            home=self._options.home,
            is_any_time=self._options.is_any_time,
            decimal=layout.decimal,
        )
        return Start(layout, columns, context, header is not None, encoding)

    def _market(self, header: Sequence[str], row: Sequence[str]) -> Market:
        """Infer the market from the file's names, header or first row."""
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
class Start:
    """What the first line of a file determines; an empty file has no columns."""

    layout: Layout
    columns: Columns | None = None
    context: FileContext = field(default_factory=lambda: FileContext(zone=""))
    has_header: bool = False
    encoding: str = "utf-8"

    @property
    def lines_before(self) -> int:
        """The number of lines before the first row."""
        return self.layout.skip_lines + self.has_header

    @property
    def has_ids(self) -> bool:
        """Whether a column has ids."""
        return self.columns is not None and "id" in self.columns.fields

    @property
    def values(self) -> Mapping[str, str]:
        """The values of the whole file, with the symbol as in its rows."""
        context = self.context
        values = dict(context.values)
        if "symbol" in values:
            symbol, market = values["symbol"], context.market
            values["symbol"] = (
                normalize_symbol(symbol)
                if market is None
                else parse_symbol(symbol, market, context.home).symbol
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
        values = {name: texts for name, texts in layout.values.items() if name in columns.fields}
        values |= {"side": layout.side_values} if "side" in columns.fields else {}
        form = [layout.delimiter, layout.decimal, self.encoding, self.lines_before]
        said: list[object] = [
            layout.kind,
            layout.market,
            layout.dump,
            layout.signed_quantity,
            values,
            form,
        ]
        said += [layout.id_series, layout.may_be_empty]
        return _digest([*said, time.how, patterns, self.context.zone, self.values, read])

    def builder(self, line_file: Callable[[], str]) -> RowBuilder:
        """Return the row builder of the file; `line_file` is for rows without ids."""
        assert self.columns is not None, "an empty file has no blocks"
        return RowBuilder(self.layout, self.columns, replace(self.context, identity=line_file))

    def parser(self, builder: RowBuilder) -> BlockParser:
        """Return the block parser of the file."""
        assert self.columns is not None, "an empty file has no blocks"
        return BlockParser(
            self.columns.names,
            builder,
            delimiter=self.layout.delimiter,
            lines_before=self.lines_before,
        )


def _digest(said: object) -> str:
    """Return the SHA-256 of values, in hex, independent of the key order in mappings."""
    return hashlib.sha256(msgspec.json.encode(said, order="sorted")).hexdigest()


def _cells_of(line: bytes, delimiter: str) -> list[str] | None:
    try:
        return parse_line(line, delimiter) if line.strip() else None
    except BadLine:
        return None


def _without_lines(block: bytes, count: int) -> bytes:
    for _ in range(count):
        block = block.partition(b"\n")[2]
    return block


def _header(layout: Layout, line: bytes, name: str) -> list[str] | None:
    """Return the names in the first line, or None if that is a row.

    Raises:
        BadData: the first line must be a header, and is not CSV.
    """
    if layout.header == "none":
        return None
    try:
        cells = parse_line(line, layout.delimiter) if line.strip() else []
    except BadLine as exc:
        if layout.header == "sniff":
            return None
        hint = "--encoding utf-16, gbk or latin-1" if exc.cause is Cause.BAD_ENCODING else None
        raise BadData(f"{name}: the header {exc}", hint=hint) from exc
    if layout.header == "sniff" and not _is_header(layout, cells):
        return None
    return [cell.strip() for cell in cells]


def _form_hint(layout: Layout, block: bytes) -> str | None:
    """Guess the missing option if the header does not match."""
    if layout.header != "required":
        return None
    lines = [_cells_of(line, layout.delimiter) for line in block.split(b"\n", _LOOK_SKIPPED + 1)]
    for skipped, cells in enumerate(lines[: _LOOK_SKIPPED + 1]):
        if cells and skipped != layout.skip_lines and _fits(layout, cells):
            return f"--skip-lines {skipped}: line {skipped + 1} looks like the header"
    line = _without_lines(block, layout.skip_lines).partition(b"\n")[0]
    counts = {each: line.count(each.encode()) for each in _DELIMITERS}
    likeliest = max(counts, key=lambda each: counts[each])
    if counts[likeliest] > counts.get(layout.delimiter, 0):
        return f"--delimiter {'tab' if likeliest == chr(9) else repr(likeliest)}"
    first = _cells_of(line, layout.delimiter) or []
    if first and all(_has_digit(cell) for cell in first if cell.strip()):
        return "this looks like a row: name the columns with --columns timestamp,price,..."
    return None


def _fits(layout: Layout, cells: Sequence[str]) -> bool:
    try:
        find_columns(layout, [cell.strip() for cell in cells])
    except BadData:
        return False
    return True


def _is_header(layout: Layout, cells: Sequence[str] | None) -> bool:
    """Return whether cells are a header: a known column, or all columns and no digit."""
    named = (name for field in layout.fields for name in layout.candidates(field))
    names = [*layout.all_columns, *named]
    known = {plain_name(text) for name in names for text in layout.spellings(name)}
    words = [cell.strip() for cell in cells or () if cell.strip()]
    is_known = any(plain_name(word) in known for word in words)
    is_whole = len(words) >= len(layout.columns) - len(layout.optional)
    return is_known or (is_whole and not any(map(_has_digit, words)))


def _has_digit(text: str) -> bool:
    return any(char.isdigit() for char in text)


def _unnamed(layout: Layout, row: Sequence[str]) -> Sequence[str]:
    """Name the columns of a file without header: as many as its first row has."""
    return layout.columns[: len(row)] if row else layout.columns


def _first_row(layout: Layout, block: bytes) -> Sequence[str]:
    """Return the cells of the first line that can be a row; none without such a line."""
    most = len(layout.columns)
    for line in block.split(b"\n", _LOOK_FOR_ROW)[:_LOOK_FOR_ROW]:
        cells = _cells_of(line, layout.delimiter) or ()
        if most - len(layout.optional) <= len(cells) <= most:
            return cells
    return ()
