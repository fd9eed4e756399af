"""Plan a compaction: choose the data files of each day by what their manifests say."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final

from pyiceberg.expressions import (
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    LessThan,
)
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.sorting import NullOrder, SortDirection
from pyiceberg.transforms import IdentityTransform

from k2cli.errors import BadData
from k2cli.records import RecordKind
from k2cli.storage.compaction import (
    ALL_SYMBOLS,
    Group,
    StoredFile,
    files_after,
    plan_day,
    saved_bytes,
)
from k2cli.storage.stored import bounds_of, check_deletes
from k2cli.storage.vendor import predicate, reading_manifests

_EPOCH: Final = date(1970, 1, 1)
_LINEAGE_VERSION: Final = 3  # of the format: rows have ids, which would have to be copied


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which days to compact, and how."""

    day: date | None = None
    older_than_s: float | None = None  # only days that are over for at least this
    target_bytes: int
    over_for_s: float = 3600.0  # a day that is over for this is sorted as a whole

    def includes(self, day: int, now_s: float) -> bool:
        """Return whether a day (since 1970) is chosen."""
        if self.day is not None:
            return day == (self.day - _EPOCH).days
        return self.older_than_s is None or _is_over(day, now_s, self.older_than_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class DayPlan:
    """The files of one day to compact."""

    day: date
    groups: Sequence[Group]
    files: Mapping[str, DataFile]  # by path
    target_bytes: int

    @property
    def day_number(self) -> int:
        """The days since 1970."""
        return (self.day - _EPOCH).days

    @property
    def stored(self) -> list[StoredFile]:
        """The files to replace."""
        return [file for group in self.groups for file in group.files]

    @property
    def is_whole(self) -> bool:
        """Whether the day is sorted as a whole."""
        return any(group.is_whole_day for group in self.groups)

    @property
    def rows(self) -> int:
        """The rows in these files."""
        return sum(file.rows for file in self.stored)

    @property
    def size_bytes(self) -> int:
        """The size of these files."""
        return sum(file.size_bytes for file in self.stored)

    @property
    def files_after(self) -> int:
        """The estimated number of files afterwards."""
        return files_after(self.groups, self.target_bytes)

    @property
    def saved_bytes(self) -> int:
        """The estimated bytes that fewer files save; sorting usually saves more."""
        return saved_bytes(self.stored, self.files_after)


def plan_compaction(table: Table, kind: RecordKind, choice: Choice) -> list[DayPlan]:
    """Choose the files to compact, oldest day first.

    Raises:
        BadData: the table has row-level deletes, or a format version with row ids.
    """
    if table.metadata.format_version >= _LINEAGE_VERSION:
        raise BadData(
            f"table {kind.table} has format version {table.metadata.format_version}, whose row ids"
            " k2 cannot keep",
            hint="compact the table with the engine that upgraded it",
        )
    now_s, describe, spec_id = time.time(), _describe(table, kind), table.spec().spec_id
    days: dict[int, dict[str, DataFile]] = {}
    for file in _live_files(table, kind, choice.day):
        day = int(file.partition[0])
        if file.spec_id == spec_id and choice.includes(day, now_s):
            days.setdefault(day, {})[file.file_path] = file
    plans = []
    for day in sorted(days):
        groups = plan_day(
            [describe(file) for file in days[day].values()],
            is_over=_is_over(day, now_s, choice.over_for_s),
            target_bytes=choice.target_bytes,
        )
        if groups:
            files = {each.path: days[day][each.path] for group in groups for each in group.files}
            plans.append(
                DayPlan(
                    day=_EPOCH + timedelta(days=day),
                    groups=groups,
                    files=files,
                    target_bytes=choice.target_bytes,
                )
            )
    return plans


def _live_files(table: Table, kind: RecordKind, day: date | None) -> Iterator[DataFile]:
    """Yield the data files of a table, or of one day."""
    snapshot = table.current_snapshot()
    if snapshot is None:
        return
    rows: BooleanExpression = AlwaysTrue()
    if day is not None:
        begin, end = (
            datetime.combine(each, datetime.min.time(), UTC).isoformat()
            for each in (day, day + timedelta(days=1))
        )
        rows = And(
            predicate(GreaterThanOrEqual, kind.partition_by, begin),
            predicate(LessThan, kind.partition_by, end),
        )
    with reading_manifests():
        check_deletes(table, snapshot.manifests(table.io))
        tasks = list(table.scan(row_filter=rows).plan_files())
    for task in tasks:
        yield task.file


def _describe(table: Table, kind: RecordKind) -> Callable[[DataFile], StoredFile]:
    """Return what converts the manifest entries of a table's files."""
    order = table_sort_order(table, kind)
    symbol, time_of = (table.schema().find_field(name) for name in ("symbol", kind.partition_by))

    def stored(file: DataFile) -> StoredFile:
        begin, end = bounds_of(file, time_of, (0, 0))
        return StoredFile(
            path=file.file_path,
            size_bytes=file.file_size_in_bytes,
            rows=file.record_count,
            is_marked=order in (None, file.sort_order_id),  # else only bounds show it
            symbols=bounds_of(file, symbol, ALL_SYMBOLS),
            begin=begin,
            end=end,
        )

    return stored


def table_sort_order(table: Table, kind: RecordKind) -> int | None:
    """Return the id of the table's sort order; None if it is not the one that k2 writes."""
    order = table.sort_order()
    wanted = [
        (table.schema().find_field(name).field_id, SortDirection.ASC, NullOrder.NULLS_LAST)
        for name in kind.sort_by
    ]
    found = [(field.source_id, field.direction, field.null_order) for field in order.fields]
    is_plain = all(isinstance(field.transform, IdentityTransform) for field in order.fields)
    return order.order_id if is_plain and found == wanted else None


def _is_over(day: int, now_s: float, for_s: float) -> bool:
    ended = datetime.combine(_EPOCH + timedelta(days=day + 1), datetime.min.time(), UTC)
    return now_s >= ended.timestamp() + for_s
