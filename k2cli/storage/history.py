"""The snapshots of a table: find one, tag it, roll back to it, compare two of them."""

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import pyarrow as pa
from pyiceberg.exceptions import CommitFailedException, RESTError
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.table.update.snapshot import ManageSnapshots
from sqlalchemy.exc import DatabaseError

from k2cli.errors import Exists, NotFound, UsageError
from k2cli.iso import iso_utc
from k2cli.records import RecordKind
from k2cli.storage.append import OneCommit, has_moved_on
from k2cli.storage.races import ATTEMPTS, too_many_races, wait_after_race
from k2cli.storage.rollback import Rollback, check_rollback, plan_rollback, stage_rollback
from k2cli.storage.snapshots import is_first, utc_time
from k2cli.storage.state import TAG, ancestors
from k2cli.storage.tablediff import count_changes
from k2cli.storage.vendor import translated

_ID: Final = re.compile(r"[0-9]{1,19}")
_TAG_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_MAIN: Final = "main"


@dataclass(frozen=True, slots=True)
class Point:
    """A snapshot as users name it: its id, a tag or branch on it, or a time."""

    text: str
    moment: datetime | None = None  # if the text is a time


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
        """Find out what a rollback would change. See `rollback.plan_rollback`."""
        with translated(f"cannot plan a rollback of table {self._name}"):
            plan = plan_rollback(self._table, find_snapshot(self._table, point))
            if plan.uncounted is None or not has_moved_on(self._table):
                return plan
            # A file to count may just have expired.
            return plan_rollback(self._table, find_snapshot(self._table, point))

    def roll_back(self, plan: Rollback) -> None:
        """Make an older snapshot the current one, and k2's tag follow it, in one commit.

        Raises:
            Conflict: another writer has changed rows since it was planned; nothing was changed.
        """

        def change(table: Table, manage: ManageSnapshots) -> None:
            check_rollback(table, plan)
            target = _kept(table, plan.snapshot_id, str(plan.snapshot_id))
            stage_rollback(table, manage, target)

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
        for number in range(ATTEMPTS):
            self._table = self._load()
            with translated(what):
                if _try_commit(self._table, change, is_done):
                    return
            wait_after_race(number)
        raise too_many_races(self._table)


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
        if is_first(oldest)
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
