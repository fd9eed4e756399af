"""Render values: SQL expressions that convert a column of any DuckDB type to text.

Text is the same in every text format: times in ISO 8601 (zoned types with a `Z`, or with the offset
of the session's time zone if that is not UTC), decimals with their stored scale, doubles as the
shortest text that round-trips, nested values as JSON. In JSON, decimals are strings, because most
readers parse numbers as doubles, and NaN and infinities, which JSON lacks, are null.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from duckdb.sqltypes import DuckDBPyType

Column = tuple[str, "DuckDBPyType"]
# Builds the SQL that renders a column, given the session's time zone.
Expression = Callable[[str, "DuckDBPyType", str], str]

UTC: Final = "UTC"
_SECONDS: Final = "%Y-%m-%dT%H:%M:%S"
_ZONED: Final = "timestamp with time zone"
_TIME_FORMAT: Final = {
    _ZONED: f"{_SECONDS}.%fZ",
    "timestamp": f"{_SECONDS}.%f",
    "timestamp_s": f"{_SECONDS}.%f",
    "timestamp_ms": f"{_SECONDS}.%f",
    "timestamp_ns": f"{_SECONDS}.%n",
}
_NESTED: Final = frozenset({"list", "array", "struct", "map", "union"})
# JSON has literals for these; everything else is a string there.
_JSON_NATIVE: Final = frozenset(
    {"boolean", "tinyint", "smallint", "integer", "bigint", "hugeint"}
    | {"utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"}
)
# Types that not all Arrow and Parquet readers support, and their replacements.
_EXCHANGED: Final = {
    "hugeint": "DECIMAL(38, 0)",  # would be a double in Parquet
    **dict.fromkeys(
        ("uhugeint", "bignum", "enum", "uuid", "bit", "interval", "time with time zone"),
        "VARCHAR",
    ),
}


@dataclass(frozen=True, slots=True)
class Copy:
    """How DuckDB's COPY writes a format: the rendering of values, and the options."""

    render: Expression
    options: str


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text for SQL that cannot be a parameter."""
    return "'" + text.replace("'", "''") + "'"


def as_text(expression: str, of: "DuckDBPyType", zone: str) -> str:
    """Render a value for csv, markdown and tables."""
    if of.id in _TIME_FORMAT:
        return _iso(expression, of, zone)
    if of.id in _NESTED:
        return f"CAST(to_json({as_json(expression, of, zone)}) AS VARCHAR)"
    return expression if of.id == "varchar" else f"CAST({expression} AS VARCHAR)"


def as_csv(expression: str, of: "DuckDBPyType", zone: str) -> str:
    """Leave types to the csv writer that it writes like `as_text`, only faster."""
    is_writers = of.id not in _TIME_FORMAT and of.id not in _NESTED
    is_utc = of.id == _ZONED and zone == UTC
    return expression if is_writers or is_utc else as_text(expression, of, zone)


def as_json(expression: str, of: "DuckDBPyType", zone: str, depth: int = 0) -> str:
    """Convert a value so that DuckDB's `to_json` renders it in k2's form."""
    if of.id in _NESTED:
        return _nested_json(expression, of, zone, depth) if _needs_help(of) else expression
    if of.id in _JSON_NATIVE or str(of) in ("VARCHAR", "JSON"):
        return expression
    if of.id in ("float", "double"):
        # Through text, because DuckDB writes a float as the nearest double.
        return (
            f"CASE WHEN isfinite({expression}) THEN CAST(CAST({expression} AS VARCHAR) AS JSON) END"
        )
    return as_text(expression, of, zone)


def as_exchanged(expression: str, of: "DuckDBPyType", zone: str) -> str:
    """Keep a value's type for parquet and arrow, or cast it to one every reader supports."""
    if of.id == "union":
        return as_text(expression, of, zone)
    into = _EXCHANGED.get(of.id)
    return f"CAST({expression} AS {into})" if into else expression


def as_transferred(expression: str, of: "DuckDBPyType", zone: str) -> str:  # noqa: ARG001
    """Keep a value's type for another DuckDB; types that Arrow lacks become text."""
    return f"CAST({expression} AS VARCHAR)" if of.id == "variant" else expression


def projection(columns: Sequence[Column], render: Expression, zone: str = UTC) -> str:
    """Build the SELECT list that renders every column under its name."""
    return ", ".join(f"{render(quoted(name), of, zone)} AS {quoted(name)}" for name, of in columns)


def _iso(expression: str, of: "DuckDBPyType", zone: str) -> str:
    if of.id != _ZONED:
        return f"strftime({expression}, '{_TIME_FORMAT[of.id]}')"
    return iso_instant(expression, zone)


def iso_instant(expression: str, zone: str) -> str:
    """Format an instant with microseconds and the offset of `zone`, the session's zone."""
    # strftime on the plain type: it is twice as fast as on the zoned type.
    local = f"CAST({expression} AS TIMESTAMP)"
    if zone == UTC:
        return f"strftime({local}, '{_TIME_FORMAT[_ZONED]}')"
    return f"strftime({local}, '{_TIME_FORMAT['timestamp']}') || {_offset(expression, local)}"


def _offset(expression: str, local: str) -> str:
    """Build an instant's offset from UTC, such as +09:30; infinite instants have none.

    Offsets before standard time have seconds.
    """
    offset = f"(epoch_us({local}) - epoch_us({expression}))"
    clock = f"make_timestamp(abs({offset}))"
    sign = f"CASE WHEN {offset} < 0 THEN '-' ELSE '+' END"
    return (
        f"CASE WHEN {offset} IS NULL THEN ''"
        f" WHEN {offset} % 60000000 = 0 THEN {sign} || strftime({clock}, '%H:%M')"
        f" ELSE {sign} || strftime({clock}, '%H:%M:%S') END"
    )


def _children(of: "DuckDBPyType") -> list[tuple[str, Any]]:
    return [(name, child) for name, child in of.children if name != "size"]


def _needs_help(of: "DuckDBPyType") -> bool:
    """Return whether plain to_json would render a nested value differently."""
    if of.id == "union":
        return False
    if of.id in _NESTED:
        children = _children(of)
        has_names = all(name for name, _ in children)
        return not has_names or any(_needs_help(child) for _, child in children)
    return of.id not in _JSON_NATIVE and str(of) not in ("VARCHAR", "JSON")


def _nested_json(expression: str, of: "DuckDBPyType", zone: str, depth: int) -> str:
    item = f"x{depth}"
    match of.id:
        case "list" | "array":
            inner = as_json(item, _children(of)[0][1], zone, depth + 1)
            return f"list_transform({expression}, lambda {item}: {inner})"
        case "map":
            (_, key), (_, value) = _children(of)
            entry = (
                f"struct_pack(k := {as_text(f'{item}.key', key, zone)},"
                f" v := {as_json(f'{item}.value', value, zone, depth + 1)})"
            )
            entries = f"list_transform(map_entries({expression}), lambda {item}: {entry})"
            return f"map_from_entries({entries})"
        case _:
            fields = ", ".join(
                f"{quoted(name or f'v{number}')} := "
                + as_json(
                    f"struct_extract({expression}, {_field(name, number)})", child, zone, depth + 1
                )
                for number, (name, child) in enumerate(_children(of), start=1)
            )
            return f"CASE WHEN {expression} IS NOT NULL THEN struct_pack({fields}) END"


def _field(name: str, number: int) -> str:
    return literal(name) if name else str(number)


def json_object(columns: Sequence[Column]) -> str:
    """Build the expression that renders a row as one JSON object."""
    fields = ", ".join(
        f"{quoted(name)} := {as_json(quoted(name), of, UTC)}" for name, of in columns
    )
    return f"to_json(struct_pack({fields}))"


_TIMES: Final = f"TIMESTAMPFORMAT {literal(_TIME_FORMAT[_ZONED])}"
COPIES: Final[Mapping[str, Copy]] = {
    "csv": Copy(as_csv, f"FORMAT csv, HEADER true, {_TIMES}"),
    "csv without header": Copy(as_csv, f"FORMAT csv, HEADER false, {_TIMES}"),
    "tsv": Copy(as_csv, f"FORMAT csv, HEADER true, DELIMITER '\t', {_TIMES}"),
    "tsv without header": Copy(as_csv, f"FORMAT csv, HEADER false, DELIMITER '\t', {_TIMES}"),
    "ndjson": Copy(as_json, "FORMAT json"),
    "parquet": Copy(as_exchanged, "FORMAT parquet, COMPRESSION zstd"),
}
RENDERINGS: Final[Mapping[str, Expression]] = {"text": as_text, "exchanged": as_exchanged}


class NdjsonRenderer:
    """Renders record batches as the text that `k2 query --format ndjson` prints.

    Use one renderer per thread; `close` it, or use it as a context manager.
    """

    def __init__(self) -> None:
        import duckdb  # noqa: PLC0415  27 MB that most runs of stream and consume do not need

        self._connection = duckdb.connect(":memory:")
        self._connection.execute("SET TimeZone = 'UTC'")

    def __enter__(self) -> "NdjsonRenderer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the memory."""
        self._connection.close()

    def render(self, batch: pa.RecordBatch) -> bytes:
        """Return one line of JSON per row, in order."""
        self._connection.register("batch", pa.Table.from_batches([batch]))
        try:
            shape = self._connection.execute("FROM batch LIMIT 0").description
            columns = [(name, of) for name, of, *_ in shape]
            lines = self._connection.execute(
                f"SELECT CAST({json_object(columns)} AS VARCHAR) || chr(10) FROM batch"
            ).to_arrow_table()
        finally:
            self._connection.unregister("batch")
        return "".join(lines.column(0).to_pylist()).encode()
