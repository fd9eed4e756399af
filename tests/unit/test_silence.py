"""Which streams are suspicious, on a clock that the test moves."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.flow import Batch
from k2cli.ingestion.silence import MIN_S, PATIENT_MIN_S, StreamWatch
from k2cli.records import TRADES
from support.builders import batch_of, trade_row
from support.waiting import ManualClock

BUSY, QUIET = "btcusdt@trade", "ethusdt@trade"
STREAMS = {("trades", "BTCUSDT"): BUSY, ("trades", "ETHUSDT"): QUIET}


def batch(*symbols: str) -> Batch:
    rows = [trade_row(symbol=symbol) for symbol in symbols]
    return Batch(rows=[(TRADES, batch_of(TRADES, rows))] if rows else [])


class Watched:
    """A watch, and what it is fed with second by second."""

    def __init__(self, *, has_check: bool = True) -> None:
        self.clock = ManualClock()
        self.watch = StreamWatch(STREAMS, clock=self.clock, has_check=has_check)

    def run(self, seconds: float, every: dict[str, int] | None = None) -> set[str]:
        """Let time pass, with a trade of each symbol every so many seconds; return suspects."""
        suspects: set[str] = set()
        for second in range(int(seconds)):
            self.clock.advance(1.0)
            symbols = [name for name, step in (every or {}).items() if second % step == 0]
            self.watch.note(batch(*symbols))
            suspects |= {each.name for each in self.watch.suspects()}
        return suspects


def test_streams_are_not_suspicious_before_they_are_connected() -> None:
    watched = Watched()
    assert watched.run(1_000) == set()
    assert watched.watch.silent == [BUSY, QUIET]


def test_stream_that_never_spoke_is_suspicious_after_a_minute() -> None:
    watched = Watched()
    watched.watch.opened(STREAMS.values())
    assert watched.run(MIN_S - 1, {"BTCUSDT": 1}) == set()
    assert watched.run(3, {"BTCUSDT": 1}) == {QUIET}
    (suspect,) = watched.watch.suspects()
    assert not suspect.has_spoken
    assert suspect.silent_s >= MIN_S


def test_stream_that_is_usually_quiet_does_not_alarm() -> None:
    watched = Watched()
    watched.watch.opened(STREAMS.values())
    watched.run(1_000, {"BTCUSDT": 1, "ETHUSDT": 50})
    assert watched.run(90, {"BTCUSDT": 1}) == set()  # 140 s by now
    assert watched.run(30, {"BTCUSDT": 1}) == {QUIET}
    assert watched.watch.silent == []


def test_without_a_check_the_watch_is_more_patient() -> None:
    watched = Watched(has_check=False)
    watched.watch.opened(STREAMS.values())
    watched.run(10, {"BTCUSDT": 1, "ETHUSDT": 1})
    assert watched.run(PATIENT_MIN_S - 10, {"BTCUSDT": 1}) == set()
    assert watched.run(20, {"BTCUSDT": 1}) == {QUIET}


def test_lost_connection_explains_the_silence_of_its_streams() -> None:
    watched = Watched()
    watched.watch.opened(STREAMS.values())
    watched.run(10, {"BTCUSDT": 1, "ETHUSDT": 1})
    watched.watch.closed([QUIET])
    assert watched.run(500, {"BTCUSDT": 1}) == set()
    watched.watch.opened([QUIET])
    watched.run(5, {"BTCUSDT": 1, "ETHUSDT": 1})
    assert watched.run(70, {"BTCUSDT": 1}) == {QUIET}  # the outage was not its rhythm


def test_time_in_which_the_process_was_stopped_does_not_count() -> None:
    watched = Watched()
    watched.watch.opened(STREAMS.values())
    watched.run(10, {"BTCUSDT": 1, "ETHUSDT": 1})
    watched.clock.advance(10_000.0)
    watched.watch.note(batch())
    assert watched.watch.suspects() == []
    assert watched.run(20) == set()


def test_excused_stream_is_checked_at_growing_intervals_and_its_rhythm_learned() -> None:
    watched = Watched()
    watched.watch.opened(STREAMS.values())
    watched.run(10, {"BTCUSDT": 1, "ETHUSDT": 1})
    checks = []
    for _ in range(4_000):
        watched.run(1, {"BTCUSDT": 1})
        for suspect in watched.watch.suspects():
            checks.append(suspect.silent_s)
            watched.watch.excuse(suspect)
    pauses = [later - first for first, later in itertools.pairwise(checks)]
    assert 2 <= len(checks) <= 8
    assert all(later >= 1.5 * first for first, later in itertools.pairwise(pauses))
    watched.run(1, {"BTCUSDT": 1, "ETHUSDT": 1})
    assert watched.run(3_000, {"BTCUSDT": 1}) == set()


def test_stream_that_speaks_again_starts_over() -> None:
    watched = Watched()
    watched.watch.opened(STREAMS.values())
    watched.run(MIN_S + 2, {"BTCUSDT": 1})
    (suspect,) = watched.watch.suspects()
    assert watched.watch.is_silent(suspect)
    watched.watch.act(suspect)
    assert watched.watch.suspects() == []
    watched.run(2, {"ETHUSDT": 1})
    assert not watched.watch.is_silent(suspect)
    watched.run(MIN_S + 2, {"BTCUSDT": 1})
    assert [each.actions for each in watched.watch.suspects()] == [0]


def test_delivered_streams_include_the_newest_rows() -> None:
    watched = Watched()
    watched.watch.note(batch("ETHUSDT"))
    assert watched.watch.delivered(STREAMS.values()) == {QUIET}
    assert watched.watch.silent == [BUSY]


@given(st.lists(st.integers(1, 300), min_size=3, max_size=30))
def test_no_stream_is_suspicious_within_three_times_what_is_usual(gaps_s: list[int]) -> None:
    watched = Watched()
    watched.watch.opened([QUIET])
    usual_s = 0.0
    for gap_s in gaps_s:
        silent_s = 0
        while silent_s < gap_s:
            step_s = min(20, gap_s - silent_s)
            watched.clock.advance(step_s)
            silent_s += step_s
            watched.watch.note(batch())
            is_suspicious = bool(watched.watch.suspects())
            if silent_s < max(MIN_S, 2 * usual_s):  # it decays slowly
                assert not is_suspicious
        watched.watch.note(batch("ETHUSDT"))
        assert watched.watch.delivered([QUIET])
        usual_s = max(usual_s * 0.5 ** (gap_s / 3600), gap_s if usual_s else 0.1)


def test_rows_of_unknown_symbols_are_ignored() -> None:
    watched = Watched()
    watched.watch.note(batch("XYZUSDT"))
    assert watched.watch.silent == [BUSY, QUIET]


@pytest.mark.parametrize("count", [1, 500])
def test_notes_do_not_pile_up_while_the_clock_stands_still(count: int) -> None:
    watched = Watched()
    for _ in range(count):
        watched.watch.note(batch("BTCUSDT"))
    assert len(watched.watch._noted) < 64
