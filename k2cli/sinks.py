"""Where rows go: tables, topics, or stdout."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import pyarrow as pa

from k2cli.errors import BadData
from k2cli.flow import Committed, Observer, Reject
from k2cli.query.render import NdjsonRenderer
from k2cli.records import KINDS, RecordKind
from k2cli.storage.append import Commit
from k2cli.storage.lake import Lake
from k2cli.storage.position import Gap, Position, StreamPosition

if TYPE_CHECKING:
    from k2cli.producing import TopicRows


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
            try:
                commit = self._lake.append(kind, rows, position=self._positions[name])
            except BadData:
                unfit = self._take_unfit(kind, rows)
                if not unfit:
                    raise
                total.unfit = [*total.unfit, *unfit]
                continue
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

    def _take_unfit(self, kind: RecordKind, rows: pa.Table) -> list[Reject]:
        """Remove the pending rows that the table cannot hold before it has evolved."""
        faults = self._lake.unfit_rows(kind, rows)
        is_fit = np.ones(rows.num_rows, dtype=np.bool_)
        is_fit[list(faults)] = False
        self._pending[kind.name][:] = rows.filter(pa.array(is_fit)).to_batches()
        with NdjsonRenderer() as renderer:
            return [
                _unfit_reject(kind, rows.slice(row, 1), reason, renderer)
                for row, reason in faults.items()
            ]

    def interrupted(self) -> None:
        """Let what follows not join what came before."""
        for position in self._positions.values():
            position.interrupted()


class TopicSink:
    """Rows onto Kafka topics, each once in a run; a commit waits until the brokers hold them."""

    def __init__(self, *, topics: "TopicRows", exchange: str, observe: Observer) -> None:
        self._topics = topics
        self._unseen = Unseen(exchange=exchange, observe=observe)

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Queue the rows that were not written before; wait while the brokers are behind."""
        for batch in self._unseen.of(kind, rows):
            self._topics.write(kind, batch)

    def commit(self) -> Committed:
        """Return when the brokers hold all rows, with what came since the last commit."""
        self._topics.flush()
        return self._unseen.taken()

    def interrupted(self) -> None:
        """Let what follows not join what came before."""
        self._unseen.interrupted()


class NdjsonSink:
    """Rows as ndjson onto a stream at once; a commit only counts them."""

    def __init__(self, *, out: BinaryIO, exchange: str, observe: Observer) -> None:
        self._printer = NdjsonPrinter(out)
        self._unseen = Unseen(exchange=exchange, observe=observe)

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Print the rows that were not printed before."""
        for batch in self._unseen.of(kind, rows):
            self._printer.write(batch)

    def commit(self) -> Committed:
        """Return what was printed since the last commit."""
        return self._unseen.taken()

    def interrupted(self) -> None:
        """Let what follows not join what came before."""
        self._unseen.interrupted()


class Printer(Protocol):
    """Writes rows onto a stream."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Write rows, at once."""


class NdjsonPrinter:
    """Rows as lines of JSON."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._renderer = NdjsonRenderer()

    def write(self, rows: pa.RecordBatch) -> None:
        """Write a line a row."""
        self._out.write(self._renderer.render(rows))
        self._out.flush()


class ArrowPrinter:
    """Rows of one kind as an Arrow IPC stream; `close` ends it."""

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
    """Rows onto a stream, in the place of tables."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._held: dict[str, str] = {}

    def kind(self, kind: RecordKind) -> RecordKind:
        """Return the kind: it is printed with its own columns."""
        return kind

    def held(self, kind: RecordKind, key: str) -> str | None:  # noqa: ARG002
        """Return how far the rows of a kind were printed."""
        return self._held.get(kind.name)

    def append(self, kind: RecordKind, rows: pa.Table, *, position: Position) -> Commit:
        """Print rows."""
        advance = position.advance(self._held.get(kind.name), rows)
        for batch in advance.rows.to_batches():
            self._printer.write(batch)
        self._held[kind.name] = advance.reached
        return Commit(
            snapshot_id=None, rows=advance.rows.num_rows, duplicates=0, gaps=(), took_ms=0.0
        )


class Unseen:
    """Leaves out what came before in this run, and tells the gaps: for sinks without a table."""

    def __init__(self, *, exchange: str, observe: Observer) -> None:
        self._observe = observe
        self._positions = _positions(exchange)
        self._held: dict[str, str] = {}
        self._taken = Committed()

    def of(self, kind: RecordKind, rows: pa.RecordBatch) -> Sequence[pa.RecordBatch]:
        """Return the rows that are new, and count them as taken."""
        position = self._positions[kind.name]
        advance = position.advance(self._held.get(kind.name), pa.Table.from_batches([rows]))
        position.committed(advance)
        self._held[kind.name] = advance.reached
        self._taken.rows += advance.rows.num_rows
        self._taken.duplicates += advance.duplicates
        self._taken.missing += _report_gaps(self._observe, kind, advance.gaps)
        batches: Sequence[pa.RecordBatch] = advance.rows.to_batches()
        return batches

    def taken(self) -> Committed:
        """Return the sums since the last call."""
        taken, self._taken = self._taken, Committed()
        return taken

    def interrupted(self) -> None:
        """Let what follows not join what came before."""
        for position in self._positions.values():
            position.interrupted()


def _unfit_reject(kind: RecordKind, row: pa.Table, reason: str, renderer: NdjsonRenderer) -> Reject:
    (batch,) = row.combine_chunks().to_batches()
    return Reject(
        raw=renderer.render(batch).rstrip(b"\n"),
        position=batch["source_sequence"][0].as_py(),
        received_us=batch["ingestion_timestamp"].cast(pa.int64())[0].as_py(),
        reason=f"{reason}: k2 table evolve {kind.name}",
        source=kind.table,
    )


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
