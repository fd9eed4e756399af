"""A source and a sink in memory, and a pump between them on a clock that a test moves."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from k2cli.errors import Unavailable
from k2cli.flow import Batch, Committed, Kept, Recovered
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.records import TRADES, RecordKind
from k2cli.rejects import Cause, Fault, Reject, RejectLog
from support.builders import trades_batch
from support.waiting import ManualClock

HOUR_S = 3600.0


@dataclass
class MemorySource:
    """Yields what it was given until it is told to stop; then fails, if it shall.

    The clock moves on by `pause_s` before each batch.
    """

    given: Sequence[Batch]
    failure: Exception | None = None
    pause_s: float = 0.0
    clock: ManualClock = field(default_factory=ManualClock)
    is_stopped: bool = False

    def batches(self) -> Iterator[Batch]:
        for batch in self.given:
            if self.is_stopped:
                return
            self.clock.advance(self.pause_s)
            yield batch
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        self.is_stopped = True


@dataclass
class MemorySink:
    """Keeps what it is told in order: rows written, ids seen, commits."""

    fails_at_commit: int | None = None
    outages: list[int] = field(default_factory=list)  # commits that fail, and keep their rows
    log: list[str] = field(default_factory=list)
    pending: int = 0
    commits: int = 0
    kept: Sequence[int] = ()  # rows of the files of earlier runs

    def write(self, kind: RecordKind, rows: Any) -> None:
        self.log.append(f"{kind.name} {rows.num_rows}")
        self.pending += rows.num_rows

    def commit(self) -> Committed:
        self.log.append("commit")
        self.commits += 1
        if self.commits == self.fails_at_commit:
            raise Unavailable("the disk is full")
        if self.commits in self.outages:
            return Committed(failure=Unavailable("the catalog does not answer"))
        rows, self.pending = self.pending, 0
        return Committed(rows=rows, duplicates=2, missing=3, commits=1 if rows else 0)

    def recover(self) -> Iterator[Recovered]:
        for rows in self.kept:
            self.pending += rows
            self.log.append(f"recovered {rows}")
            yield Recovered(rows=rows, size_bytes=0)

    def keep(self) -> Kept:
        self.log.append(f"keep {self.pending}")
        return Kept(rows=self.pending, files=[Path("kept/rows.arrow")] if self.pending else [])

    def see(self, kind: RecordKind, ids: Any) -> None:
        self.log.append(f"seen {kind.name} {ids.num_rows}")


def trades(count: int, **over: Any) -> Batch:
    return Batch(rows=[(TRADES, trades_batch(count))], messages=count, **over)


def ids(*numbers: int, symbol: str = "BTCUSDT") -> pa.RecordBatch:
    count = len(numbers)
    columns = {
        "exchange": ["BINANCE"] * count,
        "symbol": [symbol] * count,
        "source_sequence": pa.array(numbers, pa.int64()),
    }
    return pa.RecordBatch.from_pydict(columns)


def rejected(*raws: bytes, first: int = 1) -> Batch:
    rejects = [
        Reject(
            fault=Fault(reason=f"bad {raw!r}", cause=Cause.BAD_FRAME),
            raw=raw,
            position=place,
            received_us=0,
        )
        for place, raw in enumerate(raws, first)
    ]
    return Batch(rejects=rejects, messages=len(raws))


def pump_of(
    source: MemorySource,
    sink: Any,
    rejects: RejectLog,
    events: list[Any] | None = None,
    **over: Any,
) -> Pump:
    seen = [] if events is None else events
    policy = {
        "flush_rows": 1_000_000,
        "flush_interval_s": HOUR_S,
        "clock": source.clock,
        **over,
    }
    return Pump(
        source=source,
        sink=sink,
        rejects=rejects,
        policy=PumpPolicy(**policy),
        observe=lambda event, /, **fields: seen.append((event, fields)),
    )
