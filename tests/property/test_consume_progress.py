"""The rules of `k2 consume` without any I/O: whatever happens, each record is stored exactly once.

The model has a topic that may be recreated, and a table with a position that others move too. The
machine does to `Progress` what the loop and the committer do, in any order.
"""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from k2cli.pipelines.consume.batch import Batch, Decoded, Reached
from k2cli.pipelines.consume.progress import Mark, Progress, Start
from k2cli.storage.offsets import (
    OffsetPosition,
    Partition,
    PositionMoved,
    decode_offsets,
    encode_offsets,
)

TOPIC = "t"
NUMBERS = st.sampled_from((0, 1))
COUNTS = st.integers(1, 5)
Record = tuple[str, int, int]  # id of the topic, number of the partition, offset


@dataclass
class Log:
    """The offsets of a partition; those in `markers` never arrive."""

    first: int = 0
    end: int = 0
    markers: set[int] = field(default_factory=set)

    def offsets(self, begin: int) -> list[int]:
        """Return the offsets of the records from one on."""
        return [each for each in range(begin, self.end) if each not in self.markers]


@dataclass
class Topic:
    """One of the topics that have had the name."""

    id: str
    logs: dict[int, Log] = field(default_factory=lambda: {0: Log(), 1: Log()})


class ProgressMachine(RuleBasedStateMachine):
    """One consumer of a topic of two partitions; `stored` is what the table holds."""

    def __init__(self) -> None:
        super().__init__()
        self.topic = Topic("id-0")
        self.topics = [self.topic]
        self.progress = Progress({TOPIC: self.topic.id})
        self.stored: list[Record] = []
        self.missing: set[Record] = set()  # deleted before they were read
        self.moved: set[Partition] = set()  # by other consumers, since they were assigned
        self.position: str | None = None
        self.assigned: set[int] = set()
        self.under_way: Batch | None = None
        self.outcome: Batch | None = None  # of the batch under way; None: it is refused
        self.is_written = False
        self.mark: Mark | None = None

    @initialize(count=st.integers(0, 9), is_assigned=st.booleans())
    def begin(self, count: int, is_assigned: bool) -> None:
        for number in (0, 1):
            self.produce(number, count)
            if is_assigned:
                self.assign(number)

    # --- the world

    def produce(self, number: int, count: int) -> None:
        self.topic.logs[number].end += count

    @rule(
        event=st.sampled_from(("markers", "deletion", "commit", "recreation")),
        number=NUMBERS,
        count=COUNTS,
    )
    def change_the_world(self, event: str, number: int, count: int) -> None:
        match event:
            case "markers":
                self.end_transactions(number, count)
            case "deletion":
                self.delete_records(number, count)
            case "commit":
                self.commit_as_another_consumer(number, count)
            case _:
                self.recreate_topic(count)

    def end_transactions(self, number: int, count: int) -> None:
        """Append offsets without records."""
        log = self.topic.logs[number]
        log.markers.update(range(log.end, log.end + count))
        log.end += count

    def delete_records(self, number: int, count: int) -> None:
        log = self.topic.logs[number]
        log.first = min(log.first + count, log.end)

    def recreate_topic(self, produced: int) -> None:
        self.topic = Topic(f"id-{len(self.topics)}")
        self.topics.append(self.topic)
        for log in self.topic.logs.values():  # so many that reading may go on at the old offset
            log.end = produced * 4

    def commit_as_another_consumer(self, number: int, count: int) -> None:
        log, partition = self.topic.logs[number], Partition(TOPIC, self.topic.id, number)
        begin = self.start(number).offset
        offsets = log.offsets(begin)[:count]
        if offsets:
            self.note_missing(number)
            self.stored += [(self.topic.id, number, each) for each in offsets]
            held = decode_offsets(self.position)
            self.position = encode_offsets({**held, partition: offsets[-1] + 1})
            self.moved.add(partition)

    # --- the group

    @rule(number=NUMBERS, is_too_late=st.booleans())
    def rebalance(self, number: int, is_too_late: bool) -> None:
        """Assign a partition, or take it back: revoked, or lost if it `is_too_late`."""
        if number not in self.assigned:
            self.assign(number)
            return
        if is_too_late:
            self.collect()
            self.progress.require_rewind()
        else:
            self.flush()
        self.assigned.discard(number)
        self.progress.release([(TOPIC, number)])

    def assign(self, number: int) -> None:
        """Take over a partition."""
        self.assigned.add(number)
        self.take_over([number])

    # --- the loop

    @precondition(lambda self: not self.progress.must_rewind)
    @rule(number=NUMBERS, count=COUNTS, again=st.integers(0, 3))
    def read(self, number: int, count: int, again: int) -> None:
        """Read messages, some of which were read before or are of partitions that are gone."""
        log, partition = self.topic.logs[number], (TOPIC, number)
        begin = self.progress.next_offsets().get(partition, 0)
        if not log.offsets(begin):
            self.produce(number, count)
        offsets = [each for each in log.offsets(max(0, begin - again)) if each >= log.first]
        offsets = offsets[: again + count]
        numbers = np.full(len(offsets), number)
        is_owned = self.progress.owned(TOPIC, numbers, np.array(offsets, np.int64))
        owned = np.array(offsets, np.int64)[is_owned].tolist()
        assert owned == [each for each in offsets if number in self.assigned and each >= begin]
        # What the brokers deleted is noticed before anything after it arrives.
        if owned and log.first <= begin:
            records = [f"{self.topic.id}/{number}/{each}" for each in owned]
            decoded = Decoded(
                kind="trades",
                rows=pa.record_batch({"record": records}),
                messages=len(owned),
                reached={partition: Reached(owned[-1] + 1, owned[-1])},
            )
            self.progress.keep(decoded, now_s=0.0)

    @precondition(lambda self: not self.progress.must_rewind)
    @rule()
    def reach_ends(self) -> None:
        """Go on behind the markers at the end of partitions that were read to their last record."""
        ends = {}
        for number in self.assigned:
            log, begin = self.topic.logs[number], self.progress.next_offsets().get((TOPIC, number))
            if begin is not None and log.first <= begin and not log.offsets(begin):
                ends[TOPIC, number] = log.end
        self.progress.keep_ends(ends, now_s=0.0)

    @precondition(lambda self: self.under_way is None and self.progress.pending.spans)
    @rule()
    def hand_over(self) -> None:
        self.submit()

    @precondition(lambda self: self.under_way is not None and not self.is_written)
    @rule()
    def write(self) -> None:
        """Let the commit under way reach the table; its outcome is not known yet."""
        batch = self.under_way
        assert batch is not None
        if batch.topic_ids() != {(TOPIC, self.topic.id)}:
            batch = batch.cut()
        self.is_written = True
        try:
            if batch.spans:
                self.position = OffsetPosition(batch.spans).advance(self.position)
        except PositionMoved:
            assert self.moved & set(batch.spans)
            return
        self.outcome = batch
        for rows in batch.rows.get("trades", []):
            for record in rows["record"].to_pylist():
                topic_id, number, offset = record.split("/")
                self.stored.append((topic_id, int(number), int(offset)))
                assert Partition(TOPIC, topic_id, int(number)) in batch.spans

    @precondition(lambda self: self.under_way is not None)
    @rule()
    def finish(self) -> None:
        self.collect()

    @precondition(lambda self: self.has_lost_records())
    @rule()
    def notice_deleted_records(self) -> None:
        self.flush()
        self.progress.require_rewind()

    @precondition(lambda self: self.progress.pending.spans)
    @rule()
    def commit_everything(self) -> None:
        self.flush()

    @precondition(lambda self: self.progress.must_rewind)
    @rule()
    def rewind(self) -> None:
        self.collect()
        self.progress.rewind()
        self.take_over(sorted(self.assigned))

    # --- which topic it is

    @rule()
    def ask(self) -> None:
        ends = {(TOPIC, each): self.topic.logs[each].end for each in (0, 1)}
        self.mark = self.progress.mark(ends)

    @precondition(lambda self: self.mark is not None)
    @rule()
    def hear(self) -> None:
        """Hear which topic it is; what was read before the question is from this one."""
        mark, self.mark = self.mark, None
        assert mark is not None
        is_same = self.topic.id == self.progress.topic_id(TOPIC)
        self.progress.confirm(mark, {TOPIC} if is_same else set())
        if not is_same:
            self.renew()

    # --- what holds at every moment

    @invariant()
    def every_record_is_stored_once(self) -> None:
        assert len(self.stored) == len(set(self.stored))

    @invariant()
    def what_lies_before_the_position_is_stored(self) -> None:
        expected: set[Record] = set()
        held = decode_offsets(self.position)
        for topic in self.topics:
            for number, log in topic.logs.items():
                reached = held.get(Partition(TOPIC, topic.id, number), 0)
                expected |= {(topic.id, number, each) for each in log.offsets(0) if each < reached}
        assert set(self.stored) | self.missing >= expected
        assert set(self.stored) <= expected

    @invariant()
    def nothing_is_pending_before_a_rewind(self) -> None:
        pending = self.progress.pending
        assert not (self.progress.must_rewind and (pending.spans or pending.rows))

    def teardown(self) -> None:
        """Whatever has happened, a consumer that is left alone comes to the end."""
        for number in (0, 1):
            self.assigned.add(number)
        self.collect()
        self.progress.require_rewind()
        while self.progress.must_rewind:  # twice if the topic turns out to be another one
            self.rewind()
        for number in (0, 1):
            self.read(number=number, count=self.topic.logs[number].end + 1, again=0)
        self.reach_ends()
        self.flush()
        assert not self.progress.must_rewind
        ends = {(TOPIC, number): log.end for number, log in self.topic.logs.items()}
        assert self.progress.committed() == self.progress.next_offsets() == ends
        everything = {
            (self.topic.id, number, each)
            for number, log in self.topic.logs.items()
            for each in log.offsets(0)
        }
        stored = {record for record in self.stored if record[0] == self.topic.id}
        assert stored | self.missing >= everything
        assert not stored & self.missing

    # --- what the loop does in several of these

    def collect(self) -> None:
        """Wait for the commit under way."""
        if self.under_way is None:
            return
        if not self.is_written:
            self.write()
        outcome, self.under_way = self.outcome, None
        if outcome is None:
            self.progress.require_rewind()
        else:
            self.progress.commit(outcome)

    def start(self, number: int) -> Start:
        """Return where a partition of the current topic is to be read from."""
        log, partition = self.topic.logs[number], Partition(TOPIC, self.topic.id, number)
        stored = decode_offsets(self.position).get(partition)
        return Start(stored=stored, first=log.first, end=log.end)

    def has_lost_records(self) -> bool:
        """Return whether the next record of a partition was deleted."""
        logs, next_offsets = self.topic.logs, self.progress.next_offsets()
        return any(next_offsets.get((TOPIC, each), 0) < logs[each].first for each in self.assigned)

    def note_missing(self, number: int) -> None:
        """Note what is gone before it was read: from the stored position, or from the start."""
        start = self.start(number)
        gone = range(start.stored or 0, start.offset)
        self.missing |= {(self.topic.id, number, each) for each in gone}

    def take_over(self, numbers: list[int]) -> None:
        """Read partitions from where the table stands."""
        self.mark = None
        if self.topic.id != self.progress.topic_id(TOPIC):
            self.renew()
        self.progress.suspend([(TOPIC, each) for each in numbers])
        for number in numbers:
            self.note_missing(number)
            self.moved.discard(Partition(TOPIC, self.topic.id, number))
        starts = {(TOPIC, each): self.start(each) for each in numbers}
        offsets = self.progress.assign(starts)
        assert offsets == {partition: start.offset for partition, start in starts.items()}

    def renew(self) -> None:
        """Switch to a topic that was recreated."""
        self.flush()
        missing = self.progress.recreate(TOPIC, self.topic.id, decode_offsets(self.position))
        assert missing >= 0

    def submit(self) -> None:
        """Hand over what is pending."""
        self.under_way, self.outcome, self.is_written = self.progress.hand_over(), None, False

    def flush(self) -> None:
        """Commit what was read."""
        self.collect()
        if self.progress.pending.spans and not self.progress.must_rewind:
            self.submit()
            self.collect()


TestProgress = ProgressMachine.TestCase
TestProgress.settings = settings(max_examples=150, stateful_step_count=50)
