"""The pump from a source to a sink: totals, flush policy, rejects and shutdown.

An outage of the sink does not end a run: it keeps reading while the rows fit into memory, and
retries the commit. A run that is stopped meanwhile saves its rows for the next one.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from k2cli.errors import BadData, K2Error, Unavailable
from k2cli.events import Observer
from k2cli.flow import Batch, Sink, Source, Totals
from k2cli.rejects import Reject, RejectLog

_RETRY_S: Final = (0.5, 1.0, 2.0, 5.0)  # between commits during an outage
_WAIT_S: Final = 0.05
_MIB: Final = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpPolicy:
    """When to commit, and when to stop."""

    flush_rows: int
    flush_interval_s: float
    duration_s: float | None = None
    max_rejects: int | None = None  # None: any number
    max_reject_bytes: int | None = None  # of the file; None: any size
    max_held_bytes: int = 256 * _MIB  # of rows during an outage; above it reading pauses
    clock: Callable[[], float] = time.monotonic  # of the interval and the duration
    sleep: Callable[[float], None] = time.sleep


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
        self._started = 0.0
        self._recovering = sink.recover()
        self._pending_rows = 0
        self._recovered_rows = 0  # of these, rows saved by earlier runs: they are in files
        self._pending_since = 0.0
        self._held_bytes = 0  # of pending rows
        self._unwritten: list[Reject] = []  # not written to the rejects file yet
        self._failures = 0  # of commits in a row
        self._retry_at = -math.inf
        self._is_stopping = False
        self._is_sink_broken = False

    @property
    def is_stopping(self) -> bool:
        """Whether the run is ending and committing the rest."""
        return self._is_stopping

    def stop(self) -> None:
        """Request the end: everything read so far is committed. Any thread."""
        self._is_stopping = True
        self._source.stop()

    def run(self, on_batch: Callable[[Batch], None] = lambda _: None) -> Totals:
        """Pump to the end, commit the rest, return the totals. `on_batch` gets every batch.

        Raises:
            BadData: more rejects than allowed; everything before them is committed.
            Unavailable: the last commit failed; the message has the outcome of its rows.
        """
        self._started = self._clock()
        try:
            self._recover()
            for batch in self._source.batches():
                self._take(batch)
                on_batch(batch)
                self._check_limits()
        finally:
            # Also if the source failed: data read before is committed or saved.
            self._finish()
        if self._has_too_many_rejects():
            raise BadData(
                f"{self.totals.rejects} rejects (limit {self._policy.max_rejects})",
                hint=f"see {self._rejects.path}",
            )
        if self._is_reject_file_full():
            raise BadData(
                f"the rejects file has {self._rejects.size_bytes} bytes "
                f"(limit {self._policy.max_reject_bytes})",
                hint=f"move {self._rejects.path} elsewhere, or increase --max-reject-bytes",
            )
        return self.totals

    def _recover(self) -> None:
        """Commit rows saved by earlier runs, one file at a time, retrying during an outage."""
        for recovered in self._recovering:
            self._recovered_rows += recovered.rows
            self._count_pending(recovered.rows)
            self._held_bytes += recovered.size_bytes
            if self._commit() is not None:
                return

    def _take(self, batch: Batch) -> None:
        self.totals.messages += batch.messages
        self.totals.backfilled += batch.backfilled
        self.totals.reconnects = batch.session
        for kind, ids in batch.seen:  # first, so that newer rows do not open a gap
            self._count_pending(ids.num_rows)
            self._sink.see(kind, ids)
        for kind, rows in batch.rows:
            self._count_pending(rows.num_rows)
            self._held_bytes += rows.nbytes
            self._sink.write(kind, rows)
        if batch.notes:
            self._count_pending(batch.notes)
        self._reject(batch.rejects)

    def _reject(self, rejects: Sequence[Reject]) -> None:
        if rejects:
            self.totals.rejects += len(rejects)
            self._unwritten += rejects
            self._held_bytes += sum(len(reject.raw) for reject in rejects)
            with suppress(Unavailable):  # the next commit retries or reports it
                self._write_rejects()
            self._observe(
                "reject",
                count=len(rejects),
                position=rejects[0].position,
                reason=rejects[0].reason,
                file=str(self._rejects.path),
            )

    def _write_rejects(self) -> None:
        self._rejects.write(self._unwritten)
        self._unwritten.clear()

    def _count_pending(self, rows: int) -> None:
        if not self._pending_rows:
            self._pending_since = self._clock()
        self._pending_rows += rows

    def _check_limits(self) -> None:
        self._commit_if_due()
        self._stop_if_over()
        while self._is_memory_full() and not self._is_stopping:
            self._policy.sleep(_WAIT_S)
            self._commit_if_due()
            self._stop_if_over()

    def _commit_if_due(self) -> None:
        policy, now = self._policy, self._clock()
        is_old = self._pending_rows and now - self._pending_since >= policy.flush_interval_s
        is_due = is_old or self._pending_rows >= policy.flush_rows or self._unwritten
        if is_due and now >= self._retry_at and self._commit() is None:
            self._recover()

    def _stop_if_over(self) -> None:
        policy = self._policy
        self.totals.duration_s = self._clock() - self._started
        is_over = policy.duration_s is not None and self.totals.duration_s >= policy.duration_s
        if is_over or self._has_too_many_rejects() or self._is_reject_file_full():
            self.stop()

    def _is_memory_full(self) -> bool:
        """Return whether reading must pause until an outage ends."""
        return self._failures > 0 and self._held_bytes >= self._policy.max_held_bytes

    def _has_too_many_rejects(self) -> bool:
        limit = self._policy.max_rejects
        return limit is not None and self.totals.rejects > limit

    def _is_reject_file_full(self) -> bool:
        limit = self._policy.max_reject_bytes
        return limit is not None and self._rejects.size_bytes > limit

    def _commit(self) -> K2Error | None:
        """Commit pending rows. An outage is reported and returned, and the rows are kept."""
        self._is_sink_broken = True
        failure = self._try_commit()
        self._is_sink_broken = False
        if failure is None:
            self.totals.recovered += self._recovered_rows
            self._pending_rows = self._recovered_rows = self._held_bytes = self._failures = 0
            self._retry_at = -math.inf
        elif not self._is_stopping:
            wait_s = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
            self._failures += 1
            self._retry_at = self._clock() + wait_s
            self._observe(
                "catalog_unavailable",
                reason=str(failure),
                rows=self._pending_rows,
                retry_in_s=wait_s,
            )
        return failure

    def _try_commit(self) -> K2Error | None:
        while True:
            try:
                self._write_rejects()
                self._rejects.sync()
            except Unavailable as exc:
                return exc
            committed = self._sink.commit()
            committed.add_to(self.totals)
            self._keep_rejects(committed.rejects)
            self._reject(committed.unfit)
            if committed.failure or not committed.unfit:
                return committed.failure

    def _keep_rejects(self, rejects: Sequence[Reject]) -> None:
        """Write rejects of a commit, or keep them for the next one."""
        if rejects:
            self._unwritten += rejects
            with suppress(Unavailable):
                self._write_rejects()
                self._rejects.sync()

    def _finish(self) -> None:
        """Commit the rest; save rows that cannot be committed for the next run.

        Raises:
            Unavailable: rows were not committed.
        """
        self._is_stopping = True
        failure = None
        try:
            if not self._is_sink_broken:
                failure = self._commit()
        finally:
            self.totals.duration_s = self._clock() - self._started
            if failure is not None or self._is_sink_broken:
                self._keep(failure)

    def _keep(self, failure: K2Error | None) -> None:
        """Save and report uncommitted rows; raise after an outage."""
        self.totals.uncommitted = self._pending_rows - self._recovered_rows
        what = f"{self.totals.uncommitted} rows were not committed"
        hint = None
        try:
            kept = self._sink.keep()
            self.totals.uncommitted = kept.rows
            if kept.files:
                files = " ".join(map(str, kept.files))
                self._observe("uncommitted_kept", rows=kept.rows, files=files)
                what = f"{kept.rows} rows were not committed"
                hint = f"they are in {kept.files[0].parent}; the next k2 stream commits them"
            elif kept.rows:
                what = f"{kept.rows} rows were not committed and are lost"
        except Unavailable as exc:
            self._observe("uncommitted_lost", rows=self._pending_rows, reason=str(exc))
            what = f"{what} and are lost ({exc})"
        count, file = len(self._unwritten) + self._rejects.unwritten, str(self._rejects.path)
        if count:
            self._observe("rejects_lost", count=count, file=file)
            what = f"{what}, and {count} rejects that could not be written to {file} are lost"
        if failure is not None:
            raise Unavailable(f"{what}: {failure}", hint=hint or failure.hint) from failure
