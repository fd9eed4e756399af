"""The symbols that trade, from servers that answer well, badly or not at all."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

import k2cli.ingestion.binance.exchangeinfo as module
from k2cli.errors import NotFound, Unavailable, UsageError
from k2cli.ingestion.binance.exchangeinfo import is_stale, trading_symbols
from k2cli.ingestion.binance.venues import VENUES, BinanceVenue
from k2cli.ingestion.selection import parse_selection, read_words
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.ingestion.trading import Selected, read_trading, select
from k2cli.simulator import SimulatorOptions, running_simulator
from support.httpserving import respond, serving, trickle
from support.tinyexchange import TINY_VENUE

NOW_S = 1_795_720_899.0
DAY_S = 24 * 3600.0


def info(*symbols: dict[str, Any]) -> bytes:
    return json.dumps({"timezone": "UTC", "symbols": symbols}, ensure_ascii=False).encode()


def symbol(base: str, quote: str, status: object = "TRADING", **more: object) -> dict[str, Any]:
    name = {"symbol": base + quote, "baseAsset": base, "quoteAsset": quote}
    return {**name, "status": status, **more}


ANSWER = info(symbol("BTC", "USDT"), symbol("ETH", "BTC"), symbol("OLD", "USDT", "BREAK"))


def at(url: str | None, market: Market = Market.SPOT) -> BinanceVenue:
    return replace(VENUES[market], rest_urls=[url] if url else [])


def selected(url: str | None, home: Path, *values: str, now_s: float = NOW_S) -> Selected:
    selection = parse_selection(read_words(values), lambda text: parse_symbol(text, Market.SPOT))
    return select(selection, at(url), home, clock=lambda: now_s)


def names(found: Selected) -> Sequence[str]:
    return [each.symbol for each in found.instruments]


def test_only_symbols_that_trade_are_listed(tmp_path: Path) -> None:
    answer = info(
        symbol("BTC", "USDT"),
        symbol("币安人生", "USDT"),
        *(symbol(f"S{n}", "USDT", status) for n, status in enumerate(
            ["BREAK", "HALT", "CANCEL_ONLY", "SOMETHING_NEW", "trading", "", None, 7, ["TRADING"]]
        )),
        {"symbol": "NOSTATUS", "baseAsset": "NO", "quoteAsset": "STATUS"},
        {"symbol": "BTCUSD_PERP", "baseAsset": "BTC", "quoteAsset": "USD",
         "contractStatus": "TRADING", "contractType": "PERPETUAL"},
        {"symbol": "BTCUSDT_260925", "baseAsset": "BTC", "quoteAsset": "USDT",
         "status": "TRADING", "contractType": "CURRENT_QUARTER"},
        symbol("A/B", "USDT"),
        symbol("A@B", "USDT"),
    )  # fmt: skip
    with serving(respond(answer)) as url:
        trading = trading_symbols(at(url), rest_url=url, home=tmp_path)
    assert [(each.symbol, each.base, each.quote) for each in trading] == [
        ("BTCUSDT", "BTC", "USDT"),
        ("币安人生USDT", "币安人生", "USDT"),
        ("BTCUSD_PERP", "BTC", "USD"),
        ("BTCUSDT_260925", "BTC", "USDT"),
    ]


def test_answer_of_5_megabytes_with_symbols_that_are_not_ascii(tmp_path: Path) -> None:
    padding = "界" * 150
    listed = [symbol(f"币{n}", "USDT", filters=[{"filterType": padding}]) for n in range(9000)]
    answer = info(*listed)
    assert len(answer) > 5_000_000
    with serving(respond(answer)) as url:
        found = selected(url, tmp_path, "all:USDT")
    assert len(found.instruments) == 9000
    assert found.instruments[0].symbol == "币0USDT"
    assert (found.failure, read_trading(at(url), tmp_path)) == ("", found.trading)
    assert not is_stale(at(url), tmp_path)  # the list of all symbols is refreshed, too


@pytest.mark.parametrize("market", list(Market))
def test_simulator_lists_and_delists(tmp_path: Path, market: Market) -> None:
    first, second = {
        Market.COINM: ("ETHUSD_PERP", "BTCUSD_PERP"),
        Market.US: ("ETHUSD", "BTCUSD"),
    }.get(market, ("ETHUSDT", "BTCUSDT"))
    with running_simulator(SimulatorOptions(market=market, symbols=(first,))) as simulator:
        venue = at(simulator.url.replace("ws://", "http://"), market)

        def trading() -> list[str]:
            return [i.symbol for i in venue.trading_symbols(venue.rest_urls[0], tmp_path)]

        assert trading() == [first]
        simulator.list_symbols(second)
        assert trading() == [first, second]
        simulator.delist_symbols(first)
        assert trading() == [second]


BAD = {
    "418": respond(b"<html>teapot</html>", 418),
    "451": respond(b"{}", 451),
    "500": respond(b"", 500),
    "redirect": respond(ANSWER, 302, Location="http://127.0.0.1:9/"),
    "html": respond(b"<html>not JSON</html>"),
    "empty": respond(b""),
    "cut": respond(ANSWER[:-10]),
    "null": respond(b"null"),
    "list": respond(b"[]"),
    "no-symbols": respond(b'{"symbols":[]}'),
    "no-assets": respond(b'{"symbols":[{"symbol":"BTCUSDT","status":"TRADING"}]}'),
    "nothing-trades": respond(info(symbol("BTC", "USDT", "BREAK"))),
    "deep": respond(b'{"x":' + b"[" * 3500 + b"]" * 3500 + b',"symbols":[]}'),
    "not-utf8": respond(ANSWER.replace(b"OLD", b"\xff\xfe\xff")),
    "large": respond(b" " * 9000 + ANSWER),
    "endless": trickle,
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_bad_answer_is_unavailable_and_then_the_last_list_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., None]
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 9000)
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.5)
    answers = [answer, respond(ANSWER), answer]

    def answer_next(request: BaseHTTPRequestHandler) -> None:
        answers[0](request)

    with serving(answer_next) as url:
        with pytest.raises(Unavailable, match="cannot list the symbols of http") as caught:
            selected(url, tmp_path, "all:USDT")
        assert caught.value.hint
        assert not (tmp_path / "symbols").exists()
        del answers[0]
        assert names(selected(url, tmp_path, "all:USDT")) == ["BTCUSDT"]
        del answers[0]
        restarted = selected(url, tmp_path, "all:USDT", now_s=NOW_S + 6 * DAY_S)
        assert names(restarted) == ["BTCUSDT"]
        assert restarted.failure.startswith("cannot list the symbols of http")
        assert restarted.trading is not None
        assert restarted.trading.time_s == NOW_S
        with pytest.raises(Unavailable):
            selected(url, tmp_path, "all:USDT", now_s=NOW_S + 8 * DAY_S)


def test_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="cannot list the symbols") as caught:
        selected("http://127.0.0.1:9", tmp_path, "all")
    assert "--rest-url" in (caught.value.hint or "")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b"[]", b'{"url":"http://127.0.0.1:9","time_s":0,"symbols":[]}']
)
def test_damaged_list_in_the_home_folder_does_not_serve(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "symbols").mkdir()
    (tmp_path / "symbols" / "trading-BINANCE.json").write_bytes(content)
    with pytest.raises(Unavailable):
        selected("http://127.0.0.1:9", tmp_path, "all", now_s=1.0)


def test_list_of_another_server_does_not_serve(tmp_path: Path) -> None:
    with serving(respond(ANSWER)) as url:
        selected(url, tmp_path, "all")
    with pytest.raises(Unavailable):
        selected("http://127.0.0.1:9", tmp_path, "all")
    assert read_trading(at(None), tmp_path) is None


def test_named_symbols_ask_nobody(tmp_path: Path) -> None:
    found = selected("http://127.0.0.1:9", tmp_path, "ETHUSDT,BTCUSDT")
    assert names(found) == ["ETHUSDT", "BTCUSDT"]
    assert (found.trading, found.failure) == (None, "")


def test_home_that_cannot_be_written_does_not_matter(tmp_path: Path) -> None:
    (tmp_path / "symbols").write_text("a file")
    with serving(respond(ANSWER)) as url:
        assert names(selected(url, tmp_path, "all", "XRPUSDT")) == ["XRPUSDT", "BTCUSDT", "ETHBTC"]


def test_quote_asset_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with (
        serving(respond(ANSWER)) as url,
        pytest.raises(NotFound, match="'all:NOSUCH' matches none"),
    ):
        selected(url, tmp_path, "all:NOSUCH")


@pytest.mark.parametrize(
    ("url", "words"), [(None, "needs the exchange's list"), ("ftp://x", "is not a REST URL")]
)
def test_rules_without_a_rest_url_are_a_usage_error(
    tmp_path: Path, url: str | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        selected(url, tmp_path, "all")


def test_exchange_without_a_list_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TINY does not list its symbols"):
        TINY_VENUE.trading_symbols("http://127.0.0.1:9", tmp_path)
