"""Expire old snapshots: choose the snapshots, and the files to delete with them."""

import re
import time
import uuid

from pyiceberg.manifest import ManifestEntryStatus
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import Operation, Snapshot

from k2cli.config import TableSettings
from k2cli.storage.loads import load_log, segment_paths
from k2cli.storage.snapshots import operation_of
from k2cli.storage.state import ancestors


def expired_snapshots(metadata: TableMetadata, settings: TableSettings) -> set[int]:
    """Choose the snapshots to expire with the next commit.

    A snapshot is kept while it is among the last `keep_snapshots`, younger than `keep_for`, or the
    head of a branch or tag. They are expired in batches, because each expiry has a cost.
    """
    newest_first = sorted(
        metadata.snapshots, key=lambda s: (s.sequence_number or 0, s.timestamp_ms), reverse=True
    )
    protected = {ref.snapshot_id for ref in metadata.refs.values()}
    kept_since_ms = (time.time() - settings.keep_for) * 1000
    # The next commit counts among those to keep.
    candidates = newest_first[settings.keep_snapshots - 1 :]
    expired = {
        snapshot.snapshot_id
        for snapshot in candidates
        if snapshot.timestamp_ms < kept_since_ms and snapshot.snapshot_id not in protected
    }
    batch = max(1, settings.keep_snapshots // 4)
    return expired if len(expired) >= batch else set()


def unreferenced_files(table: Table, expired: set[int], *, next_log: str | None) -> set[str]:
    """List the files that only these snapshots refer to: manifest lists, manifests, data files.

    Data files can only be among them if a snapshot rewrote or deleted files, or the table was
    rolled back. If all snapshots are appends on one branch, every data file is still referenced,
    and no manifest is read. If there are compactions as well, only the manifests in which these
    list the files that they replaced are read. `next_log` is the log of loads that the next commit
    will name.
    """
    if not expired:
        return set()
    snapshots = table.metadata.snapshots
    gone = [snapshot for snapshot in snapshots if snapshot.snapshot_id in expired]
    kept = [snapshot for snapshot in snapshots if snapshot.snapshot_id not in expired]
    kept_manifests = {m.manifest_path: m for s in kept for m in s.manifests(table.io)}
    gone_manifests = {m.manifest_path: m for s in gone for m in s.manifests(table.io)}
    only_gone = {path: m for path, m in gone_manifests.items() if path not in kept_manifests}
    doomed = {snapshot.manifest_list for snapshot in gone} | set(only_gone)
    kept_logs = [next_log, *map(load_log, kept)]
    doomed |= segment_paths(table, map(load_log, gone)) - segment_paths(table, kept_logs)
    lineage = {snapshot.snapshot_id for snapshot in ancestors(table)}
    if all(map(_is_append, snapshots)) and expired <= lineage:
        return doomed
    if all(map(_keeps_rows, snapshots)) and _is_oldest(table, expired):
        doomed |= _replaced_files(table, expired)
    else:
        live = {
            entry.data_file.file_path
            for manifest in kept_manifests.values()
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        }
        doomed |= {
            entry.data_file.file_path
            for manifest in only_gone.values()
            for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True)
            if entry.data_file.file_path not in live
        }
    return doomed


def merged_manifests(table: Table, snapshot_id: int, commit_uuid: uuid.UUID) -> set[str]:
    """List the manifests that a commit wrote and immediately merged into larger ones.

    pyiceberg numbers the manifests of a commit ({commit uuid}-m0.avro and so on), and does not
    delete those that its snapshot does not refer to.
    """
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return set()
    used = {manifest.manifest_path for manifest in snapshot.manifests(table.io)}
    pattern = re.compile(rf"{commit_uuid}-m(\d+)\.avro$")
    last = max((int(match[1]) for match in map(pattern.search, used) if match), default=-1)
    path_of = table.location_provider().new_metadata_location
    return {path_of(f"{commit_uuid}-m{number}.avro") for number in range(last)} - used


def _is_oldest(table: Table, expired: set[int]) -> bool:
    """Return whether all snapshots are on one branch, and these are its oldest."""
    lineage = [snapshot.snapshot_id for snapshot in ancestors(table)]
    is_one_branch = len(lineage) == len(table.metadata.snapshots)
    return is_one_branch and expired == set(lineage[len(lineage) - len(expired) :])


def _replaced_files(table: Table, expired: set[int]) -> set[str]:
    """List the data files that were replaced by the successors of these snapshots."""
    return {
        entry.data_file.file_path
        for snapshot in table.metadata.snapshots
        if snapshot.parent_snapshot_id in expired and not _is_append(snapshot)
        for manifest in snapshot.manifests(table.io)
        if manifest.added_snapshot_id == snapshot.snapshot_id and manifest.deleted_files_count != 0
        for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)
        if entry.status is ManifestEntryStatus.DELETED
    }


def _keeps_rows(snapshot: Snapshot) -> bool:
    return operation_of(snapshot) in (Operation.REPLACE, Operation.APPEND)


def _is_append(snapshot: Snapshot) -> bool:
    return operation_of(snapshot) is Operation.APPEND
