"""Listings during a run: what begins, what ends, what changes nothing."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from k2cli.errors import Unavailable
from k2cli.ingestion.selection import Selection, Word, parse_selection
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.ingestion.trading import Selected, TradingList
from k2cli.ingestion.watch import ListingWatch

HOUR_S = 3600.0
OTHERS = tuple(f"X{number}EUR" for number in range(20))


def instruments(symbols: Iterable[str]) -> list[Instrument]:
    return [Instrument(symbol, symbol[:-3], symbol[-3:]) for symbol in symbols]


def listing(symbols: Iterable[str]) -> TradingList:
    return TradingList(url="http://x", time_s=1_795_720_899, symbols=instruments(symbols))


def parse(text: str) -> Instrument:
    (found,) = instruments([text])
    return found


class Run:
    """A watch whose exchange answers with the lists it is given."""

    def __init__(
        self,
        *words: str,
        start: Sequence[str] | None,
        failure: str = "",
        interval_s: float = HOUR_S,
    ) -> None:
        self.selection: Selection = parse_selection(map(Word, words), parse)
        known = None if start is None else listing(start)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.changes: list[tuple[list[str], list[str]]] = []
        self.answer: TradingList | Unavailable = listing([])
        self.watch = ListingWatch(
            selected=Selected(
                selection=self.selection,
                instruments=self.selection.resolve(known.symbols if known else []),
                trading=known,
                failure=failure,
            ),
            fetch=self.fetch,
            streams=self,
            observe=lambda event, /, **fields: self.events.append((event, fields)),
            interval_s=interval_s,
        )

    def fetch(self) -> TradingList:
        if isinstance(self.answer, Unavailable):
            raise self.answer
        return self.answer

    def change(self, added: Sequence[Instrument], removed: Sequence[Instrument]) -> None:
        self.changes.append(([i.symbol for i in added], [i.symbol for i in removed]))

    def check(self, *symbols: str) -> float:
        self.answer = listing(symbols)
        return self.watch.check()

    def fail(self) -> float:
        self.answer = Unavailable("the exchange is closed")
        return self.watch.check()


def test_nothing_new_changes_nothing() -> None:
    run = Run("all:USD", start=["BTCUSD"])
    assert 0.9 * HOUR_S <= run.check("BTCUSD", "ETHEUR") <= 1.1 * HOUR_S
    assert len({run.check("BTCUSD") for _ in range(5)}) > 1  # jittered
    assert (run.changes, run.events) == ([], [])


def test_listed_symbols_that_are_selected_begin() -> None:
    run = Run("*USD", start=["BTCUSD"])
    run.check("BTCUSD", "ETHUSD", "ETHEUR", "币USD")
    run.check("BTCUSD", "ETHUSD", "ETHEUR", "币USD")
    assert run.changes == [(["ETHUSD", "币USD"], [])]
    assert run.events == [("listed", {"symbols": "ETHUSD,币USD", "count": 2})]


def test_symbol_ends_after_two_lists_without_it() -> None:
    run = Run("all", "NEWUSD", start=["BTCUSD", "ETHUSD", *OTHERS])
    assert run.check("BTCUSD", *OTHERS) == 60
    assert run.changes == []
    assert run.check("BTCUSD", *OTHERS) > 60
    assert run.changes == [([], ["ETHUSD"])]
    assert run.events == [("delisted", {"symbols": "ETHUSD", "count": 1})]
    run.check("BTCUSD", *OTHERS)
    assert len(run.changes) == 1


def test_symbol_that_is_missing_once_goes_on() -> None:
    run = Run("all", start=["BTCUSD", "ETHUSD"])
    run.check("BTCUSD")
    run.check("BTCUSD", "ETHUSD")
    run.check("BTCUSD")
    assert (run.changes, run.events) == ([], [])


def test_ended_symbol_that_trades_again_begins_again() -> None:
    run = Run("ETHUSD", start=["BTCUSD", "ETHUSD"])
    run.check("BTCUSD")
    run.check("BTCUSD")
    run.check("BTCUSD", "ETHUSD")
    assert run.changes == [([], ["ETHUSD"]), (["ETHUSD"], [])]
    assert [name for name, _ in run.events] == ["delisted", "listed"]


@pytest.mark.parametrize("start", [None, ["BTCUSD"]], ids=["no-list", "not-listed"])
def test_named_symbol_is_kept_until_it_was_seen_trading(start: list[str] | None) -> None:
    run = Run("NEWUSD", start=start)
    for _ in range(3):
        run.check("BTCUSD")
    run.check("BTCUSD", "NEWUSD")
    assert run.changes == []
    run.check("BTCUSD")
    run.check("BTCUSD")
    assert run.changes == [([], ["NEWUSD"])]


def test_all_symbols_may_end() -> None:
    run = Run("BTCUSD,ETHUSD"[:6], start=["BTCUSD"])
    for _ in range(3):
        run.check("ETHUSD")
    assert run.changes == [([], ["BTCUSD"])]


def test_list_with_less_than_half_of_the_symbols_changes_nothing() -> None:
    run = Run("all", start=["BTCUSD", *OTHERS])
    for _ in range(3):
        assert run.check("ETHUSD", *OTHERS[:5]) == 600
    assert run.changes == []
    assert [name for name, _ in run.events] == ["listing_unavailable"] * 3
    assert run.events[0][1]["reason"] == "6 symbols trade, after 21"


def test_exchange_that_does_not_answer_is_asked_again_soon() -> None:
    run = Run("all", start=["BTCUSD"])
    assert run.fail() == 600
    assert run.events == [
        (
            "listing_unavailable",
            {
                "reason": "the exchange is closed",
                "listed_at": "2026-11-26T19:21:39.000Z",
                "retry_in_s": 600,
            },
        )
    ]
    run.check("BTCUSD", "ETHUSD")
    assert run.changes == [(["ETHUSD"], [])]


def test_named_symbols_do_not_warn_about_the_list() -> None:
    run = Run("BTCUSD", start=None)
    assert run.fail() == 600
    assert run.events == []


def test_short_interval_is_not_exceeded() -> None:
    run = Run("all", start=["BTCUSD", "ETHUSD"], interval_s=5)
    assert run.fail() == 5
    assert run.check("BTCUSD") == 5


def test_many_symbols_are_named_up_to_a_number() -> None:
    run = Run("all", start=["BTCUSD"])
    run.check("BTCUSD", *OTHERS, "ETHUSD")
    ((_, fields),) = run.events
    assert fields["count"] == 21
    assert fields["symbols"] == ",".join(OTHERS) + " and 1 more"


def test_stopped_watch_changes_nothing() -> None:
    run = Run("all", start=["BTCUSD"])
    run.watch.stop()
    run.check("BTCUSD", "ETHUSD")
    run.fail()
    run.watch.run()  # returns
    assert (run.changes, run.events) == ([], [])


def test_start_from_a_stored_list_is_reported() -> None:
    run = Run("all", start=["BTCUSD"], failure="the exchange is closed")
    run.watch.stop()
    run.watch.run()
    ((name, fields),) = run.events
    assert (name, fields["retry_in_s"]) == ("listing_unavailable", 60)


def test_instruments_of_the_exchange_are_used(tmp_path: Path) -> None:
    """The split of a listed symbol is the exchange's; a named one keeps its own."""
    named = parse_symbol("AAA/BBB", Market.SPOT, tmp_path)
    selection = parse_selection([Word("AAA/BBB"), Word("all")], lambda _: named)
    (found,) = selection.resolve([Instrument("AAABBB", "AA", "ABBB")])
    assert (found.base, found.quote) == ("AAA", "BBB")
