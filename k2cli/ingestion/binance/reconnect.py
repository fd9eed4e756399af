"""When to reconnect: the delay after a lost connection, and a budget of attempts per window.

The exchange bans an address after 300 connection attempts in 5 minutes, so a connection that is
accepted and dropped again and again must not be reopened at full speed.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from websockets.exceptions import InvalidStatus

STABLE_S: Final = 60.0  # a connection that lasted this long resets the backoff
MIN_DELAY_S: Final = 0.25
MAX_DELAY_S: Final = 30.0
_FIRST_CEILING_S: Final = 0.5
_MAX_DOUBLINGS: Final = 10
# Half of what the exchange allows, for all connections of a process.
MAX_ATTEMPTS: Final = 150
WINDOW_S: Final = 300.0
_THROTTLED: Final = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.IM_A_TEAPOT)
_MAX_RETRY_AFTER_S: Final = 3600.0


class Backoff:
    """Delays between the attempts of one connection, which tries its servers in turn."""

    def __init__(self, servers: int) -> None:
        self._servers = servers
        self._failures = 0

    @property
    def server(self) -> int:
        """Index of the server to try next."""
        return self._failures % self._servers

    def lost(self, lasted_s: float) -> float:
        """Count a failed attempt (0 s) or a connection that was lost; return the delay in seconds.

        The delay grows with every round over the servers, with jitter. A connection that lasted a
        minute starts over.
        """
        self._failures = 0 if lasted_s >= STABLE_S else self._failures + 1
        doublings = min(self._failures // self._servers, _MAX_DOUBLINGS)
        if doublings == 0:
            return MIN_DELAY_S
        return random.uniform(MIN_DELAY_S, min(MAX_DELAY_S, _FIRST_CEILING_S * 2.0**doublings))


class AttemptBudget:
    """Allows a number of attempts in every window of time."""

    def __init__(
        self,
        *,
        attempts: int = MAX_ATTEMPTS,
        window_s: float = WINDOW_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attempts = attempts
        self._window_s = window_s
        self._clock = clock
        self._times: deque[float] = deque()

    def take(self) -> float:
        """Take one attempt and return 0, or return the seconds until one is available."""
        now = self._clock()
        while self._times and now - self._times[0] >= self._window_s:
            self._times.popleft()
        if len(self._times) >= self._attempts:
            return self._times[0] + self._window_s - now
        self._times.append(now)
        return 0.0


def retry_after_s(exc: Exception) -> float:
    """Return the seconds for which a throttling server asked for no attempt; 0 if it did not."""
    if not isinstance(exc, InvalidStatus) or exc.response.status_code not in _THROTTLED:
        return 0.0
    text = exc.response.headers.get("Retry-After", "")
    return min(float(text), _MAX_RETRY_AFTER_S) if text.isascii() and text.isdecimal() else 0.0
