"""Load a file into a table, all or nothing, and every record once."""

from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from k2cli.errors import BadData, Conflict
from k2cli.ranges import Ints, ranges_of
from k2cli.storage.admission import (
    Admission,
    Found,
    Keys,
    admit,
    admit_others,
    leave_out,
    runs,
)
from k2cli.storage.append import Attempt, PositionMissing, commit_attempts, has_moved_on
from k2cli.storage.datafiles import delete_files, open_data_file, write_data_files
from k2cli.storage.lines import Bools, Lines
from k2cli.storage.loadresult import LoadResult, Written
from k2cli.storage.loads import (
    KEY as LOADS_KEY,
)
from k2cli.storage.loads import (
    FileKey,
    FileState,
    LoadEntry,
    append_entries,
    copies,
    loaded_before,
    newest_loads,
)
from k2cli.storage.lookup import (
    check_lines,
    days_of_keys,
    days_of_rows,
    find_rows,
    known_lines,
    read_numbers,
)
from k2cli.storage.numbered import are_unnumbered
from k2cli.storage.position import KEY, Position, Series, State, Stored
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.state import (
    LOST_KEY,
    REMOVED_KEY,
    TableState,
    is_ancestor,
    position_property,
    read_state,
)
from k2cli.storage.stored import BEGINNING, Days, FileStatistics
from k2cli.storage.target import Target
from k2cli.storage.vendor import translated

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile

_FILE_ROWS: Final = 200_000  # rows of one data file, which are in memory together


def _sequence(snapshot: Snapshot | None) -> int:
    """Return the sequence number that later snapshots exceed; none do in a v1 table."""
    if snapshot is None or snapshot.sequence_number is None:
        return BEGINNING
    return snapshot.sequence_number


class FileLoad:
    """Receives the rows of one file and commits them with the file's entry in the log of loads.

    Data files are written as rows arrive, invisible until the commit; without a commit they are
    deleted. Rows are checked against the table at the start of the load, and against earlier rows
    of the file; the commit checks them again against rows added by other writers.

    Rows with a number are identified by it, rows with text ids by their message ids. Lines without
    an id are new unless `known` lists loads that may have stored them.
    """

    def __init__(
        self,
        open_target: Callable[[], Target],
        *,
        what: str,
        lines: Lines,
        known: Lines,
        is_again: bool,
    ) -> None:
        self.result: Final = LoadResult()
        self._open_target = open_target
        self._what = what  # the operation, for errors
        self._kind = lines.kind
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._files: list[DataFile] = []
        self._is_ours = True  # the files, which no snapshot refers to
        self._state: TableState | None = None  # of the table, when the first rows came
        self._position = Position()  # of the table then, and of what was written since
        self._base: Snapshot | None = None  # the state that the rows were checked against
        self._lines = lines  # of this file
        self._known = known  # loads whose rows are not stored again
        self._is_again = is_again  # even if the file was loaded before
        self._written = Written()
        self._is_asking = False  # some rows without a number may still be stored

    def __enter__(self) -> "FileLoad":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_ours and self._files:
            delete_files(self._table, (file.file_path for file in self._files))

    @cached_property
    def _target(self) -> Target:
        return self._open_target()

    @property
    def _table(self) -> Table:
        return self._target.table

    def take_rows(self) -> list[pa.RecordBatch] | None:
        """Release and return all rows; None if some were already written."""
        if self._state is not None:
            return None
        rows, self._pending, self._pending_rows = self._pending, [], 0
        return rows

    def write(self, rows: pa.RecordBatch) -> None:
        """Add rows."""
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        if self._pending_rows >= _FILE_ROWS:
            self._write_files()

    def commit(
        self,
        entry: LoadEntry,
        *,
        key: FileKey,
        after: FileState | None = None,
    ) -> int | None:
        """Commit all new rows and the file's entry as one snapshot; return its id.

        The entry is completed with what was stored. `after` is the earlier load of the path.
        Returns None and adds nothing if the file with this key was already loaded, possibly just
        now by another process, unless it is loaded again.

        Raises:
            Conflict: other writers won too often, one loaded from this path meanwhile, or the table
                was rolled back or lost rows; nothing was written.
        """
        self._write_files()
        with translated(self._what):
            self._is_ours = False  # from now on they may belong to the table
            try:
                snapshot_id = self._commit(entry, key, after)
            except Conflict:
                self._is_ours = True
                raise
        self._is_ours = snapshot_id is None
        return snapshot_id

    def _commit(self, entry: LoadEntry, key: FileKey, after: FileState | None) -> int | None:
        while True:
            with suppress(PositionMissing):  # another engine wrote since the load began
                return commit_attempts(
                    self._table,
                    lambda state: self._attempt(state, entry, key, after),
                    self._target.settings,
                    is_current=False,
                )
            ensure_position(self._target)

    def _attempt(
        self, state: TableState, entry: LoadEntry, key: FileKey, after: FileState | None
    ) -> Attempt | None:
        log = state.properties.get(LOADS_KEY)
        if not self._is_again and loaded_before(self._table, log, [key]):
            return None
        expected = [after]
        if self._is_again:  # the same file again: its rows are not stored twice
            expected.append(FileState(entry.size_bytes, entry.digest))
        is_moved = newest_loads(self._table, log, [key]).get(key.path) not in expected
        is_copy = self._is_again and not self._known
        if is_moved or (is_copy and copies(self._table, log, entry.identity) >= entry.copy):
            raise Conflict(f"{entry.path} was loaded meanwhile", hint="run the command again")
        if state.position is None:
            raise PositionMissing
        is_rolled_back = self._base is not None and not is_ancestor(self._table, self._base)
        self._check_removals(state, is_rolled_back=is_rolled_back)
        self._leave_out_added(BEGINNING if is_rolled_back else _sequence(self._base))
        self._base = self._table.current_snapshot()
        value, segment = append_entries(self._table, log, [self._written.entry(entry, self.result)])
        position = position_property(state.position.extended(self._written.numbers))
        properties = {**state.properties, LOADS_KEY: value, KEY: position}
        return Attempt(files=self._files, properties=properties, scratch=[segment])

    def _check_removals(self, state: TableState, *, is_rolled_back: bool) -> None:
        """Refuse to continue if skipped rows may no longer be stored."""
        if not self.result.duplicates + self.result.conflicts:
            return
        removed = [each.properties.get(REMOVED_KEY) for each in (state, self._state or state)]
        if removed[0] != removed[1] or is_rolled_back:
            raise self._changed("rows were removed from")

    def _changed(self, what: str) -> Conflict:
        return Conflict(f"{what} {self._kind.table} meanwhile", hint="run the command again")

    def _write_files(self) -> None:
        if not self._pending:
            return
        rows = pa.Table.from_batches(self._pending)
        self._pending, self._pending_rows = [], 0
        with translated(self._what):
            try:
                admission = self._admit(rows)
            except FileNotFoundError:  # possibly compacted and expired since the table was loaded
                if not has_moved_on(self._table):
                    raise
                raise self._changed("other writers compacted") from None
            self.result.add(admission)
            if admission.rows.num_rows:
                self._files += self._write_rows(admission.rows)

    def _write_rows(self, rows: pa.Table) -> list["DataFile"]:
        try:
            return write_data_files(self._table, self._kind, rows)
        except BadData:  # the table may have evolved since it was loaded
            if not has_moved_on(self._table):
                raise
            return write_data_files(self._table, self._kind, rows)

    def _admit(self, rows: pa.Table) -> Admission:
        """Choose the rows that are new to the table and the file."""
        if self._state is None:
            self._state = read_state(self._table)
            if self._state.position is None:
                raise PositionMissing
            self._position = self._state.position
            self._base = self._table.current_snapshot()
        admission = admit(self._position, self._kind, rows, self._look_up)
        admission = self._leave_out_known(admission, self._files_of, self._state)
        if LOST_KEY in self._state.properties and not self._is_again:
            left = admission.rows.take(pa.array(admission.others))
            lines = left.filter(pa.array(self._lines.mask(left)))
            check_lines(self._table, self._kind, self._files_of, lines, self._what)
        self._written.add(self._kind, admission.rows, admission.added)
        self._position = self._position.extended(admission.added)
        return admission

    def _leave_out_known(
        self, admission: Admission, files: Callable[[Days], FileStatistics], state: TableState
    ) -> Admission:
        """Skip rows without a number that are stored, or repeated among the rows."""
        is_lost = LOST_KEY in state.properties
        # Then it is unknown which loads stored lines of the file: any may have.
        known = partial(are_unnumbered, self._kind) if is_lost else self._known.mask
        admission = self._leave_out_lines(admission, files, known)
        rows, others = admission.rows, admission.others
        if not len(others):
            return admission
        is_line = self._lines.mask(rows.take(pa.array(others)))
        asked = others if state.may_have_unlogged_lines else others[~is_line]
        if not len(asked):
            return admission
        self._is_asking = True

        def find(rows: pa.Table) -> Found:
            near = files(days_of_rows(self._kind, rows))
            return self._target.ids.find(self._table, self._kind, near, rows)

        left = admit_others(self._kind, admission, asked, find)
        has_texts = not self._lines.mask(left.rows.take(pa.array(left.others))).all()
        self._written.has_texts |= has_texts
        return left

    def _leave_out_lines(
        self,
        admission: Admission,
        files: Callable[[Days], FileStatistics],
        known: Callable[[pa.Table], Bools],
    ) -> Admission:
        """Skip lines that other loads stored if the file is loaded again."""
        rows, others = admission.rows, admission.others
        if not self._known or not len(others):
            return admission
        asked = rows.take(pa.array(others))
        is_line = self._lines.mask(asked)
        if not is_line.any():
            return admission
        self._is_asking = True
        near = files(days_of_rows(self._kind, asked))
        is_known = is_line & known_lines(self._table, self._kind, near, asked, known)
        return leave_out(self._kind, admission, others[is_known])

    def _files_of(self, days: Days) -> FileStatistics:
        """Return the table's data files of some days, and those written since."""
        written = FileStatistics.of(self._table, self._files).within(days, BEGINNING)
        return FileStatistics.concatenate([self._target.index.files(self._table, days), written])

    def _look_up(self, keys: Keys) -> Found:
        return find_rows(self._table, self._kind, self._files_of(days_of_keys(keys)), keys)

    def _leave_out_added(self, after: int) -> None:
        """Skip the rows that other writers added to the table after a snapshot."""
        added = self._target.index.files(self._table, after=after)
        hits: dict[Series, list[Ints]] = {}
        for path in added.overlapping(self._written.numbers):
            for numbered, _ in read_numbers(self._table, self._kind, path):
                for code, begin, end in runs(numbered.codes):
                    series = numbered.series[code]
                    numbers = numbered.numbers[begin:end]
                    states = self._written.numbers.get(series, Stored()).states(numbers)
                    hits.setdefault(series, []).append(numbers[states != State.ABSENT])
        stored = {
            series: Stored(exact=ranges_of(np.unique(np.concatenate(numbers))))
            for series, numbers in hits.items()
        }
        stored = {series: each for series, each in stored.items() if len(each)}
        if stored or (self._is_asking and added.paths):
            self._write_again(Position(stored), added)

    def _write_again(self, position: Position, added: FileStatistics) -> None:
        """Replace files with rows that `added` files now have."""
        written = FileStatistics.of(self._table, self._files)
        paths = set(written.overlapping(position.series))
        if self._is_asking:
            paths |= set(written.of_days(added.days))
        admissions: dict[str, Admission] = {}
        files: list[DataFile] = []
        try:
            for file in self._files:
                admission = None
                if file.file_path in paths:
                    admission = self._judge_again(file, position, added)
                if admission is None:
                    continue
                admissions[file.file_path] = admission
                if admission.rows.num_rows:
                    files += write_data_files(self._table, self._kind, admission.rows)
        except BaseException:
            delete_files(self._table, (file.file_path for file in files))
            raise
        for admission in admissions.values():
            self.result.rows -= admission.duplicates + admission.conflicts
            self.result.add_left_out(admission)
        self._files = [file for file in self._files if file.file_path not in admissions] + files
        self._written.numbers = {
            series: own.without(position.of(series).exact)
            for series, own in self._written.numbers.items()
        }
        delete_files(self._table, admissions)

    def _judge_again(
        self, file: "DataFile", position: Position, added: FileStatistics
    ) -> Admission | None:
        """Choose the rows of a written file that `added` files do not have; None if all of them."""
        rows = self._read(file)
        look_up = partial(find_rows, self._table, self._kind, added)
        admission = admit(position, self._kind, rows, look_up)
        if self._is_asking and self._state is not None:
            admission = self._leave_out_known(
                admission, lambda days: added.within(days, BEGINNING), self._state
            )
        return admission if admission.rows.num_rows < rows.num_rows else None

    def _read(self, file: "DataFile") -> pa.Table:
        with open_data_file(self._table, file.file_path) as parquet:
            rows = parquet.read(use_threads=False)
        return rows.select(self._kind.arrow.names).cast(self._kind.arrow)
