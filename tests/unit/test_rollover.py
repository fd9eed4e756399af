"""When connections are replaced and when a successor takes over, on a clock that the test moves."""

from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.ingestion.binance.venues import LIFETIME_S, VENUES
from k2cli.ingestion.rollover import (
    DELAY_S,
    SETTLE_S,
    DelayedFrames,
    Overlap,
    Plan,
    parse_daily,
)
from k2cli.ingestion.symbols import Market
from support.waiting import ManualClock

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
A, B = "btcusdt@trade", "ethusdt@trade"


@pytest.mark.parametrize(
    ("text", "hour", "minute", "second"),
    [("03:00Z", 3, 0, 0), (" 23:59z ", 23, 59, 0), ("00:00:30Z", 0, 0, 30)],
)
def test_daily_time_is_parsed(text: str, hour: int, minute: int, second: int) -> None:
    assert parse_daily(text) == time(hour, minute, second, tzinfo=UTC)


@pytest.mark.parametrize("text", ["03:00", "3am", "24:00Z", "03:60Z", "", "Z", "03:00+01:00"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="03:00Z"):
        parse_daily(text)


def test_connections_are_replaced_at_random_before_the_exchange_cuts_them() -> None:
    ages_s = [Plan.of(LIFETIME_S, None, NOW).age_s for _ in range(200)]
    assert 21 * 3600 < min(ages_s) < max(ages_s) < 23.1 * 3600
    assert max(ages_s) - min(ages_s) > 3600


@given(
    st.times(),
    st.datetimes(datetime(2026, 1, 1), datetime(2028, 1, 1)),  # noqa: DTZ001
)
def test_daily_rollover_is_within_a_day_and_two_minutes(daily: time, now: datetime) -> None:
    opened = now.replace(tzinfo=UTC)
    at = Plan.of(LIFETIME_S, daily.replace(tzinfo=UTC), opened).at
    assert at is not None
    assert timedelta(0) < at - opened <= timedelta(days=1, minutes=2)
    since_midnight = at - datetime.combine(at.date(), time(), UTC)
    late = since_midnight - timedelta(
        hours=daily.hour,
        minutes=daily.minute,
        seconds=daily.second,
        microseconds=daily.microsecond,
    )
    assert late % timedelta(days=1) <= timedelta(minutes=2)


def test_reason_is_the_age_or_the_schedule_whichever_is_first() -> None:
    plan = Plan(age_s=100.0, at=NOW)
    assert plan.reason(99.0, NOW - timedelta(seconds=1)) is None
    assert plan.reason(99.0, NOW) == "schedule"
    assert plan.reason(100.0, NOW - timedelta(days=1)) == "age"
    assert Plan(age_s=100.0, at=None).reason(99.0, NOW) is None


# --- the overlap


def test_successor_takes_over_a_moment_after_it_delivered_every_stream() -> None:
    clock = ManualClock()
    overlap = Overlap(expected={A, B}, limit_s=30.0, clock=clock)
    overlap.note({A}, is_successor=True)
    clock.advance(10.0)
    assert overlap.decide() == "wait"
    overlap.note({B, A}, is_successor=True)
    assert overlap.decide() == "wait"
    clock.advance(SETTLE_S)
    assert overlap.decide() == "take over"


def test_successor_takes_over_at_the_limit_if_streams_are_quiet() -> None:
    clock = ManualClock()
    overlap = Overlap(expected={A, B}, limit_s=30.0, clock=clock)
    overlap.note({A}, is_successor=True)
    overlap.note({A}, is_successor=False)
    clock.advance(29.9)
    assert overlap.decide() == "wait"
    clock.advance(0.1)
    assert overlap.decide() == "take over"


def test_successor_that_lacks_a_delivered_stream_is_given_up_at_the_limit() -> None:
    clock = ManualClock()
    overlap = Overlap(expected={A, B}, limit_s=30.0, clock=clock)
    overlap.note({A}, is_successor=True)
    overlap.note({A, B}, is_successor=False)
    clock.advance(30.0)
    assert overlap.decide() == "give up"


def test_stream_that_delivered_a_moment_ago_is_not_lacking_yet() -> None:
    clock = ManualClock()
    overlap = Overlap(expected={A, B}, limit_s=30.0, clock=clock)
    overlap.note({A}, is_successor=True)
    clock.advance(29.9)
    overlap.note({B}, is_successor=False)
    clock.advance(0.1)
    assert overlap.decide() == "take over"


def test_frames_that_name_no_streams_are_overlapped_up_to_the_limit() -> None:
    clock = ManualClock()
    overlap = Overlap(expected=frozenset(), limit_s=0.0, clock=clock)
    assert overlap.decide() == "wait"  # until it is settled
    clock.advance(SETTLE_S)
    assert overlap.decide() == "take over"


# --- the delay


@given(st.lists(st.floats(0.0, 0.3), max_size=20))
def test_delayed_frames_keep_their_order_and_wait_half_a_second_at_most(
    pauses_s: list[float],
) -> None:
    clock = ManualClock()
    delayed = DelayedFrames(clock)
    added_s, taken = [], []
    for number, pause_s in enumerate(pauses_s):
        delayed.add([b"%d" % number], number)
        added_s.append(clock.now_s)
        clock.advance(pause_s)
        for received_us, frames in delayed.take():
            assert frames == [b"%d" % received_us]
            assert clock.now_s - added_s[received_us] >= DELAY_S
            taken.append(received_us)
        late = [n for n in range(number + 1) if clock.now_s - added_s[n] > DELAY_S + 1e-9]
        assert set(late) <= set(taken)
    taken += [received_us for received_us, _ in delayed.take(all_of_them=True)]
    assert taken == list(range(len(pauses_s)))
    assert DELAY_S < 1.0


# --- which stream a frame belongs to


@pytest.mark.parametrize(
    ("frame", "name"),
    [
        (b'{"stream":"btcusdt@trade","data":{}}', "btcusdt@trade"),
        (b'{ "stream" : "btcusdt@trade", "data": {}}', "btcusdt@trade"),
        ('{"stream":"币安人生usdt@trade","data":{}}'.encode(), "币安人生usdt@trade"),
        (rb'{"stream":"\u5e01usdt@trade","data":{}}', "币usdt@trade"),
        (b'{"stream":"\xff@trade","data":{}}', ""),
        (b'{"stream":"a\\","data":{}}', ""),
        (b'{"e":"trade","stream":"btcusdt@trade"}', ""),
        (b'{"result":null,"id":1}', ""),
        (b"", ""),
    ],
)
def test_combined_frames_name_their_stream(frame: bytes, name: str) -> None:
    assert VENUES[Market.SPOT].stream_of(frame) == name
