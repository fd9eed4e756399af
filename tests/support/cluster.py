"""What tests of the cluster mode share: topics with records, and runs of k2 on them."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from k2cli.codec.encode import encode_messages, wire_header
from k2cli.config import load_settings
from k2cli.ingestion.kafka.producer import open_writer
from k2cli.ingestion.kafka.registry import open_registry, subject_of
from k2cli.ingestion.kafka.topics import TopicInfo, Topics
from k2cli.records import TRADES, RecordKind
from k2cli.storage.lake import open_lake
from k2cli.storage.offsets import KEY, Partition, decode_offsets
from support.builders import START, batch_of, trade_row
from support.running import K2_COMMAND, Process, Result, run_k2, start_k2
from support.waiting import PATIENCE_S, wait_for

READ_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Cluster:
    """A broker, a registry, and a home with the tables that are fed from them."""

    bootstrap: str
    registry_url: str
    home: Path
    env: Mapping[str, str]  # that k2 runs in

    @property
    def kafka(self) -> dict[str, str]:
        """The settings of a client."""
        return {"bootstrap.servers": self.bootstrap}

    def create(self, topic: str, *, partitions: int = 4, **config: str) -> TopicInfo:
        """Create a topic."""
        topics = Topics(self.kafka, timeout_s=READ_TIMEOUT_S)
        dotted = {key.replace("_", "."): value for key, value in config.items()}
        assert topics.create(topic, partitions=partitions, replication=1, config=dotted)
        return topics.describe([topic])[0]

    def delete(self, topic: str) -> None:
        """Delete a topic, and return when its name is free."""
        topics = Topics(self.kafka, timeout_s=READ_TIMEOUT_S)
        admin = AdminClient({**self.kafka})
        admin.delete_topics([topic])[topic].result()
        wait_for(lambda: topics.ask_identities([topic]).identities()[topic] is None)

    def delete_records(self, topic: str, before: int) -> None:
        """Delete the records of partition 0 before an offset."""
        admin = AdminClient({**self.kafka})
        for deleted in admin.delete_records([TopicPartition(topic, 0, before)]).values():
            deleted.result()

    def positions(self, kind: RecordKind = TRADES) -> dict[Partition, int]:
        """Return how far the table has come."""
        with open_lake(load_settings(self.env)) as lake:
            return dict(decode_offsets(lake.open(kind).stored_position(KEY)))

    def header(self, topic: str, kind: RecordKind = TRADES) -> bytes:
        """Register the schema of a topic; return what its messages begin with."""
        with open_registry({"url": self.registry_url}, timeout_s=READ_TIMEOUT_S) as registry:
            return wire_header(registry.register(subject_of(topic), kind.avro))

    def produce(self, topic: str, rows: pa.RecordBatch, kind: RecordKind = TRADES) -> None:
        """Produce rows as k2 does."""
        header = self.header(topic, kind)
        with open_writer(self.kafka, observe=unexpected) as writer:
            writer.write(topic, kind, rows, header=header)
            writer.flush()

    def send(self, topic: str, values: Sequence[bytes | None], *, partition: int = 0) -> None:
        """Produce any values onto one partition."""
        producer = Producer(self.kafka)
        for value in values:
            producer.produce(topic, value, b"key", partition, headers=[("theirs", b"1")])
        assert producer.flush(READ_TIMEOUT_S) == 0

    def run(self, *args: object, timeout_s: float = PATIENCE_S, stdin: str = "") -> Result:
        """Run k2 to its end."""
        return run_k2(args, env=self.env, stdin=stdin, timeout_s=timeout_s)

    def consume(self, *args: object, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Consume to the end, with success; return the summary."""
        result = self.run("consume", "--until-end", "--summary", "json", *args, timeout_s=timeout_s)
        assert result.exit_code == 0, result.stderr
        summary: dict[str, Any] = json.loads(result.stdout)
        return summary

    def start(self, *args: object, program: Sequence[str] = K2_COMMAND) -> Process:
        """Start k2; stdout and stderr go to pipes."""
        return start_k2(*args, env=self.env, program=program)

    def rows(self, kind: RecordKind = TRADES) -> pa.Table:
        """Return what the table holds, in the order of its message ids."""
        with open_lake(load_settings(self.env)) as lake:
            return lake.open(kind).iceberg.scan().to_arrow().cast(kind.arrow).sort_by("message_id")

    def ids(self, kind: RecordKind = TRADES) -> list[str]:
        """Return the ids that the table holds, sorted, doubles and all."""
        with open_lake(load_settings(self.env)) as lake:
            found = lake.open(kind).iceberg.scan(selected_fields=("message_id",)).to_arrow()
        return sorted(found["message_id"].to_pylist())

    def read(self, topic: str, count: int) -> list[Message]:
        """Read messages of a topic's partition 0 from its beginning."""
        with consumer(self.kafka) as reader:
            reader.assign([TopicPartition(topic, 0, 0)])
            messages: list[Message] = []
            while len(messages) < count:
                some = reader.consume(count - len(messages), timeout=READ_TIMEOUT_S)
                assert some, f"{len(messages)} of {count} messages in {topic}"
                messages += some
        return messages


@contextmanager
def consumer(kafka: Mapping[str, str]) -> Iterator[Consumer]:
    """A plain consumer, for looking at topics."""
    reader = Consumer({**kafka, "group.id": "tests", "enable.auto.commit": False})
    try:
        yield reader
    finally:
        reader.close()


def unexpected(event: str, /, **fields: object) -> None:
    """Observe nothing: any event fails the test."""
    raise AssertionError(f"{event} {fields}")


def values_of(rows: pa.RecordBatch, header: bytes, kind: RecordKind = TRADES) -> list[bytes]:
    """Return the values of the messages that rows become."""
    values: list[bytes] = encode_messages(rows, kind.avro, header=header).to_pylist()
    return values


def headers_of(message: Message) -> dict[str, bytes]:
    """Return the headers of a message, which k2 writes as bytes."""
    found = dict(message.headers() or [])
    return {name: value for name, value in found.items() if isinstance(value, bytes)}


def ids_of(rows: pa.RecordBatch) -> list[str]:
    """Return the ids of rows, sorted."""
    return sorted(rows["message_id"].to_pylist())


def numbered_trades(count: int, *, begin: int = 0, symbols: int = 16) -> pa.RecordBatch:
    """Make trades with ids from `begin` on, of many symbols, so that all partitions get some."""
    return batch_of(
        TRADES,
        [
            trade_row(
                trade_id=f"BINANCE-{number}",
                symbol=f"S{number % symbols:02}USDT",
                source_sequence=number,
                timestamp=START + timedelta(seconds=number, microseconds=55_000),
            )
            for number in range(begin, begin + count)
        ],
    )
