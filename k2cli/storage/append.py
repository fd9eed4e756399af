"""The exactly-once append: rows and the position they reach in one snapshot."""

import random
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import pyarrow as pa
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    RESTError,
    ServerError,
    ServiceUnavailableError,
)
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table
from pyiceberg.table.update.snapshot import ExpireSnapshots
from requests import RequestException
from sqlalchemy.exc import DatabaseError, DBAPIError

from k2cli.config import Settings
from k2cli.errors import Conflict, Unavailable
from k2cli.records import RecordKind
from k2cli.storage.datafiles import delete_files, write_data_files
from k2cli.storage.expire import expired_snapshots, unreferenced_files
from k2cli.storage.loads import KEY as LOADS_KEY
from k2cli.storage.position import Advance, Gap, Position

_CARRIED_PREFIX: Final = "k2."  # what every snapshot takes over from the one before
RUN_KEY: Final = "k2.run"  # the run that made a snapshot, as its log lines have it
_ATTEMPTS: Final = 20
_UNKNOWN_ATTEMPTS: Final = 3
_MAX_WAIT_S: Final = 1.0
# After these a catalog may still be at work on the commit.
_UNANSWERED: Final = (
    CommitStateUnknownException,
    ServerError,
    ServiceUnavailableError,
    ConnectionError,
    TimeoutError,
    RequestException,
)


class OutcomeUnknown(Unavailable):
    """A catalog took a commit and did not say what became of it: it may land yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What an append did. Without new rows no snapshot is made and `snapshot_id` is None."""

    snapshot_id: int | None
    rows: int
    duplicates: int
    gaps: Sequence[Gap]
    took_ms: float


def append_rows(
    table: Table,
    kind: RecordKind,
    rows: pa.Table,
    *,
    position: Position | None,
    settings: Settings,
) -> Commit:
    """Append the rows that the table does not hold yet as one Iceberg snapshot.

    What is new is judged by `position` against the newest snapshot that holds one, again after
    every lost race, so two writers of the same feed never double a row. Snapshots past the
    settings are expired in the same commit, and what only they referred to is deleted.

    A position that moves without rows (all that was read is kept as rejects) makes a snapshot too.

    Raises:
        Conflict: other writers won too often, or own the position by now; nothing was written.
    """
    started = time.perf_counter()
    advance = Advance(rows=rows, duplicates=0, reached="")

    def attempt(carried: dict[str, str]) -> Attempt | None:
        nonlocal advance
        properties = carried
        if position is not None:
            advance = position.advance(carried.get(position.key), rows)
            properties = {**carried, position.key: advance.reached}
        is_moved = position is not None and advance.reached != carried.get(position.key)
        if advance.rows.num_rows == 0 and not is_moved:
            return None
        files = write_data_files(table, kind, advance.rows) if advance.rows.num_rows else []
        scratch = [file.file_path for file in files]
        return Attempt(
            files=files,
            properties=properties,
            scratch=scratch,
            is_repeatable=position is not None,
        )

    snapshot_id = commit_attempts(table, attempt, settings)
    if position is not None:
        position.committed(advance)
    return Commit(
        snapshot_id=snapshot_id,
        rows=advance.rows.num_rows,
        duplicates=advance.duplicates,
        gaps=advance.gaps,
        took_ms=round((time.perf_counter() - started) * 1000, 1),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one try to commit adds to the table."""

    files: Sequence[DataFile]
    properties: Mapping[str, str]  # of the snapshot: all that is carried on, and what is new
    scratch: Sequence[str]  # files that are of no use if another writer is faster
    is_repeatable: bool = False  # with files of its own, by whoever finds that none of it is there


def commit_attempts(
    table: Table, attempt: Callable[[dict[str, str]], Attempt | None], settings: Settings
) -> int | None:
    """Commit what `attempt` makes of the newest snapshot's properties, anew after a lost race.

    Returns the snapshot's id, or None when `attempt` found that there is nothing to add.

    Raises:
        Conflict: other writers won too often; nothing was written.
        OutcomeUnknown: the catalog did not say what became of it, again and again.
    """
    unknown = 0
    for number in range(_ATTEMPTS):
        made = attempt(carried_properties(table))
        if made is None:
            return None
        try:
            snapshot_id = _try_commit(table, made, settings)
        except OutcomeUnknown:
            # Of the two commits only one can land: they follow the same snapshot.
            unknown += 1
            if not made.is_repeatable or unknown == _UNKNOWN_ATTEMPTS:
                raise
            snapshot_id = None
        if snapshot_id is not None:
            return snapshot_id
        time.sleep(random.uniform(0, min(_MAX_WAIT_S, 0.02 * 2**number)))
        table.refresh()
    raise Conflict(
        f"other writers of {'.'.join(table.name())} won {_ATTEMPTS} times in a row",
        hint="run the command again, or let fewer processes write",
    )


def has_moved_on(table: Table) -> bool:
    """Reload a table, and tell whether another writer committed since it was loaded.

    If so, a metadata file that was not there may just have been expired.
    """
    before = table.metadata_location
    return table.refresh().metadata_location != before


def _try_commit(table: Table, made: Attempt, settings: Settings) -> int | None:
    """Commit an attempt as one snapshot; None after a lost race, with its scratch deleted.

    When the outcome is unknown (the catalog's answer was lost), the table itself tells. Where it
    cannot tell either, the files stay: garbage if the commit did not land, rows if it did.

    Raises:
        OutcomeUnknown: not even that told.
    """
    transaction = table.transaction()
    properties = {**made.properties, RUN_KEY: settings.run}
    append = transaction.update_snapshot(snapshot_properties=properties).merge_append()
    doomed: set[str] = set()
    try:
        expired = expired_snapshots(table.metadata, settings.table)
        next_log = made.properties.get(LOADS_KEY)
        doomed = unreferenced_files(table, expired, next_log=next_log)
        for file in made.files:
            append.append_data_file(file)
        append.commit()
        if expired:
            ExpireSnapshots(transaction).by_ids(sorted(expired)).commit()
        transaction.commit_transaction()
    except (CommitFailedException, FileNotFoundError) as exc:
        is_lost = isinstance(exc, CommitFailedException) or has_moved_on(table)
        if table.snapshot_by_id(append.snapshot_id) is None:
            delete_files(table, made.scratch)
            if not is_lost:
                raise
            return None
    except (DatabaseError, OSError, RESTError) as exc:
        if not _has_landed(table, append.snapshot_id, exc):
            delete_files(table, made.scratch)
            raise
    with suppress(OSError):  # what stays is garbage
        merged = _merged_manifests(table, append.snapshot_id, append.commit_uuid)
        delete_files(table, doomed | merged)
    return append.snapshot_id


def _has_landed(table: Table, snapshot_id: int, exc: DatabaseError | OSError | RESTError) -> bool:
    """Settle by looking what became of a commit that ended in an error.

    Raises:
        OutcomeUnknown: it is not there, but may be yet.
    """
    is_over = not isinstance(exc, _UNANSWERED) and not _lost_its_database(exc)
    try:
        if table.refresh().snapshot_by_id(snapshot_id) is not None:
            return True
    except (DatabaseError, OSError, RESTError):
        if is_over:
            raise
    if not is_over:
        raise OutcomeUnknown(
            f"the catalog did not say what became of a commit to {'.'.join(table.name())}: {exc}",
            hint="run it again: what did land is not written twice",
        ) from exc
    return False


def _lost_its_database(exc: Exception) -> bool:
    return isinstance(exc, DBAPIError) and exc.connection_invalidated


def _merged_manifests(table: Table, snapshot_id: int, commit_uuid: uuid.UUID) -> set[str]:
    """List the manifests that a commit wrote and at once merged into larger ones.

    pyiceberg numbers the manifests of a commit, {commit uuid}-m0.avro and so on, and leaves those
    that its snapshot does not refer to where they are.
    """
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return set()
    used = {manifest.manifest_path for manifest in snapshot.manifests(table.io)}
    pattern = re.compile(rf"{commit_uuid}-m(\d+)\.avro$")
    last = max((int(match[1]) for match in map(pattern.search, used) if match), default=-1)
    place = table.location_provider().new_metadata_location
    return {place(f"{commit_uuid}-m{number}.avro") for number in range(last)} - used


def carried_properties(table: Table) -> dict[str, str]:
    """Read what k2 knows of the table: positions of streams, and where the loads are listed.

    They stand in the nearest ancestor that k2 wrote: a snapshot of another engine (a compaction)
    carries none, so the search goes on below it.
    """
    snapshot = table.current_snapshot()
    while snapshot is not None:
        if snapshot.summary is not None:
            found = {
                key: value
                for key, value in snapshot.summary.additional_properties.items()
                if key.startswith(_CARRIED_PREFIX) and key != RUN_KEY
            }
            if found:
                return found
        parent = snapshot.parent_snapshot_id
        snapshot = table.snapshot_by_id(parent) if parent is not None else None
    return {}
