"""`k2 schema check`: whether a schema can succeed others, a subject's or a table's."""

import json
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.avro.level import Level
from k2cli.commands.options import (
    HomeOpt,
    RegistryOpt,
    TextOrJson,
    TextOrJsonOpt,
    TimeoutOpt,
    settings,
)
from k2cli.commands.schema.names import Finder
from k2cli.commands.terminal import output
from k2cli.commands.terminal.streams import note
from k2cli.errors import BadData, UsageError
from k2cli.kinds import KindName

if TYPE_CHECKING:
    from k2cli.validation.compatibility import Verdict


class Against(StrEnum):
    """What a schema is checked against."""

    REGISTRY = "registry"
    TABLE = "table"


def check(
    schemas: Annotated[
        list[str],
        typer.Argument(
            metavar="SCHEMA",
            help="Old schemas, oldest first, then the new: names such as trade_v2, FILE.avsc, - or "
            "SUBJECT@VERSION. With --against only the new one.",
            show_default=False,
        ),
    ],
    level: Annotated[
        Level | None,
        typer.Option(
            "--compatibility",
            metavar="LEVEL",
            help="Compatibility level: BACKWARD, FORWARD or FULL with the last old schema; "
            "with the suffix _TRANSITIVE, with all old schemas; or NONE.",
            case_sensitive=False,
            show_default="BACKWARD; with --against registry the subject's level",
        ),
    ] = None,
    against: Annotated[
        Against | None,
        typer.Option("--against", help="Check the new schema against the registry or the table."),
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option(
            "--subject",
            help="Subject, with --against registry.",
            show_default="the only one for such records",
        ),
    ] = None,
    table: Annotated[
        KindName | None,
        typer.Option(
            "--table", help="Table, with --against table.", show_default="by the name of the record"
        ),
    ] = None,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Check whether a schema can follow others, offline or against what is in use.

    It follows the Avro specification, but also refuses a changed scale or logical type, which
    registries accept. Exit code 0 if the schema fits, 6 if not; reasons on stdout.

    Example: k2 schema check trade_v2 ./trade.avsc --compatibility FULL
    """
    _check_options(schemas, level, against, subject, table)
    finder = Finder(home=home, registry=registry, timeout_s=timeout)
    newer = finder.find(schemas[-1])
    if against is Against.REGISTRY:
        from k2cli.validation.gate import check_subject

        with finder.opened() as client:
            verdict = check_subject(client, newer, subject=subject, level=level)
    elif against is Against.TABLE:
        from k2cli.records import KINDS
        from k2cli.storage.lake import open_lake
        from k2cli.validation.gate import check_table

        with open_lake(settings(home)) as lake:
            verdict = check_table(lake, newer, KINDS[table] if table else None)
    else:
        from k2cli.validation.compatibility import check_schemas

        older = [finder.find(name) for name in schemas[:-1]]
        verdict = check_schemas(older, newer, level or Level.BACKWARD)
    _print_verdict(verdict, fmt)


def _check_options(
    schemas: list[str],
    level: Level | None,
    against: Against | None,
    subject: str | None,
    table: KindName | None,
) -> None:
    if against is None and len(schemas) == 1:
        raise UsageError(
            "nothing to check the schema against",
            hint=f"use k2 schema check OLD {schemas[0]}, or --against registry or table",
        )
    if against is not None and len(schemas) > 1:
        raise UsageError("--against takes one schema, the new one")
    if subject is not None and against is not Against.REGISTRY:
        raise UsageError("--subject requires --against registry")
    if against is not Against.TABLE and table is not None:
        raise UsageError("--table requires --against table")
    if against is Against.TABLE and level is not None:
        raise UsageError("--compatibility does not apply to tables")


def _print_verdict(verdict: "Verdict", fmt: TextOrJson) -> None:
    """Print the verdict; raise BadData if the schema does not fit."""
    at = f" at level {verdict.level}" if verdict.level else ""
    said = f"{verdict.schema} {{}} {', '.join(verdict.against)}{at}"
    if fmt is TextOrJson.JSON:
        output.data(json.dumps(verdict.document(), ensure_ascii=False))
    else:
        for reason in verdict.reasons:
            output.data(reason.text)
    for remark in verdict.notes:
        note(remark)
    if verdict.reasons:
        raise BadData(said.format("does not fit"), hint=verdict.hint)
    note(said.format("fits"))
