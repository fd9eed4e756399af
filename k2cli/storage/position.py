"""The stored records of the exchanges' numbered series; pure, no I/O.

A series is the records of one exchange and symbol, identified by the exchange's sequence number
(`source_sequence`). The position has, for every series, ranges of stored numbers, as one property
of the newest snapshot: rows and position become visible, or vanish, together.

A number is in one of three states:

- in a range of `stored`: the table has it;
- in a range of `mixed`: the table has some of these numbers, so they must be looked up;
- in neither: the table does not have it.

The property stays small. If a series has more ranges than allowed, those with the smallest gaps
between them become one mixed range. Series whose numbers only increase (update ids of quotes) have
only mixed ranges: a skipped number cannot be distinguished from one that never existed. These
ranges also have the days of their rows.
"""

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from k2cli.errors import BadData
from k2cli.ranges import EMPTY, Ints, Ranges, difference, index_of, union
from k2cli.records import MAX_NUMBER

KEY: Final = "k2.position"  # the snapshot property
MAX_RANGES: Final = 4_000  # of all series together
MAX_SERIES: Final = 5_000  # listed; if there are more, an unlisted series is unknown
_ENCODING: Final = "z2:"
_DAYS_SHAPE: Final = 4  # first and last number, first and last day


class Series(NamedTuple):
    """The records of one exchange and symbol."""

    exchange: str
    symbol: str


class State(IntEnum):
    """The state of a number in a position."""

    ABSENT = 0
    STORED = 1
    UNKNOWN = 2  # must be looked up in the table


_ANY_DAY: Final[Ints] = np.array([0, 1 << 24], dtype=np.int64)
NO_MIXED: Final[Ints] = np.empty((0, _DAYS_SHAPE), dtype=np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """The stored numbers of one series.

    `mixed` has shape (n, 4): first and last number, and the first and last day (days since 1970,
    UTC) of the rows in between; the days are used for series whose numbers only increase.
    """

    exact: Ranges = field(default_factory=lambda: EMPTY)
    mixed: Ints = field(default_factory=lambda: NO_MIXED)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Stored)
            and np.array_equal(self.exact, other.exact)
            and np.array_equal(self.mixed, other.mixed)
        )

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return len(self.exact) + len(self.mixed)

    @property
    def top(self) -> int:
        """The highest number in any range; -1 without one."""
        top = int(self.exact[-1, 1]) if len(self.exact) else -1
        return max(top, int(self.mixed[-1, 1])) if len(self.mixed) else top

    def states(self, numbers: Ints) -> npt.NDArray[np.int8]:
        """Return the `State` of each number."""
        states = np.zeros(len(numbers), dtype=np.int8)
        states[index_of(self.exact, numbers) >= 0] = State.STORED
        if len(self.mixed):
            states[index_of(self.mixed[:, :2], numbers) >= 0] = State.UNKNOWN
        return states

    def days(self, numbers: Ints) -> Ints:
        """Return the first and last possible day of each number's rows, as shape (n, 2).

        The days of numbers outside mixed ranges are unknown.
        """
        index = index_of(self.mixed[:, :2], numbers)
        days = np.tile(_ANY_DAY, (len(numbers), 1))
        days[index >= 0] = self.mixed[index[index >= 0], 2:]
        return days

    def without(self, ranges: Ranges) -> "Stored":
        """Remove numbers that are no longer stored; mixed ranges stay mixed."""
        return replace(self, exact=difference(self.exact, ranges))

    def merged(self, other: "Stored") -> "Stored":
        """Return the union of both."""
        if not len(self.mixed) and not len(other.mixed):
            return Stored(exact=union(self.exact, other.exact))
        mixed = _merge_mixed(np.concatenate((self.mixed, other.mixed)))
        exact = difference(union(self.exact, other.exact), mixed[:, :2])
        return Stored(exact=exact, mixed=mixed)

    def shrunk(self, limit: int) -> "Stored":
        """Keep at most `limit` ranges: merge ranges with the smallest gaps to mixed ranges."""
        if len(self) <= limit:
            return self
        ranges = np.concatenate((_with_days(self.exact), self.mixed))
        is_mixed = np.arange(len(ranges)) >= len(self.exact)
        order = np.argsort(ranges[:, 0])
        ranges, is_mixed = ranges[order], is_mixed[order]
        holes = ranges[1:, 0] - ranges[:-1, 1]
        closed = np.zeros(len(ranges), dtype=np.bool_)  # over the gap before this range
        closed[1 + np.argpartition(holes, len(ranges) - limit - 1)[: len(ranges) - limit]] = True
        starts = np.flatnonzero(~closed)
        group = np.cumsum(~closed) - 1
        sizes = np.bincount(group)
        lone = sizes[group] == 1
        merged = _grouped(ranges, starts)
        mixed = np.concatenate((merged[sizes > 1], ranges[lone & is_mixed]))
        return Stored(
            exact=ranges[lone & ~is_mixed, :2], mixed=mixed[np.argsort(mixed[:, 0], kind="stable")]
        )


def unknown_numbers(ranges: Ranges) -> Stored:
    """Build mixed ranges of a dense series, which must be looked up."""
    return Stored(mixed=_with_days(ranges))


def _with_days(exact: Ranges) -> Ints:
    """Give ranges no days: a first day after every last one."""
    days = np.broadcast_to(np.array([_NO_FIRST_DAY, _NO_LAST_DAY]), exact.shape)
    return np.concatenate((exact, days), axis=1)


_NO_FIRST_DAY: Final = 1 << 30
_NO_LAST_DAY: Final = -1
_NO_DAYS: Final = (0, -1)  # as in the property


def _grouped(ranges: Ints, starts: npt.NDArray[np.intp]) -> Ints:
    """Merge consecutive ranges, of which those at `starts` begin a new one."""
    return np.column_stack(
        (
            ranges[starts, 0],
            np.maximum.reduceat(ranges[:, 1], starts),
            np.minimum.reduceat(ranges[:, 2], starts),
            np.maximum.reduceat(ranges[:, 3], starts),
        )
    )


def _merge_mixed(mixed: Ints) -> Ints:
    """Merge mixed ranges that overlap, and neighbours whose rows lie on the same days."""
    if len(mixed) < 2:  # noqa: PLR2004
        return mixed
    mixed = mixed[np.argsort(mixed[:, 0], kind="stable")]
    reached = np.maximum.accumulate(mixed[:, 1])
    overlaps = mixed[1:, 0] <= reached[:-1] + 1
    same_days = (mixed[1:, 2:] == mixed[:-1, 2:]).all(axis=1) & (mixed[1:, 2] <= mixed[1:, 3])
    return _grouped(mixed, np.append(0, np.flatnonzero(~(overlaps | same_days)) + 1))


def merge_stored(
    one: Mapping[Series, Stored], other: Mapping[Series, Stored]
) -> dict[Series, Stored]:
    """Return the stored numbers of both, by series."""
    both = dict(one)
    for series, stored in other.items():
        both[series] = both.get(series, Stored()).merged(stored)
    return both


@dataclass(frozen=True, slots=True)
class Position:
    """The stored numbers of all series."""

    series: Mapping[Series, Stored] = field(default_factory=dict)
    is_partial: bool = False  # series that are not listed are unknown, not absent

    def of(self, series: Series) -> Stored:
        """Return the stored numbers of one series."""
        return self.series.get(series, _NOTHING if not self.is_partial else _ANYTHING)

    def extended(self, added: Mapping[Series, Stored]) -> "Position":
        """Return the position after storing more of some series, within its limits."""
        return self.updated(
            {series: self.of(series).merged(stored) for series, stored in added.items()}
        )

    def updated(self, changes: Mapping[Series, Stored]) -> "Position":
        """Return the position with other values for some series, within its limits."""
        series = {**self.series, **changes}
        is_partial = self.is_partial or len(series) > MAX_SERIES
        if is_partial:
            kept = [*self.series, *sorted(changes.keys() - self.series.keys())][:MAX_SERIES]
            series = {each: series[each] for each in kept}
        if sum(map(len, series.values())) > MAX_RANGES:
            limit = max(1, MAX_RANGES // len(series))
            series = {each: stored.shrunk(limit) for each, stored in series.items()}
        return Position(series, is_partial)


_NOTHING: Final = Stored()
_ANYTHING: Final = Stored(mixed=np.array([[0, MAX_NUMBER, *_ANY_DAY]], dtype=np.int64))


def encode_position(position: Position) -> str:
    """Encode a position as a compact property: MessagePack, deflated, in base 64.

    A series is a list of whole numbers, for each range: how far its first number is above the
    range before, and how many numbers follow it; of a mixed range, the second one is `-1 - n`, and
    its first day and the number of days after it follow, 0 and -1 where it has no days.
    """
    document: dict[str, dict[str, list[int]]] = {}
    for series, stored in sorted(position.series.items()):
        document.setdefault(series.exchange, {})[series.symbol] = list(_words(stored))
    packed = msgspec.msgpack.encode([position.is_partial, document])
    return _ENCODING + b64encode(zlib.compress(packed, level=5)).decode()


def _words(stored: Stored) -> Iterator[int]:
    if not len(stored.mixed):
        end = 0
        for first, last in stored.exact.tolist():
            yield first - end
            yield last - first
            end = last
        return
    exact = [(first, last, None, None) for first, last in stored.exact.tolist()]
    before = 0
    for first, last, day, last_day in sorted([*exact, *map(tuple, stored.mixed.tolist())]):
        yield first - before
        if day is None:
            yield last - first
        else:
            yield first - last - 1
            yield from (day, last_day - day) if day <= last_day else _NO_DAYS
        before = last


def decode_position(text: str) -> Position:
    """Decode what `encode_position` wrote.

    Raises:
        BadData: the property was not written by this version of k2, or is damaged.
    """
    try:
        if not text.startswith(_ENCODING):
            raise ValueError("unknown encoding")
        packed = zlib.decompress(b64decode(text.removeprefix(_ENCODING), validate=True))
        is_partial, document = _DOCUMENT.decode(packed)
        series = {
            Series(exchange, symbol): _stored(words)
            for exchange, symbols in document.items()
            for symbol, words in symbols.items()
        }
    except (ValueError, zlib.error, binascii.Error, StopIteration) as exc:
        raise BadData(f"the position of the table cannot be read: {exc}") from exc
    return Position(series, is_partial)


_DOCUMENT: Final = msgspec.msgpack.Decoder(tuple[bool, dict[str, dict[str, list[int]]]])


def _stored(words: list[int]) -> Stored:
    exact: list[tuple[int, int]] = []
    mixed: list[tuple[int, int, int, int]] = []
    left = iter(words)
    before = 0
    for step in left:
        first, more = before + step, next(left)
        if more >= 0:
            before = first + more
            exact.append((first, before))
        else:
            before = first - more - 1
            day, more_days = next(left), next(left)
            days = (day, day + more_days) if more_days >= 0 else (_NO_FIRST_DAY, _NO_LAST_DAY)
            mixed.append((first, before, *days))
    return Stored(
        exact=np.array(exact, dtype=np.int64).reshape(-1, 2),
        mixed=np.array(mixed, dtype=np.int64).reshape(-1, _DAYS_SHAPE),
    )
