"""How far a stream has come, and which rows are new: pure, no I/O.

A stream's position is, for every symbol, which of the exchange's numbers the table holds, as a
few ranges. Rows inside a range are there already (a reconnect, a second streamer, a replay) and
are left out; rows in a hole are late and welcome. The position is one property of the newest
snapshot, so rows and position become visible, or vanish, together.
"""

import base64
import binascii
import itertools
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2cli.errors import BadData

Range = tuple[int, int]  # first and last number, both held
Ranges = tuple[Range, ...]  # ascending, with at least one number missing between two

MAX_RANGES: Final = 8192  # of all symbols together; the lowest holes of a symbol close first
MIN_RANGES: Final = 4  # that every symbol may keep
_ENCODING: Final = "z1:"


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers of a symbol that are missing in front of or within one commit: suspected loss."""

    symbol: str
    first: int  # lowest missing number
    last: int  # highest missing number
    missing: int  # how many between them
    is_restart: bool = False  # they passed by before this run began


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What a batch of rows adds to a table that stands at some position."""

    rows: pa.Table  # those that the table does not hold yet, in their order
    duplicates: int  # how many were left out
    reached: str  # the position after them, as the property's value
    gaps: Sequence[Gap] = ()
    tops: Mapping[str, int] | None = None  # highest number of each symbol in the batch


class Position(Protocol):
    """A source's way of telling what is new."""

    @property
    def key(self) -> str:
        """Name of its snapshot property."""

    def advance(self, held: str | None, rows: pa.Table) -> Advance:
        """Tell which rows a table at position `held` (None: never written to) does not hold."""

    def committed(self, advance: Advance) -> None:
        """Take note that the rows of this advance are in the table."""


class StreamPosition:
    """The position of an exchange's stream in one table.

    With `is_dense` numbers count up by one and a hole is a gap. Otherwise (update ids of quotes)
    numbers only increase, and all between the first and the last one seen without an
    interruption count as seen.
    """

    def __init__(self, *, series: str, is_dense: bool) -> None:
        self.key = f"k2.position.{series}"
        self._is_dense = is_dense
        self._tops: dict[str, int] = {}  # since the last interruption
        self._streamed: set[str] = set()  # symbols of which this run has committed rows

    def interrupted(self) -> None:
        """Take note that the connection was lost: what follows may not join what came before."""
        self._tops.clear()

    def committed(self, advance: Advance) -> None:
        """Remember up to where the stream ran on without an interruption."""
        self._tops.update(advance.tops or {})
        self._streamed.update(advance.tops or {})

    def advance(self, held: str | None, rows: pa.Table) -> Advance:
        """Split rows into new ones and duplicates, by `symbol` and `source_sequence`."""
        position = decode_position(held) if held else {}
        symbols = rows["symbol"].combine_chunks().dictionary_encode()
        codes = symbols.indices.to_numpy()
        numbers = rows["source_sequence"].to_numpy()
        order = np.lexsort((numbers, codes))
        names = symbols.dictionary.to_pylist()
        bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
        is_new = np.zeros(len(order), dtype=np.bool_)
        gaps: list[Gap] = []
        tops: dict[str, int] = {}
        limit = max(MIN_RANGES, MAX_RANGES // len(position.keys() | set(names)))
        for code, symbol in enumerate(names):
            places = order[bounds[code] : bounds[code + 1]]
            batch = numbers[places]
            ranges = position.get(symbol, ())
            fresh = (np.diff(batch, prepend=-1) != 0) & ~_covered(ranges, batch)
            is_new[places[fresh]] = True
            joined = _join(ranges, self._runs(symbol, batch[fresh]))
            tops[symbol] = int(batch[-1])
            if self._is_dense:
                gaps += self._gaps(symbol, ranges, joined)
            position[symbol] = _closed(joined, limit)
        new_rows = rows if is_new.all() else rows.filter(pa.array(is_new))
        return Advance(
            rows=new_rows,
            duplicates=rows.num_rows - new_rows.num_rows,
            reached=encode_position(position),
            gaps=gaps,
            tops=tops,
        )

    def _gaps(self, symbol: str, before: Ranges, after: Ranges) -> list[Gap]:
        """Sum up the holes that opened above `before`, those of a restart on their own."""
        holes = _holes_above(before, after)
        is_restart = bool(before) and symbol not in self._streamed
        restart = [hole for hole in holes if is_restart and hole[0] == before[-1][1] + 1]
        skipped = holes[len(restart) :]
        return [
            Gap(
                symbol,
                first=some[0][0],
                last=some[-1][1],
                missing=sum(last - first + 1 for first, last in some),
                is_restart=some is restart,
            )
            for some in (restart, skipped)
            if some
        ]

    def _runs(self, symbol: str, numbers: npt.NDArray[np.int64]) -> list[Range]:
        if len(numbers) == 0:
            return []
        if not self._is_dense:
            first = min(self._tops.get(symbol, int(numbers[0])) + 1, int(numbers[0]))
            return [(first, int(numbers[-1]))]
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 2) != 1)
        firsts, lasts = numbers[starts], numbers[np.append(starts[1:], len(numbers)) - 1]
        return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def _covered(ranges: Ranges, numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    covered = np.zeros(len(numbers), dtype=np.bool_)
    if ranges:
        firsts, lasts = np.array(ranges, dtype=np.int64).T
        place = np.searchsorted(firsts, numbers, side="right") - 1
        np.logical_and(place >= 0, numbers <= lasts[place], out=covered)
    return covered


def _join(ranges: Ranges, runs: Sequence[Range]) -> Ranges:
    joined: list[Range] = []
    for first, last in sorted((*ranges, *runs)):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return tuple(joined)


def _holes_above(before: Ranges, after: Ranges) -> list[Range]:
    top = before[-1][1] if before else -1
    return [
        (left[1] + 1, right[0] - 1) for left, right in itertools.pairwise(after) if left[1] >= top
    ]


def _closed(ranges: Ranges, limit: int) -> Ranges:
    surplus = len(ranges) - limit
    if surplus <= 0:
        return ranges
    return ((ranges[0][0], ranges[surplus][1]), *ranges[surplus + 1 :])


def encode_position(position: Mapping[str, Ranges]) -> str:
    """Write a position as a compact property: a line a symbol, `BTCUSDT 3735685016+7999 ...`
    (first number and how many follow it), deflated, in base 85; some 10 bytes a symbol.
    """
    lines = [
        " ".join([symbol, *(f"{first}+{last - first}" for first, last in ranges)])
        for symbol, ranges in sorted(position.items())
    ]
    packed = zlib.compress("\n".join(lines).encode(), level=6)
    return _ENCODING + base64.b85encode(packed).decode()


def decode_position(text: str) -> dict[str, Ranges]:
    """Read what `encode_position` wrote.

    Raises:
        BadData: the property is not ours, or damaged.
    """
    try:
        if not text.startswith(_ENCODING):
            raise ValueError("unknown encoding")
        packed = base64.b85decode(text.removeprefix(_ENCODING))
        position: dict[str, Ranges] = {}
        for line in zlib.decompress(packed).decode().splitlines():
            symbol, *words = line.split(" ")
            pairs = [(int(first), int(more)) for first, more in (w.split("+") for w in words)]
            position[symbol] = tuple((first, first + more) for first, more in pairs)
    except (ValueError, zlib.error, binascii.Error) as exc:
        raise BadData(f"the table's stream position cannot be read: {exc}") from exc
    return position
