"""Count the rows that were added and removed between two snapshots, by exchange and symbol.

Each commit between them is counted for itself, so rows that were added and later removed appear in
both counts. Within a commit, rows that were only written again cancel out. Compactions are skipped.
If snapshots between the two have expired, or they are on different branches, only the net change
between these is known. Only two columns of the files that were added or removed are read, one row
group at a time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Final

import pyarrow as pa
from pyiceberg.manifest import DataFile, ManifestEntryStatus, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from k2cli.storage.datafiles import read_data_file
from k2cli.storage.snapshots import operation_of
from k2cli.storage.state import ancestors
from k2cli.storage.stored import check_deletes
from k2cli.storage.vendor import reading_manifests

_SERIES: Final = ["exchange", "symbol"]
_Counts = Counter[tuple[str, str]]
_Files = Iterator[tuple[DataFile, int]]  # 1 if it was added, -1 if it was removed


def count_changes(table: Table, before: Snapshot, after: Snapshot) -> pa.Table:
    """Count the rows added and removed from one snapshot to another, by exchange and symbol.

    If `before` is the newer one, rows that were added in between count as removed, and vice versa.

    Raises:
        BadData: a data file is damaged, or another engine left row-level deletes.
        FileNotFoundError: a file does not exist; a snapshot may have expired.
        ValidationError: a manifest is damaged.
    """
    for snapshot in (before, after):
        check_deletes(table, snapshot.manifests(table.io))
    is_reversed = _order(before) > _order(after)
    older, newer = (after, before) if is_reversed else (before, after)
    added, removed = _Counts(), _Counts()
    for files in _steps(table, older, newer):
        change = _count(table, files)
        added.update(+change)  # the positive counts
        removed.update(-change)  # the negative ones, as positive numbers
    if is_reversed:
        added, removed = removed, added
    names = sorted(added.keys() | removed.keys())
    return pa.table(
        {
            "exchange": pa.array([exchange for exchange, _ in names], pa.string()),
            "symbol": pa.array([symbol for _, symbol in names], pa.string()),
            "added": pa.array([added[name] for name in names], pa.int64()),
            "removed": pa.array([removed[name] for name in names], pa.int64()),
        }
    )


def _order(snapshot: Snapshot) -> tuple[int, int]:
    return snapshot.sequence_number or 0, snapshot.timestamp_ms


def _steps(table: Table, older: Snapshot, newer: Snapshot) -> Iterator[_Files]:
    """Yield the files of each change that leads from one snapshot to the other."""
    chain = list(
        takewhile(lambda each: each.snapshot_id != older.snapshot_id, ancestors(table, newer))
    )
    is_linked = not chain or chain[-1].parent_snapshot_id == older.snapshot_id
    if not is_linked:
        # After the gap every commit is known, unless they are on different branches.
        base = chain.pop() if _order(chain[-1]) > _order(older) else newer
        if base is newer:
            chain = []
        yield _differing(table, older, base)
    for snapshot in reversed(chain):
        if operation_of(snapshot) is not Operation.REPLACE:
            yield _changed_by(table, snapshot)


def _changed_by(table: Table, snapshot: Snapshot) -> _Files:
    """Yield the files that one commit added and removed."""
    with reading_manifests():
        manifests = snapshot.manifests(table.io)
    check_deletes(table, manifests)
    for manifest in manifests:
        if manifest.added_snapshot_id != snapshot.snapshot_id:
            continue
        with reading_manifests():
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=False)
        for entry in entries:
            if entry.snapshot_id != snapshot.snapshot_id:
                continue
            if entry.status is ManifestEntryStatus.ADDED:
                yield entry.data_file, 1
            elif entry.status is ManifestEntryStatus.DELETED:
                yield entry.data_file, -1


def _differing(table: Table, older: Snapshot, newer: Snapshot) -> _Files:
    """Yield the files that only one of two snapshots has.

    Manifests are read twice, so that only paths are in memory, not what they list of each file.
    """
    with reading_manifests():
        before, after = (snapshot.manifests(table.io) for snapshot in (older, newer))
    shared = {each.manifest_path for each in before} & {each.manifest_path for each in after}
    before, after = (
        [each for each in side if each.manifest_path not in shared] for side in (before, after)
    )
    differing = {file.file_path for file in _listed(table, before)} ^ {
        file.file_path for file in _listed(table, after)
    }
    for manifests, sign in ((before, -1), (after, 1)):
        yield from (
            (file, sign) for file in _listed(table, manifests) if file.file_path in differing
        )


def _listed(table: Table, manifests: Sequence[ManifestFile]) -> Iterator[DataFile]:
    """Yield the live files of manifests, one manifest at a time."""
    for manifest in manifests:
        with reading_manifests():
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        yield from (entry.data_file for entry in entries)


def _count(table: Table, files: _Files) -> _Counts:
    """Count the rows of files by exchange and symbol: those added minus those removed."""
    counts = _Counts()
    for file, sign in files:
        for rows in read_data_file(table, file, _SERIES):
            grouped = rows.group_by(_SERIES).aggregate([([], "count_all")])
            for row in grouped.to_pylist():
                counts[row["exchange"], row["symbol"]] += sign * row["count_all"]
    return counts
