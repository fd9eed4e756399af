"""What a load of a file stored, and its entry in the log of loads."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from k2cli.records import RecordKind
from k2cli.storage.admission import MAX_CONFLICTS, RECEIVED, Admission, ValueConflict
from k2cli.storage.loads import LoadEntry
from k2cli.storage.position import Position, Series, Stored, encode_position

_MAX_RANGES: Final = 100_000  # that are kept exactly of what one file adds to a series


@dataclass(slots=True, kw_only=True)
class LoadResult:
    """The outcome of loading the rows of one file."""

    rows: int = 0  # new rows
    duplicates: int = 0
    conflicts: int = 0
    examples: list[ValueConflict] = field(default_factory=list)  # the first of the conflicts

    def add(self, admission: Admission) -> None:
        """Count the new rows, duplicates and conflicts."""
        self.rows += admission.rows.num_rows
        self.add_left_out(admission)

    def add_left_out(self, admission: Admission) -> None:
        """Count only the skipped rows."""
        self.duplicates += admission.duplicates
        self.conflicts += admission.conflicts
        self.examples += admission.examples[: MAX_CONFLICTS - len(self.examples)]


@dataclass(slots=True)
class Written:
    """What a load stores: the data needed to find these rows again."""

    numbers: dict[Series, Stored] = field(default_factory=dict)
    received: set[int] = field(default_factory=set)  # every ingestion_timestamp
    times: tuple[int, int] | None = None  # the first and the last
    has_texts: bool = False  # rows whose ids are texts

    def add(self, kind: RecordKind, rows: pa.Table, added: Mapping[Series, Stored]) -> None:
        """Add stored rows, and what they add to the position."""
        for series, stored in added.items():
            own = self.numbers.get(series, Stored()).merged(stored)
            self.numbers[series] = own.shrunk(_MAX_RANGES)
        if rows.num_rows:
            self.received.update(rows[RECEIVED].cast(pa.int64()).unique().to_pylist())
            first, last = pc.min_max(rows[kind.partition_by].cast(pa.int64())).as_py().values()
            before = self.times or (first, last)
            self.times = min(before[0], first), max(before[1], last)

    def entry(self, entry: LoadEntry, result: LoadResult) -> LoadEntry:
        """Complete the entry of the load."""
        first, last = self.times or (None, None)
        numbers = {series: each for series, each in self.numbers.items() if len(each)}
        return replace(
            entry,
            rows=result.rows,
            duplicates=result.duplicates,
            conflicts=result.conflicts,
            has_texts=self.has_texts,
            stored=encode_position(Position(numbers)) if numbers else "",
            received=sorted(self.received),
            first_time=first,
            last_time=last,
        )
