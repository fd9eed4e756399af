"""Find the numbers that a table lacks between those that it stores.

The position shows them. Where it does not (it must be rebuilt, lists not every series, or has mixed
ranges), the numbers of the rows are read, one row group at a time.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
from pyiceberg.table import Table

from k2cli.ranges import EMPTY, Ranges, difference, index_of, intersection, ranges_of, union
from k2cli.records import RecordKind
from k2cli.storage.admission import runs
from k2cli.storage.lookup import read_numbers
from k2cli.storage.opengaps import KEY as GAPS_KEY
from k2cli.storage.opengaps import OpenGap, OpenGaps, close_stored, decode_open_gaps
from k2cli.storage.position import Position, Series, Stored
from k2cli.storage.state import TableState
from k2cli.storage.stored import FileIndex

Chooser = Callable[[Series], bool]

_TIME: Final = pa.timestamp("us", tz="UTC")
SCHEMA: Final = pa.schema(
    [
        pa.field("exchange", pa.string()),
        pa.field("symbol", pa.string()),
        pa.field("first_id", pa.int64()),
        pa.field("last_id", pa.int64()),
        pa.field("id_before", pa.int64()),  # the next stored one below
        pa.field("id_after", pa.int64()),  # the next stored one above
        pa.field("reason", pa.string()),  # null: unknown
        pa.field("found", _TIME),
        pa.field("last_attempt", _TIME),
        pa.field("attempts", pa.int64()),
    ]
)


def open_gaps(state: TableState) -> OpenGaps:
    """Return the noted gaps that are still open.

    Raises:
        BadData: the property is damaged.
    """
    gaps = decode_open_gaps(state.properties.get(GAPS_KEY, ""))
    return gaps if state.position is None else close_stored(gaps, state.position)


def find_holes(
    table: Table,
    kind: RecordKind,
    index: FileIndex,
    *,
    state: TableState,
    choose: Chooser,
) -> pa.Table:
    """Return the missing numbers of the chosen series as ranges, with what is known about them.

    The rows of `SCHEMA` are ascending by series and number. A hole whose parts have different
    reasons has several rows.
    """
    stored = _stored_ranges(table, kind, index, state.position, choose)
    gaps = open_gaps(state)
    parts = [
        _holes(series, ranges, gaps.get(series, ()))
        for series, ranges in sorted(stored.items())
        if len(ranges) > 1
    ]
    return pa.concat_tables([SCHEMA.empty_table(), *parts])


def _stored_ranges(
    table: Table,
    kind: RecordKind,
    index: FileIndex,
    position: Position | None,
    choose: Chooser,
) -> dict[Series, Ranges]:
    """Return the exact ranges of stored numbers of each chosen series."""
    known: Mapping[Series, Stored] = position.series if position is not None else {}
    exact = {series: stored.exact for series, stored in known.items() if choose(series)}
    mixed = {
        series: Stored(mixed=known[series].mixed) for series in exact if len(known[series].mixed)
    }
    is_complete = position is not None and not position.is_partial
    if is_complete and not mixed:
        return exact
    files = index.files(table)
    for path in files.overlapping(mixed) if is_complete else files.paths:
        for numbered, _ in read_numbers(table, kind, path):
            for code, begin, end in runs(numbered.codes):
                series = numbered.series[code]
                if series in mixed if is_complete else choose(series):
                    ranges = ranges_of(numbered.numbers[begin:end])
                    exact[series] = union(exact.get(series, EMPTY), ranges)
    return exact


def _holes(series: Series, stored: Ranges, gaps: Sequence[OpenGap]) -> pa.Table:
    """Return the holes between stored ranges, split where their explanations differ."""
    holes = np.column_stack((stored[:-1, 1] + 1, stored[1:, 0] - 1))
    noted = np.array([(gap.first, gap.last) for gap in gaps], dtype=np.int64).reshape(-1, 2)
    parts = np.concatenate((intersection(holes, noted), difference(holes, noted)))
    parts = parts[parts[:, 0] <= parts[:, 1]]  # notes may touch each other
    parts = parts[np.argsort(parts[:, 0])]
    around = holes[index_of(holes, parts[:, 0])]
    # The last of these stands for parts that nobody explained.
    notes: list[OpenGap | None] = [*gaps, None]
    chosen = pa.array(index_of(noted, parts[:, 0]) % len(notes))
    count = len(parts)
    columns = {
        "exchange": pa.repeat(series.exchange, count),
        "symbol": pa.repeat(series.symbol, count),
        "first_id": pa.array(parts[:, 0]),
        "last_id": pa.array(parts[:, 1]),
        "id_before": pa.array(around[:, 0] - 1),
        "id_after": pa.array(around[:, 1] + 1),
        "reason": pa.array([note and note.reason for note in notes], pa.string()).take(chosen),
        "found": _times([note.found_s if note else None for note in notes]).take(chosen),
        "last_attempt": _times([note.tried_s if note else None for note in notes]).take(chosen),
        "attempts": pa.array([note and note.attempts for note in notes], pa.int64()).take(chosen),
    }
    return pa.table(columns, SCHEMA)


def _times(times_s: Sequence[int | None]) -> pa.Array:
    """Build times from UTC seconds; 0 is null, like None."""
    return pa.array([time_s * 1_000_000 if time_s else None for time_s in times_s], _TIME)
