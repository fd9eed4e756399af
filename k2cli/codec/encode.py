"""Encode a RecordBatch to Avro: columns are encoded, then joined row by row.

A message is in the wire format of the Schema Registry: a zero byte, the schema's id in 4 bytes,
big-endian, then the body, one record in Avro's binary encoding
(https://avro.apache.org/docs/1.12.0/specification/, "Binary Encoding"). No Python object is created
per value: every column becomes one or more columns of bytes, which Arrow concatenates.
"""

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Piece: TypeAlias = pa.Array | pa.Scalar  # binary: the next bytes of every row
Pieces: TypeAlias = list[Piece]

MAGIC: Final = 0
_HEADER: Final = struct.Struct(">bI")
HEADER_BYTES: Final = _HEADER.size
_NOTHING: Final = pa.scalar(b"", pa.binary())
_END_OF_BLOCKS: Final = pa.scalar(b"\x00", pa.binary())
_DECIMAL_BYTES: Final = 16


def wire_header(schema_id: int) -> bytes:
    """Return the 5 bytes that go before the body of a message written with this schema."""
    return _HEADER.pack(MAGIC, schema_id)


def encode_messages(
    rows: pa.RecordBatch, schema: Mapping[str, Any], *, header: bytes = b""
) -> pa.BinaryArray:
    """Encode every row as a record of `schema`, each after `header`.

    `rows` has the schema's fields as columns, in any order. All bodies together must stay below 2
    GiB: split larger batches.

    Raises:
        ValueError: a value that the schema cannot hold, such as an unknown symbol of an enum.
    """
    pieces: Pieces = [pa.scalar(header, pa.binary())]
    for field in schema["fields"]:
        pieces += _pieces(rows[field["name"]], field["type"])
    return _joined(pieces, rows.num_rows)


def _pieces(values: pa.Array, avro: Any) -> Pieces:
    pieces: Pieces
    match avro:
        case ["null", branch]:
            pieces = [_optional(values, branch, tag=b"\x02", null=b"\x00")]
        case {"logicalType": "decimal"}:
            pieces = [_decimals(values)]
        case {"logicalType": "timestamp-micros" | "timestamp-millis"} | "long" | "int":
            pieces = [_varints(values.cast(pa.int64()).to_numpy())]
        case {"type": "enum", "symbols": symbols}:
            pieces = [_enums(values, symbols)]
        case {"type": "array", "items": items}:
            flat = values.flatten()
            pieces = _blocks(values, _joined(_pieces(flat, items), len(flat)))
        case {"type": "map", "values": item}:
            keys, items = _entries(values)
            entries = [*_pieces(keys, "string"), *_pieces(items, item)]
            pieces = _blocks(values, _joined(entries, len(keys)))
        case "string":
            pieces = [_varints(pc.binary_length(values).to_numpy()), values.cast(pa.binary())]
        case _:
            raise ValueError(f"no encoding for the Avro type {avro!r}")
    return pieces


def _joined(pieces: Pieces, count: int) -> pa.BinaryArray:
    """Concatenate the pieces of every row."""
    joined = pc.binary_join_element_wise(*pieces, _NOTHING) if count else pa.scalar(b"")
    return pa.repeat(joined, count) if isinstance(joined, pa.Scalar) else joined


def _optional(values: pa.Array, branch: Any, *, tag: bytes, null: bytes) -> Piece:
    """Encode a union with null: the branch's number, then the value."""
    if values.null_count == len(values):
        return pa.scalar(null, pa.binary())
    tagged: Pieces = [pa.scalar(tag, pa.binary())]
    if values.null_count == 0:
        return _joined([*tagged, *_pieces(values, branch)], len(values))
    is_valid = values.is_valid().to_numpy(zero_copy_only=False)
    encoded = _joined([*tagged, *_pieces(values.drop_null(), branch)], int(is_valid.sum()))
    indexes = pa.array(np.cumsum(is_valid) - 1, mask=~is_valid)
    return encoded.take(indexes).fill_null(pa.scalar(null, pa.binary()))


def _enums(values: pa.StringArray, symbols: Sequence[str]) -> Piece:
    codes = pc.index_in(values, pa.array(symbols, pa.string()))
    if codes.null_count:
        (bad,) = values.filter(codes.is_null())[:1].to_pylist()
        raise ValueError(f"{bad!r} is not one of {', '.join(symbols)}")
    return _varints(codes.to_numpy())


def _varints(numbers: npt.NDArray[np.integer]) -> Piece:
    """Encode integers: zig-zag, then 7 bits per byte, lowest first."""
    if len(numbers) and (numbers == numbers[0]).all():
        return pa.scalar(varint(int(numbers[0])), pa.binary())
    signed = numbers.astype(np.int64, copy=False)
    zigzag = ((signed << 1) ^ (signed >> 63)).view(np.uint64)
    top = int(zigzag.max()) if len(zigzag) else 0
    width = max(1, -(-top.bit_length() // 7))
    rest = zigzag.reshape(-1, 1) >> np.arange(0, 7 * width, 7, dtype=np.uint64)
    is_used = rest != 0
    is_used[:, 0] = True
    groups = (rest & np.uint64(0x7F)).astype(np.uint8)
    groups[:, :-1] |= is_used[:, 1:].view(np.uint8) << 7
    return _ragged(groups, is_used)


def varint(number: int) -> bytes:
    """Encode one integer."""
    zigzag = (number << 1) ^ (number >> 63)
    out = bytearray()
    while zigzag > 0x7F:  # noqa: PLR2004
        out.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    out.append(zigzag)
    return bytes(out)


def _decimals(values: pa.Decimal128Array) -> Piece:
    """Encode unscaled values: a length, then minimal big-endian two's complement."""
    count = len(values)
    buffer = values.buffers()[1]
    words = np.frombuffer(buffer, np.uint8, count * _DECIMAL_BYTES, values.offset * _DECIMAL_BYTES)
    digits = words.reshape(count, _DECIMAL_BYTES)[:, ::-1]  # big-endian
    sign = np.where(digits[:, :1] >> 7, 0xFF, 0).astype(np.uint8)
    # A byte is needed if any byte before it differs from the sign, or if it holds the sign bit.
    is_filler = np.logical_and.accumulate(digits == sign, axis=1)
    keeps_sign = (digits[:, 1:] ^ sign) < 0x80  # noqa: PLR2004
    is_used = np.ones((count, _DECIMAL_BYTES + 1), dtype=np.bool_)
    is_used[:, 1:-1] = ~(is_filler[:, :-1] & keeps_sign)
    padded = np.empty((count, _DECIMAL_BYTES + 1), dtype=np.uint8)
    padded[:, 1:] = digits
    padded[:, 0] = 2 * is_used[:, 1:].sum(axis=1)  # lengths below 64 are one byte
    return _ragged(padded, is_used)


def _ragged(matrix: npt.NDArray[np.uint8], is_used: npt.NDArray[np.bool_]) -> pa.BinaryArray:
    """Build a binary column from the used bytes of every row."""
    offsets = np.zeros(len(matrix) + 1, dtype=np.int32)
    np.cumsum(is_used.sum(axis=1), out=offsets[1:])
    return _binary(offsets, pa.py_buffer(matrix[is_used]))


def _binary(offsets: npt.NDArray[np.int32], data: pa.Buffer) -> pa.BinaryArray:
    buffers = [None, pa.py_buffer(offsets), data]
    return pa.Array.from_buffers(pa.binary(), len(offsets) - 1, buffers)


def _entries(values: pa.MapArray) -> tuple[pa.Array, pa.Array]:
    first, last = _bounds(values)[[0, -1]].tolist()
    return values.keys[first:last], values.items[first:last]


def _bounds(values: pa.Array) -> npt.NDArray[np.int32]:
    """Return the start of every list's items, and the end of the last list."""
    buffer = values.buffers()[1]
    return np.frombuffer(buffer, np.int32, len(values) + 1, values.offset * 4)


def _blocks(values: pa.Array, items: pa.BinaryArray) -> Pieces:
    """Encode lists or maps as one block each: the count, the items, and a zero.

    The items of a list are adjacent, so they are not copied.
    """
    bounds = _bounds(values)
    counts = np.diff(bounds)
    if len(items) == 0:
        return [_END_OF_BLOCKS]
    ends = np.frombuffer(items.buffers()[1], np.int32, len(items) + 1, items.offset * 4)
    joined = _binary(ends[bounds - bounds[0]], items.buffers()[2])
    if counts.all():
        return [_varints(counts), joined, _END_OF_BLOCKS]
    heads = _varints(counts)
    # An empty list is the zero alone.
    return [_joined([heads, joined], len(counts)), pc.if_else(pa.array(counts > 0), b"\x00", b"")]
