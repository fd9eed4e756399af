"""What k2 knows of a table, as its newest snapshot has it: the position, the loads, the offsets.

All of it stands in properties `k2.*` of a snapshot's summary, and each snapshot that k2 makes takes
over those of the one before. Other engines' snapshots carry none. A compaction changes no row, so
what the snapshot before it says still holds; after anything else, the position of the numbered
series has to be rebuilt from the table.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Snapshot

from k2cli.storage.position import KEY, Position, decode_position, encode_position

PREFIX: Final = "k2."
RUN_KEY: Final = "k2.run"  # the run that made a snapshot, as its log lines have it
ROWS_KEY: Final = "k2.rows"  # how many rows the table had then
LOST_KEY: Final = "k2.lost"  # set once what k2 knew of the table was lost with its snapshots
REMOVED_KEY: Final = "k2.removed"  # another value after each time that k2 removed rows
TAG: Final = "k2"  # on k2's newest snapshot: other engines' expiry leaves tagged snapshots alone
_LEGACY: Final = "k2.position."  # k2 0.1.0 had positions of streams alone, one for each exchange
_TOTAL: Final = "total-records"
_MOST_KNOWN: Final = 8
_OWN: Final = (RUN_KEY, ROWS_KEY)  # of one snapshot alone


@dataclass(frozen=True, slots=True, kw_only=True)
class TableState:
    """What k2 knows of a table.

    `position` is None where it has to be rebuilt from the rows. With `is_lost`, rows are there
    of which nothing else is known either.
    """

    properties: dict[str, str] = field(default_factory=dict)  # that the next snapshot takes over
    position: Position | None = None
    is_lost: bool = False


def read_state(table: Table) -> TableState:
    """Read what k2 knows of a table, as of the metadata that was loaded.

    Raises:
        BadData: a property is damaged.
    """
    snapshot = table.current_snapshot()
    if snapshot is None:
        return TableState(position=Position())
    total = _number(snapshot, _TOTAL)
    known, is_unchanged, is_linked = _newest_known(table, snapshot)
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
    return TableState(properties=properties, position=_decode(properties[KEY]))


def carried_properties(table: Table) -> dict[str, str]:
    """Read the properties that the next snapshot takes over."""
    return read_state(table).properties


def total_rows(table: Table) -> int | None:
    """Return how many rows a table has; None if its newest snapshot does not say."""
    snapshot = table.current_snapshot()
    return 0 if snapshot is None else _number(snapshot, _TOTAL)


def _newest_known(table: Table, current: Snapshot) -> tuple[Snapshot | None, bool, bool]:
    """Find the newest snapshot of k2's, whether only compactions followed it, and all are known.

    Where another engine expired snapshots in between, k2's tag still has it, unless the table was
    rolled back meanwhile. What the snapshots in between did is not known then.
    """
    is_unchanged = True
    for snapshot in _ancestors(table, current):
        if _k2_properties(snapshot):
            return snapshot, is_unchanged, True
        is_unchanged = is_unchanged and _operation(snapshot) is Operation.REPLACE
    tag = table.metadata.refs.get(TAG)
    return table.snapshot_by_id(tag.snapshot_id) if tag else None, is_unchanged, False


def _ancestors(table: Table, snapshot: Snapshot | None) -> Iterator[Snapshot]:
    while snapshot is not None:
        yield snapshot
        parent = snapshot.parent_snapshot_id
        snapshot = table.snapshot_by_id(parent) if parent is not None else None


def is_ancestor(table: Table, snapshot: Snapshot) -> bool:
    """Return whether a table's newest snapshot goes back to this one.

    Where snapshots between them have expired, their order decides.
    """
    for each in _ancestors(table, table.current_snapshot()):
        if each.snapshot_id == snapshot.snapshot_id:
            return True
        if (each.sequence_number or 0) < (snapshot.sequence_number or 0):
            return False
        if each.parent_snapshot_id is None:
            return False
    return table.current_snapshot() is not None


def _k2_properties(snapshot: Snapshot) -> dict[str, str]:
    if snapshot.summary is None:
        return {}
    properties = snapshot.summary.additional_properties
    return {key: value for key, value in properties.items() if key.startswith(PREFIX)}


def _operation(snapshot: Snapshot) -> Operation | None:
    return snapshot.summary.operation if snapshot.summary else None


def _number(snapshot: Snapshot, key: str) -> int | None:
    value = snapshot.summary.additional_properties.get(key) if snapshot.summary else None
    return int(value) if value is not None else None


_known: dict[str, Position] = {}  # the last positions that were read or written, by their text


def position_property(position: Position) -> str:
    """Write a position as a property, and remember what it says."""
    text = encode_position(position)
    _remember(text, position)
    return text


def _decode(text: str) -> Position:
    if text not in _known:
        _remember(text, decode_position(text))
    return _known[text]


def _remember(text: str, position: Position) -> None:
    _known.pop(text, None)
    _known[text] = position
    if len(_known) > _MOST_KNOWN:
        del _known[next(iter(_known))]
