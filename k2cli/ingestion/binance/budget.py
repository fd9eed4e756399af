"""The budget of request weight: half of what the exchange allows an IP address each minute."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from aiolimiter import AsyncLimiter

_MINUTE_S: Final = 60.0
_RECENT_S: Final = 65.0  # a minute, and how much later a request may reach the exchange
_BURST_REQUESTS: Final = 4  # that need not wait after a pause


class WeightBudget:
    """Delays requests so that no minute has more than `per_minute` weight.

    Others on the same IP address, such as another process, use up the exchange's limit, too: if the
    exchange counts more than this budget spent, requests wait for the next minute.
    """

    def __init__(
        self, per_minute: int, *, largest: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Prepare a budget; `largest` is the weight of the heaviest request.

        `clock` returns UTC seconds, because the exchange counts by the minute of UTC.
        """
        self._per_minute = per_minute
        self._clock = clock
        # What a full bucket and a minute's refill allow together is the budget of a minute.
        burst = max(largest, min(_BURST_REQUESTS * largest, per_minute // 25))
        period_s = _MINUTE_S * burst / (per_minute - burst)
        self._limiter = AsyncLimiter(burst, period_s)
        self._spent: deque[tuple[float, int]] = deque()  # times and weights of recent requests
        self._paused_until_s = 0.0

    async def spend(self, weight: int) -> None:
        """Wait until a request of this weight is within the budget."""
        loop = asyncio.get_running_loop()
        await self._limiter.acquire(weight)
        while (wait_s := self._paused_until_s - loop.time()) > 0:
            await asyncio.sleep(wait_s)
            await self._limiter.acquire(weight)  # so that what has waited is not sent at once
        self._spent.append((loop.time(), weight))

    def correct(self, used: int) -> None:
        """Compare with the weight that the exchange counts in the current minute."""
        if used > max(self._per_minute, self._recently_spent()):
            rest_s = _MINUTE_S - self._clock() % _MINUTE_S
            self._paused_until_s = asyncio.get_running_loop().time() + rest_s

    def _recently_spent(self) -> int:
        begin_s = asyncio.get_running_loop().time() - _RECENT_S
        while self._spent and self._spent[0][0] < begin_s:
            self._spent.popleft()
        return sum(weight for _, weight in self._spent)
