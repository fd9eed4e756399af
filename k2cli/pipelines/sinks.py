"""The sinks of rows: tables, topics and stdout."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from k2cli.errors import BadData, ConfigError, Conflict, K2Error, Unavailable
from k2cli.events import Observer
from k2cli.flow import Committed, Kept, Recovered
from k2cli.pipelines.backfill.ledger import GapLedger
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.query.render import NdjsonRenderer
from k2cli.records import KINDS, TRADES, RecordKind
from k2cli.rejects import Fault, Reject
from k2cli.storage.admission import admit
from k2cli.storage.append import Commit
from k2cli.storage.gaps import Gap, GapWatch
from k2cli.storage.lake import Lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.position import Position, Series, Stored, merge_stored

_REMEMBERED = 1_024  # ranges per series

if TYPE_CHECKING:
    from k2cli.pipelines.backfill.gapfile import GapFile
    from k2cli.pipelines.spill import Spilled, SpillFolder


class TableSink:
    """Writes rows to Iceberg tables, with the position of every series in each snapshot.

    With `spill`, rows that could not be committed at the end of a run are saved for the next one.
    With `ledger`, the gaps are noted in the snapshots.
    """

    def __init__(
        self,
        *,
        lake: Lake,
        exchange: str,
        observe: Observer,
        spill: "SpillFolder | None" = None,
        ledger: GapLedger | None = None,
    ) -> None:
        self._lake = lake
        self._ledger = ledger
        self._tables: dict[str, LakeTable] = {}  # those that rows were committed to
        self._exchange = exchange
        self._observe = observe
        self._spill = spill
        self._recovered: dict[str, list[Spilled]] = {name: [] for name in KINDS}
        self._pending: dict[str, list[pa.RecordBatch]] = {name: [] for name in KINDS}
        self._seen: dict[str, dict[Series, Stored]] = {name: {} for name in KINDS}
        self._watches = _watches(exchange)
        self._has_committed = False
        self._conflicts = ConflictReport(observe)

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Keep rows until the next commit."""
        self._pending[kind.name].append(rows)

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Keep ids without a row until the next commit."""
        _add_seen(self._seen[kind.name], ids)

    def commit(self) -> Committed:
        """Append pending rows, one snapshot per table; skip rows that are already stored."""
        total = Committed()
        for name in KINDS:
            has_rows = self._pending[name] or self._seen[name] or self._recovered[name]
            ledger = self._ledger_of(KINDS[name])
            if has_rows or (ledger is not None and ledger.has_changes):
                self._commit_kind(KINDS[name], total)
        return total

    def _ledger_of(self, kind: RecordKind) -> GapLedger | None:
        return self._ledger if kind.name in self._watches else None

    def recover(self) -> Iterator[Recovered]:
        """Add rows saved by earlier runs for this catalog, one file at a time."""
        for spilled in self._spill.load() if self._spill else ():
            self._recovered[spilled.kind.name].append(spilled)
            self._observe("recovered", rows=spilled.rows.num_rows, file=str(spilled.path))
            yield Recovered(rows=spilled.rows.num_rows, size_bytes=spilled.rows.nbytes)

    def keep(self) -> Kept:
        """Save pending rows in files for the next run; without `spill`, only count them.

        Rows saved by earlier runs stay in their files.
        """
        rows = sum(batch.num_rows for batches in self._pending.values() for batch in batches)
        if self._spill is None:
            return Kept(rows=rows)
        files = []
        for spilled in (each for kind in self._recovered.values() for each in kind):
            spilled.release()
        for name, batches in self._pending.items():
            if batches or self._seen[name]:
                table = pa.Table.from_batches(batches, KINDS[name].arrow)
                files.append(self._spill.save(KINDS[name], table, self._seen[name]))
                batches.clear()
                self._seen[name].clear()
        return Kept(rows=rows, files=files)

    def _commit_kind(self, kind: RecordKind, total: Committed) -> None:
        batches, seen = self._pending[kind.name], self._seen[kind.name]
        recovered = self._recovered[kind.name]
        for spilled in recovered:
            seen = merge_stored(seen, spilled.seen)
        pending = pa.Table.from_batches(batches, kind.arrow)
        rows = pa.concat_tables([*(spilled.rows for spilled in recovered), pending])
        watch, ledger = self._watches.get(kind.name), self._ledger_of(kind)
        try:
            table = self._open_table(kind)
            notes = ledger.notes() if ledger is not None else None
            commit = table.append(rows, seen=seen, watch=watch, notes=notes)
        except (Unavailable, Conflict, ConfigError) as exc:
            if not is_outage(exc, has_committed=self._has_committed):
                raise
            total.failure = exc
            return
        except BadData:
            unfit = self._take_unfit(kind, rows)
            if not unfit:
                raise
            total.unfit = [*total.unfit, *unfit]
            return
        self._has_committed = True
        batches.clear()
        self._seen[kind.name].clear()
        self._remove_recovered(kind.name)
        total.rows += commit.rows
        total.duplicates += commit.duplicates
        total.conflicts += commit.conflicts
        total.missing += _report_gaps(self._observe, kind, commit.gaps)
        if watch is not None and ledger is not None:
            ledger.opened(commit.gaps)
            ledger.committed(commit.position, watch, self._observe)
        conflicts = self._conflicts.report(kind, commit.conflicts, commit.examples)
        total.rejects = [*total.rejects, *conflicts]
        if commit.snapshot_id is not None:
            total.commits += 1
            report_commit(self._observe, kind, commit)

    def _open_table(self, kind: RecordKind) -> LakeTable:
        """Open a table at its first commit."""
        if kind.name not in self._tables:
            self._tables[kind.name] = self._lake.open(kind)
        return self._tables[kind.name]

    def _remove_recovered(self, name: str) -> None:
        """Remove the files whose rows are committed."""
        if self._recovered[name]:
            for spilled in self._recovered[name]:
                spilled.remove()
            self._recovered[name].clear()
            # Gaps of this run so far were missed while no run streamed.
            self._watches.update(
                {each: watch for each, watch in _watches(self._exchange).items() if each == name}
            )

    def _take_unfit(self, kind: RecordKind, rows: pa.Table) -> list[Reject]:
        """Remove pending rows that do not fit until the table is evolved."""
        faults = self._open_table(kind).unfit_rows(rows)
        is_fit = np.ones(rows.num_rows, dtype=np.bool_)
        is_fit[list(faults)] = False
        self._pending[kind.name][:] = rows.filter(pa.array(is_fit)).to_batches()
        for spilled in self._recovered[kind.name]:  # its rows are now pending
            spilled.forget_rows()
        with NdjsonRenderer() as renderer:
            return [
                _unfit_reject(kind, rows.slice(row, 1), fault, renderer)
                for row, fault in faults.items()
            ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ForwardedGaps:
    """The gaps of trades that are written to topics or a stream."""

    ledger: GapLedger
    file: "GapFile | None" = None  # keeps the open ones for later runs
    stored: Mapping[Series, Stored] = field(default_factory=dict)  # by earlier runs


class ForwardingSink:
    """Rows onto topics or a stream as they come, each once in a run; a commit flushes them."""

    def __init__(
        self,
        *,
        write: Callable[[RecordKind, pa.RecordBatch], None],
        flush: Callable[[], None],
        exchange: str,
        observe: Observer,
        gaps: "ForwardedGaps | None" = None,
    ) -> None:
        """Prepare; `flush` returns when everything that was written has arrived."""
        self._write = write
        self._flush = flush
        self._observe = observe
        self._ledger = gaps.ledger if gaps is not None else None
        self._gap_file = gaps.file if gaps is not None else None
        self._deduplicator = Deduplicator(
            exchange=exchange, observe=observe, stored=gaps.stored if gaps is not None else {}
        )

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Write new rows; wait while the receiver is behind."""
        batches = self._deduplicator.new_rows(kind, rows)
        gaps = self._deduplicator.take_gaps()
        if gaps and self._ledger is not None:
            self._ledger.opened(gaps)
            self._save_gaps()  # first: the run may be killed after the rows were written
        for batch in batches:
            self._write(kind, batch)

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Record ids without a row."""
        self._deduplicator.see(kind, ids)

    def commit(self) -> Committed:
        """Flush; return the totals since the last commit."""
        self._flush()
        ledger, watch = self._ledger, self._deduplicator.trades_watch
        if ledger is not None:
            has_changes = ledger.has_changes or ledger.has_taken
            ledger.notes()
            ledger.committed(self._deduplicator.trades, watch, self._observe)
            if has_changes:
                self._save_gaps()
        return self._deduplicator.take_sums()

    def _save_gaps(self) -> None:
        if self._gap_file is not None and self._ledger is not None:
            self._gap_file.save(self._ledger.open_gaps())

    def recover(self) -> Iterator[Recovered]:
        """Yield nothing: no rows are saved between runs."""
        return iter(())

    def keep(self) -> Kept:
        """Return nothing: rows are written as they come."""
        return Kept()


class Deduplicator:
    """Skips rows already seen in this run and reports gaps, for sinks without a table.

    It remembers the newest ids of each series: all trades except for the oldest gaps between them,
    and 1,024 ranges of quotes. Older rows are written again rather than lost.
    """

    def __init__(
        self,
        *,
        exchange: str,
        observe: Observer,
        stored: Mapping[Series, Stored],
    ) -> None:
        """Start with the trades that earlier runs wrote."""
        self._observe = observe
        self._watches = _watches(exchange)
        self._stored: dict[str, dict[Series, Stored]] = {name: {} for name in KINDS}
        self._stored[TRADES.name].update(stored)
        self._gaps: list[Gap] = []
        self._seen: dict[str, dict[Series, Stored]] = {name: {} for name in KINDS}
        self._conflicts = ConflictReport(observe)
        self._sums = Committed()
        self._rejects: list[Reject] = []

    def new_rows(self, kind: RecordKind, rows: pa.RecordBatch) -> Sequence[pa.RecordBatch]:
        """Return the rows not seen before, and record them."""
        stored = self._stored[kind.name]
        position = Position(stored)
        table = pa.Table.from_batches([rows])
        admission = admit(position, replace(kind, is_dense=True), table, None)
        added = merge_stored(admission.added, self._seen[kind.name])
        self._seen[kind.name].clear()
        watch = self._watches.get(kind.name)
        if watch is not None:
            gaps = watch.gaps(position, added)
            self._gaps += gaps
            self._sums.missing += _report_gaps(self._observe, kind, gaps)
            watch.committed(table, position)
        for series, more in added.items():
            ranges = position.of(series).merged(more).exact
            stored[series] = Stored(exact=ranges[-_REMEMBERED:])
        self._sums.rows += admission.rows.num_rows
        self._sums.duplicates += admission.duplicates
        self._sums.conflicts += admission.conflicts
        self._rejects += self._conflicts.report(kind, admission.conflicts, admission.examples)
        batches: Sequence[pa.RecordBatch] = admission.rows.to_batches()
        return batches

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Record ids without a row, before the rows of the same batch."""
        _add_seen(self._seen[kind.name], ids)

    @property
    def trades(self) -> Position:
        """The trades written so far."""
        return Position(dict(self._stored[TRADES.name]))

    @property
    def trades_watch(self) -> GapWatch:
        """What finds the gaps of trades."""
        return self._watches[TRADES.name]

    def take_gaps(self) -> list[Gap]:
        """Return the gaps found since the last call."""
        gaps, self._gaps = self._gaps, []
        return gaps

    def take_sums(self) -> Committed:
        """Return the totals since the last call."""
        sums, self._sums = replace(self._sums, rejects=self._rejects), Committed()
        self._rejects = []
        return sums


def is_outage(exc: K2Error, *, has_committed: bool) -> bool:
    """Return whether to retry the commit: also for a wrong setting, if it worked before."""
    return not isinstance(exc, ConfigError) or has_committed


def report_commit(observe: Observer, kind: RecordKind, commit: Commit) -> None:
    """Report a commit as an event."""
    observe(
        "commit",
        table=kind.table,
        rows=commit.rows,
        duplicates=commit.duplicates,
        snapshot_id=commit.snapshot_id,
        took_ms=commit.took_ms,
    )


def _add_seen(seen: dict[Series, Stored], ids: pa.RecordBatch) -> None:
    for exchange, symbol, number in zip(*(column.to_pylist() for column in ids), strict=True):
        series = Series(exchange, symbol)
        one = Stored(exact=np.array([[number, number]], dtype=np.int64))
        seen[series] = seen.get(series, Stored()).merged(one)


def _unfit_reject(
    kind: RecordKind, row: pa.Table, fault: Fault, renderer: NdjsonRenderer
) -> Reject:
    (batch,) = row.combine_chunks().to_batches()
    return Reject(
        fault=replace(fault, reason=f"{fault.reason}: k2 table evolve {kind.name}"),
        raw=renderer.render(batch).rstrip(b"\n"),
        position=batch["source_sequence"][0].as_py(),
        received_us=batch["ingestion_timestamp"].cast(pa.int64())[0].as_py(),
        source=kind.table,
    )


def _report_gaps(observe: Observer, kind: RecordKind, gaps: Sequence[Gap]) -> int:
    """Report every gap; return how many numbers were missed while streaming."""
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


def _watches(exchange: str) -> dict[str, GapWatch]:
    return {name: GapWatch(exchange) for name, kind in KINDS.items() if kind.is_dense}
