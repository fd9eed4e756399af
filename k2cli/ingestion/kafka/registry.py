"""The schema registry: look up schemas by id, and register k2's.

It speaks Confluent's REST API
(https://docs.confluent.io/platform/current/schema-registry/develop/api.html); schemas fetched by id
never change and are cached.
"""

import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import httpx2
import msgspec
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import OAuthTokenError, SchemaRegistryError

from k2cli.avro.named import NamedSchema
from k2cli.avro.types import load_json, parse_avro
from k2cli.errors import BadData, ConfigError, K2Error, NotFound, Unavailable
from k2cli.ingestion.kafka.bounded import bound_client
from k2cli.nearest import nearest_name
from k2cli.redaction import redact_url, split_urls
from k2cli.urls import check_url

T = TypeVar("T")
_URL: Final = "url"
AVRO: Final = "AVRO"
_LEVEL: Final = "BACKWARD"
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
_UNKNOWN: Final = range(40400, 40500)  # error codes for unknown subjects, versions and schemas
_NOT_OF_A_REGISTRY: Final = -1  # the client's error code for answers without one, as of a proxy
_WAIT_AGAIN_S: Final = 60.0
_UNKNOWN_S: Final = 5.0  # how long an unknown id is not requested again
_MAX_UNKNOWN: Final = 10_000
_ASKERS: Final = 8  # requests for many subjects run in parallel
_IDS: Final = 1 << 31  # how many a registry has: it counts in signed integers of 32 bits
_Id = Annotated[int, msgspec.Meta(ge=0, lt=_IDS)]
# What the client and k2 raise for JSON of another shape, and for answers that are not text.
_MISSHAPEN: Final = (AttributeError, LookupError, RecursionError, TypeError, ValueError)
# How Confluent's registry lists incompatibilities.
_DESCRIPTION: Final = re.compile(r"description:\s*'(.*?)'\s*,\s*additionalInfo", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaVersion:
    """One version of a subject; `text` is the schema as registered."""

    subject: str
    number: int
    id: int
    type: str  # AVRO, JSON or PROTOBUF
    text: str

    def parse(self) -> NamedSchema:
        """Parse the schema; it is named SUBJECT@VERSION.

        Raises:
            BadData: it is not Avro.
        """
        return parse_schema(self.type, self.text, f"{self.subject}@{self.number}")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectInfo:
    """A subject: its versions, the newest one, and the compatibility level for the next one."""

    name: str
    versions: int
    newest: SchemaVersion
    compatibility: str


class NotYet(NotFound):
    """The registry does not have a schema yet, but may have it soon."""


class Registry:
    """A schema registry. Created by `open_registry`, which also closes it."""

    def __init__(self, settings: Mapping[str, str], *, timeout_s: float, patience_s: float) -> None:
        if not settings.get(_URL):
            raise ConfigError(
                "no schema registry is configured: schema_registry.url is missing",
                hint="export K2_SCHEMA_REGISTRY_URL=http://127.0.0.1:8081",
            )
        for url in split_urls(settings[_URL]):
            check_url(url.strip(), "schema_registry.url", ConfigError)
        self._url = redact_url(settings[_URL])  # for messages only
        try:
            numbers = {key: float(settings[key]) for key in _NUMBERS if key in settings}
            self._client = SchemaRegistryClient({"timeout": timeout_s, **settings, **numbers})
            self._rest = self._client._rest_client  # noqa: SLF001
            for client in (self._rest.session, _token_client(self._rest)):
                if client is not None:
                    bound_client(client, timeout_s=numbers.get("timeout", timeout_s))
        except (TypeError, ValueError) as exc:
            raise ConfigError(f"wrong [schema_registry] settings: {exc}") from exc
        self._schemas: dict[int, Mapping[str, Any]] = {}
        self._unknown: dict[int, float] = {}  # ids, and when they were requested
        self._patience_s = patience_s
        self._waits_since = -math.inf  # monotonic

    def check(self) -> None:
        """Check that the registry answers.

        Raises:
            Unavailable: no answer.
        """
        with self._translated("cannot reach the schema registry"):
            self._client.get_schema_types()

    def schema(self, schema_id: int) -> Mapping[str, Any]:
        """Return the Avro schema with an id.

        Raises:
            NotYet: the registry does not have the id yet, but may soon: retry.
            NotFound: the registry does not have the id.
            BadData: it is not an Avro schema.
        """
        found = self._schemas.get(schema_id)
        if found is None:
            _check_id(schema_id)
            asked_at = self._unknown.get(schema_id, -math.inf)
            if time.monotonic() - asked_at < _UNKNOWN_S:
                raise NotFound(f"the schema registry does not have schema {schema_id}")
            of, text = self._fetch_known(schema_id)
            found = self._schemas[schema_id] = _avro(of, text, f"schema {schema_id}")
        return found

    def _fetch(self, schema_id: int) -> tuple[str, str]:
        """Return the type and the text of a schema; with references, the type says so."""
        with self._translated(f"cannot read schema {schema_id}"):
            found = self._client.get_schema(schema_id)
            of = _shaped(found.schema_type or AVRO, str)
            return f"{of} with references" if found.references else of, _shaped(
                found.schema_str, str
            )

    def _fetch_known(self, schema_id: int) -> tuple[str, str]:
        """Fetch a schema; remember for a while if the registry does not have it."""
        try:
            return self._fetch(schema_id)
        except NotFound as exc:
            now = time.monotonic()
            if now - self._waits_since > _WAIT_AGAIN_S:
                self._waits_since = now
            if now - self._waits_since < self._patience_s:
                raise NotYet(str(exc)) from exc
            if len(self._unknown) >= _MAX_UNKNOWN:
                self._unknown.clear()
            self._unknown[schema_id] = now
            raise

    def register(self, subject: str, avro: Any) -> int:
        """Register a schema under a subject unless it already exists; return its id.

        Raises:
            BadData: it is not an Avro schema, or is incompatible with the subject's versions.
        """
        with self._translated(f"cannot register a schema as {subject}"):
            return _shaped(self._client.register_schema(subject, _schema(avro)), _Id)

    def ensure(self, subject: str, avro: Mapping[str, Any]) -> tuple[int, bool]:
        """Register a schema with BACKWARD compatibility unless it already exists.

        Returns its id, and whether it is new.

        Raises:
            BadData: it is incompatible with the subject's versions.
        """
        try:
            return self.find(subject, avro), False
        except NotFound:
            schema_id = self.register(subject, avro)
        with self._translated(f"cannot set the compatibility of {subject}"):
            self._client.set_compatibility(subject, _LEVEL)
        return schema_id, True

    def find(self, subject: str, avro: Mapping[str, Any]) -> int:
        """Return the id of a schema under a subject.

        Raises:
            NotFound: it is not registered there.
        """
        with self._translated(f"cannot find the schema of {subject}"):
            return _shaped(self._client.lookup_schema(subject, _schema(avro)).schema_id, _Id)

    def subjects(self) -> list[str]:
        """List the subjects by name."""
        with self._translated("cannot list the subjects"):
            return sorted(_shaped(self._client.get_subjects(), list[str]))

    def describe(self, subjects: Sequence[str]) -> list[SubjectInfo]:
        """Describe subjects in this order; omit those deleted meanwhile."""
        with ThreadPoolExecutor(_ASKERS) as askers:
            found = list(askers.map(self._describe, subjects))
        return [info for info in found if info is not None]

    def versions(self, subject: str) -> list[SchemaVersion]:
        """Return the versions of a subject, oldest first.

        Raises:
            NotFound: the subject does not exist.
        """
        numbers = self._numbers(subject)
        with ThreadPoolExecutor(_ASKERS) as askers:
            return list(askers.map(lambda number: self.version(subject, number), numbers))

    def version(self, subject: str, number: int | None) -> SchemaVersion:
        """Return a version of a subject; None means the newest.

        Raises:
            NotFound: the subject or version does not exist.
        """
        try:
            with self._translated(f"cannot read version {number or 'latest'} of {subject}"):
                found = self._client.get_version(subject, number or "latest")
                return SchemaVersion(
                    subject=subject,
                    number=_shaped(found.version, _Id),
                    id=_shaped(found.schema_id, _Id),
                    type=_shaped(found.schema.schema_type or AVRO, str),
                    text=_shaped(found.schema.schema_str, str),
                )
        except NotFound as exc:
            self._numbers(subject)
            raise NotFound(
                f"{subject} has no version {number}", hint=f"k2 schema versions {subject}"
            ) from exc

    def text(self, schema_id: int) -> tuple[str, str]:
        """Return the type and the text of the schema with an id.

        Raises:
            NotFound: the registry does not have the id.
        """
        _check_id(schema_id)
        return self._fetch(schema_id)

    def level(self, subject: str) -> str:
        """Return the effective compatibility level of a subject."""
        path = f"config/{quote(subject, safe='')}"
        with self._translated(f"cannot read the compatibility level of {subject}"):
            # The client's own method cannot fall back to the global level if the subject has none.
            answer = self._rest.get(path, {"defaultToGlobal": "true"})
            return _shaped(answer["compatibilityLevel"], str)

    def misfits(self, subject: str, avro: Any, *, is_transitive: bool) -> list[str] | None:
        """Return why a schema cannot be the next version of a subject; None if it can.

        The list may be empty: some registries give no reasons. The caller must say whether the
        level is transitive, because some registries otherwise compare all versions at any level.

        Raises:
            NotFound: the subject does not exist.
            BadData: it is not an Avro schema.
        """
        self._numbers(subject)  # for an unknown subject a registry may answer yes
        which = "versions" if is_transitive else "versions/latest"
        path = f"compatibility/subjects/{quote(subject, safe='')}/{which}?verbose=true"
        with self._translated(f"cannot compare a schema with {subject}"):
            # The client's own method does not return the reasons.
            answer = self._rest.post(path, body=_schema(avro).to_dict())
            if _shaped(answer["is_compatible"], bool):
                return None
            messages = _shaped(answer.get("messages") or [], list[str])
        return [reason for message in messages for reason in _DESCRIPTION.findall(message)]

    def _describe(self, subject: str) -> SubjectInfo | None:
        try:
            return SubjectInfo(
                name=subject,
                versions=len(self._numbers(subject)),
                newest=self.version(subject, None),
                compatibility=self.level(subject),
            )
        except NotFound:
            return None

    def _numbers(self, subject: str) -> list[int]:
        try:
            with self._translated(f"cannot read the versions of {subject}"):
                return sorted(_shaped(self._client.get_versions(subject), list[_Id]))
        except NotFound as exc:
            near = nearest_name(subject, self.subjects())
            hint = f"did you mean {near}? " if near else ""
            raise NotFound(
                f"subject {subject} does not exist", hint=f"{hint}k2 schema list shows all subjects"
            ) from exc

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
        except OAuthTokenError as exc:
            raise Unavailable(
                f"{what}: {exc}",
                hint="check bearer.auth.* in the [schema_registry] settings: k2 config show",
            ) from exc
        except json.JSONDecodeError as exc:
            raise self._no_registry(what) from exc
        except _MISSHAPEN as exc:
            raise self._unreachable(f"{what}: unexpected answer from the registry") from exc

    def _translate(self, what: str, exc: SchemaRegistryError) -> K2Error:
        status = exc.http_status_code
        is_registry = exc.error_code != _NOT_OF_A_REGISTRY
        reason = _reasons(exc.error_message) if is_registry else f"HTTP {status} without a reason"
        message = f"{what}: {reason}"
        if status in _UNAUTHORIZED:
            return ConfigError(message, hint="check the [schema_registry] settings: k2 config show")
        if status == _NOT_FOUND:
            return NotFound(message) if exc.error_code in _UNKNOWN else self._no_registry(what)
        if status in (_CONFLICT, _INVALID):
            return BadData(message)
        return self._unreachable(message)

    def _no_registry(self, what: str) -> ConfigError:
        return ConfigError(
            f"{what}: the server at {self._url} is not a schema registry",
            hint="check the [schema_registry] settings: k2 config show",
        )

    def _unreachable(self, message: str) -> Unavailable:
        return Unavailable(message, hint=f"is the schema registry running at {self._url}?")


@contextmanager
def open_registry(
    settings: Mapping[str, str], *, timeout_s: float, patience_s: float = 0.0
) -> Iterator[Registry]:
    """Open a registry with `timeout_s` per answer, without sending a request yet.

    A registry that has just started may not have loaded its schemas: for `patience_s`, at most once
    a minute, an unknown schema raises `NotYet`.

    Raises:
        ConfigError: none is configured, or a setting is wrong.
    """
    with closing(Registry(settings, timeout_s=timeout_s, patience_s=patience_s)) as registry:
        yield registry


def _token_client(rest: Any) -> httpx2.Client | None:
    """Return the client that requests OAuth tokens, if one is configured."""
    # Providers of static tokens have no client.
    client: httpx2.Client | None = getattr(rest.bearer_field_provider, "client", None)
    return client


def parse_schema(of: str, text: str, name: str) -> NamedSchema:
    """Parse a schema as a registry has it: its type and its text.

    Raises:
        BadData: it is not Avro.
    """
    if of != AVRO:
        raise BadData(f"{name} has type {of}, not {AVRO}")
    return NamedSchema(name=name, avro=parse_avro(text, name))


def subject_of(topic: str) -> str:
    """Return the subject of the schemas of a topic's values."""
    return f"{topic}-value"


def _check_id(schema_id: int) -> None:
    """Check that a registry can have this id: it may answer others as if it were not a registry.

    Raises:
        NotFound: it cannot.
    """
    if schema_id >= _IDS:
        raise NotFound(f"no schema has id {schema_id}: ids end at {_IDS - 1}")


def _schema(avro: Any) -> Schema:
    return Schema(json.dumps(avro), AVRO)


def _shaped(value: object, of: type[T]) -> T:
    """Validate an answer of a registry.

    Raises:
        msgspec.ValidationError: it has another type.
    """
    return msgspec.convert(value, of)


def _reasons(message: object) -> str:
    """Shorten an answer to why a schema does not fit: it may repeat both schemas in full."""
    text = "" if message is None else str(message)
    return "; ".join(_DESCRIPTION.findall(text)) or text or "no reason given"


def _avro(of: str, text: str, what: str) -> Mapping[str, Any]:
    if of != AVRO:
        raise BadData(f"{what} is not a plain Avro schema")
    avro = load_json(text, what)
    if not isinstance(avro, dict):
        raise BadData(f"{what} is not a record")
    return avro
