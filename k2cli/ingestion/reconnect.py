"""When to reconnect: the delay after a lost connection, and a budget of attempts per window.

Exchanges ban an address after too many connection attempts, so a connection that is repeatedly
accepted and dropped must not be reopened at full speed.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

STABLE_S: Final = 60.0  # a connection that lasted this long resets the backoff
MIN_DELAY_S: Final = 0.25
MAX_DELAY_S: Final = 30.0
_FIRST_CEILING_S: Final = 0.5
_MAX_DOUBLINGS: Final = 10


class Backoff:
    """Delays between attempts of one connection, which tries its servers in turn."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._failures = 0

    @property
    def server(self) -> int:
        """Index of the server to try next."""
        return self._failures % self._servers

    def reset(self) -> None:
        """Start over: a connection works."""
        self._failures = 0

    def lost(self, lasted_s: float) -> float:
        """Count a failed attempt (0 s) or a connection that was lost; return the delay in seconds.

        The delay grows with each round over the servers, with jitter. A connection that lasted a
        minute resets it.
        """
        self._failures = 0 if lasted_s >= STABLE_S else self._failures + 1
        doublings = min(self._failures // self._servers, _MAX_DOUBLINGS)
        if doublings == 0:
            return MIN_DELAY_S
        return random.uniform(MIN_DELAY_S, min(MAX_DELAY_S, _FIRST_CEILING_S * 2.0**doublings))


class AttemptBudget:
    """Allows N attempts per time window."""

    def __init__(
        self,
        *,
        attempts: int,
        window_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempts = attempts
        self._window_s = window_s
        self._clock = clock
        self._times: deque[float] = deque()

    @property
    def is_half_used(self) -> bool:
        """Whether half of the attempts within the current window are used."""
        self._forget()
        return 2 * len(self._times) >= self._attempts

    def take(self) -> float:
        """Take one attempt and return 0, or return the seconds until one is available."""
        now = self._forget()
        if len(self._times) >= self._attempts:
            return self._times[0] + self._window_s - now
        self._times.append(now)
        return 0.0

    def _forget(self) -> float:
        """Forget attempts before the current window; return the time."""
        now = self._clock()
        while self._times and now - self._times[0] >= self._window_s:
            self._times.popleft()
        return now
