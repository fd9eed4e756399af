"""The snapshots of a table: find one, tag it, roll back to it, compare two of them."""

import random
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Final

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, RESTError
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update.snapshot import ManageSnapshots
from sqlalchemy.exc import DatabaseError

from k2cli.errors import Conflict, Exists, NotFound, UsageError
from k2cli.iso import iso_utc
from k2cli.records import RecordKind
from k2cli.storage.append import OneCommit, has_moved_on
from k2cli.storage.snapshots import number_of, utc_time
from k2cli.storage.state import TAG, ancestors, newest_known
from k2cli.storage.tablediff import count_changes
from k2cli.storage.vendor import translated

_ATTEMPTS: Final = 20
_MAX_WAIT_S: Final = 1.0
_ID: Final = re.compile(r"[0-9]{1,19}")
_TAG_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MAIN: Final = "main"


@dataclass(frozen=True, slots=True)
class Point:
    """A snapshot as users name it: its id, a tag or branch on it, or a time."""

    text: str
    moment: datetime | None = None  # if the text is a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """What a rollback changes. Without `commits` it changes nothing."""

    table: str
    snapshot_id: int  # to roll back to
    committed_at: datetime
    rows: int  # that the table has afterwards
    newest_id: int  # the newest snapshot now
    newest_at: datetime
    newest_rows: int
    commits: int  # since then, as far as their snapshots are kept
    has_expired: bool  # there were more commits, whose snapshots have expired
    lost_rows: int  # added since then
    restored_rows: int  # removed since then


class TableHistory:
    """The snapshots of the table of one record kind. Created by `Lake.history`.

    Raises in all methods:
        NotFound: a snapshot or tag does not exist, or no longer.
        Unavailable: the catalog or the store does not answer.
    """

    def __init__(self, kind: RecordKind, *, load: Callable[[], Table]) -> None:
        self._name = kind.table
        self._load = load
        self._table = load()

    def plan_rollback(self, point: Point) -> Rollback:
        """Find out what a rollback would change, by the metadata alone.

        Raises:
            UsageError: the table was never in the state of this snapshot, or was rolled back from
                it.
        """
        return _plan_rollback(self._table, find_snapshot(self._table, point))

    def roll_back(self, plan: Rollback) -> None:
        """Make an older snapshot the current one, and k2's tag follow it, in one commit.

        Raises:
            Conflict: another writer has committed since it was planned; nothing was changed.
        """

        def change(table: Table, manage: ManageSnapshots) -> None:
            newest = table.current_snapshot()
            if newest is None or newest.snapshot_id != plan.newest_id:
                raise Conflict(
                    f"another process changed table {self._name} meanwhile; nothing was changed",
                    hint="run the command again to see what would be lost now",
                )
            target = _kept(table, plan.snapshot_id, str(plan.snapshot_id))
            manage.set_current_snapshot(target.snapshot_id)
            _move_tag(table, manage, target)

        def is_done(table: Table) -> bool:
            return table.metadata.current_snapshot_id == plan.snapshot_id

        self._commit(f"cannot roll back table {self._name}", change, is_done)

    def tag(self, name: str, point: Point | None = None) -> int:
        """Tag a snapshot, by default the newest, and return its id. It then never expires.

        Raises:
            UsageError: the name is not allowed.
            Exists: there is a tag or branch of this name.
        """
        check_tag_name(name)
        tagged = find_snapshot(self._table, point or Point(_MAIN))

        def change(table: Table, manage: ManageSnapshots) -> None:
            if ref := table.metadata.refs.get(name):
                raise Exists(
                    f"table {self._name} already has the {ref.snapshot_ref_type} {name}, on"
                    f" snapshot {ref.snapshot_id}",
                    hint=f"choose another name, or k2 table untag {self._name} {name}",
                )
            found = _kept(table, tagged.snapshot_id, str(tagged.snapshot_id))
            manage.create_tag(found.snapshot_id, name)

        def is_done(table: Table) -> bool:
            ref = table.metadata.refs.get(name)
            return ref is not None and ref.snapshot_id == tagged.snapshot_id

        self._commit(f"cannot tag table {self._name}", change, is_done)
        return tagged.snapshot_id

    def untag(self, name: str) -> int:
        """Remove a tag, and return the id of the snapshot that it was on.

        Raises:
            UsageError: it is k2's own tag, or a branch.
        """
        if name == TAG:
            raise _reserved()
        snapshot_id = 0

        def change(table: Table, manage: ManageSnapshots) -> None:
            nonlocal snapshot_id
            ref = table.metadata.refs.get(name)
            if ref is None:
                tags = ", ".join(_tags(table)) or "none"
                raise NotFound(f"table {self._name} has no tag {name!r}", hint=f"tags: {tags}")
            if ref.snapshot_ref_type is not SnapshotRefType.TAG:
                raise UsageError(f"{name} is a branch of table {self._name}, not a tag")
            snapshot_id = ref.snapshot_id
            manage.remove_tag(name)

        def is_done(table: Table) -> bool:
            return name not in table.metadata.refs

        self._commit(f"cannot untag table {self._name}", change, is_done)
        return snapshot_id

    def diff(self, before: Point, after: Point) -> pa.Table:
        """Count the rows added and removed between two snapshots, by exchange and symbol.

        See `tablediff.count_changes`.

        Raises:
            BadData: a file is damaged, or another engine left row-level deletes.
        """
        with translated(f"cannot compare snapshots of table {self._name}"):
            while True:
                both = [find_snapshot(self._table, point) for point in (before, after)]
                try:
                    return count_changes(self._table, *both)
                except FileNotFoundError:  # possibly expired meanwhile
                    if not has_moved_on(self._table):
                        raise

    def _commit(
        self,
        what: str,
        change: Callable[[Table, ManageSnapshots], None],
        is_done: Callable[[Table], bool],
    ) -> None:
        """Commit a change of the newest metadata, again if another writer was faster.

        `change` checks each time whether it still applies; `is_done` settles an unknown outcome.

        Raises:
            Conflict: other writers won too often; nothing was changed.
        """
        for number in range(_ATTEMPTS):
            self._table = self._load()
            with translated(what):
                if _try_commit(self._table, change, is_done):
                    return
            time.sleep(random.uniform(0, min(_MAX_WAIT_S, 0.02 * 2**number)))
        raise Conflict(
            f"other writers of table {self._name} won {_ATTEMPTS} times in a row",
            hint="run the command again, or let fewer processes write",
        )


def _try_commit(
    table: Table,
    change: Callable[[Table, ManageSnapshots], None],
    is_done: Callable[[Table], bool],
) -> bool:
    """Commit a change; return whether it succeeded, or another writer was faster."""
    transaction = OneCommit(table)
    manage = ManageSnapshots(transaction)
    change(table, manage)
    try:
        manage.commit()
        transaction.commit_transaction()
    except CommitFailedException:
        return False
    except ValueError:  # pyiceberg's, if the snapshot has just expired
        if not has_moved_on(table):
            raise
        return False
    except (DatabaseError, OSError, RESTError):
        with suppress(DatabaseError, OSError, RESTError):
            if is_done(table.refresh()):
                return True
        raise
    return True


def check_tag_name(name: str) -> None:
    """Check the name of a tag to create.

    Raises:
        UsageError: it is reserved, could be a snapshot id, or has other characters than allowed.
    """
    if name == TAG:
        raise _reserved()
    if name == _MAIN:
        raise UsageError("main is the name of the table's branch", hint="choose another name")
    if not _TAG_NAME.fullmatch(name) or name.isdigit():
        raise UsageError(
            f"{name!r} cannot be the name of a tag",
            hint="use up to 100 letters, digits, '.', '_' and '-', and not only digits",
        )


def find_snapshot(table: Table, point: Point) -> Snapshot:
    """Find the snapshot that a point names.

    At a time it is the newest one of the table's history at or before that time.

    Raises:
        NotFound: there is none, or it has expired.
    """
    if table.current_snapshot() is None:
        raise NotFound(f"table {table.name()[-1]} has no snapshots: it was never written to")
    if ref := table.metadata.refs.get(point.text):
        return _kept(table, ref.snapshot_id, point.text)
    if _ID.fullmatch(point.text):
        snapshot = table.snapshot_by_id(int(point.text))
        if snapshot is not None:
            return snapshot
    if point.moment is None:
        raise _not_kept(table, point.text)
    return _snapshot_at(table, point.moment)


def _snapshot_at(table: Table, moment: datetime) -> Snapshot:
    oldest = None
    for oldest in ancestors(table):
        if utc_time(oldest.timestamp_ms) <= moment:
            return oldest
    assert oldest is not None, "the table has a current snapshot"
    name, first = table.name()[-1], iso_utc(utc_time(oldest.timestamp_ms))
    raise NotFound(
        f"table {name} has no snapshot at or before {iso_utc(moment)}; the first is from {first}"
        if _is_first(oldest)
        else f"the snapshots of table {name} at {iso_utc(moment)} have expired; the oldest one that"
        f" is kept is from {first}",
        hint=_list_them(table),
    )


def _kept(table: Table, snapshot_id: int, text: str) -> Snapshot:
    snapshot = table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        raise _not_kept(table, text)
    return snapshot


def _not_kept(table: Table, text: str) -> NotFound:
    return NotFound(
        f"table {table.name()[-1]} has no snapshot or tag {text!r}; it may have expired",
        hint=_list_them(table),
    )


def _list_them(table: Table) -> str:
    return f"list the snapshots with k2 table snapshots {table.name()[-1]}"


def _reserved() -> UsageError:
    return UsageError(
        f"the tag {TAG} is k2's own: it protects the snapshot with the positions",
        hint="choose another name",
    )


def _tags(table: Table) -> list[str]:
    return sorted(
        name
        for name, ref in table.metadata.refs.items()
        if ref.snapshot_ref_type is SnapshotRefType.TAG and name != TAG
    )


def _plan_rollback(table: Table, target: Snapshot) -> Rollback:
    newest = table.current_snapshot()
    assert newest is not None, "find_snapshot has checked it"
    if not _is_in_history(table, target):
        raise UsageError(
            f"snapshot {target.snapshot_id} is not in the history of table {table.name()[-1]}:"
            " it is on another branch, or the table was rolled back from it",
            hint=_list_them(table),
        )
    undone = list(takewhile(lambda each: each.snapshot_id != target.snapshot_id, ancestors(table)))
    changes = [_row_change(each) for each in undone]
    has_expired = bool(undone) and undone[-1].parent_snapshot_id != target.snapshot_id
    if has_expired:  # what the expired ones changed is only known in sum
        changes.append(_rows(undone[-1]) - changes[-1] - _rows(target))
    return Rollback(
        table=table.name()[-1],
        snapshot_id=target.snapshot_id,
        committed_at=utc_time(target.timestamp_ms),
        rows=_rows(target),
        newest_id=newest.snapshot_id,
        newest_at=utc_time(newest.timestamp_ms),
        newest_rows=_rows(newest),
        commits=len(undone),
        has_expired=has_expired,
        lost_rows=sum(change for change in changes if change > 0),
        restored_rows=-sum(change for change in changes if change < 0),
    )


def _is_in_history(table: Table, snapshot: Snapshot) -> bool:
    """Return whether the table was once in the state of a snapshot.

    If the snapshots in between have expired, their order decides.
    """
    chain = list(ancestors(table))
    if any(each.snapshot_id == snapshot.snapshot_id for each in chain):
        return True
    oldest = chain[-1]
    return not _is_first(oldest) and (snapshot.sequence_number or 0) < (oldest.sequence_number or 0)


def _is_first(snapshot: Snapshot) -> bool:
    """Return whether a snapshot is the first of its table.

    One whose parent has expired has no parent either, but a later sequence number.
    """
    return snapshot.parent_snapshot_id is None and (snapshot.sequence_number or 0) <= 1


def _rows(snapshot: Snapshot) -> int:
    return number_of(snapshot, "total-records") or 0


def _row_change(snapshot: Snapshot) -> int:
    if snapshot.summary is not None and snapshot.summary.operation is Operation.REPLACE:
        return 0
    added = number_of(snapshot, "added-records") or 0
    return added - (number_of(snapshot, "deleted-records") or 0)


def _move_tag(table: Table, manage: ManageSnapshots, target: Snapshot) -> None:
    """Move k2's tag to its newest snapshot in the history of the target, if it has one.

    A tag on a newer snapshot would lead to the state of rows that are no longer in the table.
    """
    known = newest_known(table, target)
    ref = table.metadata.refs.get(TAG)
    if known is not None:
        manage.create_tag(known.snapshot_id, TAG)
    elif ref is not None:
        tagged = table.snapshot_by_id(ref.snapshot_id)
        if tagged is None or (tagged.sequence_number or 0) > (target.sequence_number or 0):
            manage.remove_tag(TAG)
