"""Find schemas by name: a built-in schema, a file, or a subject."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from k2cli.commands.kafka import registry_settings
from k2cli.commands.options import TIMEOUT_S, settings
from k2cli.errors import BadData, ConfigError, NotFound
from k2cli.files import STDIN, open_input

if TYPE_CHECKING:
    from k2cli.avro.named import NamedSchema
    from k2cli.ingestion.kafka.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """Finds schemas; a registry is opened only for subjects."""

    home: Path | None
    registry: list[str] | None
    timeout_s: float | None

    def find(self, name: str) -> "NamedSchema":
        """Find a schema: `trade_v2`, `./trade.avsc`, `-`, or SUBJECT or SUBJECT@VERSION.

        Raises:
            NotFound: the schema, file or subject does not exist.
            BadData: it is not a valid Avro schema.
        """
        from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema
        from k2cli.avro.named import NamedSchema

        if name in BUILTIN_SCHEMAS:
            return NamedSchema(name=name, avro=dict(builtin_schema(name)))
        if is_file(name):
            return _valid(read_schema(name))
        subject, _, number = name.partition("@")
        try:
            with self.opened() as client:
                version = client.version(subject, version_number(number or None))
                return _valid(version.parse())
        except NotFound as exc:
            if not name.isidentifier():  # can only be a subject
                raise
            raise NotFound(
                f"{exc}; built-in schemas: {', '.join(BUILTIN_SCHEMAS)}", hint=exc.hint
            ) from exc
        except ConfigError as exc:
            reason = (
                f"{name} is not a built-in schema ({', '.join(BUILTIN_SCHEMAS)}) or a file; {exc}"
            )
            raise ConfigError(reason, hint=exc.hint) from exc

    @contextmanager
    def opened(self) -> "Iterator[Registry]":
        """Open the registry. A person waits: one attempt within --timeout, not four."""
        from k2cli.ingestion.kafka.registry import open_registry

        given = {"max.retries": "0", **registry_settings(settings(self.home), self.registry)}
        with open_registry(given, timeout_s=self.timeout_s or TIMEOUT_S) as client:
            yield client


def _valid(found: "NamedSchema") -> "NamedSchema":
    from k2cli.avro.validation import check_valid

    check_valid(found.avro, found.name)
    return found


def is_file(name: str) -> bool:
    """Return whether a name is the path of a file, existing or not, or stdin."""
    return name == STDIN or "/" in name or name.endswith(".avsc") or Path(name).exists()


def read_schema(name: str) -> "NamedSchema":
    """Read the schema of a file, or of stdin.

    Raises:
        NotFound, UsageError: the file cannot be read.
        BadData: it is not an Avro schema.
    """
    from k2cli.avro.named import NamedSchema
    from k2cli.avro.types import parse_avro

    called = "stdin" if name == STDIN else name
    return NamedSchema(name=called, avro=parse_avro(_read(Path(name)), called))


def version_number(version: str | None) -> int | None:
    """Parse the number of a version; None is the newest one."""
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
