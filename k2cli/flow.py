"""The data that flows from sources to sinks, and the interfaces of both."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from k2cli.errors import K2Error
from k2cli.records import RecordKind
from k2cli.rejects import Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one or more kinds, and the input they came from.

    `seen` has sequence numbers that were read but have no row, so they do not count as missing:
    columns exchange, symbol and source_sequence. `session` counts the interruptions of the source:
    data may be missing in between. A batch without messages is a tick: time passed without data.

    The position of a stream is in its rows, as source_sequence, and in `seen`; a file has none: it
    is loaded as a whole.
    """

    rows: Sequence[tuple[RecordKind, pa.RecordBatch]] = ()
    rejects: Sequence[Reject] = ()
    messages: int = 0
    session: int = 0
    seen: Sequence[tuple[RecordKind, pa.RecordBatch]] = ()
    backfilled: int = 0  # rows and rejects from the exchange's history, which no message brought
    notes: int = 0  # changes besides rows that need a commit


class CommitTotals(Protocol):
    """Totals to which commits are added."""

    rows: int
    duplicates: int
    conflicts: int
    missing: int
    commits: int


@dataclass(slots=True, kw_only=True)
class Committed:
    """The outcome of one commit of a sink, over all tables."""

    rows: int = 0
    duplicates: int = 0
    conflicts: int = 0  # rows skipped because their id is stored with other values
    missing: int = 0  # numbers that were skipped while streaming
    commits: int = 0
    rejects: Sequence[Reject] = ()  # some of the conflicts
    unfit: Sequence[Reject] = ()  # rows that do not fit; the other rows of their kind stay pending
    failure: K2Error | None = None  # an outage: uncommitted rows are kept for a retry

    def add_to(self, totals: CommitTotals) -> None:
        """Add the counts to the totals of a run."""
        totals.rows += self.rows
        totals.duplicates += self.duplicates
        totals.conflicts += self.conflicts
        totals.missing += self.missing
        totals.commits += self.commits


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Rows that a sink could not commit, and the files they were saved in."""

    rows: int = 0
    files: Sequence[Path] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Rows of a file saved by an earlier run, pending again."""

    rows: int
    size_bytes: int


class Source(Protocol):
    """An iterator of batches that can be stopped."""

    def batches(self) -> Iterator[Batch]:
        """Yield batches until stopped; without data, at least a few ticks a second."""

    def stop(self) -> None:
        """Request the end: `batches` still yields what was already read. Any thread."""


class Sink(Protocol):
    """Receives rows and makes them durable on `commit`."""

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Add rows to the pending ones."""

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Record ids without a row: exchange, symbol, source_sequence."""

    def commit(self) -> Committed:
        """Make everything written so far durable: all rows of a kind, or none.

        Rows that do not fit are returned as `unfit` and the others of their kind are kept: call
        `commit` again once those rejects are durable. After an outage `failure` is set.
        """

    def recover(self) -> Iterator[Recovered]:
        """Add rows saved by earlier runs to the pending ones, one file at a time."""

    def keep(self) -> Kept:
        """Save uncommitted rows for the next run.

        Raises:
            Unavailable: the rows cannot be saved.
        """


@dataclass(slots=True, kw_only=True)
class Totals:
    """The totals of one run."""

    messages: int = 0
    rows: int = 0
    rejects: int = 0
    duplicates: int = 0
    conflicts: int = 0
    missing: int = 0
    commits: int = 0
    reconnects: int = 0
    backfilled: int = 0  # rows and rejects from the exchange's history
    recovered: int = 0  # rows saved by earlier runs and committed by this one
    uncommitted: int = 0  # rows that were read but not committed by the end
    duration_s: float = 0.0
