"""Which server to try next: failover order, and a circuit breaker for each server.

A breaker only decides between servers. It never delays an attempt: if all are open, the one that is
due first is tried, after the usual delay of a reconnect.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from k2cli.events import Observer

FAILURES: Final = 3  # in a row, until a server is avoided
SUCCESSES: Final = 2  # until it is not
FIRST_OPEN_S: Final = 30.0
MAX_OPEN_S: Final = 600.0
_JITTER: Final = 0.2
_MAX_DOUBLINGS: Final = 10

BreakerState = Literal["closed", "open", "half-open"]


class Breaker:
    """The breaker of one server: closed, open for a growing time, or half-open while probed.

    In a half-open breaker one probe is due every 30 seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.state: BreakerState = "closed"
        self.failures = 0  # in a row
        self.due_s = 0.0  # when it may be probed; a time of `clock`
        self._clock = clock
        self._successes = 0  # of probes
        self._openings = 0  # since it was closed

    @property
    def is_available(self) -> bool:
        """Return whether to try the server."""
        return self.state == "closed" or self._clock() >= self.due_s

    def attempt(self) -> None:
        """Record an attempt. If the breaker is not closed, it is a probe."""
        if self.state == "closed":
            return
        if self.state == "open":
            self.state, self._successes = "half-open", 0
        self.due_s = self._clock() + FIRST_OPEN_S

    def fail(self) -> float | None:
        """Record a failure. If the breaker opens, return for how many seconds."""
        self.failures += 1
        if self.state == "open" or (self.state == "closed" and self.failures < FAILURES):
            return None
        open_s = min(MAX_OPEN_S, FIRST_OPEN_S * 2.0 ** min(self._openings, _MAX_DOUBLINGS))
        open_s *= random.uniform(1.0, 1.0 + _JITTER)
        self._openings += 1
        self.state, self.due_s = "open", self._clock() + open_s
        return open_s

    def succeed(self) -> bool:
        """Record a success; return whether the breaker closes."""
        if self.state != "open":
            self.failures = 0
        if self.state != "half-open":
            return False
        self._successes += 1
        if self._successes < SUCCESSES:
            return False
        self.state, self._openings = "closed", 0
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerHealth:
    """The health of a server, for people and metrics."""

    url: str
    breaker: BreakerState
    message_age_s: float | None  # since the last market data; None: there was none


class Servers:
    """The servers of a venue, shared by all connections of the process.

    It reports the events `breaker_opened` and `breaker_closed`.
    """

    def __init__(
        self, urls: Sequence[str], *, observe: Observer, clock: Callable[[], float]
    ) -> None:
        self._breakers = {url: Breaker(clock) for url in urls}
        self._heard: dict[str, float] = {}
        self._observe = observe
        self._clock = clock

    def choose(self, urls: Sequence[str], *, avoid: str | None = None) -> str:
        """Choose the first server that works; `avoid` is tried after all others."""
        order = sorted(urls, key=lambda url: url == avoid)
        available = [url for url in order if self._breakers[url].is_available]
        return available[0] if available else min(order, key=lambda url: self._breakers[url].due_s)

    def attempt(self, url: str) -> None:
        """Record an attempt to connect."""
        self._breakers[url].attempt()

    def fail(self, url: str) -> None:
        """Record a failed attempt, or a connection that was soon lost."""
        breaker = self._breakers[url]
        open_s = breaker.fail()
        if open_s is not None:
            self._observe(
                "breaker_opened", url=url, failures=breaker.failures, retry_in_s=round(open_s, 1)
            )

    def succeed(self, url: str) -> None:
        """Record that a connection has worked for a minute."""
        if self._breakers[url].succeed():
            self._observe("breaker_closed", url=url)

    def hear(self, url: str, at_s: float) -> None:
        """Record when market data arrived."""
        self._heard[url] = max(at_s, self._heard.get(url, at_s))

    def health(self) -> list[ServerHealth]:
        """Return the health of every server, in failover order. Any thread."""
        now, heard = self._clock(), dict(self._heard)
        return [
            ServerHealth(
                url=url,
                breaker=breaker.state,
                message_age_s=max(0.0, now - heard[url]) if url in heard else None,
            )
            for url, breaker in self._breakers.items()
        ]
