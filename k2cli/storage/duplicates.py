"""Find records that a table stores more than once, day by day.

Rows of a numbered series are the same record if their numbers are equal, others if their message
ids are. In a dense series, a record stored with different times on different days is found, too.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyiceberg.table import Table

from k2cli.ranges import Ints
from k2cli.records import RecordKind
from k2cli.storage.admission import (
    MAX_CONFLICTS,
    RECEIVED,
    ValueConflict,
    are_equal,
    record_keys,
    runs,
    stored_numbers,
    value_conflicts,
)
from k2cli.storage.datafiles import open_data_file
from k2cli.storage.numbered import Numbered, numbered_rows
from k2cli.storage.position import Series, State, Stored
from k2cli.storage.stored import FileStatistics

_KEYS = ("exchange", "symbol", "source_sequence", "message_id", RECEIVED)
_NONE = np.empty(0, dtype=np.int64)


class Keep(StrEnum):
    """Which row of an id to keep if values differ."""

    FIRST = "first"
    NEWEST = "newest"


@dataclass(slots=True)
class DuplicateRows:
    """Rows that are also stored elsewhere."""

    days: list[int] = field(default_factory=list)  # on which they are: since 1970, UTC
    drop: dict[str, Ints] = field(default_factory=dict)  # by file: ascending row indices
    numbers: Mapping[Series, Stored] = field(default_factory=dict)  # rows checked
    rows: int = 0  # number of dropped rows
    conflicts: int = 0  # rows whose id has another row with other values
    examples: list[ValueConflict] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows of some files: their location and identity."""

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
) -> DuplicateRows:
    """Find rows to drop within a day, and the numbers of dense series on that day.

    Of identical rows, the one received first is kept. Rows of one id with other values are counted;
    without `keep` all of them are kept.
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
) -> DuplicateRows:
    """Find rows to drop among numbers that are stored on several days."""
    paths = files.overlapping(numbers)
    rows, _ = _read(table, kind, paths, only=numbers)
    found = _judge(table, kind, rows, keep)
    found.days = np.unique(files.only(set(found.drop)).days).tolist()
    return found


def _read(
    table: Table,
    kind: RecordKind,
    paths: Sequence[str],
    only: Mapping[Series, Stored] | None = None,
) -> tuple[_Rows, dict[Series, Stored]]:
    """Find the rows of records stored more than once in some files, with their numbers.

    With `only`, rows of other numbers are omitted. Rows are ascending by record, the one that was
    received first before the others. Some 50 bytes of each row of the files are in memory.
    """
    reader = _Reader(table, kind, only)
    files = [reader.read(path) for path in paths]
    records = np.concatenate([np.empty((0, 2), np.int64), *(each.records for each in files)])
    order = np.lexsort((records[:, 1], records[:, 0]))
    is_first = np.ones(len(order), dtype=np.bool_)
    is_first[1:] = (np.diff(records[order], axis=0) != 0).any(axis=1)
    is_lone = is_first & np.append(is_first[1:], True)[: len(is_first)]
    several = order[~is_lone]
    rows = _Rows(
        paths=paths,
        files=np.repeat(np.arange(len(files)), [len(each.indices) for each in files])[several],
        indices=_concatenated(each.indices for each in files)[several],
        received=_concatenated(each.received for each in files)[several],
        groups=np.cumsum(is_first)[~is_lone],
    )
    return rows.take(
        np.lexsort((rows.indices, rows.files, rows.received, rows.groups))
    ), reader.found


@dataclass(frozen=True, slots=True)
class _FileRows:
    """What identifies the rows of one file."""

    records: Ints  # shape (n, 2): a code of the series and the number, or 128 bits of a hash
    indices: Ints  # of each row in the file
    received: Ints  # UTC microseconds


class _Reader:
    """Reads the identities of rows in data files, with one code per series."""

    def __init__(
        self, table: Table, kind: RecordKind, only: Mapping[Series, Stored] | None
    ) -> None:
        self.found: dict[Series, Stored] = {}  # the numbers of the rows
        self._table = table
        self._kind = kind
        self._only = only
        self._codes: dict[Series, int] = {}

    def read(self, path: str) -> _FileRows:
        """Read a file, a row group at a time."""
        parts: list[_FileRows] = [_FileRows(np.empty((0, 2), np.int64), _NONE, _NONE)]
        begin = 0
        with open_data_file(self._table, path, read_dictionary=["exchange", "symbol"]) as file:
            for group in range(file.num_row_groups):
                rows = file.read_row_group(group, list(_KEYS), use_threads=False)
                parts.append(self._take(rows, begin))
                begin += rows.num_rows
        return _FileRows(
            np.concatenate([each.records for each in parts]),
            _concatenated(each.indices for each in parts),
            _concatenated(each.received for each in parts),
        )

    def _take(self, rows: pa.Table, begin: int) -> _FileRows:
        numbered = numbered_rows(self._kind, rows)
        for code, first, last in runs(numbered.codes):
            stored = stored_numbers(numbered.numbers[first:last], None)
            series = numbered.series[code]
            self.found[series] = self.found.get(series, Stored()).merged(stored)
        which = np.arange(rows.num_rows)
        if self._only is not None:
            which = np.flatnonzero(_are_among(numbered, self._only, rows.num_rows))
        received = rows[RECEIVED].cast(pa.int64()).to_numpy()[which]
        return _FileRows(self._records(rows, numbered)[which], begin + which, received)

    def _records(self, rows: pa.Table, numbered: Numbered) -> Ints:
        """Identify the record of each row by two numbers; the first is negative for a hash."""
        records = np.empty((rows.num_rows, 2), dtype=np.int64)
        for code, first, last in runs(numbered.codes):
            known = self._codes.setdefault(numbered.series[code], len(self._codes))
            records[numbered.rows[first:last], 0] = known
        records[numbered.rows, 1] = numbered.numbers
        is_other = np.ones(rows.num_rows, dtype=np.bool_)
        is_other[numbered.rows] = False
        keys = record_keys(rows.filter(pa.array(is_other))).to_pylist()
        hashes = b"".join(hashlib.blake2b(key.encode(), digest_size=16).digest() for key in keys)
        pairs = np.frombuffer(hashes, dtype=np.int64).reshape(-1, 2).copy()
        pairs[:, 0] |= np.iinfo(np.int64).min
        records[is_other] = pairs
        return records


def _concatenated(parts: Iterable[Ints]) -> Ints:
    return np.concatenate([_NONE, *parts])


def _are_among(
    numbered: Numbered, only: Mapping[Series, Stored], count: int
) -> npt.NDArray[np.bool_]:
    are_among = np.zeros(count, dtype=np.bool_)
    for code, begin, end in runs(numbered.codes):
        states = only.get(numbered.series[code], Stored()).states(numbered.numbers[begin:end])
        are_among[numbered.rows[begin:end]] = states != State.ABSENT
    return are_among


def _judge(table: Table, kind: RecordKind, rows: _Rows, keep: Keep | None) -> DuplicateRows:
    """Decide which rows of each record to keep. They are ascending by record."""
    found = DuplicateRows()
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
    shown = differing[:MAX_CONFLICTS]
    both = (values.take(pa.array(index)) for index in (shown, first_of[shown]))
    found.examples = value_conflicts(kind, *both)
    is_kept = is_first if keep else is_distinct
    if keep is Keep.NEWEST:  # if values differ, the last row is kept instead of the first
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
    """Return which rows differ from all earlier rows of their record."""
    are_distinct = np.ones(len(groups), dtype=np.bool_)
    left = np.arange(len(groups))
    while len(left):  # each time, compare with the first remaining row of each record
        is_head = np.diff(groups[left], prepend=-1) != 0
        heads = left[is_head][np.cumsum(is_head) - 1]
        is_same = are_equal(kind, *(values.take(pa.array(index)) for index in (left, heads)))
        is_same |= is_head
        are_distinct[left[is_same & ~is_head]] = False
        left = left[~is_same]
    return are_distinct


def _read_rows(
    table: Table, kind: RecordKind, path: str, names: Sequence[str], indices: Ints
) -> pa.Table:
    """Read some rows of a data file, with the types that the kind has."""
    schema = pa.schema([kind.arrow.field(name) for name in names])
    parts: list[pa.Table] = []
    begin = 0
    with open_data_file(table, path) as file:
        for group in range(file.num_row_groups):
            end = begin + file.metadata.row_group(group).num_rows
            here = np.flatnonzero((indices >= begin) & (indices < end))
            if len(here):
                read = file.read_row_group(group, list(names), use_threads=False)
                found = read.select(names).take(pa.array(indices[here] - begin)).cast(schema)
                parts.append(found.append_column("at", pa.array(here)))
            begin = end
    rows = pa.concat_tables(parts)
    return rows.take(pa.array(np.argsort(rows["at"].to_numpy()))).drop_columns("at")


def _values(table: Table, kind: RecordKind, rows: _Rows) -> pa.Table:
    """Read the values of the rows, in order."""
    names = ["exchange", "symbol", "source_sequence", kind.id_column, *kind.compared, RECEIVED]
    parts: list[pa.Table] = []
    order: list[npt.NDArray[np.intp]] = []
    for number in np.unique(rows.files).tolist():
        here = np.flatnonzero(rows.files == number)
        parts.append(_read_rows(table, kind, rows.paths[number], names, rows.indices[here]))
        order.append(here)
    values = pa.concat_tables(parts)
    return values.take(pa.array(np.argsort(np.concatenate(order))))
