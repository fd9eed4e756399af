"""When a run counts as ready, by its steps and events."""

import pytest

from k2cli.commands.readiness import Readiness


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def readiness(clock: Clock) -> Readiness:
    started = Readiness(clock=clock)
    started.on_step()
    return started


def test_a_run_that_has_not_read_yet_is_starting(clock: Clock) -> None:
    assert Readiness(clock=clock).reasons() == ["starting"]


def test_a_run_that_goes_on_is_ready(readiness: Readiness, clock: Clock) -> None:
    for _ in range(10):
        clock.now_s += 30
        readiness.on_step()
        assert readiness.reasons() == []


def test_a_run_without_progress_is_not(readiness: Readiness, clock: Clock) -> None:
    clock.now_s += 61
    assert readiness.reasons() == ["no progress for 61 s"]


def test_an_outage_lasts_until_it_is_not_repeated(readiness: Readiness, clock: Clock) -> None:
    for _ in range(3):
        readiness.on_event("kafka_unavailable", {"reason": "no brokers", "retry_in_s": 5.0})
        readiness.on_step()
        assert readiness.reasons() == ["kafka_unavailable: no brokers"]
        clock.now_s += 5
    clock.now_s += 10
    readiness.on_step()
    assert readiness.reasons() == []


def test_a_commit_ends_an_outage(readiness: Readiness) -> None:
    readiness.on_event("catalog_unavailable", {"reason": "disk full", "retry_in_s": 5.0})
    assert readiness.reasons() == ["catalog_unavailable: disk full"]
    readiness.on_event("commit", {"rows": 1})
    assert readiness.reasons() == []


def test_other_events_say_nothing(readiness: Readiness) -> None:
    readiness.on_event("reject", {"reason": "not JSON"})
    assert readiness.reasons() == []


def test_the_run_adds_its_own_reasons(readiness: Readiness) -> None:
    readiness.watch(lambda: ["no connection"])
    assert readiness.reasons() == ["no connection"]
