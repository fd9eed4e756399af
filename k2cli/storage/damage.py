"""Find damage in a table: read every file that its snapshots refer to once.

Pages of data files are verified by their checksums, Avro and JSON files by parsing them, and sizes
and row counts recorded in other files are compared. Parquet has no checksum for footers; a footer
counts as damaged if the file cannot be read or its rows do not fit the table.
"""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from pyiceberg.catalog import Catalog
from pyiceberg.io import FileIO, load_file_io
from pyiceberg.manifest import (
    DataFile,
    DataFileContent,
    ManifestContent,
    ManifestFile,
    read_manifest_list,
)
from pyiceberg.serializers import FromInputFile
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Snapshot

from k2cli.errors import BadData, Unavailable
from k2cli.storage.append import has_moved_on
from k2cli.storage.datafiles import open_data_file, read_data_file
from k2cli.storage.loads import load_log, segment_paths
from k2cli.storage.snapshots import number_of
from k2cli.storage.vendor import reading_manifests, translated

_TOTAL: Final = "total-records"
_LONGEST: Final = 200  # characters of a reason


@dataclass(frozen=True, slots=True)
class Fault:
    """A file that is damaged or missing."""

    kind: str  # metadata, manifest list, manifest, data file, load log
    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class _Manifest:
    faults: tuple[Fault, ...] = ()  # its own, or those of its data files
    paths: tuple[str, ...] = ()  # of its live data files


@dataclass(slots=True)
class Inspector:
    """Inspects the files of a table, each once, even if several snapshots refer to it."""

    files: int = 0
    rows: int = 0
    size_bytes: int = 0
    _lists: dict[str, tuple[Fault, ...]] = field(default_factory=dict)
    _manifests: dict[str, _Manifest] = field(default_factory=dict)
    _single: dict[str, Fault | None] = field(default_factory=dict)  # data files, load logs
    _listed: dict[str, tuple[str, ...]] = field(default_factory=dict)  # manifests, by their list

    def inspect(self, table: Table, snapshot: Snapshot) -> tuple[Fault, ...]:
        """Return the faults of all files of a snapshot.

        Raises:
            Unavailable: the store cannot be read.
        """
        if snapshot.manifest_list not in self._lists:
            self._lists[snapshot.manifest_list] = self._inspect(table, snapshot)
        return self._lists[snapshot.manifest_list]

    def data_paths(self, snapshots: Sequence[Snapshot]) -> set[str]:
        """Return the data files of the inspected snapshots."""
        manifests = {path for each in snapshots for path in self._listed[each.manifest_list]}
        return {path for each in manifests for path in self._manifests[each].paths}

    def _inspect(self, table: Table, snapshot: Snapshot) -> tuple[Fault, ...]:
        manifests: list[ManifestFile] = []
        fault = _fault(
            "manifest list",
            snapshot.manifest_list,
            lambda: manifests.extend(_read_list(table.io, snapshot)),
        )
        self._listed[snapshot.manifest_list] = ()
        if fault:
            return (fault,)
        self._listed[snapshot.manifest_list] = tuple(each.manifest_path for each in manifests)
        found = [each for manifest in manifests for each in self._manifest(table, manifest)]
        logs = [
            self._one("load log", path, partial(_read_log, table, path))
            for path in sorted(segment_paths(table, [load_log(snapshot)]))
        ]
        return (*found, *(each for each in logs if each))

    def _manifest(self, table: Table, manifest: ManifestFile) -> tuple[Fault, ...]:
        path = manifest.manifest_path
        if path not in self._manifests:
            files: list[DataFile] = []
            fault = _fault(
                "manifest", path, lambda: files.extend(_read_manifest(table.io, manifest))
            )
            faults = [fault] if fault else [each for each in self._data(table, files) if each]
            paths = () if fault else tuple(file.file_path for file in files)
            self._manifests[path] = _Manifest(tuple(faults), paths)
        return self._manifests[path].faults

    def _data(self, table: Table, files: Sequence[DataFile]) -> list[Fault | None]:
        return [
            self._one("data file", file.file_path, partial(self._read_data, table, file))
            for file in files
        ]

    def _one(self, kind: str, path: str, read: Callable[[], None]) -> Fault | None:
        if path not in self._single:
            self._single[path] = _fault(kind, path, read)
        return self._single[path]

    def _read_data(self, table: Table, file: DataFile) -> None:
        """Read a data file, a row group at a time."""
        size = len(table.io.new_input(file.file_path))
        if size != file.file_size_in_bytes:
            raise BadData(f"it has {size:,} bytes, not {file.file_size_in_bytes:,}")
        rows = 0
        if file.content is DataFileContent.DATA:
            for part in read_data_file(table, file):
                rows += part.num_rows
                for column in table.schema().fields:
                    if column.required and part[column.name].null_count:
                        raise BadData(f"its column {column.name} lacks values")
        else:  # of another engine's row-level deletes
            with open_data_file(table, file.file_path) as parquet:
                for group in range(parquet.num_row_groups):
                    rows += parquet.read_row_group(group, use_threads=False).num_rows
        if rows != file.record_count:
            raise BadData(f"it has {rows:,} rows, not {file.record_count:,}")
        self.files += 1
        self.rows += rows
        self.size_bytes += size


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A damaged file of a table, and how many of its snapshots need it."""

    kind: str
    path: str
    reason: str
    snapshots: int
    is_current: bool  # the newest snapshot needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """The outcome of reading all files of a table."""

    files: int  # data files that are intact
    rows: int
    size_bytes: int
    damage: Sequence[Damage]


def inspect_table(
    load: Callable[[], Table], metadata_fault: Callable[[], Fault | None]
) -> Inspection:
    """Read all files that the snapshots of a table refer to; a row group at a time is in memory.

    If files are missing, the table is reloaded, because writers may have expired snapshots.

    Raises:
        Unavailable: the store cannot be read.
    """
    inspector = Inspector()
    if fault := metadata_fault():
        found = Damage(
            kind=fault.kind, path=fault.path, reason=fault.reason, snapshots=0, is_current=True
        )
        return Inspection(files=0, rows=0, size_bytes=0, damage=[found])
    while True:
        table = load()
        current = table.metadata.current_snapshot_id
        affected: dict[Fault, set[int]] = {}
        for snapshot in table.metadata.snapshots:
            for each in inspector.inspect(table, snapshot):
                affected.setdefault(each, set()).add(snapshot.snapshot_id)
        if not affected or not has_moved_on(table):
            break
    damage = [
        Damage(
            kind=each.kind,
            path=each.path,
            reason=each.reason,
            snapshots=len(ids),
            is_current=current in ids,
        )
        for each, ids in affected.items()
    ]
    return Inspection(
        files=inspector.files, rows=inspector.rows, size_bytes=inspector.size_bytes, damage=damage
    )


def metadata_fault(catalog: Catalog, path: str) -> Fault | None:
    """Find the fault of a metadata file of a catalog's table."""
    found = read_metadata_file(load_file_io(dict(catalog.properties), path), path)
    return found if isinstance(found, Fault) else None


def read_metadata_file(io: FileIO, path: str) -> TableMetadata | Fault:
    """Read a metadata file, or return its fault."""
    found: list[TableMetadata] = []
    fault = _fault("metadata", path, lambda: found.append(_parse_metadata(io, path)))
    return fault or found[0]


def _parse_metadata(io: FileIO, path: str) -> TableMetadata:
    file = io.new_input(path)
    if not len(file):
        raise BadData("the file is empty")
    return FromInputFile.table_metadata(file)


def _fault(kind: str, path: str, read: Callable[[], None]) -> Fault | None:
    try:
        with translated(f"cannot read {path}"):
            read()
    except BadData as exc:
        return Fault(kind, path, _reason(exc))
    except Unavailable as exc:
        if not (isinstance(exc.__cause__, OSError) and exc.__cause__.errno == errno.EIO):
            raise
        return Fault(kind, path, "the disk cannot read it (input/output error)")
    return None


def _reason(exc: BadData) -> str:
    if isinstance(exc.__cause__, FileNotFoundError):
        return "the file is missing"
    reason = " ".join(str(exc.__cause__ or exc).split()).partition(" For further information")[0]
    return reason[:_LONGEST]


def _read_list(io: FileIO, snapshot: Snapshot) -> list[ManifestFile]:
    with reading_manifests():
        manifests = list(read_manifest_list(io.new_input(snapshot.manifest_list)))
    total = number_of(snapshot, _TOTAL)
    counts = [
        count
        for each in manifests
        if each.content is ManifestContent.DATA
        for count in (each.added_rows_count, each.existing_rows_count)
    ]
    rows = None if None in counts else sum(count or 0 for count in counts)
    is_plain = all(each.content is ManifestContent.DATA for each in manifests)
    if total is not None and rows is not None and is_plain and total != rows:
        raise BadData(f"it lists {rows:,} rows, not {total:,}")
    return manifests


def _read_manifest(io: FileIO, manifest: ManifestFile) -> list[DataFile]:
    size = len(io.new_input(manifest.manifest_path))
    if size != manifest.manifest_length:
        raise BadData(f"it has {size:,} bytes, not {manifest.manifest_length:,}")
    with reading_manifests():
        files = [entry.data_file for entry in manifest.fetch_manifest_entry(io)]
    counts = (manifest.added_rows_count, manifest.existing_rows_count)
    rows = sum(file.record_count for file in files)
    if None not in counts and rows != sum(count or 0 for count in counts):
        raise BadData(f"it lists {rows:,} rows, not {sum(count or 0 for count in counts):,}")
    return files


def _read_log(table: Table, path: str) -> None:
    with open_data_file(table, path) as parquet:
        parquet.read(use_threads=False)
