"""The progress of a run in every partition, and when to rewind: no I/O, clock or threads.

A partition has four offsets, in ascending order: the brokers' first one, the committed one, the one
handed over for a commit, and the one read. A span of a batch starts where the previous one ended,
so a table at another position refuses it. After a refusal, or if a partition may have been lost,
everything uncommitted is dropped and reading resumes at the tables' positions: this is a rewind.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from k2cli.errors import BadData
from k2cli.ingestion.kafka.topics import PartitionId
from k2cli.pipelines.consume.batch import Batch, Decoded, Reached
from k2cli.storage.offsets import Partition, Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a partition is read from."""

    stored: int | None  # the table's position; None: it has none
    first: int  # the brokers' oldest offset
    end: int  # the offset of the next record

    @property
    def offset(self) -> int:
        """The offset to read from."""
        return self.first if self.stored is None else max(self.stored, self.first)

    @property
    def missing(self) -> int:
        """How many offsets the brokers deleted before they were read."""
        return 0 if self.stored is None else self.offset - self.stored


@dataclass(frozen=True, slots=True)
class Mark:
    """A snapshot of what was read. Created by `Progress.mark`."""

    pending: Batch
    so_far: Batch  # a copy of `pending`
    ends: Mapping[PartitionId, int]


class Progress:
    """Offsets and spans of the partitions that a run reads.

    After `assign`, `keep` and `keep_ends` extend the pending batch; `hand_over` takes it, and
    `commit` records its commit. `require_rewind` drops the pending batch; nothing may be kept until
    `rewind`. `next_offsets`, `committed` and `committed_ms` may be read by any thread.
    """

    def __init__(self, topic_ids: Mapping[str, str]) -> None:
        """Prepare for topics with these ids, by name."""
        self._topic_ids = dict(topic_ids)
        self._pending = Batch()
        self._must_rewind = False
        self._next: dict[PartitionId, int] = {}
        self._committed: dict[PartitionId, int] = {}
        self._committed_ms: dict[PartitionId, int] = {}
        # The table's position once everything handed over is committed; None: no position yet.
        self._base: dict[PartitionId, int | None] = {}
        # Start offsets, and the partitions' ends when their topic was last identified.
        self._begun: dict[PartitionId, int] = {}
        self._ends: dict[PartitionId, int] = {}

    def next_offsets(self) -> dict[PartitionId, int]:
        """Return the next offset to read, by partition."""
        return self._next.copy()

    def committed(self) -> dict[PartitionId, int]:
        """Return the committed offsets of the tables."""
        return self._committed.copy()

    def committed_ms(self) -> dict[PartitionId, int]:
        """Return the times of the newest committed messages, in UTC milliseconds."""
        return self._committed_ms.copy()

    @property
    def pending(self) -> Batch:
        """The batch that was read but not handed over yet."""
        return self._pending

    @property
    def must_rewind(self) -> bool:
        """Whether reading must resume at the tables' positions."""
        return self._must_rewind

    def topic_id(self, topic: str) -> str:
        """Return the id of the topic being read under this name."""
        return self._topic_ids[topic]

    def identify(self, partition: PartitionId) -> Partition:
        """Return a partition with the id of its topic."""
        return Partition(partition[0], self._topic_ids[partition[0]], partition[1])

    # --- partitions

    def assign(self, starts: Mapping[PartitionId, Start]) -> dict[PartitionId, int]:
        """Take over partitions; return the offsets to read them from.

        Raises:
            BadData: the brokers lost what was read before.
        """
        for partition, start in starts.items():
            if start.stored is not None and start.stored > start.end:
                raise BadData(
                    f"the table is at offset {start.stored} of {partition[0]}/{partition[1]}, which"
                    f" ends at {start.end}: the brokers lost records that were read before",
                    hint="roll the table back, or recreate the topic",
                )
        self._base |= {partition: start.stored for partition, start in starts.items()}
        self._ends |= {partition: start.end for partition, start in starts.items()}
        offsets = {partition: start.offset for partition, start in starts.items()}
        for known in (self._next, self._committed, self._begun):
            known.update(offsets)
        return offsets

    def suspend(self, partitions: Iterable[PartitionId]) -> None:
        """Stop reading these partitions until they are assigned again."""
        for partition in partitions:
            self._next.pop(partition, None)

    def release(self, partitions: Iterable[PartitionId]) -> None:
        """Drop partitions that now belong to another member."""
        for partition in partitions:
            for known in (self._base, self._next, self._committed, self._committed_ms):
                known.pop(partition, None)

    def recreate(self, topic: str, topic_id: str, stored: Mapping[Partition, int]) -> int:
        """Switch to a topic that was recreated with this id, and require a rewind.

        `stored` has the tables' positions. Returns how many unstored records of the old topic are
        lost.
        """
        missing = 0
        for partition in [partition for partition in self._ends if partition[0] == topic]:
            reached = max(stored.get(self.identify(partition), 0), self._begun.get(partition, 0))
            missing += max(0, self._ends.pop(partition) - reached)
        self._topic_ids[topic] = topic_id
        self.require_rewind()
        return missing

    # --- reading

    def owned(
        self, topic: str, numbers: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """Return which messages to keep: unread ones of the assigned partitions.

        `numbers` are partition numbers. Other messages were fetched before a rebalance or a seek.
        """
        is_owned = np.zeros(len(numbers), dtype=np.bool_)
        for number in np.unique(numbers).tolist():
            begin = self._next.get((topic, number))
            if begin is not None:
                is_owned |= (numbers == number) & (offsets >= begin)
        return is_owned

    def keep(self, decoded: Decoded, *, now_s: float) -> None:
        """Add decoded messages to the pending batch."""
        self._begin_batch(now_s)
        pending = self._pending
        pending.messages += decoded.messages
        pending.size_bytes += decoded.rows.nbytes + sum(each.size_bytes for each in decoded.letters)
        pending.rows.setdefault(decoded.kind, []).append(decoded.rows)
        pending.letters += decoded.letters
        for partition, reached in decoded.reached.items():
            self._reach(partition, reached)

    def keep_ends(self, ends: Mapping[PartitionId, int], *, now_s: float) -> None:
        """Advance to the ends of partitions: after the last message there may be more offsets.

        Transaction markers and aborted or compacted messages use offsets but never arrive.
        """
        for partition, end in ends.items():
            begin = self._next.get(partition)
            if begin is not None and begin < end:
                self._begin_batch(now_s)
                self._reach(partition, Reached(end, None))

    def _begin_batch(self, now_s: float) -> None:
        if not self._pending.spans:
            self._pending.began_s = now_s

    def _reach(self, partition: PartitionId, reached: Reached) -> None:
        span = Span(expected=self._base[partition], reached=reached.offset)
        self._pending.spans[self.identify(partition)] = span
        if reached.time_ms is not None:
            self._pending.newest_ms[partition] = reached.time_ms
        self._next[partition] = reached.offset

    # --- committing

    def hand_over(self) -> Batch:
        """Take the pending batch; the next one starts at its end."""
        batch, self._pending = self._pending, Batch()
        self._base |= batch.reached()
        return batch

    def commit(self, batch: Batch) -> dict[PartitionId, int]:
        """Record the commit of a batch; return the offsets it reached.

        After a truncated batch no offsets are certain, which requires a rewind.
        """
        self._committed_ms.update(batch.newest_ms)
        if batch.is_cut:
            self.require_rewind()
            return {}
        reached = batch.reached()
        self._committed.update(reached)
        return reached

    def drop(self) -> None:
        """Drop the pending batch: it follows a batch that cannot be committed."""
        self._pending = Batch()

    def require_rewind(self) -> None:
        """Drop the pending batch; reading must resume at the tables' positions."""
        self.drop()
        self._must_rewind = True

    def rewind(self) -> None:
        """Start over; `assign` sets the offsets."""
        self.drop()
        self._must_rewind = False

    # --- topic identities

    def mark(self, ends: Mapping[PartitionId, int]) -> Mark:
        """Return a snapshot of what was read; `ends` are the partitions' ends."""
        return Mark(self._pending, self._pending.copy(), ends)

    def confirm(self, mark: Mark, topics: Collection[str]) -> None:
        """Confirm that at or after a mark these topics had the known ids."""
        if {topic for topic, _ in mark.so_far.topic_ids()} <= set(topics):
            mark.pending.confirmed = mark.so_far
        kept = {
            partition: end
            for partition, end in self._ends.items()
            if partition[0] not in topics or partition in self._next
        }
        self._ends = kept | {
            partition: end for partition, end in mark.ends.items() if partition[0] in topics
        }
