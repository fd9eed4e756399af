"""`k2 schema show`: print a schema in several formats."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k2cli.commands.options import HomeOpt, RegistryOpt, TimeoutOpt
from k2cli.commands.schema.names import Finder, is_file, version_number
from k2cli.commands.terminal import output
from k2cli.commands.terminal.output import Output
from k2cli.errors import BadData, UsageError
from k2cli.query.formats import Format, markdown_line

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from k2cli.avro.named import NamedSchema


class Form(StrEnum):
    """The output format of a schema."""

    AVRO = "avro"
    ARROW = "arrow"
    ICEBERG = "iceberg"
    SQL = "sql"
    MARKDOWN = "markdown"


def show(
    name: Annotated[
        str | None,
        typer.Argument(
            help="A name such as trade_v2, FILE.avsc, - or SUBJECT@VERSION, unless --id is given.",
            show_default=False,
        ),
    ] = None,
    form: Annotated[
        Form | None,
        typer.Option(
            "--as",
            help="Output format: Avro and Iceberg are JSON, SQL is for DuckDB.",
            show_default="avro",
        ),
    ] = None,
    mapping: Annotated[
        bool,
        typer.Option(
            "--mapping",
            help="Show how records of an earlier built-in schema, such as trade_v1, map to v2.",
        ),
    ] = False,
    version: Annotated[
        str | None,
        typer.Option(
            "--version", metavar="NUMBER", help="Version of a subject.", show_default="latest"
        ),
    ] = None,
    schema_id: Annotated[
        int | None, typer.Option("--id", min=0, help="Show the schema with this id instead.")
    ] = None,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Print a schema: as Avro, Arrow, Iceberg, SQL or a table of its fields in Markdown.

    Example: k2 schema show trade_v2 --as sql
    """
    if mapping:
        _show_mapping(name, form)
        return
    finder = Finder(home=home, registry=registry, timeout_s=timeout)
    output.data(_written(_find(finder, name, version, schema_id), form or Form.AVRO))


def _find(
    finder: Finder, name: str | None, version: str | None, schema_id: int | None
) -> "NamedSchema":
    from k2cli.avro.builtin import BUILTIN_SCHEMAS

    if (name is None) == (schema_id is None):
        raise UsageError("give a name, or an id with --id")
    if version is not None and schema_id is not None:
        raise UsageError("--id and --version are mutually exclusive")
    number = version_number(version)
    if name is None:
        from k2cli.ingestion.kafka.registry import parse_schema

        with finder.opened() as client:
            of, text = client.text(schema_id or 0)
        return parse_schema(of, text, f"schema {schema_id}")
    if version is None:
        return finder.find(name)
    if name in BUILTIN_SCHEMAS or is_file(name) or "@" in name:
        raise UsageError(f"--version requires the name of a subject, not {name}")
    with finder.opened() as client:
        return client.version(name, number).parse()


def _written(found: "NamedSchema", form: Form) -> str:
    if form is Form.AVRO:
        return json.dumps(found.avro, indent=2, ensure_ascii=False)
    avro = found.record()
    if form is Form.MARKDOWN:
        return _markdown(found)
    try:
        return _as_columns(avro, form)
    except ValueError as exc:
        hint = f"k2 schema validate {found.name}"
        raise BadData(f"{found.name} cannot be shown like this: {exc}", hint=hint) from exc


def _as_columns(avro: "Mapping[str, Any]", form: Form) -> str:
    from k2cli.codec.resolve import record_name
    from k2cli.records import avro_to_arrow_schema

    columns = avro_to_arrow_schema(avro)
    if form is Form.ICEBERG:
        from k2cli.storage.tables import iceberg_schema

        return iceberg_schema(columns).model_dump_json(indent=2)
    if form is Form.SQL:
        return _sql(str(record_name(avro)), columns)
    return str(columns.remove_metadata().to_string(show_field_metadata=False))


def _sql(name: str, columns: "pa.Schema") -> str:
    from k2cli.query.render import quoted
    from k2cli.query.views import arrow_to_duckdb_type

    lines = []
    for number, column in enumerate(columns, start=1):
        need = "" if column.nullable else " NOT NULL"
        comma = "," if number < len(columns) else ""
        doc = (column.metadata or {}).get(b"doc", b"").decode()
        comment = f"  -- {' '.join(doc.split())}" if doc else ""
        lines.append(
            f"  {quoted(column.name)} {arrow_to_duckdb_type(column.type)}{need}{comma}{comment}"
        )
    return "\n".join([f"CREATE TABLE {quoted(name)} (", *lines, ");"])


def _markdown(found: "NamedSchema") -> str:
    from k2cli.avro.differences import described
    from k2cli.avro.types import UNION

    lines = ["| field | type | null | default | doc |", "|---|---|---|---|---|"]
    for field in found.linked().type.fields:
        branches = field.type.inner if field.type.kind == UNION else [field.type]
        types = " | ".join(described(branch) for branch in branches if branch.kind != "null")
        is_optional = any(branch.kind == "null" for branch in branches)
        default = json.dumps(field.default) if field.has_default else ""
        cells = (field.name, types, "yes" if is_optional else "no", default, field.doc)
        lines.append(markdown_line(cells).rstrip())
    return "\n".join(lines)


def _show_mapping(name: str | None, form: Form | None) -> None:
    import pyarrow as pa

    from k2cli.avro.types import link
    from k2cli.codec.upgrade import UPGRADES

    if form not in (None, Form.MARKDOWN):
        raise UsageError("--mapping supports only text and --as markdown")
    if name is None or name not in UPGRADES:
        raise UsageError(
            f"no mapping for {name or 'an unnamed schema'}",
            hint=f"use one of {', '.join(UPGRADES)}",
        )
    upgrade = UPGRADES[name]
    types = {field.name: str(field.type) for field in link(upgrade.kind.avro).fields}
    rows = [
        {
            "field": rule.target,
            "type": types[rule.target],
            "computed from": ", ".join(rule.sources),
            "how": rule.how,
        }
        for rule in upgrade.rules
    ]
    out = Output(format=Format.MARKDOWN if form else Format.TABLE)
    complete = "--as markdown shows everything"
    output.print_rows(out, pa.Table.from_pylist(rows), details=("type",), complete=complete)
