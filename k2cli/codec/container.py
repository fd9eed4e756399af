"""Avro object container files: blocks of records, decoded in groups of blocks.

https://avro.apache.org/docs/1.12.0/specification/, "Object Container Files". A block is decoded as
an array of records with their count in front, followed by a marker: if the marker is found there,
the block held exactly its records. In a block that does not decode, the bodies are separated one by
one up to the first bad one; after that, the start of a record is unknown.
"""

import bz2
import io
import lzma
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final, Protocol

import fastavro
import numpy as np
import pyarrow as pa

from k2cli.avro.types import load_json
from k2cli.avro.writer import writer_schema
from k2cli.codec.decode import (
    MARK,
    MARK_FIELD,
    UNDECODED,
    UNIQUE,
    BlockReader,
    Decoded,
    Decoder,
    fastavro_schema,
    holds_mark,
    new_mark,
)
from k2cli.codec.encode import varint
from k2cli.errors import BadData
from k2cli.rejects import Cause, Fault

_MAGIC: Final = b"Obj\x01"
_META: Final = {"type": "map", "values": "bytes"}
_SYNC_BYTES: Final = 16
_LONGEST_VARINT: Final = 10
_GROUP_BYTES: Final = 16 << 20  # of blocks that are decoded together
_LARGEST_BLOCK: Final = 256 << 20  # compressed or not; a few bytes may decompress to anything
_PART_BYTES: Final = 1 << 20  # per decompression step
_XZ_MEMORY: Final = 256 << 20  # that a block may request; the best preset takes 65 MB


class _Decompressor(Protocol):
    """The common interface of the standard library's decompressors."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _decompress(decompressor: _Decompressor, data: bytes) -> bytes:
    """Decompress a block, up to the size limit of blocks."""
    plain = decompressor.decompress(data, _LARGEST_BLOCK + 1)
    _check_size(len(plain))
    if not decompressor.eof:
        raise ValueError("the compressed data of a block is truncated")
    return plain


def _unsnapped(data: bytes) -> bytes:
    """Decompress snappy, followed by the CRC-32 of the decompressed data in 4 bytes."""
    size = _read_unsigned(io.BytesIO(data))
    _check_size(size)
    plain = pa.Codec("snappy").decompress(data[:-4], size, asbytes=True)
    if zlib.crc32(plain) != int.from_bytes(data[-4:]):
        raise ValueError("the checksum of a block is wrong")
    return bytes(plain)


def _unzstandard(data: bytes) -> bytes:
    parts: list[bytes] = []
    size = 0
    with pa.CompressedInputStream(pa.BufferReader(data), "zstd") as stream:
        while part := stream.read(_PART_BYTES):
            size += len(part)
            _check_size(size)
            parts.append(part)
    return b"".join(parts)


def _check_size(size: int) -> None:
    if size > _LARGEST_BLOCK:
        raise ValueError(f"a block has more than {_LARGEST_BLOCK >> 20} MB")


_CODECS: Final[Mapping[str, Callable[[bytes], bytes]]] = {
    "null": lambda data: data,
    "deflate": lambda data: _decompress(zlib.decompressobj(-zlib.MAX_WBITS), data),
    "bzip2": lambda data: _decompress(bz2.BZ2Decompressor(), data),
    "xz": lambda data: _decompress(lzma.LZMADecompressor(memlimit=_XZ_MEMORY), data),
    "snappy": _unsnapped,
    "zstandard": _unzstandard,
}
_UNREADABLE: Final = (*UNDECODED, zlib.error, lzma.LZMAError, OSError)


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive encoded records."""

    count: int
    data: bytes


class Container:
    """A container file: its schema, then its blocks, read on demand."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the header.

        Raises:
            BadData: it is not the header of a container.
        """
        self._file = file
        try:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it does not start with the Avro magic bytes")
            meta: Any = fastavro.schemaless_reader(file, _META, None)
            text = meta["avro.schema"].decode()
            codec = meta.get("avro.codec", b"null").decode()
            self._sync = file.read(_SYNC_BYTES)
            if len(self._sync) < _SYNC_BYTES:
                raise ValueError("it is truncated within its header")
        except UNDECODED as exc:
            raise BadData(f"not an Avro container: {_reason_of(exc)}") from exc
        self.schema: Final[Any] = load_json(text, "the schema in it")
        if codec not in _CODECS:
            raise BadData(f"compressed with {codec!r}, which is not one of {', '.join(_CODECS)}")
        self._decompress = _CODECS[codec]

    def blocks(self) -> Iterator[Block]:
        """Yield the blocks.

        Raises:
            BadData: the file is truncated or overwritten; blocks yielded before are valid.
        """
        while head := self._file.read(1):
            try:
                count, size = _read_long(self._file, head), _read_long(self._file)
                if count < 0 or size < 0:
                    raise ValueError("a block has no size")
                _check_size(size)
                data, sync = self._file.read(size), self._file.read(_SYNC_BYTES)
                if len(data) < size or len(sync) < _SYNC_BYTES:
                    raise ValueError("the file is truncated")
                if sync != self._sync:
                    raise ValueError("a block does not end with the file's sync marker")
                block = Block(count, self._decompress(data))
                if bool(block.data) != bool(count):
                    raise ValueError("a block has records without bytes, or bytes without records")
            except _UNREADABLE as exc:
                raise BadData(_reason_of(exc)) from exc
            if count:
                yield block


class ContainerDecoder:
    """Decodes blocks of one writer's schema into columns of that schema."""

    def __init__(self, schema: Mapping[str, Any], columns: Collection[str]) -> None:
        """Prepare for a writer's schema; batches have its fields in `columns`.

        Raises:
            ValueError: a column has a type that no k2 column has.
            BadData: the schema is not one that can be decoded safely.
        """
        schema = writer_schema(schema)
        self._decoder = Decoder(schema, columns)
        self._parsed = fastavro_schema(schema)
        self._mark = new_mark()
        rows = {"name": "rows", "type": {"type": "array", "items": schema}}
        name = f"k2_block_{UNIQUE}"
        wrapped = {"type": "record", "name": name, "fields": [rows, MARK_FIELD]}
        self._reader = BlockReader(wrapped, ["rows", MARK])

    def decode(self, blocks: Iterator[Block]) -> Iterator[Decoded]:
        """Decode blocks; indexes and rejects number the records of the file, starting at 0."""
        first = 0
        for group in _groups(blocks):
            count = sum(block.count for block in group)
            rows = self._read(group)
            if rows is not None:
                yield Decoded(rows=rows, indexes=np.arange(first, first + count), rejects=())
            else:
                yield from self._one_by_one(group, first)
            first += count

    def _read(self, blocks: Sequence[Block]) -> pa.RecordBatch | None:
        """Decode blocks together; None if any of them is bad."""
        records = [varint(block.count) + block.data + varint(0) + self._mark for block in blocks]
        batch = self._reader.read(len(records), b"".join(records))
        if batch is None or not holds_mark(batch.column(1), self._mark):
            return None
        lists = batch.column(0)
        if lists.value_lengths().to_pylist() != [block.count for block in blocks]:
            return None  # a block has extra records after its count
        rows = pa.RecordBatch.from_struct_array(lists.flatten())
        return rows.select(self._decoder.arrow.names).cast(self._decoder.arrow)

    def _one_by_one(self, blocks: Sequence[Block], first: int) -> Iterator[Decoded]:
        for block in blocks:
            rows = self._read([block])
            if rows is not None:
                yield Decoded(rows=rows, indexes=np.arange(first, first + block.count), rejects=())
            else:
                yield self._salvaged(block, first)
            first += block.count

    def _salvaged(self, block: Block, first: int) -> Decoded:
        """Decode the records before the first bad record of a block."""
        rest = io.BytesIO(block.data)
        bodies: list[bytes] = []
        fault: Fault | None = None
        for _ in range(block.count):
            start = rest.tell()
            try:
                fastavro.schemaless_reader(rest, self._parsed, None)
            except UNDECODED as exc:
                lost = block.count - len(bodies) - 1
                reason = (
                    f"does not decode: {_reason_of(exc)}; {lost} more records of its block are lost"
                )
                fault = Fault(reason=reason, cause=Cause.BAD_BODY)
                break
            bodies.append(block.data[start : rest.tell()])
        decoded = self._decoder.decode(bodies)
        rejects = [(first + index, why) for index, why in decoded.rejects]
        left = len(block.data) - rest.tell()
        if fault is not None:
            rejects.append((first + len(bodies), fault))
        elif left:
            reason = f"{left} extra bytes after it"
            fault = Fault(reason=reason, cause=Cause.TRAILING_BYTES)
            rejects.append((first + len(bodies) - 1, fault))
        return replace(decoded, indexes=decoded.indexes + first, rejects=rejects)


def _groups(blocks: Iterator[Block]) -> Iterator[list[Block]]:
    """Group blocks up to some size; on a read error, first yield the last group."""
    group: list[Block] = []
    size = 0
    try:
        for block in blocks:
            group.append(block)
            size += len(block.data)
            if size >= _GROUP_BYTES:
                yield group
                group, size = [], 0
    except BadData:
        if group:
            yield group
        raise
    if group:
        yield group


def _read_long(file: BinaryIO, head: bytes = b"") -> int:
    number = _read_unsigned(file, head)
    return number >> 1 ^ -(number & 1)


def _read_unsigned(file: BinaryIO, head: bytes = b"") -> int:
    number = 0
    for index in range(_LONGEST_VARINT):
        byte = (head if index == 0 and head else file.read(1)) or b""
        if not byte:
            raise ValueError("the file is truncated")
        number |= (byte[0] & 0x7F) << 7 * index
        if byte[0] < 1 << 7:
            return number
    raise ValueError("the size of a block is not a number")


def _reason_of(exc: BaseException) -> str:
    return str(exc) or type(exc).__name__
