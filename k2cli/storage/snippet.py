"""Generate Python code that reads a table without k2."""

import json
from collections.abc import Mapping
from textwrap import dedent, indent
from typing import Final

import pyarrow as pa

from k2cli.records import RecordKind
from k2cli.redaction import redact_setting
from k2cli.storage.catalog import NAME

_EXTRAS: Final = {"sqlite": "sql-sqlite", "postgresql": "sql-postgres"}
_MAX_COLUMNS: Final = 2  # of the decimals, to keep the code short


def reading_code(kind: RecordKind, table: str, properties: Mapping[str, str]) -> str:
    """Write code that reads a table with pyiceberg, DuckDB, polars and pandas.

    `properties` are those of the catalog. Secrets are not written: the code takes them from the
    variables that k2 itself would read.
    """
    decimals = [field.name for field in kind.arrow if pa.types.is_decimal(field.type)]
    columns = ["symbol", "timestamp", *decimals[:_MAX_COLUMNS]]
    code = dedent(
        """\
        # Read {table} without k2:
        #   pip install {packages}
        # Each part below works on its own, after this one.
        {imports}
        # SQL catalogs find their tables by this name: it must be {name}.
        catalog = load_catalog(
            {name},
            **{{
        {properties}
            }},
        )
        table = catalog.load_table({table_name})
        columns = ({columns})

        # pyiceberg: only files that can hold such rows are read.
        since = "timestamp >= '2020-01-01T00:00:00+00:00'"
        print(table.scan(row_filter=since, selected_fields=columns, limit=10).to_arrow())

        # DuckDB: the rows pass through in batches; a reader can be used once.
        import duckdb

        reader = table.scan(selected_fields=columns).to_arrow_batch_reader()
        print(duckdb.sql("SELECT symbol, count(*) AS n FROM reader GROUP BY ALL ORDER BY ALL"))

        # polars: lazy; filters and columns are passed on to the table.
        import polars as pl

        print(pl.scan_iceberg(table).select(columns).head(10).collect())

        # pandas: all chosen rows are in memory.
        print(table.scan(selected_fields=columns, limit=10).to_pandas())"""
    )
    values = {key: _value(key, value) for key, value in properties.items()}
    imports = "from pyiceberg.catalog import load_catalog\n"
    if any(value.startswith("os.environ") for value in values.values()):
        imports = f"import os\n\n{imports}"
    lines = "\n".join(f"{json.dumps(key)}: {value}," for key, value in values.items())
    return code.format(
        table=table,
        packages=_packages(properties),
        imports=imports,
        name=json.dumps(NAME),
        properties=indent(lines, " " * 8),
        table_name=json.dumps(table),
        columns=", ".join(map(json.dumps, columns)),
    )


def _value(key: str, value: str) -> str:
    if redact_setting(key, value) == value:
        return json.dumps(value)
    name = key.replace(".", "__").replace("-", "_").upper()
    return f'os.environ["K2_CATALOG_{name}"]'


def _packages(properties: Mapping[str, str]) -> str:
    scheme = properties.get("uri", "").partition(":")[0].partition("+")[0]
    kind = properties.get("type", "")
    extras = ["pyarrow"]
    if scheme in _EXTRAS:
        extras.append(_EXTRAS[scheme])
    elif kind in ("glue", "dynamodb", "hive", "bigquery"):
        extras.append(kind)
    elif properties.get("rest.sigv4-enabled"):
        extras.append("rest-sigv4")
    return f"'pyiceberg[{','.join(extras)}]' duckdb polars pandas"
