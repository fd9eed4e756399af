"""Messages of all writers in one read: what cannot be decoded does not stop what can be."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from k2cli.codec.decode import Decoded
from k2cli.codec.encode import varint, wire_header
from k2cli.codec.kinds import KindDecoder
from k2cli.codec.upgrade import V1_DEFAULTS, Origin
from k2cli.errors import NotFound
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.registry import AVRO, Registry
from k2cli.ingestion.kafka.values import describe_value
from k2cli.records import TRADES
from support.avro_cases import array, decimal, enum, field, record
from support.builders import trades_batch
from support.cluster import ids_of, unexpected, values_of
from support.waiting import ManualClock

GOOD, POISON = 1, 2
NODE = record(field(["null", "n.Node"], "next", default=None), name="Node")
FEW = trades_batch(4)


class Schemas:
    """The schemas of two writers, in place of a registry."""

    def __init__(self, poison: Any) -> None:
        self._schemas = {GOOD: TRADES.avro, POISON: poison}

    def schema(self, schema_id: int) -> Any:
        return self._schemas[schema_id]

    def text(self, schema_id: int) -> tuple[str, str]:
        return AVRO, json.dumps(self._schemas[schema_id])


def schemas(poison: Any) -> Registry:
    """Return a registry that knows two schemas."""
    return cast("Registry", Schemas(poison))


def with_field(avro: Any, **more: Any) -> Mapping[str, Any]:
    """Add a field that our trades do not have."""
    return {**TRADES.avro, "fields": [*TRADES.avro["fields"], field(avro, "extra", **more)]}


def read(poison: Any, tail: bytes) -> tuple[Decoded, list[dict[str, object]]]:
    """Read three good messages and, before the last one, one of another writer."""
    events: list[dict[str, object]] = []
    reader = MessageReader(
        registry=schemas(poison),
        topic="t",
        kind=lambda: TRADES,
        observe=lambda event, /, **fields: events.append({"event": event, **fields}),
    )
    values = values_of(FEW, wire_header(GOOD))
    values[2] = wire_header(POISON) + values[2][5:] + tail
    return reader.read(values, np.zeros(4, np.int64), np.arange(4)), events


@pytest.mark.parametrize(
    ("schema", "tail"),
    [
        (with_field(["null", decimal(4, 10)], default=None), b"\0"),
        (with_field(decimal(4, 10)), varint(2) + b"ab"),
        (with_field({**decimal(4, 2), "precision": "18"}), varint(1) + b"a"),
        (with_field({**decimal(4, 2), "scale": -2}), varint(0)),
        (with_field("string", default=0), varint(1) + b"a"),
        (with_field(decimal(4, 2), default=0), varint(1) + b"a"),
        (with_field(array("string"), default=None), varint(0)),
        (with_field(enum("A", "B", default="C")), varint(1)),
        (with_field("long", doc=7, aliases="x", order=1), varint(3)),
    ],
)
def test_mistakes_that_do_not_matter_to_decoding_are_ignored(schema: Any, tail: bytes) -> None:
    decoded, (event,) = read(schema, tail)
    assert decoded.rejects == []
    assert ids_of(decoded.rows) == ids_of(FEW)
    assert (event["event"], event["fields"], event["schema_id"]) == (
        "fields_left_out",
        "extra",
        POISON,
    )


@pytest.mark.parametrize(
    ("schema", "tail", "reason"),
    [
        (with_field(["null", NODE]), b"\x02" * 100_000 + b"\0", "record Node is recursive"),
        (with_field(array("null")), varint(1 << 40) + b"\0", "take no bytes"),
        (with_field("long"), b"\xff" * 40, "does not decode"),
        (with_field("string"), varint(1 << 40), "does not decode"),
        (with_field(array("long")), varint(1 << 60), "does not decode"),
        (with_field({"type": "fixed", "name": "F", "size": 1 << 60}), b"", "does not decode"),
        (with_field(enum("A")), varint(7), ""),
        (with_field({"type": "array"}), b"", "array has no items"),
        (with_field("nosuch"), b"", "unknown type com.k2.marketdata.nosuch"),
        ({**TRADES.avro, "fields": None}, b"", "has no list of fields"),
        ({"type": "record"}, b"", "has no name"),
        ({}, b"", "{} is not a type"),
        (with_field(enum("A b")), varint(0), ""),
    ],
)
def test_what_cannot_be_decoded_is_a_reject_and_nothing_else_is(
    schema: Any, tail: bytes, reason: str
) -> None:
    decoded, _ = read(schema, tail)
    if decoded.rejects or reason:
        ((place, why),) = decoded.rejects
        assert place == 2
        assert reason in why.reason
    assert set(decoded.indexes.tolist()) >= {0, 1, 3}
    assert len(decoded.indexes) + len(decoded.rejects) == 4


class FailingDecoder:
    """Fails for one body as no decoder that is known does."""

    def __init__(self, failure: Exception) -> None:
        self._failure = failure
        self._decoder = KindDecoder(TRADES.avro, TRADES, V1_DEFAULTS)

    def decode(self, values: Sequence[bytes], origin: Origin) -> Decoded:
        if 2 in origin.numbers:
            raise self._failure
        return self._decoder.decode(values, origin)


@pytest.mark.parametrize(
    "failure", [KeyError("x"), pa.ArrowNotImplementedError("x"), RecursionError(), MemoryError()]
)
def test_whatever_a_decoder_raises_is_a_reject_of_that_message(failure: Exception) -> None:
    reader = MessageReader(
        registry=schemas(None), topic="t", kind=lambda: TRADES, observe=unexpected
    )
    origin = Origin(series=["t"], codes=np.zeros(4, np.int64), numbers=np.arange(4))
    values = [*values_of(FEW, wire_header(1))[:3], wire_header(1) + b"bad"]
    decoded = reader._decode(cast("KindDecoder", FailingDecoder(failure)), values, origin)
    assert decoded.indexes.tolist() == [0, 1]
    (two, fault), (three, _) = decoded.rejects
    assert (two, three, type(failure).__name__ in fault.reason) == (2, 3, True)


def test_a_value_of_a_recursive_schema_is_described() -> None:
    info = describe_value(wire_header(POISON) + b"\x02" * 100_000, schemas(NODE))
    assert (info.schema, info.fields) == ("Node", None)
    assert info.problem == "the schema cannot be used for decoding: record Node is recursive"


def test_a_value_is_described_as_far_as_it_decodes() -> None:
    avro = record(field(decimal(2, 4)), field(enum("A"), "b"), field("string", "c"))
    info = describe_value(wire_header(POISON) + b"\x02x\x00\x10abc", schemas(avro))
    assert info.fields == {"a": b"x", "b": "A"}
    assert info.problem == "field c: the value ends in it"


def test_a_value_that_is_not_a_record_is_described() -> None:
    info = describe_value(wire_header(POISON) + b"\x02x!", schemas("string"))
    assert (info.schema, info.fields) == (None, {"value": "x"})
    assert info.problem == "1 extra bytes after the record"


class SlowRegistry:
    """Knows one schema, and takes a while to say that of the others."""

    def __init__(self, takes_s: float, clock: ManualClock) -> None:
        self._takes_s = takes_s
        self._clock = clock
        self.asked: list[int] = []

    def schema(self, schema_id: int) -> Any:
        if schema_id == GOOD:
            return TRADES.avro
        if schema_id not in self.asked:
            self.asked.append(schema_id)
            self._clock.advance(self._takes_s)
        raise NotFound("unknown")


def test_many_unknown_schemas_take_several_reads_and_lose_nothing() -> None:
    clock = ManualClock()
    registry = SlowRegistry(0.05, clock)
    reader = MessageReader(
        registry=cast("Registry", registry),
        topic="t",
        kind=lambda: TRADES,
        observe=unexpected,
        clock=clock,
    )
    values: list[bytes] = []
    for place, value in enumerate(values_of(trades_batch(40), wire_header(GOOD))):
        values += [value, wire_header(1000 + place) + value[5:]]
    numbers, offsets = np.zeros(80, np.int64), np.arange(80)
    begin, reads, taken, refused = 0, 0, [], []
    while begin < 80:
        started_s = clock.now_s
        decoded = reader.read(values[begin:], numbers[begin:], offsets[begin:])
        assert clock.now_s - started_s < 1
        assert decoded.count > 0
        assert decoded.rows["platform_sequence"].to_pylist() == (decoded.indexes + begin).tolist()
        taken += (decoded.indexes + begin).tolist()
        refused += [place + begin for place, _ in decoded.rejects]
        begin, reads = begin + decoded.count, reads + 1
    assert taken == list(range(0, 80, 2))
    assert refused == list(range(1, 80, 2))
    assert reads > 2
    assert len(registry.asked) == 40
