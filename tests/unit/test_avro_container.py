"""Avro container files: decoded in blocks, and what becomes of those that are broken."""

import bz2
import io
import json
import lzma
import tracemalloc
import zlib
from typing import Any

import fastavro
import pyarrow as pa
import pytest

from k2cli.codec import container as container_module
from k2cli.codec.container import Container, ContainerDecoder
from k2cli.codec.decode import Decoded
from k2cli.codec.encode import varint
from k2cli.errors import BadData
from k2cli.records import TRADES
from support.builders import trades_batch
from support.faults import reasons_of

ROWS = trades_batch(50)
RECORDS = [{**row, "vendor_data": dict(row["vendor_data"])} for row in ROWS.to_pylist()]
HEADER = fastavro.parse_schema(dict(TRADES.avro))


def file_of(codec: str = "null", schema: Any = HEADER, records: Any = RECORDS) -> bytes:
    """Write a container of small blocks with fastavro, the reference."""
    out = io.BytesIO()
    fastavro.writer(out, schema, records, codec=codec, sync_interval=1000)
    return out.getvalue()


def decoded(data: bytes, *columns: str) -> list[Decoded]:
    container = Container(io.BytesIO(data))
    return list(
        ContainerDecoder(container.schema, columns or TRADES.arrow.names).decode(container.blocks())
    )


def rows_of(parts: list[Decoded]) -> pa.Table:
    return pa.Table.from_batches([part.rows for part in parts])


def compressed(codec: str) -> bytes:
    """Write a container with a codec that fastavro needs a further package for."""
    plain = file_of()
    container = Container(io.BytesIO(plain))
    sync = plain[-16:]
    schema = json.dumps(TRADES.avro).encode()
    meta = b"".join(
        varint(len(part)) + part for part in (b"avro.schema", schema, b"avro.codec", codec.encode())
    )
    out = b"Obj\x01" + varint(2) + meta + varint(0) + sync
    for block in container.blocks():
        if codec == "snappy":
            data = pa.Codec("snappy").compress(block.data, asbytes=True)
            data += zlib.crc32(block.data).to_bytes(4)
        elif codec == "zstandard":
            data = pa.Codec("zstd").compress(block.data, asbytes=True)
        else:
            data = block.data
        out += varint(block.count) + varint(len(data)) + data + sync
    return out


@pytest.mark.parametrize("codec", ["null", "deflate", "bzip2", "xz"])
def test_the_rows_of_a_file_are_those_that_were_written(codec: str) -> None:
    parts = decoded(file_of(codec))
    assert rows_of(parts).cast(TRADES.arrow).to_batches()[0].equals(ROWS)
    assert [place for part in parts for place in part.indexes] == list(range(50))
    assert not any(part.rejects for part in parts)


@pytest.mark.parametrize("codec", ["zstandard", "snappy"])
def test_codecs_that_fastavro_needs_packages_for_are_read(codec: str) -> None:
    assert rows_of(decoded(compressed(codec))).cast(TRADES.arrow).to_batches()[0].equals(ROWS)


def test_only_the_columns_asked_for_need_types_of_ours() -> None:
    schema = {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "long"}, {"name": "b", "type": ["double", "string"]}],
    }
    parts = decoded(file_of(schema=schema, records=[{"a": i, "b": "x"} for i in range(5)]), "a")
    assert rows_of(parts)["a"].to_pylist() == [0, 1, 2, 3, 4]
    assert rows_of(parts).column_names == ["a"]


def test_a_record_may_have_any_name() -> None:
    schema = {**TRADES.avro, "name": "k2_block", "namespace": ""}
    data = file_of(schema=fastavro.parse_schema(schema))
    assert rows_of(decoded(data)).num_rows == len(RECORDS)


def test_an_empty_file_has_no_rows() -> None:
    assert decoded(file_of(records=[])) == []


def test_a_file_that_is_cut_off_gives_its_whole_blocks() -> None:
    data = file_of()
    container = Container(io.BytesIO(data[:-40]))
    parts = ContainerDecoder(TRADES.avro, TRADES.arrow.names).decode(container.blocks())
    assert 0 < next(parts).rows.num_rows < 50
    with pytest.raises(BadData, match="the file is truncated"):
        next(parts)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(b"", "it does not start with the Avro magic bytes", id="empty"),
        pytest.param(b"PAR1....", "it does not start with the Avro magic bytes", id="parquet"),
        pytest.param(b"Obj\x01", "not an Avro container", id="magic-alone"),
        pytest.param(b"Obj\x01\x00", "not an Avro container", id="empty-header"),
        pytest.param(file_of()[:100], "not an Avro container", id="header-cut-off"),
        pytest.param(compressed("lzo"), "compressed with 'lzo'", id="unknown-codec"),
    ],
)
def test_what_is_no_container_is_told(data: bytes, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        Container(io.BytesIO(data))


def test_a_block_with_another_mark_at_its_end_is_told() -> None:
    data = bytearray(file_of())
    data[-1] ^= 1
    container = Container(io.BytesIO(bytes(data)))
    with pytest.raises(BadData, match="does not end with the file's sync marker"):
        list(container.blocks())


def test_a_wrong_checksum_is_told() -> None:
    data = bytearray(compressed("snappy"))
    data[-17] ^= 1
    with pytest.raises(BadData, match="checksum"):
        list(Container(io.BytesIO(bytes(data))).blocks())


def test_a_block_that_is_not_compressed_as_told_is_bad() -> None:
    data = file_of().replace(b"\x08null", b"\x0edeflate")
    with pytest.raises(BadData):
        list(Container(io.BytesIO(data)).blocks())


def test_of_a_broken_block_the_records_before_are_rows() -> None:
    """The length of a text in record 21 becomes negative; other blocks are whole."""
    data = bytearray(file_of())
    place = data.index(b"BINANCE-1021")
    data[place - 1] = 0x01
    parts = decoded(bytes(data))
    rejects = [reject for part in parts for reject in part.rejects]
    assert [place for place, _ in rejects] == [21]
    assert "more records of its block are lost" in rejects[0][1].reason
    numbers = rows_of(parts)["source_sequence"].to_pylist()
    assert numbers[:21] == list(range(1000, 1021))
    assert numbers[-1] == 1049
    places = [place for part in parts for place in part.indexes]
    assert numbers == [1000 + place for place in places]


def bomb(codec: str, size: int) -> Any:
    """Compress zeros, as many as there are to be."""
    zeros = bytes(size)
    if codec == "deflate":
        return zlib.compress(zeros, 9)[2:-4]
    if codec == "snappy":
        return pa.Codec("snappy").compress(zeros, asbytes=True) + zlib.crc32(zeros).to_bytes(4)
    if codec == "zstandard":
        return pa.Codec("zstd").compress(zeros, asbytes=True)
    compress: Any = {"bzip2": bz2.compress, "xz": lzma.compress, "null": bytes}[codec]
    return compress(zeros)


def with_block(codec: str, count: int, data: bytes) -> bytes:
    """Put a whole block in front of the others."""
    whole = compressed(codec)
    end = whole.index(whole[-16:]) + 16
    return whole[:end] + varint(count) + varint(len(data)) + data + whole[-16:] + whole[end:]


CODECS = ["null", "deflate", "bzip2", "xz", "snappy", "zstandard"]


@pytest.mark.parametrize("codec", CODECS)
def test_a_block_that_grows_beyond_the_limit_is_bad(
    codec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(container_module, "_LARGEST_BLOCK", 1 << 20)
    fits, too_large = (with_block(codec, 1, bomb(codec, size)) for size in (1 << 20, 40 << 20))
    block = next(Container(io.BytesIO(fits)).blocks())
    assert len(block.data) == 1 << 20
    tracemalloc.start()
    with pytest.raises(BadData, match="a block has more than 1 MB"):
        next(Container(io.BytesIO(too_large)).blocks())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 << 20  # of which xz takes 8 MB for its dictionary


def test_a_block_that_claims_to_be_huge_is_bad() -> None:
    whole = file_of()
    end = whole.index(whole[-16:]) + 16
    data = whole[:end] + varint(1) + varint(1 << 61) + b"x"
    with pytest.raises(BadData, match="a block has more than 256 MB"):
        list(Container(io.BytesIO(data)).blocks())


@pytest.mark.parametrize("codec", CODECS[1:])
def test_a_block_whose_compressed_data_is_cut_off_is_bad(codec: str) -> None:
    data = bomb(codec, 100_000)[:-9]
    with pytest.raises(BadData):
        next(Container(io.BytesIO(with_block(codec, 1, data))).blocks())


@pytest.mark.parametrize("more", [b"\x00", b"\x00" * 40], ids=["one-byte", "forty-bytes"])
def test_bytes_that_are_left_over_in_a_block_are_told(more: bytes) -> None:
    """What the count of a block leaves over is no record: it is not skipped."""
    data = file_of(records=RECORDS[:3])
    container = Container(io.BytesIO(data))
    (block,) = container.blocks()
    start = data.index(data[-16:]) + 16
    body = block.data + more
    changed = data[:start] + varint(3) + varint(len(body)) + body + data[-16:]
    (part,) = decoded(changed)
    assert reasons_of(part.rejects) == [(2, f"{len(more)} extra bytes after it")]


def test_a_count_that_is_too_high_is_told() -> None:
    data = file_of(records=RECORDS[:3])
    (block,) = Container(io.BytesIO(data)).blocks()
    start = data.index(data[-16:]) + 16
    changed = data[:start] + varint(5) + varint(len(block.data)) + block.data + data[-16:]
    (part,) = decoded(changed)
    assert part.rows.num_rows == 3
    assert [place for place, _ in part.rejects] == [3]
    assert part.rejects[0][1].reason.endswith("1 more records of its block are lost")
