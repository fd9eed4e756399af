"""Circuit breakers and the choice of a server, on a clock that the test moves."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from k2cli.ingestion.breaker import FAILURES, FIRST_OPEN_S, MAX_OPEN_S, Breaker, Servers
from support.waiting import ManualClock

URLS = ("wss://one", "wss://two", "wss://three")


def opened(clock: ManualClock) -> Breaker:
    breaker = Breaker(clock)
    for _ in range(FAILURES):
        breaker.fail()
    return breaker


def test_three_failures_in_a_row_open_a_breaker() -> None:
    breaker = Breaker(ManualClock())
    assert [breaker.fail() is None for _ in range(2)] == [True, True]
    assert breaker.is_available
    open_s = breaker.fail()
    assert open_s is not None
    assert FIRST_OPEN_S <= open_s <= 1.2 * FIRST_OPEN_S
    assert (breaker.state, breaker.is_available) == ("open", False)


def test_a_success_between_failures_keeps_it_closed() -> None:
    breaker = Breaker(ManualClock())
    for _ in range(10):
        breaker.fail()
        breaker.fail()
        assert not breaker.succeed()
    assert breaker.state == "closed"


def test_one_probe_is_due_and_two_successes_close_it() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(1.2 * FIRST_OPEN_S)
    assert breaker.is_available
    breaker.attempt()
    assert (breaker.state, breaker.is_available) == ("half-open", False)
    assert not breaker.succeed()
    assert breaker.succeed()
    assert (breaker.state, breaker.is_available) == ("closed", True)
    assert [breaker.fail() for _ in range(2)] == [None, None]  # it starts over


def test_a_probe_without_an_outcome_does_not_block_later_ones() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    clock.advance(1.2 * FIRST_OPEN_S)
    breaker.attempt()
    clock.advance(FIRST_OPEN_S)
    assert breaker.is_available


def test_failed_probes_double_the_time_up_to_a_limit() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    times = []
    for _ in range(12):
        clock.now_s = breaker.due_s
        breaker.attempt()
        times.append(breaker.fail())
    for number, open_s in enumerate(times, 1):
        ceiling = min(MAX_OPEN_S, FIRST_OPEN_S * 2**number)
        assert open_s is not None
        assert ceiling <= open_s <= 1.2 * ceiling


def test_failures_of_older_connections_do_not_extend_an_open_breaker() -> None:
    clock = ManualClock()
    breaker = opened(clock)
    due_s = breaker.due_s
    clock.advance(1)
    assert breaker.fail() is None
    assert not breaker.succeed()
    assert (breaker.due_s, breaker.state) == (due_s, "open")


@given(st.lists(st.sampled_from(["attempt", "fail", "succeed", "wait"]), max_size=60))
def test_a_breaker_is_never_avoided_for_longer_than_its_limit(steps: list[str]) -> None:
    clock = ManualClock()
    breaker = Breaker(clock)
    for step in steps:
        match step:
            case "wait":
                clock.advance(11)
            case "attempt":
                breaker.attempt()
            case "fail":
                open_s = breaker.fail()
                due_s = None if open_s is None else clock.now_s + open_s
                assert (open_s is not None) is (breaker.state == "open" and breaker.due_s == due_s)
            case _:
                assert breaker.succeed() <= (breaker.state == "closed")
        assert breaker.due_s - clock.now_s <= 1.2 * MAX_OPEN_S
        if breaker.state == "closed":
            assert breaker.is_available


# --- servers


def servers_at(clock: ManualClock, events: list[tuple[str, dict[str, Any]]]) -> Servers:
    return Servers(
        URLS, observe=lambda event, /, **fields: events.append((event, fields)), clock=clock
    )


def test_servers_are_chosen_in_order_and_open_ones_skipped() -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    servers = servers_at(ManualClock(), events)
    assert servers.choose(URLS) == URLS[0]
    assert servers.choose(URLS, avoid=URLS[0]) == URLS[1]
    assert servers.choose(URLS[:1], avoid=URLS[0]) == URLS[0]
    for _ in range(FAILURES):
        servers.fail(URLS[0])
    assert servers.choose(URLS) == URLS[1]
    assert servers.choose(URLS, avoid=URLS[1]) == URLS[2]
    ((event, fields),) = events
    assert (event, fields["url"], fields["failures"]) == ("breaker_opened", URLS[0], FAILURES)


def test_if_all_are_open_the_one_that_is_due_first_is_tried() -> None:
    clock = ManualClock()
    servers = servers_at(clock, [])
    for url in (URLS[1], URLS[0], URLS[2]):
        for _ in range(FAILURES):
            servers.fail(url)
        clock.advance(0.3 * FIRST_OPEN_S)  # more than the jitter
    assert servers.choose(URLS) == URLS[1]


def test_health_shows_breakers_and_the_age_of_the_last_message() -> None:
    clock = ManualClock()
    events: list[tuple[str, dict[str, Any]]] = []
    servers = servers_at(clock, events)
    servers.hear(URLS[0], 0.0)
    clock.advance(5.0)
    for _ in range(FAILURES):
        servers.fail(URLS[1])
    assert [(each.url, each.breaker, each.message_age_s) for each in servers.health()] == [
        (URLS[0], "closed", 5.0),
        (URLS[1], "open", None),
        (URLS[2], "closed", None),
    ]
    clock.advance(2 * FIRST_OPEN_S)
    servers.attempt(URLS[1])
    servers.succeed(URLS[1])
    servers.succeed(URLS[1])
    assert [event for event, _ in events] == ["breaker_opened", "breaker_closed"]
