"""The lakehouse: a catalog, and the tables in it."""

import fcntl
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Final

from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.table import Table

from k2cli.config import Settings
from k2cli.errors import BadData, ConfigError, NotFound
from k2cli.events import Observer
from k2cli.files import make_folder, opener
from k2cli.records import KINDS, RecordKind
from k2cli.redaction import redact_url
from k2cli.storage.catalog import (
    catalog_file,
    catalog_properties,
    is_embedded,
    open_catalog,
)
from k2cli.storage.damage import Fault, Inspection, inspect_table, metadata_fault
from k2cli.storage.history import TableHistory
from k2cli.storage.laketable import LakeTable
from k2cli.storage.pointer import read_pointers
from k2cli.storage.relocate import MovedTable, moved_tables, relocate_tables
from k2cli.storage.repair import Repair, plan_repair, repair_table
from k2cli.storage.tables import create_table
from k2cli.storage.vendor import translated

NAMESPACE: Final = "market_data"


class Lake:
    """An open catalog. Created by `open_lake`, which also closes it."""

    def __init__(
        self, *, catalog: Catalog, where: str, settings: Settings, observe: Observer
    ) -> None:
        self._catalog = catalog
        self._where = where
        self._settings = settings
        self._observe = observe

    def create_tables(self) -> None:
        """Create the namespace and all missing tables. Safe to run repeatedly or in parallel."""
        with translated(f"cannot create the tables in {self._where}"):
            with suppress(NamespaceAlreadyExistsError):
                self._catalog.create_namespace_if_not_exists(NAMESPACE)
            for kind in KINDS.values():
                if not self._catalog.table_exists((NAMESPACE, kind.table)):
                    with suppress(TableAlreadyExistsError, CommitFailedException):
                        create_table(self._catalog, (NAMESPACE, kind.table), kind)

    def open(self, kind: RecordKind) -> LakeTable:
        """Open the table of a record kind, as it is now: one round trip to the catalog.

        Raises:
            NotFound: nothing was ever written.
        """
        return LakeTable(
            kind,
            load=partial(self._load, kind),
            where=self._where,
            settings=self._settings,
            observe=self._observe,
        )

    def history(self, kind: RecordKind) -> TableHistory:
        """Open the snapshots of a table, to compare them, tag them, or roll back to one.

        Raises:
            NotFound: nothing was ever written.
        """
        return TableHistory(kind, load=partial(self._load, kind))

    def _load(self, kind: RecordKind) -> Table:
        with translated(f"cannot open table {kind.table} in {self._where}"):
            try:
                return self._catalog.load_table((NAMESPACE, kind.table))
            except NoSuchTableError as exc:
                raise _no_table(kind.table, self._where) from exc

    def kinds(self) -> list[RecordKind]:
        """Return the record kinds that have a table."""
        with translated(f"cannot list the tables in {self._where}"):
            return [
                kind
                for kind in KINDS.values()
                if self._catalog.table_exists((NAMESPACE, kind.table))
            ]

    def list_tables(self) -> list[str]:
        """Return the tables that the catalog lists, with a single request, unlike `kinds`."""
        with translated(f"cannot list the tables in {self._where}"):
            try:
                return sorted(name for _, name in self._catalog.list_tables(NAMESPACE))
            except NoSuchNamespaceError:
                return []

    def check(self, kind: RecordKind) -> Inspection:
        """Read all files of a table, and find the damaged ones. See `damage.inspect_table`."""
        with translated(f"cannot read table {kind.table} in {self._where}"):
            return inspect_table(partial(self._load, kind), partial(self._metadata_fault, kind))

    def _metadata_fault(self, kind: RecordKind) -> Fault | None:
        """Find the fault of a table's metadata file, if the catalog reveals which file it is."""
        try:
            pointer = read_pointers(self._catalog).get((NAMESPACE, kind.table))
        except ConfigError:
            return None  # this catalog reads the file itself
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
        with _locked(self._settings.home), translated(f"cannot relocate {self._where}"):
            moved = find_moved(self._catalog, self._settings)
            if not is_dry_run:
                relocate_tables(self._catalog, moved)
        return list(moved.values())


@contextmanager
def open_lake(
    settings: Settings,
    *,
    create: bool = False,
    is_relocating: bool = False,
    observe: Observer = lambda *_, **__: None,
) -> Iterator[Lake]:
    """Open the catalog of the settings, or the embedded one under `home`.

    With `create`, a missing embedded catalog and missing tables are created. `observe` receives the
    progress of long operations. A home folder that was moved or copied opens only with
    `is_relocating`, because its paths may lead to the tables of the original.

    Raises:
        NotFound: the embedded catalog does not exist, and `create` is off.
        ConfigError: the folder cannot be written.
        BadData: the catalog file is damaged, or the home folder was moved.
        Unavailable: the catalog does not answer.
    """
    where, properties = str(settings.home), catalog_properties(settings)
    embedded = is_embedded(settings)
    if embedded:
        path = catalog_file(settings)
        with translated(f"cannot use the folder {settings.home}"):
            if create:
                _make_home(settings.home)
                open(path, "ab", opener=opener).close()  # otherwise SQLite creates it
            elif settings.home.exists() and not settings.home.is_dir():
                raise ConfigError(
                    f"{settings.home} is not a directory", hint="choose another one with --home"
                )
            elif not path.exists():
                raise _no_table("", where)
    else:
        where = f"catalog {redact_url(properties.get('uri', properties.get('type', '')))}"
    with ExitStack() as stack:
        with _locked(settings.home) if create and embedded else nullcontext():
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
    """Create the home folder unless it exists."""
    try:
        make_folder(home)
    except FileNotFoundError as exc:  # in /proc and the like nothing can be created
        raise ConfigError(
            f"cannot create the folder {home}: {exc.strerror}",
            hint="choose a folder you may write with --home",
        ) from exc


@contextmanager
def _locked(home: Path) -> Iterator[None]:
    """Lock the home folder: pyiceberg does not create a catalog atomically."""
    with ExitStack() as stack:
        with translated(f"cannot use the folder {home}"):
            lock = stack.enter_context(open(home / "catalog.lock", "w", opener=opener))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _no_table(name: str, where: str) -> NotFound:
    return NotFound(
        f"there is no table {name} in {where} yet"
        if name
        else f"there are no tables in {where} yet",
        hint="k2 demo, or k2 stream binance --symbols BTCUSDT",
    )
