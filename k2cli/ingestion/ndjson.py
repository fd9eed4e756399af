"""Rows as ndjson, the way `k2 query --format ndjson` and `k2 consume --to stdout` print them.

Decimals are strings or numbers, both read exactly; times are ISO 8601 strings (UTC if they have no
zone) or whole microseconds. Only fields with a default may be missing, and a field that the kind
does not have is an error.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, BinaryIO, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.columns import Unfit, UnfitField, decimals, timestamps, to_batch
from k2cli.flow import Batch
from k2cli.records import RecordKind
from k2cli.rejects import Cause, Fault, Reject, shown

_READ_BYTES: Final = 1 << 20
_LINE_BYTES: Final = 16 << 20
_DECODER: Final = msgspec.json.Decoder(dict[str, Any], float_hook=Decimal)

_MICROSECONDS: Final = pa.timestamp("us", tz="UTC")  # as in strings, up to as many digits
_MISFITS: Final = (Unfit, pa.ArrowException, OverflowError)

Row = dict[str, Any]


def read_ndjson(stream: BinaryIO, kind: RecordKind) -> Iterator[Batch]:
    """Yield the rows of a stream as they arrive, in order.

    A line that cannot be parsed is a reject in a separate batch; its position is its line number,
    starting at 1.
    """
    number = 0
    for lines in _lines(stream):
        indexes = [index for index, line in enumerate(lines) if line.strip()]
        rows = [_row(lines[index], kind) for index in indexes]
        for first, made in _batches(rows, kind, 0):
            if isinstance(made, Fault):
                index = indexes[first]
                reject = _reject(lines[index], number + index + 1, made)
                yield Batch(rejects=[reject], messages=1)
            else:
                yield Batch(rows=[(kind, made)], messages=made.num_rows)
        number += len(lines)


def _row(line: bytes, kind: RecordKind) -> Row | Fault:
    """Parse a line, or return why it is rejected."""
    try:
        return _checked(_DECODER.decode(line), kind)
    except msgspec.DecodeError as exc:
        return Fault(reason=str(exc), cause=Cause.BAD_JSON)
    except UnfitField as exc:
        return exc.fault


def _lines(stream: BinaryIO) -> Iterator[list[bytes]]:
    """Yield complete lines as soon as they arrive, many at a time."""
    read = getattr(stream, "read1", stream.read)
    rest = b""
    while data := read(_READ_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        if len(rest) > _LINE_BYTES:
            lines, rest = [*lines, rest], b""
        if lines:
            yield lines
    if rest:
        yield [rest]


def _checked(row: Row, kind: RecordKind) -> Row:
    """Fill in defaults; an unknown or missing field is an error."""
    fields = {field["name"]: field for field in kind.avro["fields"]}
    for name in row:
        if name not in fields:
            raise UnfitField(
                Fault(
                    reason=f"unknown field {name}",
                    cause=Cause.UNKNOWN_FIELD,
                    field=name,
                    value=shown(row[name]),
                )
            )
    filled = {}
    for name, field in fields.items():
        if name not in row and "default" not in field:
            reason = f"field {name} is missing"
            raise UnfitField(Fault(reason=reason, cause=Cause.MISSING, field=name))
        filled[name] = row.get(name, field.get("default"))
    return filled


def _batches(
    rows: Sequence[Row | Fault], kind: RecordKind, first: int
) -> Iterator[tuple[int, pa.RecordBatch | Fault]]:
    """Yield the index of each run of rows with its batch, or of one bad row with its fault."""
    if not rows:
        return
    try:
        yield first, _batch(rows, kind)
    except _MISFITS as exc:
        if len(rows) == 1:
            bad_row = Fault(reason=str(exc), cause=Cause.BAD_ROW)
            yield first, exc.fault if isinstance(exc, UnfitField) else bad_row
            return
        middle = len(rows) // 2
        yield from _batches(rows[:middle], kind, first)
        yield from _batches(rows[middle:], kind, first + middle)


def _batch(rows: Sequence[Row | Fault], kind: RecordKind) -> pa.RecordBatch:
    """Make a batch.

    Raises:
        UnfitField: a row does not fit; for a single row it names the value and the cause.
    """
    good = [row for row in rows if not isinstance(row, Fault)]
    if len(good) < len(rows):
        raise UnfitField(next(row for row in rows if isinstance(row, Fault)))
    columns = {}
    for field in kind.arrow:
        values = [row[field.name] for row in good]
        try:
            columns[field.name] = _column(values, field.type)
        except _MISFITS as exc:
            cause = _cause_of(exc, values[0], field.type)
            raise _unfit(field.name, values[0], str(exc), cause) from exc
        if columns[field.name].null_count and not field.nullable:
            reason = f"{field.name} is null"
            raise UnfitField(Fault(reason=reason, cause=Cause.MISSING, field=field.name))
    _check_symbols(columns, kind)
    return to_batch(kind, columns)


def _unfit(name: str, value: object, brief: str, cause: Cause) -> UnfitField:
    return UnfitField(
        Fault(reason=f"{name}: {brief}", cause=cause, field=name, value=shown(value), brief=brief)
    )


def _cause_of(exc: Exception, value: object, of: pa.DataType) -> Cause:
    """Return the kind of fault of a value that does not fit a column of this type."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    match exc:
        case Unfit():
            return exc.cause
        case _ if pa.types.is_timestamp(of) and (is_number or isinstance(value, str)):
            return Cause.TIME_OUT_OF_RANGE if is_number else Cause.BAD_TIME
        case _ if pa.types.is_integer(of) and (is_number or isinstance(value, Decimal)):
            return Cause.OUT_OF_RANGE if is_number else Cause.NOT_AN_INTEGER
        case _:
            return Cause.WRONG_TYPE


def _column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_decimal(kind):
        digits = [None if value is None else _digits(value) for value in values]
        return decimals(digits, kind)
    if pa.types.is_timestamp(kind):
        return _times(values, kind)
    if pa.types.is_map(kind):
        values = [_entries(value) for value in values]
    # Arrow would truncate a fraction, and read a string as a list of its characters.
    if pa.types.is_integer(kind) and any(map(_has_fraction, values)):
        raise Unfit("not a whole number", Cause.NOT_AN_INTEGER)
    if pa.types.is_list(kind) and any(isinstance(value, str) for value in values):
        raise Unfit("not a list", Cause.WRONG_TYPE)
    return pa.array(values, kind)


def _has_fraction(value: object) -> bool:
    return isinstance(value, Decimal) and value != value.to_integral_value()


def _digits(value: object) -> str:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, (str, int)) and not isinstance(value, bool):
        return str(value)
    raise Unfit(f"{value!r} is not a number", Cause.WRONG_TYPE)


def _times(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    if all(type(value) is int for value in values):
        return timestamps(pa.array(values, pa.int64()).to_numpy()).cast(kind)
    texts = pa.array(values, pa.string())
    # Arrow accepts zones in either all strings or none.
    is_zoned = pc.match_substring_regex(texts, r"(Z|[+-]\d\d:?\d\d)$")
    zoned = pc.if_else(is_zoned, texts, pc.binary_join_element_wise(texts, "Z", ""))
    return zoned.cast(_MICROSECONDS).cast(kind)


def _entries(value: object) -> object:
    return list(value.items()) if isinstance(value, Mapping) else value


def _check_symbols(columns: Mapping[str, pa.Array], kind: RecordKind) -> None:
    """Reject values that are not symbols of the enum."""
    for field in kind.avro["fields"]:
        symbols = field["type"].get("symbols", ()) if isinstance(field["type"], dict) else ()
        for value in pc.unique(columns[field["name"]]).to_pylist() if symbols else ():
            if value not in symbols:
                brief = f"{value!r} is not one of {', '.join(symbols)}"
                raise _unfit(field["name"], value, brief, Cause.UNKNOWN_ENUM)


def _reject(line: bytes, position: int, fault: Fault) -> Reject:
    return Reject(fault=fault, raw=line, position=position, received_us=time.time_ns() // 1000)
