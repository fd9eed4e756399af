"""What flows from a source to a sink, and the contracts of both."""

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
    """Rows of one or more kinds, and what was read to get them.

    `seen` has numbers that were read and need no row, so that they are not missing: columns
    exchange, symbol and source_sequence.
    `session` counts how often the source was interrupted: what came in between is not known.
    A batch without messages is a tick: time passed, nothing came.
    """

    rows: Sequence[tuple[RecordKind, pa.RecordBatch]] = ()
    rejects: Sequence[Reject] = ()
    messages: int = 0
    session: int = 0
    seen: Sequence[tuple[RecordKind, pa.RecordBatch]] = ()


@dataclass(slots=True, kw_only=True)
class Committed:
    """What one commit of a sink did, over all tables."""

    rows: int = 0
    duplicates: int = 0
    conflicts: int = 0  # rows left out whose id is stored with other values
    missing: int = 0  # numbers that were skipped while streaming
    commits: int = 0
    rejects: Sequence[Reject] = ()  # some of the conflicts
    unfit: Sequence[Reject] = ()  # rows that do not fit; the other rows of their kind wait
    failure: K2Error | None = None  # an outage: what was not committed is kept for another try


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """Rows that a sink could not commit, and the files that they were saved in."""

    rows: int = 0
    files: Sequence[Path] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovered:
    """Rows of a file that an earlier run kept, pending again."""

    rows: int
    size_bytes: int


class Source(Protocol):
    """An iterator of batches that can be told to stop."""

    def batches(self) -> Iterator[Batch]:
        """Yield batches until stopped; at least a few ticks a second when nothing comes."""

    def stop(self) -> None:
        """Ask for the end: what was read already still comes out of `batches`. Any thread."""


class Sink(Protocol):
    """Takes rows, and makes them durable when told to."""

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Take rows over."""

    def see(self, kind: RecordKind, ids: pa.RecordBatch) -> None:
        """Take note of ids that stand for no record: exchange, symbol, source_sequence."""

    def commit(self) -> Committed:
        """Make everything written so far durable. Either all of a kind's rows, or none.

        Rows that do not fit are returned as `unfit` and the others of their kind are kept: call
        `commit` again once those rejects are durable. After an outage `failure` is set.
        """

    def recover(self) -> Iterator[Recovered]:
        """Take over what earlier runs kept, a file at a time: it is pending then."""

    def keep(self) -> Kept:
        """Save what could not be committed for the next run.

        Raises:
            Unavailable: it cannot be saved.
        """


@dataclass(slots=True, kw_only=True)
class Totals:
    """The sums of one run."""

    messages: int = 0
    rows: int = 0
    rejects: int = 0
    duplicates: int = 0
    conflicts: int = 0
    missing: int = 0
    commits: int = 0
    reconnects: int = 0
    recovered: int = 0  # rows that earlier runs had kept, and that were committed now
    uncommitted: int = 0  # rows that were read and are not committed at the end
    duration_s: float = 0.0
