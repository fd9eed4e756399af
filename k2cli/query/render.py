"""How values look: SQL expressions that turn a column of any DuckDB type into text.

Text is the same in every text format: times ISO 8601 (with a `Z` where the type knows the zone),
decimals with the scale they are stored with, doubles the shortest text that reads back the same,
nested values as JSON. In JSON decimals are strings, because most readers take numbers for doubles,
and NaN and infinities, which JSON cannot say, are null.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa

if TYPE_CHECKING:
    from duckdb.sqltypes import DuckDBPyType

Column = tuple[str, "DuckDBPyType"]
Expression = Callable[[str, "DuckDBPyType"], str]

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
# JSON has its own words for these; everything else is a string there.
_JSON_NATIVE: Final = frozenset(
    {"boolean", "tinyint", "smallint", "integer", "bigint", "hugeint"}
    | {"utinyint", "usmallint", "uinteger", "ubigint", "uhugeint"}
)
# What Arrow and Parquet readers do not share a type for, and what they get.
_EXCHANGED: Final = {
    "hugeint": "DECIMAL(38, 0)",  # Parquet would get a double
    **dict.fromkeys(
        ("uhugeint", "bignum", "enum", "uuid", "bit", "interval", "time with time zone"),
        "VARCHAR",
    ),
}


@dataclass(frozen=True, slots=True)
class Copy:
    """How DuckDB's COPY writes a format: what becomes of each value, and the options."""

    render: Expression
    options: str


def quoted(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a text that cannot be a parameter for SQL."""
    return "'" + text.replace("'", "''") + "'"


def as_text(expression: str, of: "DuckDBPyType") -> str:
    """Render a value for csv, markdown and tables."""
    if of.id in _TIME_FORMAT:
        return _iso(expression, of)
    if of.id in _NESTED:
        return f"CAST(to_json({as_json(expression, of)}) AS VARCHAR)"
    return expression if of.id == "varchar" else f"CAST({expression} AS VARCHAR)"


def as_csv(expression: str, of: "DuckDBPyType") -> str:
    """Leave to the csv writer what it writes as `as_text` does: it is faster at it."""
    is_writers = of.id not in _TIME_FORMAT and of.id not in _NESTED
    return expression if is_writers or of.id == _ZONED else as_text(expression, of)


def as_json(expression: str, of: "DuckDBPyType", depth: int = 0) -> str:
    """Make a value such that DuckDB's `to_json` renders it as k2 wants it."""
    if of.id in _NESTED:
        return _nested_json(expression, of, depth) if _needs_help(of) else expression
    if of.id in _JSON_NATIVE or str(of) in ("VARCHAR", "JSON"):
        return expression
    if of.id in ("float", "double"):
        # Through text, because DuckDB writes a float as the double next to it.
        return (
            f"CASE WHEN isfinite({expression}) THEN CAST(CAST({expression} AS VARCHAR) AS JSON) END"
        )
    return as_text(expression, of)


def as_exchanged(expression: str, of: "DuckDBPyType") -> str:
    """Keep a value's type for parquet and arrow, or change it to one that every reader knows."""
    if of.id == "union":
        return as_text(expression, of)
    into = _EXCHANGED.get(of.id)
    return f"CAST({expression} AS {into})" if into else expression


def as_transferred(expression: str, of: "DuckDBPyType") -> str:
    """Keep a value's type for another DuckDB; what Arrow has no type for becomes text."""
    return f"CAST({expression} AS VARCHAR)" if of.id == "variant" else expression


def projection(columns: Sequence[Column], render: Expression) -> str:
    """Make the list of a SELECT that renders every column under its own name."""
    return ", ".join(f"{render(quoted(name), of)} AS {quoted(name)}" for name, of in columns)


def _iso(expression: str, of: "DuckDBPyType") -> str:
    # strftime of the plain type: on the one with a zone it is half as fast. The zone is UTC.
    moment = f"CAST({expression} AS TIMESTAMP)" if of.id == _ZONED else expression
    return f"strftime({moment}, '{_TIME_FORMAT[of.id]}')"


def _children(of: "DuckDBPyType") -> list[tuple[str, Any]]:
    return [(name, child) for name, child in of.children if name != "size"]


def _needs_help(of: "DuckDBPyType") -> bool:
    """Tell whether plain to_json would render something inside differently."""
    if of.id == "union":
        return False
    if of.id in _NESTED:
        children = _children(of)
        has_names = all(name for name, _ in children)
        return not has_names or any(_needs_help(child) for _, child in children)
    return of.id not in _JSON_NATIVE and str(of) not in ("VARCHAR", "JSON")


def _nested_json(expression: str, of: "DuckDBPyType", depth: int) -> str:
    item = f"x{depth}"
    match of.id:
        case "list" | "array":
            inner = as_json(item, _children(of)[0][1], depth + 1)
            return f"list_transform({expression}, lambda {item}: {inner})"
        case "map":
            (_, key), (_, value) = _children(of)
            entry = (
                f"struct_pack(k := {as_text(f'{item}.key', key)},"
                f" v := {as_json(f'{item}.value', value, depth + 1)})"
            )
            entries = f"list_transform(map_entries({expression}), lambda {item}: {entry})"
            return f"map_from_entries({entries})"
        case _:
            fields = ", ".join(
                f"{quoted(name or f'v{place}')} := "
                + as_json(f"struct_extract({expression}, {_field(name, place)})", child, depth + 1)
                for place, (name, child) in enumerate(_children(of), start=1)
            )
            return f"CASE WHEN {expression} IS NOT NULL THEN struct_pack({fields}) END"


def _field(name: str, place: int) -> str:
    return literal(name) if name else str(place)


def json_object(columns: Sequence[Column]) -> str:
    """Make the expression that renders a row as one JSON object."""
    fields = ", ".join(f"{quoted(name)} := {as_json(quoted(name), of)}" for name, of in columns)
    return f"to_json(struct_pack({fields}))"


COPIES: Final[Mapping[str, Copy]] = {
    "csv": Copy(
        as_csv, f"FORMAT csv, HEADER true, TIMESTAMPFORMAT {literal(_TIME_FORMAT[_ZONED])}"
    ),
    "tsv": Copy(
        as_csv,
        f"FORMAT csv, HEADER true, DELIMITER '\t', TIMESTAMPFORMAT {literal(_TIME_FORMAT[_ZONED])}",
    ),
    "ndjson": Copy(as_json, "FORMAT json"),
    "csv without header": Copy(as_text, "FORMAT csv, HEADER false"),
    "parquet": Copy(as_exchanged, "FORMAT parquet, COMPRESSION zstd"),
}
RENDERINGS: Final[Mapping[str, Expression]] = {"text": as_text, "exchanged": as_exchanged}


class NdjsonRenderer:
    """Renders record batches as the text that `k2 query --format ndjson` prints of them.

    One renderer serves one thread; `close` it, or use it as a context manager.
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
        """Return one line of JSON for every row, in the batch's order."""
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
