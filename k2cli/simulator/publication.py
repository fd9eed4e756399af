"""When the ids of a symbol are published: every id has one time, whoever receives it.

`LiveMarket` trades at a fixed rate, so the time of an id is a function. Otherwise an id is
published when the first connection takes it, and `SentIds` remembers when that was.
"""

from array import array
from bisect import bisect_right
from dataclasses import dataclass
from typing import Final

import numpy as np

from k2cli.simulator.frames import Ints

_SECOND_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMarket:
    """A market that trades at a fixed rate in every stream, whether anyone listens or not."""

    first_id: int
    began_us: int
    rate: float  # ids per second and stream
    jump_us: int = 0  # how far the exchange's clock is off in every second block of ids
    jump_every: int = 1000  # ids per block

    def end(self, now_us: int) -> int:
        """Return the id after the last one that is published."""
        passed_us = max(now_us - self.began_us, 0)
        return self.first_id + int(passed_us * self.rate / _SECOND_US)

    def times(self, ids: Ints) -> Ints:
        """Return when these ids are published, by the exchange's clock."""
        number = ids - self.first_id
        times = self.began_us + np.ceil((number + 1) * (_SECOND_US / self.rate)).astype(np.int64)
        is_off = number // self.jump_every % 2
        shown: Ints = times + is_off * self.jump_us
        return shown


class SentIds:
    """The ids that connections have taken from a stream, in consecutive blocks.

    Within a block the times are evenly spread; times never decrease. The oldest blocks are
    forgotten.
    """

    def __init__(self, first_id: int) -> None:
        self.end = first_id  # the id after the last one
        self._last_us = 0  # when that was published
        self._firsts = array("q")
        self._since_us = array("q")
        self._spans_us = array("q")

    @property
    def first(self) -> int:
        """The oldest id whose time is known."""
        return self._firsts[0] if self._firsts else self.end

    def send(self, ids: range, *, since_us: int, span_us: int, most_blocks: int) -> bool:
        """Publish those of these ids that were not published before, up to `since_us + span_us`.

        Returns whether all ids have times that are spread evenly over the span: all are new, and
        none before were published later.
        """
        if ids.stop <= self.end:
            return False
        is_even = ids.start == self.end and since_us >= self._last_us
        until_us = max(since_us + span_us, self._last_us)
        since_us = max(since_us, self._last_us)
        self._firsts.append(self.end)
        self._since_us.append(since_us)
        self._spans_us.append(until_us - since_us)
        self.end, self._last_us = ids.stop, until_us
        if len(self._firsts) >= 2 * most_blocks:
            for column in (self._firsts, self._since_us, self._spans_us):
                del column[:most_blocks]
        return is_even

    def times(self, ids: Ints) -> Ints:
        """Return when these ascending ids were published; forgotten ones before the first known."""
        if not len(ids):
            return ids
        begin = max(bisect_right(self._firsts, int(ids[0])) - 1, 0)
        end = bisect_right(self._firsts, int(ids[-1]))
        firsts = np.array(self._firsts[begin : end + 1], dtype=np.int64)
        if end == len(self._firsts):
            firsts = np.append(firsts, self.end)
        at = np.maximum(np.searchsorted(firsts, ids, "right") - 1, 0)
        since = np.array(self._since_us[begin:end], dtype=np.int64)[at]
        span = np.array(self._spans_us[begin:end], dtype=np.int64)[at]
        times: Ints = since + span * (ids - firsts[at] + 1) // np.diff(firsts)[at]
        return times
