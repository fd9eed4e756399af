"""Detect numbers that a stream skipped: suspected loss."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.ranges import union
from k2cli.storage.opengaps import Hole, OpenGap
from k2cli.storage.position import Position, Series, Stored


@dataclass(frozen=True, slots=True)
class Gap:
    """Missing numbers of a symbol before or within one commit."""

    symbol: str
    first: int  # lowest missing number
    last: int  # highest missing number
    missing: int  # how many between them
    is_restart: bool = False  # published before this run started
    holes: Sequence[Hole] = field(default=(), compare=False)


class GapWatch:
    """Finds the gaps of one stream, whose numbers increase by one."""

    def __init__(self, exchange: str) -> None:
        self.exchange: Final = exchange
        self._streamed: set[str] = set()  # symbols of which this run has stored newer rows
        self._tops: dict[str, int] = {}  # the highest number that was stored before this run

    def gaps(self, position: Position, added: Mapping[Series, Stored]) -> list[Gap]:
        """Return the open gaps above a position after storing more."""
        return [
            gap
            for series, stored in added.items()
            if series.exchange == self.exchange
            for gap in self._gaps(series.symbol, position.of(series), stored)
        ]

    def committed(self, rows: pa.Table, before: Position) -> None:
        """Record that rows are in the table, which had this position before.

        Older rows than those of earlier runs, which fill their gaps, do not show that the symbol is
        streamed.
        """
        new = pc.is_in(rows["symbol"], pa.array(list(self._streamed), pa.string()), skip_nulls=True)
        if pc.all(new).as_py() is not False:
            return
        newest = rows.group_by("symbol").aggregate([("source_sequence", "max")])
        for symbol, number in zip(*(column.to_pylist() for column in newest), strict=True):
            top = self._tops.setdefault(symbol, before.of(Series(self.exchange, symbol)).top)
            if number is not None and number > top:
                self._streamed.add(symbol)

    def has_streamed(self, symbol: str) -> bool:
        """Return whether this run has stored newer trades than the runs before."""
        return symbol in self._streamed

    def _gaps(self, symbol: str, before: Stored, added: Stored) -> Iterator[Gap]:
        """Sum up the gaps above `before`, those of a restart separately."""
        top = before.top
        if len(added.exact) == 1 and added.exact[0, 0] <= top + 1:
            return
        holes = _holes_above(top, before.merged(added))
        is_restart = top >= 0 and symbol not in self._streamed
        restart = [hole for hole in holes if is_restart and hole[0] == top + 1]
        for some in (restart, holes[len(restart) :]):
            if some:
                yield Gap(
                    symbol,
                    first=some[0][0],
                    last=some[-1][1],
                    missing=sum(last - first + 1 for first, last in some),
                    is_restart=some is restart,
                    holes=some,
                )


def _holes_above(top: int, after: Stored) -> Sequence[Hole]:
    ranges = union(after.exact, after.mixed[:, :2])
    ranges = ranges[max(int(np.searchsorted(ranges[:, 1], top)), 0) :].tolist()
    return [(left[1] + 1, right[0] - 1) for left, right in itertools.pairwise(ranges)]


def opened_gaps(
    exchange: str, gaps: Iterable[Gap], *, reason: str, now_s: int
) -> dict[Series, Sequence[OpenGap]]:
    """Describe gaps that were found just now."""
    opened: dict[Series, list[OpenGap]] = {}
    for gap in gaps:
        opened.setdefault(Series(exchange, gap.symbol), []).extend(
            OpenGap(
                first=first,
                last=last,
                reason=reason,
                found_s=now_s,
                is_between_runs=gap.is_restart,
            )
            for first, last in gap.holes
        )
    return {**opened}
