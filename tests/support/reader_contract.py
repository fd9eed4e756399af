"""What k2 relies on of a member of a group: the same tests for Kafka and for the one in memory."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

from k2cli.errors import NotFound
from k2cli.ingestion.kafka.consumer import Message, Rebalance
from k2cli.ingestion.kafka.topics import PartitionId
from support.consuming import Brokers
from support.waiting import PATIENCE_S

if TYPE_CHECKING:
    from k2cli.pipelines.consume.reader import Reader

_READ_S = 0.2
Seen = tuple[PartitionId, int, bytes | None]


class Member:
    """A reader, with what it was asked and what it has read."""

    def __init__(self, begins: Mapping[PartitionId, int] | None = None) -> None:
        """Prepare to read from these offsets, and all other partitions from offset 0."""
        self.calls: list[tuple[str, list[PartitionId]]] = []
        self.seen: list[Seen] = []
        self.left_out: set[PartitionId] = set()
        self.reader: Reader
        self._begins = begins or {}

    @property
    def rebalance(self) -> Rebalance:
        """What the reader has to call."""
        return Rebalance(assigned=self._assigned, revoked=self._revoked, lost=self._lost)

    def read_until(self, is_over: Callable[[], object], *others: "Member") -> None:
        """Read, and let other members read in turn, until something is true."""
        deadline = time.monotonic() + PATIENCE_S
        while not is_over():
            assert time.monotonic() < deadline, (self.calls, self.seen)
            for member in (self, *others):
                member.seen += map(_seen, member.reader.read(100, _READ_S))

    def of(self, partition: PartitionId) -> list[tuple[int, bytes | None]]:
        """Return what was read of a partition: offsets and values."""
        return [(offset, value) for seen, offset, value in self.seen if seen == partition]

    def _assigned(self, partitions: Sequence[PartitionId]) -> Mapping[PartitionId, int]:
        self.calls.append(("assigned", sorted(partitions)))
        return {
            partition: self._begins.get(partition, 0)
            for partition in partitions
            if partition not in self.left_out
        }

    def _revoked(self, partitions: Sequence[PartitionId]) -> None:
        self.calls.append(("revoked", sorted(partitions)))

    def _lost(self, partitions: Sequence[PartitionId]) -> None:
        self.calls.append(("lost", sorted(partitions)))


class ReaderContract:
    """Subclasses have a fixture `brokers`."""

    @pytest.fixture
    def topic(self, brokers: Brokers, topic_name: str) -> str:
        """A topic of two partitions with five records each: 0-0 to 0-4 and 1-0 to 1-4."""
        brokers.create(topic_name)
        for number in (0, 1):
            brokers.send(topic_name, number, [f"{number}-{n}".encode() for n in range(5)])
        return topic_name

    def test_partitions_are_read_in_order_from_where_the_caller_says(
        self, brokers: Brokers, topic: str
    ) -> None:
        with joined(brokers, topic, Member({(topic, 1): 3})) as member:
            member.read_until(lambda: len(member.seen) == 7)
            assert member.calls == [("assigned", [(topic, 0), (topic, 1)])]
            assert member.reader.assigned() == [(topic, 0), (topic, 1)]
        assert member.of((topic, 0)) == [(n, f"0-{n}".encode()) for n in range(5)]
        assert member.of((topic, 1)) == [(3, b"1-3"), (4, b"1-4")]

    def test_leaving_gives_all_partitions_up(self, brokers: Brokers, topic: str) -> None:
        with joined(brokers, topic, Member()) as member:
            member.read_until(member.reader.assigned)
        assert member.calls[-1] == ("revoked", [(topic, 0), (topic, 1)])
        assert member.reader.assigned() == []

    def test_a_partition_that_is_left_out_is_read_after_a_seek(
        self, brokers: Brokers, topic: str
    ) -> None:
        member = Member()
        member.left_out.add((topic, 0))
        with joined(brokers, topic, member):
            member.read_until(lambda: member.reader.is_at_end(patience_s=0))
            assert member.of((topic, 0)) == []
            assert member.reader.assigned() == [(topic, 0), (topic, 1)]
            member.reader.seek({(topic, 0): 4, (topic, 1): 5})
            member.read_until(lambda: member.of((topic, 0)))
        assert member.of((topic, 0)) == [(4, b"0-4")]
        assert len(member.of((topic, 1))) == 5

    def test_a_seek_reads_again_and_stops_what_it_does_not_name(
        self, brokers: Brokers, topic: str
    ) -> None:
        with joined(brokers, topic, Member()) as member:
            member.read_until(lambda: len(member.seen) == 10)
            member.seen.clear()
            member.reader.seek({(topic, 1): 2})
            brokers.send(topic, 0, [b"0-5"])
            brokers.send(topic, 1, [b"1-5"])
            member.read_until(lambda: len(member.seen) == 4)
            member.read_until(lambda: member.reader.is_at_end(patience_s=0))
        assert member.seen == [((topic, 1), n, f"1-{n}".encode()) for n in range(2, 6)]

    def test_every_end_is_returned_once_and_not_while_its_partition_waits(
        self, brokers: Brokers, topic: str
    ) -> None:
        with joined(brokers, topic, Member()) as member:
            member.read_until(lambda: member.reader.is_at_end(patience_s=0))
            assert member.reader.take_ends({(topic, 0)}) == {(topic, 1): 5}
            assert member.reader.take_ends(set()) == {(topic, 0): 5}
            assert member.reader.take_ends(set()) == {}
            brokers.send(topic, 1, [b"1-5"])
            ends: dict[PartitionId, int] = {}
            member.read_until(lambda: ends.update(member.reader.take_ends(set())) or ends)
            assert ends == {(topic, 1): 6}
            assert member.reader.ends() == {(topic, 0): 5, (topic, 1): 6}

    def test_a_partition_is_given_up_before_it_is_handed_on(
        self, brokers: Brokers, topic: str
    ) -> None:
        calls: list[tuple[str, list[PartitionId]]] = []
        one, two = Member(), Member()
        one.calls = two.calls = calls
        with joined(brokers, topic, one):
            one.read_until(one.reader.assigned)
            with joined(brokers, topic, two):
                one.read_until(two.reader.assigned, two)
                assert len(one.reader.assigned()) == len(two.reader.assigned()) == 1
                assert [name for name, _ in calls] == ["assigned", "revoked", "assigned"]
                assert calls[1][1] == calls[2][1] == two.reader.assigned()
            one.read_until(lambda: len(one.reader.assigned()) == 2)

    def test_a_member_without_partitions_waits_for_its_share(
        self, brokers: Brokers, topic_name: str
    ) -> None:
        brokers.create(topic_name, partitions=1)
        one, two = Member(), Member()
        with joined(brokers, topic_name, one), joined(brokers, topic_name, two):
            assert not one.reader.is_at_end(patience_s=0)
            one.read_until(lambda: _are_at_end(one, two, patience_s=0), two)
            assert not _are_at_end(one, two, patience_s=PATIENCE_S)

    def test_deleted_records_are_noticed_until_a_seek(self, brokers: Brokers, topic: str) -> None:
        brokers.delete_records(topic, 0, 3)
        with joined(brokers, topic, Member()) as member:
            member.read_until(member.reader.has_lost_records)
            assert member.of((topic, 0)) == []
            assert member.reader.bounds([(topic, 0)]) == {(topic, 0): (3, 5)}
            member.reader.seek({(topic, 0): 3, (topic, 1): 5})
            assert not member.reader.has_lost_records()
            member.read_until(lambda: len(member.of((topic, 0))) == 2)
        assert member.of((topic, 0)) == [(3, b"0-3"), (4, b"0-4")]

    def test_a_recreated_topic_has_another_id(self, brokers: Brokers, topic: str) -> None:
        with joined(brokers, topic, Member()) as member:
            before = member.reader.ask_identities([topic]).identities()[topic]
            assert before is not None
            assert before.partitions == 2
            brokers.delete(topic)
            assert member.reader.ask_identities([topic]).identities() == {topic: None}
            with pytest.raises(NotFound):
                member.reader.bounds([(topic, 0)])
            created = brokers.create(topic, partitions=3)
            answer = member.reader.ask_identities([topic])
            while not answer.wait(_READ_S):
                pass
            after = answer.identities()[topic]
            assert after is not None
            assert (after.id, after.partitions) == (created, 3)
            assert after.id != before.id

    def test_latest_is_the_offset_of_the_next_record(self, brokers: Brokers, topic: str) -> None:
        with joined(brokers, topic, Member()) as member:
            brokers.send(topic, 1, [b"1-5"])
            partitions = [(topic, 0), (topic, 1)]
            assert member.reader.offsets_at(partitions, None) == {(topic, 0): 5, (topic, 1): 6}


@contextmanager
def joined(brokers: Brokers, topic: str, member: Member) -> Iterator[Member]:
    """Let a member join a group that has the name of its topic."""
    with ExitStack() as stack:
        member.reader = stack.enter_context(
            brokers.open_reader(group=topic, rebalance=member.rebalance)
        )
        member.reader.subscribe([topic])
        yield member


def _are_at_end(*members: Member, patience_s: float) -> bool:
    return all(member.reader.is_at_end(patience_s=patience_s) for member in members)


def _seen(message: Message) -> Seen:
    number, offset = message.partition(), message.offset()
    assert number is not None
    assert offset is not None
    return (message.topic() or "", number), offset, message.value()
