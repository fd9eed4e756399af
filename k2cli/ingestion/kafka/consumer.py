"""Read messages of topics, shared by the processes of a consumer group.

The caller decides where to resume: offsets are committed to the brokers only for tools that show
lag, and never read.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final, cast

import confluent_kafka
from confluent_kafka import Consumer, KafkaException, TopicPartition

from k2cli.background import begin
from k2cli.events import Observer
from k2cli.ingestion.kafka.topics import IdentityRequest, PartitionId, Topics
from k2cli.ingestion.kafka.vendor import (
    AT_END,
    NO_TOPIC,
    OUT_OF_RANGE,
    RETRIED,
    client_config,
    overridden,
    translate,
    translated,
)

Message = confluent_kafka.Message
EARLIEST: Final = "earliest"
LATEST: Final = "latest"
_PREFETCH_KBYTES: Final = 8 << 10  # plus the overhead of each message
# Members learn of a rebalance with their next heartbeat, and a hand-over takes two heartbeats. With
# librdkafka's 3 s the first of several members reads a million records before it shares any.
_HEARTBEAT_MS: Final = 200
_CLOSED: Final = "cannot leave the group"
_LEAVE_S: Final = 20.0
_COUNTER: Final = "k2-status"  # of a client that never joins or commits
_COUNTED: Final = 1_000  # messages per read
_COUNT_WAIT_S: Final = 0.2
_ANSWER_S: Final = 10.0  # per request to the brokers
_FIXED: Final = {  # settings that k2 relies on; the group id comes from the caller
    "group.protocol": "classic",
    "partition.assignment.strategy": "cooperative-sticky",
    "enable.auto.commit": False,  # the position comes from the table
    "auto.offset.reset": "error",  # otherwise librdkafka silently skips deleted records
    "enable.partition.eof": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """Callbacks for partitions that the group assigns or revokes.

    All three run inside `read`. `assigned` returns the offset to resume from, by partition; a
    partition that it omits is not read until a `seek`. `revoked` is the last chance to commit what
    was read of these partitions; after `lost` it is too late: another member owns them.
    """

    assigned: Callable[[Sequence[PartitionId]], Mapping[PartitionId, int]]
    revoked: Callable[[Sequence[PartitionId]], None]
    lost: Callable[[Sequence[PartitionId]], None]


class TopicReader:
    """A member of a consumer group. Created by `open_reader`, which also leaves the group."""

    def __init__(
        self, *, kafka: Mapping[str, str], group: str, rebalance: Rebalance, observe: Observer
    ) -> None:
        self._assigned: set[PartitionId] = set()  # by the group
        self._reading: set[PartitionId] = set()  # the partitions being read
        self._at_end: set[PartitionId] = set()  # partitions read to their end at least once
        self._ends_reached: dict[PartitionId, int] = {}  # since the last `take_ends`
        self._out_of_range: set[PartitionId] = set()  # whose next offset no longer exists
        self._is_topic_gone = False  # apparently, since the last `take_topic_gone`
        self._joined_s: float | None = None  # monotonic; when the group last assigned partitions
        self._is_closing = False
        self._kafka = kafka
        self._rebalance = rebalance
        self._observe = observe
        self._topics = Topics(kafka, timeout_s=_ANSWER_S)
        fixed = {"group.id": group, **_FIXED}
        for setting in overridden(kafka, fixed):
            observe(
                "setting_ignored",
                setting=f"kafka.{setting}",
                value=kafka[setting],
                used=fixed[setting],
                reason="k2 consume sets this: see --group and --from",
            )
        with translated("cannot start a Kafka consumer", kafka):
            self._consumer = Consumer(
                client_config(
                    kafka,
                    fixed,
                    heartbeat_interval_ms=_HEARTBEAT_MS,
                    queued_max_messages_kbytes=_PREFETCH_KBYTES,
                    queued_min_messages=100_000,
                    # In compressed bytes, which may take ten times as much memory.
                    fetch_message_max_bytes=1 << 20,
                    fetch_max_bytes=4 << 20,
                    # By default a full queue stops fetching for a second, but it drains faster.
                    fetch_queue_backoff_ms=20,
                )
            )

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group; a later read delivers the partitions."""
        with translated("cannot subscribe", self._kafka):
            self._consumer.subscribe(
                list(topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )

    def read(self, at_most: int, timeout_s: float) -> list[Message]:
        """Return the available messages; after `timeout_s` possibly none.

        Messages of one partition are in order. During outages it reports an event and waits.

        Raises:
            K2Error: a permanent error.
        """
        with translated("cannot read", self._kafka):
            messages = self._consumer.consume(at_most, timeout=timeout_s)
        if not any(map(Message.error, messages)):
            return messages
        return [message for message in messages if not self._is_event(message)]

    def seek(self, offsets: Mapping[PartitionId, int]) -> None:
        """Read these assigned partitions from these offsets, and no others.

        All are reassigned: librdkafka cannot seek in a partition whose offset is out of range.
        """
        with translated("cannot seek", self._kafka):
            self._consumer.incremental_unassign([TopicPartition(*each) for each in self._reading])
            self._reading.clear()
            self._read_from(offsets)
        self._at_end.difference_update(offsets)
        self._ends_reached.clear()
        self._out_of_range.clear()

    def assigned(self) -> list[PartitionId]:
        """Return the assigned partitions, sorted; some may not be read yet."""
        return sorted(self._assigned)

    def is_at_end(self, *, patience_s: float) -> bool:
        """Return whether all partitions being read have reached their ends once.

        A member without partitions returns True only this long after the last assignment, because
        other members may be about to give partitions up.
        """
        if self._joined_s is None:
            return False
        if not self._reading:
            return time.monotonic() - self._joined_s > patience_s
        return self._reading <= self._at_end

    def take_ends(self, waiting: Collection[PartitionId]) -> dict[PartitionId, int]:
        """Return the ends reached since the last call, except in `waiting` partitions.

        An end may lie beyond the offset after the last message. Ends of partitions with pending
        messages are returned by a later call.
        """
        partitions = [partition for partition in self._ends_reached if partition not in waiting]
        return {partition: self._ends_reached.pop(partition) for partition in partitions}

    def has_lost_records(self) -> bool:
        """Return whether the brokers deleted the next record of a partition; `seek` resets it."""
        return bool(self._out_of_range)

    def take_topic_gone(self) -> bool:
        """Return whether a topic seems to have been deleted since the last call."""
        is_gone, self._is_topic_gone = self._is_topic_gone, False
        return is_gone

    def bounds(self, partitions: Sequence[PartitionId]) -> dict[PartitionId, tuple[int, int]]:
        """Return the oldest and the next offset of each partition.

        Raises:
            NotFound: one of them does not exist.
        """
        return self._topics.bounds(partitions)

    def offsets_at(
        self, partitions: Sequence[PartitionId], time_ms: int | None
    ) -> dict[PartitionId, int]:
        """Find the first offset with a message of this time or later; None means the end.

        Raises:
            NotFound: one of the partitions does not exist.
        """
        return self._topics.offsets_at(partitions, time_ms)

    def ask_identities(self, names: Iterable[str]) -> IdentityRequest:
        """Request the identities of topics without waiting for the answer."""
        return self._topics.ask_identities(names)

    def ends(self) -> dict[PartitionId, int]:
        """Return the next offset of every partition being read, as of the last fetch."""
        ends = {}
        for partition in self._reading:
            known = self._consumer.get_watermark_offsets(TopicPartition(*partition), cached=True)
            if known is not None and known[1] >= 0:
                ends[partition] = known[1]
        return ends

    def refresh(self, timeout_s: float) -> None:
        """Make the group notice changed topics or partitions now, not minutes later."""
        with translated("cannot list the topics", self._kafka):
            self._consumer.list_topics(timeout=timeout_s)

    def commit_group_offsets(self, offsets: Mapping[PartitionId, int]) -> None:
        """Commit the group's offsets, for tools that show lag. A failure is an event."""
        positions = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        try:
            self._consumer.commit(offsets=positions, asynchronous=True)
        except KafkaException as exc:
            self._observe("group_offsets", reason=exc.args[0].str())

    def close(self, *, patience_s: float = _LEAVE_S) -> None:
        """Leave the group.

        Occasionally librdkafka waits forever to leave its group. After `patience_s` it is
        abandoned, with an event: the group reassigns its partitions when its session expires.
        """
        self._is_closing = True
        leaving = begin(self._consumer.close)
        with translated(_CLOSED, self._kafka):
            try:
                leaving.result(patience_s)
            except TimeoutError:
                self._observe("group_not_left", waited_s=patience_s)

    def _is_event(self, message: Message) -> bool:
        """Return whether this is an error notice instead of a message; raise permanent errors."""
        error = message.error()
        if error is None:
            return False
        topic, number = message.topic(), message.partition()
        if error.code() == AT_END and topic is not None and number is not None:
            self._at_end.add((topic, number))
            self._ends_reached[(topic, number)] = cast("int", message.offset())
        elif error.code() in OUT_OF_RANGE and topic is not None and number is not None:
            self._out_of_range.add((topic, number))
        elif error.code() in NO_TOPIC:
            self._is_topic_gone = True
        elif error.code() in RETRIED or error.retriable():
            self._observe("kafka_unavailable", reason=error.str())
        else:
            raise translate(
                "cannot read" if topic is None else f"cannot read topic {topic}", error, self._kafka
            )
        return True

    def _on_assign(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        if self._is_closing:
            return  # too late to read; they are revoked next
        self._joined_s = time.monotonic()
        ids = _partition_ids(partitions)
        offsets = self._rebalance.assigned(ids) if ids else {}
        self._assigned.update(ids)
        self._read_from(offsets)

    def _read_from(self, offsets: Mapping[PartitionId, int]) -> None:
        starts = [TopicPartition(*partition, offset) for partition, offset in offsets.items()]
        self._consumer.incremental_assign(starts)
        self._reading.update(offsets)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        ids = _partition_ids(partitions)
        self._rebalance.revoked(ids)
        self._forget(ids)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined_s = None
        ids = _partition_ids(partitions)
        self._rebalance.lost(ids)
        self._forget(ids)

    def _forget(self, partitions: Sequence[PartitionId]) -> None:
        stopped = self._reading.intersection(partitions)
        for partition in partitions:
            self._ends_reached.pop(partition, None)
        for known in (self._assigned, self._reading, self._at_end, self._out_of_range):
            known.difference_update(partitions)
        self._consumer.incremental_unassign([TopicPartition(*partition) for partition in stopped])


@contextmanager
def open_reader(
    *, kafka: Mapping[str, str], group: str, rebalance: Rebalance, observe: Observer
) -> Iterator[TopicReader]:
    """Open a member of a group; on exit its partitions are revoked and it leaves.

    Raises:
        ConfigError: Kafka is not configured, or a setting is wrong.
    """
    reader = TopicReader(kafka=kafka, group=group, rebalance=rebalance, observe=observe)
    try:
        yield reader
    finally:
        reader.close()


def count_messages(
    kafka: Mapping[str, str], begins: Mapping[PartitionId, int], *, timeout_s: float
) -> dict[PartitionId, int]:
    """Count the messages that a consumer would receive from these offsets to the ends.

    Offsets alone are not enough: transaction markers and aborted or compacted messages use some.
    The messages are read, so use it for small counts; a partition whose end is not reached in time
    is omitted.
    """
    counts = dict.fromkeys(begins, 0)
    done: dict[PartitionId, int] = {}
    deadline = time.monotonic() + timeout_s
    fixed = {**_FIXED, "group.id": _COUNTER, "auto.offset.reset": EARLIEST}
    with (
        translated("cannot count messages", kafka),
        closing(Consumer(client_config(kafka, fixed))) as consumer,
    ):
        consumer.assign([TopicPartition(*each, offset) for each, offset in begins.items()])
        while len(done) < len(begins) and time.monotonic() < deadline:
            for message in consumer.consume(_COUNTED, timeout=_COUNT_WAIT_S):
                partition = (message.topic() or "", cast("int", message.partition()))
                error = message.error()
                if error is None:
                    counts[partition] += 1
                elif error.code() == AT_END:
                    done.setdefault(partition, counts[partition])
    return done


def _partition_ids(partitions: Sequence[TopicPartition]) -> list[PartitionId]:
    return [(partition.topic, partition.partition) for partition in partitions]
