"""Compact tables, day by day; a day that cannot be compacted does not stop the others."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from k2cli.config import Settings
from k2cli.errors import BadData
from k2cli.records import RecordKind
from k2cli.storage.compactplan import Choice, DayPlan
from k2cli.storage.lake import open_lake
from k2cli.storage.laketable import LakeTable


@dataclass(slots=True, kw_only=True)
class CompactTotals:
    """The totals of one run. Without changes, as in a dry run, they are what is planned."""

    days: int = 0
    rows: int = 0
    files_before: int = 0
    files_after: int = 0
    bytes_before: int = 0
    bytes_after: int = 0
    failed: int = 0  # days with a damaged or missing file


# Called with the rows of a day that were read, and again as they are written.
OnRows = Callable[[int], None]
Progress = Callable[[RecordKind, DayPlan], AbstractContextManager[OnRows]]


@dataclass(slots=True, kw_only=True)
class CompactRun:
    """One run, and its result."""

    config: Settings
    on_plan: Callable[[RecordKind, DayPlan], None]  # called before the first day of a table
    progress: Progress | None  # None: a dry run, which changes nothing
    totals: CompactTotals = field(default_factory=CompactTotals)
    faults: list[BadData] = field(default_factory=list)  # of each day that failed

    def compact(self, kinds: Sequence[RecordKind], choice: Choice) -> None:
        """Compact the tables of some kinds, one snapshot per day; all tables without kinds.

        Raises:
            NotFound: the lake or a table does not exist.
            BadData: a table has row-level deletes, or a format whose row ids k2 cannot keep.
            Conflict: another compaction is running, or other writers won too often.
        """
        with open_lake(self.config) as lake:
            for kind in kinds or lake.kinds():
                table = lake.open(kind)
                plans = table.plan_compaction(choice)
                for plan in plans:
                    self.on_plan(kind, plan)
                if self.progress is None:
                    for plan in plans:
                        left = plan.size_bytes - plan.saved_bytes
                        _add(self.totals, plan, plan.files_after, left)
                elif plans:
                    self._compact(table, plans, choice, self.progress)

    def _compact(
        self, table: LakeTable, plans: Sequence[DayPlan], choice: Choice, progress: Progress
    ) -> None:
        with table.compaction() as lease:
            for plan in plans:
                try:
                    with progress(table.kind, plan) as on_rows:
                        done = table.compact_day(plan, lease, choice, on_rows)
                except BadData as exc:
                    self.totals.failed += 1
                    self.faults.append(exc)
                    continue
                if done is not None:
                    _add(self.totals, done.plan, done.files, done.size_bytes)


def _add(totals: CompactTotals, plan: DayPlan, files: int, size_bytes: int) -> None:
    totals.days += 1
    totals.rows += plan.rows
    totals.files_before += len(plan.stored)
    totals.files_after += files
    totals.bytes_before += plan.size_bytes
    totals.bytes_after += size_bytes
