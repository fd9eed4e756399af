"""k2's state of a table in its newest snapshot: the position, the loads, the offsets.

The state is stored in properties `k2.*` of a snapshot's summary, and each snapshot of k2 copies
those of its parent. Other engines' snapshots have none. A compaction does not change rows, so the
state of the previous snapshot is still valid; after anything else, the position of the numbered
series must be rebuilt from the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from k2cli.storage.offsets import KEY as OFFSETS_KEY
from k2cli.storage.position import KEY, Position, decode_position, encode_position
from k2cli.storage.snapshots import number_of, operation_of, summary_of

PREFIX: Final = "k2."
RUN_KEY: Final = "k2.run"  # the run that created a snapshot, as in its log lines
ROWS_KEY: Final = "k2.rows"  # number of rows in the table
LOST_KEY: Final = "k2.lost"  # set if k2's state was lost with its snapshots
REMOVED_KEY: Final = "k2.removed"  # changes whenever k2 removes rows
TAG: Final = "k2"  # on k2's newest snapshot: other engines' expiry leaves tagged snapshots alone
_LEGACY: Final = "k2.position."  # k2 0.1.0 had only positions of streams, one per exchange
_TOTAL: Final = "total-records"
_MAX_KNOWN: Final = 8
_OWN: Final = (RUN_KEY, ROWS_KEY)  # of one snapshot alone


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """k2's state of a table.

    `position` is None if it must be rebuilt from the rows. With `is_lost`, the table has rows
    without any other state.
    """

    properties: dict[str, str] = field(default_factory=dict)  # for the next snapshot
    position: Position | None = None
    is_lost: bool = False

    @property
    def may_have_unlogged_lines(self) -> bool:
        """Return whether lines of files may be stored that the log of loads does not have.

        The log was lost with k2's state, or files were sent to a topic and consumed.
        """
        return LOST_KEY in self.properties or OFFSETS_KEY in self.properties


def read_state(table: Table) -> TableState:
    """Read k2's state of a table from the loaded metadata.

    Raises:
        BadData: a property is damaged.
    """
    snapshot = table.current_snapshot()
    if snapshot is None:
        return TableState(position=Position())
    total = number_of(snapshot, _TOTAL)
    known, is_unchanged, is_linked = _newest_known(table)
    found = _k2_properties(known) if known else {}
    rows = found.get(ROWS_KEY)
    is_same_size = rows is not None and (total is None or int(rows) == total)
    if known is None or not (is_linked or is_same_size):
        is_empty = total == 0
        return TableState(position=Position() if is_empty else None, is_lost=not is_empty)
    properties = {
        key: value
        for key, value in found.items()
        if key not in _OWN and not key.startswith(_LEGACY)
    }
    if not (is_linked and is_unchanged and is_same_size and KEY in properties):
        return TableState(properties=properties)
    return TableState(properties=properties, position=decode_property(properties[KEY]))


def carried_properties(table: Table) -> dict[str, str]:
    """Read the properties that the next snapshot copies."""
    return read_state(table).properties


def total_rows(table: Table) -> int | None:
    """Return how many rows a table has; None if its newest snapshot does not record it."""
    snapshot = table.current_snapshot()
    return 0 if snapshot is None else number_of(snapshot, _TOTAL)


def _newest_known(table: Table) -> tuple[Snapshot | None, bool, bool]:
    """Find k2's newest snapshot, and whether only known compactions followed it.

    If another engine expired snapshots in between, k2's tag still has it, unless the table was
    rolled back meanwhile. Then the changes in between are unknown.
    """
    is_unchanged = True
    for snapshot in ancestors(table):
        if _k2_properties(snapshot):
            return snapshot, is_unchanged, True
        is_unchanged = is_unchanged and operation_of(snapshot) is Operation.REPLACE
    tag = table.metadata.refs.get(TAG)
    return table.snapshot_by_id(tag.snapshot_id) if tag else None, is_unchanged, False


def newest_known(table: Table, snapshot: Snapshot) -> Snapshot | None:
    """Return the newest snapshot with k2's state: this one, or an ancestor that is kept."""
    return next(filter(_k2_properties, ancestors(table, snapshot)), None)


def ancestors(table: Table, snapshot: Snapshot | None = None) -> Iterator[Snapshot]:
    """Yield a snapshot and its ancestors, newest first, as far as they are kept.

    By default those of the current snapshot.
    """
    snapshot = snapshot or table.current_snapshot()
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = table.snapshot_by_id(parent) if parent is not None else None


def is_ancestor(table: Table, snapshot: Snapshot) -> bool:
    """Return whether a table's newest snapshot descends from this one.

    If snapshots between them have expired, their order decides.
    """
    for each in ancestors(table):
        if each.snapshot_id == snapshot.snapshot_id:
            return True
        if (each.sequence_number or 0) < (snapshot.sequence_number or 0):
            return False
        if each.parent_snapshot_id is None:
            return False
    return table.current_snapshot() is not None


def _k2_properties(snapshot: Snapshot) -> dict[str, str]:
    properties = summary_of(snapshot)
    return {key: value for key, value in properties.items() if key.startswith(PREFIX)}


_known: dict[str, Position] = {}  # the last positions read or written, by encoded text


def position_property(position: Position) -> str:
    """Encode a position as a property, and cache it."""
    text = encode_position(position)
    _remember(text, position)
    return text


def decode_property(text: str) -> Position:
    """Decode a position that was stored as a property; recent ones are cached.

    Raises:
        BadData: the property is damaged.
    """
    if text not in _known:
        _remember(text, decode_position(text))
    return _known[text]


def _remember(text: str, position: Position) -> None:
    _known.pop(text, None)
    _known[text] = position
    if len(_known) > _MAX_KNOWN:
        del _known[next(iter(_known))]
