"""Load small files into a table: many per snapshot, still all or nothing per file."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from k2cli.errors import Conflict
from k2cli.ranges import Ints
from k2cli.storage.admission import Admission, added_by_part
from k2cli.storage.append import (
    Attempt,
    PositionMissing,
    admit_rows,
    commit_attempts,
    known_position,
)
from k2cli.storage.datafiles import write_data_files
from k2cli.storage.lines import Lines
from k2cli.storage.loadresult import LoadResult, Written
from k2cli.storage.loads import KEY as LOADS_KEY
from k2cli.storage.loads import (
    FileKey,
    FileState,
    LoadEntry,
    append_entries,
    loaded_before,
    newest_loads,
)
from k2cli.storage.lookup import check_lines
from k2cli.storage.position import KEY
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.state import LOST_KEY, TableState, position_property
from k2cli.storage.stored import Days, FileStatistics
from k2cli.storage.target import Target


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CompleteFile:
    """A file that was read to its end."""

    rows: Sequence[pa.RecordBatch]
    lines: Lines  # of this file
    entry: LoadEntry  # for the log of loads
    key: FileKey
    after: FileState | None  # the earlier load of the path


def load_group(target: Target, files: Sequence[CompleteFile]) -> list[LoadResult | None]:
    """Commit the new rows of files and their entries in the log of loads as one snapshot.

    If several files have the same record, the first one counts. Returns the outcome of each file;
    None if another process has loaded it meanwhile.

    Raises:
        BadData: the table's log of loads was lost, and it may store lines of these files.
        Conflict: other writers won too often, or loaded from one of these paths meanwhile; nothing
            was written.
    """
    group = _Group(target, files)
    while True:
        with suppress(PositionMissing):  # another engine wrote since the table was loaded
            commit_attempts(target.table, group.attempt, target.settings, is_current=False)
            return group.outcomes
        ensure_position(target)


class _Group:
    """Checks the rows of files against a table, again at each attempt."""

    def __init__(self, target: Target, files: Sequence[CompleteFile]) -> None:
        self.outcomes: list[LoadResult | None] = [None] * len(files)
        self._target = target
        self._files = files

    def attempt(self, state: TableState) -> Attempt | None:
        """Build what one commit adds: the rows, and an entry per file."""
        table, kind = self._target.table, self._target.kind
        log = state.properties.get(LOADS_KEY)
        files = self._new_files(log)
        self.outcomes = [None] * len(self._files)
        if not files:
            return None
        before = known_position(state)
        batches = [batch for file in files for batch in file.rows]
        rows = pa.Table.from_batches(batches, kind.arrow)
        admission = admit_rows(
            self._target,
            rows,
            before,
            lambda left: left.others if state.may_have_unlogged_lines else self._texts(left),
        )
        if LOST_KEY in state.properties:
            self._check_lines(files, admission)
        entries = self._entries(files, admission)
        data_files = write_data_files(table, kind, admission.rows) if len(admission.kept) else []
        value, segment = append_entries(table, log, entries)
        position = before.extended(admission.added)
        return Attempt(
            files=data_files,
            properties={
                **state.properties,
                LOADS_KEY: value,
                KEY: position_property(position),
            },
            scratch=[segment, *(file.file_path for file in data_files)],
            is_repeatable=True,
        )

    def _new_files(self, log: str | None) -> list[CompleteFile]:
        """Choose the files that are not in the log."""
        table = self._target.table
        keys = [file.key for file in self._files]
        known = loaded_before(table, log, keys)
        newest = newest_loads(table, log, keys)
        files = [file for file in self._files if file.key.identity not in known]
        for file in files:
            if newest.get(file.key.path) != file.after:
                raise Conflict(
                    f"{file.entry.path} was loaded meanwhile", hint="run the command again"
                )
        return files

    def _check_lines(self, files: Sequence[CompleteFile], admission: Admission) -> None:
        """Refuse files whose lines may be stored as those of files missing from the log."""
        target = self._target
        others = admission.rows.take(pa.array(admission.others))

        def find_files(days: Days) -> FileStatistics:
            return target.index.files(target.table, days)

        for file in files:
            lines = others.filter(pa.array(file.lines.mask(others)))
            what = f"cannot load {file.entry.path}"
            check_lines(target.table, target.kind, find_files, lines, what)

    def _texts(self, admission: Admission) -> Ints:
        """Return the indices of rows whose ids are texts; others without a number are lines."""
        others = admission.others
        if not len(others):
            return others
        names = [name for file in self._files for name in file.lines.files]
        is_line = Lines(self._target.kind, names).mask(admission.rows.take(pa.array(others)))
        return others[~is_line]

    def _entries(self, files: Sequence[CompleteFile], admission: Admission) -> list[LoadEntry]:
        """Complete the entries of files, and their outcomes."""
        kind = self._target.kind
        sizes = np.array([sum(rows.num_rows for rows in file.rows) for file in files])
        ends = np.cumsum(sizes)
        begins = ends - sizes
        added = added_by_part(kind, admission, begins)
        firsts, lasts = (np.searchsorted(admission.kept, bounds) for bounds in (begins, ends))
        file_of = np.searchsorted(ends, admission.conflicting, side="right")
        texts = self._texts(admission)
        entries: list[LoadEntry] = []
        for at, (file, first, last) in enumerate(zip(files, firsts, lasts, strict=True)):
            conflicts = np.flatnonzero(file_of == at).tolist()
            result = LoadResult(
                rows=int(last - first),
                duplicates=int(sizes[at] - (last - first)) - len(conflicts),
                conflicts=len(conflicts),
                examples=[admission.examples[n] for n in conflicts if n < len(admission.examples)],
            )
            written = Written(has_texts=bool(((texts >= first) & (texts < last)).any()))
            written.add(kind, admission.rows.slice(first, last - first), added[at])
            entries.append(written.entry(file.entry, result))
            self.outcomes[self._files.index(file)] = result
        return entries
