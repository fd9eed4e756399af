"""`k2 schema check`: whether a schema can succeed others, a subject's or a table's."""

import json
from dataclasses import asdict, dataclass, field, replace
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
from k2cli.commands.schema.names import Finder, Found, of_version
from k2cli.commands.terminal import output
from k2cli.commands.terminal.streams import note
from k2cli.errors import BadData, NotFound, UsageError
from k2cli.kinds import KindName

if TYPE_CHECKING:
    from k2cli.ingestion.kafka.registry import Registry
    from k2cli.records import RecordKind
    from k2cli.storage.lake import Lake


class Against(StrEnum):
    """What a schema is checked against."""

    REGISTRY = "registry"
    TABLE = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reason:
    """Why a schema does not fit, for JSON; `text` has all of it in one line."""

    text: str
    direction: str | None = None  # BACKWARD or FORWARD
    reader: str | None = None
    writer: str | None = None
    field: str | None = None
    registry_passes: bool = False  # registries ignore logical types


@dataclass(frozen=True, slots=True, kw_only=True)
class _Verdict:
    schema: str
    against: list[str]
    level: str | None
    reasons: list[_Reason]
    registry_compatible: bool | None = None  # the registry's own result
    notes: list[str] = field(default_factory=list)
    hint: str | None = None


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
        with finder.opened() as client:
            verdict = _with_registry(client, newer, subject, level)
    elif against is Against.TABLE:
        from k2cli.storage.lake import open_lake

        with open_lake(settings(home)) as lake:
            verdict = _with_table(lake, newer, table)
    else:
        older = [finder.find(name) for name in schemas[:-1]]
        verdict = _offline(older, newer, level or Level.BACKWARD)
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


def _offline(older: list[Found], newer: Found, level: Level) -> _Verdict:
    return _Verdict(
        schema=newer.name,
        against=[old.name for old in (older if level.is_transitive else older[-1:])],
        level=level,
        reasons=_reasons(older, newer, level),
    )


def _reasons(older: list[Found], newer: Found, level: Level) -> list[_Reason]:
    from k2cli.avro.compatibility import breaches

    return [
        _Reason(
            text=str(breach),
            direction=breach.direction,
            reader=breach.reader,
            writer=breach.writer,
            field=breach.misfit.path or None,
            registry_passes=breach.misfit.is_let_pass,
        )
        for breach in breaches(level, [old.linked() for old in older], newer.linked())
    ]


def _with_registry(
    client: "Registry", newer: Found, subject: str | None, level: Level | None
) -> _Verdict:
    subject = subject or _subject_of(client, newer)
    versions = [client.version(subject, None)]
    there = _level(client.level(subject), subject)
    level = level or there
    if level.is_transitive:
        versions = client.versions(subject)
    verdict = _offline([of_version(version) for version in versions], newer, level)
    misfits = client.misfits(subject, newer.avro, is_transitive=there.is_transitive)
    says = "accept the schema" if misfits is None else f"refuse the schema: {_why(misfits)}"
    reasons, notes = verdict.reasons, []
    if level is not there:
        notes = [f"the registry, at the subject's own level {there}, would {says}"]
    elif misfits is not None:
        reasons = [*reasons, _Reason(text=f"the registry would {says}")]
    elif reasons:
        notes = [f"the registry itself would {says}"]
    return replace(verdict, reasons=reasons, registry_compatible=misfits is None, notes=notes)


def _why(misfits: list[str]) -> str:
    return "; ".join(misfits) or "without giving a reason"


def _level(name: str, subject: str) -> Level:
    try:
        return Level(name)
    except ValueError as exc:
        raise BadData(
            f"{subject} has an unknown compatibility level: {name}",
            hint=f"choose one with --compatibility: {', '.join(Level)}",
        ) from exc


def _subject_of(client: "Registry", newer: Found) -> str:
    """Find the only subject for records of the schema."""
    ending = f".{_kind_of(newer).name}-value"
    subjects = [name for name in client.subjects() if name.endswith(ending)]
    if len(subjects) == 1:
        return subjects[0]
    if not subjects:
        raise NotFound(
            f"no subject has a name that ends in {ending}",
            hint="list the subjects with k2 schema list; choose one with --subject",
        )
    raise UsageError(
        f"{len(subjects)} subjects have names that end in {ending}",
        hint=f"choose one: --subject {subjects[0]}",
    )


def _with_table(lake: "Lake", newer: Found, table: KindName | None) -> _Verdict:
    from k2cli.codec.kinds import KindDecoder
    from k2cli.codec.resolve import Incompatible
    from k2cli.codec.upgrade import V1_DEFAULTS
    from k2cli.records import KINDS

    kind = KINDS[table] if table else _kind_of(newer)
    reasons: list[_Reason] = []
    hint = None
    try:
        opened = lake.open(kind)
        KindDecoder(newer.avro, opened.evolved_kind(), V1_DEFAULTS)
        if _short_name(newer) == kind.avro["name"]:  # earlier versions are upgraded to it
            changes = opened.evolve(newer.avro, is_dry_run=True)
            reasons = [_Reason(text=f"the table lacks: {change}") for change in changes]
            hint = f"k2 table evolve {kind.name} --schema {newer.name}" if changes else None
    except (Incompatible, BadData) as exc:
        reasons = [_Reason(text=str(exc))]
    return _Verdict(schema=newer.name, against=[kind.table], level=None, reasons=reasons, hint=hint)


def _kind_of(newer: Found) -> "RecordKind":
    """Find the kind of a schema of any version, by the record's name."""
    from k2cli.codec.upgrade import UPGRADES
    from k2cli.records import KINDS

    name = _short_name(newer)
    named = {kind.avro["name"]: kind for kind in KINDS.values()}
    named |= {upgrade.avro["name"]: upgrade.kind for upgrade in UPGRADES.values()}
    if name not in named:
        raise UsageError(
            f"cannot infer the record kind of {newer.name} from its name {name}",
            hint="choose it with --subject or --table",
        )
    return named[name]


def _short_name(newer: Found) -> str:
    found = newer.avro.get("name", "") if isinstance(newer.avro, dict) else ""
    return str(found).rpartition(".")[2]


def _print_verdict(verdict: _Verdict, fmt: TextOrJson) -> None:
    """Print the verdict; raise BadData if the schema does not fit."""
    at = f" at level {verdict.level}" if verdict.level else ""
    said = f"{verdict.schema} {{}} {', '.join(verdict.against)}{at}"
    if fmt is TextOrJson.JSON:
        document = asdict(verdict) | {"compatible": not verdict.reasons}
        output.data(json.dumps(document, ensure_ascii=False))
    else:
        for reason in verdict.reasons:
            output.data(reason.text)
    for remark in verdict.notes:
        note(remark)
    if verdict.reasons:
        raise BadData(said.format("does not fit"), hint=verdict.hint)
    note(said.format("fits"))
