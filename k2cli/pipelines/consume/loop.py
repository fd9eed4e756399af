"""Consume topics into tables, exactly once, with any number of processes.

Rows and their end offsets are committed together, and a commit is refused unless the table is at
the offset where its rows start (`storage/offsets.py`). So if two consumers read the same partition,
for whatever reason, it is written once; the one whose commit is refused resumes at the table's
offset.

One thread reads and decodes, another one commits. `progress.py` has the rules, without I/O.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from k2cli.errors import BadData, NotFound
from k2cli.events import Observer
from k2cli.ingestion.kafka.consumer import Rebalance
from k2cli.ingestion.kafka.topics import PartitionId
from k2cli.pipelines.consume.committer import Committer
from k2cli.pipelines.consume.identities import Identities
from k2cli.pipelines.consume.intake import Intake
from k2cli.pipelines.consume.patience import Patience
from k2cli.pipelines.consume.policy import ConsumePolicy, ConsumeTotals, Feed, Outlets
from k2cli.pipelines.consume.progress import Progress
from k2cli.pipelines.consume.reader import Reader
from k2cli.pipelines.consume.run import Run
from k2cli.pipelines.consume.starts import Starts, partition_names
from k2cli.pipelines.consume.topics import TopicWatch
from k2cli.pipelines.consume.writer import BatchWriter


class Consumption:
    """Moves topics into their tables until stopped. `totals` and `progress` are live."""

    def __init__(
        self,
        *,
        feeds: Sequence[Feed],
        outlets: Outlets,
        policy: ConsumePolicy,
        observe: Observer,
    ) -> None:
        self.totals: Final = ConsumeTotals()
        self.progress: Final = Progress({feed.topic: feed.topic_id for feed in feeds})
        self._feeds = {feed.topic: feed for feed in feeds}
        self._outlets = outlets
        self._policy = policy
        self._observe = observe
        self._is_stopping = False

    @property
    def rebalance(self) -> Rebalance:
        """Callbacks that the reader passed to `run` must call after subscribing."""
        return Rebalance(assigned=self._assign, revoked=self._revoke, lost=self._lose)

    @property
    def is_stopping(self) -> bool:
        """Whether the run was asked to stop."""
        return self._is_stopping

    def stop(self) -> None:
        """Request the end: everything read so far is committed. Any thread."""
        self._is_stopping = True

    def run(
        self, reader: Reader, on_read: Callable[[Reader], None] = lambda _: None
    ) -> ConsumeTotals:
        """Read, decode and commit until the end; commit the rest.

        Raises:
            BadData: a message cannot be decoded and must stop the run; everything before it is
                committed.
            NotFound: a topic was deleted before it was read to its end.
            K2Error: a permanent error.
        """
        started_s = time.monotonic()
        run = Run(
            reader=reader,
            policy=self._policy,
            progress=self.progress,
            totals=self.totals,
            patience=Patience(
                is_stopping=lambda: self._is_stopping or self._policy.is_past(started_s),
                has_committed=lambda: self.totals.commits > 0,
                observe=self._observe,
            ),
            is_stopping=lambda: self._is_stopping,
            observe=self._observe,
        )
        self._loop = _Loop(run, self._feeds, self._outlets)
        reader.subscribe(list(self._feeds))
        self._loop.run(on_read, started_s)
        return self.totals

    def _assign(self, partitions: Sequence[PartitionId]) -> Mapping[PartitionId, int]:
        return self._loop.assign(partitions)

    def _revoke(self, partitions: Sequence[PartitionId]) -> None:
        self._loop.revoke(partitions)

    def _lose(self, partitions: Sequence[PartitionId]) -> None:
        self._loop.lose(partitions)


class _Loop:
    """One consumer run with its reader. All methods run in the reading thread."""

    def __init__(self, run: Run, feeds: Mapping[str, Feed], outlets: Outlets) -> None:
        self._run = run
        identities = Identities(run)
        writer = BatchWriter(
            run,
            outlets=outlets,
            kinds={topic: feed.kind for topic, feed in feeds.items()},
            find_ids=identities.ids,
        )
        self._committer = Committer(run, writer)
        self._topics = TopicWatch(run, self._committer, list(feeds))
        self._starts = Starts(
            run, committer=self._committer, topics=self._topics, identities=identities
        )
        self._intake = Intake(run, feeds)

    def run(self, on_read: Callable[[Reader], None], started_s: float) -> None:
        """Read until the run, which started at this monotonic time, ends; commit the rest."""
        try:
            while not self._is_over(started_s):
                self._step()
                self._run.totals.duration_s = time.monotonic() - started_s
                on_read(self._run.reader)
            self._committer.flush()
        except (BadData, NotFound):
            self._committer.flush()
            raise
        finally:
            self._committer.close()
            self._run.totals.duration_s = time.monotonic() - started_s

    # --- within a read: assignments of the group

    def assign(self, partitions: Sequence[PartitionId]) -> Mapping[PartitionId, int]:
        """Take over partitions; return where to resume."""
        return self._starts.assign(partitions)

    def revoke(self, partitions: Sequence[PartitionId]) -> None:
        """Commit what was read of partitions, and release them."""
        self._committer.flush()
        self._release(partitions)

    def lose(self, partitions: Sequence[PartitionId]) -> None:
        """Release partitions that already belong to another member."""
        self._committer.collect(is_waiting=True)
        self._run.progress.require_rewind()
        self._release(partitions)

    def _release(self, partitions: Sequence[PartitionId]) -> None:
        self._run.progress.release(partitions)
        self._intake.release(partitions)
        self._run.observe("revoked", partitions=partition_names(partitions))

    # --- the loop

    def _is_over(self, started_s: float) -> bool:
        policy = self._run.policy
        if policy.is_past(started_s):
            return True
        if policy.max_messages is not None and self._run.totals.messages >= policy.max_messages:
            return True
        return self._run.is_stopping() or (policy.is_until_end and self._is_at_end())

    def _is_at_end(self) -> bool:
        """Return whether everything was read to its end, and committed.

        Raises:
            NotFound: a topic was deleted, and not recreated in time.
        """
        if self._topics.has_missing() or self._intake.waiting():
            return False
        # Other members may be about to release partitions to one that has none.
        if not self._run.reader.is_at_end(patience_s=self._run.policy.timeout_s):
            return False
        self._committer.flush()
        return not self._run.progress.must_rewind

    def _step(self) -> None:
        messages = self._intake.read()
        self._committer.collect(is_waiting=False)
        if self._run.reader.has_lost_records():
            self._committer.flush()
            self._run.progress.require_rewind()
        self._topics.check()
        if self._run.progress.must_rewind:
            self._rewind()
            return
        self._intake.take(messages)
        self._keep_ends()
        self._committer.commit_if_due(time.monotonic())

    def _keep_ends(self) -> None:
        """Advance partitions that were read to their ends."""
        ends = self._run.reader.take_ends(self._intake.waiting())
        ends = {
            partition: end
            for partition, end in ends.items()
            if not self._topics.is_missing(partition[0])
        }
        self._run.progress.keep_ends(ends, now_s=time.monotonic())

    def _rewind(self) -> None:
        """Resume at the tables' positions."""
        self._committer.collect(is_waiting=True)
        self._run.progress.rewind()
        self._intake.drop()
        partitions = self._run.reader.assigned()
        if partitions:
            self._run.reader.seek(self._starts.assign(partitions))
