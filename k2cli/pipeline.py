"""Source -> sink: the one place where they meet. Totals, flush policy, rejects, the end."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import BinaryIO, Final

import pyarrow as pa

from k2cli.errors import BadData
from k2cli.flow import Batch, Committed, Observer, Sink, Source, Totals
from k2cli.query.render import NdjsonRenderer
from k2cli.records import KINDS, RecordKind
from k2cli.rejects import RejectLog
from k2cli.storage.lake import Lake
from k2cli.storage.position import Gap, StreamPosition


@dataclass(frozen=True, slots=True, kw_only=True)
class PumpPolicy:
    """When to commit, and when to stop."""

    flush_rows: int
    flush_interval_s: float
    duration_s: float | None = None
    max_rejects: int | None = None  # None: any number


class TableSink:
    """Rows into Iceberg tables, with the position of the stream in every snapshot."""

    def __init__(self, *, lake: Lake, exchange: str, observe: Observer) -> None:
        self._lake = lake
        self._observe = observe
        self._pending: dict[str, list[pa.RecordBatch]] = {name: [] for name in KINDS}
        self._positions = _positions(exchange)

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Keep rows until the next commit."""
        self._pending[kind.name].append(rows)

    def commit(self) -> Committed:
        """Append what is pending, a snapshot a table; what a table holds already is left out."""
        total = Committed()
        for name, batches in self._pending.items():
            if not batches:
                continue
            kind = KINDS[name]
            rows = pa.Table.from_batches(batches)
            commit = self._lake.append(kind, rows, position=self._positions[name])
            batches.clear()
            total.rows += commit.rows
            total.duplicates += commit.duplicates
            total.missing += _report_gaps(self._observe, kind, commit.gaps)
            if commit.snapshot_id is not None:
                total.commits += 1
                self._observe(
                    "commit",
                    table=kind.table,
                    rows=commit.rows,
                    duplicates=commit.duplicates,
                    snapshot_id=commit.snapshot_id,
                    took_ms=commit.took_ms,
                )
        return total

    def interrupted(self) -> None:
        """Let what follows not join what came before."""
        for position in self._positions.values():
            position.interrupted()


class NdjsonSink:
    """Rows as ndjson onto a stream at once; a commit only counts them."""

    def __init__(self, *, out: BinaryIO, exchange: str, observe: Observer) -> None:
        self._out = out
        self._observe = observe
        self._renderer = NdjsonRenderer()
        self._positions = _positions(exchange)
        self._held: dict[str, str] = {}
        self._written = Committed()

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Print the rows that were not printed before."""
        position = self._positions[kind.name]
        advance = position.advance(self._held.get(kind.name), pa.Table.from_batches([rows]))
        position.committed(advance)
        self._held[kind.name] = advance.reached
        for batch in advance.rows.to_batches():
            self._out.write(self._renderer.render(batch))
        self._out.flush()
        self._written.rows += advance.rows.num_rows
        self._written.duplicates += advance.duplicates
        self._written.missing += _report_gaps(self._observe, kind, advance.gaps)

    def commit(self) -> Committed:
        """Return what was printed since the last commit."""
        written, self._written = self._written, Committed()
        return written

    def interrupted(self) -> None:
        """Let what follows not join what came before."""
        for position in self._positions.values():
            position.interrupted()


def _report_gaps(observe: Observer, kind: RecordKind, gaps: Sequence[Gap]) -> int:
    """Tell every gap; return how many numbers were skipped while streaming."""
    for gap in gaps:
        observe(
            "restart_gap" if gap.is_restart else "gap",
            table=kind.table,
            symbol=gap.symbol,
            first=gap.first,
            last=gap.last,
            missing=gap.missing,
        )
    return sum(gap.missing for gap in gaps if not gap.is_restart)


def _positions(exchange: str) -> dict[str, StreamPosition]:
    return {
        name: StreamPosition(series=exchange, is_dense=kind.is_dense)
        for name, kind in KINDS.items()
    }


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
        self._pending_rows = 0
        self._pending_since = 0.0
        self._is_sink_broken = False

    def run(self, on_batch: Callable[[Batch], None] = lambda _: None) -> Totals:
        """Pump to the end, commit the rest, return the totals. `on_batch` sees every batch.

        Raises:
            BadData: more rejects than allowed; all before them is committed.
        """
        started = time.monotonic()
        session = 0
        try:
            for batch in self._source.batches():
                if batch.session != session:
                    session = batch.session
                    self._commit()
                    self._sink.interrupted()
                self._take(batch)
                on_batch(batch)
                self.totals.duration_s = time.monotonic() - started
                self._check_limits()
        finally:
            # Also when the source failed: what was read before is kept.
            if not self._is_sink_broken:
                self._commit()
            self.totals.duration_s = time.monotonic() - started
        if self._has_too_many_rejects():
            raise BadData(
                f"{self.totals.rejects} rejects; allowed are {self._policy.max_rejects}",
                hint=f"see {self._rejects.path}",
            )
        return self.totals

    def _take(self, batch: Batch) -> None:
        self.totals.messages += batch.messages
        self.totals.reconnects = batch.session
        for kind, rows in batch.rows:
            if not self._pending_rows:
                self._pending_since = time.monotonic()
            self._pending_rows += rows.num_rows
            self._sink.write(kind, rows)
        if batch.rejects:
            self.totals.rejects += len(batch.rejects)
            self._rejects.write(batch.rejects)
            self._observe(
                "reject",
                count=len(batch.rejects),
                position=batch.rejects[0].position,
                reason=batch.rejects[0].reason,
                file=str(self._rejects.path),
            )

    def _check_limits(self) -> None:
        policy = self._policy
        age_s = time.monotonic() - self._pending_since
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
        self._rejects.sync()
        committed = self._sink.commit()
        self._is_sink_broken = False
        self._pending_rows = 0
        self.totals.rows += committed.rows
        self.totals.duplicates += committed.duplicates
        self.totals.missing += committed.missing
        self.totals.commits += committed.commits
