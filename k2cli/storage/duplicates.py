"""Records that a table stores more than once, found a day at a time.

Rows of a numbered series are the same record if their numbers are equal, others if their message
ids are. Of a series whose numbers count up, a record that is stored with different times on
different days is found, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.table import Table

from k2cli.ranges import Ints
from k2cli.records import RecordKind
from k2cli.storage.admission import (
    MAX_CONFLICTS,
    RECEIVED,
    ValueConflict,
    are_equal,
    runs,
    stored_numbers,
)
from k2cli.storage.numbered import Numbered, numbered_rows
from k2cli.storage.position import Series, State, Stored
from k2cli.storage.stored import FileStatistics

_KEYS = ("exchange", "symbol", "source_sequence", "message_id", RECEIVED)


class Keep(StrEnum):
    """Which of the rows of one id stays where their values differ."""

    FIRST = "first"
    NEWEST = "newest"


@dataclass(slots=True)
class Doubles:
    """Rows that are stored elsewhere, too."""

    days: list[int] = field(default_factory=list)  # on which they are: since 1970, UTC
    drop: dict[str, Ints] = field(default_factory=dict)  # by file: ascending row indices
    numbers: Mapping[Series, Stored] = field(default_factory=dict)  # that were looked at
    rows: int = 0  # how many are dropped
    conflicts: int = 0  # rows whose id has another row with other values
    examples: list[ValueConflict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of some files: where each stands, and what identifies it."""

    paths: Sequence[str]
    files: Ints  # of each row, its index in `paths`
    indices: Ints  # of each row, its index in its file
    received: Ints  # UTC microseconds
    groups: Ints  # rows of the same record have the same group

    def take(self, index: npt.NDArray[np.intp]) -> "_Rows":
        return _Rows(
            self.paths,
            self.files[index],
            self.indices[index],
            self.received[index],
            self.groups[index],
        )


def find_in_day(
    table: Table, kind: RecordKind, files: FileStatistics, day: int, keep: Keep | None
) -> Doubles:
    """Find what can be dropped within a day, and which numbers of dense series the day has.

    Of rows that say the same, the one that was received first stays. Rows of one id with other
    values are counted; without `keep` all of them stay.
    """
    paths = [files.paths[at] for at in np.flatnonzero(files.days == day)]
    rows, numbers = _read(table, kind, paths)
    found = _judge(table, kind, rows, keep)
    found.days = [day]
    found.numbers = numbers if kind.is_dense else {}
    return found


def find_across_days(
    table: Table,
    kind: RecordKind,
    files: FileStatistics,
    numbers: Mapping[Series, Stored],
    keep: Keep | None,
) -> Doubles:
    """Find what can be dropped of numbers that are stored on several days."""
    paths = files.overlapping(numbers)
    rows, _ = _read(table, kind, paths, only=numbers)
    found = _judge(table, kind, rows, keep)
    found.days = np.unique(files.only(set(paths)).days).tolist()
    return found


def _read(
    table: Table,
    kind: RecordKind,
    paths: Sequence[str],
    only: Mapping[Series, Stored] | None = None,
) -> tuple[_Rows, dict[Series, Stored]]:
    """Read what identifies the rows of some files, and which numbers they have.

    With `only` rows of other numbers are left out. Rows are ascending by record, the one that was
    received first before the others.
    """
    parts: list[pa.Table] = [kind.arrow.empty_table().select(_KEYS)]
    parts += [_read_columns(table, kind, path, _KEYS) for path in paths]
    rows = pa.concat_tables(parts)
    sizes = [len(part) for part in parts[1:]]
    numbered = numbered_rows(kind, rows)
    read = _Rows(
        paths=paths,
        files=np.repeat(np.arange(len(paths)), sizes),
        indices=np.concatenate([np.empty(0, np.int64), *map(np.arange, sizes)]),
        received=rows[RECEIVED].cast(pa.int64()).to_numpy(),
        groups=_groups(rows, numbered),
    )
    found = {
        numbered.series[code]: stored_numbers(numbered.numbers[begin:end], None)
        for code, begin, end in runs(numbered.codes)
    }
    order = np.lexsort((read.indices, read.files, read.received, read.groups))
    if only is not None:
        order = order[_are_among(numbered, only, len(rows))[order]]
    return read.take(order), found


def _read_columns(table: Table, kind: RecordKind, path: str, names: Sequence[str]) -> pa.Table:
    """Read columns of a data file, with the types that the kind has."""
    with table.io.new_input(path).open() as stream:
        read = pq.read_table(stream, columns=list(names), use_threads=False)
    return read.select(names).cast(pa.schema([kind.arrow.field(name) for name in names]))


def _are_among(
    numbered: Numbered, only: Mapping[Series, Stored], count: int
) -> npt.NDArray[np.bool_]:
    are_among = np.zeros(count, dtype=np.bool_)
    for code, begin, end in runs(numbered.codes):
        states = only.get(numbered.series[code], Stored()).states(numbered.numbers[begin:end])
        are_among[numbered.rows[begin:end]] = states != State.ABSENT
    return are_among


def _groups(rows: pa.Table, numbered: Numbered) -> Ints:
    """Number the records: rows of the same record get the same number."""
    groups = np.zeros(len(rows), dtype=np.int64)
    steps = (np.diff(numbered.codes) != 0) | (np.diff(numbered.numbers) != 0)
    groups[numbered.rows[1:]] = np.cumsum(steps)
    is_other = np.ones(len(rows), dtype=np.bool_)
    is_other[numbered.rows] = False
    others = rows.filter(pa.array(is_other))
    names = pc.binary_join_element_wise(
        *(others[name] for name in ("exchange", "symbol", "message_id")), "\0"
    )
    codes = names.combine_chunks().dictionary_encode().indices.to_numpy()
    groups[is_other] = len(rows) + codes
    return groups


def _judge(table: Table, kind: RecordKind, rows: _Rows, keep: Keep | None) -> Doubles:
    """Decide which of the rows of each record stay. They are ascending by record."""
    is_repeated = np.diff(rows.groups, prepend=-1) == 0
    is_lone = ~is_repeated & np.append(~is_repeated[1:], True)[: len(is_repeated)]
    rows = rows.take(np.flatnonzero(~is_lone))
    found = Doubles()
    if not len(rows.groups):
        return found
    values = _values(table, kind, rows)
    starts = np.append(0, np.flatnonzero(np.diff(rows.groups)) + 1)
    sizes = np.diff(np.append(starts, len(rows.groups)))
    first_of = np.repeat(starts, sizes)
    is_first = np.arange(len(first_of)) == first_of
    is_distinct = _are_distinct(kind, values, rows.groups)
    differing = np.flatnonzero(is_distinct & ~is_first)
    found.conflicts = len(differing)
    found.examples = _examples(kind, values, differing[:MAX_CONFLICTS], first_of)
    is_kept = is_first if keep else is_distinct
    if keep is Keep.NEWEST:  # where values differ, the last row stays instead of the first
        has_others = np.repeat(np.add.reduceat(is_distinct, starts) > 1, sizes)
        is_last = np.append(np.diff(first_of) != 0, True)
        is_kept = np.where(has_others, is_last, is_kept)
    dropped = ~is_kept
    for number in np.unique(rows.files[dropped]).tolist():
        here = dropped & (rows.files == number)
        found.drop[rows.paths[number]] = np.sort(rows.indices[here])
    found.rows = int(dropped.sum())
    return found


def _are_distinct(kind: RecordKind, values: pa.Table, groups: Ints) -> npt.NDArray[np.bool_]:
    """Tell which rows say something that no row of their record before them says."""
    are_distinct = np.ones(len(groups), dtype=np.bool_)
    left = np.arange(len(groups))
    while len(left):  # each time, compare with the first row of each record that is left
        is_head = np.diff(groups[left], prepend=-1) != 0
        heads = left[is_head][np.cumsum(is_head) - 1]
        is_same = are_equal(kind, *(values.take(pa.array(index)) for index in (left, heads)))
        is_same |= is_head
        are_distinct[left[is_same & ~is_head]] = False
        left = left[~is_same]
    return are_distinct


def _values(table: Table, kind: RecordKind, rows: _Rows) -> pa.Table:
    """Read what the rows say, in their order."""
    names = ["exchange", "symbol", "source_sequence", *kind.compared, RECEIVED]
    parts: list[pa.Table] = []
    order: list[npt.NDArray[np.intp]] = []
    for number in np.unique(rows.files).tolist():
        here = np.flatnonzero(rows.files == number)
        part = _read_columns(table, kind, rows.paths[number], names)
        parts.append(part.take(pa.array(rows.indices[here])))
        order.append(here)
    values = pa.concat_tables(parts)
    return values.take(pa.array(np.argsort(np.concatenate(order))))


def _examples(
    kind: RecordKind, values: pa.Table, differing: npt.NDArray[np.intp], first_of: Ints
) -> list[ValueConflict]:
    rows, firsts = (
        values.take(pa.array(index)).to_pylist() for index in (differing, first_of[differing])
    )
    return [
        ValueConflict(
            series=Series(row["exchange"], row["symbol"]),
            number=row["source_sequence"],
            stored={name: first[name] for name in kind.compared},
            received={name: row[name] for name in kind.compared},
        )
        for row, first in zip(rows, firsts, strict=True)
    ]
