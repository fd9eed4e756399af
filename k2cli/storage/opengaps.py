"""What is known about the gaps of the numbered series; pure, no I/O.

A gap is a range of numbers that the table does not store and that lies between stored ones. The
position already shows the gaps; an `OpenGap` adds why it is open, when it was found, and when k2
last tried to fill it. This is one more property of the newest snapshot, next to the position: a
commit that opens a gap explains it as well.

The property may lag behind the position, so gaps are always read without the numbers that are
stored by now. Therefore neighbours may be merged over stored numbers, which keeps the property
small.
"""

import binascii
import zlib
from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Final, Self, TypeVar

import msgspec

from k2cli.errors import BadData
from k2cli.ranges import Ranges
from k2cli.storage.position import Position, Series

KEY: Final = "k2.gaps"  # the snapshot property
MAX_GAPS: Final = 1_000  # of all series together
_ENCODING: Final = "g1:"
_LONGEST_REASON: Final = 200  # characters

Hole = tuple[int, int]  # first and last number that is missing


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenGap:
    """Missing numbers of one series, and what is known about them. Times are UTC seconds."""

    first: int
    last: int
    reason: str
    found_s: int
    tried_s: int = 0  # when k2 last asked the exchange for them; 0: never
    attempts: int = 0  # how often it asked in vain
    is_between_runs: bool = False  # published while no stream was running

    @property
    def count(self) -> int:
        """How many numbers there are from the first to the last."""
        return self.last - self.first + 1

    def merged(self, after: Self) -> Self:
        """Return one gap that covers this one, the next one, and everything in between.

        It has the reason of its larger part, was found with the older one, and tried with the newer
        one.
        """
        return replace(
            after if after.count > self.count else self,
            first=self.first,
            last=after.last,
            found_s=min(self.found_s, after.found_s),
            tried_s=max(self.tried_s, after.tried_s),
            attempts=max(self.attempts, after.attempts),
        )


Gap = TypeVar("Gap", bound=OpenGap)
OpenGaps = Mapping[Series, Sequence[OpenGap]]  # ascending and disjoint


def outside(spans: Iterable[Hole], ranges: Iterable[Sequence[int]]) -> Iterator[tuple[int, Hole]]:
    """Yield the parts of spans that are in none of the ranges, with the index of their span.

    Both are ascending and disjoint.
    """
    left = iter(ranges)
    current = next(left, None)
    for index, (first, last) in enumerate(spans):
        begin = first
        while current is not None and current[1] < begin:
            current = next(left, None)
        while current is not None and current[0] <= last:
            if current[0] > begin:
                yield index, (begin, current[0] - 1)
            begin = current[1] + 1
            if begin > last:
                break
            current = next(left, None)
        if begin <= last:
            yield index, (begin, last)


def without(gaps: Sequence[Gap], ranges: Ranges | Sequence[Hole]) -> list[Gap]:
    """Remove numbers from gaps."""
    rows = ranges if isinstance(ranges, Sequence) else _near(gaps, ranges)
    spans = ((gap.first, gap.last) for gap in gaps)
    return [
        gaps[index]
        if (first, last) == (gaps[index].first, gaps[index].last)
        else replace(gaps[index], first=first, last=last)
        for index, (first, last) in outside(spans, rows)
    ]


def _near(gaps: Sequence[Gap], ranges: Ranges) -> list[Hole]:
    """Return the ranges that may overlap gaps."""
    if not gaps or not len(ranges):
        return []
    begin = ranges[:, 1].searchsorted(gaps[0].first)
    end = ranges[:, 0].searchsorted(gaps[-1].last, side="right")
    return [(first, last) for first, last in ranges[begin:end].tolist()]


def overlay(older: Sequence[Gap], newer: Sequence[Gap]) -> list[Gap]:
    """Return both, and of numbers that are in both what is newer."""
    if not newer:
        return list(older)
    kept = without(older, [(gap.first, gap.last) for gap in newer])
    return sorted([*kept, *newer], key=lambda gap: gap.first)


def close_stored(gaps: OpenGaps, position: Position) -> dict[Series, Sequence[OpenGap]]:
    """Return what is still open at a position; numbers in mixed ranges may be."""
    left = {series: without(some, position.of(series).exact) for series, some in gaps.items()}
    return {series: some for series, some in left.items() if some}


def shrunk(
    gaps: Mapping[Series, Sequence[Gap]], limit: int = MAX_GAPS
) -> Mapping[Series, Sequence[Gap]]:
    """Merge neighbours within series if there are more than `limit` gaps.

    Equal neighbours are merged first, then those with the fewest numbers between them. There may
    still be more if there are as many series.
    """
    return gaps if sum(map(len, gaps.values())) <= limit else _shrink(gaps, limit)


def _shrink(gaps: Mapping[Series, Sequence[Gap]], limit: int) -> Mapping[Series, Sequence[Gap]]:
    equal: dict[Series, Sequence[Gap]] = {
        series: list(_merge_equal(some)) for series, some in gaps.items()
    }
    excess = sum(map(len, equal.values())) - limit
    if excess <= 0:
        return equal
    distances = sorted(
        (right.first - left.last, series, index)
        for series, some in equal.items()
        for index, (left, right) in enumerate(pairwise(some))
    )
    closed = {(series, index) for _, series, index in distances[:excess]}
    return {
        series: _merge_at(some, [index for index in range(len(some)) if (series, index) in closed])
        for series, some in equal.items()
    }


def _merge_equal(gaps: Sequence[Gap]) -> Iterator[Gap]:
    pending: Gap | None = None
    for gap in gaps:
        if pending is not None and replace(gap, first=pending.first, last=pending.last) == pending:
            pending = replace(pending, last=gap.last)
            continue
        if pending is not None:
            yield pending
        pending = gap
    if pending is not None:
        yield pending


def _merge_at(gaps: Sequence[Gap], indices: Iterable[int]) -> list[Gap]:
    """Merge the gaps at these indices with their successors."""
    after = {index + 1 for index in indices}
    merged: list[Gap] = []
    for index, gap in enumerate(gaps):
        if index in after:
            merged[-1] = merged[-1].merged(gap)
        else:
            merged.append(gap)
    return merged


def encode_open_gaps(gaps: OpenGaps) -> str:
    """Encode gaps as compact text: MessagePack, deflated, in base 64; "" without gaps.

    It is the list of reasons, and for each series a list of numbers, seven for each gap: how far
    its first number is above the gap before, how many numbers follow it, the index of its reason,
    when it was found, the time from then to the last attempt or -1, the number of attempts, and 1
    if it was opened between two runs.
    """
    reasons: dict[str, int] = {}
    document: dict[str, dict[str, list[int]]] = {}
    for series, some in sorted(gaps.items()):
        if some:
            document.setdefault(series.exchange, {})[series.symbol] = list(_words(some, reasons))
    if not document:
        return ""
    packed = msgspec.msgpack.encode([list(reasons), document])
    return _ENCODING + b64encode(zlib.compress(packed, level=5)).decode()


def _words(gaps: Sequence[OpenGap], reasons: dict[str, int]) -> Iterator[int]:
    before = 0
    for gap in gaps:
        yield gap.first - before
        yield gap.last - gap.first
        yield reasons.setdefault(gap.reason[:_LONGEST_REASON], len(reasons))
        yield gap.found_s
        yield max(gap.tried_s - gap.found_s, 0) if gap.tried_s else -1
        yield gap.attempts
        yield int(gap.is_between_runs)
        before = gap.last


@lru_cache(maxsize=8)
def decode_open_gaps(text: str) -> OpenGaps:
    """Decode what `encode_open_gaps` wrote.

    Raises:
        BadData: the property was not written by this version of k2, or is damaged.
    """
    if not text:
        return {}
    try:
        if not text.startswith(_ENCODING):
            raise ValueError("unknown encoding")
        packed = zlib.decompress(b64decode(text.removeprefix(_ENCODING), validate=True))
        reasons, document = _DOCUMENT.decode(packed)
        return {
            Series(exchange, symbol): list(_gaps(words, reasons))
            for exchange, symbols in document.items()
            for symbol, words in symbols.items()
        }
    except (ValueError, zlib.error, binascii.Error, IndexError) as exc:
        raise BadData(f"the open gaps cannot be read: {exc}") from exc


_DOCUMENT: Final = msgspec.msgpack.Decoder(tuple[list[str], dict[str, dict[str, list[int]]]])
_WORDS: Final = 7  # per gap


def _gaps(words: list[int], reasons: list[str]) -> Iterator[OpenGap]:
    before = 0
    for index in range(0, len(words), _WORDS):
        step, more, reason, found_s, wait_s, attempts, is_between = words[index : index + _WORDS]
        first = before + step
        before = first + more
        yield OpenGap(
            first=first,
            last=before,
            reason=reasons[reason],
            found_s=found_s,
            tried_s=found_s + wait_s if wait_s >= 0 else 0,
            attempts=attempts,
            is_between_runs=bool(is_between),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GapNotes:
    """What a stream knows about gaps, for its next commit."""

    reason: str  # of the gaps that the commit opens
    now_s: int
    updates: OpenGaps  # of gaps that were opened before
    filled: Mapping[Series, Sequence[Hole]]  # numbers of rows in the commit, or in one before

    def added(
        self, gaps: OpenGaps, opened: OpenGaps, position: Position
    ) -> dict[Series, Sequence[OpenGap]]:
        """Return all open gaps after a commit that opens some and reaches this position."""
        noted = dict(gaps)
        for series in opened.keys() | self.updates.keys():
            older = overlay(opened.get(series, ()), noted.get(series, ()))
            noted[series] = overlay(older, self.updates.get(series, ()))
        for series, filled in self.filled.items():
            if len(position.of(series).mixed):  # the position alone does not show them
                noted[series] = without(noted.get(series, ()), filled)
        return close_stored(noted, position)


def close_in_properties(properties: Mapping[str, str], position: Position) -> dict[str, str]:
    """Return a snapshot's properties without the gaps that are closed at its position."""
    text = properties.get(KEY)
    if text is None:
        return dict(properties)
    return with_open_gaps(properties, close_stored(decode_open_gaps(text), position))


def with_open_gaps(properties: Mapping[str, str], gaps: OpenGaps) -> dict[str, str]:
    """Return a snapshot's properties with other open gaps."""
    rest = {key: value for key, value in properties.items() if key != KEY}
    text = encode_open_gaps(_shrink(gaps, MAX_GAPS))
    return {**rest, KEY: text} if text else rest
