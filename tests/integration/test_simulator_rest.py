"""The REST side of the simulated exchange, and the faults of a market that goes on by itself."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from k2cli.errors import UsageError
from k2cli.ingestion.symbols import Market
from k2cli.simulator import (
    RestFault,
    Simulator,
    SimulatorOptions,
    open_simulator,
    running_simulator,
)
from support.waiting import PATIENCE_S, ManualClock

MICROS = {"X-MBX-TIME-UNIT": "MICROSECOND"}
TRADES = "/api/v3/historicalTrades?symbol=BTCUSDT"
AGGREGATES = "/api/v3/aggTrades?symbol=BTCUSDT"


def run(test: Callable[[], Any]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(timed())


def options(**over: Any) -> SimulatorOptions:
    return SimulatorOptions(**{"first_id": 100, **over})


def past(seconds: float, **over: Any) -> SimulatorOptions:
    """Return a live market that has traded for this long, 1000 trades a second."""
    settings = {"live_rate": 1000, "history_s": seconds, "speed": 1e9, "symbols": ("BTCUSDT",)}
    return options(**{**settings, **over})


@asynccontextmanager
async def rest(simulator: Simulator, **over: Any) -> AsyncIterator[httpx2.AsyncClient]:
    settings = {"base_url": simulator.rest_url, "timeout": PATIENCE_S, "trust_env": False}
    async with httpx2.AsyncClient(**{**settings, **over}) as client:
        yield client


@asynccontextmanager
async def stream(simulator: Simulator, path: str) -> AsyncIterator[ClientConnection]:
    settings: dict[str, Any] = {"ping_interval": None, "max_queue": None, "close_timeout": 0.1}
    settings |= {"compression": None, "open_timeout": PATIENCE_S, "proxy": None}
    async with connect(simulator.url + path, **settings) as connection:
        yield connection


async def receive(connection: ClientConnection, count: int) -> list[dict[str, Any]]:
    return [json.loads(await connection.recv()) for _ in range(count)]


async def receive_all(connection: ClientConnection) -> list[dict[str, Any]]:
    frames = []
    try:
        while True:
            frames += await receive(connection, 1)
    except ConnectionClosed:
        return frames


# --- history


def test_a_trade_is_the_same_on_every_stream_and_in_rest() -> None:
    async def test() -> None:
        both = "/ws/btcusdt@trade/ethusdt@trade?timeUnit=MICROSECOND"
        async with (
            open_simulator(options(rate=2000)) as simulator,
            stream(simulator, "/ws/btcusdt@trade?timeUnit=MICROSECOND") as one,
            stream(simulator, both) as two,
            rest(simulator, headers=MICROS) as client,
        ):
            frames = [f for each in (one, two) for f in await receive(each, 300)]
            rows = (await client.get(f"{TRADES}&fromId=100&limit=1000")).json()
            found = {r["id"]: (r["price"], r["qty"], r["time"], r["isBuyerMaker"]) for r in rows}
            trades = [frame for frame in frames if frame["s"] == "BTCUSDT"]
            assert len(trades) > 300
            for trade in trades:
                assert found[trade["t"]] == (trade["p"], trade["q"], trade["T"], trade["m"])

    run(test)


def test_pages_follow_each_other_until_the_newest_trade() -> None:
    async def test() -> None:
        settings = past(2.5, live_rate=1000, unlisted_every=50)
        async with open_simulator(settings) as simulator, rest(simulator) as client:
            simulator.stop_market()
            assert (await client.get(f"{TRADES}&fromId=0&limit=1")).json()[0]["id"] == 101
            ids, page, first = [], [0], 101
            while page:
                answer = (await client.get(f"{TRADES}&fromId={first}&limit=1000")).json()
                page = [row["id"] for row in answer]
                ids += page
                first = page[-1] + 1 if page else first
            published = simulator.published()["BTCUSDT"]
            assert len(published) >= 2500
            assert ids == [number for number in published if number % 50]
            assert simulator.unlisted(range(100, 201)) == [100, 150, 200]
            newest = (await client.get(f"{TRADES}&limit=7")).json()
            assert [row["id"] for row in newest] == ids[-7:]
            assert len((await client.get(TRADES)).json()) == 500

    run(test)


@pytest.mark.parametrize("unit_us", [1, 1000])
def test_aggregates_are_found_by_time(unit_us: int) -> None:
    async def test() -> None:
        async with (
            open_simulator(past(3, unlisted_every=13)) as simulator,
            rest(simulator, headers=MICROS) as client,
        ):
            simulator.stop_market()
            rows = (await client.get(f"{AGGREGATES}&fromId=100&limit=1000")).json()
            assert set(rows[0]) == set("apqflTmM")
            begin, end = rows[200]["T"] // unit_us, rows[300]["T"] // unit_us
            asked = f"{AGGREGATES}&startTime={begin}&endTime={end}&limit=1000"
            page = (await client.get(asked)).json()
            expected = [row for row in rows if begin <= row["T"] // unit_us <= end]
            assert page == expected
            assert len(expected) >= 101
            later = (await client.get(f"{AGGREGATES}&startTime={begin + 10**13}")).json()
            assert later == []

    run(test)


def test_time_and_exchange_info_are_served_on_one_connection() -> None:
    async def test() -> None:
        async with open_simulator(options()) as simulator, rest(simulator) as client:
            now_ms = (await client.get("/api/v3/time")).json()["serverTime"]
            assert abs(now_ms / 1000 - time.time()) < 60
            now_us = (await client.get("/api/v3/time", headers=MICROS)).json()["serverTime"]
            assert 0 <= now_us - 1000 * now_ms < 60_000_000
            assert (await client.get("/api/v3/exchangeInfo")).json()["symbols"]
            assert simulator.open_connections == 1
            assert list(simulator.rest_paths) == ["/api/v3/time"] * 2 + ["/api/v3/exchangeInfo"]
            assert (simulator.info_requests, simulator.connections) == (1, 0)

    run(test)


@pytest.mark.parametrize(
    ("market", "base", "key"),
    [(Market.USDM, "/fapi/v1", "quoteQty"), (Market.COINM, "/dapi/v1", "baseQty")],
)
def test_futures_want_a_key_for_single_trades(market: Market, base: str, key: str) -> None:
    async def test() -> None:
        symbol = "BTCUSD_PERP" if market is Market.COINM else "BTCUSDT"
        path = f"{base}/historicalTrades?symbol={symbol}"
        settings = past(1, market=market, symbols=(symbol,))
        async with open_simulator(settings) as simulator, rest(simulator) as client:
            refused = await client.get(path)
            assert (refused.status_code, refused.json()["code"]) == (401, -2014)
            row = (await client.get(path, headers={"X-MBX-APIKEY": "k"})).json()[-1]
            assert list(row) == ["id", "price", "qty", key, "time", "isBuyerMaker"]
            aggregates = await client.get(f"{base}/aggTrades?symbol={symbol}")
            assert set(aggregates.json()[0]) == set("apqflTm")
            asked = f"{base}/aggTrades?symbol={symbol}&fromId=1&startTime=1"
            assert (await client.get(asked)).json()["code"] == -1128
            assert aggregates.headers["X-MBX-USED-WEIGHT-1M"] == "420"

    run(test)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("", -1102),
        ("symbol=", -1102),
        ("symbol=NOSUCHUSDT", -1121),
        ("symbol=btcusdt", -1121),
        ("symbol=BTC%20USDT", -1121),
        ("symbol=BTCUSDT&limit=1001", -1130),
        ("symbol=BTCUSDT&limit=0", -1130),
        ("symbol=BTCUSDT&fromId=-1", -1100),
        ("symbol=BTCUSDT&fromId=x", -1100),
    ],
)
def test_bad_requests_are_refused(query: str, code: int) -> None:
    async def test() -> None:
        async with open_simulator(past(1)) as simulator, rest(simulator) as client:
            answer = await client.get(f"/api/v3/historicalTrades?{query}")
            assert (answer.status_code, answer.json()["code"]) == (400, code)

    run(test)


def test_a_symbol_that_never_traded_has_no_history() -> None:
    async def test() -> None:
        async with open_simulator(options()) as simulator, rest(simulator) as client:
            for query in ("", "&fromId=100"):
                assert (await client.get(TRADES + query)).json() == []
            assert (await client.get(f"{AGGREGATES}&startTime=0")).json() == []
            assert simulator.published()["BTCUSDT"] == range(0)

    run(test)


# --- limits


def test_the_weight_is_limited_and_a_client_that_ignores_it_is_banned() -> None:
    async def test() -> None:
        clock = ManualClock()
        settings = past(1, weight_limit=100, ban_s=300.0)
        async with open_simulator(settings, clock=clock) as simulator, rest(simulator) as client:

            async def ask() -> tuple[int, int, int]:
                answer = await client.get(TRADES)
                used = int(answer.headers["X-MBX-USED-WEIGHT-1M"])
                return answer.status_code, used, int(answer.headers.get("Retry-After", 0))

            clock.advance(60 - simulator.utc_s() % 60)
            assert [await ask() for _ in range(4)] == [(200, 25 * n, 0) for n in (1, 2, 3, 4)]
            status, used, wait_s = await ask()
            assert (status, used) == (429, 125)
            assert 59 <= wait_s <= 61
            clock.advance(wait_s)
            assert await ask() == (200, 25, 0)
            statuses = [(await ask())[0] for _ in range(10)]
            assert statuses == [200] * 3 + [429] * 5 + [418] * 2
            clock.advance(200)
            status, _, wait_s = await ask()
            assert status == 418
            assert 100 <= wait_s <= 102
            clock.advance(wait_s)
            assert (await ask())[0] == 200

    run(test)


def test_there_may_be_no_limit() -> None:
    async def test() -> None:
        settings = past(1, weight_limit=0)
        async with open_simulator(settings) as simulator, rest(simulator) as client:
            answers = [await client.get(TRADES) for _ in range(300)]
            assert {answer.status_code for answer in answers} == {200}
            assert "X-MBX-USED-WEIGHT-1M" not in answers[-1].headers

    run(test)


# --- wrong answers


async def outcome(client: httpx2.AsyncClient) -> str:
    """Describe the answer to a request for the ids from 500 on."""
    started_s = time.monotonic()
    try:
        answer = await client.get(f"{TRADES}&fromId=500&limit=10")
    except httpx2.ReadTimeout:
        return "no answer"
    except httpx2.RemoteProtocolError:
        return "cut"
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.headers.get('Retry-After', '')}".strip()
    try:
        ids = [row["id"] for row in answer.json()]
    except ValueError:
        return "not JSON"
    if time.monotonic() - started_s > 0.5:
        return "slow"
    return "right" if ids == list(range(500, 510)) else str(ids)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (RestFault.TOO_MANY, "429 1"),
        (RestFault.BANNED, "418 1"),
        (RestFault.FORBIDDEN, "403"),
        (RestFault.SERVER_ERROR, "500"),
        (RestFault.UNAVAILABLE, "503"),
        (RestFault.NOT_JSON, "not JSON"),
        (RestFault.CUT, "cut"),
        (RestFault.HUNG, "no answer"),
        (RestFault.SLOW, "slow"),
        (RestFault.EMPTY, "[]"),
        (RestFault.UNORDERED, str(list(range(509, 499, -1)))),
        (RestFault.REPEATED, str([n for n in range(500, 510) for _ in range(2)])),
        (RestFault.SHIFTED, str(list(range(490, 500)))),
    ],
)
def test_every_second_answer_is_wrong(fault: RestFault, expected: str) -> None:
    async def test() -> None:
        settings = past(1, rest_fault_every=2, rest_faults=(fault,), slow_s=1.0)
        timeout_s = 1.0 if fault is RestFault.HUNG else PATIENCE_S
        async with (
            open_simulator(settings) as simulator,
            rest(simulator, timeout=timeout_s) as client,
        ):
            found = [await outcome(client) for _ in range(4)]
            assert found[1::2] == [expected] * 2
            if fault is not RestFault.HUNG:  # a short timeout may hit a right answer as well
                assert found[::2] == ["right"] * 2

    run(test)


def test_an_endless_answer_ends_with_the_connection() -> None:
    async def test() -> None:
        settings = past(1, rest_fault_every=1, rest_faults=(RestFault.ENDLESS,))
        async with open_simulator(settings) as simulator:
            size = 0
            async with rest(simulator) as client, client.stream("GET", TRADES) as answer:
                async for chunk in answer.aiter_raw():
                    size += len(chunk)
                    if size > 1_000_000:
                        break
            while simulator.open_connections:
                await asyncio.sleep(0.01)

    run(test)


def test_faults_take_turns() -> None:
    async def test() -> None:
        settings = past(1, rest_fault_every=1, rest_faults=(RestFault.CUT, RestFault.FORBIDDEN))
        async with open_simulator(settings) as simulator, rest(simulator) as client:
            assert [await outcome(client) for _ in range(4)] == ["cut", "403"] * 2
            simulator.change(rest_fault_every=None)
            assert await outcome(client) == "right"

    run(test)


# --- a live market and its streams


def test_a_live_market_goes_on_while_a_client_is_away() -> None:
    async def test() -> None:
        async with open_simulator(options(live_rate=2000)) as simulator:
            last = []
            for _ in range(2):
                async with stream(simulator, "/ws/btcusdt@trade") as raw:
                    ids = [trade["t"] for trade in await receive(raw, 100)]
                    assert ids == list(range(ids[0], ids[0] + 100))
                last.append(ids)
                await asyncio.sleep(0.2)
            assert last[1][0] - last[0][-1] > 200
            simulator.stop_market()
            end = simulator.published()["BTCUSDT"]
            await asyncio.sleep(0.2)
            assert simulator.published()["BTCUSDT"] == end

    run(test)


def test_connections_are_cut_after_their_life() -> None:
    async def test() -> None:
        settings = options(live_rate=1000, life_s=0.3)
        async with open_simulator(settings) as simulator:
            for _ in range(2):
                async with stream(simulator, "/ws/btcusdt@trade") as raw:
                    assert await receive_all(raw)
                    assert raw.close_code == 1006

    run(test)


def test_one_stream_falls_silent_on_a_live_connection() -> None:
    async def test() -> None:
        settings = options(live_rate=1000, silent_stream_after=50)
        path = "/ws/btcusdt@trade/ethusdt@trade"
        silent = []
        async with open_simulator(settings) as simulator:
            for _ in range(2):
                async with stream(simulator, path) as raw:
                    frames = await receive(raw, 2500)
                    (remaining,) = {frame["s"] for frame in frames[-200:]}
                    silent.append({"BTCUSDT", "ETHUSDT"} - {remaining})
                    assert {frame["s"] for frame in frames[:20]} == {"BTCUSDT", "ETHUSDT"}
        assert sorted(map(sorted, silent)) == [["BTCUSDT"], ["ETHUSDT"]]

    run(test)


def test_a_silent_symbol_is_in_rest_alone() -> None:
    async def test() -> None:
        settings = options(live_rate=1000, silent_symbols=("BTCUSDT",))
        async with (
            open_simulator(settings) as simulator,
            stream(simulator, "/ws/btcusdt@trade/ethusdt@trade") as raw,
            rest(simulator) as client,
        ):
            assert {frame["s"] for frame in await receive(raw, 500)} == {"ETHUSDT"}
            assert len((await client.get(TRADES)).json()) > 100

    run(test)


def test_a_silent_route_accepts_connections_and_sends_nothing() -> None:
    async def test() -> None:
        settings = options(market=Market.USDM, live_rate=1000, silent_routes=("", "/public"))
        async with open_simulator(settings) as simulator:
            for route in ("", "/public"):
                async with stream(simulator, f"{route}/ws/btcusdt@trade") as raw:
                    await raw.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
                    assert (await receive(raw, 1))[0]["result"] == ["btcusdt@trade"]
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(raw.recv(), 0.2)
            async with stream(simulator, "/market/stream?streams=btcusdt@trade") as combined:
                assert (await receive(combined, 1))[0]["stream"] == "btcusdt@trade"

    run(test)


def test_every_third_connection_is_never_answered() -> None:
    async def test() -> None:
        async with open_simulator(options(half_open_every=3)) as simulator:
            answered = []
            for _ in range(6):
                try:
                    async with rest(simulator, timeout=1.0) as client:
                        await client.get("/api/v3/time")
                    answered.append(True)
                except httpx2.ReadTimeout:
                    answered.append(False)
            assert answered.count(False) >= 2
            assert (answered[2], answered[5]) == (False, False)

    run(test)


def test_changed_faults_concern_open_connections() -> None:
    async def test() -> None:
        async with (
            open_simulator(options(live_rate=1000)) as simulator,
            stream(simulator, "/ws/btcusdt@trade") as raw,
        ):
            await receive(raw, 100)
            simulator.change(skip_every=10)
            ids = [frame["t"] for frame in await receive(raw, 500)]
            assert ids[-1] - ids[-201] == pytest.approx(222, abs=2)
            simulator.change(skip_every=None, drop_after=1)
            await receive_all(raw)
            assert raw.close_code == 1006

    run(test)


@pytest.mark.parametrize("over", [{"rate": 5.0}, {"frames": __file__}])
def test_a_live_market_has_its_own_rate_and_content(over: dict[str, Any]) -> None:
    with pytest.raises(UsageError), running_simulator(options(live_rate=1.0, **over)):
        pass
