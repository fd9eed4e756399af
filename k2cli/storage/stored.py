"""Statistics of a table's data files, to find files with some records without opening them.

Manifests never change, so each is read once per process, and only if relevant; a few numbers per
data file are cached.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.types import DateType

from k2cli.errors import BadData
from k2cli.ranges import Ints, union
from k2cli.storage.admission import Keys
from k2cli.storage.position import Series, Stored
from k2cli.storage.vendor import reading_manifests

_MIN: Final = np.iinfo(np.int64).min
_MAX: Final = np.iinfo(np.int64).max
_LAST_TEXT: Final = chr(0x10FFFF)
BEGINNING: Final = -1  # before the sequence number of every snapshot


class Days(NamedTuple):
    """Days since 1970, UTC, both included."""

    first: int
    last: int


EVER: Final = Days(_MIN, _MAX)


@dataclass(frozen=True, slots=True)
class FileStatistics:
    """Statistics of some data files, one element per file."""

    paths: list[str]
    days: Ints  # of the partition, days since 1970, UTC
    numbers: Ints  # shape (n, 2): bounds of source_sequence
    symbols: list[tuple[str, str]]  # bounds
    # Of the snapshot that added the file, even a compaction; not of the rows, which keep theirs.
    # Uncommitted files come last.
    sequences: Ints

    @classmethod
    def of(
        cls, table: Table, files: Sequence[DataFile], sequences: Sequence[int] | None = None
    ) -> "FileStatistics":
        """Read the statistics of data files. Without bounds, a file may have any row of its day.

        `sequences` are the files' sequence numbers; None if not committed yet.
        """
        sequence, symbol = (
            table.schema().find_field(name) for name in ("source_sequence", "symbol")
        )
        return cls(
            paths=[file.file_path for file in files],
            days=np.array([_day(file) for file in files], dtype=np.int64),
            numbers=np.array(
                [bounds_of(file, sequence, (_MIN, _MAX)) for file in files], dtype=np.int64
            ).reshape(-1, 2),
            symbols=[bounds_of(file, symbol, ("", _LAST_TEXT)) for file in files],
            sequences=np.full(len(files), _MAX)
            if sequences is None
            else np.array(sequences, dtype=np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["FileStatistics"]) -> "FileStatistics":
        """Concatenate the statistics of several lists of files."""
        nothing = np.empty(0, np.int64)
        return cls(
            paths=[path for part in parts for path in part.paths],
            days=np.concatenate([nothing, *(part.days for part in parts)]),
            numbers=np.concatenate([nothing.reshape(0, 2), *(part.numbers for part in parts)]),
            symbols=[bounds for part in parts for bounds in part.symbols],
            sequences=np.concatenate([nothing, *(part.sequences for part in parts)]),
        )

    def of_days(self, days: Ints) -> list[str]:
        """Return the files of some days."""
        return [self.paths[index] for index in np.flatnonzero(np.isin(self.days, days))]

    def may_hold(self, keys: Keys) -> list[str]:
        """Return the files that may have rows of some of these keys."""
        chosen = np.zeros(len(self.paths), dtype=np.bool_)
        for code in np.unique(keys.codes).tolist():
            begin, end = np.searchsorted(keys.codes, [code, code + 1])
            for index in self._candidates(keys, begin, end):
                low, high = self.symbols[index]
                chosen[index] |= low <= keys.series[code].symbol <= high
        return [self.paths[index] for index in np.flatnonzero(chosen)]

    def only(self, paths: Collection[str]) -> "FileStatistics":
        """Return the statistics of some of the files."""
        return self._take(np.array([path in paths for path in self.paths], dtype=np.bool_))

    def within(self, days: Days, after: int) -> "FileStatistics":
        """Return the statistics of the files of these days with a later sequence number."""
        is_near = (self.days >= days.first) & (self.days <= days.last)
        return self._take(is_near & (self.sequences > after))

    def overlapping(self, stored: Mapping[Series, Stored]) -> list[str]:
        """Return the files that may have stored numbers of some series."""
        chosen = np.zeros(len(self.paths), dtype=np.bool_)
        for series, each in stored.items():
            ranges = union(each.exact, each.mixed[:, :2])
            above = np.searchsorted(ranges[:, 1], self.numbers[:, 0])
            below = np.searchsorted(ranges[:, 0], self.numbers[:, 1], side="right")
            for index in np.flatnonzero(below > above):
                low, high = self.symbols[index]
                chosen[index] |= low <= series.symbol <= high
        return [self.paths[index] for index in np.flatnonzero(chosen)]

    def _take(self, which: npt.NDArray[np.bool_]) -> "FileStatistics":
        if which.all():
            return self
        index = np.flatnonzero(which)
        return FileStatistics(
            paths=[self.paths[at] for at in index],
            days=self.days[index],
            numbers=self.numbers[index],
            symbols=[self.symbols[at] for at in index],
            sequences=self.sequences[index],
        )

    def _candidates(self, keys: Keys, begin: int, end: int) -> Iterable[int]:
        """Find the files whose days and bounds of numbers fit keys of one series."""
        numbers = keys.numbers[begin:end]
        first_day, last_day = keys.first_days[begin:end].min(), keys.last_days[begin:end].max()
        is_near = (self.days >= first_day) & (self.days <= last_day)
        near = np.flatnonzero(is_near)
        above = np.searchsorted(numbers, self.numbers[near, 0])
        below = np.searchsorted(numbers, self.numbers[near, 1], side="right")
        found: list[int] = near[below > above].tolist()
        return found


def _day(file: DataFile) -> int:
    """Return the day of a data file: in k2's tables every row has one."""
    return int(file.partition[0])


def bounds_of(file: DataFile, field: Any, unknown: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return the lower and upper bound of a column in a data file, or the unknown ones."""
    lower = (file.lower_bounds or {}).get(field.field_id)
    upper = (file.upper_bounds or {}).get(field.field_id)
    return (
        unknown[0] if lower is None else from_bytes(field.field_type, lower),
        unknown[1] if upper is None else from_bytes(field.field_type, upper),
    )


class FileIndex:
    """The statistics of a table's data files, as of any of its snapshots."""

    def __init__(self) -> None:
        self._statistics: dict[str, FileStatistics] = {}  # by the path of their manifest
        self._snapshot_id: int | None = None
        self._manifests: list[ManifestFile] = []  # of this snapshot

    def files(self, table: Table, days: Days = EVER, *, after: int = BEGINNING) -> FileStatistics:
        """Return the statistics of data files in the newest snapshot.

        Only those of some days, or those added after a snapshot with this sequence number:
        manifests of other files are not even read.

        Raises:
            BadData: another engine left row-level deletes.
            ValidationError: a manifest or manifest list is damaged.
        """
        with reading_manifests():
            return FileStatistics.concatenate(
                [
                    self._read(table, manifest).within(days, after)
                    for manifest in self._list(table)
                    if manifest.sequence_number > after and _overlaps(manifest, days)
                ]
            )

    def _list(self, table: Table) -> list[ManifestFile]:
        snapshot = table.current_snapshot()
        if snapshot is None:
            return []
        if snapshot.snapshot_id != self._snapshot_id:
            manifests = snapshot.manifests(table.io)
            check_deletes(table, manifests)
            self._manifests = [each for each in manifests if each.content is ManifestContent.DATA]
            self._snapshot_id = snapshot.snapshot_id
            paths = {each.manifest_path for each in manifests}
            self._statistics = {
                path: each for path, each in self._statistics.items() if path in paths
            }
        return self._manifests

    def _read(self, table: Table, manifest: ManifestFile) -> FileStatistics:
        known = self._statistics.get(manifest.manifest_path)
        if known is None:
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
            known = FileStatistics.of(
                table,
                [entry.data_file for entry in entries],
                [_sequence(manifest, entry.file_sequence_number) for entry in entries],
            )
            self._statistics[manifest.manifest_path] = known
        return known


def _sequence(manifest: ManifestFile, sequence: int | None) -> int:
    return manifest.sequence_number if sequence is None else sequence


def check_deletes(table: Table, manifests: Iterable[ManifestFile]) -> None:
    """Refuse a table with deleted rows that are still in its data files.

    Raises:
        BadData: another engine left row-level deletes.
    """
    for manifest in manifests:
        is_live = manifest.has_added_files() or manifest.has_existing_files()
        if manifest.content is ManifestContent.DELETES and is_live:
            raise row_level_deletes(table.name()[-1])


def row_level_deletes(table: str) -> BadData:
    """Explain why a table with row-level deletes is refused."""
    return BadData(
        f"table {table} has row-level deletes, which k2 does not read",
        hint="compact the table with the engine that deleted the rows",
    )


def _overlaps(manifest: ManifestFile, days: Days) -> bool:
    """Return whether a manifest may list files of some days, by its partition bounds."""
    if days == EVER or not manifest.partitions:
        return True
    bounds = manifest.partitions[0]
    if bounds.lower_bound is None or bounds.upper_bound is None:
        return True
    low, high = (
        int(from_bytes(DateType(), each)) for each in (bounds.lower_bound, bounds.upper_bound)
    )
    return low <= days.last and high >= days.first
