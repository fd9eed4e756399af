"""The formats of answers, and their writers for any binary stream.

`render` formats the values. Tables for a terminal are drawn by the terminal package.
"""

import gzip
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, cast

from k2cli.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

    from k2cli.query.protocol import AnyAnswer


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


class Compression(StrEnum):
    """The compression of a file, by its suffix."""

    GZIP = ".gz"
    ZSTD = ".zst"


BINARY: Final = frozenset({Format.PARQUET, Format.ARROW})
EXTENSIONS: Final[Mapping[str, Format]] = {
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
_NUMBERS: Final = frozenset(
    {"tinyint", "smallint", "integer", "bigint", "hugeint", "decimal", "float", "double"}
    | {"utinyint", "usmallint", "uinteger", "ubigint", "uhugeint", "bignum"}
)
Row = Sequence[str]


def write_answer(
    answer: "AnyAnswer",
    fmt: Format,
    sink: BinaryIO,
    *,
    has_header: bool = True,
    is_stream: bool = True,
) -> int:
    """Run an answer and write all of its rows; return how many.

    csv is written without its header if `has_header` is false. Arrow is written as an IPC stream,
    or as an IPC file, which needs a sink with `tell`. Memory stays bounded.

    Raises:
        UsageError: the format is a table, which only the terminal package draws.
        K2Error: the query failed; the data written so far is incomplete.
        OSError: the sink failed.
    """
    match fmt:
        case Format.TABLE:
            raise UsageError("a table is for a terminal", hint="choose csv or markdown")
        case Format.JSON:
            array = _JsonArray(sink)
            rows = answer.copy("ndjson", cast("BinaryIO", array))
            array.finish()
        case Format.ARROW:
            rows = _write_arrow(answer.batches(), sink, is_stream=is_stream)
        case Format.MARKDOWN:
            rows = _write_markdown(answer, sink)
        case Format.CSV if not has_header:
            rows = answer.copy("csv without header", sink)
        case _:
            rows = answer.copy(fmt.value, sink)
    return rows


def text_rows(answer: "AnyAnswer") -> Iterator[Row]:
    """Stream the rows as text; null is an empty text."""
    for batch in answer.batches("text"):
        for row in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            yield ["" if cell is None else cell for cell in row]


def are_numbers(answer: "AnyAnswer") -> list[bool]:
    """Return which columns are numbers."""
    return [of in _NUMBERS for _, of in answer.named_types]


def markdown_line(cells: Row) -> str:
    """Write a row of a table in Markdown."""
    escaped = (
        cell.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>") for cell in cells
    )
    return f"| {' | '.join(escaped)} |\n"


def compression_of(path: Path) -> tuple[Compression | None, Path]:
    """Split the suffix of compression off a file name."""
    suffix = path.suffix.lower()
    if suffix in list(Compression):
        return Compression(suffix), path.with_suffix("")
    return None, path


@contextmanager
def compressed(sink: BinaryIO, compression: Compression | None) -> Iterator[BinaryIO]:
    """Compress the data written to `sink`."""
    match compression:
        case None:
            yield sink
        case Compression.GZIP:
            # Without name and time, so the same rows give the same bytes.
            with gzip.GzipFile("", "wb", compresslevel=6, fileobj=sink, mtime=0) as stream:
                yield cast("BinaryIO", stream)
        case Compression.ZSTD:
            import pyarrow as pa  # noqa: PLC0415  the formats are known before it is loaded

            kept_open = pa.PythonFile(_KeptOpen(sink), mode="w")
            with pa.CompressedOutputStream(kept_open, "zstd") as stream:
                yield cast("BinaryIO", stream)


class _KeptOpen:
    """Forwards Arrow's writes, but does not close the sink."""

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
        """Do nothing: the owner closes the sink."""
        self.closed = True


class _JsonArray:
    """Converts lines of JSON, in chunks of any size, to one array with one item per line."""

    def __init__(self, sink: BinaryIO) -> None:
        self._sink = sink
        self._lead = b"[\n"

    def write(self, chunk: memoryview) -> None:
        """Insert commas between lines; buffer the last line end, since more may follow."""
        text = bytes(chunk)
        body = text.removesuffix(b"\n")
        self._sink.write(self._lead + body.replace(b"\n", b",\n"))
        self._lead = b",\n" if len(body) < len(text) else b""

    def flush(self) -> None:
        """Do nothing: the buffered line end cannot be written yet."""

    def finish(self) -> None:
        """Close the array."""
        self._sink.write(b"[]\n" if self._lead == b"[\n" else b"\n]\n")


def _write_arrow(batches: Iterator["pa.RecordBatch"], sink: BinaryIO, *, is_stream: bool) -> int:
    import pyarrow as pa  # noqa: PLC0415  the formats are known before it is loaded

    first = next(batches)
    rows = 0
    open_writer: Callable[..., pa.ipc.RecordBatchStreamWriter] = (
        pa.ipc.new_stream if is_stream else pa.ipc.new_file
    )
    with open_writer(sink, first.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _write_markdown(answer: "AnyAnswer", sink: BinaryIO) -> int:
    count = 0
    for row in text_rows(answer):
        if count == 0:
            names = markdown_line([name for name, _ in answer.named_types])
            rule = "|".join("---:" if number else "---" for number in are_numbers(answer))
            sink.write(f"{names}|{rule}|\n".encode())
        sink.write(markdown_line(row).encode())
        count += 1
    return count
