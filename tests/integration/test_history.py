"""The history of a market against a REST API that works, refuses, breaks, and lies."""

import asyncio
import itertools
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pytest
import stamina

from k2cli.errors import UsageError
from k2cli.ingestion.binance.http import Timing
from k2cli.ingestion.binance.protocol import FrameParser
from k2cli.ingestion.binance.rest import BinanceHistory
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.history import HistoryRefused, HistoryUnavailable, Page
from k2cli.ingestion.symbols import Instrument, Market
from k2cli.redaction import hide_secrets
from k2cli.storage.lake import Lake
from support.builders import Row, rest_trades, streamed
from support.restserver import AGGREGATES, TRADES, Reply, Request, RestServer, rest_server

T = TypeVar("T")

BTC = Instrument("BTCUSDT", "BTC", "USDT")
KEY = "vmPUZE6mv9SD5VNHk4HlWFsOr6aKE2zvsw0MuIgwCIPy6utIco14y7Ju91duEh8A"
FIRST, LAST = 1000, 1019
ALL = list(range(FIRST, LAST + 1))
CLOSED = "http://127.0.0.1:9"
BAD_SYMBOL = {"code": -1121, "msg": "Invalid symbol."}


class Clock:
    """A clock that a test sets."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(True, attempts=5, cap=True):
        yield


@asynccontextmanager
async def opened(
    *urls: str,
    market: Market = Market.SPOT,
    api_key: str | None = None,
    **timing: Any,
) -> AsyncIterator[BinanceHistory]:
    venue = VENUES[market].at([], urls)
    history = BinanceHistory(venue=venue, api=venue.rest, api_key=api_key, timing=Timing(**timing))
    try:
        yield history
    finally:
        await history.close()


def ask(*urls: str, do: Callable[[BinanceHistory], Awaitable[T]], **options: Any) -> T:
    """Run one call of a history."""

    async def run() -> T:
        async with opened(*urls, **options) as history:
            return await do(history)

    return asyncio.run(run())


def fetch(*urls: str, first: int = FIRST, last: int = LAST, **options: Any) -> Page:
    """Fetch a page of trades."""
    return ask(*urls, do=lambda history: history.trades(BTC, first, last), **options)


def numbers(page: Page) -> list[int]:
    found: list[int] = page.rows["source_sequence"].to_pylist()
    return found


def failing(*replies: Reply | None) -> Callable[[Request], Reply | None]:
    """Answer the first requests in this way, and then correctly."""
    left = iter(replies)
    return lambda _: next(left, None)


def always(reply: Reply) -> Callable[[Request], Reply]:
    return lambda _: reply


def refusing(reply: Reply) -> Callable[[Request], Reply | None]:
    """Refuse single trades only."""
    return lambda request: reply if request.endpoint == TRADES else None


# --- requests


def test_page_of_trades() -> None:
    with rest_server(rest_trades(50)) as rest:
        page = fetch(rest.url)
    assert (numbers(page), page.known_to) == (ALL, LAST)
    (request,) = rest.requests
    assert request.path == "/api/v3/historicalTrades"
    assert request.query == {"symbol": "BTCUSDT", "fromId": "1000", "limit": "20"}
    assert request.headers["x-mbx-time-unit"] == "MICROSECOND"


def test_long_hole_is_fetched_page_by_page() -> None:
    async def fill(history: BinanceHistory) -> list[int]:
        found, first = [], FIRST
        while first <= FIRST + 2499:
            page = await history.trades(BTC, first, FIRST + 2499)
            found += numbers(page)
            first = page.known_to + 1
        return found

    with rest_server(rest_trades(3000)) as rest:
        assert ask(rest.url, do=fill) == list(range(FIRST, FIRST + 2500))
    assert [each.query["limit"] for each in rest.requests] == ["1000", "1000", "500"]


def test_symbol_that_is_not_ascii_arrives_as_it_is() -> None:
    with rest_server(rest_trades(2)) as rest:
        instrument = Instrument("币安人生USDT", "币安人生", "USDT")
        ask(rest.url, do=lambda history: history.trades(instrument, FIRST, LAST))
    assert rest.requests[0].query["symbol"] == "币安人生USDT"


@pytest.mark.parametrize("market", [Market.USDM, Market.COINM])
def test_futures_need_a_key(market: Market) -> None:
    with rest_server(rest_trades(20, is_exact=False)) as rest:
        with pytest.raises(HistoryRefused, match=r"need an API key: set binance\.api_key"):
            fetch(rest.url, market=market)
        assert rest.requests == []
        page = fetch(rest.url, market=market, api_key=KEY)
    assert numbers(page) == ALL
    (request,) = rest.requests
    assert request.headers["x-mbx-apikey"] == KEY
    assert "x-mbx-time-unit" not in request.headers
    assert request.path.startswith("/fapi/v1/" if market is Market.USDM else "/dapi/v1/")


def test_key_is_sent_only_where_it_is_needed() -> None:
    with rest_server(rest_trades(20)) as rest:
        fetch(rest.url, api_key=KEY)
        ask(
            rest.url,
            do=lambda history: history.first_since(BTC, int(time.time() * 1e6)),
            api_key=KEY,
            market=Market.USDM,
        )
    assert rest.asked(AGGREGATES)
    assert not any("x-mbx-apikey" in each.headers for each in rest.requests)


@pytest.mark.parametrize("base", ["", "x", "ws://127.0.0.1", "https://", "http://h:x"])
def test_wrong_base_is_a_usage_error(base: str) -> None:
    with pytest.raises(UsageError, match="REST URL"):
        VENUES[Market.SPOT].at([], [base]).open_history(None)


def test_venue_without_rest_urls_has_no_history() -> None:
    spot = VENUES[Market.SPOT]
    assert spot.at(["ws://127.0.0.1:9"], []).open_history(None) is None
    assert isinstance(spot.open_history(None), BinanceHistory)


def test_history_that_is_not_asked_loads_no_client() -> None:
    code = (
        "import sys; from k2cli.ingestion.binance.venues import VENUES;"
        "VENUES['spot'].open_history(None);"
        "print({'httpx2', 'stamina', 'aiolimiter'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:9", "http://127.0.0.1:9"])
def test_proxy_of_the_environment_is_used(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with (
        rest_server(rest_trades(20)) as rest,
        stamina.set_testing(True, attempts=1),
    ):
        with pytest.raises(HistoryUnavailable):
            fetch(rest.url)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        assert numbers(fetch(rest.url)) == ALL
        assert len(rest.requests) == 1


@pytest.mark.parametrize("proxy", ["foo:bar", "gopher://127.0.0.1:9"])
def test_wrong_proxy_is_refused(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", proxy)
    with pytest.raises(HistoryRefused, match="no connection is possible"):
        fetch(CLOSED)


# --- the same trade twice


@pytest.mark.parametrize("is_exact", [True, False])
def test_trade_that_was_streamed_is_a_duplicate(lake: Lake, is_exact: bool) -> None:
    """Also if one of both sources has milliseconds only."""
    streams = rest_trades(20)
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=[BTC])
    frames = [streamed("BTCUSDT", each) for each in streams]
    ((kind, rows),) = parser.parse(frames, [1] * len(frames), first=1).rows
    with rest_server(rest_trades(20, is_exact=is_exact)) as rest:
        page = fetch(rest.url)
    table = lake.open(kind)
    for batch, expected in ((rows, (20, 0, 0)), (page.rows, (0, 20, 0))):
        commit = table.append(pa.Table.from_batches([batch]))
        assert (commit.rows, commit.duplicates, commit.conflicts) == expected


# --- bad answers


def changed(index: int, **over: Any) -> list[Row]:
    trades = rest_trades(20)
    trades[index] = {**trades[index], **over}
    return trades


BAD = {
    "503": Reply(b"<html>", 503),
    "500": Reply({"code": -1007, "msg": "Timeout waiting for response"}, 500),
    "-1007": Reply({"code": -1007, "msg": "Timeout waiting for response"}, 408),
    "-1001": Reply({"code": -1001, "msg": "Internal error"}, 400),
    "error-as-200": Reply({"code": -1007, "msg": "Timeout"}),
    "400-without-code": Reply(b"<html>", 400),
    "redirect": Reply(b"", 302, {"Location": CLOSED}),
    "html": Reply(b"<html>no JSON</html>"),
    "no-body": Reply(b""),
    "cut-off": Reply(b'[{"id":1000,"pri'),
    "unordered": Reply(list(reversed(rest_trades(20)))),
    "repeated": Reply(rest_trades(10) + rest_trades(10)),
    "overlapping": Reply(rest_trades(10) + rest_trades(10, first=1005)),
    "below": Reply(rest_trades(20, first=980)),
    "negative": Reply(changed(0, id=-1)),
    "huge": Reply(changed(19, id=10**30)),
    "float": Reply(changed(5, id=1005.5)),
    "text": Reply(changed(5, id="1005")),
    "bad-gzip": Reply(b"nonsense", 200, {"Content-Encoding": "gzip"}),
    "large": Reply(b" " * (6 << 20)),
    "endless": Reply(parts=itertools.repeat(b" " * 65536)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_answer_is_asked_for_again(name: str) -> None:
    with rest_server(rest_trades(50), failing(BAD[name])) as rest:
        page = fetch(rest.url)
    assert (numbers(page), page.known_to) == (ALL, LAST)
    assert len(rest.requests) == 2


@pytest.mark.parametrize("name", ["503", "html", "unordered", "below", "large"])
def test_server_that_only_answers_badly_is_unavailable(name: str) -> None:
    with rest_server(answer=always(BAD[name])) as rest:
        with pytest.raises(HistoryUnavailable, match=r"127\.0\.0\.1:") as caught:
            fetch(rest.url)
        assert len(rest.requests) == 5
    assert (caught.value.retry_in_s, caught.value.is_banned) == (0.0, False)


def dripping() -> Iterator[bytes]:
    while True:
        yield b" "
        time.sleep(0.02)


def test_slow_answer_is_given_up() -> None:
    with rest_server(answer=lambda _: Reply(parts=dripping())) as rest:
        with pytest.raises(HistoryUnavailable, match=r"no answer within 0\.2 s"):
            fetch(rest.url, timeout_s=0.2)
        assert len(rest.requests) == 5


def test_page_that_does_not_advance_is_invalid() -> None:
    """The exchange has trades, but not from there on."""
    with (
        rest_server(answer=always(Reply(rest_trades(20)))) as rest,
        pytest.raises(HistoryUnavailable, match="trade 1000 instead of 1020"),
    ):
        fetch(rest.url, first=1020, last=1039)


def test_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(HistoryUnavailable, match=r"127\.0\.0\.1:9"):
        fetch(CLOSED)


def test_symbol_that_the_exchange_does_not_know_is_refused() -> None:
    with rest_server(answer=always(Reply(BAD_SYMBOL, 400))) as rest:
        with pytest.raises(HistoryRefused, match="Invalid symbol"):
            fetch(rest.url)
        assert len(rest.requests) == 1


# --- limits


@pytest.mark.parametrize(
    ("status", "headers", "wait_s", "is_banned"),
    [
        (429, {"Retry-After": "7"}, 7, False),
        (429, {}, 60, False),
        (429, {"Retry-After": "soon"}, 60, False),
        (429, {"Retry-After": "-5"}, 60, False),
        (429, {"Retry-After": "Thu, 01 Jan 2026 00:02:00 GMT"}, 120, False),
        (418, {"Retry-After": "600"}, 600, True),
        (418, {"Retry-After": "9" * 9}, 3 * 86400, True),
        (418, {}, 300, True),
        (403, {}, 300, True),
        (403, {"Retry-After": "30"}, 30, True),
    ],
)
def test_refusal_is_respected_for_as_long_as_required(
    status: int, headers: Mapping[str, str], wait_s: float, is_banned: bool
) -> None:
    clock = Clock()

    async def run(rest: RestServer) -> None:
        utc = Clock(1_767_225_600.0)  # 2026-01-01
        async with opened(rest.url, monotonic=clock, utc=utc) as history:
            with pytest.raises(HistoryUnavailable) as caught:
                await history.trades(BTC, FIRST, LAST)
            assert caught.value.retry_in_s == pytest.approx(wait_s)
            assert caught.value.is_banned is is_banned
            assert len(rest.requests) == 1
            clock.now_s += wait_s - 1
            for asking in (history.trades(BTC, FIRST, LAST), history.first_since(BTC, 1)):
                with pytest.raises(HistoryUnavailable) as caught:
                    await asking
                assert caught.value.retry_in_s == pytest.approx(1)
                assert caught.value.is_banned is is_banned
            assert len(rest.requests) == 1
            clock.now_s += 1
            assert numbers(await history.trades(BTC, FIRST, LAST)) == ALL

    with rest_server(rest_trades(50), failing(Reply(b"", status, headers))) as rest:
        asyncio.run(run(rest))


@pytest.mark.parametrize("status", [429, 418])
def test_limit_of_the_address_applies_to_all_servers(status: int) -> None:
    with rest_server(answer=always(Reply(b"", status))) as rest, rest_server() as other:
        with pytest.raises(HistoryUnavailable):
            fetch(rest.url, other.url)
        assert other.requests == []


def test_weight_that_others_use_slows_requests_down() -> None:
    reply = Reply(rest_trades(20), headers={"X-MBX-USED-WEIGHT-1M": "5900"})
    utc = Clock(1_767_225_658.0)  # 2 s before the next minute

    async def run(history: BinanceHistory) -> float:
        await history.trades(BTC, FIRST, LAST)
        begin_s = time.monotonic()
        await history.trades(BTC, FIRST, LAST)
        return time.monotonic() - begin_s

    with rest_server(rest_trades(20), failing(reply)) as rest:
        assert ask(rest.url, do=run, utc=utc) >= 1.5  # it began when the header arrived


@pytest.mark.parametrize("used", ["", "x", "-1", "9" * 30, "1.5", "²"])
def test_wrong_count_of_weight_is_ignored(used: str) -> None:
    reply = Reply(rest_trades(20), headers={"X-MBX-USED-WEIGHT-1M": used})
    with rest_server(answer=always(reply)) as rest:
        begin_s = time.monotonic()
        for _ in range(2):
            fetch(rest.url, utc=Clock(1_767_225_630.0))
        assert time.monotonic() - begin_s < 20


# --- several servers


@pytest.mark.parametrize("name", ["503", "html", "below"])
def test_next_server_is_asked_when_one_fails(name: str) -> None:
    async def run(history: BinanceHistory) -> None:
        for _ in range(3):
            assert numbers(await history.trades(BTC, FIRST, LAST)) == ALL

    with rest_server(answer=always(BAD[name])) as bad, rest_server(rest_trades(20)) as good:
        ask(bad.url, good.url, do=run)
        assert (len(bad.requests), len(good.requests)) == (1, 3)


def test_unreachable_server_is_skipped() -> None:
    with rest_server(rest_trades(20)) as good:
        assert numbers(fetch(CLOSED, good.url)) == ALL


def test_server_that_failed_is_preferred_again_later() -> None:
    clock = Clock()

    async def run(history: BinanceHistory) -> None:
        await history.trades(BTC, FIRST, LAST)
        clock.now_s += 61
        await history.trades(BTC, FIRST, LAST)

    with (
        rest_server(rest_trades(20), failing(BAD["503"])) as one,
        rest_server(rest_trades(20)) as other,
    ):
        ask(one.url, other.url, do=run, monotonic=clock)
        assert (len(one.requests), len(other.requests)) == (2, 1)


@pytest.mark.parametrize("status", [403, 404, 405, 410])
def test_mirror_without_single_trades_is_skipped(status: int) -> None:
    async def run(history: BinanceHistory) -> None:
        for _ in range(2):
            assert numbers(await history.trades(BTC, FIRST, LAST)) == ALL

    mirror, good = rest_server(answer=refusing(Reply(b"", status))), rest_server(rest_trades(20))
    with mirror as rest, good as other:
        ask(rest.url, other.url, do=run)
        assert (len(rest.requests), len(other.requests)) == (1, 2)


# --- without single trades


NO_TRADES = refusing(Reply(b"<html>", 404))


def test_aggregates_show_what_is_missing() -> None:
    with rest_server(rest_trades(100), NO_TRADES) as rest:
        with pytest.raises(HistoryRefused) as caught:
            fetch(rest.url, first=1011, last=1030)
        assert len(rest.asked(TRADES)) == 1
    assert str(caught.value) == (
        f"{rest.url[7:]}: historicalTrades is not offered; aggregate trades show 20 trades"
        " between 2024-08-09T00:03:25.062115Z and 2024-08-09T00:03:35.063345Z"
    )


def test_aggregates_far_back_are_searched() -> None:
    with rest_server(rest_trades(60_000), NO_TRADES) as rest:
        with pytest.raises(HistoryRefused, match=r"show 1,000 trades between"):
            fetch(rest.url, first=9001, last=10_000)
        with pytest.raises(HistoryRefused, match=r"show at least 1,9\d\d trades between"):
            fetch(rest.url, first=9001, last=19_000)
        assert len(rest.asked(AGGREGATES)) < 40


@pytest.mark.parametrize(
    ("trades", "first", "last", "known_to"),
    [
        pytest.param(rest_trades(20), 2000, 2009, 1999, id="later-than-all"),
        pytest.param([], 2000, 2009, 1999, id="none"),
        pytest.param(rest_trades(9) + rest_trades(9, first=3000), 2000, 2009, 2009, id="hole"),
        pytest.param(rest_trades(9) + rest_trades(9, first=2005), 2000, 2009, 2004, id="partly"),
    ],
)
def test_aggregates_show_that_nothing_is_missing(
    trades: Sequence[Row], first: int, last: int, known_to: int
) -> None:
    with rest_server(trades, NO_TRADES) as rest:
        page = fetch(rest.url, first=first, last=last)
    assert (page.rows.num_rows, page.known_to, page.rejects) == (0, known_to, ())


def test_hole_between_pages_of_aggregates_is_found() -> None:
    trades = [*rest_trades(6000), *rest_trades(6000, first=50_000)]
    with rest_server(trades, NO_TRADES) as rest:
        assert fetch(rest.url, first=20_000, last=20_999).known_to == 20_999


def test_server_without_any_trades_is_refused() -> None:
    with rest_server(answer=always(Reply(b"", 404))) as rest:
        with pytest.raises(HistoryRefused, match=r"historicalTrades .* aggTrades is not offered"):
            fetch(rest.url)
        assert len(rest.requests) == 2


def test_lies_about_aggregates_end() -> None:
    """Pages that do not match the request neither loop nor count."""
    newest, other = ({"a": a, "f": 10**12, "l": 10**12, "T": 1} for a in (10**9, 7))
    lies = {"fromId": newest}

    def answer(request: Request) -> Reply:
        if request.endpoint == TRADES:
            return Reply(b"", 404)
        return Reply([lies["fromId"] if "fromId" in request.query else newest])

    with rest_server(answer=answer) as rest:
        assert fetch(rest.url).known_to == LAST
        assert len(rest.requests) < 50
        lies["fromId"] = other
        with pytest.raises(HistoryUnavailable, match="not the aggregate trades from"):
            fetch(rest.url)


# --- by time


START_US = rest_trades(1)[0]["time"]


def since(rest: RestServer, time_us: int, **options: Any) -> int | None:
    return ask(rest.url, do=lambda history: history.first_since(BTC, time_us), **options)


@pytest.mark.parametrize("is_exact", [True, False])
def test_first_trade_since(is_exact: bool) -> None:
    trades = rest_trades(50, is_exact=is_exact)
    with rest_server(trades) as rest:
        assert since(rest, START_US) == (1000 if is_exact else 1002)
        assert since(rest, START_US // 1000 * 1000) == 1000
        assert since(rest, START_US + 1) == 1002
        assert since(rest, START_US - 50 * 86400 * 10**6) == 1000
    query = rest.requests[0].query
    assert int(query["endTime"]) - int(query["startTime"]) < 3_600_000


def test_no_trade_since() -> None:
    with rest_server(rest_trades(50)) as rest:
        assert since(rest, START_US + 10**9, utc=Clock(START_US / 1e6 + 86400)) is None
        assert since(rest, int((time.time() + 3600) * 1e6)) is None


def test_windows_that_are_too_long_become_shorter() -> None:
    def answer(request: Request) -> Reply | None:
        if "startTime" not in request.query:  # the newest ones
            return None
        start, end = int(request.query["startTime"]), int(request.query["endTime"])
        too_long = {"code": -1127, "msg": "Lookup interval is too big."}
        return Reply(too_long, 400) if end - start >= 3_600_000 else None

    with rest_server(rest_trades(50), answer) as rest:
        assert since(rest, START_US - 6 * 3600 * 10**6) == 1000


@pytest.mark.parametrize(
    "rows",
    [
        [{"a": 1, "f": 5, "l": 5, "T": START_US // 1000 - 1}],
        [{"a": 1, "f": 5, "l": 5, "T": START_US // 1000 + 10**8}],
        [{"a": 2, "f": 5, "l": 5, "T": START_US}, {"a": 1, "f": 6, "l": 6, "T": START_US}],
        {"a": 1},
    ],
)
def test_wrong_answer_about_a_time_is_unavailable(rows: object) -> None:
    with rest_server(answer=always(Reply(rows))) as rest, pytest.raises(HistoryUnavailable):
        since(rest, START_US)


def test_answers_without_numbers_do_not_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k2cli.ingestion.binance.rest._MAX_WINDOWS", 20)

    def answer(request: Request) -> Reply:
        start = int(request.query["startTime"])
        return Reply([{"a": 1, "f": -1, "l": -1, "T": start}])

    with rest_server(answer=answer) as rest:
        with pytest.raises(HistoryUnavailable, match="no trade of BTCUSDT was found"):
            since(rest, START_US)
        assert len(rest.requests) == 20


def test_futures_are_not_found_before_two_days() -> None:
    with rest_server() as rest:
        with pytest.raises(HistoryRefused, match="in the last 48 h"):
            since(rest, int((time.time() - 49 * 3600) * 1e6), market=Market.USDM)
        assert rest.requests == []


# --- the key is secret


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"code": -2015, "msg": f"Invalid API-key {KEY}"}, 401),
        Reply({"code": -2014, "msg": f"API-key format invalid: {KEY}"}, 400),
        Reply({"code": -1100, "msg": f"Illegal character in {KEY}"}, 400),
        Reply({"code": -1001, "msg": f"x {KEY}"}, 503),
        Reply({"code": -1003, "msg": f"Too many requests by {KEY}"}, 429),
        Reply([{"id": KEY}]),
    ],
    ids=lambda reply: str(reply.status),
)
def test_key_is_never_shown(
    reply: Reply, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with (
        rest_server(answer=always(reply)) as rest,
        stamina.set_testing(True, attempts=1),
        caplog.at_level(logging.DEBUG),
        pytest.raises((HistoryRefused, HistoryUnavailable)) as caught,
    ):
        fetch(rest.url, api_key=KEY, market=Market.USDM)
    texts = [str(caught.value), repr(caught.value), caplog.text, *capfd.readouterr()]
    assert not any(KEY in text for text in texts)
    assert KEY not in hide_secrets(f"x {KEY}")
    assert KEY not in repr(VENUES[Market.USDM].open_history(None, api_key=KEY))


def test_rejected_key_is_named() -> None:
    reply = Reply({"code": -2015, "msg": "Invalid API-key, IP, or permissions for action."}, 401)
    with rest_server(answer=always(reply)) as rest:
        with pytest.raises(HistoryRefused, match="rejects the API key"):
            fetch(rest.url, api_key=KEY, market=Market.USDM)
        with pytest.raises(HistoryRefused, match="need an API key"):
            fetch(rest.url, market=Market.US)
        assert len(rest.requests) == 2


@pytest.mark.parametrize("key", ["a b", "a\r\nHost: x", "ключ", f"{KEY}\n"])
def test_text_that_cannot_be_a_key_is_refused(key: str) -> None:
    with rest_server() as rest:
        with pytest.raises(HistoryRefused, match=r"binance\.api_key has characters") as caught:
            fetch(rest.url, api_key=key, market=Market.USDM)
        assert rest.requests == []
    assert key not in str(caught.value)


def test_retries_leave_no_log_lines_and_no_metrics(caplog: pytest.LogCaptureFixture) -> None:
    with rest_server(rest_trades(20), failing(BAD["503"])) as rest:
        fetch(rest.url)
    assert "stamina" not in caplog.text


def test_rejects_of_a_page() -> None:
    with rest_server(changed(3, price="-1")) as rest:
        page = fetch(rest.url)
    assert isinstance(page.rows, pa.RecordBatch)
    assert [each.position for each in page.rejects] == [1003]
    assert numbers(page) == [each for each in ALL if each != 1003]
