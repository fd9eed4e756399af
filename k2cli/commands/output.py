"""stdout is data, stderr is talk. Machine formats never pass through Rich."""

import errno
import gzip
import itertools
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from k2cli.commands.events import RunLog, event_text
from k2cli.commands.fitting import GAP, Column, Fit, cell_width, fit_columns, pad
from k2cli.commands.plain import for_people, printable, printable_lines
from k2cli.commands.progress import shown_progress
from k2cli.errors import K2Error, NotFound, Unavailable, UsageError
from k2cli.events import Observer
from k2cli.files import (
    existing_opener,
    make_folder,
    opener,
    private_opener,
    refuse_dangling_link,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import RenderableType

    from k2cli.query.protocol import AnyAnswer

PREVIEW_ROWS: Final = 100  # of a table on a terminal, unless --limit says otherwise
_BLOCK_ROWS: Final = 1_000  # rows that decide how wide the columns of a table are
# Columns that a table on a narrow terminal leaves out first.
_DETAILS: Final = (
    *("vendor_data", "message_id", "ingestion_timestamp", "platform_sequence"),
    *("trade_conditions", "asset_class", "trade_id", "quote_id", "source_sequence", "currency"),
)
# What does not go away by itself: the name of the file is wrong.
_LASTING: Final = frozenset(
    {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR}
)
_NUMBERS: Final = frozenset(
    {"tinyint", "smallint", "integer", "bigint", "hugeint", "decimal", "float", "double"}
    | {"utinyint", "usmallint", "uinteger", "ubigint", "uhugeint", "bignum"}
)
# What is still of use on a narrow terminal when its middle is missing; numbers and times are not.
_TEXTS: Final = frozenset({"varchar", "json", "list", "array", "struct", "map", "union"})
_COMPLETE: Final = "--format csv shows everything"


def note(message: str) -> None:
    """Say something to the user on stderr."""
    print(for_people(message), file=sys.stderr)


def data(line: str) -> None:
    """Print a line of data on stdout; on a terminal, without what that would obey."""
    print(printable_lines(line) if sys.stdout.isatty() else line)


def chart(lines: str) -> None:
    """Print a chart on stdout, with its colours."""
    print(lines)


def rich_data(renderable: "RenderableType") -> None:
    """Print what Rich renders on stdout, with colours on a terminal."""
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    with console.capture() as capture:
        console.print(renderable, soft_wrap=True)
    sys.stdout.write(capture.get())


class Summary(StrEnum):
    """How the sums of a run are told: a line on stderr, or one JSON object on stdout."""

    TEXT = "text"
    JSON = "json"


def summary(
    sums: Mapping[str, object],
    form: Summary,
    *,
    is_data_on_stdout: bool,
    log: RunLog | None = None,
) -> None:
    """Report the sums of a run at its end; as a line of its log, where those are JSON."""
    if form is Summary.TEXT and log and log.is_json:
        observe: Observer = log.on_event
        observe("summary", **sums)
        return
    if log:
        record: Observer = log.record
        record("summary", **sums)
    if form is Summary.TEXT:
        note(event_text("summary", dict(sums)))
    elif is_data_on_stdout:
        note(json.dumps(sums))
    else:
        data(json.dumps(sums))


def error(exc: K2Error) -> None:
    """Print an expected failure and, on a line of its own, what mends it."""
    note(f"error: {exc}")
    if exc.hint:
        note(f"hint: {exc.hint}")


class Format(StrEnum):
    """How an answer is written."""

    TABLE = "table"
    CSV = "csv"
    TSV = "tsv"
    JSON = "json"
    NDJSON = "ndjson"
    PARQUET = "parquet"
    ARROW = "arrow"
    MARKDOWN = "markdown"


Opener = Callable[[str, int], int]
_BINARY: Final = frozenset({Format.PARQUET, Format.ARROW})
_EXTENSIONS: Final = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".json": Format.JSON,
    ".ndjson": Format.NDJSON,
    ".jsonl": Format.NDJSON,
    ".parquet": Format.PARQUET,
    ".arrow": Format.ARROW,
    ".feather": Format.ARROW,
    ".md": Format.MARKDOWN,
}


class Compression(StrEnum):
    """How a file is compressed, by the end of its name."""

    GZIP = ".gz"
    ZSTD = ".zst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where an answer goes, and in which format. Made by `choose_output`."""

    format: Format
    path: Path | None  # None is stdout
    is_forced: bool = False  # replace the file if it exists
    has_header: bool = True  # of csv
    compression: Compression | None = None

    @property
    def is_terminal(self) -> bool:
        """Whether a person sees the answer at once."""
        return self.path is None and sys.stdout.isatty()

    def write(
        self,
        answer: "AnyAnswer",
        *,
        is_limited: bool = False,
        expected: int | None = None,
        details: Sequence[str] = _DETAILS,
        complete: str = _COMPLETE,
    ) -> int:
        """Run the answer and write it; says on stderr when there is nothing, or more.

        Returns how many rows there are, up to one more than a preview shows.

        `is_limited` tells that the user chose how many rows they want to see; `expected` is how
        many there will be, if that is known. A table on a narrow
        terminal leaves out `details` first, and says that `complete` shows what is missing.
        """
        is_preview = self.is_terminal and self.format is Format.TABLE and not is_limited
        if is_preview:
            answer = answer.first(PREVIEW_ROWS + 1)
        with (
            self._opened() as opened,
            _compressed(opened, self.compression) as compressed,
            self._progress(compressed, expected) as sink,
        ):
            rows = self._write(
                answer, sink, is_preview=is_preview, details=details, complete=complete
            )
        if rows == 0:
            note("nothing matched")
        elif is_preview and rows > PREVIEW_ROWS:
            note(f"the first {PREVIEW_ROWS} rows; all of them: --format csv, or -o FILE")
        return rows

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        try:
            if self.path is None:
                sys.stdout.flush()
                yield sys.stdout.buffer
                sys.stdout.flush()
            elif self.path.exists() and not self.path.is_file():
                with open(
                    self.path, "wb", opener=existing_opener
                ) as sink:  # a device or a named pipe
                    yield sink
            else:
                with _replaced(self.path, is_forced=self.is_forced) as sink:
                    yield sink
        except BrokenPipeError:
            raise
        except OSError as exc:
            raise _os_error(self.path, exc) from exc

    def _progress(self, sink: BinaryIO, expected: int | None) -> AbstractContextManager[BinaryIO]:
        if self.path is None:
            return nullcontext(sink)
        has_lines = self.format not in _BINARY
        return shown_progress(sink, has_lines=has_lines, total=expected)

    def _write(
        self,
        answer: "AnyAnswer",
        sink: BinaryIO,
        *,
        is_preview: bool,
        details: Sequence[str],
        complete: str,
    ) -> int:
        match self.format:
            case Format.JSON:
                array = _JsonArray(sink)
                rows = answer.copy("ndjson", cast(BinaryIO, array))
                array.finish()
            case Format.ARROW:
                rows = _write_arrow(answer.batches(), sink, is_stream=self.path is None)
            case Format.MARKDOWN:
                rows = _write_markdown(answer, sink)
            case Format.TABLE:
                limit = PREVIEW_ROWS if is_preview else None
                width = screen_width() if self.is_terminal else None
                rows = _write_table(
                    answer, sink, limit=limit, width=width, details=details, complete=complete
                )
            case Format.CSV if not self.has_header:
                rows = answer.copy("csv without header", sink)
            case _:
                rows = answer.copy(self.format.value, sink)
        return rows


def screen_width() -> int | None:
    """Return how many cells a line on stdout has; None is any number: no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def write_table(
    out: Output, rows: "pa.Table", *, details: Sequence[str] = (), complete: str = _COMPLETE
) -> None:
    """Write rows that are there already; `details` as in `Output.write`."""
    from k2cli.config import QuerySettings
    from k2cli.query.engine import open_engine

    with open_engine(QuerySettings(), []) as engine:
        answer = engine.ask_table(rows)
        out.write(answer, is_limited=True, details=details, complete=complete)


def choose_output(chosen: Format | None, path: Path | None, *, is_forced: bool) -> Output:
    """Settle format and destination before any work is done.

    Raises:
        UsageError: the file exists, its format is unclear, or bytes would go to a terminal.
        NotFound: the folder of the file does not exist.
    """
    if path is None or str(path) == "-":
        return Output(format=_format_for_stdout(chosen), path=None)
    refuse_dangling_link(path)
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="-o takes the name of a file")
    if not path.parent.is_dir():
        raise NotFound(f"folder {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if path.is_file() and not is_forced:
        raise _exists(path)
    compression, name = _compression_of(path)
    found = chosen or _EXTENSIONS.get(name.suffix.lower()) or (Format.CSV if is_special else None)
    if found is None:
        known = " ".join(_EXTENSIONS)
        hint = f"add --format, or name it one of {known}, with .gz or .zst for text"
        raise UsageError(f"no format for {path}", hint=hint)
    if compression and found in _BINARY:
        raise UsageError(
            f"{found} is compressed inside, not as a whole", hint=f"name it {name.name}"
        )
    return Output(format=found, path=path, is_forced=is_forced, compression=compression)


def _compression_of(path: Path) -> tuple[Compression | None, Path]:
    """Split the name of a compressed file from that of what is in it."""
    suffix = path.suffix.lower()
    if suffix in list(Compression):
        return Compression(suffix), path.with_suffix("")
    return None, path


@contextmanager
def _compressed(sink: BinaryIO, compression: Compression | None) -> Iterator[BinaryIO]:
    """Compress what is written on its way into `sink`."""
    match compression:
        case None:
            yield sink
        case Compression.GZIP:
            # Without name and time: the same rows are the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=sink, mtime=0) as stream:
                yield cast(BinaryIO, stream)
        case Compression.ZSTD:
            import pyarrow as pa

            kept_open = pa.PythonFile(_KeptOpen(sink), mode="w")
            with pa.CompressedOutputStream(kept_open, "zstd") as stream:
                yield cast(BinaryIO, stream)


class _KeptOpen:
    """Passes on what Arrow writes, but not that it closes what it wrote to."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self.closed = False

    def write(self, chunk: bytes) -> int:
        """Write a chunk."""
        return self._sink.write(chunk)

    def flush(self) -> None:
        """Flush the sink."""
        self._sink.flush()

    def close(self) -> None:
        """Leave the sink open: its owner closes it."""
        self.closed = True


def _format_for_stdout(chosen: Format | None) -> Format:
    is_terminal = sys.stdout.isatty()
    if chosen in _BINARY and is_terminal:
        raise UsageError(
            f"{chosen} is not for a terminal", hint=f"write a file: -o answer.{chosen}"
        )
    return chosen or (Format.TABLE if is_terminal else Format.CSV)


def _exists(path: Path) -> UsageError:
    return UsageError(f"{path} exists", hint="--force replaces it")


def write_private(path: Path, text: str, *, is_forced: bool) -> None:
    """Write a file that may hold secrets: for its owner only, all or nothing.

    Raises:
        UsageError: it exists, or may not be written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint="-o takes the name of a file")
    refuse_dangling_link(path)
    try:
        make_folder(path.parent)
        with _replaced(path, is_forced=is_forced, opener=private_opener) as sink:
            sink.write(text.encode())
    except OSError as exc:
        raise _os_error(path, exc) from exc


@contextmanager
def _replaced(path: Path, *, is_forced: bool, opener: Opener = opener) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` when all is written, or never.

    If that is a link, the file that it leads to is replaced.
    """
    target = path.resolve()
    temporary = target.with_name(f".k2-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb", opener=opener) as sink:
            yield sink
            sink.flush()
            os.fsync(sink.fileno())
        if is_forced:
            temporary.replace(target)
        else:
            os.link(temporary, target)  # unlike a rename, refuses when the file exists
    except FileExistsError as exc:
        raise _exists(path) from exc
    finally:
        temporary.unlink(missing_ok=True)


def _os_error(path: Path | None, exc: OSError) -> K2Error:
    message = f"cannot write {path or 'to stdout'}: {exc.strerror or exc}"
    if exc.errno in _LASTING:
        return UsageError(message, hint="choose another file with -o")
    return Unavailable(message)


class _JsonArray:
    """Turns lines of JSON, in chunks of any size, into one array with an item on each line."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._lead = b"[\n"

    def write(self, chunk: memoryview) -> None:
        """Put a comma between lines. The last line's end is held back: more may follow, or not."""
        text = bytes(chunk)
        body = text.removesuffix(b"\n")
        self._sink.write(self._lead + body.replace(b"\n", b",\n"))
        self._lead = b",\n" if len(body) < len(text) else b""

    def flush(self) -> None:
        """Nothing is held back that could be written."""

    def finish(self) -> None:
        """Close the array."""
        self._sink.write(b"[]\n" if self._lead == b"[\n" else b"\n]\n")


def _write_arrow(batches: Iterator["pa.RecordBatch"], sink: BinaryIO, *, is_stream: bool) -> int:
    import pyarrow as pa

    first = next(batches)
    rows = 0
    open_writer = pa.ipc.new_stream if is_stream else pa.ipc.new_file
    with open_writer(sink, first.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


Row = Sequence[str]


def _rows(answer: "AnyAnswer") -> Iterator[Row]:
    """Stream the rows as text; null is an empty text."""
    for batch in answer.batches("text"):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield ["" if cell is None else cell for cell in row]


def _are_numbers(answer: "AnyAnswer") -> list[bool]:
    return [of in _NUMBERS for _, of in answer.named_types]


def _write_markdown(answer: "AnyAnswer", sink: BinaryIO) -> int:
    count = 0
    for row in _rows(answer):
        if count == 0:
            names = markdown_line([name for name, _ in answer.named_types])
            rule = "|".join("---:" if number else "---" for number in _are_numbers(answer))
            sink.write(f"{names}|{rule}|\n".encode())
        sink.write(markdown_line(row).encode())
        count += 1
    return count


def markdown_line(cells: Row) -> str:
    """Write a row of a table in Markdown."""
    escaped = (
        cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in cells
    )
    return f"| {' | '.join(escaped)} |\n"


def _write_table(
    answer: "AnyAnswer",
    sink: BinaryIO,
    *,
    limit: int | None,
    width: int | None,
    details: Sequence[str],
    complete: str,
) -> int:
    """Write rows in columns as wide as the first rows need; return how many there are.

    Past `limit` rows are counted, not written. On a screen of `width`, what does not fit is left
    out or shortened, with a note that ends in `complete`; what its encoding lacks is escaped.
    """
    rows = _rows(answer)
    block = list(itertools.islice(rows, _BLOCK_ROWS))
    if not block:
        return 0
    encoding = "utf-8" if width is None else sys.stdout.encoding
    layout = _Layout.fitting(answer, block, width, details)
    sink.write(layout.header().encode(encoding, "backslashreplace"))
    count = 0
    for count, row in enumerate(itertools.chain(block, rows), start=1):
        if limit is None or count <= limit:
            sink.write(layout.line(row).encode(encoding, "backslashreplace"))
    if missing := layout.fit.note(complete):
        sink.flush()  # the note comes below the table
        note(missing)
    return count


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns that a table shows: name, index in the row, width, whether it is a number."""

    columns: Sequence[tuple[str, int, int, bool]]
    fit: Fit
    is_bounded: bool  # by a screen

    @classmethod
    def fitting(
        cls, answer: "AnyAnswer", rows: Sequence[Row], width: int | None, details: Sequence[str]
    ) -> "_Layout":
        names = [name for name, _ in answer.named_types]
        titles = [printable(name) for name in names]
        widths = [
            max(cell_width(line) for cell in (title, *cells) for line in _lines(cell))
            for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
        ]
        columns = [
            Column(name=name, width=widest, can_shrink=of in _TEXTS)
            for (name, of), widest in zip(answer.named_types, widths, strict=True)
        ]
        fit = fit_columns(columns, sys.maxsize if width is None else width, details=details)
        numbers = _are_numbers(answer)
        shown = [(titles[at], at, size, numbers[at]) for at, size in fit.shown]
        return cls(shown, fit, is_bounded=width is not None)

    def header(self) -> str:
        """The names, and a line below them."""
        names = [name for name, *_ in self.columns]
        return self._text(names) + self._text(["-" * width for _, _, width, _ in self.columns])

    def line(self, row: Row) -> str:
        """One row; as many lines as its highest cell."""
        cells = [_lines(row[at]) for _, at, _, _ in self.columns]
        return "".join(map(self._text, itertools.zip_longest(*cells, fillvalue="")))

    def _text(self, cells: Row) -> str:
        padded = [
            pad(cell, width if self.is_bounded else max(width, cell_width(cell)), is_number=number)
            for cell, (_, _, width, number) in zip(cells, self.columns, strict=True)
        ]
        return GAP.join(padded).rstrip() + "\n"


def _lines(cell: str) -> list[str]:
    """Split a cell's lines, with what could move a terminal's cursor written out."""
    if cell.isprintable():
        return [cell]
    return [printable(line) for line in cell.split("\n")]
