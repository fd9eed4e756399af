"""Decode Avro bodies of one writer's schema to a RecordBatch, as one block.

The bodies are joined into one object-container block, which polars-avro decodes in one call. Avro
has no markers between records, so a body that is too long and one that is too short could pass for
two good ones. Therefore each body is followed by a random marker, an extra field of the block's
schema: a record ends where its body ends if and only if its marker is found there.
"""

import io
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from polars_avro import AvroError
from polars_avro._avro_rs import AvroSource
from polars_avro._source import seekable_factory

from k2cli.avro.writer import writer_schema
from k2cli.codec.encode import varint
from k2cli.records import avro_to_arrow_schema
from k2cli.rejects import Cause, Fault

_MARK_BYTES: Final = 16
# Random, so that no writer's schema has a field or type of the same name.
UNIQUE: Final = secrets.token_hex(_MARK_BYTES)
MARK: Final = f"k2_mark_{UNIQUE}"
MARK_FIELD: Final = {
    "name": MARK,
    "type": {"type": "fixed", "name": MARK, "size": _MARK_BYTES},
}
_PREFIX: Final = f"k2_prefix_{UNIQUE}"
# What fastavro raises for bytes that are not a record of the schema.
UNDECODED: Final = (ArithmeticError, EOFError, LookupError, MemoryError, TypeError, ValueError)
_CUTS: Final = 16  # parts into which a bad block is split
_BLOCK_BYTES: Final = 1 << 28  # of bodies; columns of text end at 2 GiB


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """The rows of decoded bodies, in order, and the rejects."""

    rows: pa.RecordBatch
    indexes: npt.NDArray[np.int64]  # the index of each row's body
    rejects: Sequence[tuple[int, Fault]]  # body index and fault, ascending

    def without(self, faults: Mapping[int, Fault]) -> "Decoded":
        """Move rows to the rejects: `faults` has their index in `rows` and the fault."""
        if not faults:
            return self
        keep = np.ones(self.rows.num_rows, dtype=np.bool_)
        keep[list(faults)] = False
        rejects = [(int(self.indexes[row]), fault) for row, fault in faults.items()]
        return Decoded(
            rows=self.rows.filter(pa.array(keep)),
            indexes=self.indexes[keep],
            rejects=sorted([*self.rejects, *rejects], key=itemgetter(0)),
        )


class BlockReader:
    """Reads the records of one block at a time as columns, with polars-avro."""

    def __init__(self, schema: Mapping[str, Any], columns: Sequence[str]) -> None:
        self._columns = list(columns)
        self._sync = secrets.token_bytes(_MARK_BYTES)
        self._header = _container_header(schema, self._sync)

    def read(self, count: int, data: bytes) -> pa.RecordBatch | None:
        """Read the first `count` records of `data`; None if they do not decode."""
        size = varint(count) + varint(len(data))
        block = io.BytesIO(b"".join((self._header, size, data, self._sync)))
        source = AvroSource([seekable_factory(block)], False, False)
        try:
            # Kept in a variable: it must outlive the error that it raises.
            reader = source.batch_iter(count, self._columns)
            # Only the first batch: asked for a second one, the reader hangs on a block with extra
            # bytes. Here the markers show whether there are any.
            batch = pa.record_batch(next(reader))
        except AvroError:
            return None
        return batch if batch.num_rows == count else None


def _container_header(schema: Mapping[str, Any], sync: bytes) -> bytes:
    """https://avro.apache.org/docs/1.12.0/specification/, "Object Container Files"."""
    text = json.dumps(schema).encode()
    key = b"avro.schema"
    meta = (varint(1), varint(len(key)), key, varint(len(text)), text, varint(0))
    return b"".join((b"Obj\x01", *meta, sync))


def fastavro_schema(schema: Mapping[str, Any]) -> Any:
    """Prepare a schema that `writer_schema` returned for fastavro.

    Raises:
        ValueError: fastavro does not accept a name or a symbol in it.
    """
    try:
        return fastavro.parse_schema(dict(schema))
    except fastavro.schema.SchemaParseException as exc:
        raise ValueError(str(exc)) from exc


def new_mark() -> bytes:
    """Create the marker that follows a body or block and is checked after decoding."""
    return secrets.token_bytes(_MARK_BYTES)


def holds_mark(column: pa.Array, mark: bytes) -> bool:
    """Return whether every value of a column is the marker."""
    return bool(pc.all(pc.equal(column, pa.scalar(mark, column.type))).as_py())


class Decoder:
    """Decodes the bodies that one writer's schema describes into columns of that schema."""

    def __init__(
        self, schema: Mapping[str, Any], columns: Collection[str], *, prefix_bytes: int = 0
    ) -> None:
        """Prepare for a writer's schema; batches have its fields in `columns`.

        Each body has `prefix_bytes` in front that are not part of it: skipping them as a field of
        the block costs less than removing them.

        Raises:
            ValueError: a column has a type that no k2 column has.
            BadData: the schema is not one that can be decoded safely.
        """
        schema = writer_schema(schema)
        fields = [field for field in schema["fields"] if field["name"] in columns]
        self.arrow: Final = avro_to_arrow_schema({"fields": fields})
        self._parsed = fastavro_schema(schema)
        self._mark = new_mark()
        self._prefix_bytes = prefix_bytes
        marked = {
            **schema,
            "fields": [*_prefix_fields(prefix_bytes), *schema["fields"], MARK_FIELD],
        }
        self._container = BlockReader(marked, [*self.arrow.names, MARK])

    def decode(self, bodies: Sequence[bytes]) -> Decoded:
        """Decode bodies; a body that does not decode to its last byte is a reject."""
        batches: list[pa.RecordBatch] = []
        bad: list[int] = []
        todo = [range(first, last) for first, last in reversed(_cuts(bodies))]
        while todo:
            part = todo.pop()
            batch = self._block(bodies[part.start : part.stop])
            if batch is not None:
                batches.append(batch)
            elif len(part) == 1:
                bad.append(part.start)
            else:  # split until the bad ones are isolated
                step = -(-len(part) // _CUTS)
                todo += [part[at : at + step] for at in reversed(range(0, len(part), step))]
        good = np.ones(len(bodies), dtype=np.bool_)
        good[bad] = False
        return Decoded(
            # A single one is copied, too: polars over-allocates its buffers.
            rows=pa.concat_batches(batches) if batches else empty_batch(self.arrow),
            indexes=np.flatnonzero(good),
            rejects=[(index, self._fault(bodies[index])) for index in bad],
        )

    def _block(self, bodies: Sequence[bytes]) -> pa.RecordBatch | None:
        """Decode bodies as one block; None if any of them is bad."""
        data = self._mark.join([*bodies, b""])
        batch = self._container.read(len(bodies), data)
        if batch is None or not holds_mark(batch.column(MARK), self._mark):
            return None
        return batch.select(self.arrow.names).cast(self.arrow)

    def _fault(self, body: bytes) -> Fault:
        """Return why a body that did not decode is bad."""
        body = body[self._prefix_bytes :]
        rest = io.BytesIO(body)
        try:
            fastavro.schemaless_reader(rest, self._parsed, None)
        except UNDECODED as exc:
            reason = f"the body does not decode: {str(exc) or type(exc).__name__}"
            return Fault(reason=reason, cause=Cause.BAD_BODY)
        if left := len(body) - rest.tell():
            reason = f"{left} extra bytes after the record"
            return Fault(reason=reason, cause=Cause.TRAILING_BYTES)
        return Fault(reason="does not decode", cause=Cause.BAD_BODY)


def _prefix_fields(size: int) -> list[Mapping[str, Any]]:
    if not size:
        return []
    return [{"name": _PREFIX, "type": {"type": "fixed", "name": _PREFIX, "size": size}}]


def _cuts(bodies: Sequence[bytes]) -> list[tuple[int, int]]:
    """Split bodies into parts of bounded size."""
    if not bodies:
        return []
    if sum(map(len, bodies)) + len(bodies) * _MARK_BYTES < _BLOCK_BYTES:  # the usual case
        return [(0, len(bodies))]
    ends = np.cumsum(np.fromiter(map(len, bodies), np.int64, len(bodies)) + _MARK_BYTES)
    parts = ends // _BLOCK_BYTES
    starts = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist()]
    return list(zip(starts, [*starts[1:], len(bodies)], strict=True))


def empty_batch(schema: pa.Schema) -> pa.RecordBatch:
    """Return a batch without rows."""
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
