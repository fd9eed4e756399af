"""A file into a table, all or nothing, and every record once."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from k2cli.errors import Conflict
from k2cli.ranges import Ints, ranges_of
from k2cli.storage.admission import (
    MAX_CONFLICTS,
    Admission,
    Found,
    Keys,
    ValueConflict,
    admit,
    runs,
)
from k2cli.storage.append import Attempt, PositionMissing, commit_attempts, leave_out_known
from k2cli.storage.datafiles import delete_files, write_data_files
from k2cli.storage.loads import (
    KEY as LOADS_KEY,
)
from k2cli.storage.loads import (
    FileState,
    LoadEntry,
    extended,
    loaded_before,
    newest_load,
)
from k2cli.storage.position import KEY, Position, Series, State, Stored
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.state import LOST_KEY, TableState, position_property, read_state
from k2cli.storage.stored import FileStatistics, find_rows, read_numbers
from k2cli.storage.target import Target
from k2cli.storage.vendor import translated

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile

_FILE_ROWS: Final = 200_000  # rows of one data file; what is in memory at once
_MOST_RANGES: Final = 100_000  # that are kept exactly of what one file adds to a series


@dataclass(slots=True, kw_only=True)
class Stowed:
    """What became of the rows of one file."""

    rows: int = 0  # those that the table did not store yet
    duplicates: int = 0
    conflicts: int = 0
    examples: list[ValueConflict] = field(default_factory=list)  # the first of the conflicts

    def add(self, admission: Admission) -> None:
        """Count what a table took of some rows."""
        self.rows += admission.rows.num_rows
        self.add_left_out(admission)

    def add_left_out(self, admission: Admission) -> None:
        """Count the rows that were left out alone."""
        self.duplicates += admission.duplicates
        self.conflicts += admission.conflicts
        self.examples += admission.examples[: MAX_CONFLICTS - len(self.examples)]


class FileLoad:
    """Takes the rows of one file and commits them with the file's entry in the log of loads.

    Data files are written as rows come, invisible until the commit; without one they are deleted.
    Rows are judged against the table as it was when the load began, and against what the file
    itself held before; the commit judges them again against what other writers added since.
    """

    def __init__(self, target: Target, *, where: str) -> None:
        self.stowed: Final = Stowed()
        self._target = target
        self._table, self._kind = target.table, target.kind
        self._what = f"cannot write to table {target.kind.table} in {where}"
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._files: list[DataFile] = []
        self._is_ours = True  # the files: no snapshot refers to them
        self._state: TableState | None = None  # of the table, when the first rows came
        self._position = Position()  # of the table then, and of what was written since
        self._base = FileStatistics.joined([])  # the table's data files then
        self._own: dict[Series, Stored] = {}  # what was written

    def __enter__(self) -> "FileLoad":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_ours:
            delete_files(self._table, (file.file_path for file in self._files))

    def write(self, rows: pa.RecordBatch) -> None:
        """Take rows over."""
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        if self._pending_rows >= _FILE_ROWS:
            self._write_files()

    def commit(
        self,
        entry: Callable[[Stowed], LoadEntry],
        *,
        after: FileState | None = None,
        is_forced: bool,
    ) -> int | None:
        """Commit all new rows and the file's entry as one snapshot; return its id.

        `entry` makes the entry from what became of the rows. `after` is how far the path was
        loaded when its rows were read. Returns None, and adds nothing, if the file turns out to be
        loaded already, be it since a moment ago by another process; with `is_forced` it is loaded
        again.

        Raises:
            Conflict: other writers won too often, or one loaded from this path meanwhile; nothing
                was written.
        """
        self._write_files()
        with translated(self._what):
            self._is_ours = False  # whatever happens now, they may be the table's
            try:
                snapshot_id = self._commit(entry, after, is_forced=is_forced)
            except Conflict:
                self._is_ours = True
                raise
        self._is_ours = snapshot_id is None
        return snapshot_id

    def _commit(
        self, entry: Callable[[Stowed], LoadEntry], after: FileState | None, *, is_forced: bool
    ) -> int | None:
        while True:
            with suppress(PositionMissing):  # another engine wrote since the load began
                return commit_attempts(
                    self._table,
                    lambda state: self._attempt(state, entry, after, is_forced),
                    self._target.settings,
                )
            ensure_position(self._target)

    def _attempt(
        self,
        state: TableState,
        entry: Callable[[Stowed], LoadEntry],
        after: FileState | None,
        is_forced: bool,
    ) -> Attempt | None:
        log = state.properties.get(LOADS_KEY)
        if not is_forced:
            made = entry(self.stowed)
            if loaded_before(self._table, log, [made.digest]):
                return None
            if after != newest_load(self._table, log, made.path, made.layout):
                raise Conflict(f"{made.path} was loaded meanwhile", hint="run the command again")
        if state.position is None:
            raise PositionMissing
        self._leave_out_added()
        value, segment = extended(self._table, log, [entry(self.stowed)])
        position = position_property(state.position.extended(self._own))
        properties = {**state.properties, LOADS_KEY: value, KEY: position}
        return Attempt(files=self._files, properties=properties, scratch=[segment])

    def _write_files(self) -> None:
        if not self._pending:
            return
        rows = pa.Table.from_batches(self._pending)
        self._pending, self._pending_rows = [], 0
        with translated(self._what):
            admission = self._admit(rows)
            self.stowed.add(admission)
            if admission.rows.num_rows:
                self._files += write_data_files(self._table, self._kind, admission.rows)

    def _admit(self, rows: pa.Table) -> Admission:
        """Choose the rows that neither the table stores nor the file had before."""
        if self._state is None:
            self._state = read_state(self._table)
            if self._state.position is None:
                raise PositionMissing
            self._position = self._state.position
            self._base = self._target.index.files(self._table)
        admission = admit(self._position, self._kind, rows, self._look_up)
        if LOST_KEY in self._state.properties:
            admission = leave_out_known(self._target, self._base, admission)
        for series, stored in admission.added.items():
            own = self._own.get(series, Stored()).merged(stored)
            self._own[series] = own.shrunk(_MOST_RANGES)
        self._position = self._position.extended(admission.added)
        return admission

    def _look_up(self, keys: Keys) -> Found:
        files = FileStatistics.joined([self._base, FileStatistics.of(self._table, self._files)])
        return find_rows(self._table, self._kind, files, keys)

    def _leave_out_added(self) -> None:
        """Leave out the rows that other writers added to the table since the load began."""
        files = self._target.index.files(self._table)
        added = files.only(set(files.paths) - set(self._base.paths))
        self._base = files
        hits: dict[Series, list[Ints]] = {}
        for path in added.overlapping(self._own):
            for numbered, _ in read_numbers(self._table, self._kind, path):
                for code, begin, end in runs(numbered.codes):
                    series = numbered.series[code]
                    numbers = numbered.numbers[begin:end]
                    states = self._own.get(series, Stored()).states(numbers)
                    hits.setdefault(series, []).append(numbers[states != State.ABSENT])
        stored = {
            series: Stored(exact=ranges_of(np.unique(np.concatenate(numbers))))
            for series, numbers in hits.items()
        }
        stored = {series: each for series, each in stored.items() if len(each)}
        if stored:
            self._write_again(Position(stored), added)

    def _write_again(self, position: Position, added: FileStatistics) -> None:
        """Replace the files that hold rows which `added` files have by now."""
        written = FileStatistics.of(self._table, self._files)
        paths = set(written.overlapping(position.series))
        files: list[DataFile] = []
        dropped: list[str] = []
        for file in self._files:
            if file.file_path not in paths:
                files.append(file)
                continue
            rows = self._read(file)
            admission = admit(
                position, self._kind, rows, partial(find_rows, self._table, self._kind, added)
            )
            if admission.rows.num_rows == rows.num_rows:
                files.append(file)
                continue
            self.stowed.rows -= rows.num_rows - admission.rows.num_rows
            self.stowed.add_left_out(admission)
            dropped.append(file.file_path)
            if admission.rows.num_rows:
                files += write_data_files(self._table, self._kind, admission.rows)
        self._files = files
        self._own = {
            series: own.without(position.of(series).exact) for series, own in self._own.items()
        }
        delete_files(self._table, dropped)

    def _read(self, file: "DataFile") -> pa.Table:
        with self._table.io.new_input(file.file_path).open() as stream:
            rows = pq.read_table(stream, use_threads=False, partitioning=None)
        return rows.select(self._kind.arrow.names).cast(self._kind.arrow)
