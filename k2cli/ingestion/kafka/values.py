"""Describe the value of a message for people, as far as it can be decoded.

Rows are decoded elsewhere, and fast; this is for values that were rejected.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import fastavro

from k2cli.avro.types import load_json
from k2cli.avro.writer import writer_schema
from k2cli.codec.decode import UNDECODED
from k2cli.codec.encode import HEADER_BYTES, MAGIC
from k2cli.codec.resolve import record_name
from k2cli.errors import K2Error
from k2cli.ingestion.kafka.registry import AVRO, Registry

_SHOWN_BYTES: Final = 256
_LINE_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueInfo:
    """A value as text, record or first bytes, and what is wrong with it."""

    size_bytes: int | None  # None: no value
    text: str | None = None
    schema_id: int | None = None
    schema: str | None = None  # the record's name
    fields: Mapping[str, Any] | None = (
        None  # those that decode; for types other than records: value
    )
    problem: str | None = None
    hex: str | None = None  # of the first bytes, if nothing else can be shown


def describe_value(value: bytes | None, registry: Registry | str) -> ValueInfo:
    """Inspect a value; in place of a registry, pass a text that says why there is none."""
    if value is None:
        return ValueInfo(size_bytes=None, problem="a null value (tombstone)")
    if len(value) >= HEADER_BYTES and value[0] == MAGIC:
        return _describe_record(value, registry)
    try:
        return ValueInfo(size_bytes=len(value), text=value.decode())
    except UnicodeDecodeError:
        return ValueInfo(
            size_bytes=len(value),
            problem="neither in the wire format of a schema registry, nor text",
            hex=_first(value),
        )


def _describe_record(value: bytes, registry: Registry | str) -> ValueInfo:
    schema_id = int.from_bytes(value[1:HEADER_BYTES])
    name: str | None = None
    fields: Mapping[str, Any] | None = None
    problem: str | None
    if isinstance(registry, str):
        problem = registry
    else:
        try:
            of, text = registry.text(schema_id)
            if of == AVRO:
                schema = load_json(text, f"schema {schema_id}")
                name = record_name(schema)
                fields, problem = _decode(value[HEADER_BYTES:], schema)
            else:
                problem = f"schema {schema_id} is of type {of}, not {AVRO}"
        except K2Error as exc:
            problem = str(exc)
    return ValueInfo(
        size_bytes=len(value),
        schema_id=schema_id,
        schema=name,
        fields=fields,
        problem=problem,
        hex=_first(value) if problem else None,
    )


def _decode(body: bytes, schema: Any) -> tuple[Mapping[str, Any], str | None]:
    """Decode as many fields as possible; describe what is wrong with the next one."""
    if record_name(schema) is None:
        field = {"name": "value", "type": schema}
        schema = {"type": "record", "name": "k2", "fields": [field]}
    source = io.BytesIO(body)
    found: dict[str, Any] = {}
    for field in writer_schema(schema)["fields"]:
        try:
            found[field["name"]] = fastavro.schemaless_reader(source, field["type"], None)
        except (*UNDECODED, fastavro.schema.SchemaParseException) as exc:
            reason = "the value ends in it" if isinstance(exc, EOFError) else str(exc)
            return found, f"field {field['name']}: {reason or type(exc).__name__}"
    left = len(body) - source.tell()
    return found, f"{left} extra bytes after the record" if left else None


def _first(value: bytes) -> str:
    return value[:_SHOWN_BYTES].hex()


def hex_lines(text: str) -> list[str]:
    """Format hexadecimal digits as a dump: offset, bytes, and their printable ASCII."""
    raw = bytes.fromhex(text)
    lines = []
    for begin in range(0, len(raw), _LINE_BYTES):
        part = raw[begin : begin + _LINE_BYTES]
        shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in part)  # noqa: PLR2004
        lines.append(f"{begin:08x}  {part.hex(' '):{3 * _LINE_BYTES - 1}}  |{shown}|")
    return lines
