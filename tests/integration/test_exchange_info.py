"""The refresh of the list of symbols, against the simulator and against servers that misbehave."""

import gzip
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

import k2cli.ingestion.binance.exchangeinfo as module
from k2cli.errors import UsageError
from k2cli.ingestion.binance.exchangeinfo import (
    SymbolRefresh,
    is_stale,
    refresh_symbols,
)
from k2cli.ingestion.binance.http import check_rest_url
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.listings import home_list, known_listing
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.simulator import SimulatorOptions, running_simulator
from support.httpserving import respond, serving, trickle
from support.running import Run, start_k2
from support.waiting import PATIENCE_S

SPOT = VENUES[Market.SPOT]
ANSWER = json.dumps(
    {"symbols": [{"symbol": "FOOOBAR", "baseAsset": "FOOO", "quoteAsset": "BAR", "status": "X"}]}
).encode()


@pytest.mark.parametrize("market", list(Market))
def test_simulator_lists_its_symbols_at_the_path_of_its_market(
    tmp_path: Path, market: Market
) -> None:
    symbol = {Market.COINM: "ETHUSD_PERP", Market.US: "ETHUSD"}.get(market, "ETHUSDT")
    options = SimulatorOptions(market=market, symbols=(symbol, "币安人生USDT"))
    with running_simulator(options) as simulator:
        rest = simulator.url.replace("ws://", "http://")
        assert refresh_symbols(VENUES[market], rest_url=rest, home=tmp_path) == 2
        assert simulator.info_requests == 1
        assert simulator.paths == []  # of WebSocket connections
        answer = httpx2.get(f"{rest}/api/v9/exchangeInfo")
        assert answer.status_code == 404
    text = home_list(tmp_path, market).read_text(encoding="utf-8")
    assert "币安人生" in text
    assert "\tETH" in text
    assert not parse_symbol("币安人生USDT", market, tmp_path).is_guess


def test_simulator_without_symbols_lists_what_it_can_price(tmp_path: Path) -> None:
    with running_simulator(SimulatorOptions()) as simulator:
        rest = simulator.url.replace("ws://", "http://")
        assert refresh_symbols(SPOT, rest_url=f"{rest}/", home=tmp_path) > 20


@pytest.mark.parametrize("headers", [{}, {"Content_Encoding": "gzip"}])
def test_answer_is_stored_and_used(tmp_path: Path, headers: dict[str, str]) -> None:
    body = gzip.compress(ANSWER) if headers else ANSWER
    with serving(respond(body, **headers)) as url:
        assert is_stale(SPOT, tmp_path)
        assert refresh_symbols(SPOT, rest_url=url, home=tmp_path) == 1
    assert not is_stale(SPOT, tmp_path)
    assert parse_symbol("FOOOBAR", Market.SPOT, tmp_path).base == "FOOO"
    assert [path.name for path in home_list(tmp_path, Market.SPOT).parent.iterdir()] == [
        "binance-spot.tsv"
    ]


def test_what_was_listed_before_stays(tmp_path: Path) -> None:
    other = ANSWER.replace(b"FOOO", b"GONE")
    for answer in (other, ANSWER):
        with serving(respond(answer)) as url:
            refresh_symbols(SPOT, rest_url=url, home=tmp_path)
    assert {"FOOOBAR", "GONEBAR", "BTCUSDT"} <= known_listing(Market.SPOT, tmp_path).pairs.keys()


def test_list_is_stale_after_a_day_and_when_damaged(tmp_path: Path) -> None:
    with serving(respond(ANSWER)) as url:
        refresh_symbols(SPOT, rest_url=url, home=tmp_path)
    path = home_list(tmp_path, Market.SPOT)
    for age_s, expected in ((3600, False), (25 * 3600, True), (-3600, True)):
        os.utime(path, (time.time() - age_s,) * 2)
        assert is_stale(SPOT, tmp_path) is expected
    path.write_text("spot\tbroken")
    assert is_stale(SPOT, tmp_path)
    assert is_stale(VENUES[Market.US], tmp_path)


@pytest.mark.parametrize(
    "answer",
    [
        respond(b"<html>teapot</html>", 418),
        respond(ANSWER, 302, Location="http://127.0.0.1:9/"),
        respond(b"<html>not JSON</html>"),
        respond(b'{"symbols":[]}'),
        respond(b" " * 5000 + ANSWER),
        respond(gzip.compress(b" " * 5000 + ANSWER), Content_Encoding="gzip"),
        respond(b"nonsense", Content_Encoding="gzip"),
        trickle,
    ],
    ids=["418", "redirect", "html", "none", "large", "bomb", "broken", "slow"],
)
def test_bad_answer_is_an_event_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: Callable[..., None]
) -> None:
    monkeypatch.setattr(module, "_MAX_BYTES", 4000)
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.5)
    events: list[str] = []
    done = threading.Event()

    def observe(event: str, /, **fields: object) -> None:
        events.append(event)
        if event != "connected":
            assert fields["reason"]
            done.set()

    with serving(answer) as url:
        refresh = SymbolRefresh(venue=SPOT, rest_urls=[url], home=tmp_path, observe=observe)
        refresh.on_event("connected", url="x")
        refresh.on_event("connected", url="x")  # once a run
        assert done.wait(PATIENCE_S)
    assert sorted(events) == ["connected", "connected", "symbols_not_refreshed"]
    assert not home_list(tmp_path, Market.SPOT).exists()


def test_next_server_is_asked_when_one_fails(tmp_path: Path) -> None:
    events: list[tuple[str, object]] = []
    done = threading.Event()

    def observe(event: str, /, **fields: object) -> None:
        events.append((event, fields["url"]))
        if event != "connected":
            done.set()

    with serving(respond(b"no", 503)) as bad, serving(respond(ANSWER)) as good:
        venue = SPOT.at([], ["http://127.0.0.1:9", bad, good])
        venue.refresh_symbols(tmp_path, observe)("connected", url="x", streams=1)
        assert done.wait(PATIENCE_S)
    assert events == [("connected", "x"), ("symbols_refreshed", good)]
    assert not is_stale(SPOT, tmp_path)


def test_server_that_is_not_there_is_an_error_of_the_refresh(tmp_path: Path) -> None:
    with pytest.raises(httpx2.HTTPError):
        refresh_symbols(SPOT, rest_url="http://127.0.0.1:9", home=tmp_path)


def test_a_fresh_list_is_not_asked_for(tmp_path: Path) -> None:
    events: list[str] = []
    with running_simulator(SimulatorOptions(symbols=("BTCUSDT",))) as simulator:
        rest = simulator.url.replace("ws://", "http://")
        refresh_symbols(SPOT, rest_url=rest, home=tmp_path)
        refresh = SymbolRefresh(
            venue=replace(SPOT),
            rest_urls=[rest],
            home=tmp_path,
            observe=lambda e, /, **_: events.append(e),
        )
        refresh.on_event("connected")
        time.sleep(0.3)
        assert simulator.info_requests == 1
    assert events == ["connected"]


@pytest.mark.parametrize(
    "base", ["", "x", "ws://127.0.0.1", "https://", "http://h:x", "http://h?q"]
)
def test_wrong_rest_base_is_a_usage_error(base: str) -> None:
    with pytest.raises(UsageError, match="REST URL"):
        check_rest_url(base)


def test_stream_refreshes_only_with_a_rest_base(
    run: Run, home: Path, k2_env: dict[str, str]
) -> None:
    with running_simulator(SimulatorOptions(symbols=("BTCUSDT",), rate=200)) as simulator:
        rest = simulator.url.replace("ws://", "http://")
        args = ["stream", "binance", "--url", simulator.url, "-s", "BTCUSDT"]
        args += ["--log-level", "debug"]
        result = run([*args, "--max-messages", "600"])  # for 3 s
        assert result.exit_code == 0, result.stderr
        assert simulator.info_requests == 0
        assert "symbols_" not in result.stderr
        with start_k2(*args, "--rest-url", rest, env=k2_env, stdout=None) as process:
            assert process.stderr is not None
            # Waits for that line.
            assert any("debug   symbols_refreshed" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, stderr
        assert simulator.info_requests == 1
        assert home_list(home, Market.SPOT).exists()
    result = run(
        ["stream", "binance", "-s", "BTCUSDT", "--url", "ws://127.0.0.1:9", "--rest-url", "x"]
    )
    assert result.exit_code == 2
    assert "REST URL" in result.stderr
