"""When the client reconnects: delays, and attempts per window, on a clock that the test moves."""

import pytest

from k2cli.ingestion.binance.venues import MAX_ATTEMPTS, WINDOW_S
from k2cli.ingestion.connection import Refused
from k2cli.ingestion.reconnect import MAX_DELAY_S, MIN_DELAY_S, STABLE_S, AttemptBudget, Backoff
from support.waiting import ManualClock


def test_connections_that_drop_at_once_stay_far_below_the_limit_of_the_exchange() -> None:
    """Without the budget: one connection that delivers a frame and drops, for 5 minutes."""
    for _ in range(50):  # the delays are random
        backoff, now_s, attempts = Backoff(1), 0.0, 0
        while now_s < WINDOW_S:
            attempts += 1
            now_s += 0.1 + backoff.lost(0.1)
        assert attempts < 100


def test_delays_grow_between_their_bounds() -> None:
    backoff = Backoff(1)
    delays = [backoff.lost(1.0) for _ in range(2_000)]
    assert all(MIN_DELAY_S <= delay <= MAX_DELAY_S for delay in delays)
    assert delays[0] <= 1.0
    assert max(delays[10:]) > MAX_DELAY_S / 2


def test_only_a_connection_that_lasted_a_minute_resets_the_delay() -> None:
    backoff = Backoff(2)
    for _ in range(5):
        backoff.lost(STABLE_S - 0.1)
    assert backoff.server == 1
    assert backoff.lost(STABLE_S) == MIN_DELAY_S
    assert backoff.server == 0


def test_every_server_is_tried_before_the_delay_grows() -> None:
    backoff = Backoff(3)
    assert backoff.server == 0
    assert [(backoff.lost(0), backoff.server) for _ in range(2)] == [
        (MIN_DELAY_S, 1),
        (MIN_DELAY_S, 2),
    ]
    backoff.lost(0)
    assert backoff.server == 0


@pytest.mark.parametrize("step_s", [0.0, 0.01, 1.0, 7.0])
def test_no_window_has_more_attempts_than_the_budget(step_s: float) -> None:
    clock = ManualClock()
    budget = AttemptBudget(attempts=MAX_ATTEMPTS, window_s=WINDOW_S, clock=clock)
    taken: list[float] = []
    while len(taken) < 3 * MAX_ATTEMPTS:
        wait_s = budget.take()
        if wait_s:
            assert 0 < wait_s <= WINDOW_S
            clock.advance(wait_s)
        else:
            taken.append(clock.now_s)
            clock.advance(step_s)
    for first, later in zip(taken, taken[MAX_ATTEMPTS:], strict=False):
        assert later - first >= WINDOW_S - 1e-6


def test_budget_knows_when_half_of_it_is_used() -> None:
    clock = ManualClock()
    budget = AttemptBudget(attempts=4, window_s=10.0, clock=clock)
    budget.take()
    assert not budget.is_half_used
    clock.advance(5.0)
    budget.take()
    assert budget.is_half_used
    clock.advance(5.0)  # the first one is out of the window
    assert not budget.is_half_used


@pytest.mark.parametrize(
    ("status", "value", "seconds"),
    [
        (429, "17", 17.0),
        (418, "120", 120.0),
        (429, "999999", 3600.0),
        (429, "Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
        (429, "-5", 0.0),
        (429, "", 0.0),
        (503, "17", 0.0),
    ],
)
def test_retry_after_of_a_throttling_server(status: int, value: str, seconds: float) -> None:
    assert Refused(status, value).retry_after_s == seconds
