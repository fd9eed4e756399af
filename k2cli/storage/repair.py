"""Restore the newest intact metadata file if the current one is damaged.

The candidates are the metadata files beside the current one, newest first. Of several files of one
version only the one that was current counts, as far as this is known: a commit that lost a race
leaves its file behind.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from pyarrow.fs import FileInfo, FileSelector
from pyiceberg.catalog import Catalog
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table, TableProperties
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update.snapshot import ExpireSnapshots

from k2cli.errors import BadData, NotFound
from k2cli.storage.damage import Fault, Inspector, read_metadata_file
from k2cli.storage.datafiles import open_data_file
from k2cli.storage.loads import PREFIX as LOADS_PREFIX
from k2cli.storage.pointer import Pointer, read_pointers, swap_pointers
from k2cli.storage.snapshots import number_of, utc_time

_VERSION: Final = re.compile(r"v?(\d+)")
_SUFFIX: Final = ".metadata.json"
_DATA: Final = ".parquet"


@dataclass(frozen=True, slots=True, kw_only=True)
class LostCommit:
    """A commit that is lost by a repair."""

    snapshot_id: int
    committed_at: datetime
    added_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DamagedMetadata:
    """A metadata file that a repair skips, with its damaged files."""

    path: str
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """The plan of a repair. Without `damaged` or `history` there is nothing to repair."""

    pointer: Pointer  # from the catalog
    chosen: str
    written_at: datetime
    rows: int  # that the table has afterwards
    damaged: Sequence[DamagedMetadata]
    lost: Sequence[LostCommit]  # as far as known from readable metadata files
    left_files: int  # data files that remain in the store, but not in the table
    left_rows: int  # in readable ones; also of failed commits
    history: Sequence[Fault]  # of older snapshots, which are dropped
    expired: Sequence[int]  # these snapshots


def plan_repair(catalog: Catalog, identifier: tuple[str, str]) -> Repair:
    """Find the newest intact metadata file of a table; nothing is changed.

    A metadata file is intact if all files of its newest snapshot, and of those with a branch or
    tag, are. Other damaged snapshots are given up.

    Raises:
        ConfigError: k2 cannot set the metadata file in this catalog.
        BadData: no metadata file is intact.
    """
    pointer = read_pointers(catalog).get(identifier)
    if pointer is None:
        raise NotFound(f"table {'.'.join(identifier)} does not exist")
    io = PyArrowFileIO(catalog.properties)
    inspector = Inspector()
    damaged: list[DamagedMetadata] = []
    passed: list[TableMetadata] = []
    for path, metadata in _candidates(io, pointer):
        if isinstance(metadata, Fault):
            damaged.append(DamagedMetadata(path=path, faults=[metadata]))
            continue
        table = Table(identifier, metadata, path, io, catalog)
        found = {each.snapshot_id: inspector.inspect(table, each) for each in metadata.snapshots}
        heads = _heads(metadata)
        if faults := [fault for head in heads for fault in found.get(head, ())]:
            damaged.append(DamagedMetadata(path=path, faults=list(dict.fromkeys(faults))))
            passed.append(metadata)
            continue
        expired = [each for each, faults in found.items() if faults]
        known = inspector.data_paths(metadata.snapshots)
        left = [] if path == pointer.current else _unknown_files(table, io, known)
        return Repair(
            pointer=pointer,
            chosen=path,
            written_at=utc_time(metadata.last_updated_ms),
            rows=number_of(metadata.current_snapshot(), "total-records") or 0,
            damaged=damaged,
            lost=_lost(metadata, passed),
            left_files=len(left),
            left_rows=sum(_count_rows(table, path) for path in left),
            history=list(dict.fromkeys(fault for each in expired for fault in found[each])),
            expired=expired,
        )
    raise _none_intact(identifier, damaged)


def repair_table(catalog: Catalog, identifier: tuple[str, str], plan: Repair) -> None:
    """Point the catalog to the chosen metadata file, and drop damaged history.

    Raises:
        Conflict: the table was changed since it was inspected.
    """
    if plan.chosen != plan.pointer.current:
        new = Pointer(plan.chosen)
        swap_pointers(catalog, {identifier: (plan.pointer, new)})
    if plan.expired:
        with catalog.load_table(identifier).transaction() as transaction:
            ExpireSnapshots(transaction).by_ids(list(plan.expired)).commit()


def _candidates(io: PyArrowFileIO, pointer: Pointer) -> Iterator[tuple[str, TableMetadata | Fault]]:
    """Yield the current and earlier metadata files, newest first."""
    folder = pointer.current.rpartition("/")[0]
    paths = {f"{folder}/{each.base_name}" for each in _files(io, folder)}
    paths = {path for path in paths if path.endswith(_SUFFIX) and _version(path) >= 0}
    current = _version(pointer.current)
    versions = {_version(path) for path in paths if _version(path) < current}
    committed = {pointer.current, pointer.previous}
    uuid = None
    for version in (current, *sorted(versions, reverse=True)):
        same = {path for path in paths if _version(path) == version} | (
            {pointer.current} if version == current else set()
        )
        for path in sorted(same & committed or same, reverse=True):
            metadata = read_metadata_file(io, path)
            if not isinstance(metadata, Fault):
                uuid = uuid or metadata.table_uuid
                if metadata.table_uuid != uuid or not _is_of_folder(metadata, path):
                    continue  # of an earlier table here, or from before the folder was moved
                committed |= {entry.metadata_file for entry in metadata.metadata_log}
            yield path, metadata


def _is_of_folder(metadata: TableMetadata, path: str) -> bool:
    """Return whether a metadata file is in its table's metadata folder."""
    folder = metadata.properties.get(TableProperties.WRITE_METADATA_PATH, metadata.location)
    return path.startswith(f"{folder.rstrip('/')}/")


def _version(path: str) -> int:
    match = _VERSION.match(path.rpartition("/")[2])
    return int(match[1]) if match else -1


def _heads(metadata: TableMetadata) -> list[int]:
    """Return the snapshots that must be intact: the newest, and those with a branch or tag."""
    heads = {ref.snapshot_id for ref in metadata.refs.values()}
    if metadata.current_snapshot_id is not None:
        heads.add(metadata.current_snapshot_id)
    return sorted(heads)


def _lost(chosen: TableMetadata, passed: Sequence[TableMetadata]) -> list[LostCommit]:
    kept = {snapshot.snapshot_id for snapshot in chosen.snapshots}
    newest = max(map(_order, chosen.snapshots), default=(0, 0))
    gone = {
        snapshot.snapshot_id: snapshot
        for metadata in passed
        for snapshot in metadata.snapshots
        if snapshot.snapshot_id not in kept and _order(snapshot) > newest
    }
    return [
        LostCommit(
            snapshot_id=each.snapshot_id,
            committed_at=utc_time(each.timestamp_ms),
            added_rows=number_of(each, "added-records") or 0,
        )
        for each in sorted(gone.values(), key=lambda each: each.timestamp_ms, reverse=True)
    ]


def _order(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.sequence_number or 0, snapshot.timestamp_ms


def _unknown_files(table: Table, io: PyArrowFileIO, known: set[str]) -> list[str]:
    """List the data files in a table's folder that none of its snapshots has."""
    folder = table.properties.get(
        TableProperties.WRITE_DATA_PATH, f"{table.location().rstrip('/')}/data"
    )
    paths = {PyArrowFileIO.parse_location(path, io.properties)[2] for path in known}
    scheme = folder.partition("://")[0] + "://" if "://" in folder else ""
    return [
        f"{scheme}{each.path}"
        for each in _files(io, folder)
        if each.base_name.endswith(_DATA)
        and not each.base_name.startswith(LOADS_PREFIX)
        and each.path not in paths
    ]


def _count_rows(table: Table, path: str) -> int:
    """Count the rows of a data file by its footer; 0 if that cannot be read."""
    with suppress(BadData), open_data_file(table, path) as parquet:
        return int(parquet.metadata.num_rows)
    return 0


def _files(io: PyArrowFileIO, folder: str) -> list[FileInfo]:
    """List the files in a folder and below it."""
    scheme, netloc, path = PyArrowFileIO.parse_location(folder, io.properties)
    selector = FileSelector(path, recursive=True, allow_not_found=True)
    found = io.fs_by_scheme(scheme, netloc).get_file_info(selector)
    return [each for each in found if each.is_file]


def _none_intact(identifier: tuple[str, str], damaged: Sequence[DamagedMetadata]) -> BadData:
    first = damaged[0].faults[0]
    return BadData(
        f"none of the {len(damaged)} metadata files of table {'.'.join(identifier)} is intact:"
        f" {first.kind} {first.path}: {first.reason}",
        hint="restore the home folder from a backup",
    )
