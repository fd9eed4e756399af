"""Plan a rollback, check that it still loses what was shown, and make it part of a commit."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot
from pyiceberg.table.update.snapshot import ManageSnapshots

from k2cli.errors import BadData, Conflict, UsageError
from k2cli.storage.snapshots import is_first, number_of, operation_of, utc_time
from k2cli.storage.state import ROWS_KEY, TAG, ancestors, newest_known
from k2cli.storage.tablediff import count_changes
from k2cli.storage.vendor import translated


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolRows:
    """What a rollback changes in the rows of one symbol."""

    exchange: str
    symbol: str
    lost: int  # added since then
    restored: int  # removed since then


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
    symbols: Sequence[SymbolRows]
    uncounted: str | None  # why the symbols are unknown
    has_state: bool  # k2's log of loads and the offsets of topics are known as of then


def plan_rollback(table: Table, target: Snapshot) -> Rollback:
    """Find out what a rollback to a snapshot would change.

    The rows are counted by symbol, unless a file to count is damaged or missing: a rollback may be
    what removes it from the table.

    Raises:
        UsageError: the table was never in the state of this snapshot, or was rolled back from it.
    """
    newest = table.current_snapshot()
    assert newest is not None, "the caller found the target in the table"
    if not _is_in_history(table, target):
        raise UsageError(
            f"snapshot {target.snapshot_id} is not in the history of table {table.name()[-1]}:"
            " it is on another branch, or the table was rolled back from it",
            hint=f"list the snapshots with k2 table snapshots {table.name()[-1]}",
        )
    undone = list(takewhile(lambda each: each.snapshot_id != target.snapshot_id, ancestors(table)))
    has_expired = bool(undone) and undone[-1].parent_snapshot_id != target.snapshot_id
    symbols, uncounted = _count_symbols(table, target, newest) if undone else ([], None)
    if uncounted is None:
        lost, restored = sum(each.lost for each in symbols), sum(each.restored for each in symbols)
    else:
        lost, restored = _count_rows(undone, target, has_expired=has_expired)
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
        lost_rows=lost,
        restored_rows=restored,
        symbols=symbols,
        uncounted=uncounted,
        has_state=_has_state(table, target),
    )


def check_rollback(table: Table, plan: Rollback) -> None:
    """Check that a rollback loses only what its plan shows.

    Commits since the plan may have compacted the table, or noted a position without new rows.

    Raises:
        Conflict: another process changed rows, or rolled the table back.
    """
    for snapshot in ancestors(table):
        if snapshot.snapshot_id == plan.newest_id:
            return
        if not _keeps_rows(snapshot, plan.newest_rows):
            break
    raise Conflict(
        f"another process changed table {plan.table} meanwhile; nothing was changed",
        hint="run the command again to see what would be lost now",
    )


def stage_rollback(table: Table, manage: ManageSnapshots, target: Snapshot) -> None:
    """Make a snapshot the current one, and k2's tag follow it.

    A tag on a newer snapshot would lead to the state of rows that the table has lost.
    """
    manage.set_current_snapshot(target.snapshot_id)
    state, ref = _state_after(table, target), table.metadata.refs.get(TAG)
    if state is not None:
        manage.create_tag(state.snapshot_id, TAG)
    elif ref is not None:
        manage.remove_tag(TAG)


def _state_after(table: Table, target: Snapshot) -> Snapshot | None:
    """Return the snapshot with k2's state after a rollback: in the target's history, or tagged."""
    known, ref = newest_known(table, target), table.metadata.refs.get(TAG)
    if known is not None or ref is None:
        return known
    tagged = table.snapshot_by_id(ref.snapshot_id)
    is_older = tagged is not None and (tagged.sequence_number or 0) <= (target.sequence_number or 0)
    return tagged if is_older else None


def _has_state(table: Table, target: Snapshot) -> bool:
    """Return whether k2's state is known after a rollback, as `read_state` then decides."""
    if newest_known(table, target) is not None or not _rows(target):
        return True
    return number_of(_state_after(table, target), ROWS_KEY) == _rows(target)


def _count_symbols(
    table: Table, target: Snapshot, newest: Snapshot
) -> tuple[list[SymbolRows], str | None]:
    """Count the rows to lose and to restore by symbol; or return why they cannot be counted."""
    try:
        with translated("cannot count the rows"):
            changes = count_changes(table, target, newest)
    except BadData as exc:
        return [], str(exc)
    return [
        SymbolRows(
            exchange=each["exchange"],
            symbol=each["symbol"],
            lost=each["added"],
            restored=each["removed"],
        )
        for each in changes.to_pylist()
    ], None


def _count_rows(
    undone: Sequence[Snapshot], target: Snapshot, *, has_expired: bool
) -> tuple[int, int]:
    """Count the rows to lose and to restore by the metadata alone."""
    changes = [_row_change(each) for each in undone]
    if has_expired:  # what the expired ones changed is only known in sum
        changes.append(_rows(undone[-1]) - changes[-1] - _rows(target))
    lost = sum(change for change in changes if change > 0)
    return lost, -sum(change for change in changes if change < 0)


def _is_in_history(table: Table, snapshot: Snapshot) -> bool:
    """Return whether the table was once in the state of a snapshot.

    If the snapshots in between have expired, their order decides.
    """
    chain = list(ancestors(table))
    if any(each.snapshot_id == snapshot.snapshot_id for each in chain):
        return True
    oldest = chain[-1]
    return not is_first(oldest) and (snapshot.sequence_number or 0) < (oldest.sequence_number or 0)


def _keeps_rows(snapshot: Snapshot, rows: int) -> bool:
    operation = operation_of(snapshot)
    is_addition = operation is Operation.APPEND and number_of(snapshot, "total-records") == rows
    return operation is Operation.REPLACE or is_addition


def _rows(snapshot: Snapshot) -> int:
    return number_of(snapshot, "total-records") or 0


def _row_change(snapshot: Snapshot) -> int:
    if operation_of(snapshot) is Operation.REPLACE:
        return 0
    added = number_of(snapshot, "added-records") or 0
    return added - (number_of(snapshot, "deleted-records") or 0)
