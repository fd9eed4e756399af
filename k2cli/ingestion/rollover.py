"""When a connection is replaced, and when its successor may take over; no I/O.

Exchanges cut every connection after a time, 24 hours for instance. Before that a second one is
opened. Both deliver until the successor has delivered every stream that the other one does.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final, Literal

RolloverReason = Literal["age", "schedule", "shutdown", "silence"]

DELAY_S: Final = 0.5  # of the successor's frames, so that they do not overtake the other ones
SETTLE_S: Final = 1.0  # from the last stream's first frame until the successor takes over
_OLDEST: Final = 0.96  # share of the lifetime; 23 of 24 hours
_YOUNGEST: Final = 0.90
_SPREAD_S: Final = 120.0  # of the connections of one schedule

Handover = Literal["wait", "take over", "give up"]


def parse_daily(text: str) -> time:
    """Parse a daily time of UTC, such as 03:00Z.

    Raises:
        ValueError: it is not one.
    """
    for pattern in ("%H:%MZ", "%H:%M:%SZ"):
        try:
            return datetime.strptime(text.strip().upper(), pattern).replace(tzinfo=UTC).timetz()
        except ValueError:
            continue
    raise ValueError(f"{text!r} is not a daily time in UTC such as 03:00Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """When one connection is replaced, at random within limits: not all at the same time."""

    age_s: float  # at which it is
    at: datetime | None  # or at this time, if that is sooner

    @classmethod
    def of(cls, lifetime_s: float, daily: time | None, now: datetime) -> "Plan":
        """Plan for a connection that is opened now."""
        age_s = lifetime_s * random.uniform(_YOUNGEST, _OLDEST)
        return cls(age_s=age_s, at=None if daily is None else _next_daily(daily, now))

    def reason(self, age_s: float, now: datetime) -> RolloverReason | None:
        """Return why to replace a connection of this age now, if so."""
        if age_s >= self.age_s:
            return "age"
        return "schedule" if self.at is not None and now >= self.at else None


def _next_daily(daily: time, now: datetime) -> datetime:
    """Return the next time that is this time of the day, plus up to two minutes.

    The day's time itself has to be in the future, or a connection opened within these minutes would
    be replaced again.
    """
    at = datetime.combine(now.astimezone(UTC).date(), daily)
    if at <= now:
        at += timedelta(days=1)
    return at + timedelta(seconds=random.uniform(0.0, _SPREAD_S))


class Overlap:
    """Two connections of one subscription: which streams each has delivered.

    Times are those of `clock`, in seconds.
    """

    def __init__(self, *, expected: Set[str], limit_s: float, clock: Callable[[], float]) -> None:
        self._expected = expected  # streams that delivered before
        self._limit_s = limit_s
        self._clock = clock
        self._old: dict[str, float] = {}  # first delivery of each stream since the overlap began
        self._new: dict[str, float] = {}
        self.began_s: Final = clock()

    @property
    def duration_s(self) -> float:
        """How long it has lasted."""
        return self._clock() - self.began_s

    def note(self, streams: Set[str], *, is_successor: bool) -> None:
        """Record streams that a connection has delivered."""
        now, first = self._clock(), self._new if is_successor else self._old
        for stream in streams:
            first.setdefault(stream, now)

    def decide(self) -> Handover:
        """Decide whether the successor takes over.

        It does once it has delivered all streams, or at the time limit; but it is given up if it
        lacks a stream that the other connection delivers.
        """
        settled_s = self._clock() - SETTLE_S
        if self._expected and self._expected <= self._new.keys():
            if max(self._new[stream] for stream in self._expected) <= settled_s:
                return "take over"
            return "wait"
        if self.duration_s < max(self._limit_s, SETTLE_S):
            return "wait"
        lacking = [s for s, at in self._old.items() if at <= settled_s and s not in self._new]
        return "give up" if lacking else "take over"


Frames = Sequence[bytes]


class DelayedFrames:
    """Frames that are passed on a short time after they were received."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._waiting: deque[tuple[float, int, Frames]] = deque()

    def add(self, frames: Frames, received_us: int) -> None:
        """Add frames that were received together."""
        self._waiting.append((self._clock(), received_us, frames))

    def take(self, *, all_of_them: bool = False) -> list[tuple[int, Frames]]:
        """Return the frames that are due, or all, with their receive times."""
        due_s, taken = self._clock() - DELAY_S, []
        while self._waiting and (all_of_them or self._waiting[0][0] <= due_s):
            _, received_us, frames = self._waiting.popleft()
            taken.append((received_us, frames))
        return taken
