"""Rejects: input that could not be parsed, the fault, and the file that stores it.

Code that finds a fault describes it as a `Fault`; with the input and its position it is a `Reject`.
Faults are never parsed back from sentences.

A rejects file is ndjson. A line has `reason` (a sentence), `code` and `cause` (stable identifiers,
see `Cause`); if a field is to blame, `field` (of the record), `column` (of the file, or the key of
a frame) and `value` (its first characters); and `position`: the line of `file`, the offset of a
message of `source` (topic/partition), the number of a frame in the run, or the exchange sequence of
a fetched trade of `source` (exchange/symbol) or of a row that does not fit the table `source`.
`received` is ISO UTC (microseconds since 1970 outside the years 1 to 9999), `run` is the id of the
run, and the input is `raw` text, or `raw_base64` if it is not UTF-8; a Kafka message without a
value has `raw` null. A Kafka message also has its `key` and its `headers`, if any, a list of
objects with `name` and `value`; bytes that are not UTF-8 are `key_base64` and `value_base64`. The
`raw` text of a row is what `k2 query --format ndjson` prints of it.
"""

import base64
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import IO, Final

from k2cli.errors import BadData, ConfigError, Unavailable
from k2cli.files import make_folder, opener, refuse_dangling_link
from k2cli.iso import iso_utc, iso_utc_us

MAX_REJECT_BYTES: Final = 10**9  # of a rejects file, unless an option sets another limit
MAX_SHOWN: Final = 80  # characters of a value
_BUFFER_BYTES: Final = 64 * 1024
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Cause(StrEnum):
    """The cause of a reject, as a stable identifier; docs/reference lists them.

    A cause with `is_whole` concerns the input as a whole, the others one field.
    """

    meaning: str
    is_whole: bool

    def __new__(cls, word: str, meaning: str, is_whole: bool = False) -> "Cause":
        """Create a member; its value is the identifier."""
        cause = str.__new__(cls, word)
        cause._value_ = word
        cause.meaning = meaning
        cause.is_whole = is_whole
        return cause

    # of a field
    MISSING = "missing", "A value that is required is null, empty or absent."
    NEGATIVE = "negative", "A price or quantity is below zero."
    NOT_A_NUMBER = "not_a_number", "A price or quantity is not a plain decimal number."
    TOO_MANY_DECIMALS = (
        "too_many_decimals",
        "A number has more decimal places than its column stores.",
    )
    DECIMAL_OVERFLOW = "decimal_overflow", "A number has more digits than its column stores."
    NOT_AN_INTEGER = "not_an_integer", "An id or a sequence number is not an integer."
    OUT_OF_RANGE = "out_of_range", "An integer is too small or too large."
    INEXACT = "inexact", "A floating-point number cannot represent the id or the time exactly."
    BAD_TIME = "bad_time", "A time is not in the expected format."
    TIME_OUT_OF_RANGE = "time_out_of_range", "A time is outside the accepted years."
    NONEXISTENT_TIME = (
        "nonexistent_time",
        "A local time that does not exist because the clocks went forward.",
    )
    UNKNOWN_ENUM = "unknown_enum", "A side or an asset class is not one of the allowed values."
    UNKNOWN_SYMBOL = "unknown_symbol", "A symbol does not exist on the exchange or its market."
    UNKNOWN_CURRENCY = "unknown_currency", "The currency cannot be inferred from the symbol."
    BAD_TEXT = "bad_text", "A name or an id has spaces around it or unprintable characters."
    TOO_LONG = "too_long", "A name or an id is too long."
    WRONG_TYPE = "wrong_type", "A value has the wrong type, such as a list for a number."
    # of the input as a whole
    BAD_ENCODING = "bad_encoding", "Text that is not UTF-8.", True
    BAD_CSV = "bad_csv", "A line with an open quote, a NUL byte or a carriage return in it.", True
    BAD_COLUMN_COUNT = "bad_column_count", "A line with fewer or more columns than the file.", True
    BAD_ROW = "bad_row", "A row whose values do not fit together.", True
    BAD_JSON = "bad_json", "A line that is not a JSON object.", True
    UNKNOWN_FIELD = "unknown_field", "An object with an unknown field.", True
    BAD_FRAME = "bad_frame", "A frame that does not follow the exchange's protocol.", True
    UNKNOWN_EVENT = "unknown_event", "A frame that is neither a trade nor a quote.", True
    EXCHANGE_ERROR = "exchange_error", "A frame with an error that the exchange reports.", True
    NULL_MESSAGE = "null_message", "A Kafka message without a value (a tombstone).", True
    BAD_WIRE_FORMAT = "bad_wire_format", "A message without the header of a schema registry.", True
    UNKNOWN_SCHEMA = "unknown_schema", "A schema id that the registry does not have.", True
    INCOMPATIBLE_SCHEMA = (
        "incompatible_schema",
        "A schema whose records cannot be read as the expected record kind.",
        True,
    )
    BAD_BODY = "bad_body", "An Avro body that cannot be decoded with its schema.", True
    TRAILING_BYTES = "trailing_bytes", "An Avro body with extra bytes after the record.", True
    CONFLICT = "conflict", "A row whose id is already stored with other values.", True


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with some input."""

    reason: str  # a sentence that names the field and the value
    cause: Cause
    field: str = ""  # of the record; `id` is that of the trade or quote
    value: str | None = None  # of the field, shortened if it is long
    column: str = ""  # of the file, or the key of a frame, with the value of the field
    brief: str = ""  # the reason without field and value

    @property
    def code(self) -> str:
        """A stable code with the field, or else the cause."""
        return self.cause if self.cause.is_whole or not self.field else f"bad_{self.field}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Input that could not be parsed, with its position and fault."""

    fault: Fault
    raw: bytes
    # The number of the message in this run, starting at 1; the offset of a Kafka message; the line
    # number in a file; the exchange sequence of a fetched trade or of a row that does not fit a
    # table.
    position: int
    received_us: int  # UTC microseconds
    # topic/partition for a Kafka message, exchange/symbol for a fetched trade, the table for a row
    source: str = ""
    file: str = ""  # the path for a line of a file
    is_null: bool = False  # a Kafka message without a value; `raw` is empty
    key: bytes | None = None  # of a Kafka message
    headers: Sequence[tuple[str, bytes | None]] = ()  # of a Kafka message, in order

    @property
    def reason(self) -> str:
        """The sentence that describes the fault."""
        return self.fault.reason

    @property
    def code(self) -> str:
        """The stable code of the fault."""
        return self.fault.code

    @property
    def column(self) -> str:
        """The column of the file that does not fit, if any."""
        return self.fault.column


def shown(value: object) -> str | None:
    """Format a value for people, shortened if it is long; None stays None."""
    if value is None:
        return None
    text = _plain(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _plain(value: object) -> str:
    match value:
        case bool() | dict() | list():
            return json.dumps(value, default=_plain, ensure_ascii=False)
        case Decimal():
            return f"{value:f}"  # str writes 0.00000023 as 2.3E-7
        case datetime() if value.tzinfo is not None:
            return iso_utc(value, "microseconds")
        case _:
            return str(value)


class RejectLog:
    """A file that rejects are appended to, created with the first one.

    Rejects that do not fit on a full disk are kept and written by a later call.

    Raises:
        UsageError: the file is a dangling link.
        ConfigError: the file cannot be written (from any method).
        Unavailable: the disk is full.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        """Prepare to append to a file; `run` is added to every line, as in log lines."""
        refuse_dangling_link(path)
        self.path: Final = path
        self._run = run
        self._file: IO[bytes] | None = None
        self._unwritten = bytearray()
        self._written_bytes = 0
        self._is_behind = False  # the last attempt to write failed

    def __enter__(self) -> "RejectLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # `sync` has already reported what cannot be written
                self._drain(self._file)
            self._file.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file, including earlier runs; 0 before the first reject."""
        return self._written_bytes + len(self._unwritten)

    @property
    def unwritten(self) -> int:
        """How many rejects were accepted but not completely written."""
        return self._unwritten.count(b"\n")

    def check_size(self, most: int) -> None:
        """Raise BadData if this run wrote to the file and it exceeds this size."""
        if self.size_bytes > most:
            raise BadData(
                f"{self.path} has {self.size_bytes:,} bytes of rejects (limit {most:,})",
                hint=f"move {self.path} elsewhere, or increase --max-reject-bytes",
            )

    def write(self, rejects: Sequence[Reject]) -> None:
        """Append rejects, one per line; none if an earlier one could not be written."""
        if not rejects:
            return
        with self._translated():
            if self._file is None:
                self._file = _open_for_lines(self.path)
                self._written_bytes = os.fstat(self._file.fileno()).st_size
            if self._is_behind:
                self._drain(self._file)
            for reject in rejects:
                self._unwritten += _reject_line(reject, self._run)
            if len(self._unwritten) >= _BUFFER_BYTES:
                with suppress(OSError):  # they are kept: `sync` raises if writing still fails
                    self._drain(self._file)

    def sync(self) -> None:
        """Make the rejects durable; called before the position moves past them."""
        if self._file is not None:
            with self._translated():
                self._drain(self._file)
                if self.path.is_file():  # a pipe or a device cannot be synced
                    os.fsync(self._file.fileno())

    def _drain(self, file: IO[bytes]) -> None:
        self._is_behind = True
        while self._unwritten:
            done = os.write(file.fileno(), self._unwritten)
            del self._unwritten[:done]
            self._written_bytes += done
        self._is_behind = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in _NO_SPACE:
                raise Unavailable(f"cannot write rejects to {self.path}: {exc.strerror}") from exc
            raise ConfigError(
                f"cannot write rejects to {self.path}: {exc.strerror}",
                hint="choose another file with --rejects",
            ) from exc


def _open_for_lines(path: Path) -> IO[bytes]:
    """Open a file for appending; start a new line if an earlier run was cut off within one."""
    make_folder(path.parent)
    is_cut = False
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            is_cut = file.read() != b"\n"
    lines = open(path, "ab", buffering=0, opener=opener)  # noqa: SIM115
    if is_cut:
        lines.write(b"\n")
    return lines


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    """Return a field with bytes as text, or in base64 if they are not UTF-8."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _reject_line(reject: Reject, run: str) -> bytes:
    fault = reject.fault
    line: dict[str, object] = {
        "reason": fault.reason,
        "position": reject.position,
        "received": iso_utc_us(reject.received_us),
    }
    named = {
        "run": run,
        "source": reject.source,
        "file": reject.file,
        "code": fault.code,
        "cause": fault.cause,
        "field": fault.field,
        "column": fault.column,
    }
    line |= {key: value for key, value in named.items() if value}
    if fault.value is not None:
        line["value"] = fault.value
    if reject.key is not None:
        line |= _text("key", reject.key)
    if reject.headers:
        line["headers"] = [
            {"name": name, **_text("value", value)} for name, value in reject.headers
        ]
    line |= _text("raw", None if reject.is_null else reject.raw)
    # A lone surrogate becomes a JSON escape.
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
