"""Source -> sink: the one place where they meet. Totals, flush policy, rejects, the end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from k2cli.errors import BadData
from k2cli.flow import Batch, Committed, Observer, Reject, Sink, Source, Totals
from k2cli.rejects import RejectLog


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpPolicy:
    """When to commit, and when to stop."""

    flush_rows: int
    flush_interval_s: float
    duration_s: float | None = None
    max_rejects: int | None = None  # None: any number
    clock: Callable[[], float] = time.monotonic  # of the interval and the duration


class Pump:
    """Moves batches from a source to a sink until the source ends. `totals` are live."""

    def __init__(
        self,
        *,
        source: Source,
        sink: Sink,
        rejects: RejectLog,
        policy: PumpPolicy,
        observe: Observer,
    ) -> None:
        self.totals: Final = Totals()
        self._source = source
        self._sink = sink
        self._rejects = rejects
        self._policy = policy
        self._observe = observe
        self._clock = policy.clock
        self._pending_rows = 0
        self._pending_since = 0.0
        self._is_sink_broken = False

    def run(self, on_batch: Callable[[Batch], None] = lambda _: None) -> Totals:
        """Pump to the end, commit the rest, return the totals. `on_batch` sees every batch.

        Raises:
            BadData: more rejects than allowed; all before them is committed.
        """
        started = self._clock()
        try:
            for batch in self._source.batches():
                self._take(batch)
                on_batch(batch)
                self.totals.duration_s = self._clock() - started
                self._check_limits()
        finally:
            # Also when the source failed: what was read before is kept.
            if not self._is_sink_broken:
                self._commit()
            self.totals.duration_s = self._clock() - started
        if self._has_too_many_rejects():
            raise BadData(
                f"{self.totals.rejects} rejects; allowed are {self._policy.max_rejects}",
                hint=f"see {self._rejects.path}",
            )
        return self.totals

    def _take(self, batch: Batch) -> None:
        self.totals.messages += batch.messages
        self.totals.reconnects = batch.session
        for kind, ids in batch.seen:  # first: rows beside them open no gap then
            self._count_pending(ids.num_rows)
            self._sink.see(kind, ids)
        for kind, rows in batch.rows:
            self._count_pending(rows.num_rows)
            self._sink.write(kind, rows)
        self._reject(batch.rejects)

    def _reject(self, rejects: Sequence[Reject]) -> None:
        if rejects:
            self.totals.rejects += len(rejects)
            self._rejects.write(rejects)
            self._observe(
                "reject",
                count=len(rejects),
                position=rejects[0].position,
                reason=rejects[0].reason,
                file=str(self._rejects.path),
            )

    def _count_pending(self, rows: int) -> None:
        if not self._pending_rows:
            self._pending_since = self._clock()
        self._pending_rows += rows

    def _check_limits(self) -> None:
        policy = self._policy
        age_s = self._clock() - self._pending_since
        is_due = self._pending_rows and age_s >= policy.flush_interval_s
        if is_due or self._pending_rows >= policy.flush_rows:
            self._commit()
        is_over = policy.duration_s is not None and self.totals.duration_s >= policy.duration_s
        if is_over or self._has_too_many_rejects():
            self._source.stop()

    def _has_too_many_rejects(self) -> bool:
        limit = self._policy.max_rejects
        return limit is not None and self.totals.rejects > limit

    def _commit(self) -> None:
        self._is_sink_broken = True
        is_complete = False
        while not is_complete:
            self._rejects.sync()
            committed = self._sink.commit()
            self._add(committed)
            self._reject(committed.unfit)
            is_complete = not committed.unfit
        self._is_sink_broken = False
        self._pending_rows = 0

    def _add(self, committed: Committed) -> None:
        self.totals.rows += committed.rows
        self.totals.duplicates += committed.duplicates
        self.totals.conflicts += committed.conflicts
        self.totals.missing += committed.missing
        self.totals.commits += committed.commits
        if committed.rejects:
            self._rejects.write(committed.rejects)
            self._rejects.sync()
