"""A writer's records, read as ours: schema resolution by the rules of the Avro specification.

A field is taken by its name or one of our aliases, widened where ours is wider, and filled with
our default where the writer does not have it; what only the writer has is left out
(https://avro.apache.org/docs/1.12.0/specification/, "Schema Resolution"). A decimal with another
scale is refused: taken as it is, it would change every price.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.codec.decode import Decoded, Decoder
from k2cli.columns import YEAR_1_US, YEAR_9999_US
from k2cli.records import arrow_field, avro_to_arrow_schema

Faults = Mapping[int, str]  # row -> why it does not fit
_US_A_UNIT: Final = {"ms": 1_000, "us": 1}


class Incompatible(ValueError):
    """Records of the writer's schema cannot be read as ours; the message names the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Column:
    """How one column of ours is made of the writer's."""

    ours: pa.Field
    source: str | None  # the writer's field; None: our default
    default: Any
    symbols: Sequence[str] | None  # of our enum, where the writer's may hold others


class RecordDecoder:
    """Decodes the bodies of one writer's schema into rows of one of our schemas."""

    def __init__(self, schema: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        """Compare the writer's schema with ours.

        Raises:
            Incompatible: no record of the writer's can be read as ours.
        """
        found = record_name(schema)
        if found != ours["name"]:
            raise Incompatible(
                f"the schema is of {found or schema.get('type')}, not of {ours['name']}"
            )
        theirs = {field["name"]: field for field in schema["fields"]}
        self._arrow = avro_to_arrow_schema(ours)
        self._columns = [_column(field, theirs) for field in ours["fields"]]
        sources = {column.source for column in self._columns if column.source}
        self._decoder = Decoder(schema, sources)

    def decode(self, bodies: Sequence[bytes]) -> Decoded:
        """Decode bodies; what does not decode, or does not fit our schema, is a reject."""
        decoded = self._decoder.decode(bodies)
        faults: dict[int, str] = {}
        columns: list[pa.Array] = []
        for column in self._columns:
            values = self._values(column, decoded.rows)
            for find in _checks(column):
                faults = {**find(values), **faults}
            columns.append(values)
        rows = pa.RecordBatch.from_arrays(columns, self._arrow.names)
        fit = replace(decoded, rows=rows).without(faults)
        return replace(fit, rows=fit.rows.cast(self._arrow))

    @staticmethod
    def _values(column: _Column, rows: pa.RecordBatch) -> pa.Array:
        if column.source is not None:
            return rows[column.source]
        return pa.repeat(pa.scalar(column.default, column.ours.type), rows.num_rows)


def record_name(schema: Mapping[str, Any]) -> str | None:
    """Return the name of a record without its namespace; None for a schema of something else."""
    if schema.get("type") != "record":
        return None
    return str(schema["name"]).rpartition(".")[2]


def _column(field: Mapping[str, Any], theirs: Mapping[str, Mapping[str, Any]]) -> _Column:
    name = field["name"]
    ours = arrow_field(name, field["type"])
    source = next((each for each in (name, *field.get("aliases", ())) if each in theirs), None)
    if source is None:
        if "default" not in field:
            raise Incompatible(f"field {name} is missing, and has no default")
        return _Column(ours=ours, source=None, default=field["default"], symbols=None)
    avro = theirs[source]["type"]
    try:
        written = arrow_field(source, avro)
    except ValueError as exc:
        raise Incompatible(f"field {source}: {exc}") from exc
    if not _is_readable(written.type, ours.type):
        raise Incompatible(f"field {source} is {written.type}, not {ours.type}")
    return _Column(ours=ours, source=source, default=None, symbols=_symbols(field["type"], avro))


def _is_readable(written: pa.DataType, ours: pa.DataType) -> bool:
    if pa.types.is_decimal(written) and pa.types.is_decimal(ours):
        return bool(written.scale == ours.scale)  # digits are looked at value by value
    if pa.types.is_int64(ours):
        return written in (pa.int64(), pa.int32())
    return bool(written == ours)


def _symbols(ours: Any, written: Any) -> Sequence[str] | None:
    """Return the symbols of our enum where what was written may be none of them."""
    match ours:
        case {"type": "enum", "symbols": symbols}:
            is_subset = isinstance(written, dict) and set(written["symbols"]) <= set(symbols)
            return None if is_subset else symbols
        case _:
            return None


def _checks(column: _Column) -> list[Callable[[pa.Array], Faults]]:
    """List what the values of a column have to be looked at for."""
    ours = column.ours
    checks: list[Callable[[pa.Array], Faults]] = []
    if not ours.nullable:
        checks.append(lambda values: _found(_nulls(values), f"{ours.name} is null"))
    if column.symbols is not None:
        known = pa.array(column.symbols, pa.string())
        checks.append(lambda values: _unknown_symbols(values, known, ours.name))
    if pa.types.is_decimal(ours.type):
        reason = f"{ours.name} is negative or does not fit {ours.type}"
        checks.append(lambda values: _found(unfit_decimals(values, ours.type.precision), reason))
    if pa.types.is_timestamp(ours.type):
        reason = f"{ours.name} is outside the years 1 to 9999"
        checks.append(lambda values: _found(_unfit_times(values), reason))
    return checks


def _found(is_bad: npt.NDArray[np.bool_], reason: str) -> Faults:
    return dict.fromkeys(np.flatnonzero(is_bad).tolist(), reason)


def _nulls(values: pa.Array) -> npt.NDArray[np.bool_]:
    is_null: npt.NDArray[np.bool_] = values.is_null().to_numpy(zero_copy_only=False)
    return is_null


def _unknown_symbols(values: pa.Array, known: pa.StringArray, name: str) -> Faults:
    is_unknown = pc.invert(pc.is_in(values, known)).to_numpy(zero_copy_only=False)
    return {row: f"{name} is {values[row]}" for row in np.flatnonzero(is_unknown).tolist()}


def unfit_decimals(values: pa.Array, precision: int) -> npt.NDArray[np.bool_]:
    """Find those of a column of decimals that are negative or have more digits."""
    buffer = values.buffers()[1]
    if not len(values):
        return np.zeros(0, dtype=np.bool_)
    words = np.frombuffer(buffer, np.int64, len(values) * 2, values.offset * 16).reshape(-1, 2)
    low, high = words[:, 0], words[:, 1]
    is_unfit: npt.NDArray[np.bool_] = (high != 0) | (low < 0) | (low >= 10**precision)
    return is_unfit


def _unfit_times(values: pa.Array) -> npt.NDArray[np.bool_]:
    times: npt.NDArray[np.int64] = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    us_a_unit = _US_A_UNIT[values.type.unit]
    return (times < YEAR_1_US // us_a_unit) | (times > YEAR_9999_US // us_a_unit)
