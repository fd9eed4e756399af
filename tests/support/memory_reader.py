"""A Kafka in memory: topics, groups, and members that read them as `TopicReader` does.

What k2 relies on is as it is with real brokers: a group takes partitions back before it hands them
on, callbacks run within a read, offsets of deleted records cannot be read, and a member whose topic
was recreated reads on at its old offset without noticing. `reader_contract.py` and
`consume_contract.py` hold both to that.
"""

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from k2cli.errors import NotFound
from k2cli.ingestion.kafka.consumer import Message, Rebalance
from k2cli.ingestion.kafka.topics import PartitionId, TopicIdentity

_IDLE_S = 0.001  # a read without messages, so that members in threads do not spin


@dataclass
class _Log:
    """The records of one partition, by offset; other offsets are markers, or were deleted."""

    first: int = 0
    end: int = 0
    values: dict[int, bytes | None] = field(default_factory=dict)


@dataclass
class _Topic:
    id: str
    logs: list[_Log]


class MemoryBroker:
    """Topics and groups. Any thread."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.group_offsets: dict[str, dict[PartitionId, int]] = {}
        self._topics: dict[str, _Topic] = {}
        self._groups: dict[str, _Group] = {}
        self._ids = itertools.count(1)

    def create(self, topic: str, *, partitions: int = 2) -> str:
        """Create a topic; return its id."""
        with self.lock:
            assert topic not in self._topics
            created = _Topic(f"id-{next(self._ids)}", [_Log() for _ in range(partitions)])
            self._topics[topic] = created
            return created.id

    def extend(self, topic: str, partitions: int) -> None:
        """Add partitions to a topic, up to this many."""
        with self.lock:
            logs = self._topics[topic].logs
            logs += [_Log() for _ in range(partitions - len(logs))]

    def delete(self, topic: str) -> None:
        """Delete a topic."""
        with self.lock:
            del self._topics[topic]

    def send(self, topic: str, partition: int, values: Iterable[bytes | None]) -> None:
        """Append records to a partition."""
        with self.lock:
            log = self._topics[topic].logs[partition]
            for value in values:
                log.values[log.end] = value
                log.end += 1

    def send_markers(self, topic: str, partition: int, count: int) -> None:
        """Append offsets that consumers never see, as transactions do."""
        with self.lock:
            self._topics[topic].logs[partition].end += count

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete the records of a partition before an offset."""
        with self.lock:
            log = self._topics[topic].logs[partition]
            log.first = max(log.first, min(before, log.end))
            log.values = {each: value for each, value in log.values.items() if each >= log.first}

    def topic(self, name: str) -> _Topic | None:
        """Return a topic, if it exists."""
        return self._topics.get(name)

    def log(self, partition: PartitionId) -> _Log | None:
        """Return a partition, if it exists."""
        topic = self._topics.get(partition[0])
        return topic.logs[partition[1]] if topic and partition[1] < len(topic.logs) else None

    def group(self, name: str) -> "_Group":
        """Return a group, which may have no members yet."""
        return self._groups.setdefault(name, _Group(self))

    @contextmanager
    def open_reader(self, *, group: str, rebalance: Rebalance) -> Iterator["MemoryReader"]:
        """Open a member of a group; on exit its partitions are revoked and it leaves."""
        reader = MemoryReader(self, group=group, rebalance=rebalance)
        try:
            yield reader
        finally:
            reader.close()


class _Group:
    """Who may read which partition, and who still does."""

    def __init__(self, broker: MemoryBroker) -> None:
        self.members: list[MemoryReader] = []
        self.owners: dict[PartitionId, MemoryReader] = {}
        self._broker = broker

    def target(self, member: "MemoryReader") -> set[PartitionId]:
        """Return the partitions that a member should have: they are dealt out in turn."""
        if member not in self.members:
            return set()
        topics = {topic for each in self.members for topic in each.topics}
        existing = {name: topic for name in topics if (topic := self._broker.topic(name))}
        partitions = sorted(
            (name, number) for name, topic in existing.items() for number in range(len(topic.logs))
        )
        turn, count = self.members.index(member), len(self.members)
        return set(partitions[turn::count])

    def owned(self, member: "MemoryReader") -> set[PartitionId]:
        """Return the partitions that a member has not given up."""
        return {partition for partition, owner in self.owners.items() if owner is member}


class _Answer:
    """The identities of topics when the question was asked."""

    def __init__(self, identities: Mapping[str, TopicIdentity | None]) -> None:
        self._identities = identities

    def wait(self, timeout_s: float) -> bool:
        """Return True: it is known at once."""
        return timeout_s >= 0

    def identities(self) -> Mapping[str, TopicIdentity | None]:
        """Return it."""
        return self._identities


class MemoryReader:
    """A member of a group in memory; the methods are those of `TopicReader`.

    `before_read` is called at the start of every read, to change the world around the reader.
    A read returns at most `fetch` messages of each partition.
    """

    def __init__(self, broker: MemoryBroker, *, group: str, rebalance: Rebalance) -> None:
        self.topics: list[str] = []
        self.before_read: Callable[[], None] = lambda: None
        self.fetch = 1_000
        self.reads_s: list[float] = []  # monotonic; when `read` was called
        self._broker = broker
        self._group_name = group
        self._group = broker.group(group)
        self._rebalance = rebalance
        self._next: dict[PartitionId, int] = {}  # of the partitions that are read
        self._at_end: set[PartitionId] = set()
        self._ends_reported: dict[PartitionId, int] = {}
        self._ends_reached: dict[PartitionId, int] = {}
        self._out_of_range: set[PartitionId] = set()
        self._is_topic_gone = False
        self._is_expired = False
        self._joined_s: float | None = None

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group."""
        self.topics = list(topics)
        with self._broker.lock:
            self._group.members.append(self)

    def expire(self) -> None:
        """Let the group give this member's partitions away, which it learns in its next read."""
        with self._broker.lock:
            self._is_expired = True
            if self in self._group.members:
                self._group.members.remove(self)
            for partition in self._group.owned(self):
                del self._group.owners[partition]

    def report_topic_gone(self) -> None:
        """Let it seem, until the next `take_topic_gone`, that a topic was deleted."""
        self._is_topic_gone = True

    def close(self) -> None:
        """Leave the group."""
        with self._broker.lock:
            owned = self._group.owned(self)
            if self in self._group.members:
                self._group.members.remove(self)
        self._give_up(owned)

    def read(self, at_most: int, timeout_s: float) -> list[Message]:
        """Take part in a rebalance, then return messages."""
        assert at_most > 0
        self.reads_s.append(time.monotonic())
        self.before_read()
        self._rejoin()
        self._rebalance_now()
        messages: list[Message] = []
        with self._broker.lock:
            for partition in sorted(self._next):
                messages += self._fetched(partition, min(self.fetch, at_most - len(messages)))
        if not messages:
            time.sleep(min(timeout_s, _IDLE_S))
        return sorted(messages, key=_offset)  # partitions take turns

    def seek(self, offsets: Mapping[PartitionId, int]) -> None:
        """Read these partitions from these offsets, and none of the others."""
        assert set(offsets) <= set(self.assigned())
        self._next = dict(offsets)
        self._at_end.difference_update(offsets)
        for reported in (self._ends_reported, self._ends_reached):
            reported.clear()
        self._out_of_range.clear()

    def assigned(self) -> list[PartitionId]:
        """Return the partitions that the group assigned, sorted."""
        with self._broker.lock:
            return sorted(self._group.owned(self))

    def is_at_end(self, *, patience_s: float) -> bool:
        """Return whether all partitions were read to their ends."""
        if self._joined_s is None:
            return False
        if not self._next:
            return time.monotonic() - self._joined_s > patience_s
        return self._next.keys() <= self._at_end

    def take_ends(self, waiting: Collection[PartitionId]) -> dict[PartitionId, int]:
        """Return the ends reached since the last call, except in `waiting` partitions."""
        partitions = [partition for partition in self._ends_reached if partition not in waiting]
        return {partition: self._ends_reached.pop(partition) for partition in partitions}

    def has_lost_records(self) -> bool:
        """Return whether the next record of a partition was deleted."""
        return bool(self._out_of_range)

    def take_topic_gone(self) -> bool:
        """Return whether a topic seems to have been deleted since the last call."""
        is_gone, self._is_topic_gone = self._is_topic_gone, False
        return is_gone

    def ends(self) -> dict[PartitionId, int]:
        """Return the next offset of every partition that is read."""
        with self._broker.lock:
            return {
                partition: log.end
                for partition in self._next
                if (log := self._broker.log(partition))
            }

    def bounds(self, partitions: Sequence[PartitionId]) -> dict[PartitionId, tuple[int, int]]:
        """Return the oldest and the next offset of each partition."""
        with self._broker.lock:
            return {
                partition: (self._log(partition).first, self._log(partition).end)
                for partition in partitions
            }

    def offsets_at(
        self, partitions: Sequence[PartitionId], time_ms: int | None
    ) -> dict[PartitionId, int]:
        """Return the ends: records have no times here."""
        assert time_ms is None
        return {partition: end for partition, (_, end) in self.bounds(partitions).items()}

    def ask_identities(self, names: Iterable[str]) -> _Answer:
        """Return which topics have these names now."""
        with self._broker.lock:
            topics = {name: self._broker.topic(name) for name in names}
            return _Answer(
                {
                    name: TopicIdentity(id=topic.id, partitions=len(topic.logs)) if topic else None
                    for name, topic in topics.items()
                }
            )

    def refresh(self, timeout_s: float) -> None:
        """Do nothing: the group notices changes at once."""
        assert timeout_s > 0

    def commit_group_offsets(self, offsets: Mapping[PartitionId, int]) -> None:
        """Write the group's offsets."""
        with self._broker.lock:
            self._broker.group_offsets.setdefault(self._group_name, {}).update(offsets)

    def _rejoin(self) -> None:
        """After an expired session: lose everything, and join again."""
        if self._is_expired:
            self._is_expired, self._joined_s = False, None
            lost = sorted(self._next)
            self._rebalance.lost(lost)
            self._forget(lost)
            with self._broker.lock:
                self._group.members.append(self)

    def _rebalance_now(self) -> None:
        """Give up what others should have; take over what nobody has any more."""
        with self._broker.lock:
            target, owned = self._group.target(self), self._group.owned(self)
        self._give_up(owned - target)
        with self._broker.lock:
            free = sorted(target - self._group.owners.keys())
            self._group.owners.update(dict.fromkeys(free, self))
        if free:
            self._next.update(self._rebalance.assigned(free))
        if free or self._joined_s is None:
            self._joined_s = time.monotonic()

    def _give_up(self, partitions: Collection[PartitionId]) -> None:
        if partitions:
            self._rebalance.revoked(sorted(partitions))
            self._forget(partitions)
            with self._broker.lock:
                for partition in partitions:
                    self._group.owners.pop(partition, None)

    def _forget(self, partitions: Iterable[PartitionId]) -> None:
        for partition in partitions:
            for known in (self._next, self._ends_reached, self._ends_reported):
                known.pop(partition, None)
            self._at_end.discard(partition)
            self._out_of_range.discard(partition)

    def _fetched(self, partition: PartitionId, at_most: int) -> list[Message]:
        """Return the next messages of a partition, and notice its end and other events."""
        log, offset = self._broker.log(partition), self._next[partition]
        if log is None:
            self._is_topic_gone = True
            return []
        if not log.first <= offset <= log.end:
            self._out_of_range.add(partition)
            return []
        offsets = [each for each in range(offset, log.end) if each in log.values][:at_most]
        is_end = not [each for each in log.values if each > (offsets or [offset - 1])[-1]]
        self._next[partition] = log.end if is_end else offsets[-1] + 1 if offsets else offset
        if is_end:
            self._reach_end(partition, log.end)
        return [
            Message(
                topic=partition[0],
                partition=partition[1],
                offset=each,
                value=log.values[each],
                timestamp=(1, each),
            )
            for each in offsets
        ]

    def _reach_end(self, partition: PartitionId, end: int) -> None:
        """Note an end, once as Kafka does."""
        self._at_end.add(partition)
        if self._ends_reported.get(partition) != end:
            self._ends_reported[partition] = self._ends_reached[partition] = end

    def _log(self, partition: PartitionId) -> _Log:
        log = self._broker.log(partition)
        if log is None:
            raise NotFound(f"{partition[0]}/{partition[1]} does not exist")
        return log


def _offset(message: Message) -> int:
    return message.offset() or 0
