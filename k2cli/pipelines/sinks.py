"""The sinks of rows: tables, topics and stdout."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from k2cli.errors import BadData, ConfigError, Conflict, K2Error, Unavailable
from k2cli.events import Observer
from k2cli.flow import Committed, Kept, Recovered
from k2cli.iso import iso_utc
from k2cli.query.render import NdjsonRenderer
from k2cli.records import KINDS, RecordKind
from k2cli.rejects import Cause, Fault, Reject, shown
from k2cli.storage.admission import MAX_CONFLICTS, ValueConflict, admit
from k2cli.storage.append import Commit, SourcePosition
from k2cli.storage.gaps import Gap, GapWatch
from k2cli.storage.lake import Lake
from k2cli.storage.position import Position, Series, Stored

_REMEMBERED = 1_024  # ranges per series

if TYPE_CHECKING:
    from k2cli.pipelines.produce import TopicRows
    from k2cli.pipelines.spill import Spilled, SpillFolder


class TableSink:
    """Writes rows to Iceberg tables, with the position of every series in each snapshot.

    With `spill`, rows that could not be committed at the end of a run are saved for the next one.
    """

    def __init__(
        self, *, lake: Lake, exchange: str, observe: Observer, spill: "SpillFolder | None" = None
    ) -> None:
        self._lake = lake
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
            if self._pending[name] or self._seen[name] or self._recovered[name]:
                self._commit_kind(KINDS[name], total)
        return total

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
            spilled.lock.close()
        for name, batches in self._pending.items():
            if batches or self._seen[name]:
                table = pa.Table.from_batches(batches, KINDS[name].arrow)
                files.append(self._spill.save(KINDS[name], table, self._seen[name]))
                batches.clear()
                self._seen[name].clear()
        return Kept(rows=rows, files=files)

    def _commit_kind(self, kind: RecordKind, total: Committed) -> None:
        batches, seen = self._pending[kind.name], dict(self._seen[kind.name])
        recovered = self._recovered[kind.name]
        for series, stored in (each for spilled in recovered for each in spilled.seen.items()):
            seen[series] = seen.get(series, Stored()).merged(stored)
        pending = pa.Table.from_batches(batches, kind.arrow)
        rows = pa.concat_tables([*(spilled.rows for spilled in recovered), pending])
        try:
            commit = self._lake.append(kind, rows, seen=seen, watch=self._watches.get(kind.name))
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
        conflicts = self._conflicts.report(kind, commit.conflicts, commit.examples)
        total.rejects = [*total.rejects, *conflicts]
        if commit.snapshot_id is not None:
            total.commits += 1
            report_commit(self._observe, kind, commit)

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
        faults = self._lake.unfit_rows(kind, rows)
        is_fit = np.ones(rows.num_rows, dtype=np.bool_)
        is_fit[list(faults)] = False
        self._pending[kind.name][:] = rows.filter(pa.array(is_fit)).to_batches()
        for spilled in self._recovered[kind.name]:  # its rows are now pending
            spilled.rows = kind.arrow.empty_table()
        with NdjsonRenderer() as renderer:
            return [
                _unfit_reject(kind, rows.slice(row, 1), fault, renderer)
                for row, fault in faults.items()
            ]


class TopicSink:
    """Writes rows to Kafka topics, once per run; a commit waits for the brokers."""

    def __init__(self, *, topics: "TopicRows", exchange: str, observe: Observer) -> None:
        self._topics = topics
        self._deduplicator = Deduplicator(exchange=exchange, observe=observe)

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Queue new rows; wait while the brokers are behind."""
        for batch in self._deduplicator.new_rows(kind, rows):
            self._topics.write(kind, batch)

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Record ids without a row."""
        self._deduplicator.see(kind, ids)

    def commit(self) -> Committed:
        """Wait until the brokers have all rows; return the totals since the last commit."""
        self._topics.flush()
        return self._deduplicator.take_sums()

    def recover(self) -> Iterator[Recovered]:
        """Yield nothing: no rows are saved between runs."""
        return iter(())

    def keep(self) -> Kept:
        """Return nothing: rows are sent immediately."""
        return Kept()


class NdjsonSink:
    """Writes rows to a stream immediately, as ndjson; a commit only counts them."""

    def __init__(self, *, out: BinaryIO, exchange: str, observe: Observer) -> None:
        self._printer = NdjsonPrinter(out)
        self._deduplicator = Deduplicator(exchange=exchange, observe=observe)

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Print new rows."""
        for batch in self._deduplicator.new_rows(kind, rows):
            self._printer.write(batch)

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Record ids without a row."""
        self._deduplicator.see(kind, ids)

    def commit(self) -> Committed:
        """Return the totals printed since the last commit."""
        return self._deduplicator.take_sums()

    def recover(self) -> Iterator[Recovered]:
        """Yield nothing: no rows are saved between runs."""
        return iter(())

    def keep(self) -> Kept:
        """Return nothing: rows are printed immediately."""
        return Kept()


class Printer(Protocol):
    """Writes rows to a stream."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Write rows immediately."""


class NdjsonPrinter:
    """Writes rows as lines of JSON."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._renderer = NdjsonRenderer()

    def write(self, rows: pa.RecordBatch) -> None:
        """Write one line per row."""
        self._out.write(self._renderer.render(rows))
        self._out.flush()


class ArrowPrinter:
    """Writes rows of one kind as an Arrow IPC stream; `close` ends it."""

    def __init__(self, out: BinaryIO, kind: RecordKind) -> None:
        self._out = out
        self._writer = pa.ipc.new_stream(out, kind.arrow)

    def write(self, rows: pa.RecordBatch) -> None:
        """Write a batch."""
        self._writer.write_batch(rows)
        self._out.flush()

    def close(self) -> None:
        """Write the end of the stream."""
        self._writer.close()
        self._out.flush()


class PrintedTables:
    """Writes rows to a stream instead of tables."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._held: dict[str, str] = {}

    def kind(self, kind: RecordKind) -> RecordKind:
        """Return the kind unchanged: all its columns are printed."""
        return kind

    def held(self, kind: RecordKind, key: str) -> str | None:  # noqa: ARG002
        """Return the position of the printed rows of a kind."""
        return self._held.get(kind.name)

    def append(self, kind: RecordKind, rows: pa.Table, *, source: SourcePosition) -> Commit:
        """Print rows."""
        reached = source.advance(self._held.get(kind.name))
        for batch in rows.to_batches():
            self._printer.write(batch)
        self._held[kind.name] = reached
        return Commit(snapshot_id=None, rows=rows.num_rows, duplicates=0, took_ms=0.0)


class Deduplicator:
    """Skips rows already seen in this run and reports gaps, for sinks without a table.

    It remembers the newest ids of each series: all trades except for the oldest gaps between them,
    and 1,024 ranges of quotes. Older rows are written again rather than lost.
    """

    def __init__(self, *, exchange: str, observe: Observer) -> None:
        self._observe = observe
        self._watches = _watches(exchange)
        self._stored: dict[str, dict[Series, Stored]] = {name: {} for name in KINDS}
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
        added = {**admission.added}
        for series, seen in self._seen[kind.name].items():
            added[series] = added.get(series, Stored()).merged(seen)
        self._seen[kind.name].clear()
        watch = self._watches.get(kind.name)
        if watch is not None:
            self._sums.missing += _report_gaps(self._observe, kind, watch.gaps(position, added))
            watch.committed(table)
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

    def take_sums(self) -> Committed:
        """Return the totals since the last call."""
        sums, self._sums = replace(self._sums, rejects=self._rejects), Committed()
        self._rejects = []
        return sums


class ConflictReport:
    """Reports rows whose id is stored with other values: each as an event, the first as rejects."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._left = MAX_CONFLICTS

    def report(
        self, kind: RecordKind, count: int, examples: Sequence[ValueConflict]
    ) -> list[Reject]:
        """Report the conflicts of one commit; return those to write to the rejects file."""
        if not count:
            return []
        self._observe("conflict", table=kind.table, count=count, reason=str(examples[0]))
        shown = examples[: self._left]
        self._left -= len(shown)
        return conflict_rejects(shown)


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


def conflict_rejects(conflicts: Sequence[ValueConflict]) -> list[Reject]:
    """Write conflicts as rejects, with both values as JSON."""
    return [_conflict_reject(each) for each in conflicts]


def _conflict_reject(conflict: ValueConflict) -> Reject:
    values = {"received": conflict.received, "stored": conflict.stored}
    differing = conflict.differing
    field = differing[0] if len(differing) == 1 else ""
    return Reject(
        fault=Fault(
            reason=str(conflict),
            cause=Cause.CONFLICT,
            field=field,
            value=shown(conflict.received[field]) if field else None,
        ),
        raw=json.dumps(values, default=_json_value).encode(),
        position=conflict.number or 0,
        received_us=time.time_ns() // 1000,
        source=f"{conflict.series.exchange}/{conflict.series.symbol}",
    )


def _json_value(value: object) -> str:
    return iso_utc(value, "microseconds") if isinstance(value, datetime) else str(value)


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
