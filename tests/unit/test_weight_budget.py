"""The budget of request weight, in a loop whose time passes only while all wait."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from k2cli.ingestion.binance.budget import WeightBudget


class _Skipping(selectors.SelectSelector):
    """Skips waits instead of waiting. Some time always passes, as for a real loop."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        self.now_s += 1e-6 if ready or not timeout else timeout
        return ready


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._skipping = _Skipping()
        super().__init__(self._skipping)

    def time(self) -> float:
        return self._skipping.now_s


def run_in_virtual_time(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(test())


def now_s() -> float:
    return asyncio.get_running_loop().time()


async def times_of(budget: WeightBudget, weight: int, count: int) -> list[float]:
    times = []
    for _ in range(count):
        await budget.spend(weight)
        times.append(now_s())
    return times


@pytest.mark.parametrize(
    ("per_minute", "weight", "largest"), [(3000, 25, 25), (1200, 200, 200), (600, 4, 25)]
)
def test_no_minute_exceeds_the_budget_and_most_of_it_is_used(
    per_minute: int, weight: int, largest: int
) -> None:
    async def test() -> None:
        budget = WeightBudget(per_minute, largest=largest, clock=now_s)
        times = await times_of(budget, weight, 4 * per_minute // weight)
        for begin in times:
            within = [each for each in times if begin <= each < begin + 60]
            assert len(within) * weight <= per_minute
        assert weight * len(times) / (times[-1] / 60) >= 0.8 * per_minute

    run_in_virtual_time(test)


def test_first_requests_need_not_wait() -> None:
    async def test() -> None:
        budget = WeightBudget(3000, largest=25, clock=now_s)
        assert await times_of(budget, 25, 4) == pytest.approx([0.0] * 4, abs=0.001)

    run_in_virtual_time(test)


def test_own_weight_does_not_slow_down() -> None:
    """The exchange counts what this process spent, sometimes with a delay."""

    async def test() -> None:
        budget = WeightBudget(3000, largest=25, clock=now_s)
        times: list[float] = []
        for _ in range(480):
            times += await times_of(budget, 25, 1)
            minute = now_s() // 60 * 60
            budget.correct(25 * sum(each >= minute - 2 for each in times))
        assert times[-1] < 4.2 * 60

    run_in_virtual_time(test)


def test_weight_of_others_pauses_until_the_next_minute() -> None:
    async def test() -> None:
        budget = WeightBudget(3000, largest=25, clock=lambda: 1_000_000_020.0 + now_s())
        await asyncio.sleep(13)  # at 33 s + 20 s after a full minute
        await budget.spend(25)
        budget.correct(2999)
        await budget.spend(25)
        assert now_s() == pytest.approx(13, abs=0.001)
        budget.correct(5000)
        await budget.spend(25)
        assert now_s() == pytest.approx(60 - 1_000_000_020 % 60, abs=0.001)

    run_in_virtual_time(test)


def test_requests_that_waited_for_the_minute_are_spread() -> None:
    async def test() -> None:
        budget = WeightBudget(3000, largest=25, clock=now_s)
        await budget.spend(25)
        budget.correct(9999)
        times: list[list[float]] = await asyncio.gather(
            *(times_of(budget, 25, 1) for _ in range(20))
        )
        flat = sorted(time for each in times for time in each)
        assert flat[0] >= 60
        assert flat[-1] >= 60 + 16 * 25 / 50

    run_in_virtual_time(test)
