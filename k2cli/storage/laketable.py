"""One table of the lakehouse, opened once: what it stores, and all writes to it.

A `LakeTable` keeps the table's metadata as the catalog last returned it, which costs a round trip
each time. Methods that read use this metadata. `refresh` loads it again, and so do `append`,
`evolve`, `undo_load` and `dedupe` before they write. `load_file` and `load_group` use the metadata
from which the log of loads was read: refresh once before each file or group. A commit on outdated
metadata fails; it is then repeated with the newest metadata, after checking the rows again.

Use one `LakeTable` per thread. Several of them, in any number of processes, may write to one table.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
from pyiceberg.table import Table

from k2cli import rejects
from k2cli.config import Settings
from k2cli.events import Observer
from k2cli.records import RecordKind, TableFiles
from k2cli.storage.append import Commit, PositionMissing, SourcePosition, append_rows
from k2cli.storage.catalog import catalog_properties, shown_properties
from k2cli.storage.compact import DayDone, compact_day
from k2cli.storage.compactplan import Choice, DayPlan, plan_compaction
from k2cli.storage.dedupe import remove_duplicates
from k2cli.storage.describe import SnapshotInfo, TableInfo, describe_table, list_snapshots
from k2cli.storage.duplicates import DuplicateRows, Keep
from k2cli.storage.evolve import evolve_table, unfit_rows
from k2cli.storage.fileload import FileLoad
from k2cli.storage.freshness import newest_time
from k2cli.storage.gaps import GapWatch
from k2cli.storage.groupload import CompleteFile, load_group
from k2cli.storage.holes import find_holes, open_gaps
from k2cli.storage.lease import Lease, hold_lease
from k2cli.storage.lines import Lines
from k2cli.storage.loadresult import LoadResult
from k2cli.storage.loads import KEY as LOADS_KEY
from k2cli.storage.loads import (
    FileKey,
    FileState,
    copies,
    list_loads,
    loaded_before,
    newest_loads,
    stored_lines,
)
from k2cli.storage.lookup import StoredIds
from k2cli.storage.opengaps import GapNotes, OpenGaps
from k2cli.storage.plan import evolved_kind, plan_files
from k2cli.storage.position import Position, Series, Stored
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.snippet import reading_code
from k2cli.storage.state import carried_properties, read_state
from k2cli.storage.stored import FileIndex
from k2cli.storage.target import Target
from k2cli.storage.undo import Undone, undo_load
from k2cli.storage.vendor import reading_manifests, translated

T = TypeVar("T")


class LakeTable:
    """The table of one record kind. Created by `Lake.open`.

    Raises in all methods that read or write files:
        BadData: a file of the table is damaged or missing.
        Unavailable: the catalog or the store does not answer.
    """

    def __init__(
        self,
        kind: RecordKind,
        *,
        load: Callable[[], Table],
        where: str,
        settings: Settings,
        observe: Observer,
    ) -> None:
        """Load the table with `load`; `where` names the lake in errors."""
        self.kind = kind
        self._load = load
        self._name = f"table {kind.table} in {where}"
        self._settings = settings
        self._observe = observe
        self._index = FileIndex()
        self._ids = StoredIds()
        self._table = load()

    def refresh(self) -> None:
        """Load the newest metadata from the catalog: one round trip.

        A running load keeps the metadata that it started with.

        Raises:
            NotFound: the table no longer exists.
        """
        self._table = self._load()

    @property
    def iceberg(self) -> Table:
        """The pyiceberg table, for pyiceberg's own methods."""
        return self._table

    # --- description, from the loaded metadata

    def evolved_kind(self) -> RecordKind:
        """Return the kind with the table's columns, which may have evolved."""
        return evolved_kind(self._table, self.kind)

    def describe(self) -> TableInfo:
        """Describe the table and its size."""
        return describe_table(self._table, self.kind)

    def snapshots(self) -> list[SnapshotInfo]:
        """List the snapshots that the table keeps, newest first."""
        return list_snapshots(self._table)

    def reading_code(self) -> str:
        """Write Python code that reads the table without k2. See `snippet.reading_code`."""
        properties = shown_properties(catalog_properties(self._settings))
        return reading_code(self.kind, ".".join(self._table.name()), properties)

    def read_metadata(self) -> str:
        """Read the metadata file from where it is stored, and return its path."""
        path = self._table.metadata_location
        with translated(f"cannot read {path}"), self._table.io.new_input(path).open() as file:
            file.read()
        return path

    # --- content, from the loaded metadata

    def newest(self) -> datetime | None:
        """Return the time of the newest row; None without rows. Only statistics are read."""

        def read(table: Table) -> datetime | None:
            with reading_manifests():
                return newest_time(table, self.kind.partition_by)

        return self._read(f"cannot read the statistics of {self._name}", read)

    def stored_position(self, key: str) -> str | None:
        """Return the position of a source that is stored under this key."""
        with translated(f"cannot read the position of {self._name}"):
            return carried_properties(self._table).get(key)

    def series(self) -> set[tuple[str, str]]:
        """Return exchange and symbol of the numbered rows, and of the files with one symbol.

        Only metadata is read, so rows without numbers from files of several symbols are omitted.
        """
        with translated(f"cannot read {self._name}"):
            position = read_state(self._table).position or Position()
        loads = self.loads()
        pairs = zip(loads["exchange"].to_pylist(), loads["symbol"].to_pylist(), strict=True)
        loaded = {(exchange, symbol) for exchange, symbol in pairs if exchange and symbol}
        return {(each.exchange, each.symbol) for each in position.series} | loaded

    def open_gaps(self) -> OpenGaps:
        """Return the gaps that streams noted and that are still open. Only metadata is read.

        Raises:
            BadData: k2's state of the table is damaged.
        """
        with translated(f"cannot read the open gaps of {self._name}"):
            return open_gaps(read_state(self._table))

    def holes(self, choose: Callable[[Series], bool]) -> pa.Table:
        """Find the numbers that are missing in the chosen series. See `holes.find_holes`.

        Usually only metadata is read.
        """

        def read(table: Table) -> pa.Table:
            state = read_state(table)
            return find_holes(table, self.kind, self._index, state=state, choose=choose)

        return self._read(f"cannot find the gaps of {self._name}", read)

    def plan(
        self,
        *,
        symbols: Sequence[str] = (),
        exchanges: Sequence[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
        numbers: tuple[int, int] | None = None,
    ) -> TableFiles:
        """Find the data files that can hold rows of these symbols and times, newest day first.

        Times are aware; `start` is inclusive, `end` exclusive. `numbers` are the first and last
        exchange sequence. Statistics prune whole files: rows inside them still need the filter.

        Raises:
            BadData: another engine left row-level deletes, which k2 does not apply.
        """
        plan = partial(
            plan_files,
            kind=self.kind,
            symbols=symbols,
            exchanges=exchanges,
            start=start,
            end=end,
            numbers=numbers,
        )
        return self._read(f"cannot plan a read of {self._name}", plan)

    def unfit_rows(self, rows: pa.Table) -> Mapping[int, rejects.Fault]:
        """Find the rows that the table cannot store until it is evolved: index -> fault.

        After a failed `append`, these are the rows that it refused.
        """
        return unfit_rows(self._table, self.kind, rows)

    # --- the log of loads, from the loaded metadata

    def loads(self) -> pa.Table:
        """List the files that were loaded, newest first."""
        return self._read_log(list_loads)

    def loaded_before(self, keys: Sequence[FileKey]) -> set[str]:
        """Return the identities of files that were loaded with the same interpretation."""
        return self._read_log(partial(loaded_before, keys=keys))

    def newest_loads(self, keys: Sequence[FileKey]) -> dict[str, FileState]:
        """Return how far each path was loaded with the same interpretation."""
        return self._read_log(partial(newest_loads, keys=keys))

    def stored_lines(self, key: FileKey, is_start: Callable[[int, str], bool]) -> Lines:
        """Name the loads that may have stored lines of a file. See `loads.stored_lines`."""
        read = partial(stored_lines, kind=self.kind, key=key, is_start=is_start)
        return self._read_log(read)

    def copies(self, identity: str) -> int:
        """Return the highest copy of a file that was loaded; 0 if none was."""
        return self._read_log(partial(copies, identity=identity))

    # --- loads, based on the loaded metadata

    def load_file(
        self, path: str, *, file: str, known: Lines | None = None, is_again: bool = False
    ) -> FileLoad:
        """Start to load a file: a context manager that takes rows and commits them in one snapshot.

        `path` names the file in errors. `file` identifies it in the message ids of rows without
        ids, see `records.line_series`; rows of the lines in `known` are not stored again. With
        `is_again`, the file may already be in the log.
        """
        return FileLoad(
            self._target,
            what=f"cannot load {path} into {self._name}",
            lines=Lines(self.kind, (file,)),
            known=known or Lines(self.kind),
            is_again=is_again,
        )

    def load_group(self, files: Sequence[CompleteFile]) -> list[LoadResult | None]:
        """Load small files, all in one snapshot. See `groupload.load_group`."""
        target = self._target()
        with translated(f"cannot write to {self._name}"):
            return load_group(target, files)

    # --- writes, which refresh the metadata first

    def append(
        self,
        rows: pa.Table,
        *,
        source: SourcePosition | None = None,
        seen: Mapping[Series, Stored] | None = None,
        watch: GapWatch | None = None,
        notes: GapNotes | None = None,
    ) -> Commit:
        """Append rows that are not stored yet, as one snapshot. See `append_rows`."""
        while True:
            self.refresh()
            target = self._target()
            with (
                translated(f"cannot write to {self._name}"),
                suppress(PositionMissing),  # another engine wrote just now
            ):
                return append_rows(target, rows, source=source, seen=seen, watch=watch, notes=notes)

    def evolve(self, avro: Mapping[str, Any], *, is_dry_run: bool = False) -> list[str]:
        """Upgrade the table to a newer schema of its kind; return the changes as text.

        Columns are added or widened; no file is rewritten, and rows written before have null in
        new columns.

        Raises:
            BadData: the table cannot be upgraded to this schema.
            Conflict: other writers won too often; nothing was changed.
        """
        self.refresh()
        with translated(f"cannot evolve {self._name}"):
            return evolve_table(self._table, self.kind, avro, is_dry_run=is_dry_run)

    def undo_load(self, load: str, *, is_dry_run: bool = False) -> Undone:
        """Remove the rows of a load, and its entry in the log of loads. See `undo.undo_load`."""
        self.refresh()
        target = self._target(is_read_only=is_dry_run)
        with translated(f"cannot write to {self._name}"):
            return undo_load(target, load, is_dry_run=is_dry_run)

    def dedupe(self, keep: Keep | None, *, is_dry_run: bool = False) -> Iterator[DuplicateRows]:
        """Remove records that are stored more than once. See `remove_duplicates`."""
        self.refresh()
        target = self._target(is_read_only=is_dry_run)
        with translated(f"cannot write to {self._name}"):
            yield from remove_duplicates(target, keep, is_dry_run=is_dry_run)

    def plan_compaction(self, choice: Choice) -> list[DayPlan]:
        """Choose the files to compact, by day. See `compactplan.plan_compaction`."""
        self.refresh()
        with translated(f"cannot plan the compaction of {self._name}"):
            return plan_compaction(self._table, self.kind, choice)

    @contextmanager
    def compaction(self) -> Iterator[Lease]:
        """Hold the right to compact the table, which one process has at a time.

        Raises:
            Conflict: another compaction is running.
        """
        with translated(f"cannot compact {self._name}"), hold_lease(self._load) as lease:
            yield lease

    def compact_day(
        self, plan: DayPlan, lease: Lease, choice: Choice, on_rows: Callable[[int], None]
    ) -> DayDone | None:
        """Compact the files of one day. See `compact.compact_day`."""
        self.refresh()
        target = self._target()
        with translated(f"cannot compact {plan.day} of {self._name}"):
            return compact_day(target, plan, lease, choice, on_rows)

    def _target(self, *, is_read_only: bool = False) -> Target:
        """Prepare to write, and rebuild the table's position if it is unknown."""
        target = Target(
            table=self._table,
            kind=self.kind,
            settings=self._settings,
            index=self._index,
            ids=self._ids,
            observe=self._observe,
        )
        if not is_read_only:
            with translated(f"cannot read {self._name}"):
                ensure_position(target)
        return target

    def _read_log(self, read: Callable[[Table, str | None], T]) -> T:
        """Read the log of loads."""
        return self._read(
            f"cannot read the loads of {self._name}",
            lambda table: read(table, carried_properties(table).get(LOADS_KEY)),
        )

    def _read(self, what: str, read: Callable[[Table], T]) -> T:
        """Read files of the newest snapshot, or of a newer one if writers expired it meanwhile.

        `what` begins the message of an error.
        """
        while True:
            with translated(what):
                try:
                    return read(self._table)
                except FileNotFoundError:
                    before = self._table.metadata_location
                    self.refresh()
                    if self._table.metadata_location == before:
                        raise
