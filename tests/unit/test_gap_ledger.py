"""Which trades a stream asks the exchange for, and what becomes of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from k2cli.config import Backfill
from k2cli.ingestion.history import HistoryUnavailable, Page
from k2cli.pipelines.backfill.ledger import (
    MAX_PIECES,
    NOT_ASKED_FOR,
    NOT_FETCHED,
    NOTHING_YET,
    GapLedger,
)
from k2cli.pipelines.backfill.pieces import NOT_LISTED, Request, hole_of
from k2cli.ranges import ranges_of
from k2cli.records import TRADES
from k2cli.rejects import Cause, Fault, Reject
from k2cli.storage.gaps import Gap, GapWatch
from k2cli.storage.opengaps import OpenGap
from k2cli.storage.position import Position, Series, Stored
from support.builders import batch_of, table_of, trade_row
from support.waiting import ManualClock

SYMBOLS = ("BTCUSDT", "ETHUSDT")
BTC, ETH = (Series("BINANCE", symbol) for symbol in SYMBOLS)
BNB = Series("BINANCE", "BNBUSDT")
NOW_S = 1_790_000_000.0
Event = tuple[str, dict[str, Any]]


def rows(*numbers: int, symbol: str = "BTCUSDT") -> pa.RecordBatch:
    return batch_of(
        TRADES, [trade_row(symbol=symbol, source_sequence=number) for number in numbers]
    )


def page(*numbers: int, known_to: int, symbol: str = "BTCUSDT", **over: Any) -> Page:
    return Page(rows=rows(*numbers, symbol=symbol), known_to=known_to, **over)


def gap(*holes: tuple[int, int], symbol: str = "BTCUSDT", is_restart: bool = False) -> Gap:
    missing = sum(last - first + 1 for first, last in holes)
    return Gap(symbol, holes[0][0], holes[-1][1], missing, is_restart, holes)


class Ledger:
    """A ledger on a clock that a test moves, with the events it reported."""

    def __init__(self, backfill: str = "1h", unfilled: str | None = None) -> None:
        self.clock = ManualClock()
        self.events: list[Event] = []
        self.watch = GapWatch("BINANCE")
        self.stored: dict[Series, Stored] = {}
        self.ledger = GapLedger(
            exchange="BINANCE",
            symbols=SYMBOLS,
            backfill=Backfill(backfill),
            unfilled=unfilled,
            clock=self.clock,
            now=lambda: NOW_S + self.clock.now_s,
        )

    def commit(self) -> None:
        self.ledger.notes()
        self.ledger.committed(Position(self.stored), self.watch, self.observe)

    def observe(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    def stream(self, number: int, *, top: int, series: Series = BTC) -> None:
        """Commit a streamed trade above the table's highest one."""
        before = Position({series: Stored(exact=np.array([[1, top]], dtype=np.int64))})
        row = trade_row(symbol=series.symbol, source_sequence=number)
        self.watch.committed(table_of(TRADES, [row]), before)
        more = ranges_of(np.array([number], dtype=np.int64))
        self.stored[series] = before.of(series).merged(Stored(exact=more))
        self.commit()

    def request(self) -> Request:
        request = self.ledger.next_request()
        assert isinstance(request, Request)
        return request

    def is_waiting(self) -> bool:
        return not isinstance(self.ledger.next_request(), Request)

    def open(self, series: Series = BTC) -> Sequence[tuple[int, int, str]]:
        gaps = self.ledger.open_gaps().get(series, [])
        return [(each.first, each.last, each.reason) for each in gaps]


def test_small_gaps_come_first_then_the_oldest() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 5_000), (6_000, 6_001), (8_000, 8_000))])
    request = ledger.request()
    assert (request.first, request.last) == (6_000, 6_001)
    ledger.ledger.answered(request, page(6_000, 6_001, known_to=6_001))
    request = ledger.request()
    assert (request.first, request.last) == (8_000, 8_000)
    ledger.ledger.answered(request, page(8_000, known_to=8_000))
    assert (ledger.request().first, ledger.request().last) == (10, 5_000)


def test_gaps_on_one_page_are_asked_for_together() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 11), (20, 25), (900, 900), (2_000, 2_000))])
    request = ledger.request()
    assert (request.first, request.last) == (10, 900)
    ledger.ledger.answered(request, page(*range(10, 901), known_to=900))
    batch = ledger.ledger.take()
    assert batch is not None
    assert batch.rows[0][1]["source_sequence"].to_pylist() == [10, 11, *range(20, 26), 900]
    assert (batch.backfilled, batch.messages) == (9, 0)


def test_symbols_take_turns() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 9_999)), gap((10, 9_999), symbol="ETHUSDT")])
    assert [ledger.request().series for _ in range(4)] == [BTC, ETH, BTC, ETH]


def test_a_gap_is_filled_once_its_rows_are_committed() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    ledger.ledger.answered(ledger.request(), page(10, 11, 12, known_to=12))
    ledger.commit()  # of other rows
    assert ledger.events == []
    assert ledger.open() == [(10, 12, NOT_FETCHED)]
    assert ledger.ledger.take() is not None
    assert ledger.ledger.notes().filled == {BTC: [(10, 12)]}
    ledger.commit()
    fields = {"table": "trades_v2", "symbol": "BTCUSDT", "first": 10, "last": 12, "filled": 3}
    assert ledger.events == [("gap_filled", fields)]
    assert ledger.open() == []


def test_trades_that_the_exchange_does_not_list_stay_open_and_are_not_asked_for_again() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 15))])
    assert ledger.ledger.count_waiting() == 1
    ledger.ledger.answered(ledger.request(), page(11, 12, known_to=15))
    ledger.clock.advance(10_000)
    assert ledger.is_waiting()
    ledger.ledger.take()
    ledger.commit()
    assert ledger.open() == [(10, 10, NOT_LISTED), (13, 15, NOT_LISTED)]
    assert ledger.ledger.count_waiting() == 0
    (noted,) = (fields for event, fields in ledger.events if event == "gap_open")
    assert (noted["first"], noted["last"], noted["missing"]) == (10, 15, 4)
    assert noted["reason"] == NOT_LISTED


def test_rejected_trades_stay_open_with_their_reason() -> None:
    reject = Reject(
        fault=Fault(reason="a negative price", cause=Cause.BAD_FRAME),
        raw=b"{}",
        position=11,
        received_us=0,
    )
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    ledger.ledger.answered(ledger.request(), page(10, known_to=12, rejects=[reject]))
    batch = ledger.ledger.take()
    assert batch is not None
    assert (batch.backfilled, batch.rejects) == (2, [reject])
    ledger.commit()
    assert ledger.open() == [(11, 11, "rejected: a negative price"), (12, 12, NOT_LISTED)]


def test_nothing_yet_is_asked_for_again_ever_later() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    pauses = []
    for _ in range(12):
        ledger.ledger.answered(ledger.request(), page(known_to=9))
        asked_s = ledger.clock.now_s
        while ledger.is_waiting():
            ledger.clock.advance(0.5)
        pauses.append(ledger.clock.now_s - asked_s)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]
    ledger.commit()
    assert [event for event, _ in ledger.events] == ["gap_open"]  # once
    (open_gap,) = ledger.ledger.open_gaps()[BTC]
    assert (open_gap.reason, open_gap.attempts) == (NOTHING_YET, 12)
    assert NOW_S < open_gap.tried_s <= NOW_S + ledger.clock.now_s


def test_an_unavailable_history_pauses_all_symbols() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12)), gap((10, 12), symbol="ETHUSDT")])
    exc = HistoryUnavailable("HTTP 429", retry_in_s=30)
    assert ledger.ledger.unavailable(ledger.request(), exc) == 30
    ledger.clock.advance(29.9)
    assert ledger.is_waiting()
    ledger.clock.advance(0.2)
    assert ledger.request().series == ETH
    assert ledger.open() == [(10, 12, "HTTP 429")]


@pytest.mark.parametrize("retry_in_s", [0.0, -1.0, float("nan"), float("-inf")])
def test_pauses_grow_without_a_demand(retry_in_s: float) -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    pauses = []
    for _ in range(12):
        exc = HistoryUnavailable("HTTP 502", retry_in_s=retry_in_s)
        pauses.append(ledger.ledger.unavailable(ledger.request(), exc))
        ledger.clock.advance(600)
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


def test_a_refusal_is_about_these_trades_and_older_ones() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 5_000), (7_000, 7_001))])
    small = ledger.request()
    ledger.ledger.answered(small, page(7_000, 7_001, known_to=7_001))
    ledger.ledger.refused(ledger.request(), "older than one month")
    ledger.ledger.opened([gap((9_000, 9_001))])
    assert ledger.request().first == 9_000


def test_repeated_refusals_end_the_requests_for_a_symbol() -> None:
    ledger = Ledger()
    for first in (10, 5_000, 10_000):
        ledger.ledger.opened([gap((first, first))])
        ledger.ledger.refused(ledger.request(), "an API key is needed")
    ledger.ledger.opened([gap((20_000, 20_000)), gap((7, 7), symbol="ETHUSDT")])
    assert ledger.request().series == ETH
    assert ledger.open()[-1] == (20_000, 20_000, "an API key is needed")


def test_what_was_missed_between_runs_is_limited_by_age() -> None:
    ledger = Ledger("1h")
    ledger.ledger.opened([gap((101, 9_000), is_restart=True)])
    assert ledger.is_waiting()
    ledger.stream(9_001, top=100)
    request = ledger.request()
    assert request.since_us == int((NOW_S - 3_600) * 1_000_000)
    ledger.ledger.found_since(request, 8_500)
    request = ledger.request()
    assert (request.first, request.last) == (8_500, 9_000)
    assert ledger.open() == [(101, 8_499, "before --backfill 1h"), (8_500, 9_000, NOT_FETCHED)]
    before, after = ledger.ledger.open_gaps()[BTC]
    assert (before.is_between_runs, after.is_between_runs) == (True, False)


@pytest.mark.parametrize(("first", "left"), [(9_500, 101), (50, None), (-3, None)])
def test_all_or_nothing_may_be_older(first: int, left: int | None) -> None:
    ledger = Ledger("1h")
    ledger.ledger.opened([gap((101, 9_000), is_restart=True)])
    ledger.stream(9_001, top=100)
    ledger.ledger.found_since(ledger.request(), first)
    if left is None:
        assert ledger.request().first == 101
    else:
        assert ledger.is_waiting()
        assert ledger.open() == [(101, 9_000, "before --backfill 1h")]


def test_an_exchange_that_lags_behind_its_stream_is_asked_again_what_is_older() -> None:
    ledger = Ledger("1h")
    ledger.ledger.opened([gap((101, 9_000), is_restart=True)])
    ledger.stream(9_001, top=100)
    request = ledger.request()
    for pause_s in (1, 2):
        ledger.ledger.found_since(request, None)
        assert ledger.is_waiting()
        assert ledger.open() == [(101, 9_000, NOT_FETCHED)]
        ledger.clock.advance(pause_s)
        assert ledger.request() == request
    ledger.ledger.found_since(request, 101)
    assert ledger.request().first == 101


def test_what_was_missed_between_runs_is_limited_by_count() -> None:
    ledger = Ledger("100")
    ledger.ledger.opened([gap((101, 9_000), is_restart=True)])
    ledger.stream(9_001, top=100)
    request = ledger.request()
    assert (request.first, request.last) == (8_902, 9_000)
    assert ledger.open()[0] == (101, 8_901, "before --backfill 100")


def test_gaps_of_earlier_runs_are_tried_again_whatever_their_age() -> None:
    old = OpenGap(first=10, last=12, reason=NOT_LISTED, found_s=5, tried_s=6, attempts=3)
    limited = OpenGap(
        first=50, last=60, reason="before --backfill 1h", found_s=5, is_between_runs=True
    )
    ledger = Ledger("100")
    ledger.ledger.load({BTC: [old, limited], Series("BINANCE", "OTHER"): [old]})
    request = ledger.request()
    assert (request.series, request.first, request.last) == (BTC, 10, 12)
    ledger.ledger.answered(request, page(known_to=12))
    assert ledger.ledger.open_gaps()[BTC][0].attempts == 4
    assert ledger.is_waiting()  # for a streamed trade, which shows how far 100 trades reach
    ledger.stream(101, top=49)
    request = ledger.request()
    assert (request.first, request.last) == (50, 60)


def test_gaps_of_a_symbol_that_is_listed_later_are_tried_again_then() -> None:
    ledger = Ledger()
    known = OpenGap(first=5, last=9, reason=NOT_LISTED, found_s=1, tried_s=2, attempts=3)
    ledger.ledger.load({BNB: [known], Series("BINANCE_USDM", "BNBUSDT"): [known]})
    assert ledger.is_waiting()
    assert BNB not in ledger.ledger.open_gaps()  # they stay as they were noted
    ledger.ledger.follow(["BNBUSDT"])
    assert ledger.ledger.open_gaps()[BNB] == [known]
    ledger.ledger.opened([gap((20, 21), symbol="BNBUSDT")])
    assert [hole_of(each) for each in ledger.ledger.open_gaps()[BNB]] == [(5, 9), (20, 21)]
    assert (ledger.request().series, ledger.request().first) == (BNB, 5)


def test_without_backfill_gaps_are_only_noted() -> None:
    ledger = Ledger("off", unfilled="backfill is off")
    ledger.ledger.opened([gap((10, 12)), gap((1, 2), symbol="ETHUSDT", is_restart=True)])
    ledger.stream(13, top=9)
    ledger.clock.advance(10_000)
    assert ledger.is_waiting()
    assert ledger.ledger.notes().reason == "backfill is off"
    assert ledger.open() == [(10, 12, "backfill is off")]


def test_trades_that_arrive_late_are_not_asked_for() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 20))])
    ledger.stored[BTC] = Stored(exact=np.array([[1, 14], [16, 30]], dtype=np.int64))
    ledger.commit()
    request = ledger.request()
    assert (request.first, request.last) == (15, 15)


def test_rows_stored_while_they_were_fetched_are_not_handed_over() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    request = ledger.request()
    ledger.stored[BTC] = Stored(exact=np.array([[1, 11]], dtype=np.int64))
    ledger.commit()
    ledger.ledger.answered(request, page(10, 11, 12, known_to=12))
    batch = ledger.ledger.take()
    assert batch is not None
    assert batch.rows[0][1]["source_sequence"].to_pylist() == [12]


def test_changes_without_rows_need_a_commit_after_a_minute() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    assert not ledger.ledger.has_changes
    ledger.ledger.answered(ledger.request(), page(known_to=12))
    assert ledger.ledger.has_changes
    assert not ledger.ledger.is_commit_due()
    ledger.clock.advance(61)
    assert ledger.ledger.is_commit_due()
    assert not ledger.ledger.is_commit_due()
    notes = ledger.ledger.notes()
    assert [(each.first, each.reason) for each in notes.updates[BTC]] == [(10, NOT_LISTED)]
    ledger.ledger.notes()  # the commit failed
    assert ledger.ledger.has_changes
    ledger.commit()
    assert not ledger.ledger.has_changes
    ledger.clock.advance(61)
    assert not ledger.ledger.is_commit_due()


@pytest.mark.parametrize(
    "answer",
    [
        page(12, 11, 10, known_to=12),
        page(10, 10, 11, known_to=12),
        page(9, 10, known_to=12),
        page(10, 13, known_to=13),
        page(10, 12, known_to=11),
        page(10, known_to=12, symbol="ETHUSDT"),
        page(10, known_to=9),
    ],
)
def test_an_answer_to_another_question_is_asked_for_again(answer: Page) -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((10, 12))])
    ledger.ledger.answered(ledger.request(), answer)
    assert ledger.ledger.take() is None
    assert ledger.is_waiting()
    assert ledger.open() == [(10, 12, NOT_ASKED_FOR)]
    ledger.clock.advance(1)
    assert ledger.request().first == 10


def test_fetched_rows_that_nobody_takes_stop_the_requests() -> None:
    ledger = Ledger()
    ledger.ledger.opened([gap((1, 1_000_000))])
    fetched = 0
    while isinstance(request := ledger.ledger.next_request(), Request):
        numbers = range(request.first, request.first + 1_000)
        ledger.ledger.answered(request, page(*numbers, known_to=numbers[-1]))
        fetched += 1_000
    assert fetched == 20_000
    ledger.ledger.take()
    assert ledger.request().first == 20_001


def test_a_flood_of_gaps_is_bounded() -> None:
    ledger = Ledger()
    for begin in range(0, 100_000, 10_000):
        holes = [(n, n) for n in range(begin, begin + 10_000, 2)]
        ledger.ledger.opened([gap(*holes)])
    every = ledger.ledger.open_gaps()[BTC]
    assert len(every) <= MAX_PIECES
    covered = {n for each in every for n in range(each.first, each.last + 1)}
    assert covered >= set(range(0, 100_000, 2))


# --- whatever the exchange answers


class HostileExchange:
    """Publishes some numbers; its answers are right, empty, late, or lies, as `draw` says."""

    def __init__(self, draw: st.DataObject, published: set[int]) -> None:
        self.draw = draw
        self.published = published
        self.honest = 0

    def answer(self, request: Request) -> Page:
        kind = self.draw.draw(st.integers(0, 6 if self.honest < 30 else 0))
        self.honest += 1
        last = min(request.last, request.first + 9)
        known = [n for n in range(request.first, last + 1) if n in self.published]
        match kind:
            case 1:
                return page(known_to=request.first - 1)
            case 2:
                return page(request.last + 1, known_to=request.last + 1)
            case 3:
                raise HistoryUnavailable("HTTP 503", retry_in_s=float("nan"))
            case 4:
                return page(*known[:1], known_to=known[0] if known else last)
            case 5:
                return page(*reversed(known), known_to=last)
            case _:
                return page(*known, known_to=last)


@settings(deadline=None, max_examples=60)
@given(
    st.data(), st.lists(st.integers(1, 60), min_size=1, unique=True), st.sets(st.integers(1, 60))
)
def test_every_number_is_stored_once_or_open(
    data: st.DataObject, missing: list[int], unlisted: set[int]
) -> None:
    ledger = Ledger()
    exchange = HostileExchange(data, set(range(1, 61)) - unlisted)
    holes = ranges_of(np.array(sorted(missing), dtype=np.int64)).tolist()
    ledger.ledger.opened([gap(*map(tuple, holes))])
    stored: list[int] = []
    requests = 0
    for _ in range(400):
        asked = ledger.ledger.next_request()
        if not isinstance(asked, Request):
            ledger.clock.advance(600)  # the longest pause
        else:
            requests += 1
            try:
                ledger.ledger.answered(asked, exchange.answer(asked))
            except HistoryUnavailable as exc:
                ledger.ledger.unavailable(asked, exc)
        while (batch := ledger.ledger.take()) is not None:
            stored += batch.rows[0][1]["source_sequence"].to_pylist()
        ledger.commit()
    assert requests <= 200
    assert sorted(stored) == sorted(set(missing) - unlisted)
    left = [n for first, last, _ in ledger.open() for n in range(first, last + 1)]
    assert sorted(left) == sorted(set(missing) & unlisted)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 3), st.integers(1, 50_000))
def test_an_endless_exchange_is_asked_rarely(progress: int, size: int) -> None:
    """An answer that covers next to nothing slows the next question down."""
    ledger = Ledger()
    ledger.ledger.opened([gap((1, size))])
    requests = 0
    while ledger.clock.now_s < 3_600:
        asked = ledger.ledger.next_request()
        if isinstance(asked, Request):
            requests += 1
            last = asked.first - 1 + progress
            ledger.ledger.answered(asked, page(known_to=last))
        else:
            ledger.clock.advance(asked)
    assert requests <= 30
