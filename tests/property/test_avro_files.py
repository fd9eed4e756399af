"""Whatever became of a file, validating it ends, and tells what is wrong."""

import io
import random

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from k2cli.avro.named import NamedSchema
from k2cli.errors import BadData
from k2cli.records import TRADES
from k2cli.validation.columns import avro_parts, parquet_parts
from k2cli.validation.report import Report, gather
from support.builders import trades_batch

ROWS = trades_batch(60)
OURS = NamedSchema(name="trade_v2", avro=TRADES.avro)


def avro(codec: str) -> bytes:
    records = [{**row, "vendor_data": dict(row["vendor_data"])} for row in ROWS.to_pylist()]
    out = io.BytesIO()
    schema = fastavro.parse_schema(dict(TRADES.avro))
    fastavro.writer(out, schema, records, codec=codec, sync_interval=2000)
    return out.getvalue()


def parquet() -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_batches([ROWS]), out)
    return out.getvalue()


FILES = {"avro": avro("null"), "deflate": avro("deflate"), "parquet": parquet()}


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Overwrite, take away and add bytes, some near the end, where the rows are."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        start = chance.choice([0, len(changed) // 2])
        place = chance.randrange(start, len(changed))
        some = chance.randbytes(chance.randrange(1, 20))
        end = chance.choice([place, place + 1, place + len(some)])
        changed[place:end] = some
    return bytes(changed)


@given(st.sampled_from(sorted(FILES)), st.randoms(use_true_random=False))
def test_a_mutated_file_is_valid_or_says_why_not(kind: str, chance: random.Random) -> None:
    data = io.BytesIO(mutated(FILES[kind], chance))
    report = Report(file="x", kind=None)
    try:
        parts = parquet_parts(data, OURS) if kind == "parquet" else avro_parts(data, OURS)[1]
        gather(report, parts, max_errors=0)
    except BadData:  # it does not even begin as such a file
        return
    if report.valid and kind == "parquet":
        assert report.rows == ROWS.num_rows
    assert all(fault.reason for fault in report.errors)


@given(st.sampled_from(["avro", "deflate"]), st.integers(min_value=0, max_value=10_000))
def test_a_file_is_valid_exactly_if_it_ends_where_a_block_does(kind: str, cut: int) -> None:
    data, sync = FILES[kind][:cut], FILES[kind][-16:]
    report = Report(file="x", kind=None)
    try:
        gather(report, avro_parts(io.BytesIO(data), OURS)[1], max_errors=0)
    except BadData:  # cut off within the header
        assert sync not in data
        return
    assert report.valid is data.endswith(sync)
    assert report.rows is not None
    assert report.rows <= ROWS.num_rows
