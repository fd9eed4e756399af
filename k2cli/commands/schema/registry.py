"""`k2 schema`: validate schemas, and register, list and show those of a registry."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from k2cli.commands.groups import AnswerOptions, takes_groups
from k2cli.commands.known import remember_subjects
from k2cli.commands.options import HomeOpt, RegistryOpt, TimeoutOpt, settings
from k2cli.commands.schema.check import check
from k2cli.commands.schema.diff import diff
from k2cli.commands.schema.names import Finder
from k2cli.commands.schema.show import show
from k2cli.commands.schema.validate import validate
from k2cli.commands.terminal import output
from k2cli.errors import ConfigError, UsageError
from k2cli.kinds import KindName

if TYPE_CHECKING:
    import pyarrow as pa

schema_app = typer.Typer(
    help="Validate, compare and show schemas: built in, in files, and in the registry.",
    no_args_is_help=True,
)

_VALUE = "-value"

SubjectArg = Annotated[
    str,
    typer.Argument(help="Subject, such as market.crypto.trades-value.", show_default=False),
]
SchemaArg = Annotated[
    str | None,
    typer.Argument(
        metavar="SCHEMA",
        help="FILE.avsc, - for stdin, a name such as trade_v2, or SUBJECT@VERSION.",
        show_default="the built-in schema of the subject's record kind",
    ),
]
KindOpt = Annotated[
    KindName | None,
    typer.Option(
        "--kind",
        help="Register the built-in schema of this record kind.",
        show_default="inferred from the topic's name",
    ),
]


@schema_app.command()
def register(
    subject: SubjectArg,
    schema: SchemaArg = None,
    kind: KindOpt = None,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Register a schema as the next version of a subject, and print its id.

    A schema that already exists keeps its id. No other setting is changed.

    Example: k2 schema register market.crypto.trades-value
    """
    finder = Finder(home=home, registry=registry, timeout_s=timeout)
    avro = _schema(finder, subject, schema, kind)
    with finder.opened() as client:
        output.data(str(client.register(subject, avro)))


@schema_app.command("list")
@takes_groups
def list_subjects(
    *,
    ours: Annotated[
        bool, typer.Option("--ours", help="List the built-in schemas instead, offline.")
    ] = False,
    out: AnswerOptions,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """List the subjects: versions, newest version and its id, compatibility level.

    Example: k2 schema list --format json
    """
    import pyarrow as pa

    chosen = out.choose()
    if ours:
        output.print_rows(chosen, _ours(), details=("record", "fields"))
        return
    try:
        with Finder(home=home, registry=registry, timeout_s=timeout).opened() as client:
            infos = client.describe(client.subjects())
            remember_subjects(settings(home), (info.name for info in infos))
    except ConfigError as exc:
        hints = [exc.hint, "without a registry: k2 schema list --ours"]
        raise ConfigError(str(exc), hint="; ".join(filter(None, hints))) from exc
    columns = {
        "subject": pa.array([info.name for info in infos], pa.string()),
        "versions": pa.array([info.versions for info in infos], pa.int64()),
        "newest": pa.array([info.newest.number for info in infos], pa.int64()),
        "id": pa.array([info.newest.id for info in infos], pa.int64()),
        "type": pa.array([info.newest.type for info in infos], pa.string()),
        "compatibility": pa.array([info.compatibility for info in infos], pa.string()),
    }
    output.print_rows(chosen, pa.table(columns), details=("type", "id", "versions"))


@schema_app.command()
@takes_groups
def versions(
    *,
    subject: SubjectArg,
    out: AnswerOptions,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """List the versions of a subject and their ids, oldest first.

    Example: k2 schema versions market.crypto.trades-value
    """
    import pyarrow as pa

    chosen = out.choose()
    with Finder(home=home, registry=registry, timeout_s=timeout).opened() as client:
        found = client.versions(subject)
    columns = {
        "version": pa.array([version.number for version in found], pa.int64()),
        "id": pa.array([version.id for version in found], pa.int64()),
        "type": pa.array([version.type for version in found], pa.string()),
    }
    output.print_rows(chosen, pa.table(columns))


def _schema(finder: Finder, subject: str, name: str | None, kind: KindName | None) -> Any:
    """Return the schema of a name, or the built-in schema of a kind."""
    if name is not None and kind is not None:
        raise UsageError("FILE.avsc and --kind are mutually exclusive")
    from k2cli.records import KINDS, kind_of_topic, unknown_kind

    if name is not None:
        return finder.find(name).avro
    if kind is not None:
        return KINDS[kind].avro
    if not subject.endswith(_VALUE):
        raise UsageError(
            f"{subject} is not the subject of a topic's values, which ends in {_VALUE}",
            hint=f"use {subject}{_VALUE}, --kind {KindName.TRADES}, or a FILE.avsc",
        )
    inferred = kind_of_topic(subject.removesuffix(_VALUE))
    if inferred is None:
        hint = f"{' or '.join(f'--kind {each}' for each in KINDS)}, or a FILE.avsc"
        raise unknown_kind(f"from {subject}", hint=hint)
    return inferred.avro


def _ours() -> "pa.Table":
    import pyarrow as pa

    from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema

    schemas = [builtin_schema(name) for name in BUILTIN_SCHEMAS]
    columns = {
        "name": list(BUILTIN_SCHEMAS),
        "record": [f"{schema['namespace']}.{schema['name']}" for schema in schemas],
        "fields": [len(schema["fields"]) for schema in schemas],
        "doc": [schema["doc"] for schema in schemas],
    }
    return pa.table(columns)


schema_app.command()(show)
schema_app.command()(diff)
schema_app.command()(check)
schema_app.command()(validate)
