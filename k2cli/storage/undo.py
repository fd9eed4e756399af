"""Undo a load: remove its rows from the table and its entry from the log in one commit.

The rows are found in any file, even if other engines have merged files: by the numbers that the
load stored, or by the message ids of its lines; and always by their receive times. Rows stored by
other loads and streams are kept.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.expressions import (
    AlwaysFalse,
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    LessThanOrEqual,
)
from pyiceberg.manifest import DataFile

from k2cli.errors import BadData, NotFound
from k2cli.ranges import Ranges, ranges_of
from k2cli.records import RecordKind, nth_copy
from k2cli.storage.admission import RECEIVED, runs
from k2cli.storage.append import Attempt
from k2cli.storage.lines import Bools, Lines
from k2cli.storage.loads import KEY as LOADS_KEY
from k2cli.storage.loads import list_loads, remove_entry
from k2cli.storage.numbered import numbered_rows
from k2cli.storage.position import KEY, Position, Series, State, decode_position
from k2cli.storage.rewrite import Removed, Rewrite, add_ranges
from k2cli.storage.state import TableState, position_property, read_state
from k2cli.storage.target import Target
from k2cli.storage.vendor import predicate

_TIME: Final = pa.timestamp("us", tz="UTC")
_COLUMNS: Final = (RECEIVED,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What undoing a load removed, or would remove in a dry run."""

    load: str
    path: str
    rows: int
    files: int  # data files that were replaced or dropped
    snapshot_id: int | None


def undo_load(target: Target, load: str, *, is_dry_run: bool) -> Undone:
    """Remove the rows of a load and its entry in the log, in one snapshot.

    Raises:
        NotFound: the load is not, or no longer, in the log.
        BadData: k2 0.1.0 made this load and did not record which rows it stored, or another engine
            left row-level deletes.
        Conflict: other writers won too often; nothing was changed.
    """
    log = read_state(target.table).properties.get(LOADS_KEY)
    entry = find_load(target, log, load)
    is_legacy = entry["identity"] is None
    choose = _LegacyRows(target, log, entry) if is_legacy else _LoadRows(target.kind, entry)

    def undone(removed: Removed, snapshot_id: int | None) -> Undone:
        if is_legacy and removed.rows != entry["rows"]:
            raise _unknown_rows(entry)
        return Undone(
            load=load,
            path=entry["path"],
            rows=removed.rows,
            files=len(removed.removals),
            snapshot_id=snapshot_id,
        )

    with Rewrite(target, choose.row_filter, choose, columns=_COLUMNS) as rewrite:
        found = undone(rewrite.find(), None)
        if is_dry_run:
            return found

        def finish(state: TableState, removed: Removed) -> Attempt:
            nonlocal found
            log = state.properties.get(LOADS_KEY)
            find_load(target, log, load)
            found = undone(removed, None)
            value, segment = remove_entry(target.table, log, load)
            assert state.position is not None, "Rewrite rebuilds it before"
            properties = {
                **state.properties,
                KEY: position_property(removed.position(state.position, choose.others)),
            }
            properties.pop(LOADS_KEY)
            if value is not None:
                properties[LOADS_KEY] = value
            return Attempt(files=[], properties=properties, scratch=[segment] if segment else [])

        snapshot_id = rewrite.commit(finish)
    return Undone(
        load=load, path=found.path, rows=found.rows, files=found.files, snapshot_id=snapshot_id
    )


def find_load(target: Target, log: str | None, load: str) -> dict[str, Any]:
    """Return the entry of a load.

    Raises:
        NotFound: it does not exist.
    """
    for entry in list_loads(target.table, log).filter(pc.field("load") == load).to_pylist():
        return dict(entry)
    raise NotFound(f"no load {load}", hint="list the loads with k2 load history")


class _LoadRows:
    """Chooses the rows that a load stored."""

    def __init__(self, kind: RecordKind, entry: dict[str, Any]) -> None:
        self._kind = kind
        self._received = pa.array(entry["received"], pa.int64())
        self._stored = decode_position(entry["stored"]) if entry["stored"] else Position()
        self._lines = Lines(kind, (nth_copy(entry["identity"], entry["copy"]),))
        self._has_texts: bool = entry["has_texts"]
        self.row_filter = _between(kind, entry["first_time"], entry["last_time"])
        self.others: dict[Series, Ranges] = {}  # numbers of the load that further rows have

    def __call__(self, file: DataFile, rows: pa.Table) -> Bools:  # noqa: ARG002
        """Choose rows of one data file."""
        is_chosen = self._choose_received(rows)
        if self._kind.is_dense and self._stored.series and not is_chosen.all():
            self._add_others(rows.filter(pa.array(~is_chosen)))
        return is_chosen

    def _add_others(self, rows: pa.Table) -> None:
        numbered = numbered_rows(self._kind, rows)
        for code, begin, end in runs(numbered.codes):
            series = numbered.series[code]
            numbers = numbered.numbers[begin:end]
            states = self._stored.of(series).states(numbers)
            add_ranges(self.others, series, ranges_of(numbers[states != State.ABSENT]))

    def _choose_received(self, rows: pa.Table) -> Bools:
        is_chosen = np.zeros(rows.num_rows, dtype=np.bool_)
        is_near = pc.is_in(rows[RECEIVED].cast(pa.int64()), self._received)
        near = np.flatnonzero(is_near.to_numpy())
        if len(near):
            is_chosen[near] = self._choose(rows.take(pa.array(near)))
        return is_chosen

    def _choose(self, rows: pa.Table) -> Bools:
        is_chosen = self._lines.mask(rows).copy()
        numbered = numbered_rows(self._kind, rows)
        if self._has_texts:
            is_text = np.ones(rows.num_rows, dtype=np.bool_)
            is_text[numbered.rows] = False
            is_chosen |= is_text
        for code, begin, end in runs(numbered.codes):
            stored = self._stored.of(numbered.series[code])
            states = stored.states(numbered.numbers[begin:end])
            is_chosen[numbered.rows[begin:end]] |= states != State.ABSENT
        return is_chosen


class _LegacyRows:
    """Chooses the rows that a load of k2 0.1.0 stored, if they are lines without ids.

    Their ids have the digest of the file. Where it was loaded several times, they were received
    after the load before.
    """

    def __init__(self, target: Target, log: str | None, entry: dict[str, Any]) -> None:
        loads = list_loads(target.table, log).filter(pc.field("digest") == entry["digest"])
        before = loads.filter(pc.field("loaded_at") < pa.scalar(entry["loaded_at"], _TIME))
        self._after = pc.max(before["loaded_at"]) if len(before) else pa.scalar(0, _TIME)
        self.others: dict[Series, Ranges] = {}
        self._until = pa.scalar(entry["loaded_at"], _TIME)
        self._lines = Lines(target.kind, legacy=(entry["digest"],))
        self.row_filter = AlwaysTrue() if entry["rows"] else AlwaysFalse()

    def __call__(self, file: DataFile, rows: pa.Table) -> Bools:  # noqa: ARG002
        """Choose rows of one data file."""
        received = rows[RECEIVED]
        is_near = pc.and_(pc.greater(received, self._after), pc.less_equal(received, self._until))
        is_chosen: Bools = self._lines.mask(rows) & is_near.to_numpy()
        return is_chosen


def _between(kind: RecordKind, first: datetime | None, last: datetime | None) -> BooleanExpression:
    if first is None or last is None:
        return AlwaysFalse()
    column = kind.partition_by
    return And(
        predicate(GreaterThanOrEqual, column, first.isoformat()),
        predicate(LessThanOrEqual, column, last.isoformat()),
    )


def _unknown_rows(entry: dict[str, Any]) -> BadData:
    return BadData(
        f"{entry['path']} was loaded by k2 0.1.0, which did not record which rows it stored",
        hint="rows with exchange ids are stored once: load with --force and the right options to"
        " add missing rows; to remove rows, use an engine that can delete them by a condition",
    )
