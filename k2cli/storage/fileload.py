"""A file into a table, all or nothing, and only once."""

from types import TracebackType
from typing import TYPE_CHECKING

import pyarrow as pa
from pyiceberg.table import Table

from k2cli.config import Settings
from k2cli.errors import Conflict
from k2cli.records import RecordKind
from k2cli.storage.append import Attempt, commit_attempts
from k2cli.storage.datafiles import delete_files, write_data_files
from k2cli.storage.loads import (
    KEY,
    FileState,
    LoadEntry,
    extended,
    loaded_before,
    newest_load,
)
from k2cli.storage.vendor import translated

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile

_FILE_ROWS = 200_000  # rows of one data file; what is in memory at once


class FileLoad:
    """Takes the rows of one file and commits them with the file's entry in the log of loads.

    Data files are written as rows come, invisible until the commit; without one they are deleted.
    """

    def __init__(self, *, table: Table, kind: RecordKind, settings: Settings, where: str) -> None:
        self._table = table
        self._kind = kind
        self._settings = settings
        self._what = f"cannot write to table {kind.table} in {where}"
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._files: list[DataFile] = []
        self._is_ours = True  # the files: no snapshot refers to them

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
        self, entry: LoadEntry, *, after: FileState | None = None, is_forced: bool
    ) -> int | None:
        """Commit all rows and the entry as one snapshot; return its id.

        `after` is how far the path was loaded when its rows were read. Returns None, and adds
        nothing, if the file turns out to be loaded already, be it since a moment ago by another
        process; with `is_forced` it is loaded again.

        Raises:
            Conflict: other writers won too often, or one loaded from this path meanwhile; nothing
                was written.
        """
        self._write_files()
        with translated(self._what):
            self._is_ours = False  # whatever happens now, they may be the table's
            try:
                snapshot_id = commit_attempts(
                    self._table,
                    lambda carried: self._attempt(carried, entry, after, is_forced),
                    self._settings,
                )
            except Conflict:
                self._is_ours = True
                raise
        self._is_ours = snapshot_id is None
        return snapshot_id

    def _attempt(
        self, carried: dict[str, str], entry: LoadEntry, after: FileState | None, is_forced: bool
    ) -> Attempt | None:
        log = carried.get(KEY)
        if not is_forced:
            if loaded_before(self._table, log, [entry.digest]):
                return None
            if after != newest_load(self._table, log, entry.path, entry.layout):
                raise Conflict(f"{entry.path} was loaded meanwhile", hint="run the command again")
        value, segment = extended(self._table, log, [entry])
        return Attempt(files=self._files, properties={**carried, KEY: value}, scratch=[segment])

    def _write_files(self) -> None:
        if self._pending:
            rows = pa.Table.from_batches(self._pending)
            self._pending, self._pending_rows = [], 0
            with translated(self._what):
                self._files += write_data_files(self._table, self._kind, rows)
