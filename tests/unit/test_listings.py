"""Lists of the exchange's symbols: the shipped one, the home folder's, and how they are made."""

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from k2cli.ingestion.binance.exchangeinfo import parse_exchange_info
from k2cli.ingestion.listings import (
    Pair,
    format_listing,
    home_list,
    known_listing,
    merge_pairs,
    parse_listing,
    shipped_text,
)
from k2cli.ingestion.symbols import Market, parse_symbol
from support.paths import REPOSITORY

TOOL = REPOSITORY / "tools" / "update_symbols.py"


def info(*symbols: tuple[str, str, str]) -> bytes:
    rows = [{"symbol": s, "status": "X", "baseAsset": b, "quoteAsset": q} for s, b, q in symbols]
    return msgspec.json.encode({"timezone": "UTC", "rateLimits": [], "symbols": rows})


def write_home(home: Path, text: str, market: Market = Market.SPOT) -> Path:
    path = home_list(home, market)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_shipped_list_is_small_dated_and_as_the_tool_writes_it() -> None:
    text = shipped_text()
    assert len(text.encode()) < 300_000
    markets = {market.value: parse_listing(text, market) for market in Market}
    assert format_listing(markets) == text
    assert {name: len(pairs) > 30 for name, pairs in markets.items()} == dict.fromkeys(Market, True)
    for pairs in markets.values():
        assert all(len(pair.date) in (4, 7, 10) for pair in pairs.values())
    assert all(parse_symbol(name, Market.SPOT).symbol == name for name in markets["spot"])


def test_answer_of_every_market_is_read() -> None:
    pairs = parse_exchange_info(
        info(
            ("BTCUSDT", "BTC", "USDT"),
            ("BTCUSD_PERP", "BTC", "USD"),
            ("ETHUSDT_240329", "ETH", "USDT"),
            ("币安人生USDT", "币安人生", "USDT"),
        ),
        "2026-02-01",
    )
    assert pairs == {
        "BTCUSDT": Pair("BTC", "USDT", "2026-02-01"),
        "BTCUSD": Pair("BTC", "USD", "2026-02-01"),
        "ETHUSDT": Pair("ETH", "USDT", "2026-02-01"),
        "币安人生USDT": Pair("币安人生", "USDT", "2026-02-01"),
    }


@pytest.mark.parametrize(
    "answer",
    [b"", b"{}", b"[]", b"<html>", b'{"symbols":[]}', b'{"symbols":[{"symbol":1}]}', b"\xff"],
    ids=["empty", "no-symbols", "a-list", "a-page", "no-symbol", "a-number", "not-utf-8"],
)
def test_what_is_not_an_answer_is_an_error(answer: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_exchange_info(answer, "2026-02-01")


def test_list_comes_back_as_it_was_written() -> None:
    pairs = {
        "FOOBAR": Pair("FOO", "BAR", "2026-01-01"),
        "XUSDT": Pair("X", "USDT", "2025"),
        "ODDUSDT": Pair("ODD1", "USDT", "2025"),  # the pair is not named base and quote
        "币USDT": Pair("币", "USDT", "2025"),
    }
    text = format_listing({"spot": pairs, "us": {}})
    assert parse_listing(text, "spot") == pairs
    assert parse_listing(text, "us") == {}
    assert format_listing({"spot": dict(reversed(pairs.items()))}) == text


@pytest.mark.parametrize(
    "line",
    ["spot", "spot\t2025", "spot\t2025\tUSDT\tA\tB"],
    ids=["market-alone", "no-quote", "too-many-columns"],
)
def test_broken_line_of_a_list_is_an_error(line: str) -> None:
    with pytest.raises(ValueError, match="symbol list"):
        parse_listing(f"us\tx\n{line}\n", "spot")


def test_newest_date_wins() -> None:
    old, new = Pair("AR", "BUSD", "2023-05"), Pair("ARB", "USD", "2026-02-01")
    for first, second in ((old, new), (new, old)):
        pairs = {"ARBUSD": first}
        merge_pairs(pairs, {"ARBUSD": second})
        assert pairs == {"ARBUSD": new}


def test_home_list_is_used_as_soon_as_it_changes(tmp_path: Path) -> None:
    assert parse_symbol("FOOBTC", Market.SPOT, tmp_path).is_guess
    write_home(tmp_path, "spot\t2026-02-01\tOBTC\tFO\n")
    assert parse_symbol("FOOBTC", Market.SPOT, tmp_path).quote == "OBTC"
    path = write_home(tmp_path, "spot\t2026-02-02\tTC\tFOOB BT\n")
    os.utime(path, (2_000_000_000, 2_000_000_000))
    assert parse_symbol("FOOBTC", Market.SPOT, tmp_path).quote == "TC"
    assert parse_symbol("FOOBTC", Market.USDM, tmp_path).quote == "BTC"  # another market
    assert parse_symbol("BTCUSDT", Market.SPOT, tmp_path).quote == "USDT"  # the shipped list stays


@pytest.mark.parametrize("text", ["spot\tbroken\n", "\x00", ""], ids=["broken", "nul", "empty"])
def test_damaged_home_list_is_ignored(tmp_path: Path, text: str) -> None:
    write_home(tmp_path, text)
    assert known_listing(Market.SPOT, tmp_path).pairs == known_listing(Market.SPOT).pairs


def test_tool_merges_answers_into_a_list(tmp_path: Path) -> None:
    """The tool is run as a person does, on a copy of it beside a list of its own."""
    folder = tmp_path / "k2cli" / "ingestion"
    folder.mkdir(parents=True)
    tool = tmp_path / "tools" / TOOL.name
    tool.parent.mkdir()
    tool.write_text(TOOL.read_text())
    (tmp_path / "old.json").write_bytes(
        info(("ARBUSD", "AR", "BUSD"), ("GONEUSDT", "GONE", "USDT"))
    )
    (tmp_path / "new.json").write_bytes(info(("ARBUSD", "ARB", "USD")))
    words = [f"spot@2026-02={tmp_path}/new.json", f"spot@2023-05={tmp_path}/old.json"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    for order in (words, words[::-1]):
        done = subprocess.run(
            [sys.executable, str(tool), *order], env=env, capture_output=True, text=True, check=True
        )
        assert "spot: 2 pairs" in done.stdout
        lines = (folder / "symbols.tsv").read_text().splitlines()[2:]
        assert lines == ["spot\t2026-02\tUSD\tARB", "spot\t2023-05\tUSDT\tGONE"]
    failed = subprocess.run(
        [sys.executable, str(tool), "nowhere=x"],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert failed.returncode
    assert "is not MARKET=SOURCE" in failed.stderr
