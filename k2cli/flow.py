"""What flows from a source to a sink, and the contracts of both."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from k2cli.records import RecordKind

Observer = Callable[..., None]  # observe("commit", rows=...): an event and its fields


@dataclass(frozen=True, slots=True, kw_only=True)
class Reject:
    """Input that became no row: as it came, where it stood, and why."""

    raw: bytes
    position: int  # number of the message in this run, from 1 on; of one out of Kafka, its offset
    received_us: int  # UTC microseconds
    reason: str
    source: str = ""  # topic/partition, for a message out of Kafka


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
    missing: int = 0  # numbers that were skipped while streaming
    commits: int = 0


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

    def commit(self) -> Committed:
        """Make everything written so far durable. Either all of a kind's rows, or none."""

    def interrupted(self) -> None:
        """Take note that rows between the last and the next one written may be missing."""


@dataclass(slots=True, kw_only=True)
class Totals:
    """The sums of one run."""

    messages: int = 0
    rows: int = 0
    rejects: int = 0
    duplicates: int = 0
    missing: int = 0
    commits: int = 0
    reconnects: int = 0
    duration_s: float = 0.0
