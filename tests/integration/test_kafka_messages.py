"""Rows through a real broker and a real registry, side by side with Confluent's own serializers."""

import json
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from threading import Timer
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Consumer, Message
from confluent_kafka.schema_registry import SchemaRegistryClient, topic_subject_name_strategy
from confluent_kafka.schema_registry.avro import AvroDeserializer, AvroSerializer
from confluent_kafka.serialization import MessageField, SerializationContext

from k2cli.codec.encode import encode_messages, wire_header
from k2cli.errors import BadData, ConfigError, NotFound, Unavailable
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.producer import open_writer
from k2cli.ingestion.kafka.registry import Registry, open_registry, subject_of
from k2cli.ingestion.kafka.topics import Topics
from k2cli.records import QUOTES, TRADES
from services.kafka import KafkaAddress
from services.registry import RegistryAddress
from support.builders import quotes_batch, trades_batch
from support.cluster import unexpected
from support.faults import reasons_of
from support.waiting import PATIENCE_S

# As k2 names subjects. The default first asks the registry for an endpoint that not all have.
BY_TOPIC = {"subject.name.strategy": topic_subject_name_strategy}


@pytest.fixture
def schemas(registry: RegistryAddress) -> Iterator[Registry]:
    with open_registry({"url": registry.url}, timeout_s=60) as opened:
        yield opened


@pytest.fixture
def confluent(registry: RegistryAddress) -> Iterator[SchemaRegistryClient]:
    with closing(SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S})) as client:
        yield client


@pytest.fixture
def topic(kafka: KafkaAddress, topic_name: str) -> str:
    topics = Topics({"bootstrap.servers": kafka.bootstrap}, timeout_s=60)
    assert topics.create(topic_name, partitions=4, replication=1, config={})
    return topic_name


def messages_of(kafka: KafkaAddress, topic: str, count: int) -> list[Message]:
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": f"{topic}-reader",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    try:
        consumer.subscribe([topic])
        read: list[Message] = []
        while len(read) < count:
            some = consumer.consume(count, timeout=PATIENCE_S)
            assert some, f"only {len(read)} of {count} messages came"
            read += some
        assert not consumer.consume(1, timeout=0.3)
        return read
    finally:
        consumer.close()


def values_of(rows: pa.RecordBatch, schema_id: int) -> list[bytes]:
    values: list[bytes] = encode_messages(
        rows, TRADES.avro, header=wire_header(schema_id)
    ).to_pylist()
    return values


def read(
    schemas: Registry, values: Sequence[bytes | None], observe: Callable[..., None] = unexpected
) -> Any:
    reader = MessageReader(
        registry=schemas, kind=lambda: TRADES, observe=observe, topic="market.crypto.trades"
    )
    numbers = np.zeros(len(values), np.int64)
    offsets = np.arange(100, 100 + len(values))
    deadline = time.monotonic() + PATIENCE_S
    while (decoded := reader.read(values, numbers, offsets)).count < len(values):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return decoded


def as_read(rows: pa.RecordBatch, offsets: list[int]) -> pa.RecordBatch:
    place = TRADES.arrow.get_field_index("platform_sequence")
    return rows.set_column(place, TRADES.arrow.field(place), pa.array(offsets, pa.int64()))


def context(topic: str) -> SerializationContext:
    return SerializationContext(topic, MessageField.VALUE)


def test_rows_arrive_whole_and_in_the_order_of_their_symbol(
    kafka: KafkaAddress, schemas: Registry, topic: str
) -> None:
    rows = trades_batch(20_000)
    header = wire_header(schemas.register(subject_of(topic), TRADES.avro))
    with open_writer({"bootstrap.servers": kafka.bootstrap}, observe=no_event) as writer:
        writer.write(topic, TRADES, rows, header=header)
        writer.flush()
    messages = messages_of(kafka, topic, rows.num_rows)
    decoded = MessageReader(
        registry=schemas, kind=lambda: TRADES, observe=unexpected, topic=topic
    ).read(
        [message.value() for message in messages],
        np.array([message.partition() for message in messages]),
        np.array([message.offset() for message in messages]),
    )
    assert decoded.rejects == []
    for symbol in ("BTCUSDT", "ETHUSDT"):
        of_symbol = pa.compute.equal(rows["symbol"], symbol)
        arrived = decoded.rows.filter(pa.compute.equal(decoded.rows["symbol"], symbol))
        sent = rows.filter(of_symbol)
        assert arrived.drop_columns("platform_sequence").equals(
            sent.drop_columns("platform_sequence")
        )
    assert {message.key() for message in messages} == {b"BTCUSDT", b"ETHUSDT"}
    by_key = {(message.key(), message.partition()) for message in messages}
    assert len(by_key) == 2


def no_event(event: str, /, **fields: object) -> None:
    raise AssertionError(f"{event} {fields}")


def test_confluents_deserializer_reads_our_messages(
    confluent: SchemaRegistryClient, schemas: Registry, topic_name: str
) -> None:
    schema_id = schemas.register(subject_of(topic_name), TRADES.avro)
    deserialize = AvroDeserializer(confluent, conf=BY_TOPIC)
    rows = trades_batch(20)
    read = [deserialize(value, context(topic_name)) for value in values_of(rows, schema_id)]
    assert read == [{**row, "vendor_data": dict(row["vendor_data"])} for row in rows.to_pylist()]


def test_we_read_the_messages_of_confluents_serializer(
    confluent: SchemaRegistryClient, schemas: Registry, topic_name: str
) -> None:
    serialize = AvroSerializer(confluent, json.dumps(TRADES.avro), conf=BY_TOPIC)
    rows = trades_batch(20)
    values = [
        serialize({**row, "vendor_data": dict(row["vendor_data"])}, context(topic_name))
        for row in rows.to_pylist()
    ]
    decoded = read(schemas, values)
    assert decoded.rejects == []
    assert decoded.rows.equals(as_read(rows, list(range(100, 120))))


def test_messages_of_two_schemas_keep_their_order(schemas: Registry, topic_name: str) -> None:
    first = schemas.register(subject_of(topic_name), TRADES.avro)
    field = {"name": "venue", "type": ["null", "string"], "default": None}
    newer = {**TRADES.avro, "fields": [*TRADES.avro["fields"], field]}
    second = schemas.register(subject_of(topic_name), newer)
    assert second != first
    rows = trades_batch(10)
    bodies = encode_messages(rows, TRADES.avro).to_pylist()
    values = [
        wire_header(second) + body + b"\x02\x04XY" if place % 3 else wire_header(first) + body
        for place, body in enumerate(bodies)
    ]
    told: list[dict[str, Any]] = []
    decoded = read(
        schemas, values, lambda event, /, **fields: told.append({"event": event, **fields})
    )
    assert decoded.rejects == []
    assert decoded.rows.equals(as_read(rows, list(range(100, 110))))
    assert told == [
        {
            "event": "fields_left_out",
            "topic": "market.crypto.trades",
            "schema_id": second,
            "fields": "venue",
            "hint": "k2 table evolve trades --schema market.crypto.trades-value",
        }
    ]


def test_a_registry_that_has_just_come_up_is_asked_again(
    registry: RegistryAddress, topic_name: str
) -> None:
    def with_field(name: str) -> dict[str, Any]:
        field = {"name": name, "type": ["null", "string"], "default": None}
        return {**TRADES.avro, "fields": [*TRADES.avro["fields"], field]}

    subject, name = subject_of(topic_name), f"f{secrets.token_hex(8)}"
    told: list[str] = []
    with open_registry({"url": registry.url}, timeout_s=PATIENCE_S, patience_s=5.0) as schemas:
        coming = schemas.register(subject, with_field(f"{name}a")) + 1
        registering = Timer(0.6, schemas.register, (subject, with_field(f"{name}b")))
        registering.start()
        values = [value + b"\x00" for value in values_of(trades_batch(3), coming)]
        decoded = read(schemas, values, lambda _event, **fields: told.append(fields["fields"]))
        registering.join()
        assert decoded.rejects == []
        assert decoded.rows.num_rows == 3
        assert told == [f"{name}b"]
        # What stays unknown holds nothing up for long.
        started = time.monotonic()
        assert len(read(schemas, values_of(trades_batch(1), 2**30)).rejects) == 1
        assert time.monotonic() - started < PATIENCE_S


def test_what_is_no_trade_is_a_reject_with_its_reason(schemas: Registry, topic_name: str) -> None:
    schema_id = schemas.register(subject_of(topic_name), TRADES.avro)
    other = schemas.register(subject_of(topic_name + "-quotes"), QUOTES.avro)
    good = values_of(trades_batch(2), schema_id)
    quote = encode_messages(quotes_batch(1), QUOTES.avro, header=wire_header(other)).to_pylist()[0]
    unknown = 2**31 - 1
    decoded = read(
        schemas,
        [
            good[0],
            None,
            b"",
            b"\x00\x00",
            b'{"json": 1}',
            wire_header(unknown),
            quote,
            good[1] + b"xy",
            good[1],
        ],
    )
    assert decoded.indexes.tolist() == [0, 8]
    assert decoded.rows["platform_sequence"].to_pylist() == [100, 108]
    reasons = dict(reasons_of(decoded.rejects))
    assert reasons.pop(5).startswith(f"schema id {unknown}: cannot read schema {unknown}: ")
    assert reasons == {
        1: "a null value (tombstone)",
        2: "0 bytes are too short for a message",
        3: "2 bytes are too short for a message",
        4: "it starts with byte 123, not 0: not in a registry's wire format",
        6: f"schema id {other}: the schema is QuoteV2, not TradeV2",
        7: "2 extra bytes after the record",
    }


def test_the_registry_tells_what_is_wrong(schemas: Registry, topic_name: str) -> None:
    subject = subject_of(topic_name)
    with pytest.raises(NotFound, match=f"cannot find the schema of {subject}"):
        schemas.find(subject, TRADES.avro)
    schema_id = schemas.register(subject, TRADES.avro)
    assert schemas.find(subject, TRADES.avro) == schema_id == schemas.register(subject, TRADES.avro)
    fields = [field for field in TRADES.avro["fields"] if field["name"] != "symbol"]
    narrower = {"name": "sector", "type": "string"}
    with pytest.raises(BadData, match=f"cannot register a schema as {subject}"):
        schemas.register(subject, {**TRADES.avro, "fields": [*fields, narrower]})
    with pytest.raises(BadData):
        schemas.register(subject, {"type": "record", "name": "x"})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param({}, r"schema_registry\.url is missing", id="no-url"),
        pytest.param(
            {"url": "http://127.0.0.1:1", "no.such": "1"},
            r"wrong \[schema_registry\] settings: .*no",
            id="unknown-setting",
        ),
        pytest.param({"url": "nowhere"}, r"wrong \[schema_registry\] settings", id="not-a-url"),
    ],
)
def test_wrong_settings_of_the_registry(settings: dict[str, str], message: str) -> None:
    with (
        pytest.raises(ConfigError, match=message),
        open_registry(settings, timeout_s=1),
    ):
        pass


def test_a_registry_that_is_away() -> None:
    settings = {"url": "http://127.0.0.1:1", "max.retries": "0"}
    with (
        pytest.raises(Unavailable) as caught,
        open_registry(settings, timeout_s=1) as away,
    ):
        away.schema(1)
    assert caught.value.hint == "is the schema registry running at http://127.0.0.1:1?"


def test_a_record_that_the_broker_refuses_is_an_error(kafka: KafkaAddress, topic_name: str) -> None:
    options = {"bootstrap.servers": kafka.bootstrap}
    Topics(options, timeout_s=60).create(
        topic_name, partitions=1, replication=1, config={"max.message.bytes": "1000"}
    )
    rows = trades_batch(10, trade_conditions=[secrets.token_hex(2_000)])
    with open_writer(options, observe=no_event) as writer:
        writer.write(topic_name, TRADES, rows, header=wire_header(1))
        with pytest.raises(BadData, match=rf"topic {topic_name} refused a record: .*large"):
            writer.flush()


def test_brokers_that_are_away_are_an_error_after_a_while() -> None:
    seen: list[str] = []
    with open_writer(
        {"bootstrap.servers": "127.0.0.1:1"},
        observe=lambda event, /, **_fields: seen.append(event),
        patience_s=1,
    ) as writer:
        writer.write("any", TRADES, trades_batch(3), header=wire_header(1))
        with pytest.raises(Unavailable, match="3 records are waiting to be sent") as caught:
            writer.flush()
    assert caught.value.hint == "is Kafka running at 127.0.0.1:1?"
    assert seen == []
