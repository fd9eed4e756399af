"""Which rows a table takes, and which it stores already: pure, but for the look-up in the table.

Rows without a number of the exchange are always taken. A row whose number the table stores is left
out: as a duplicate if it says the same, else as a conflict. The first one stays.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    number: int | None  # None: of a record without one
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

    def on_any_day(self) -> "Keys":
        """Return the same keys, wherever their rows lie."""
        return replace(
            self,
            first_days=np.zeros_like(self.first_days),
            last_days=np.full_like(self.last_days, np.iinfo(np.int64).max),
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


_NONE: Final[Ints] = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What a table takes of some rows."""

    rows: pa.Table  # those that it does not store yet, in their order
    duplicates: int = 0
    conflicts: int = 0
    examples: Sequence[ValueConflict] = ()  # the first of the conflicts
    added: Mapping[Series, Stored] = field(default_factory=dict)  # to the position, by these rows
    others: Ints = field(default_factory=lambda: _NONE)  # indices of the rows of no series


def admit(
    position: Position,
    kind: RecordKind,
    rows: pa.Table,
    look_up: LookUp | None,
) -> Admission:
    """Choose the rows that a table at `position` does not store yet.

    Without a table to look into, rows in a mixed range are taken.
    """
    numbered = numbered_rows(kind, rows)
    if not len(numbered.rows):
        return Admission(rows=rows, others=np.arange(rows.num_rows))
    judge = _Judge(kind, rows, numbered)
    states = _states(position, numbered)
    asked = np.flatnonzero(judge.is_first & (states != State.ABSENT))
    if len(asked) and look_up is None:
        judge.leave_out(asked[states[asked] == State.STORED])
    elif len(asked) and look_up is not None:
        keys = _keys(position, kind, rows, numbered, asked)
        judge.leave_out_stored(asked, states[asked] == State.STORED, keys, look_up)
    judge.leave_out_repeated()
    return judge.verdict()


class _Judge:
    """Leaves rows out, and compares them with those that stay."""

    def __init__(self, kind: RecordKind, rows: pa.Table, numbered: Numbered) -> None:
        self.is_first = np.ones(len(numbered.rows), dtype=np.bool_)  # with its number, in `rows`
        steps = (np.diff(numbered.numbers) != 0) | (np.diff(numbered.codes) != 0)
        self.is_first[1:] = steps
        self._kind = kind
        self._rows = rows
        self._compared = rows.select([*kind.compared, RECEIVED])
        self._numbered = numbered
        self._is_new = np.ones(rows.num_rows, dtype=np.bool_)
        self._conflicts = 0
        self._examples: list[ValueConflict] = []

    def leave_out(self, index: npt.NDArray[np.intp]) -> None:
        """Leave out numbered rows."""
        self._is_new[self._numbered.rows[index]] = False

    def leave_out_stored(
        self,
        asked: npt.NDArray[np.intp],
        is_stored: npt.NDArray[np.bool_],
        keys: Keys,
        look_up: LookUp,
    ) -> None:
        """Leave out what a table stores of some numbered rows; `keys` are theirs.

        What the position calls stored is looked for on all days before it is taken for new.
        """
        found = look_up(keys)
        self._compare(asked[found.keys], found.rows)
        left = np.setdiff1d(np.flatnonzero(is_stored), found.keys)
        if len(left):
            found = look_up(keys.take(left).on_any_day())
            self._compare(asked[left[found.keys]], found.rows)

    def leave_out_repeated(self) -> None:
        """Leave out rows whose number came before among the rows."""
        repeated = np.flatnonzero(~self.is_first)
        if len(repeated):
            first_of = np.flatnonzero(self.is_first)[np.cumsum(self.is_first) - 1]
            before = self._numbered.rows[first_of[repeated]]
            self._compare(repeated, self._compared.take(pa.array(before)))

    def verdict(self) -> Admission:
        """Return what came of the rows."""
        left_out = len(self._is_new) - int(self._is_new.sum())
        return Admission(
            rows=self._rows.filter(pa.array(self._is_new)) if left_out else self._rows,
            duplicates=left_out - self._conflicts,
            conflicts=self._conflicts,
            examples=self._examples,
            added=self._added(),
            others=self._others(),
        )

    def _others(self) -> Ints:
        is_other = np.ones(self._rows.num_rows, dtype=np.bool_)
        is_other[self._numbered.rows] = False
        return np.flatnonzero(is_other[self._is_new])

    def _compare(self, index: npt.NDArray[np.intp], stored: pa.Table) -> None:
        """Leave out numbered rows; those that differ from the stored ones are conflicts."""
        self.leave_out(index)
        received = self._compared.take(pa.array(self._numbered.rows[index]))
        differing = np.flatnonzero(~are_equal(self._kind, received, stored))
        self._conflicts += len(differing)
        shown = differing[: MAX_CONFLICTS - len(self._examples)]
        pairs = [
            table.select(self._kind.compared).take(pa.array(shown)).to_pylist()
            for table in (received, stored)
        ]
        for at, ours, theirs in zip(index[shown].tolist(), *pairs, strict=True):
            self._examples.append(
                ValueConflict(
                    series=self._numbered.series[self._numbered.codes[at]],
                    number=int(self._numbered.numbers[at]),
                    stored=theirs,
                    received=ours,
                )
            )

    def _added(self) -> dict[Series, Stored]:
        """Return the numbers of the rows that are new, by series."""
        numbered = self._numbered
        keep = self._is_new[numbered.rows]
        codes, numbers = numbered.codes[keep], numbered.numbers[keep]
        days = None
        if not self._kind.is_dense:
            days = rows_days(self._kind, self._rows)[numbered.rows[keep]]
        return {
            numbered.series[code]: stored_numbers(
                numbers[begin:end], None if days is None else days[begin:end]
            )
            for code, begin, end in runs(codes)
        }


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


def are_equal(kind: RecordKind, one: pa.Table, other: pa.Table) -> npt.NDArray[np.bool_]:
    """Tell which rows say the same of their record. An unknown side says nothing."""
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


def stored_numbers(numbers: Ints, days: Ints | None) -> Stored:
    """Describe ascending numbers of one series that are stored, of a dense one without `days`."""
    if days is None:
        return Stored(exact=ranges_of(numbers))
    return Stored(mixed=np.array([[numbers[0], numbers[-1], days.min(), days.max()]]))
