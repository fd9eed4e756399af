"""Remove rows: rewrite data files without them.

Files never change, so the rows found in a file, and its replacement, stay valid if another writer
is faster; only files that this writer added or replaced are read again.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import Final

import numpy as np
import pyarrow as pa
from pyiceberg.expressions import BooleanExpression
from pyiceberg.manifest import DataFile

from k2cli.errors import Conflict
from k2cli.ranges import EMPTY, Ranges, intersection, ranges_of, union
from k2cli.storage.admission import runs
from k2cli.storage.append import Attempt, PositionMissing, commit_attempts, has_moved_on
from k2cli.storage.datafiles import delete_files, read_data_file, write_data_file_again
from k2cli.storage.lines import Bools
from k2cli.storage.numbered import numbered_rows
from k2cli.storage.position import Position, Series, Stored, unknown_numbers
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.state import REMOVED_KEY, TableState
from k2cli.storage.stored import row_level_deletes
from k2cli.storage.target import Target
from k2cli.storage.vendor import reading_manifests

_IDENTITY: Final = ("exchange", "symbol", "source_sequence", "message_id")
# Returns which rows of a data file to remove. Called once per row, in order.
Choose = Callable[[DataFile, pa.Table], Bools]


def add_ranges(numbers: dict[Series, Ranges], series: Series, ranges: Ranges) -> None:
    """Add numbers of a series."""
    numbers[series] = union(numbers.get(series, EMPTY), ranges)


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """The rows to remove from one data file."""

    file: DataFile
    is_removed: Bools  # of each row
    numbers: Mapping[Series, Ranges]  # those of dense series

    @property
    def rows(self) -> int:
        """The number of rows to remove."""
        return int(self.is_removed.sum())


@dataclass(slots=True, kw_only=True)
class Removed:
    """The rows to remove from a table."""

    removals: list[Removal] = field(default_factory=list)
    added: list[DataFile] = field(default_factory=list)  # with the remaining rows

    @property
    def rows(self) -> int:
        """The number of rows to remove."""
        return sum(each.rows for each in self.removals)

    @property
    def files(self) -> list[DataFile]:
        """The data files that hold these rows."""
        return [each.file for each in self.removals]

    @property
    def numbers(self) -> Mapping[Series, Ranges]:
        """The numbers of rows to remove, of dense series."""
        numbers: dict[Series, Ranges] = {}
        for each in self.removals:
            for series, ranges in each.numbers.items():
                add_ranges(numbers, series, ranges)
        return numbers

    def position(self, before: Position, others: Mapping[Series, Ranges]) -> Position:
        """Return what is stored after the removal.

        `others` are numbers that remaining rows may also have: they must be looked up.
        """
        after: dict[Series, Stored] = {}
        for series, ranges in self.numbers.items():
            if series in before.series:
                left = before.series[series].without(ranges)
                shared = intersection(ranges, others.get(series, EMPTY))
                after[series] = left.merged(unknown_numbers(shared))
        return before.updated(after)


class Rewrite:
    """Removes rows from a table in one commit; a context manager.

    `row_filter` chooses the data files that may hold such rows, `choose` the rows, by `columns` and
    those that identify a row. One row group of a data file is in memory at a time.
    """

    def __init__(
        self,
        target: Target,
        row_filter: BooleanExpression,
        choose: Choose,
        *,
        columns: Sequence[str],
    ) -> None:
        self._target = target
        self._table = target.table
        self._row_filter = row_filter
        self._choose = choose
        self._columns = [*_IDENTITY, *columns]
        self._found: dict[str, Removal | None] = {}  # by the path of each file that was read
        self._written: dict[str, DataFile | None] = {}  # its replacement; None: no rows remain
        self._committed: set[str] = set()  # paths of written files that are the table's
        self._is_ours = True  # the files that were written: no snapshot refers to them

    def __enter__(self) -> "Rewrite":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_ours:
            paths = {file.file_path for file in self._written.values() if file}
            delete_files(self._table, paths - self._committed)

    def find(self) -> Removed:
        """Find the rows in the current table; nothing is written.

        Raises:
            BadData: another engine left row-level deletes.
        """
        while True:
            try:
                return Removed(removals=list(self._removals()))
            except FileNotFoundError:  # possibly compacted and expired meanwhile
                if not has_moved_on(self._table):
                    raise

    def commit(self, finish: Callable[[TableState, Removed], Attempt]) -> int | None:
        """Remove the rows in one snapshot; return its id.

        `finish` builds the attempt from the table's state and the removed rows: its properties, and
        any other files to add.

        Raises:
            Conflict: other writers won too often; nothing was changed.
            BadData: another engine left row-level deletes.
        """

        def attempt(state: TableState) -> Attempt:
            self._is_ours, self._committed = True, set()
            if state.position is None:
                raise PositionMissing
            removed = self._write(Removed(removals=list(self._removals())))
            made = finish(state, removed)
            # From here on they may belong to the table, whatever happens.
            self._is_ours = False
            self._committed = {file.file_path for file in removed.added}
            return replace(
                made,
                files=[*made.files, *removed.added],
                removed=removed.files,
                properties={**made.properties, REMOVED_KEY: uuid.uuid4().hex},
            )

        while True:
            try:
                snapshot_id = commit_attempts(self._table, attempt, self._target.settings)
            except PositionMissing:  # another engine wrote meanwhile
                ensure_position(self._target)
            except Conflict:
                self._is_ours, self._committed = True, set()
                raise
            except FileNotFoundError:  # possibly compacted and expired meanwhile
                if not self._is_ours or not has_moved_on(self._table):
                    raise
            else:
                self._is_ours = True  # except for those that were committed
                return snapshot_id

    def _removals(self) -> Iterator[Removal]:
        with reading_manifests():
            tasks = list(self._table.scan(row_filter=self._row_filter).plan_files())
        if any(task.delete_files for task in tasks):
            raise row_level_deletes(self._target.kind.table)
        for task in tasks:
            path = task.file.file_path
            if path not in self._found:
                self._found[path] = self._search(task.file)
            removal = self._found[path]
            if removal is not None:
                yield removal

    def _search(self, file: DataFile) -> Removal | None:
        kind = self._target.kind
        masks: list[Bools] = []
        numbers: dict[Series, Ranges] = {}
        for rows in read_data_file(self._table, file, self._columns):
            masks.append(self._choose(file, rows))
            if not (kind.is_dense and masks[-1].any()):
                continue
            numbered = numbered_rows(kind, rows.filter(pa.array(masks[-1])))
            for code, begin, end in runs(numbered.codes):
                add_ranges(numbers, numbered.series[code], ranges_of(numbered.numbers[begin:end]))
        is_removed = np.concatenate([np.zeros(0, dtype=np.bool_), *masks])
        if not is_removed.any():
            return None
        return Removal(file=file, is_removed=is_removed, numbers=numbers)

    def _write(self, removed: Removed) -> Removed:
        """Write the remaining rows."""
        for removal in removed.removals:
            path = removal.file.file_path
            if path not in self._written:
                self._written[path] = self._write_again(removal)
            written = self._written[path]
            if written is not None:
                removed.added.append(written)
        return removed

    def _write_again(self, removal: Removal) -> DataFile | None:
        if removal.is_removed.all():
            return None
        kept = self._kept(removal)
        return write_data_file_again(self._table, self._target.kind, removal.file, kept)

    def _kept(self, removal: Removal) -> Iterator[pa.Table]:
        start = 0
        for rows in read_data_file(self._table, removal.file):
            is_removed = removal.is_removed[start : start + rows.num_rows]
            start += rows.num_rows
            if not is_removed.all():
                yield rows.filter(pa.array(~is_removed))
