"""Decide which rows are new to a table; pure, except for look-ups in the table.

Rows without an exchange sequence are always accepted. A row whose number is stored is skipped: as a
duplicate if its values are the same, else as a conflict. The first row is kept.

The module is long because the steps of one decision are kept together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.ranges import Ints, ranges_of
from k2cli.records import RecordKind
from k2cli.rejects import shown
from k2cli.storage.numbered import Numbered, numbered_rows
from k2cli.storage.position import Position, Series, State, Stored

RECORD_COLUMNS: Final = ("message_id", "exchange", "symbol")
DAY_US: Final = 86_400_000_000
MAX_CONFLICTS: Final = 100  # of which the values are kept
RECEIVED: Final = "ingestion_timestamp"
_WIDE: Final = pa.decimal128(38, 8)
_UNKNOWN_SIDE: Final = "UNKNOWN"


@dataclass(frozen=True, slots=True, kw_only=True)
class ValueConflict:
    """A row skipped because its number is stored with other values."""

    series: Series
    number: int | None  # None: of a record without one
    text: str  # the record's id for people
    stored: Mapping[str, object]
    received: Mapping[str, object]

    @property
    def differing(self) -> Sequence[str]:
        """The columns whose values differ."""
        return [name for name, value in self.received.items() if value != self.stored[name]]

    def __str__(self) -> str:
        """Describe the values that differ."""
        both = ", ".join(
            f"{name} {_text(self.received[name])} (stored {_text(self.stored[name])})"
            for name in self.differing
        )
        name = self.text if self.number is None else self.number
        return f"{self.series.exchange} {self.series.symbol} {name} is already stored: {both}"


def _text(value: object) -> str:
    return shown(value) or "null"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """Numbers to look up, ascending by series and number, with the possible days of their rows."""

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
        """Return the same keys without limiting the days."""
        return replace(
            self,
            first_days=np.zeros_like(self.first_days),
            last_days=np.full_like(self.last_days, np.iinfo(np.int64).max),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The stored rows of some keys, one per key."""

    keys: Ints  # ascending indices of the keys that are stored
    rows: pa.Table  # the kind's compared columns, and the receive time


class LookUp(Protocol):
    """Looks up rows in a table."""

    def __call__(self, keys: Keys) -> Found:
        """Find the rows of these keys."""


NO_ROWS: Final[Ints] = np.empty(0, dtype=np.int64)  # indices


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """The rows that are new to a table, and the others."""

    rows: pa.Table  # new rows, in order
    kept: Ints  # their indices among the checked rows
    duplicates: int = 0
    conflicting: Ints = field(default_factory=lambda: NO_ROWS)  # of rows skipped with other values
    examples: Sequence[ValueConflict] = ()  # the first of these, in the same order
    added: Mapping[Series, Stored] = field(default_factory=dict)  # added to the position
    others: Ints = field(default_factory=lambda: NO_ROWS)  # in `rows`, those of no series

    @classmethod
    def of_all(cls, rows: pa.Table, others: Ints = NO_ROWS) -> "Admission":
        """Accept all rows."""
        return cls(rows=rows, kept=np.arange(rows.num_rows), others=others)

    @property
    def conflicts(self) -> int:
        """How many rows were skipped because their id is stored with other values."""
        return len(self.conflicting)


def admit(
    position: Position,
    kind: RecordKind,
    rows: pa.Table,
    look_up: LookUp | None,
) -> Admission:
    """Choose the rows that a table at `position` does not store yet.

    Without a table to look up, rows in a mixed range are accepted.
    """
    numbered = numbered_rows(kind, rows)
    if not len(numbered.rows):
        return Admission.of_all(rows, others=np.arange(rows.num_rows))
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


def admit_others(
    kind: RecordKind, admission: Admission, which: Ints, find: Callable[[pa.Table], Found]
) -> Admission:
    """Skip rows without a number that are stored, or repeated among the rows.

    `which` are their ascending indices among the admitted rows. `find` looks up the rows that the
    table stores of some records, given one row of each.
    """
    if not len(which):
        return admission
    left_out = _LeftOut(kind, admission.rows)
    asked = admission.rows.take(pa.array(which))
    codes = record_keys(asked).combine_chunks().dictionary_encode().indices.to_numpy()
    _, first, records = np.unique(codes, return_index=True, return_inverse=True)
    found = find(asked.take(pa.array(first)))
    row_of = np.full(len(first), -1)
    row_of[found.keys] = np.arange(len(found.keys))
    is_stored = row_of[records] >= 0
    left_out.compare(which[is_stored], found.rows.take(pa.array(row_of[records[is_stored]])))
    is_repeated = ~is_stored & (np.arange(len(which)) != first[records])
    left_out.compare(
        which[is_repeated],
        asked.select(left_out.columns).take(pa.array(first[records[is_repeated]])),
    )
    return left_out.admission(admission)


def leave_out(kind: RecordKind, admission: Admission, which: Ints) -> Admission:
    """Skip admitted rows as duplicates, by index."""
    left_out = _LeftOut(kind, admission.rows)
    left_out.is_new[which] = False
    return left_out.admission(admission)


def record_keys(rows: pa.Table) -> pa.ChunkedArray:
    """Return the identities of rows without a number."""
    texts = [rows[name].cast(pa.string()) for name in RECORD_COLUMNS]
    return pc.binary_join_element_wise(*texts, "\0")


class _LeftOut:
    """Skipped rows, and how they differ from the kept ones."""

    def __init__(self, kind: RecordKind, rows: pa.Table) -> None:
        self.is_new = np.ones(rows.num_rows, dtype=np.bool_)
        self.columns: Final = [*kind.compared, RECEIVED]
        self._kind = kind
        self._rows = rows
        self._conflicting: list[Ints] = [NO_ROWS]
        self._examples: list[ValueConflict] = []

    def compare(self, index: Ints, stored: pa.Table) -> None:
        """Skip rows; those that differ from the stored ones are conflicts."""
        self.is_new[index] = False
        received = self._rows.select(self.columns).take(pa.array(index))
        differing = np.flatnonzero(~are_equal(self._kind, received, stored))
        self._conflicting.append(index[differing])
        shown = differing[: MAX_CONFLICTS - len(self._examples)]
        rows = self._rows.take(pa.array(index[shown]))
        self._examples += value_conflicts(self._kind, rows, stored.take(pa.array(shown)))

    def admission(self, before: Admission) -> Admission:
        """Return the remaining rows."""
        left_out = len(self.is_new) - int(self.is_new.sum())
        if not left_out:
            return before
        is_other = np.zeros(len(self.is_new), dtype=np.bool_)
        is_other[before.others] = True
        conflicting = np.concatenate(self._conflicting)
        return replace(
            before,
            rows=self._rows.filter(pa.array(self.is_new)),
            kept=before.kept[self.is_new],
            duplicates=before.duplicates + left_out - len(conflicting),
            conflicting=np.append(before.conflicting, before.kept[conflicting]),
            examples=[*before.examples, *self._examples][:MAX_CONFLICTS],
            others=np.flatnonzero(is_other[self.is_new]),
        )


def value_conflicts(kind: RecordKind, received: pa.Table, stored: pa.Table) -> list[ValueConflict]:
    """Describe rows whose ids are stored with other values, a pair of rows each."""
    names = ["exchange", "symbol", "source_sequence", kind.id_column]
    return [
        ValueConflict(
            series=Series(row["exchange"], row["symbol"]),
            number=row["source_sequence"],
            text=row[kind.id_column],
            stored={name: before[name] for name in kind.compared},
            received={name: row[name] for name in kind.compared},
        )
        for row, before in zip(
            received.select([*names, *kind.compared]).to_pylist(),
            stored.select(kind.compared).to_pylist(),
            strict=True,
        )
    ]


class _Judge:
    """Skips numbered rows, and compares them with the kept ones."""

    def __init__(self, kind: RecordKind, rows: pa.Table, numbered: Numbered) -> None:
        self.is_first = np.ones(len(numbered.rows), dtype=np.bool_)  # with its number, in `rows`
        steps = (np.diff(numbered.numbers) != 0) | (np.diff(numbered.codes) != 0)
        self.is_first[1:] = steps
        self._kind = kind
        self._rows = rows
        self._numbered = numbered
        self._left_out = _LeftOut(kind, rows)

    def leave_out(self, index: npt.NDArray[np.intp]) -> None:
        """Skip numbered rows."""
        self._left_out.is_new[self._numbered.rows[index]] = False

    def leave_out_stored(
        self,
        asked: npt.NDArray[np.intp],
        is_stored: npt.NDArray[np.bool_],
        keys: Keys,
        look_up: LookUp,
    ) -> None:
        """Skip numbered rows that a table stores; `keys` are their keys.

        Rows not found on their day are looked up on all days before they count as new, because one
        of the times may be wrong. For series that only increase, the position has the days.
        """
        found = look_up(keys)
        self._compare(asked[found.keys], found.rows)
        is_left = np.ones(len(asked), dtype=np.bool_) if self._kind.is_dense else is_stored.copy()
        is_left[found.keys] = False
        left = np.flatnonzero(is_left)
        if len(left):
            found = look_up(keys.take(left).on_any_day())
            self._compare(asked[left[found.keys]], found.rows)

    def leave_out_repeated(self) -> None:
        """Skip rows whose number is repeated among the rows."""
        repeated = np.flatnonzero(~self.is_first)
        if len(repeated):
            first_of = np.flatnonzero(self.is_first)[np.cumsum(self.is_first) - 1]
            before = self._numbered.rows[first_of[repeated]]
            stored = self._rows.select(self._left_out.columns).take(pa.array(before))
            self._compare(repeated, stored)

    def verdict(self) -> Admission:
        """Return the remaining rows."""
        is_other = np.ones(self._rows.num_rows, dtype=np.bool_)
        is_other[self._numbered.rows] = False
        everything = Admission.of_all(self._rows, others=np.flatnonzero(is_other))
        return self._left_out.admission(replace(everything, added=self._added()))

    def _compare(self, index: npt.NDArray[np.intp], stored: pa.Table) -> None:
        self._left_out.compare(self._numbered.rows[index], stored)

    def _added(self) -> dict[Series, Stored]:
        """Return the numbers of the rows that are new, by series."""
        numbered = self._numbered
        keep = self._left_out.is_new[numbered.rows]
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


def added_by_part(
    kind: RecordKind, admission: Admission, begins: Ints
) -> list[dict[Series, Stored]]:
    """Return what the new rows add to a position, for each part of the checked rows.

    `begins` are the ascending start indices of the parts.
    """
    numbered = numbered_rows(kind, admission.rows)
    parts = np.searchsorted(begins, admission.kept[numbered.rows], side="right") - 1
    order = np.lexsort((numbered.numbers, numbered.codes, parts))
    count = len(numbered.series)
    numbers = numbered.numbers[order]
    days = rows_days(kind, admission.rows)[numbered.rows[order]]
    added: list[dict[Series, Stored]] = [{} for _ in begins]
    for code, begin, end in runs((parts * count + numbered.codes)[order]):
        part, series = divmod(code, count)
        added[part][numbered.series[series]] = stored_numbers(
            numbers[begin:end], None if kind.is_dense else days[begin:end]
        )
    return added


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
    """Return which rows agree on their record. An unknown side matches any."""
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

    If a series has no exchange times, they are receive times and are not compared.
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
