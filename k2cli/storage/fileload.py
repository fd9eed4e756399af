"""A file into a table, all or nothing, and every record once."""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k2cli.errors import Conflict
from k2cli.ranges import Ints, ranges_of
from k2cli.records import RecordKind
from k2cli.storage.admission import (
    MAX_CONFLICTS,
    RECEIVED,
    Admission,
    Found,
    Keys,
    ValueConflict,
    admit,
    runs,
)
from k2cli.storage.append import Attempt, PositionMissing, commit_attempts
from k2cli.storage.datafiles import delete_files, write_data_files
from k2cli.storage.lines import Bools, Lines
from k2cli.storage.loads import (
    KEY as LOADS_KEY,
)
from k2cli.storage.loads import (
    FileKey,
    FileState,
    LoadEntry,
    copies,
    extended,
    loaded_before,
    newest_load,
)
from k2cli.storage.position import KEY, Position, Series, State, Stored, encode_position
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.state import (
    LOST_KEY,
    REMOVED_KEY,
    TableState,
    position_property,
    read_state,
)
from k2cli.storage.stored import (
    FileStatistics,
    find_rows,
    known_ids,
    known_lines,
    read_numbers,
)
from k2cli.storage.target import Target
from k2cli.storage.vendor import translated

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile

_FILE_ROWS: Final = 200_000  # rows of one data file; what is in memory at once
_MOST_RANGES: Final = 100_000  # that are kept exactly of what one file adds to a series


@dataclass(slots=True, kw_only=True)
class Stowed:
    """The outcome of loading the rows of one file."""

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


@dataclass(slots=True)
class _Written:
    """What a load stores: what the table must know to find these rows again."""

    numbers: dict[Series, Stored] = field(default_factory=dict)
    received: set[int] = field(default_factory=set)  # every ingestion_timestamp
    times: tuple[int, int] | None = None  # the first and the last
    has_texts: bool = False  # rows whose ids are texts

    def add(self, kind: RecordKind, admission: Admission) -> None:
        """Add rows that were taken."""
        for series, stored in admission.added.items():
            own = self.numbers.get(series, Stored()).merged(stored)
            self.numbers[series] = own.shrunk(_MOST_RANGES)
        rows = admission.rows
        if rows.num_rows:
            self.received.update(rows[RECEIVED].cast(pa.int64()).unique().to_pylist())
            first, last = pc.min_max(rows[kind.partition_by].cast(pa.int64())).as_py().values()
            before = self.times or (first, last)
            self.times = min(before[0], first), max(before[1], last)

    def entry(self, entry: LoadEntry, stowed: Stowed) -> LoadEntry:
        """Complete the entry of the load."""
        first, last = self.times or (None, None)
        numbers = {series: each for series, each in self.numbers.items() if len(each)}
        return replace(
            entry,
            rows=stowed.rows,
            duplicates=stowed.duplicates,
            conflicts=stowed.conflicts,
            has_texts=self.has_texts,
            stored=encode_position(Position(numbers)) if numbers else "",
            received=sorted(self.received),
            first_time=first,
            last_time=last,
        )


class FileLoad:
    """Takes the rows of one file and commits them with the file's entry in the log of loads.

    Data files are written as rows come, invisible until the commit; without one they are deleted.
    Rows are judged against the table as it was when the load began, and against what the file
    itself held before; the commit judges them again against what other writers added since.

    Rows with a number are known by it, rows whose ids are texts by their message ids. Lines without
    an id are new unless `known` says which loads may have stored them.
    """

    def __init__(self, target: Target, *, where: str, lines: Lines, known: Lines) -> None:
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
        self._lines = lines  # of this file
        self._known = known  # of loads whose rows are not stored again
        self._written = _Written()
        self._is_asking = False  # some rows have no number, and may be stored all the same

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
        entry: LoadEntry,
        *,
        key: FileKey | None,
        after: FileState | None = None,
    ) -> int | None:
        """Commit all new rows and the file's entry as one snapshot; return its id.

        The entry is completed with what was stored. `after` is how far the path was loaded when its
        rows were read. Returns None, and adds nothing, if the file with this key turns out to be
        loaded already, be it since a moment ago by another process; without a key it is loaded
        again.

        Raises:
            Conflict: other writers won too often, one loaded from this path meanwhile, or rows
                were removed from the table; nothing was written.
        """
        self._write_files()
        with translated(self._what):
            self._is_ours = False  # whatever happens now, they may be the table's
            try:
                snapshot_id = self._commit(entry, key, after)
            except Conflict:
                self._is_ours = True
                raise
        self._is_ours = snapshot_id is None
        return snapshot_id

    def _commit(self, entry: LoadEntry, key: FileKey | None, after: FileState | None) -> int | None:
        while True:
            with suppress(PositionMissing):  # another engine wrote since the load began
                return commit_attempts(
                    self._table,
                    lambda state: self._attempt(state, entry, key, after),
                    self._target.settings,
                )
            ensure_position(self._target)

    def _attempt(
        self, state: TableState, entry: LoadEntry, key: FileKey | None, after: FileState | None
    ) -> Attempt | None:
        log = state.properties.get(LOADS_KEY)
        if key is not None and loaded_before(self._table, log, key):
            return None
        is_moved = key is not None and after != newest_load(self._table, log, key)
        is_copy = key is None and not self._known
        if is_moved or (is_copy and copies(self._table, log, entry.identity) >= entry.copy):
            raise Conflict(f"{entry.path} was loaded meanwhile", hint="run the command again")
        if state.position is None:
            raise PositionMissing
        self._check_removals(state)
        self._leave_out_added()
        value, segment = extended(self._table, log, [self._written.entry(entry, self.stowed)])
        position = position_property(state.position.extended(self._written.numbers))
        properties = {**state.properties, LOADS_KEY: value, KEY: position}
        return Attempt(files=self._files, properties=properties, scratch=[segment])

    def _check_removals(self, state: TableState) -> None:
        """Refuse to go on if rows were left out that may have been removed since."""
        removed = [each.properties.get(REMOVED_KEY) for each in (state, self._state or state)]
        if removed[0] != removed[1] and self.stowed.duplicates + self.stowed.conflicts:
            raise Conflict(
                f"rows of {self._kind.table} were removed meanwhile", hint="run the command again"
            )

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
        admission = self._leave_out_known(admission, self._all_files(), self._state)
        self._written.add(self._kind, admission)
        self._position = self._position.extended(admission.added)
        return admission

    def _leave_out_known(
        self, admission: Admission, files: FileStatistics, state: TableState
    ) -> Admission:
        """Leave out rows without a number that are stored, or that came before among the rows."""
        rows, others = admission.rows, admission.others
        if not len(others):
            return admission
        asked = rows.take(pa.array(others))
        is_line = self._lines.mask(asked)
        is_out = np.zeros(len(others), dtype=np.bool_)
        if self._known and is_line.any():
            self._is_asking = True
            is_out |= known_lines(self._table, self._kind, files, asked, self._known)
        if LOST_KEY in state.properties or not is_line.all():
            self._is_asking = True
            is_out |= self._is_id_known(asked, files)
        self._written.has_texts |= bool((~is_line & ~is_out).any())
        keep = np.ones(rows.num_rows, dtype=np.bool_)
        keep[others[is_out]] = False
        return replace(
            admission,
            rows=rows.filter(pa.array(keep)) if is_out.any() else rows,
            duplicates=admission.duplicates + int(is_out.sum()),
        )

    def _is_id_known(self, rows: pa.Table, files: FileStatistics) -> Bools:
        """Tell of which rows the message id is stored, or came before among them."""
        ids = rows["message_id"]
        known = known_ids(self._table, self._kind, files, rows)
        codes = ids.combine_chunks().dictionary_encode().indices.to_numpy()
        is_known: Bools = pc.is_in(ids, known).to_numpy().copy()
        is_repeated = np.ones(len(codes), dtype=np.bool_)
        is_repeated[np.unique(codes, return_index=True)[1]] = False
        return is_known | is_repeated

    def _all_files(self) -> FileStatistics:
        """Return the table's data files, and those that were written since."""
        return FileStatistics.joined([self._base, FileStatistics.of(self._table, self._files)])

    def _look_up(self, keys: Keys) -> Found:
        return find_rows(self._table, self._kind, self._all_files(), keys)

    def _leave_out_added(self) -> None:
        """Leave out the rows that other writers added to the table since the load began."""
        files = self._target.index.files(self._table)
        if files is self._base:
            return
        added = files.only(set(files.paths) - set(self._base.paths))
        self._base = files
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
        """Replace the files that hold rows which `added` files have by now."""
        written = FileStatistics.of(self._table, self._files)
        paths = set(written.overlapping(position.series))
        if self._is_asking:
            is_near = np.isin(written.days, added.days)
            paths |= {written.paths[at] for at in np.flatnonzero(is_near)}
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
            if self._is_asking and self._state is not None:
                admission = self._leave_out_known(admission, added, self._state)
            if admission.rows.num_rows == rows.num_rows:
                files.append(file)
                continue
            self.stowed.rows -= rows.num_rows - admission.rows.num_rows
            self.stowed.add_left_out(admission)
            dropped.append(file.file_path)
            if admission.rows.num_rows:
                files += write_data_files(self._table, self._kind, admission.rows)
        self._files = files
        self._written.numbers = {
            series: own.without(position.of(series).exact)
            for series, own in self._written.numbers.items()
        }
        delete_files(self._table, dropped)

    def _read(self, file: "DataFile") -> pa.Table:
        with self._table.io.new_input(file.file_path).open() as stream:
            rows = pq.read_table(stream, use_threads=False, partitioning=None)
        return rows.select(self._kind.arrow.names).cast(self._kind.arrow)
