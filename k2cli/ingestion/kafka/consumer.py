"""Messages of topics, read by any number of processes that share a group.

Where to read on is the caller's to say: the brokers' committed offsets are written for the tools
that show lag, and never read.
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
from k2cli.ingestion.kafka.topics import IdentityRequest, Place, Topics
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
_PREFETCH_KBYTES: Final = 8 << 10  # beside it stands what each message costs by itself
# Members learn of a rebalance from their next heartbeat, and a hand-over takes two of them. With
# librdkafka's 3 s the first of several members reads a million records before it shares any.
_HEARTBEAT_MS: Final = 200
_CLOSED: Final = "cannot leave the group"
_LEAVE_S: Final = 20.0
_COUNTER: Final = "k2-status"  # of a client that never joins nor commits
_COUNTED: Final = 1_000  # messages at once
_COUNT_WAIT_S: Final = 0.2
_ANSWER_S: Final = 10.0  # for what is asked of the brokers
_FIXED: Final = {  # what k2 relies on; the group's id comes from the caller
    "group.protocol": "classic",
    "partition.assignment.strategy": "cooperative-sticky",
    "enable.auto.commit": False,  # the position is the table's
    "auto.offset.reset": "error",  # else librdkafka would skip over deleted records by itself
    "enable.partition.eof": True,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rebalance:
    """What to do when the group hands partitions out or takes them back.

    All three run inside `read`. `assigned` returns where to read on, by partition; a partition
    that it leaves out is not read until a `seek`. `revoked` is the last moment to commit what was
    read of these partitions; after `lost` it is too late: they belong to somebody else.
    """

    assigned: Callable[[Sequence[Place]], Mapping[Place, int]]
    revoked: Callable[[Sequence[Place]], None]
    lost: Callable[[Sequence[Place]], None]


class TopicReader:
    """A member of a consumer group. Made by `open_reader`, which also leaves the group."""

    def __init__(
        self, *, kafka: Mapping[str, str], group: str, rebalance: Rebalance, observe: Observer
    ) -> None:
        self._assigned: set[Place] = set()  # by the group
        self._reading: set[Place] = set()  # those of them that are read
        self._at_end: set[Place] = set()  # those that were read to their end, once
        self._ends_reached: dict[Place, int] = {}  # since the last `take_ends`
        self._out_of_range: set[Place] = set()  # whose next offset does not exist any more
        self._is_topic_gone = False  # as it seems, since the last `take_topic_gone`
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
                reason="k2 consume sets this itself: see --group and --from",
            )
        with translated("cannot start a Kafka consumer", kafka):
            self._consumer = Consumer(
                client_config(
                    kafka,
                    fixed,
                    heartbeat_interval_ms=_HEARTBEAT_MS,
                    queued_max_messages_kbytes=_PREFETCH_KBYTES,
                    queued_min_messages=100_000,
                    # Of compressed bytes, which may become ten times as many in memory.
                    fetch_message_max_bytes=1 << 20,
                    fetch_max_bytes=4 << 20,
                    # By default a full queue stops fetching for a second; it is read in less.
                    fetch_queue_backoff_ms=20,
                )
            )

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group; partitions come with one of the next reads."""
        with translated("cannot subscribe", self._kafka):
            self._consumer.subscribe(
                list(topics),
                on_assign=self._on_assign,
                on_revoke=self._on_revoke,
                on_lost=self._on_lost,
            )

    def read(self, at_most: int, timeout_s: float) -> list[Message]:
        """Return the messages that are there, after `timeout_s` perhaps none.

        Those of one partition come in their order. Outages are waited out, with an event.

        Raises:
            K2Error: what does not go away by itself.
        """
        with translated("cannot read", self._kafka):
            messages = self._consumer.consume(at_most, timeout=timeout_s)
        if not any(map(Message.error, messages)):
            return messages
        return [message for message in messages if not self._is_event(message)]

    def seek(self, offsets: Mapping[Place, int]) -> None:
        """Read these of the assigned partitions from these offsets, and none of the others.

        All are taken up anew: librdkafka cannot seek in a partition that ran out of its range.
        """
        with translated("cannot seek", self._kafka):
            self._consumer.incremental_unassign([TopicPartition(*each) for each in self._reading])
            self._reading.clear()
            self._read_from(offsets)
        self._at_end.difference_update(offsets)
        self._ends_reached.clear()
        self._out_of_range.clear()

    def assigned(self) -> list[Place]:
        """Return the partitions that the group assigned, sorted; some may not be read yet."""
        return sorted(self._assigned)

    def is_at_end(self, *, patience_s: float) -> bool:
        """Return whether all partitions that are read were read to their ends, once.

        A member without partitions says so only this long after the group last assigned any:
        other members may be about to give some up.
        """
        if self._joined_s is None:
            return False
        if not self._reading:
            return time.monotonic() - self._joined_s > patience_s
        return self._reading <= self._at_end

    def take_ends(self, waiting: Collection[Place]) -> dict[Place, int]:
        """Return the ends reached since the last call, except those of `waiting` partitions.

        An end may lie beyond the offset after the last message. Those of partitions whose messages
        still wait for something are returned by a later call.
        """
        places = [place for place in self._ends_reached if place not in waiting]
        return {place: self._ends_reached.pop(place) for place in places}

    def has_lost_records(self) -> bool:
        """Return whether the brokers deleted the next record of a partition; `seek` resets it."""
        return bool(self._out_of_range)

    def take_topic_gone(self) -> bool:
        """Return whether a topic seems to have been deleted since the last call."""
        is_gone, self._is_topic_gone = self._is_topic_gone, False
        return is_gone

    def bounds(self, places: Sequence[Place]) -> dict[Place, tuple[int, int]]:
        """Return the oldest offset of each partition, and the next one.

        Raises:
            NotFound: one of them does not exist.
        """
        return self._topics.bounds(places)

    def offsets_at(self, places: Sequence[Place], time_ms: int | None) -> dict[Place, int]:
        """Find the first offset with a message of this time or later; None is the end.

        Raises:
            NotFound: one of the partitions does not exist.
        """
        return self._topics.offsets_at(places, time_ms)

    def ask_identities(self, names: Iterable[str]) -> IdentityRequest:
        """Ask which topics have these names now, and do not wait for the answer."""
        return self._topics.ask_identities(names)

    def ends(self) -> dict[Place, int]:
        """Return the next offset of every partition that is read, as of the last fetch."""
        ends = {}
        for place in self._reading:
            known = self._consumer.get_watermark_offsets(TopicPartition(*place), cached=True)
            if known is not None and known[1] >= 0:
                ends[place] = known[1]
        return ends

    def refresh(self, timeout_s: float) -> None:
        """Let the group notice now, not in some minutes, that topics or partitions have changed."""
        with translated("cannot list the topics", self._kafka):
            self._consumer.list_topics(timeout=timeout_s)

    def commit_group_offsets(self, offsets: Mapping[Place, int]) -> None:
        """Write the group's offsets, for tools that show lag. A failure is an event."""
        held = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        try:
            self._consumer.commit(offsets=held, asynchronous=True)
        except KafkaException as exc:
            self._observe("group_offsets", reason=exc.args[0].str())

    def close(self, *, patience_s: float = _LEAVE_S) -> None:
        """Leave the group.

        Now and then librdkafka waits for ever for its group to let it go. After `patience_s` it is
        left alone, with an event: the group takes its partitions back when its session has ended.
        """
        self._is_closing = True
        leaving = begin(self._consumer.close)
        with translated(_CLOSED, self._kafka):
            try:
                leaving.result(patience_s)
            except TimeoutError:
                self._observe("group_not_left", waited_s=patience_s)

    def _is_event(self, message: Message) -> bool:
        """Tell whether this is no message, but word of one; raise what does not mend itself."""
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
            return  # too late to read anything; they are revoked next
        self._joined_s = time.monotonic()
        places = _places(partitions)
        offsets = self._rebalance.assigned(places) if places else {}
        self._assigned.update(places)
        self._read_from(offsets)

    def _read_from(self, offsets: Mapping[Place, int]) -> None:
        starts = [TopicPartition(*place, offset) for place, offset in offsets.items()]
        self._consumer.incremental_assign(starts)
        self._reading.update(offsets)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        places = _places(partitions)
        self._rebalance.revoked(places)
        self._forget(places)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        self._joined_s = None
        places = _places(partitions)
        self._rebalance.lost(places)
        self._forget(places)

    def _forget(self, places: Sequence[Place]) -> None:
        stopped = self._reading.intersection(places)
        for place in places:
            self._ends_reached.pop(place, None)
        for known in (self._assigned, self._reading, self._at_end, self._out_of_range):
            known.difference_update(places)
        self._consumer.incremental_unassign([TopicPartition(*place) for place in stopped])


@contextmanager
def open_reader(
    *, kafka: Mapping[str, str], group: str, rebalance: Rebalance, observe: Observer
) -> Iterator[TopicReader]:
    """Open a member of a group; at the end it leaves, which revokes its partitions first.

    Raises:
        ConfigError: Kafka is not set up, or a setting is wrong.
    """
    reader = TopicReader(kafka=kafka, group=group, rebalance=rebalance, observe=observe)
    try:
        yield reader
    finally:
        reader.close()


def count_messages(
    kafka: Mapping[str, str], begins: Mapping[Place, int], *, timeout_s: float
) -> dict[Place, int]:
    """Count the messages that a consumer would receive from these offsets to the ends.

    Offsets do not tell: markers of transactions and what was aborted or compacted take some. The
    messages are read, so this is for a few; a partition whose end is not reached in time is left
    out.
    """
    counts = dict.fromkeys(begins, 0)
    done: dict[Place, int] = {}
    deadline = time.monotonic() + timeout_s
    fixed = {**_FIXED, "group.id": _COUNTER, "auto.offset.reset": EARLIEST}
    with (
        translated("cannot count messages", kafka),
        closing(Consumer(client_config(kafka, fixed))) as consumer,
    ):
        consumer.assign([TopicPartition(*each, offset) for each, offset in begins.items()])
        while len(done) < len(begins) and time.monotonic() < deadline:
            for message in consumer.consume(_COUNTED, timeout=_COUNT_WAIT_S):
                place = (message.topic() or "", cast("int", message.partition()))
                error = message.error()
                if error is None:
                    counts[place] += 1
                elif error.code() == AT_END:
                    done.setdefault(place, counts[place])
    return done


def _places(partitions: Sequence[TopicPartition]) -> list[Place]:
    return [(partition.topic, partition.partition) for partition in partitions]
