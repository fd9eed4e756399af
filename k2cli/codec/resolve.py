"""Read a writer's records as a k2 schema, by Avro's schema resolution rules.

A field is matched by its name or one of k2's aliases, widened if k2's is wider, and filled with
k2's default if the writer lacks it; fields that only the writer has are omitted
(https://avro.apache.org/docs/1.12.0/specification/, "Schema Resolution"). A decimal with another
scale is refused, because it would change every price.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.avro.writer import writer_schema
from k2cli.codec.decode import Decoded, Decoder
from k2cli.columns import YEAR_1_US, YEAR_9999_US
from k2cli.records import KINDS, arrow_field, avro_to_arrow_schema, is_wider
from k2cli.rejects import Cause, Fault, shown

Faults = Mapping[int, Fault]  # row -> why it does not fit
_AMOUNTS: Final = frozenset(
    column.name
    for kind in KINDS.values()
    for column in kind.arrow
    if pa.types.is_decimal(column.type)
)
_US_A_UNIT: Final = {"ms": 1_000, "us": 1}


class Incompatible(ValueError):
    """The writer's records cannot be read as the k2 schema; the message names the field."""

    def __init__(self, brief: str, field: str = "", *, sep: str = " ") -> None:
        """Store the reason, with an optional field; `sep` separates the two in the message."""
        super().__init__(f"field {field}{sep}{brief}" if field else brief)
        self.field: Final = field
        self.brief: Final = brief  # without the field


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """How one k2 column is read from the writer's columns."""

    ours: pa.Field
    source: str | None  # the writer's field; None: k2's default
    default: Any
    symbols: Sequence[str] | None  # of k2's enum, if the writer may have others


class RecordDecoder:
    """Decodes the bodies of one writer's schema into rows of one k2 schema."""

    def __init__(
        self, schema: Mapping[str, Any], ours: Mapping[str, Any], *, prefix_bytes: int = 0
    ) -> None:
        """Compare the writer's schema with k2's; `prefix_bytes` before each body are skipped.

        Raises:
            Incompatible: the writer's records cannot be read as the k2 schema.
            BadData: the schema is not one that can be decoded safely.
        """
        schema = writer_schema(schema)
        found = record_name(schema)
        if found != ours["name"]:
            raise Incompatible(f"the schema is {found}, not {ours['name']}")
        theirs = {field["name"]: field for field in schema["fields"]}
        self._arrow = avro_to_arrow_schema(ours)
        self._columns = [_column(field, theirs) for field in ours["fields"]]
        self.sources: Final = {column.source for column in self._columns if column.source}
        self.left_out: Final = [name for name in theirs if name not in self.sources]
        self._decoder = Decoder(schema, self.sources, prefix_bytes=prefix_bytes)

    def decode(self, bodies: Sequence[bytes]) -> Decoded:
        """Decode bodies; those that do not decode or do not fit the k2 schema are rejects."""
        decoded = self._decoder.decode(bodies)
        faults: dict[int, Fault] = {}
        for _, found in self.faults(decoded.rows):
            faults = {**found, **faults}
        columns = [self._values(column, decoded.rows) for column in self._columns]
        rows = pa.RecordBatch.from_arrays(columns, self._arrow.names)
        fit = replace(decoded, rows=rows).without(faults)
        return replace(fit, rows=fit.rows.cast(self._arrow))

    def faults(self, rows: pa.RecordBatch) -> Iterator[tuple[str, Faults]]:
        """Yield the rows that do not fit, field by field of the k2 schema."""
        for column in self._columns:
            values = self._values(column, rows)
            for find in _checks(column):
                yield column.ours.name, find(values)

    @staticmethod
    def _values(column: _Column, rows: pa.RecordBatch) -> pa.Array:
        if column.source is not None:
            return rows[column.source]
        if not rows.num_rows:
            return pa.array([], column.ours.type)  # Arrow cannot repeat a nested default
        return pa.repeat(pa.scalar(column.default, column.ours.type), rows.num_rows)


def record_name(schema: Any) -> str | None:
    """Return the name of a record without its namespace; None for other schemas."""
    if not isinstance(schema, Mapping) or schema.get("type") != "record":
        return None
    return str(schema["name"]).rpartition(".")[2]


def _column(field: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> _Column:
    name = field["name"]
    ours = arrow_field(name, field["type"])
    source = next((each for each in (name, *field.get("aliases", ())) if each in theirs), None)
    if source is None:
        if "default" not in field:
            raise Incompatible("is missing, and has no default", name)
        return _Column(ours=ours, source=None, default=field["default"], symbols=None)
    avro = theirs[source]["type"]
    try:
        written = arrow_field(source, avro)
    except ValueError as exc:
        raise Incompatible(str(exc), source, sep=": ") from exc
    if not _is_readable(written.type, ours.type):
        raise Incompatible(f"is {written.type}, not {ours.type}", source)
    return _Column(ours=ours, source=source, default=None, symbols=_symbols(field["type"], avro))


def _is_readable(written: pa.DataType, ours: pa.DataType) -> bool:
    if pa.types.is_decimal(written) and pa.types.is_decimal(ours):
        return bool(written.scale == ours.scale)  # digits are checked value by value
    if pa.types.is_list(ours) and pa.types.is_list(written):
        return _is_item_readable(written.value_field, ours.value_field)
    if pa.types.is_map(ours) and pa.types.is_map(written):
        return _is_item_readable(written.item_field, ours.item_field)
    if pa.types.is_timestamp(ours):
        return bool(pa.types.is_timestamp(written) and written.tz == ours.tz)  # to finer units
    return bool(written == ours) or is_wider(ours, written)


def _is_item_readable(written: pa.Field, ours: pa.Field) -> bool:
    return bool(written.type == ours.type and (ours.nullable or not written.nullable))


def _symbols(ours: Any, written: Any) -> Sequence[str] | None:
    """Return the symbols of k2's enum if the writer's values may be others."""
    match ours:
        case {"type": "enum", "symbols": symbols}:
            is_subset = isinstance(written, dict) and set(written["symbols"]) <= set(symbols)
            return None if is_subset else symbols
        case _:
            return None


def _checks(column: _Column) -> list[Callable[[pa.Array], Faults]]:
    """List the checks for the values of a column."""
    ours = column.ours
    checks: list[Callable[[pa.Array], Faults]] = []
    if not ours.nullable:
        checks.append(partial(_null_faults, ours.name))
    if column.symbols is not None:
        checks.append(partial(_symbol_faults, ours.name, pa.array(column.symbols, pa.string())))
    if pa.types.is_decimal(ours.type):
        # Prices and quantities are never negative; a fee in a user's own column may be.
        is_signed = ours.nullable and ours.name not in _AMOUNTS
        checks.append(partial(_decimal_faults, ours, is_signed))
    if pa.types.is_timestamp(ours.type):
        checks.append(partial(_time_faults, ours.name))
    return checks


def _faults_at(
    name: str, values: pa.Array, is_bad: npt.NDArray[np.bool_], brief: str, cause: Cause
) -> Faults:
    """Describe the bad values, of which there are few."""
    return {row: _fault(name, values[row], brief, cause) for row in np.flatnonzero(is_bad).tolist()}


def _fault(name: str, value: pa.Scalar, brief: str, cause: Cause) -> Fault:
    reason = f"{name} {brief}"
    return Fault(reason=reason, cause=cause, field=name, value=shown_scalar(value), brief=brief)


def shown_scalar(value: pa.Scalar) -> str | None:
    """Format a value for people, shortened if it is long; null is None."""
    try:
        return shown(value.as_py())
    except OverflowError:  # a time outside Python's range
        return shown(value.cast(pa.int64()).as_py())


def _null_faults(name: str, values: pa.Array) -> Faults:
    return _faults_at(name, values, _nulls(values), "is null", Cause.MISSING)


def _decimal_faults(ours: pa.Field, is_signed: bool, values: pa.Array) -> Faults:
    is_unfit = unfit_decimals(values, ours.type.precision, is_signed=is_signed)
    brief = f"{'' if is_signed else 'is negative or '}does not fit {ours.type}"
    return {
        row: _fault(ours.name, values[row], brief, amount_cause(values[row], is_signed=is_signed))
        for row in np.flatnonzero(is_unfit).tolist()
    }


def amount_cause(value: pa.Scalar, *, is_signed: bool = False) -> Cause:
    """Return why a number does not fit a decimal column."""
    is_negative = not is_signed and value.as_py() < 0
    return Cause.NEGATIVE if is_negative else Cause.DECIMAL_OVERFLOW


def _time_faults(name: str, values: pa.Array) -> Faults:
    brief = "is outside the years 1 to 9999"
    return _faults_at(name, values, _unfit_times(values), brief, Cause.TIME_OUT_OF_RANGE)


def _symbol_faults(name: str, known: pa.StringArray, values: pa.Array) -> Faults:
    is_unknown = pc.invert(pc.is_in(values, known)).to_numpy(zero_copy_only=False)
    return {
        row: _fault(name, values[row], f"is {values[row]}, not a symbol of it", Cause.UNKNOWN_ENUM)
        for row in np.flatnonzero(is_unknown).tolist()
    }


def _nulls(values: pa.Array) -> npt.NDArray[np.bool_]:
    if not values.null_count:
        return np.zeros(len(values), dtype=np.bool_)
    is_null: npt.NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    return is_null


def unfit_decimals(
    values: pa.Array, precision: int, *, is_signed: bool = False
) -> npt.NDArray[np.bool_]:
    """Find decimals that have too many digits or, unless signed, are negative."""
    if not len(values):
        return np.zeros(0, dtype=np.bool_)
    buffer = values.buffers()[1]
    words = np.frombuffer(buffer, np.int64, len(values) * 2, values.offset * 16).reshape(-1, 2)
    most = 10**precision - 1
    is_fit = ~_is_less(words, -most if is_signed else 0) & _is_less(words, most + 1)
    is_unfit: npt.NDArray[np.bool_] = ~is_fit & ~_nulls(values)
    return is_unfit


def _is_less(words: npt.NDArray[np.int64], limit: int) -> npt.NDArray[np.bool_]:
    """Compare 128-bit integers, each a low and a high word, with a limit."""
    low, high = words[:, 0].view(np.uint64), words[:, 1]
    limit_high, limit_low = divmod(limit, 1 << 64)
    is_less: npt.NDArray[np.bool_] = (high < limit_high) | (
        (high == limit_high) & (low < limit_low)
    )
    return is_less


def _unfit_times(values: pa.Array) -> npt.NDArray[np.bool_]:
    times: npt.NDArray[np.int64] = values.cast(pa.int64()).fill_null(0).to_numpy()
    us_a_unit = _US_A_UNIT[values.type.unit]
    return (times < YEAR_1_US // us_a_unit) | (times > YEAR_9999_US // us_a_unit)
