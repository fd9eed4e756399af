"""The schema registry: which schema a message was written with, and the ids of ours.

It speaks Confluent's REST API
(https://docs.confluent.io/platform/current/schema-registry/develop/api.html); what is fetched by
id never changes and is kept.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final

import httpx2
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from k2cli.errors import BadData, ConfigError, Conflict, K2Error, NotFound, Unavailable

_URL: Final = "url"
_NUMBERS: Final = (
    "timeout",
    "cache.capacity",
    "cache.latest.ttl.sec",
    "max.retries",
    "retries.wait.ms",
    "retries.max.wait.ms",
)
_UNAUTHORIZED: Final = (401, 403)
_NOT_FOUND: Final = 404
_CONFLICT: Final = 409
_INVALID: Final = 422


class Registry:
    """A schema registry. Made by `open_registry`, which also closes it."""

    def __init__(self, settings: Mapping[str, str], *, timeout_s: float) -> None:
        if not settings.get(_URL):
            raise ConfigError(
                "no schema registry is set up: schema_registry.url is missing",
                hint="export K2_SCHEMA_REGISTRY_URL=http://127.0.0.1:8081",
            )
        self._url = settings[_URL]
        try:
            numbers = {key: float(settings[key]) for key in _NUMBERS if key in settings}
            self._client = SchemaRegistryClient({"timeout": timeout_s, **settings, **numbers})
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"wrong [schema_registry] settings: {exc}") from exc
        self._schemas: dict[int, Mapping[str, Any]] = {}

    def check(self) -> None:
        """Ask for something small.

        Raises:
            Unavailable: no answer.
        """
        with self._translated("cannot reach the schema registry"):
            self._client.get_schema_types()

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        """Return the Avro schema with an id.

        Raises:
            NotFound: the registry does not know the id.
            BadData: it is not an Avro schema.
        """
        found = self._schemas.get(schema_id)
        if found is None:
            with self._translated(f"cannot read schema {schema_id}"):
                schema = self._client.get_schema(schema_id)
            found = self._schemas[schema_id] = _avro(schema, f"schema {schema_id}")
        return found

    def register(self, subject: str, avro: Mapping[str, Any]) -> int:
        """Register a schema under a subject, if it is not there yet; return its id.

        Raises:
            Conflict: it is not compatible with what the subject has.
        """
        with self._translated(f"cannot register a schema as {subject}"):
            return int(self._client.register_schema(subject, _schema(avro)))

    def find(self, subject: str, avro: Mapping[str, Any]) -> int:
        """Return the id of a schema under a subject.

        Raises:
            NotFound: it is not registered there.
        """
        with self._translated(f"cannot find the schema of {subject}"):
            found = self._client.lookup_schema(subject, _schema(avro)).schema_id
        if found is None:
            raise BadData(f"the registry at {self._url} told no id of {subject}")
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        try:
            yield
        except SchemaRegistryError as exc:
            raise self._translate(what, exc) from exc
        except httpx2.HTTPError as exc:
            raise self._unreachable(f"{what}: {exc}") from exc

    def _translate(self, what: str, exc: SchemaRegistryError) -> K2Error:
        message = f"{what}: {exc.error_message}"
        status = exc.http_status_code
        if status in _UNAUTHORIZED:
            return ConfigError(message, hint="see the [schema_registry] settings: k2 config show")
        if status == _NOT_FOUND:
            return NotFound(message)
        if status == _CONFLICT:
            return Conflict(message)
        if status == _INVALID:
            return BadData(message)
        return self._unreachable(message)

    def _unreachable(self, message: str) -> Unavailable:
        return Unavailable(message, hint=f"is the schema registry up at {self._url}?")


@contextmanager
def open_registry(settings: Mapping[str, str], *, timeout_s: float) -> Iterator[Registry]:
    """Open a registry that has `timeout_s` for an answer. Nothing is asked of it yet.

    Raises:
        ConfigError: none is set up, or a setting is wrong.
    """
    with closing(Registry(settings, timeout_s=timeout_s)) as registry:
        yield registry


def subject_of(topic: str) -> str:
    """Return the subject under which the schemas of a topic's values stand."""
    return f"{topic}-value"


def _schema(avro: Mapping[str, Any]) -> Schema:
    return Schema(json.dumps(avro), "AVRO")


def _avro(schema: Schema, what: str) -> Mapping[str, Any]:
    if schema.schema_type != "AVRO" or schema.references:
        raise BadData(f"{what} is not a plain Avro schema")
    avro = json.loads(schema.schema_str or "")
    if not isinstance(avro, dict):
        raise BadData(f"{what} is not a record")
    return avro
