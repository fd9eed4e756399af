"""The data files of a table as a view of DuckDB."""

import re

import pyarrow as pa

from k2cli.query.render import literal, quoted
from k2cli.records import TableFiles


def arrow_to_duckdb_type(of: pa.DataType) -> str:
    """Return the DuckDB type of a column of a record kind."""
    if pa.types.is_decimal(of):
        return f"DECIMAL({of.precision}, {of.scale})"
    if pa.types.is_timestamp(of):
        return "TIMESTAMPTZ"
    if pa.types.is_list(of):
        return f"{arrow_to_duckdb_type(of.value_type)}[]"
    if pa.types.is_map(of):
        return f"MAP({arrow_to_duckdb_type(of.key_type)}, {arrow_to_duckdb_type(of.item_type)})"
    names = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.int32(): "INTEGER"}
    return names.get(of) or {pa.bool_(): "BOOLEAN"}[of]


def files_query(plan: TableFiles) -> str:
    """Build the SELECT over a plan's files; columns match by field id, missing ones are null."""
    types = {field.name: arrow_to_duckdb_type(field.type) for field in plan.kind.arrow}
    stored = {name: field_id for field_id, name in plan.columns.items() if name in types}
    if not plan.paths or not stored:
        nulls = ", ".join(f"CAST(NULL AS {of}) AS {quoted(name)}" for name, of in types.items())
        return f"SELECT {nulls} WHERE false"
    columns = ", ".join(
        quoted(name) if name in stored else f"CAST(NULL AS {of}) AS {quoted(name)}"
        for name, of in types.items()
    )
    by_id = ", ".join(
        f"{field_id}: {{name: {literal(name)}, type: {literal(types[name])}, default_value: NULL}}"
        for name, field_id in stored.items()
    )
    paths = ", ".join(literal(path_pattern(path)) for path in plan.paths)
    return f"SELECT {columns} FROM read_parquet([{paths}], schema = MAP {{{by_id}}})"


def path_pattern(path: str) -> str:
    """Escape a path: DuckDB treats every path as a glob pattern."""
    return re.sub(r"[\[*?]", r"[\g<0>]", path)
