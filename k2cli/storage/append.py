"""The exactly-once append: rows and the position they reach in one snapshot.

The module is long because every attempt of a commit, its outcome and its clean-up belong together.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import pyarrow as pa
from pyiceberg.exceptions import (
    CommitFailedException,
    CommitStateUnknownException,
    RESTError,
    ServerError,
    ServiceUnavailableError,
)
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table, TableProperties, Transaction
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.update.snapshot import ExpireSnapshots, ManageSnapshots, _SnapshotProducer
from requests import RequestException
from sqlalchemy.exc import DatabaseError, DBAPIError

from k2cli.config import Settings
from k2cli.errors import BadData, Conflict, Unavailable
from k2cli.ranges import Ints
from k2cli.storage.admission import (
    Admission,
    Found,
    Keys,
    ValueConflict,
    admit,
    admit_others,
)
from k2cli.storage.datafiles import delete_files, write_data_files
from k2cli.storage.expire import expired_snapshots, merged_manifests, unreferenced_files
from k2cli.storage.gaps import Gap, GapWatch, opened_gaps
from k2cli.storage.loads import KEY as LOADS_KEY
from k2cli.storage.lookup import days_of_keys, days_of_rows, find_rows
from k2cli.storage.numbered import are_own_ids
from k2cli.storage.opengaps import KEY as GAPS_KEY
from k2cli.storage.opengaps import (
    GapNotes,
    close_in_properties,
    decode_open_gaps,
    with_open_gaps,
)
from k2cli.storage.position import KEY, Position, Series, Stored, merge_stored
from k2cli.storage.races import ATTEMPTS, too_many_races, wait_after_race
from k2cli.storage.replace import replace_files
from k2cli.storage.state import (
    LOST_KEY,
    ROWS_KEY,
    RUN_KEY,
    TAG,
    TableState,
    decode_property,
    position_property,
    read_state,
    total_rows,
)
from k2cli.storage.target import Target

_UNKNOWN_ATTEMPTS: Final = 3
# After these a catalog may still be processing the commit.
_UNANSWERED: Final = (
    CommitStateUnknownException,
    ServerError,
    ServiceUnavailableError,
    ConnectionError,
    TimeoutError,
    RequestException,
)


class OutcomeUnknown(Unavailable):
    """A catalog received a commit but did not answer: it may still succeed."""

    def __init__(self, message: str, *, snapshot_id: int) -> None:
        super().__init__(message, hint="run it again: rows already committed are not written twice")
        self.snapshot_id = snapshot_id


class PositionMissing(Exception):
    """The position is unknown and must be rebuilt first."""


class SourcePosition(Protocol):
    """The position of a source, stored under its own key in the snapshot."""

    @property
    def key(self) -> str:
        """Name of its snapshot property."""

    def advance(self, before: str | None) -> str:
        """Return the value after the rows, if it is `before` now; None: never written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """The outcome of an append. Without new rows there is no snapshot; `snapshot_id` is None."""

    snapshot_id: int | None
    rows: int
    duplicates: int
    conflicts: int = 0  # rows skipped because their id is stored with other values
    examples: Sequence[ValueConflict] = ()  # the first of these
    gaps: Sequence[Gap] = ()
    position: Position = field(default_factory=Position)  # of the table, after the append
    took_ms: float


def append_rows(  # noqa: PLR0913  one parameter per part of a commit
    target: Target,
    rows: pa.Table,
    *,
    source: SourcePosition | None = None,
    seen: Mapping[Series, Stored] | None = None,
    watch: GapWatch | None = None,
    notes: GapNotes | None = None,
) -> Commit:
    """Append the rows that the table does not store yet as one Iceberg snapshot.

    New rows are determined against the newest snapshot, again after every lost race, so a record of
    a numbered series is stored once, even with other writers. So is any other record whose message
    id k2 computed, such as a line of a file that was sent to a topic twice. `seen` are numbers
    without a record: they count as stored. Snapshots beyond the settings are expired in the same
    commit, and files that only they referred to are deleted.

    A source's position that moves without rows (everything was rejected) also creates a snapshot.
    So do `notes` about open gaps, which need a `watch`: gaps that it finds are noted as well.

    Raises:
        Conflict: other writers won too often, or now own the source; nothing was written.
        PositionMissing: the position must be rebuilt; nothing was written.
    """
    started = time.perf_counter()
    table, kind = target.table, target.kind
    admission = Admission.of_all(rows)
    gaps: Sequence[Gap] = ()
    before = after = Position()

    def attempt(state: TableState) -> Attempt | None:
        nonlocal admission, gaps, before, after
        before = known_position(state)
        # If it is unknown which files and offsets were read, all ids are looked up.
        is_lost = LOST_KEY in state.properties
        admission = admit_rows(
            target, rows, before, lambda left: left.others if is_lost else _with_own_ids(left)
        )
        added = merge_stored(admission.added, seen or {})
        after = before.extended(added)
        gaps = watch.gaps(before, added) if watch else ()
        moved = _moved(source, state.properties)
        noted = dict(state.properties)
        if watch is not None and notes is not None:
            noted = _noted(noted, watch.exchange, gaps, notes, after)
        noted |= moved
        is_moved = after != before or any(
            noted.get(key) != state.properties.get(key) for key in (*moved, GAPS_KEY)
        )
        if admission.rows.num_rows == 0 and not is_moved:
            return None
        properties = {**noted, KEY: position_property(after)}
        has_rows = admission.rows.num_rows > 0
        files = write_data_files(table, kind, admission.rows) if has_rows else []
        return Attempt(
            files=files,
            properties=properties,
            scratch=[file.file_path for file in files],
            is_repeatable=True,
        )

    snapshot_id = commit_attempts(table, attempt, target.settings)
    if watch is not None:
        watch.committed(rows, before)
    return Commit(
        snapshot_id=snapshot_id,
        rows=admission.rows.num_rows,
        duplicates=admission.duplicates,
        conflicts=admission.conflicts,
        examples=admission.examples,
        gaps=gaps,
        position=after,
        took_ms=round((time.perf_counter() - started) * 1000, 1),
    )


def _moved(source: SourcePosition | None, properties: Mapping[str, str]) -> dict[str, str]:
    """Return the property with the new position of a source, if there is one."""
    return {} if source is None else {source.key: source.advance(properties.get(source.key))}


def _noted(
    properties: Mapping[str, str],
    exchange: str,
    gaps: Sequence[Gap],
    notes: GapNotes,
    position: Position,
) -> dict[str, str]:
    """Return the properties with the open gaps after a commit."""
    opened = opened_gaps(exchange, gaps, reason=notes.reason, now_s=notes.now_s)
    earlier = decode_open_gaps(properties.get(GAPS_KEY, ""))
    return with_open_gaps(properties, notes.added(earlier, opened, position))


def admit_rows(
    target: Target,
    rows: pa.Table,
    position: Position,
    choose_others: Callable[[Admission], Ints],
) -> Admission:
    """Choose the rows that a table does not store yet.

    Rows without a number are new, except for those that `choose_others` selects from the rest:
    these are looked up by their ids.
    """
    table, kind, index = target.table, target.kind, target.index

    def look_up(keys: Keys) -> Found:
        return find_rows(table, kind, index.files(table, days_of_keys(keys)), keys)

    def find(rows: pa.Table) -> Found:
        return target.ids.find(table, kind, index.files(table, days_of_rows(kind, rows)), rows)

    admission = admit(position, kind, rows, look_up)
    return admit_others(kind, admission, choose_others(admission), find)


def _with_own_ids(admission: Admission) -> Ints:
    """Return the indices of rows without a number whose message ids k2 computed."""
    others = admission.others
    if not len(others):
        return others
    return others[are_own_ids(admission.rows["message_id"].take(pa.array(others)))]


def known_position(state: TableState) -> Position:
    """Return the position of a table.

    Raises:
        PositionMissing: it must be rebuilt.
    """
    if state.position is None:
        raise PositionMissing
    return state.position


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What one commit attempt adds to and removes from the table."""

    files: Sequence[DataFile]
    removed: Sequence[DataFile] = ()  # live files, replaced by `files`
    properties: Mapping[str, str]  # of the snapshot: carried over and new ones
    scratch: Sequence[str]  # files to delete if another writer is faster
    is_same_rows: bool = False  # `files` have the rows of `removed`: a compaction
    is_repeatable: bool = False  # a second attempt writes its own files, so it may be retried


def commit_attempts(
    table: Table,
    attempt: Callable[[TableState], Attempt | None],
    settings: Settings,
    *,
    is_current: bool = True,
) -> int | None:
    """Commit the result of `attempt` on the newest snapshot's state, again after a lost race.

    Returns the snapshot's id, or None if `attempt` has nothing to add. If the table was not loaded
    for this commit (`is_current` is off), a refusal or None is only final if `attempt` repeats it
    with the newest metadata.

    Raises:
        Conflict: other writers won too often; nothing was written.
        OutcomeUnknown: the catalog repeatedly did not answer.
    """
    unknown: list[int] = []  # snapshots that may have been committed
    for number in range(ATTEMPTS):
        landed = next((each for each in unknown if table.snapshot_by_id(each)), None)
        if landed is not None:
            return landed
        is_valid, made = _judge(table, attempt, is_current=is_current)
        if not is_valid:
            is_current = True
            continue
        if made is None:
            return None
        try:
            snapshot_id = _try_commit(table, made, settings)
        except OutcomeUnknown as exc:
            # Only one of the two commits can succeed: they have the same parent snapshot.
            unknown.append(exc.snapshot_id)
            if not made.is_repeatable or len(unknown) == _UNKNOWN_ATTEMPTS:
                raise
            snapshot_id = None
        if snapshot_id is not None:
            return snapshot_id
        wait_after_race(number)
        table.refresh()
        is_current = True
    raise too_many_races(table)


def _judge(
    table: Table, attempt: Callable[[TableState], Attempt | None], *, is_current: bool
) -> tuple[bool, Attempt | None]:
    """Make an attempt; return whether it is valid, or the table was outdated and is reloaded."""
    try:
        made = attempt(read_state(table))
    except (BadData, Conflict, FileNotFoundError) as exc:
        # Possibly the table was compacted, expired or evolved since, or a load was undone.
        is_final = is_current and not isinstance(exc, FileNotFoundError)
        if is_final or not has_moved_on(table):
            raise
        return False, None
    return made is not None or is_current or not has_moved_on(table), made


def has_moved_on(table: Table) -> bool:
    """Reload a table, and return whether another writer committed since it was loaded.

    If so, a missing metadata file may just have been expired.
    """
    before = table.metadata_location
    return table.refresh().metadata_location != before


def _try_commit(table: Table, made: Attempt, settings: Settings) -> int | None:
    """Commit an attempt as one snapshot; None after a lost race, with its scratch deleted.

    If the outcome is unknown (the catalog's answer was lost), the table is read again. If that does
    not settle it, the files are kept: garbage if the commit failed, rows if it succeeded.

    Raises:
        OutcomeUnknown: it may have succeeded, or may still succeed.
    """
    transaction = OneCommit(table)
    properties = {**_without_closed(made.properties), RUN_KEY: settings.run}
    if (before := total_rows(table)) is not None:
        properties[ROWS_KEY] = str(before + _rows(made.files) - _rows(made.removed))
    snapshot = _begin_snapshot(transaction, table, made, properties)
    doomed: set[str] = set()
    try:
        expired = expired_snapshots(table.metadata, settings.table)
        next_log = made.properties.get(LOADS_KEY)
        doomed = unreferenced_files(table, expired, next_log=next_log)
        for file in made.files:
            snapshot.append_data_file(file)
        for file in made.removed:
            snapshot.delete_data_file(file)
        snapshot.commit()
        ManageSnapshots(transaction).create_tag(snapshot.snapshot_id, TAG).commit()
        if expired:
            ExpireSnapshots(transaction).by_ids(sorted(expired)).commit()
        transaction.commit_transaction()
    except (CommitFailedException, FileNotFoundError) as exc:
        is_lost = isinstance(exc, CommitFailedException) or has_moved_on(table)
        if table.snapshot_by_id(snapshot.snapshot_id) is None:
            delete_files(table, made.scratch)
            if not is_lost:
                raise
            return None
    except (DatabaseError, OSError, RESTError) as exc:
        if not _has_landed(table, snapshot.snapshot_id, exc):
            delete_files(table, made.scratch)
            raise
    with suppress(OSError):  # remaining files are garbage
        merged = merged_manifests(table, snapshot.snapshot_id, snapshot.commit_uuid)
        delete_files(table, doomed | merged)
    return snapshot.snapshot_id


def _begin_snapshot(
    transaction: Transaction, table: Table, made: Attempt, properties: dict[str, str]
) -> _SnapshotProducer[Any]:
    if made.is_same_rows:
        return replace_files(transaction, table, properties)
    update = transaction.update_snapshot(snapshot_properties=properties)
    return update.overwrite() if made.removed else update.merge_append()


def _without_closed(properties: Mapping[str, str]) -> Mapping[str, str]:
    """Return the properties without the gaps that are closed by now, whoever filled them."""
    if GAPS_KEY not in properties or KEY not in properties:
        return properties
    return close_in_properties(properties, decode_property(properties[KEY]))


def _rows(files: Sequence[DataFile]) -> int:
    return sum(file.record_count for file in files)


class OneCommit(Transaction):
    """A transaction that is committed once and computes the metadata once per change.

    pyiceberg's retry would add rows that another writer has just added, and the table property that
    controls it must stay above 0 for other engines. The property is read from the metadata here and
    never sent. Also, pyiceberg copies all metadata on every access, about 20 times per commit.
    """

    def __init__(self, table: Table) -> None:
        once = {**table.metadata.properties, TableProperties.COMMIT_NUM_RETRIES: "0"}
        table.metadata = table.metadata.model_copy(update={"properties": once})
        super().__init__(table)
        self._known: tuple[object, TableMetadata] | None = None

    @property
    def table_metadata(self) -> TableMetadata:
        """The metadata with the changes so far."""
        if self._known is None or self._known[0] is not self._updates:
            self._known = (self._updates, super().table_metadata)
        return self._known[1]


def _has_landed(table: Table, snapshot_id: int, exc: DatabaseError | OSError | RESTError) -> bool:
    """Check whether a commit that ended in an error has succeeded.

    Raises:
        OutcomeUnknown: it is not visible, but may still be.
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
            f"commit outcome unknown for {'.'.join(table.name())}: {exc}",
            snapshot_id=snapshot_id,
        ) from exc
    return False


def _lost_its_database(exc: Exception) -> bool:
    return isinstance(exc, DBAPIError) and exc.connection_invalidated
