"""The lakehouse: a catalog, its tables, and what k2 does with them."""

import fcntl
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.expressions import (
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    In,
    LessThan,
)
from pyiceberg.table import FileScanTask, Table
from sqlalchemy.engine import URL

from k2cli import rejects
from k2cli.config import Settings
from k2cli.errors import BadData, ConfigError, NotFound
from k2cli.events import Observer
from k2cli.files import make_folder, opener
from k2cli.records import KINDS, RecordKind, TableFiles, evolved
from k2cli.redaction import redact_url
from k2cli.storage.append import (
    Commit,
    PositionMissing,
    SourcePosition,
    append_rows,
    has_moved_on,
)
from k2cli.storage.catalog import open_catalog, shown_properties
from k2cli.storage.damage import Fault, Inspection, inspect_table, metadata_fault
from k2cli.storage.dedupe import remove_doubles
from k2cli.storage.duplicates import Doubles, Keep
from k2cli.storage.evolve import arrow_columns, evolve_table, unfit_rows
from k2cli.storage.fileload import FileLoad
from k2cli.storage.freshness import newest_time
from k2cli.storage.gaps import GapWatch
from k2cli.storage.groupload import CompleteFile, load_group
from k2cli.storage.lines import Lines
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
from k2cli.storage.pointer import read_pointers
from k2cli.storage.position import Position, Series, Stored
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.relocate import MovedTable, moved_tables, relocate_tables
from k2cli.storage.repair import Repair, plan_repair, repair_table
from k2cli.storage.s3 import s3_access
from k2cli.storage.snippet import reading_code
from k2cli.storage.state import RUN_KEY, carried_properties, read_state
from k2cli.storage.stored import FileIndex, row_level_deletes
from k2cli.storage.stowed import Stowed
from k2cli.storage.tables import create_table
from k2cli.storage.target import Target
from k2cli.storage.undo import Undone, undo_load
from k2cli.storage.vendor import predicate, reading_manifests, translated

NAMESPACE: Final = "market_data"
_CATALOG_FILE: Final = "catalog.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """One snapshot of a table, as people want to see it."""

    snapshot_id: int
    committed_at: datetime
    operation: str
    added_rows: int
    total_rows: int
    total_files: int
    run: str  # the run of k2 that made it, as its log lines have it
    refs: tuple[str, ...]  # branches and tags that point at it


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """What a table is, and how large."""

    name: str
    kind: str
    location: str
    rows: int
    files: int
    size_bytes: int
    snapshots: int
    last_commit: datetime | None
    partition: str
    sort_order: str
    columns: tuple[tuple[int, str, str, bool, str], ...]  # id, name, type, required, doc
    properties: dict[str, str]


class Lake:
    """An open catalog. Made by `open_lake`, which also closes it."""

    def __init__(
        self, *, catalog: Catalog, where: str, settings: Settings, observe: Observer
    ) -> None:
        self._catalog = catalog
        self._where = where
        self._settings = settings
        self._observe = observe
        self._indexes = {name: FileIndex() for name in KINDS}
        self._ids = {name: StoredIds() for name in KINDS}

    def create_tables(self) -> None:
        """Create the namespace and every table that is missing. Safe to run twice, and at once."""
        with translated(f"cannot create the tables in {self._where}"):
            with suppress(NamespaceAlreadyExistsError):
                self._catalog.create_namespace_if_not_exists(NAMESPACE)
            for kind in KINDS.values():
                if not self._catalog.table_exists((NAMESPACE, kind.table)):
                    with suppress(TableAlreadyExistsError, CommitFailedException):
                        create_table(self._catalog, (NAMESPACE, kind.table), kind)

    def table(self, kind: RecordKind) -> Table:
        """Load a table as it is now.

        Raises:
            NotFound: nothing was ever written.
        """
        with translated(f"cannot open table {kind.table} in {self._where}"):
            try:
                return self._catalog.load_table((NAMESPACE, kind.table))
            except NoSuchTableError as exc:
                raise _no_table(kind.table, self._where) from exc

    def kind(self, kind: RecordKind) -> RecordKind:
        """Return a kind as its table has it, which may have evolved. See `records.evolved`."""
        return _evolved(kind, self.table(kind))

    def evolve(
        self, kind: RecordKind, avro: Mapping[str, Any], *, is_dry_run: bool = False
    ) -> list[str]:
        """Bring a table along with a newer schema of its kind; return what changes, as text.

        Columns come to be, or get wider; no file is written again, and rows written before have
        null in new columns.

        Raises:
            BadData: the table cannot be brought to this schema.
            Conflict: other writers won too often; nothing was changed.
        """
        table = self.table(kind)
        with translated(f"cannot evolve table {kind.table} in {self._where}"):
            return evolve_table(table, kind, avro, is_dry_run=is_dry_run)

    def kinds(self) -> list[RecordKind]:
        """The record kinds that have a table here."""
        with translated(f"cannot list the tables in {self._where}"):
            return [
                kind
                for kind in KINDS.values()
                if self._catalog.table_exists((NAMESPACE, kind.table))
            ]

    def listed(self) -> list[str]:
        """The tables that the catalog lists. Unlike for `kinds`, nothing else is read."""
        with translated(f"cannot list the tables in {self._where}"):
            try:
                return sorted(name for _, name in self._catalog.list_tables(NAMESPACE))
            except NoSuchNamespaceError:
                return []

    def read_metadata(self, kind: RecordKind) -> str:
        """Read a table's newest metadata file where the files are kept; return where that is."""
        table = self.table(kind)
        where = table.metadata_location
        with (
            translated(f"cannot read {where}"),
            table.io.new_input(where).open() as file,
        ):
            file.read()
        return where

    def newest(self, kind: RecordKind) -> datetime | None:
        """Tell the time of a table's newest row; None if there is none. No row is read."""
        table = self.table(kind)
        what = f"cannot read the statistics of table {kind.table} in {self._where}"
        with translated(what), reading_manifests():
            return newest_time(table, kind.partition_by)

    def append(
        self,
        kind: RecordKind,
        rows: pa.Table,
        *,
        source: SourcePosition | None = None,
        seen: Mapping[Series, Stored] | None = None,
        watch: GapWatch | None = None,
    ) -> Commit:
        """Append rows that are not stored yet, as one snapshot. See `append_rows`."""
        while True:
            target = self._target(kind)
            with (
                translated(f"cannot write to table {kind.table} in {self._where}"),
                suppress(PositionMissing),  # another engine wrote just now
            ):
                return append_rows(target, rows, source=source, seen=seen, watch=watch)

    def _target(self, kind: RecordKind, *, is_read_only: bool = False) -> Target:
        """Load a table to write to, and rebuild its position where that is not known."""
        target = Target(
            table=self.table(kind),
            kind=kind,
            settings=self._settings,
            index=self._indexes[kind.name],
            ids=self._ids[kind.name],
            observe=self._observe,
        )
        if not is_read_only:
            with translated(f"cannot read table {kind.table} in {self._where}"):
                ensure_position(target)
        return target

    def unfit_rows(self, kind: RecordKind, rows: pa.Table) -> Mapping[int, rejects.Fault]:
        """Find the rows that a table cannot hold before it has evolved: index -> fault."""
        return unfit_rows(self.table(kind), kind, rows)

    def held(self, kind: RecordKind, key: str) -> str | None:
        """Read the position that stands under this key in a table's newest snapshot."""
        table = self.table(kind)
        with translated(f"cannot read the position of table {kind.table} in {self._where}"):
            return carried_properties(table).get(key)

    def load_file(
        self,
        kind: RecordKind,
        path: str,
        *,
        file: str,
        known: Lines | None = None,
        is_again: bool = False,
    ) -> FileLoad:
        """Begin to load a file: a context manager that takes rows and commits them in one snapshot.

        `path` names the file in errors. `file` is what the message ids of rows without ids are
        made of, see `records.line_series`; rows of the lines in `known` are not stored again. With
        `is_again` the file may be in the log already.
        """
        return FileLoad(
            partial(self._target, kind),
            what=f"cannot load {path} into table {kind.table} in {self._where}",
            lines=Lines(kind, (file,)),
            known=known or Lines(kind),
            is_again=is_again,
        )

    def load_group(self, kind: RecordKind, files: Sequence[CompleteFile]) -> list[Stowed | None]:
        """Load small files, all in one snapshot. See `groupload.load_group`."""
        target = self._target(kind)
        with translated(f"cannot write to table {kind.table} in {self._where}"):
            return load_group(target, files)

    def loaded_before(self, kind: RecordKind, keys: Sequence[FileKey]) -> set[str]:
        """Return the identities of the files that a table has, loaded as the same thing."""
        with self._log(kind) as (table, log):
            return loaded_before(table, log, keys)

    def newest_loads(self, kind: RecordKind, keys: Sequence[FileKey]) -> dict[str, FileState]:
        """Report how far paths were loaded into a table, as the same thing."""
        with self._log(kind) as (table, log):
            return newest_loads(table, log, keys)

    def stored_lines(
        self, kind: RecordKind, key: FileKey, is_start: Callable[[int, str], bool]
    ) -> Lines:
        """Name the loads that may have stored lines of a file. See `loads.stored_lines`."""
        with self._log(kind) as (table, log):
            return stored_lines(table, log, kind, key, is_start)

    def copies(self, kind: RecordKind, identity: str) -> int:
        """Return the highest copy of a file that was loaded into a table; 0 if none was."""
        with self._log(kind) as (table, log):
            return copies(table, log, identity)

    def undo_load(self, kind: RecordKind, load: str, *, is_dry_run: bool = False) -> Undone:
        """Remove the rows of a load, and its entry in the log of loads. See `undo.undo_load`."""
        target = self._target(kind, is_read_only=is_dry_run)
        with translated(f"cannot write to table {kind.table} in {self._where}"):
            return undo_load(target, load, is_dry_run=is_dry_run)

    def dedupe(
        self, kind: RecordKind, keep: Keep | None, *, is_dry_run: bool = False
    ) -> Iterator[Doubles]:
        """Remove records that are stored more than once. See `remove_doubles`."""
        target = self._target(kind, is_read_only=is_dry_run)
        with translated(f"cannot write to table {kind.table} in {self._where}"):
            yield from remove_doubles(target, keep, is_dry_run=is_dry_run)

    @contextmanager
    def _log(self, kind: RecordKind) -> Iterator[tuple[Table, str | None]]:
        """Open the log of loads of a table."""
        table = self.table(kind)
        with translated(f"cannot read the loads of table {kind.table} in {self._where}"):
            yield table, carried_properties(table).get(LOADS_KEY)

    def check(self, kind: RecordKind) -> Inspection:
        """Read all files of a table, and find the damaged ones. See `damage.inspect_table`."""
        with translated(f"cannot read table {kind.table} in {self._where}"):
            return inspect_table(partial(self.table, kind), partial(self._metadata_fault, kind))

    def _metadata_fault(self, kind: RecordKind) -> Fault | None:
        """Find what is wrong with a table's metadata file, where the catalog says which it is."""
        try:
            pointer = read_pointers(self._catalog).get((NAMESPACE, kind.table))
        except ConfigError:
            return None  # such a catalog reads the file itself
        return metadata_fault(self._catalog, pointer.current) if pointer else None

    def plan_repair(self, kind: RecordKind) -> Repair:
        """Find the newest intact metadata file of a table. See `repair.plan_repair`."""
        with translated(f"cannot repair table {kind.table} in {self._where}"):
            return plan_repair(self._catalog, (NAMESPACE, kind.table))

    def repair(self, kind: RecordKind, plan: Repair) -> None:
        """Point the catalog to that metadata file. See `repair.repair_table`."""
        with translated(f"cannot repair table {kind.table} in {self._where}"):
            repair_table(self._catalog, (NAMESPACE, kind.table), plan)

    def relocate(self, *, is_dry_run: bool = False) -> list[MovedTable]:
        """Rewrite the paths of tables whose home folder was moved. See `relocate_tables`."""
        if not is_embedded(self._settings):
            raise ConfigError("only the embedded catalog can be relocated")
        with _alone(self._settings.home), translated(f"cannot relocate {self._where}"):
            moved = find_moved(self._catalog, self._settings)
            if not is_dry_run:
                relocate_tables(self._catalog, moved)
        return list(moved.values())

    def loads(self, kind: RecordKind) -> pa.Table:
        """List the files that were loaded into a table, newest first."""
        with self._log(kind) as (table, log):
            return list_loads(table, log)

    def series(self, kind: RecordKind) -> set[tuple[str, str]]:
        """Return exchange and symbol of the numbered rows, and of the files with one symbol.

        Only metadata is read, so rows without numbers from files of several symbols are left out.
        """
        table = self.table(kind)
        with translated(f"cannot read table {kind.table} in {self._where}"):
            position = read_state(table).position or Position()
        loads = self.loads(kind)
        pairs = zip(loads["exchange"].to_pylist(), loads["symbol"].to_pylist(), strict=True)
        loaded = {(exchange, symbol) for exchange, symbol in pairs if exchange and symbol}
        return {(each.exchange, each.symbol) for each in position.series} | loaded

    def plan(
        self,
        kind: RecordKind,
        *,
        symbols: Sequence[str] = (),
        exchanges: Sequence[str] = (),
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> TableFiles:
        """Find the data files that can hold rows of these symbols and times, newest day first.

        Times are aware; `start` is inclusive, `end` exclusive. Statistics prune whole files:
        rows inside them still need the filter.

        Raises:
            NotFound: the table does not exist.
            BadData: another engine left row-level deletes, which k2 does not apply.
        """
        table = self.table(kind)
        row_filter = _row_filter(kind, symbols, exchanges, start, end)
        with translated(f"cannot plan a read of table {kind.table} in {self._where}"):
            tasks = _plan_files(table, row_filter)
        if any(task.delete_files for task in tasks):
            raise row_level_deletes(kind.table)
        tasks.sort(key=lambda task: task.file.partition[0], reverse=True)
        return TableFiles(
            kind=_evolved(kind, table),
            paths=tuple(task.file.file_path.removeprefix("file://") for task in tasks),
            columns={field.field_id: field.name for field in table.schema().fields},
            rows=sum(task.file.record_count for task in tasks),
            s3=s3_access(table),
        )

    def describe(self, kind: RecordKind) -> TableInfo:
        """Tell what a table is and how large."""
        table = self.table(kind)
        metadata = table.metadata
        current = table.current_snapshot()
        summary = _summary(current)
        schema = table.schema()
        return TableInfo(
            name=f"{NAMESPACE}.{kind.table}",
            kind=kind.name,
            location=table.location(),
            rows=int(summary.get("total-records", 0)),
            files=int(summary.get("total-data-files", 0)),
            size_bytes=int(summary.get("total-files-size", 0)),
            snapshots=len(metadata.snapshots),
            last_commit=_utc(current.timestamp_ms) if current else None,
            partition=", ".join(
                f"{field.transform}({schema.find_column_name(field.source_id)})"
                for field in table.spec().fields
            ),
            sort_order=", ".join(
                str(schema.find_column_name(field.source_id)) for field in table.sort_order().fields
            ),
            columns=tuple(
                (field.field_id, field.name, str(field.field_type), field.required, field.doc or "")
                for field in schema.fields
            ),
            properties=dict(table.properties),
        )

    def reading_code(self, kind: RecordKind) -> str:
        """Write Python code that reads a table without k2. See `snippet.reading_code`."""
        name = ".".join(self.table(kind).name())
        properties = dict(self._settings.catalog)
        if is_embedded(self._settings):
            properties = {**_embedded(self._settings.home / _CATALOG_FILE), **properties}
        return reading_code(kind, name, shown_properties(properties))

    def snapshots(self, kind: RecordKind) -> list[SnapshotInfo]:
        """List the snapshots that a table still keeps, newest first."""
        table = self.table(kind)
        refs = table.metadata.refs
        infos = []
        for snapshot in table.metadata.snapshots:
            summary = _summary(snapshot)
            infos.append(
                SnapshotInfo(
                    snapshot_id=snapshot.snapshot_id,
                    committed_at=_utc(snapshot.timestamp_ms),
                    operation=summary.get("operation", ""),
                    added_rows=int(summary.get("added-records", 0)),
                    total_rows=int(summary.get("total-records", 0)),
                    total_files=int(summary.get("total-data-files", 0)),
                    run=summary.get(RUN_KEY, ""),
                    refs=tuple(
                        name
                        for name, ref in refs.items()
                        if ref.snapshot_id == snapshot.snapshot_id
                    ),
                )
            )
        return sorted(infos, key=lambda info: info.committed_at, reverse=True)


def is_embedded(settings: Settings) -> bool:
    """Tell whether the settings name no catalog, so that the embedded one is used."""
    return "uri" not in settings.catalog and "type" not in settings.catalog


@contextmanager
def open_lake(
    settings: Settings,
    *,
    create: bool = False,
    is_relocating: bool = False,
    observe: Observer = lambda *_, **__: None,
) -> Iterator[Lake]:
    """Open the catalog that the settings name; without any, the embedded one under `home`.

    With `create` the embedded catalog and all tables are made where they are missing. `observe`
    sees how work goes on that takes long. A home folder that was moved opens `is_relocating` only:
    its paths may lead to the tables of the home that it is a copy of.

    Raises:
        NotFound: no embedded catalog is there, and `create` is off.
        ConfigError: the folder cannot be written.
        BadData: the catalog file is damaged, or the home folder was moved.
        Unavailable: the catalog does not answer.
    """
    where, properties = str(settings.home), dict(settings.catalog)
    embedded = is_embedded(settings)
    if embedded:
        path = settings.home / _CATALOG_FILE
        with translated(f"cannot use the folder {settings.home}"):
            if create:
                _make_home(settings.home)
                open(path, "ab", opener=opener).close()  # otherwise SQLite creates it
            elif settings.home.exists() and not settings.home.is_dir():
                raise ConfigError(
                    f"{settings.home} is no folder", hint="choose another one with --home"
                )
            elif not path.exists():
                raise _no_table("", where)
        properties = {**_embedded(path), **properties}
    else:
        where = f"catalog {redact_url(properties.get('uri', properties.get('type', '')))}"
    with ExitStack() as stack:
        with _alone(settings.home) if create and embedded else nullcontext():
            what = f"the catalog in {where}" if embedded else where
            with translated(f"cannot open {what}"):
                catalog = open_catalog(properties)
            stack.callback(catalog.close)
            if embedded and not is_relocating:
                with translated(f"cannot read {what}"):
                    _check_home(catalog, settings)
            lake = Lake(catalog=catalog, where=where, settings=settings, observe=observe)
            if create:
                lake.create_tables()
        yield lake


def find_moved(catalog: Catalog, settings: Settings) -> dict[tuple[str, str], MovedTable]:
    """Find the tables of the embedded catalog whose paths lead to another home folder."""
    if "warehouse" in settings.catalog:  # not in the home folder
        return {}
    return moved_tables(catalog, settings.home)


def _check_home(catalog: Catalog, settings: Settings) -> None:
    for table in find_moved(catalog, settings).values():
        raise BadData(
            f"{settings.home} was moved or copied: its tables still refer to files in"
            f" {table.old_home}",
            hint=f"k2 table relocate --home {shlex.quote(str(settings.home))}",
        )


def _make_home(home: Path) -> None:
    """Create the home folder where it does not exist yet."""
    try:
        make_folder(home)
    except FileNotFoundError as exc:  # in /proc and the like nothing can be created
        raise ConfigError(
            f"cannot create the folder {home}: {exc.strerror}",
            hint="choose a folder you may write with --home",
        ) from exc


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Let one process at a time create the catalog: pyiceberg's own steps race each other."""
    with ExitStack() as stack:
        with translated(f"cannot use the folder {home}"):
            lock = stack.enter_context(open(home / "catalog.lock", "w", opener=opener))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _embedded(path: Path) -> dict[str, str]:
    url = URL.create("sqlite", database=str(path), query={"timeout": "30"})
    return {
        "type": "sql",
        "uri": url.render_as_string(),
        "warehouse": str(path.parent / "warehouse"),
    }


def _no_table(name: str, where: str) -> NotFound:
    return NotFound(
        f"there is no table {name} in {where} yet"
        if name
        else f"there are no tables in {where} yet",
        hint="k2 demo, or k2 stream binance --symbols BTCUSDT",
    )


def _evolved(kind: RecordKind, table: Table) -> RecordKind:
    return evolved(kind, arrow_columns(table.schema()))


def _plan_files(table: Table, row_filter: BooleanExpression) -> list[FileScanTask]:
    """Plan over the newest snapshot; over a newer one where writers expired that meanwhile."""
    while True:
        try:
            with reading_manifests():
                return list(table.scan(row_filter=row_filter).plan_files())
        except FileNotFoundError:
            if not has_moved_on(table):
                raise


def _row_filter(
    kind: RecordKind,
    symbols: Sequence[str],
    exchanges: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> BooleanExpression:
    row_filter: BooleanExpression = AlwaysTrue()
    if symbols:
        row_filter = And(row_filter, predicate(In, "symbol", set(symbols)))
    if exchanges:
        row_filter = And(row_filter, predicate(In, "exchange", set(exchanges)))
    if start is not None:
        row_filter = And(
            row_filter, predicate(GreaterThanOrEqual, kind.partition_by, start.isoformat())
        )
    if end is not None:
        row_filter = And(row_filter, predicate(LessThan, kind.partition_by, end.isoformat()))
    return row_filter


def _summary(snapshot: Any) -> dict[str, str]:
    if snapshot is None or snapshot.summary is None:
        return {}
    return {"operation": snapshot.summary.operation.value, **snapshot.summary.additional_properties}


def _utc(timestamp_ms: int) -> datetime:
    return datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)
