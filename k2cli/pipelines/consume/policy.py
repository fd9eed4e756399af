"""The inputs of a run (feeds, outlets, policy), and its totals."""

import time
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from k2cli.ingestion.kafka.consumer import EARLIEST
from k2cli.ingestion.kafka.deadletters import DeadLetters
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.records import RecordKind
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog
from k2cli.storage.append import Commit, SourcePosition


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumePolicy:
    """When to commit, where to start, and when to stop."""

    batch_rows: int
    commit_interval_s: float
    timeout_s: float  # per answer of the brokers
    start: str | int = EARLIEST  # or latest, or UTC milliseconds: if a table has no position
    is_until_end: bool = False
    max_messages: int | None = None
    duration_s: float | None = None
    is_bad_fatal: bool = False
    has_group_offsets: bool = True  # committed for lag tools, after the tables

    def is_past(self, started_s: float) -> bool:
        """Return whether the duration of a run that started at this monotonic time is over."""
        return self.duration_s is not None and time.monotonic() - started_s >= self.duration_s


@dataclass(slots=True, kw_only=True)
class ConsumeTotals:
    """The totals of one run."""

    messages: int = 0
    rows: int = 0
    rejects: int = 0
    duplicates: int = 0
    conflicts: int = 0  # rows skipped because their id is stored with other values
    missing: int = 0  # offsets that the brokers deleted before they were read
    commits: int = 0
    lost_commits: int = 0  # to another consumer
    duration_s: float = 0.0


class KindTable(Protocol):
    """Where rows of one kind and their offsets are stored, in one commit. For one thread."""

    def refresh(self) -> None:
        """Look up the newest state of the table."""

    def evolved_kind(self) -> RecordKind:
        """Return the kind with the columns that the table had at the last refresh."""

    def stored_position(self, key: str) -> str | None:
        """Return the position that the table stored at the last refresh."""

    def append(self, rows: pa.Table, *, source: SourcePosition) -> Commit:
        """Store rows and the position they reach, or neither, judged by the newest state."""


class Tables(Protocol):
    """Opens the tables."""

    def open(self, kind: RecordKind) -> KindTable:
        """Open the table of a kind, as it is now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlets:
    """Where everything that is read is stored."""

    tables: Tables
    letters: DeadLetters  # messages that cannot be decoded
    rejects: RejectLog  # rows whose id is stored with other values
    max_reject_bytes: int = MAX_REJECT_BYTES  # of the file


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """A topic, and the records in it."""

    topic: str
    topic_id: str  # at the start of the run; a recreated topic gets another one
    kind: RecordKind
    messages: MessageReader
