"""Rows to Avro bytes and back on one core, against fastavro record by record."""

import io
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import fastavro
import pyarrow as pa
from data import trades
from processes import check_equal
from report import Aim, Line, Setup

from k2cli.codec.encode import encode_messages
from k2cli.codec.resolve import RecordDecoder
from k2cli.records import TRADES

_ROWS: Final = 10_000  # at once, as topics are written and read
_BATCHES: Final = 10
_SCHEMA: Final = fastavro.parse_schema(dict(TRADES.avro))
_DECODER: Final = RecordDecoder(TRADES.avro, TRADES.avro)

Bodies = Sequence[bytes]


def run(setup: Setup) -> list[Line]:
    """Encode and decode trades, in turns with fastavro; the best round counts on both sides."""
    rounds = 2 if setup.is_quick else 5
    table = trades(0, _ROWS * _BATCHES, step_us=1_000)
    batches = table.to_batches(max_chunksize=_ROWS)
    records = [batch.to_pylist(maps_as_pydicts="strict") for batch in batches]
    bodies = [_encode(batch) for batch in batches]
    check_equal([_write(some) for some in records] == bodies, True)
    check_equal(pa.Table.from_batches([_decode(some) for some in bodies]).equals(table), True)
    return [
        _compare("into Avro", (_encode, batches), ("writer of dicts", _write, records), rounds),
        _compare("out of Avro", (_decode, bodies), ("reader into dicts", _read, bodies), rounds),
    ]


def _compare(
    what: str,
    ours: tuple[Callable[[Any], object], Sequence[Any]],
    theirs: tuple[str, Callable[[Any], object], Sequence[Any]],
    rounds: int,
) -> Line:
    name, work, given = theirs
    samples, reference_samples = [], []
    for _ in range(rounds):
        samples.append(_per_s(*ours))
        reference_samples.append(_per_s(work, given))
    return Line(
        what=f"batches of {_ROWS:,} trades {what}",
        value=max(samples),
        unit="records/s",
        reference=max(reference_samples),
        against=f"fastavro's schemaless {name}",
        aim=Aim("ratio", ">=", 5),
        samples=samples,
        reference_samples=reference_samples,
    )


def _per_s(work: Callable[[Any], object], parts: Sequence[Any]) -> float:
    """Time the work in seconds of CPU, over all threads: what one core alone would take."""
    started = time.process_time()
    for part in parts:
        work(part)
    return _ROWS * _BATCHES / (time.process_time() - started)


def _encode(batch: pa.RecordBatch) -> Bodies:
    bodies: Bodies = encode_messages(batch, TRADES.avro).to_pylist()
    return bodies


def _write(records: Sequence[dict[str, Any]]) -> Bodies:
    bodies = []
    for record in records:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, _SCHEMA, record)
        bodies.append(out.getvalue())
    return bodies


def _decode(bodies: Bodies) -> pa.RecordBatch:
    return _DECODER.decode(bodies).rows


def _read(bodies: Bodies) -> list[object]:
    return [fastavro.schemaless_reader(io.BytesIO(body), _SCHEMA, None) for body in bodies]
