"""Find how far a topic reaches: the newest exchange numbers in its last messages."""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from typing import Final, cast

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from k2cli.events import Observer
from k2cli.ingestion.kafka.consumer import Message
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.registry import open_registry
from k2cli.ingestion.kafka.topics import PartitionInfo, Topics
from k2cli.ingestion.kafka.vendor import (
    AT_END,
    RETRIED,
    client_config,
    translate,
    translated,
    unreachable,
)
from k2cli.records import RecordKind

TAIL_MESSAGES: Final = 20_000  # of each partition
_READ: Final = 5_000  # messages at a time
_GROUP: Final = "k2-tail"  # of a client that never joins or commits


def newest_numbers(  # noqa: PLR0913  two servers, and what to read from them
    topic: str,
    kind: RecordKind,
    *,
    kafka: Mapping[str, str],
    registry: Mapping[str, str],
    timeout_s: float,
    observe: Observer,
    messages: int = TAIL_MESSAGES,
) -> dict[tuple[str, str], int]:
    """Return the highest `source_sequence` by exchange and symbol, in a topic's last messages.

    Only the last `messages` offsets of each partition are read, so symbols without recent messages
    are omitted. Messages that cannot be decoded are ignored.

    Raises:
        NotFound: the topic does not exist.
        Unavailable: the brokers or the registry do not answer in time.
    """
    (info,) = Topics(kafka, timeout_s=timeout_s).describe([topic])
    newest: dict[tuple[str, str], int] = {}
    with open_registry(registry, timeout_s=timeout_s) as opened:
        reader = MessageReader(registry=opened, topic=topic, kind=lambda: kind, observe=observe)
        for some in _tails(topic, info.partitions, messages, kafka, timeout_s):
            for rows in _decode(reader, some, timeout_s):
                for pair, number in _highest(rows):
                    newest[pair] = max(number, newest.get(pair, number))
    return newest


def _tails(
    topic: str,
    partitions: Sequence[PartitionInfo],
    messages: int,
    kafka: Mapping[str, str],
    timeout_s: float,
) -> Iterable[list[Message]]:
    """Read the last messages of partitions up to their present ends."""
    begins = {each.number: max(each.first, each.next - messages) for each in partitions}
    waiting = {each.number: each.next for each in partitions if begins[each.number] < each.next}
    if not waiting:
        return
    what = f"cannot read the end of topic {topic}"
    fixed = {
        "group.id": _GROUP,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "enable.partition.eof": True,
    }
    with translated(what, kafka), closing(Consumer(client_config(kafka, fixed))) as consumer:
        consumer.assign([TopicPartition(topic, number, begins[number]) for number in waiting])
        deadline = time.monotonic() + timeout_s
        while waiting:
            received = consumer.consume(_READ, timeout=min(timeout_s, 1.0))
            if received:
                deadline = time.monotonic() + timeout_s
            elif time.monotonic() > deadline:
                raise unreachable(f"{what}: no data arrives", kafka)
            found = [each for each in received if _has_value(each, waiting, what, kafka)]
            if found:
                yield found


def _has_value(
    message: Message, waiting: dict[int, int], what: str, kafka: Mapping[str, str]
) -> bool:
    """Return whether this is a message; remove its partition from `waiting` at its end."""
    number, error = cast("int", message.partition()), message.error()
    if error is not None:
        if error.code() == AT_END:
            waiting.pop(number, None)
        elif error.code() not in RETRIED and not error.retriable():
            raise translate(what, error, kafka)
        return False
    if cast("int", message.offset()) + 1 >= waiting.get(number, 0):
        waiting.pop(number, None)
    return True


def _decode(
    reader: MessageReader, messages: Sequence[Message], timeout_s: float
) -> Iterable[pa.RecordBatch]:
    """Decode messages; the registry gets some time for every schema."""
    values = [message.value() for message in messages]
    partitions = np.array([message.partition() for message in messages], dtype=np.int64)
    offsets = np.array([message.offset() for message in messages], dtype=np.int64)
    begin, deadline = 0, time.monotonic() + timeout_s
    while begin < len(values):
        decoded = reader.read(values[begin:], partitions[begin:], offsets[begin:])
        yield decoded.rows
        begin += decoded.count
        if decoded.count:
            deadline = time.monotonic() + timeout_s
        elif time.monotonic() > deadline:
            return


def _highest(rows: pa.RecordBatch) -> Iterable[tuple[tuple[str, str], int]]:
    """Yield exchange and symbol with their highest number."""
    by_series = pa.Table.from_batches([rows]).group_by(["exchange", "symbol"])
    highest = by_series.aggregate([("source_sequence", "max")])
    columns = (highest[name].to_pylist() for name in highest.column_names)
    for exchange, symbol, number in zip(*columns, strict=True):
        if number is not None:
            yield (exchange, symbol), number
