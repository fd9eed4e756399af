"""`k2 schema`: the schemas of a registry, registered, listed, shown and compared."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k2cli.commands import output
from k2cli.commands.consume import KindName
from k2cli.commands.kafka import registry_settings
from k2cli.commands.options import (
    TIMEOUT_S,
    ForceOpt,
    FormatOpt,
    HomeOpt,
    OutputOpt,
    RegistryOpt,
    TimeoutOpt,
    settings,
)
from k2cli.errors import BadData, NotFound, UsageError

if TYPE_CHECKING:
    from k2cli.ingestion.kafka.registry import Registry

schema_app = typer.Typer(
    help="Register, look at and compare schemas of the registry.", no_args_is_help=True
)

_AVRO = "AVRO"
_VALUE = "-value"

SubjectArg = Annotated[
    str,
    typer.Argument(help="Subject, such as market.crypto.trades-value.", show_default=False),
]
FileArg = Annotated[
    Path | None,
    typer.Argument(
        metavar="FILE.avsc",
        help="Avro schema, - for stdin.",
        show_default="ours, of the kind that the subject's topic holds",
    ),
]
KindOpt = Annotated[
    KindName | None,
    typer.Option(
        "--kind", help="Our schema of this kind.", show_default="by the end of the topic's name"
    ),
]


@schema_app.command()
def register(
    subject: SubjectArg,
    file: FileArg = None,
    kind: KindOpt = None,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Register a schema as the next version of a subject, and print its id.

    A schema that is there already keeps its id. Nothing else is set.

    Example: k2 schema register market.crypto.trades-value
    """
    avro = _schema(subject, file, kind)
    with _opened(home, registry, timeout) as client:
        output.data(str(client.register(subject, avro)))


@schema_app.command("list")
def list_subjects(
    fmt: FormatOpt = None,
    out: OutputOpt = None,
    force: ForceOpt = False,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """List the subjects: versions, the newest one and its id, and the compatibility level.

    Example: k2 schema list --format json
    """
    import pyarrow as pa

    chosen = output.choose_output(fmt, out, is_forced=force)
    with _opened(home, registry, timeout) as client:
        infos = client.describe(client.subjects())
    columns = {
        "subject": pa.array([info.name for info in infos], pa.string()),
        "versions": pa.array([info.versions for info in infos], pa.int64()),
        "newest": pa.array([info.newest.number for info in infos], pa.int64()),
        "id": pa.array([info.newest.id for info in infos], pa.int64()),
        "type": pa.array([info.newest.type for info in infos], pa.string()),
        "compatibility": pa.array([info.compatibility for info in infos], pa.string()),
    }
    output.write_table(chosen, pa.table(columns))


@schema_app.command()
def versions(
    subject: SubjectArg,
    fmt: FormatOpt = None,
    out: OutputOpt = None,
    force: ForceOpt = False,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """List the versions of a subject and their ids, oldest first.

    Example: k2 schema versions market.crypto.trades-value
    """
    import pyarrow as pa

    chosen = output.choose_output(fmt, out, is_forced=force)
    with _opened(home, registry, timeout) as client:
        found = client.versions(subject)
    columns = {
        "version": pa.array([version.number for version in found], pa.int64()),
        "id": pa.array([version.id for version in found], pa.int64()),
        "type": pa.array([version.type for version in found], pa.string()),
    }
    output.write_table(chosen, pa.table(columns))


@schema_app.command()
def show(
    subject: Annotated[
        str | None, typer.Argument(help="Subject, unless --id is given.", show_default=False)
    ] = None,
    version: Annotated[
        str | None,
        typer.Option("--version", metavar="NUMBER", help="Which one.", show_default="latest"),
    ] = None,
    schema_id: Annotated[
        int | None, typer.Option("--id", min=0, help="The schema with this id instead.")
    ] = None,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Print an Avro schema as JSON.

    Example: k2 schema show market.crypto.trades-value --version 1
    """
    if (subject is None) == (schema_id is None):
        raise UsageError("name a subject, or an id with --id")
    if schema_id is not None and version is not None:
        raise UsageError("--id and --version exclude each other")
    number = _number(version)
    with _opened(home, registry, timeout) as client:
        if subject is not None:
            found = client.version(subject, number)
            what, of, text = f"version {found.number} of {subject}", found.type, found.text
        else:
            what = f"schema {schema_id}"
            of, text = client.text(schema_id or 0)
    if of != _AVRO:
        raise BadData(f"{what} is of type {of}, not {_AVRO}")
    try:
        output.data(json.dumps(json.loads(text), indent=2, ensure_ascii=False))
    except ValueError as exc:
        raise BadData(f"{what} is not JSON: {exc}") from exc


@schema_app.command()
def check(
    subject: SubjectArg,
    file: FileArg = None,
    kind: KindOpt = None,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Ask the registry whether a schema could be the next version of a subject.

    Exit code 0 if it is compatible at the subject's level, 6 if not. Nothing is registered.

    Example: k2 schema check market.crypto.trades-value trade.avsc
    """
    avro = _schema(subject, file, kind)
    with _opened(home, registry, timeout) as client:
        reasons = client.misfits(subject, avro)
        level = client.level(subject)
    if reasons is None:
        output.note(f"the schema fits {subject} at level {level}")
        return
    told = "".join(f"\n  {reason}" for reason in reasons)
    raise BadData(
        f"the schema does not fit {subject} at level {level}{':' if told else ''}{told}",
        hint=None if told else f"the registry does not say why; k2 schema show {subject}",
    )


@contextmanager
def _opened(
    home: Path | None, registry: list[str] | None, timeout_s: float | None
) -> "Iterator[Registry]":
    from k2cli.ingestion.kafka.registry import open_registry

    given = registry_settings(settings(home), registry)
    # A person waits: one try in the time of --timeout. The client's own are four.
    with open_registry({"max.retries": "0", **given}, timeout_s=timeout_s or TIMEOUT_S) as client:
        yield client


def _schema(subject: str, file: Path | None, kind: KindName | None) -> Any:
    """Return the schema of a file, or ours."""
    if file is not None and kind is not None:
        raise UsageError("FILE.avsc and --kind exclude each other")
    from k2cli.ingestion.kafka.registry import parse_avro
    from k2cli.records import KINDS

    if file is not None:
        return parse_avro(_read(file), "stdin" if str(file) == "-" else str(file))
    if kind is not None:
        return KINDS[kind].avro
    if not subject.endswith(_VALUE):
        raise UsageError(
            f"{subject} is not the subject of a topic's values: those end in {_VALUE}",
            hint=f"{subject}{_VALUE}, or --kind {KindName.TRADES}, or a FILE.avsc",
        )
    name = subject.removesuffix(_VALUE).rpartition(".")[2]
    if name not in KINDS:
        raise UsageError(
            f"the name of {subject} does not tell what its topic holds",
            hint=f"{' or '.join(f'--kind {each}' for each in KINDS)}, or a FILE.avsc",
        )
    return KINDS[name].avro


def _read(file: Path) -> str:
    try:
        return sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"{file} does not exist") from exc
    except UnicodeDecodeError as exc:
        raise BadData(f"{file} is not JSON: it is not UTF-8") from exc
    except OSError as exc:
        raise UsageError(f"cannot read {file}: {exc.strerror}") from exc


def _number(version: str | None) -> int | None:
    if version is None or version == "latest":
        return None
    if not version.isascii() or not version.isdigit() or not int(version):
        raise typer.BadParameter(f"{version!r} is not a number or latest", param_hint="--version")
    return int(version)
