"""Schemas by name, the same way in all commands: one of ours, a file, or a subject."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from k2cli.commands.kafka import registry_settings
from k2cli.commands.options import TIMEOUT_S, settings
from k2cli.errors import BadData, ConfigError, NotFound
from k2cli.files import STDIN, open_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from k2cli.avro.compatibility import Schema
    from k2cli.ingestion.kafka.registry import Registry, SchemaVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A schema that was found, and what it is called."""

    name: str
    avro: Any

    def record(self) -> "Mapping[str, Any]":
        """Return it, where it is that of a record.

        Raises:
            BadData: it is of something else.
        """
        if not isinstance(self.avro, dict) or self.avro.get("type") != "record":
            raise BadData(f"{self.name} is not the schema of a record")
        return self.avro

    def linked(self) -> "Schema":
        """Return it with its names resolved."""
        from k2cli.avro.compatibility import Schema
        from k2cli.avro.types import link

        return Schema(name=self.name, type=link(self.avro))


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """Finds schemas; a registry is opened only for subjects."""

    home: Path | None
    registry: list[str] | None
    timeout_s: float | None

    def find(self, name: str) -> Found:
        """Find a schema: `trade_v2`, `./trade.avsc`, `-`, or SUBJECT or SUBJECT@VERSION.

        Raises:
            NotFound: there is no such schema, file or subject.
            BadData: it is not a valid Avro schema.
        """
        from k2cli.avro.ours import OURS, our_schema

        if name in OURS:
            return Found(name=name, avro=dict(our_schema(name)))
        if is_file(name):
            return _valid(read_schema(name))
        subject, _, number = name.partition("@")
        try:
            with self.opened() as client:
                version = client.version(subject, version_number(number or None))
                return _valid(of_version(version))
        except NotFound as exc:
            if not name.isidentifier():  # no doubt a subject
                raise
            raise NotFound(f"{exc}; ours are {', '.join(OURS)}", hint=exc.hint) from exc
        except ConfigError as exc:
            reason = f"{name} is none of our schemas ({', '.join(OURS)}) and no file; {exc}"
            raise ConfigError(reason, hint=exc.hint) from exc

    @contextmanager
    def opened(self) -> "Iterator[Registry]":
        """Open the registry. A person waits: one try in the time of --timeout, not four."""
        from k2cli.ingestion.kafka.registry import open_registry

        given = {"max.retries": "0", **registry_settings(settings(self.home), self.registry)}
        with open_registry(given, timeout_s=self.timeout_s or TIMEOUT_S) as client:
            yield client


def _valid(found: Found) -> Found:
    from k2cli.avro.validation import check_valid

    check_valid(found.avro, found.name)
    return found


def is_file(name: str) -> bool:
    """Tell whether a name is that of a file, there or not, or stdin."""
    return name == STDIN or "/" in name or name.endswith(".avsc") or Path(name).exists()


def read_schema(name: str) -> Found:
    """Read the schema of a file, or of stdin.

    Raises:
        NotFound, UsageError: the file cannot be read.
        BadData: it is not an Avro schema.
    """
    from k2cli.avro.types import parse_avro

    called = "stdin" if name == STDIN else name
    return Found(name=called, avro=parse_avro(_read(Path(name)), called))


def of_version(version: "SchemaVersion") -> Found:
    """Parse a version of a subject.

    Raises:
        BadData: it is not Avro.
    """
    name = f"{version.subject}@{version.number}"
    return Found(name=name, avro=parse_registered(version.type, version.text, name))


def parse_registered(of: str, text: str, what: str) -> Any:
    """Parse what a registry has.

    Raises:
        BadData: it is not Avro.
    """
    from k2cli.avro.types import parse_avro
    from k2cli.ingestion.kafka.registry import AVRO

    if of != AVRO:
        raise BadData(f"{what} is of type {of}, not {AVRO}")
    return parse_avro(text, what)


def version_number(version: str | None) -> int | None:
    """Read the number of a version; None is the newest one."""
    if version is None or version == "latest":
        return None
    if not version.isascii() or not version.isdigit() or not int(version):
        raise typer.BadParameter(f"{version!r} is not a number or latest", param_hint="--version")
    return int(version)


def _read(file: Path) -> str:
    try:
        with open_input(file) as stream:
            return stream.read().decode()
    except UnicodeDecodeError as exc:
        raise BadData(f"{file} is not JSON: it is not UTF-8") from exc
