"""Topics -> tables, by any number of processes, exactly once.

Rows and the offsets they reach are committed together, and a commit is refused where the table
does not stand at the offset at which its rows begin (`storage/offsets.py`). So whoever reads a
partition twice, for whatever reason, writes it once; the loser reads on from the table's offset.

One thread reads and decodes, another one commits; at most one commit is under way.

A topic that is deleted and recreated keeps its name, and librdkafka reads on in the new one at the
old offset. So the brokers are asked for the topics' ids every second and before every commit: what
was read before the question, and only that, is from the topic with the id of the answer.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2cli.columns import joined
from k2cli.errors import BadData, ConfigError, NotFound, Unavailable
from k2cli.events import Observer, Outage
from k2cli.ingestion.kafka.consumer import (
    EARLIEST,
    Message,
    Rebalance,
    TopicReader,
)
from k2cli.ingestion.kafka.deadletters import DeadLetter, DeadLetters, dead_letter
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.topics import IdentityRequest, Place, TopicIdentity
from k2cli.pipelines.sinks import ConflictReport, is_outage, report_commit
from k2cli.records import KINDS, RecordKind
from k2cli.rejects import MAX_REJECT_BYTES, Fault, RejectLog
from k2cli.storage.append import Commit, SourcePosition
from k2cli.storage.offsets import (
    KEY,
    OffsetPosition,
    Partition,
    PositionMoved,
    Span,
    decode_offsets,
)

T = TypeVar("T")
_READ: Final = 10_000  # messages at once
_WAIT_S: Final = 0.2
_BATCH_BYTES: Final = 128 << 20  # of rows; a commit is due sooner than by their number
_MOST_FILLED: Final = 1  # batches that wait for the commit under way
_RETRY_S: Final = (0.5, 1.0, 2.0, 5.0)
_IDENTIFY_S: Final = 1.0  # between two questions for the topics' ids
_LAST_ANSWER_S: Final = 1.0  # how long the end of a run waits for the brokers' answer


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumePolicy:
    """When to commit, where to begin, and when to stop."""

    batch_rows: int
    commit_interval_s: float
    timeout_s: float  # for an answer to one question
    start: str | int = EARLIEST  # or latest, or UTC milliseconds: where a table has no position
    is_until_end: bool = False
    max_messages: int | None = None
    duration_s: float | None = None
    is_bad_fatal: bool = False
    is_group_told: bool = True  # of the offsets that were committed, for lag tools


@dataclass(slots=True, kw_only=True)
class ConsumeTotals:
    """The sums of one run."""

    messages: int = 0
    rows: int = 0
    rejects: int = 0
    duplicates: int = 0
    conflicts: int = 0  # rows left out whose id is stored with other values
    missing: int = 0  # offsets that the brokers deleted before they were read
    commits: int = 0
    lost_commits: int = 0  # to another consumer
    duration_s: float = 0.0


class Tables(Protocol):
    """Where rows and offsets go, together."""

    def kind(self, kind: RecordKind) -> RecordKind:
        """Return a kind with the columns that its table has by now."""

    def held(self, kind: RecordKind, key: str) -> str | None:
        """Return the position that the kind's table stands at."""

    def append(self, kind: RecordKind, rows: pa.Table, *, source: SourcePosition) -> Commit:
        """Take rows and the position they reach, or neither."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlets:
    """Where everything goes that was read."""

    tables: Tables
    letters: DeadLetters  # messages that cannot be decoded
    rejects: RejectLog  # rows whose id is stored with other values
    max_reject_bytes: int = MAX_REJECT_BYTES  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A topic, and what is in it."""

    topic: str
    topic_id: str
    kind: RecordKind
    messages: MessageReader


@dataclass(slots=True)
class _Pending:
    """What was read, and is not committed yet."""

    rows: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)  # by kind
    spans: dict[str, dict[Partition, Span]] = field(default_factory=dict)  # by kind
    letters: list[DeadLetter] = field(default_factory=list)
    newest_ms: dict[Place, int] = field(default_factory=dict)  # of the last message
    messages: int = 0
    size_bytes: int = 0
    since: float = 0.0  # monotonic
    certain: "_Pending | None" = None  # the part that was read from the topics that `spans` names
    is_cut: bool = False  # to that part

    def copy(self) -> "_Pending":
        """Copy what there is so far."""
        return replace(
            self,
            rows={name: list(batches) for name, batches in self.rows.items()},
            spans={name: dict(spans) for name, spans in self.spans.items()},
            letters=list(self.letters),
            newest_ms=dict(self.newest_ms),
            certain=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """Which topics are these? And what had been read when the brokers were asked."""

    request: IdentityRequest
    pending: _Pending
    so_far: _Pending  # a copy of `pending`
    ends: Mapping[Place, int]


class Consumption:
    """Moves topics into their tables until stopped. `totals` are live."""

    def __init__(
        self,
        *,
        feeds: Sequence[Feed],
        outlets: Outlets,
        policy: ConsumePolicy,
        observe: Observer,
    ) -> None:
        self.totals: Final = ConsumeTotals()
        self.next_offsets: Final[dict[Place, int]] = {}  # where reading goes on
        self.committed: Final[dict[Place, int]] = {}  # what the table has, up to this offset
        self.committed_ms: Final[dict[Place, int]] = {}  # time of the newest committed message
        self._feeds = {feed.topic: feed for feed in feeds}
        self._tables = outlets.tables
        self._letters = outlets.letters
        self._rejects = outlets.rejects
        self._max_reject_bytes = outlets.max_reject_bytes
        self._conflicts = ConflictReport(observe)
        self._policy = policy
        self._observe = observe
        self._pending = _Pending()
        self._unread: list[Message] = []  # received, but they wait for their schemas
        self._wait_s = _WAIT_S  # for messages
        self._commit: Future[_Pending] | None = None
        # Where the table stands once all that was handed over is committed; None: nowhere yet.
        self._base: dict[Place, int | None] = {}
        self._must_rewind = False
        self._is_stopping = False
        self._question: _Question | None = None
        self._asked_at = -math.inf  # monotonic
        self._sizes: dict[str, int] = {}  # of topics: how many partitions
        self._missing: dict[str, float] = {}  # topics that do not exist now; since when, monotonic
        self._reported: set[str] = set()  # topics that were recreated
        # Of partitions: where reading began, and where they ended when their topic was last seen.
        self._begun: dict[Place, int] = {}
        self._ends: dict[Place, int] = {}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")

    @property
    def rebalance(self) -> Rebalance:
        """What a reader of these topics has to call."""
        return Rebalance(assigned=self._assigned, revoked=self._revoked, lost=self._lost)

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to end."""
        return self._is_stopping

    def stop(self) -> None:
        """Ask for the end: what was read already is committed. Any thread."""
        self._is_stopping = True

    def run(
        self, reader: TopicReader, on_read: Callable[[TopicReader], None] = lambda _: None
    ) -> ConsumeTotals:
        """Read, decode and commit to the end, and commit the rest.

        Raises:
            BadData: a message became no row, and that is to end the run; all before is committed.
            NotFound: a topic that was to be read to its end was deleted.
            K2Error: what does not mend itself.
        """
        started = time.monotonic()
        self._reader = reader
        reader.subscribe(list(self._feeds))
        try:
            while not self._is_over(started):
                self._step()
                self.totals.duration_s = time.monotonic() - started
                on_read(reader)
            self._flush()
        except (BadData, NotFound):
            self._flush()
            raise
        finally:
            self._worker.shutdown()
            self._commit, self._pending = None, _Pending()
            self.totals.duration_s = time.monotonic() - started
        return self.totals

    def _is_over(self, started: float) -> bool:
        policy = self._policy
        if policy.duration_s is not None and time.monotonic() - started >= policy.duration_s:
            return True
        if policy.max_messages is not None and self.totals.messages >= policy.max_messages:
            return True
        return self._is_stopping or (policy.is_until_end and self._is_at_end())

    def _is_at_end(self) -> bool:
        """Return whether all was read to its end, and committed.

        Raises:
            NotFound: a topic was deleted, and not recreated in time.
        """
        reader, timeout_s = self._reader, self._policy.timeout_s
        if self._missing:
            topic, since = min(self._missing.items(), key=lambda each: each[1])
            if time.monotonic() - since > timeout_s:
                raise NotFound(
                    f"topic {topic} was deleted before it was read to its end",
                    hint=f"k2 topic create {topic}",
                )
            return False
        is_at_end = reader.has_joined and reader.reading <= reader.at_end and not self._unread
        if not reader.reading:  # other members may be about to give some up
            is_at_end = is_at_end and time.monotonic() - reader.joined_at > timeout_s
        if is_at_end:
            self._flush()
        return is_at_end and not self._must_rewind

    def _step(self) -> None:
        messages = self._read()
        self._collect(is_waiting=False)
        if self._reader.out_of_range:  # the brokers deleted what was to be read next
            self._flush()
            self._must_rewind = True
        self._identify_topics()
        if self._must_rewind:
            self._rewind()
            return
        unread: list[Message] = []
        for topic, some in self._by_topic(messages).items():
            unread += some if self._is_stopping else self._take(self._feeds[topic], some)
        has_progress = len(unread) < len(messages)
        self._unread = unread + self._unread
        self._wait_s = 0.0 if self._unread and has_progress else _WAIT_S
        self._pass_ends()
        self._commit_if_due()

    def _read(self) -> list[Message]:
        """Return the messages to decode next: first those that wait for their schemas."""
        at_most = _READ
        if self._policy.max_messages is not None:
            at_most = min(_READ, self._policy.max_messages - self.totals.messages)
        fresh = self._reader.read(max(1, at_most - len(self._unread)), self._wait_s)
        messages = self._unread + fresh  # a rebalance within the read may have dropped some
        self._unread = messages[at_most:]
        return messages[:at_most]

    def _by_topic(self, messages: list[Message]) -> Mapping[str, list[Message]]:
        if len(self._feeds) == 1:
            return dict.fromkeys(self._feeds, messages)
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            by_topic.setdefault(message.topic() or "", []).append(message)
        return by_topic

    def _take(self, feed: Feed, messages: list[Message]) -> list[Message]:
        """Decode messages of one topic, and keep what they are for the next commit.

        Returns those that wait for their schemas: the last ones of them.

        Raises:
            BadData: one cannot be decoded, and that is to end the run; what came before it in its
                partition is kept for the last commit.
        """
        numbers = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
        offsets = np.fromiter(map(Message.offset, messages), np.int64, len(messages))
        is_ours = self._ours(feed.topic, numbers, offsets)
        if not is_ours.all():
            messages = [messages[place] for place in np.flatnonzero(is_ours).tolist()]
            numbers, offsets = numbers[is_ours], offsets[is_ours]
        if not messages:
            return []
        values = list(map(Message.value, messages))
        decoded = self._patiently(
            "registry_unavailable", lambda: feed.messages.read(values, numbers, offsets)
        )
        unread = messages[decoded.count :]
        if decoded.rejects and self._policy.is_bad_fatal:
            place, fault = decoded.rejects[0]
            is_before = _before_rejects(numbers[: decoded.count], decoded.rejects)
            kept = np.flatnonzero(is_before)
            rows = decoded.rows.filter(pa.array(is_before[decoded.places]))
            self._keep(feed, [messages[each] for each in kept.tolist()], numbers[kept], rows)
            raise _bad(dead_letter(messages[place], fault))
        self._pending.letters += [
            dead_letter(messages[place], fault) for place, fault in decoded.rejects
        ]
        self._keep(feed, messages[: decoded.count], numbers[: decoded.count], decoded.rows)
        return unread

    def _keep(
        self,
        feed: Feed,
        messages: Sequence[Message],
        numbers: npt.NDArray[np.int64],
        rows: pa.RecordBatch,
    ) -> None:
        """Keep the rows of messages for the next commit; `numbers` are those of partitions."""
        if not messages:
            return
        pending = self._pending
        if not pending.spans:
            pending.since = time.monotonic()
        pending.messages += len(messages)
        pending.size_bytes += rows.nbytes
        self.totals.messages += len(messages)
        pending.rows.setdefault(feed.kind.name, []).append(rows)
        for number in np.unique(numbers).tolist():
            last = messages[int(np.flatnonzero(numbers == number)[-1])]
            self._reach(feed, number, cast("int", last.offset()) + 1, last.timestamp()[1])

    def _ours(
        self, topic: str, numbers: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Leave out what a rebalance or a seek has made another's, or an old story."""
        is_ours = np.zeros(len(numbers), dtype=np.bool_)
        for number in np.unique(numbers).tolist():
            begin = self.next_offsets.get((topic, number))
            if begin is not None:
                is_ours |= (numbers == number) & (offsets >= begin)
        return is_ours

    def _pass_ends(self) -> None:
        """Reach the ends of partitions: behind the last message there may be no more of them.

        Markers of transactions, and what was aborted or compacted, take offsets and never arrive.
        """
        passed = self._reader.passed
        waiting = {(message.topic(), message.partition()) for message in self._unread}
        for topic, number in [place for place in passed if place not in waiting]:
            end = passed.pop((topic, number))
            begin = self.next_offsets.get((topic, number))
            if begin is not None and begin < end and topic not in self._missing:
                if not self._pending.spans:
                    self._pending.since = time.monotonic()
                self._reach(self._feeds[topic], number, end, None)

    def _reach(self, feed: Feed, number: int, offset: int, time_ms: int | None) -> None:
        place = (feed.topic, number)
        partition = Partition(feed.topic, feed.topic_id, number)
        spans = self._pending.spans.setdefault(feed.kind.name, {})
        before = spans.get(partition)
        expected = before.expected if before else self._base[place]
        spans[partition] = Span(expected=expected, reached=offset)
        if time_ms is not None:
            self._pending.newest_ms[place] = time_ms
        self.next_offsets[place] = offset

    def _commit_if_due(self) -> None:
        pending, policy = self._pending, self._policy
        age_s = time.monotonic() - pending.since
        fill = max(pending.messages / policy.batch_rows, pending.size_bytes / _BATCH_BYTES)
        if pending.spans and (fill >= 1 or age_s >= policy.commit_interval_s):
            if self._commit is not None:
                if fill < _MOST_FILLED:
                    return  # read on; the commit under way comes first
                self._collect(is_waiting=True)
            if not self._must_rewind:
                self._submit()

    def _submit(self) -> None:
        """Hand what is pending to the thread that commits."""
        pending, self._pending = self._pending, _Pending()
        for spans in pending.spans.values():
            for partition, span in spans.items():
                self._base[(partition.topic, partition.number)] = span.reached
        self._commit = self._worker.submit(self._write, pending)

    def _write(self, read: _Pending) -> _Pending:
        """Make what was read durable, the dead letters first. Runs in the commit's thread."""
        pending = self._attributed(read)
        if pending.letters:
            self._rejects.check_size(self._max_reject_bytes)
            self._patiently(
                "dead_letters_unavailable", lambda: self._letters.write(pending.letters)
            )
            self.totals.rejects += len(pending.letters)
            first = pending.letters[0]
            self._observe(
                "reject",
                count=len(pending.letters),
                topic=first.message.topic(),
                partition=first.message.partition(),
                offset=first.message.offset(),
                reason=first.reason,
            )
        for name, spans in pending.spans.items():
            self._append(KINDS[name], self._rows(name, pending), spans)
        return pending

    def _rows(self, name: str, pending: _Pending) -> pa.Table:
        if name in pending.rows:
            return joined(pending.rows[name])
        kind = self._patiently("catalog_unavailable", lambda: self._tables.kind(KINDS[name]))
        return kind.arrow.empty_table()

    def _attributed(self, pending: _Pending) -> _Pending:
        """Return what was read from the topics that it is to be committed under: most often all.

        The rest may be from a topic that was recreated meanwhile.
        """
        ids = _ids(pending)
        try:
            if ids == self._ids_now({topic for topic, _ in ids}):
                return pending
        except Unavailable as exc:  # and the run is to end
            self._observe("kafka_unavailable", reason=str(exc))
        return replace(pending.certain or _Pending(), is_cut=True)

    def _append(self, kind: RecordKind, rows: pa.Table, spans: Mapping[Partition, Span]) -> None:
        commit = self._patiently(
            "catalog_unavailable",
            lambda: self._tables.append(kind, rows, source=OffsetPosition(spans)),
        )
        self.totals.rows += commit.rows
        self.totals.duplicates += commit.duplicates
        self.totals.conflicts += commit.conflicts
        self._rejects.write(self._conflicts.report(kind, commit.conflicts, commit.examples))
        self._rejects.sync()
        if commit.snapshot_id is None:
            return
        self.totals.commits += 1
        report_commit(self._observe, kind, commit)

    def _collect(self, *, is_waiting: bool) -> None:
        """Take note of what became of the commit under way, if it has ended."""
        if self._commit is None or not (is_waiting or self._commit.done()):
            return
        ended, self._commit = self._commit, None
        try:
            written = ended.result()
        except PositionMoved as exc:
            self.totals.lost_commits += 1
            self._observe("commit_lost", reason=str(exc))
            self._pending = _Pending()
            self._must_rewind = True
            return
        except BadData:
            self._pending = _Pending()  # it follows on what was not committed
            raise
        self.committed_ms.update(written.newest_ms)
        if written.is_cut:
            self._pending = _Pending()
            self._must_rewind = True
            return
        reached = {
            (partition.topic, partition.number): span.reached
            for spans in written.spans.values()
            for partition, span in spans.items()
        }
        self.committed.update(reached)
        if self._policy.is_group_told:
            self._reader.tell(reached)

    def _flush(self) -> None:
        """Commit all that was read, unless it is another's by now."""
        self._collect(is_waiting=True)
        if self._pending.spans and not self._must_rewind:
            self._submit()
            self._collect(is_waiting=True)

    def _identify_topics(self) -> None:
        """Ask every second which topics these are, and act on the answer once it is there."""
        reader, question, now = self._reader, self._question, time.monotonic()
        if question is None:
            if reader.is_topic_gone or now - self._asked_at >= _IDENTIFY_S:
                reader.is_topic_gone, self._asked_at = False, now
                self._question = _Question(
                    request=self._reader.ask_identities(self._feeds),
                    pending=self._pending,
                    so_far=self._pending.copy(),
                    ends=reader.ends(),
                )
        elif question.request.wait(0):
            self._question = None
            try:
                found = question.request.identities()
            except Unavailable as exc:
                self._observe("kafka_unavailable", reason=str(exc))
            else:
                self._learn(question, found)

    def _learn(self, question: _Question, found: Mapping[str, TopicIdentity | None]) -> None:
        """Take note of which topics these are."""
        same = {topic for topic, each in found.items() if each and self._is_same(topic, each)}
        if {topic for topic, _ in _ids(question.so_far)} <= same:
            question.pending.certain = question.so_far
        ends = {place: end for place, end in question.ends.items() if place[0] in same}
        kept = {
            place: end
            for place, end in self._ends.items()
            if place[0] not in same or place in self.next_offsets
        }
        self._ends = kept | ends
        has_changed = False
        for topic, identity in found.items():
            if identity is None:
                self._note_missing(topic)
                continue
            if not self._is_same(topic, identity):
                self._renew(topic, identity)
            elif topic in self._missing:
                self._flush()
                self._must_rewind = True
            was_missing = self._missing.pop(topic, None) is not None
            has_changed |= was_missing or self._sizes.get(topic) not in (None, identity.partitions)
            self._sizes[topic] = identity.partitions
        if has_changed:
            timeout_s = self._policy.timeout_s
            self._patiently("kafka_unavailable", lambda: self._reader.refresh(timeout_s))

    def _is_same(self, topic: str, identity: TopicIdentity) -> bool:
        return identity.id == self._feeds[topic].topic_id

    def _note_missing(self, topic: str, reason: str = "it was deleted") -> None:
        """Wait for a topic to exist again."""
        if topic not in self._missing:
            self._missing[topic] = time.monotonic()
            topic_id = self._feeds[topic].topic_id
            self._observe("topic_missing", topic=topic, topic_id=topic_id, reason=reason)

    def _renew(self, topic: str, identity: TopicIdentity) -> None:
        """Go over to a topic that was recreated.

        What certainly was read from the old one is committed; the rest of it is gone.
        """
        self._flush()
        self._must_rewind = True
        feed = self._feeds[topic]
        held = self._worker.submit(self._positions, {topic}).result()
        missing = 0
        for place in [place for place in self._ends if place[0] == topic]:
            position = held.get(Partition(topic, feed.topic_id, place[1]), 0)
            reached = max(position, self._begun.get(place, 0))
            missing += max(0, self._ends.pop(place) - reached)
        self.totals.missing += missing
        self._feeds[topic] = replace(feed, topic_id=identity.id)
        self._reported.add(topic)
        self._observe(
            "topic_recreated",
            topic=topic,
            old_id=feed.topic_id,
            new_id=identity.id,
            missing=missing,
        )

    def _identities(self, topics: Iterable[str]) -> dict[str, TopicIdentity | None]:
        request = self._reader.ask_identities(topics)
        while not request.wait(_WAIT_S):
            if self._is_stopping and not request.wait(_LAST_ANSWER_S):
                raise Unavailable("the brokers do not answer")
        return request.identities()

    def _ids_now(self, topics: Iterable[str]) -> set[tuple[str, str]]:
        found = self._patiently("kafka_unavailable", lambda: self._identities(topics))
        return {(topic, identity.id) for topic, identity in found.items() if identity}

    def _assigned(self, places: Sequence[Place]) -> Mapping[Place, int]:
        """Find out where the tables stand, and so where to read on.

        Partitions that do not exist now are left out, until `_identify_topics` finds them.
        """
        self._question = None
        topics = {topic for topic, _ in places}
        found = self._patiently("kafka_unavailable", lambda: self._identities(topics))
        for topic, identity in found.items():
            if identity is None:
                self._note_missing(topic)
            else:
                self._missing.pop(topic, None)
                if not self._is_same(topic, identity):
                    self._renew(topic, identity)
        held = self._commit_starts(places, found)
        offsets: dict[Place, int] = {}
        for topic in topics:
            numbers = [number for name, number in places if name == topic]
            for number in numbers:
                self.next_offsets.pop((topic, number), None)
            existing = [number for number in numbers if number < _size(found[topic])]
            try:
                bounds = {} if topic in self._missing else self._bounds(topic, existing)
            except NotFound as exc:
                self._note_missing(topic, str(exc))
                continue
            for place, (first, following) in bounds.items():
                partition = Partition(topic, self._feeds[topic].topic_id, place[1])
                self._base[place] = held.get(partition)
                self._ends[place] = following
                offsets[place] = self._start(place, first, following)
        self.next_offsets.update(offsets)
        self.committed.update(offsets)
        self._begun.update(offsets)
        self._observe(
            "assigned",
            partitions=_named(list(offsets)),
        )
        return offsets

    def _positions(self, topics: Iterable[str]) -> dict[Partition, int]:
        """Return the positions of topics, each as the table that it feeds has them."""
        names: dict[str, set[str]] = {}
        for topic in topics:
            names.setdefault(self._feeds[topic].kind.name, set()).add(topic)
        held: dict[Partition, int] = {}
        for name, fed in names.items():
            ask = partial(self._tables.held, KINDS[name], KEY)
            offsets = decode_offsets(self._patiently("catalog_unavailable", ask))
            held |= {each: offset for each, offset in offsets.items() if each.topic in fed}
        return held

    def _commit_starts(
        self, places: Sequence[Place], found: Mapping[str, TopicIdentity | None]
    ) -> dict[Partition, int]:
        """Commit where partitions begin that have no position; return the positions of all.

        Otherwise a run that ends before its first commit would let the next one begin elsewhere.
        """
        topics = {topic for topic, _ in places}
        while True:
            held = self._worker.submit(self._positions, topics).result()
            spans: dict[str, dict[Partition, Span]] = {}
            for topic in topics - self._missing.keys():
                numbers = [number for name, number in places if name == topic]
                starts = self._starts(topic, numbers, _size(found[topic]), held)
                spans.setdefault(self._feeds[topic].kind.name, {}).update(starts)
            try:
                for name, each in spans.items():
                    if each:
                        kind = self._tables.kind(KINDS[name])
                        rows = kind.arrow.empty_table()
                        self._worker.submit(self._append, KINDS[name], rows, each).result()
            except PositionMoved:
                continue  # another consumer was first: begin where it did
            begun = {each: span.reached for some in spans.values() for each, span in some.items()}
            return held | begun

    def _starts(
        self, topic: str, numbers: Sequence[int], size: int, held: Mapping[Partition, int]
    ) -> dict[Partition, Span]:
        """Return where partitions without a position begin, as far as that is to be committed.

        Where to begin is the user's choice for a topic that the table has never read, and then
        for all of its partitions at one moment: one that is added later, or a topic that is
        recreated, begins at its first record. That record being number 0, no position is needed.
        """
        topic_id = self._feeds[topic].topic_id
        ids = {partition.topic_id for partition in held if partition.topic == topic}
        if ids and topic_id not in ids and topic not in self._reported:
            self._reported.add(topic)
            old_ids = ",".join(sorted(ids))
            self._observe("topic_recreated", topic=topic, old_id=old_ids, new_id=topic_id)
        is_chosen = not ids and self._policy.start != EARLIEST
        lacking = [
            number
            for number in (range(size) if is_chosen else numbers)
            if number < size and Partition(topic, topic_id, number) not in held
        ]
        try:
            begins = self._begins(topic, lacking, is_chosen=is_chosen)
        except NotFound as exc:
            self._note_missing(topic, str(exc))
            return {}
        return {
            Partition(topic, topic_id, number): Span(expected=None, reached=offset)
            for (_, number), offset in begins.items()
            if offset or is_chosen
        }

    def _begins(
        self, topic: str, numbers: Sequence[int], *, is_chosen: bool
    ) -> Mapping[Place, int]:
        """Return the offsets that partitions without a position begin at.

        Raises:
            NotFound: the topic was deleted.
        """
        start = self._policy.start
        if not is_chosen or start == EARLIEST:
            return {place: first for place, (first, _) in self._bounds(topic, numbers).items()}
        time_ms = start if isinstance(start, int) else None
        places = [(topic, number) for number in numbers]
        return self._patiently(
            "kafka_unavailable", lambda: self._reader.offsets_at(places, time_ms)
        )

    def _bounds(self, topic: str, numbers: Sequence[int]) -> Mapping[Place, tuple[int, int]]:
        """Return the oldest offset of partitions, and the next one.

        Raises:
            NotFound: the topic was deleted, and perhaps recreated.
        """
        places = [(topic, number) for number in numbers]
        bounds = self._patiently("kafka_unavailable", lambda: self._reader.bounds(places))
        if (topic, self._feeds[topic].topic_id) not in self._ids_now([topic]):
            raise NotFound(f"topic {topic} was deleted or recreated")
        return bounds

    def _start(self, place: Place, first: int, following: int) -> int:
        """Return the offset to read on from, where the brokers have `first` to `following`.

        Raises:
            BadData: the brokers lost what was read before.
        """
        base = self._base[place]
        if base is None:
            return first
        if base > following:
            raise BadData(
                f"the table stands at offset {base} of {place[0]}/{place[1]}, which ends at"
                f" {following}: the brokers lost records that were read before",
                hint="roll the table back, or recreate the topic",
            )
        if base < first:
            missing = first - base
            self.totals.missing += missing
            self._observe(
                "gap",
                topic=place[0],
                partition=place[1],
                first=base,
                last=first - 1,
                missing=missing,
            )
        return max(base, first)

    def _revoked(self, places: Sequence[Place]) -> None:
        self._flush()
        self._forget(places)

    def _lost(self, places: Sequence[Place]) -> None:
        self._collect(is_waiting=True)
        self._pending = _Pending()
        self._must_rewind = True
        self._forget(places)

    def _forget(self, places: Sequence[Place]) -> None:
        for place in places:
            self._base.pop(place, None)
            self.next_offsets.pop(place, None)
            self.committed.pop(place, None)
            self.committed_ms.pop(place, None)
        gone = set(places)
        self._unread = [
            message
            for message in self._unread
            if (message.topic(), message.partition()) not in gone
        ]
        self._observe(
            "revoked",
            partitions=_named(places),
        )

    def _rewind(self) -> None:
        """Read on from where the tables stand."""
        self._collect(is_waiting=True)
        self._pending, self._unread = _Pending(), []
        self._must_rewind = False
        places = sorted(self._reader.assigned)
        if places:
            self._reader.seek(self._assigned(places))

    def _patiently(self, event: Outage, call: Callable[[], T]) -> T:
        """Call until the server behind it answers, or the run is to end."""
        waits = itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1]))
        while True:
            try:
                return call()
            except (Unavailable, ConfigError) as exc:
                has_committed = self.totals.commits > 0
                if self._is_stopping or not is_outage(exc, has_committed=has_committed):
                    raise
                wait_s = next(waits)
                self._observe(event, reason=str(exc), retry_in_s=wait_s)
            until = time.monotonic() + wait_s
            while time.monotonic() < until and not self._is_stopping:
                time.sleep(_WAIT_S)


def _ids(pending: _Pending) -> set[tuple[str, str]]:
    """Return names and ids of the topics that this is to be committed under."""
    return {(each.topic, each.topic_id) for spans in pending.spans.values() for each in spans}


def _size(identity: TopicIdentity | None) -> int:
    return identity.partitions if identity else 0


def _named(places: Sequence[Place]) -> str:
    """Name partitions: `market.crypto.trades/0,1,2,3`."""
    by_topic = itertools.groupby(sorted(places), key=lambda place: place[0])
    return " ".join(
        f"{topic}/{','.join(str(number) for _, number in some)}" for topic, some in by_topic
    )


def _before_rejects(
    numbers: npt.NDArray[np.int64], rejects: Sequence[tuple[int, Fault]]
) -> npt.NDArray[np.bool_]:
    """Return which messages come before the first reject of their partition."""
    is_before = np.ones(len(numbers), dtype=np.bool_)
    for place, _ in rejects:
        if is_before[place]:
            is_before[place:] &= numbers[place:] != numbers[place]
    return is_before


def _bad(letter: DeadLetter) -> BadData:
    message = letter.message
    place = f"{message.topic()}/{message.partition()} at offset {message.offset()}"
    return BadData(f"{place}: {letter.reason}", hint="leave out --on-bad stop to set it aside")
