"""Which rows a table takes, and which it stores already: pure, but for the look-up in the table.

Rows without a number of the exchange are always taken. A row whose number the table stores is left
out: as a duplicate if it says the same, else as a conflict. The first one stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.ranges import Ints, ranges_of
from k2cli.records import RecordKind
from k2cli.storage.numbered import Numbered, numbered_rows
from k2cli.storage.position import Position, Series, State, Stored

DAY_US: Final = 86_400_000_000
MAX_CONFLICTS: Final = 100  # of which the values are kept
RECEIVED: Final = "ingestion_timestamp"
_WIDE: Final = pa.decimal128(38, 8)
_UNKNOWN_SIDE: Final = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueConflict:
    """A row that was left out because its number is stored with other values."""

    series: Series
    number: int
    stored: Mapping[str, object]
    received: Mapping[str, object]

    def __str__(self) -> str:
        """Name the values that differ."""
        both = ", ".join(
            f"{name} {value} (stored {self.stored[name]})"
            for name, value in self.received.items()
            if value != self.stored[name]
        )
        return (
            f"{self.series.exchange} {self.series.symbol} {self.number} is stored already: {both}"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Numbers to look up, ascending by series and number, and on which days their rows can lie."""

    series: Sequence[Series]
    codes: Ints  # of each number's series: its index in `series`
    numbers: Ints
    first_days: Ints  # days since 1970, UTC
    last_days: Ints

    def take(self, index: npt.NDArray[np.intp]) -> "Keys":
        """Return some of the keys."""
        return Keys(
            series=self.series,
            codes=self.codes[index],
            numbers=self.numbers[index],
            first_days=self.first_days[index],
            last_days=self.last_days[index],
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The rows that a table stores of some keys, one for each."""

    keys: Ints  # ascending indices of the keys that are stored
    rows: pa.Table  # the kind's compared columns, and when it was received


class LookUp(Protocol):
    """Asks a table for the rows that it stores."""

    def __call__(self, keys: Keys) -> Found:
        """Find the rows of these keys."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a table takes of some rows."""

    rows: pa.Table  # those that it does not store yet, in their order
    duplicates: int = 0
    conflicts: int = 0
    examples: Sequence[ValueConflict] = ()  # the first of the conflicts
    added: Mapping[Series, Stored] = field(default_factory=dict)  # to the position, by these rows


@dataclass(slots=True)
class _Verdicts:
    """What is known of each row so far."""

    is_left_out: npt.NDArray[np.bool_]
    conflicts: list[ValueConflict] = field(default_factory=list)
    conflict_count: int = 0


def admit(
    position: Position,
    kind: RecordKind,
    rows: pa.Table,
    look_up: LookUp | None,
) -> Admission:
    """Choose the rows that a table at `position` does not store yet.

    Without a table to look into, rows of a dense series in a mixed range are taken, those of
    other series are not.
    """
    numbered = numbered_rows(kind, rows)
    if not len(numbered.rows):
        return Admission(rows=rows)
    verdicts = _Verdicts(np.zeros(rows.num_rows, dtype=np.bool_))
    firsts = _first_occurrences(numbered)
    states = _states(position, numbered)
    asked = np.flatnonzero(firsts & (states != State.ABSENT))
    if len(asked):
        _leave_out_stored(position, kind, rows, numbered, states, asked, look_up, verdicts)
    if not firsts.all():
        _leave_out_repeated(kind, rows, numbered, firsts, verdicts)
    left_out = int(verdicts.is_left_out.sum())
    is_new = ~verdicts.is_left_out
    return Admission(
        rows=rows.filter(pa.array(is_new)) if left_out else rows,
        duplicates=left_out - verdicts.conflict_count,
        conflicts=verdicts.conflict_count,
        examples=verdicts.conflicts,
        added=_added(kind, rows, numbered, is_new),
    )


def _first_occurrences(numbered: Numbered) -> npt.NDArray[np.bool_]:
    is_first = np.ones(len(numbered.rows), dtype=np.bool_)
    is_first[1:] = (np.diff(numbered.numbers) != 0) | (np.diff(numbered.codes) != 0)
    return is_first


def _states(position: Position, numbered: Numbered) -> npt.NDArray[np.int8]:
    states = np.zeros(len(numbered.rows), dtype=np.int8)
    for code, begin, end in runs(numbered.codes):
        stored = position.of(numbered.series[code])
        if len(stored):
            states[begin:end] = stored.states(numbered.numbers[begin:end])
    return states


def runs(codes: Ints) -> list[tuple[int, int, int]]:
    """Return code, begin and end of each run of equal codes."""
    if not len(codes):
        return []
    begins = np.append(0, np.flatnonzero(np.diff(codes)) + 1)
    ends = np.append(begins[1:], len(codes))
    return list(zip(codes[begins].tolist(), begins.tolist(), ends.tolist(), strict=True))


def _leave_out_stored(
    position: Position,
    kind: RecordKind,
    rows: pa.Table,
    numbered: Numbered,
    states: npt.NDArray[np.int8],
    asked: npt.NDArray[np.intp],
    look_up: LookUp | None,
    verdicts: _Verdicts,
) -> None:
    """Leave out the rows that the table stores."""
    if look_up is None:
        is_stored = (states[asked] == State.STORED) | (not kind.is_dense)
        verdicts.is_left_out[numbered.rows[asked[is_stored]]] = True
        return
    keys = _keys(position, kind, rows, numbered, asked)
    found = look_up(keys)
    left = np.setdiff1d(np.flatnonzero(states[asked] == State.STORED), found.keys)
    _compare(kind, rows, numbered, asked[found.keys], found.rows, verdicts)
    if len(left):  # stored with another time, on another day
        wide = keys.take(left)
        wide.first_days[:], wide.last_days[:] = 0, np.iinfo(np.int64).max
        found = look_up(wide)
        _compare(kind, rows, numbered, asked[left[found.keys]], found.rows, verdicts)


def _keys(
    position: Position,
    kind: RecordKind,
    rows: pa.Table,
    numbered: Numbered,
    asked: npt.NDArray[np.intp],
) -> Keys:
    codes, numbers = numbered.codes[asked], numbered.numbers[asked]
    days = rows_days(kind, rows)[numbered.rows[asked]]
    first_days, last_days = days.copy(), days.copy()
    if not kind.is_dense:  # their times are when they were received: the position has their days
        for code, begin, end in runs(codes):
            bounds = position.of(numbered.series[code]).days(numbers[begin:end])
            first_days[begin:end], last_days[begin:end] = bounds.T
    return Keys(
        series=numbered.series,
        codes=codes,
        numbers=numbers,
        first_days=first_days,
        last_days=last_days,
    )


def rows_days(kind: RecordKind, rows: pa.Table) -> Ints:
    """Return the day of each row, in days since 1970, UTC."""
    days: Ints = rows[kind.partition_by].cast(pa.int64()).to_numpy() // DAY_US
    return days


def _leave_out_repeated(
    kind: RecordKind,
    rows: pa.Table,
    numbered: Numbered,
    firsts: npt.NDArray[np.bool_],
    verdicts: _Verdicts,
) -> None:
    """Leave out rows whose number came before in the same rows."""
    repeated = np.flatnonzero(~firsts)
    first_of = np.flatnonzero(firsts)[np.cumsum(firsts) - 1]
    compared = rows.select([*kind.compared, RECEIVED])
    before = compared.take(pa.array(numbered.rows[first_of[repeated]]))
    _compare(kind, rows, numbered, repeated, before, verdicts)


def _compare(
    kind: RecordKind,
    rows: pa.Table,
    numbered: Numbered,
    index: npt.NDArray[np.intp],
    stored: pa.Table,
    verdicts: _Verdicts,
) -> None:
    """Leave rows out that are stored; those that differ from the stored ones are conflicts."""
    taken = numbered.rows[index]
    verdicts.is_left_out[taken] = True
    received = rows.select([*kind.compared, RECEIVED]).take(pa.array(taken))
    differing = np.flatnonzero(~_are_equal(kind, received, stored))
    verdicts.conflict_count += len(differing)
    shown = pa.array(differing[: MAX_CONFLICTS - len(verdicts.conflicts)])
    ours = received.take(shown).select(kind.compared).to_pylist()
    theirs = stored.take(shown).select(kind.compared).to_pylist()
    for at, row, other in zip(index[shown.to_numpy()].tolist(), ours, theirs, strict=True):
        series = numbered.series[numbered.codes[at]]
        number = int(numbered.numbers[at])
        verdicts.conflicts.append(
            ValueConflict(series=series, number=number, stored=other, received=row)
        )


def _are_equal(kind: RecordKind, one: pa.Table, other: pa.Table) -> npt.NDArray[np.bool_]:
    """Tell which rows say the same. An unknown side says nothing."""
    are_equal = np.ones(one.num_rows, dtype=np.bool_)
    for name in kind.compared:
        if name == kind.partition_by:
            are_equal &= _are_times_equal(kind, one, other)
            continue
        mine, theirs = one[name], other[name]
        if pa.types.is_decimal(mine.type):
            mine, theirs = mine.cast(_WIDE), theirs.cast(_WIDE)
        same = pc.or_(
            pc.fill_null(pc.equal(mine, theirs), fill_value=False),
            pc.and_(mine.is_null(), theirs.is_null()),
        )
        if name == "side":
            for side in (mine, theirs):
                same = pc.or_(same, pc.equal(side, _UNKNOWN_SIDE))
        are_equal &= same.to_numpy()
    return are_equal


def _are_times_equal(kind: RecordKind, one: pa.Table, other: pa.Table) -> npt.NDArray[np.bool_]:
    """Compare times to the precision that both have: microseconds, or milliseconds.

    Where a series has no times of the exchange, they are when each was received, and say nothing.
    """
    mine, theirs = (each[kind.partition_by].cast(pa.int64()).to_numpy() for each in (one, other))
    is_rough = (mine % 1000 == 0) | (theirs % 1000 == 0)
    are_equal: npt.NDArray[np.bool_] = (mine == theirs) | (
        is_rough & (mine // 1000 == theirs // 1000)
    )
    for each, times in ((one, mine), (other, theirs)):
        are_equal |= each[RECEIVED].cast(pa.int64()).to_numpy() == times
    return are_equal


def _added(
    kind: RecordKind, rows: pa.Table, numbered: Numbered, is_new: npt.NDArray[np.bool_]
) -> dict[Series, Stored]:
    """Return the numbers of the rows that are new, by series."""
    keep = is_new[numbered.rows]
    codes, numbers = numbered.codes[keep], numbered.numbers[keep]
    days = None if kind.is_dense else rows_days(kind, rows)[numbered.rows[keep]]
    return {
        numbered.series[code]: stored_numbers(
            numbers[begin:end], None if days is None else days[begin:end]
        )
        for code, begin, end in runs(codes)
    }


def stored_numbers(numbers: Ints, days: Ints | None) -> Stored:
    """Describe ascending numbers of one series that are stored, of a dense one without `days`."""
    if days is None:
        return Stored(exact=ranges_of(numbers))
    return Stored(mixed=np.array([[numbers[0], numbers[-1], days.min(), days.max()]]))
