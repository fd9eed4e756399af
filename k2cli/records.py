"""The record kinds, derived from the Avro schemas in schemas/*.avsc.

The .avsc files are the only definition of every record. A `RecordKind` has what the rest of k2
needs: its Arrow schema (the exact schema of every RecordBatch), its table, its special columns.
Enums become strings; docs become Arrow field metadata.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2cli.errors import UsageError
from k2cli.kinds import KindName

TOPIC_PREFIX: Final = "market."  # of the topics that k2 creates, and of their subjects

_PRIMITIVES: Final[Mapping[str, pa.DataType]] = {
    "string": pa.string(),
    "long": pa.int64(),
    "int": pa.int32(),
    "boolean": pa.bool_(),
}
_LOGICAL: Final[Mapping[str, pa.DataType]] = {
    "timestamp-micros": pa.timestamp("us", tz="UTC"),
    "timestamp-millis": pa.timestamp("ms", tz="UTC"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordKind:
    """One record kind; `kinds.py` lists them and describes the fields."""

    name: str  # for users, and the last part of topic names
    table: str  # Iceberg table name
    arrow: pa.Schema  # columns in the order of the .avsc
    id_column: str  # {exchange}-{the exchange's id}
    sort_by: tuple[str, ...]  # order of the rows within one commit, and of answers
    partition_by: str  # day-partition column
    is_dense: bool  # ids increase by one, so a gap is suspected loss
    compared: tuple[str, ...]  # columns in which two records of one id may not differ
    avro: Mapping[str, Any] = field(compare=False, repr=False)  # the .avsc

    def type_of(self, column: str) -> pa.DataType:
        """Return the Arrow type of a column."""
        return self.arrow.field(column).type


def schema_text(stem: str) -> str:
    """Return the text of schemas/{stem}.avsc, from the wheel or from the checkout."""
    package = Path(__file__).parent
    for folder in (package / "schemas", package.parent / "schemas"):
        path = folder / f"{stem}.avsc"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise FileNotFoundError(f"schemas/{stem}.avsc")


def avro_to_arrow_schema(avsc: Mapping[str, Any]) -> pa.Schema:
    """Derive the Arrow schema of an Avro record.

    Decimals keep precision and scale, timestamps become UTC, enums and strings `string`;
    a union with null makes the field nullable.

    Raises:
        ValueError: a type that no k2 column has: other unions, nested records, floats.
    """
    return pa.schema(
        [arrow_field(each["name"], each["type"], each.get("doc")) for each in avsc["fields"]]
    )


def arrow_field(name: str, avro: Any, doc: str | None = None) -> pa.Field:
    """Derive one column. See `avro_to_arrow_schema`."""
    is_nullable = isinstance(avro, list) and "null" in avro
    if is_nullable:
        branches = [branch for branch in avro if branch != "null"]
        avro = branches[0] if len(branches) == 1 else branches
    metadata = {"doc": doc} if doc else None
    return pa.field(name, _data_type(avro), nullable=is_nullable, metadata=metadata)


def _data_type(avro: Any) -> pa.DataType:
    match avro:
        case str() if avro in _PRIMITIVES:
            return _PRIMITIVES[avro]
        case {"logicalType": "decimal", "precision": int(precision), "scale": int(scale)}:
            return pa.decimal128(precision, scale)
        case {"logicalType": str(logical)} if logical in _LOGICAL:
            return _LOGICAL[logical]
        case {"type": "enum"}:
            return pa.string()
        case {"type": "array", "items": items}:
            return pa.list_(arrow_field("element", items))
        case {"type": "map", "values": values}:
            return pa.map_(pa.string(), arrow_field("value", values))
        case _:
            raise ValueError(f"no Arrow type for the Avro type {avro!r}")


def arrow_to_avro_type(of: pa.DataType) -> Any:
    """Return the Avro type of a column; the inverse of `arrow_field`, except for enums.

    Raises:
        ValueError: a type that no k2 column has.
    """
    for name, known in _PRIMITIVES.items():
        if of == known:
            return name
    for logical, known in _LOGICAL.items():
        if of == known:
            return {"type": "long", "logicalType": logical}
    if pa.types.is_decimal128(of):
        size = {"precision": of.precision, "scale": of.scale}
        return {"type": "bytes", "logicalType": "decimal", **size}
    if pa.types.is_list(of):
        return {"type": "array", "items": _avro_field_type(of.value_field)}
    if pa.types.is_map(of) and of.key_type == pa.string():
        return {"type": "map", "values": _avro_field_type(of.item_field)}
    raise ValueError(f"no Avro type for the Arrow type {of}")


def _avro_field_type(column: pa.Field) -> Any:
    avro = arrow_to_avro_type(column.type)
    return ["null", avro] if column.nullable else avro


def is_wider(one: pa.DataType, other: pa.DataType) -> bool:
    """Return whether this type is a strict superset of the other."""
    if pa.types.is_decimal(one) and pa.types.is_decimal(other):
        return bool(one.scale == other.scale and one.precision > other.precision)
    return bool(one == pa.int64() and other == pa.int32())


def evolve_kind(kind: RecordKind, columns: pa.Schema) -> RecordKind:
    """Return a kind with the columns of its evolved table.

    Its columns may be wider, and there may be more: these come last and are optional. A column of
    an unsupported type is omitted.
    """
    fields = []
    for each in kind.avro["fields"]:
        ours = kind.arrow.field(each["name"])
        there = columns.field(each["name"]) if each["name"] in columns.names else ours
        wide = (
            {**each, "type": _avro_field_type(there)} if is_wider(there.type, ours.type) else each
        )
        fields.append(wide)
    for column in columns:
        if column.name not in kind.arrow.names:
            with suppress(ValueError):
                avro = {"name": column.name, "type": ["null", arrow_to_avro_type(column.type)]}
                doc = (column.metadata or {}).get(b"doc", b"").decode()
                fields.append({**avro, "doc": doc, "default": None})
    if fields == kind.avro["fields"]:
        return kind
    avro = {**kind.avro, "fields": fields}
    return replace(kind, avro=avro, arrow=avro_to_arrow_schema(avro))


def _kind(name: KindName) -> RecordKind:
    traits = name.traits
    avro = json.loads(schema_text(traits.schema))
    return RecordKind(
        name=name.value,
        table=traits.table,
        arrow=avro_to_arrow_schema(avro),
        id_column=traits.id_column,
        sort_by=traits.sort_by,
        partition_by=traits.partition_by,
        is_dense=traits.is_dense,
        compared=traits.compared,
        avro=avro,
    )


KINDS: Final[Mapping[str, RecordKind]] = {name.value: _kind(name) for name in KindName}
TRADES: Final = KINDS[KindName.TRADES]
QUOTES: Final = KINDS[KindName.QUOTES]


def enum_values(kind: RecordKind, column: str) -> tuple[str, ...]:
    """Return the allowed values of a column by the .avsc; empty if any value is allowed."""
    for each in kind.avro["fields"]:
        if each["name"] == column and isinstance(each["type"], Mapping):
            return tuple(each["type"].get("symbols", ()))
    return ()


def asset_classes() -> tuple[str, ...]:
    """Return the possible asset classes."""
    return enum_values(TRADES, "asset_class")


def topic_of(kind: RecordKind, asset_class: str) -> str:
    """Return the Kafka topic for rows of a kind and asset class."""
    return f"{TOPIC_PREFIX}{asset_class}.{kind.name}"


def kind_of_topic(topic: str) -> RecordKind | None:
    """Infer the record kind of a topic from the end of its name."""
    return KINDS.get(topic.rpartition(".")[2])


def require_kind(topic: str) -> RecordKind:
    """Infer the record kind of a topic.

    Raises:
        UsageError: its name does not end in a kind.
    """
    kind = kind_of_topic(topic)
    if kind is None:
        hint = f"use {' or '.join(f'--kind {name}' for name in KINDS)}"
        raise unknown_kind(f"from topic {topic}", hint=hint)
    return kind


def unknown_kind(source: str, *, hint: str) -> UsageError:
    """Return the error for records of an unknown kind; `source` is such as "from topic x"."""
    return UsageError(f"cannot infer the record kind {source}", hint=hint)


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Access:
    """The location of a table's objects, and their keys, which are never printed."""

    endpoint: str  # host and port; empty means AWS
    is_encrypted: bool
    is_path_style: bool  # the bucket is in the URL's path, not in the host
    region: str
    key_id: str | None = field(repr=False)  # None: anonymous
    secret: str | None = field(repr=False)
    session_token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TableFiles:
    """The data files of one table after planning, and the names of their columns.

    `columns` maps the field ids in the Parquet files to current column names, so files written
    before a column was renamed or added are read correctly.
    """

    kind: RecordKind
    paths: tuple[str, ...]  # newest partition first
    columns: Mapping[int, str]
    rows: int  # rows in these files, before any filter inside them
    s3: S3Access | None = None  # access to them, if they are objects in S3


MAX_NUMBER: Final = 2**62 - 1  # the largest number that fits into a message id
SERIES_CHARS: Final = 19  # characters of a message id that identify its series
# Matches message ids that k2 computed: a UUID of version 8, which no other known program uses.
OWN_ID: Final = "^[0-9a-f]{8}-[0-9a-f]{4}-8"
_HEX: Final = np.frombuffer(b"".join(b"%02x" % byte for byte in range(256)), dtype="<u2")


@lru_cache(maxsize=1 << 16)
def _id_prefix(series: str) -> npt.NDArray[np.uint8]:
    digest = int.from_bytes(hashlib.sha256(series.encode()).digest()[:8]) >> 4  # 60 bits
    head, tail = digest >> 12, digest & 0xFFF
    text = f"{head >> 16:08x}-{head & 0xFFFF:04x}-8{tail:03x}-"
    return np.frombuffer(text.encode(), dtype=np.uint8)


def series_prefix(series: str) -> str:
    """Return the first `SERIES_CHARS` characters of the message ids of a series."""
    return _id_prefix(series).tobytes().decode()


def line_series(file: str, series: str) -> str:
    """Name the series of rows without an exchange id: the lines of one file.

    `file` is the file's identity, which includes its interpretation, and `series` has the rows'
    exchange, kind and symbol; so ids of two files, or of two symbols of one file, never collide.
    """
    return f"{file}/{series}"


def nth_copy(file: str, number: int) -> str:
    """Name a repeated copy of a file, for `line_series`; copy 1 is the file itself."""
    return file if number == 1 else f"{file}#{number}"


def message_ids(
    series: Sequence[str], codes: npt.NDArray[np.int64], numbers: npt.NDArray[np.int64]
) -> pa.StringArray:
    """Compute the message ids of records from their series and number.

    A series is one run of numbers, for instance `BINANCE/trades/BTCUSDT` with the trade ids or a
    file's digest with its row numbers; `codes` has each record's index in `series`. The id is a
    UUID of version 8 (RFC 9562, section 5.8): 60 bits of the series' SHA-256, then the number in
    the lowest 62 bits. So two numbers of one series never share an id, and ids of a series sort
    and compress like their numbers. `numbers` are in 0..MAX_NUMBER.
    """
    count = len(numbers)
    variant = numbers.astype(np.uint64) | np.uint64(1 << 63)
    digits = _HEX[variant.astype(">u8").view(np.uint8).reshape(count, 8)]
    digits = digits.view(np.uint8).reshape(count, 16)
    text = np.empty((count, 36), dtype=np.uint8)
    text[:, :SERIES_CHARS] = np.stack([_id_prefix(name) for name in series])[codes]
    text[:, 19:23] = digits[:, :4]
    text[:, 23] = ord("-")
    text[:, 24:] = digits[:, 4:]
    offsets = np.arange(0, 36 * (count + 1), 36, dtype=np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(text))
