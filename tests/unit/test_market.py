"""The synthetic market and the reading of recordings: no sockets, no clock."""

import gzip
import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from k2cli.ingestion.symbols import Market
from k2cli.simulator.instruments import instrument
from k2cli.simulator.market import SyntheticMarket, first_id_at
from k2cli.simulator.publication import LiveMarket, SentIds
from k2cli.simulator.recording import Recording, stream_and_frame

NOW_US = 1_764_000_000_123_456
TRADE = b'{"e":"trade","E":2,"s":"BTCUSDT","t":7,"p":"1.50","q":"2","T":1,"m":true,"M":true}'
BOOK = b'{"u":9,"s":"NKNUSDT","b":"0.1","B":"1","a":"0.2","A":"2"}'
FUTURES_BOOK = b'{"e":"bookTicker","u":9,"s":"BTCUSDT","b":"1","B":"1","a":"2","A":"2","T":1,"E":1}'


def take(
    market: SyntheticMarket, streams: list[str], count: int, *, is_micros: bool = False
) -> list[dict[str, Any]]:
    play = market.play(is_combined=False, is_micros=is_micros)
    play.follow(streams)
    return [json.loads(frame) for frame in play.take(count, NOW_US)]


def test_trade_ids_increase_by_one_per_symbol() -> None:
    trades = take(SyntheticMarket(first_id=100), ["btcusdt@trade", "ethusdt@trade"], 1000)
    for symbol in ("BTCUSDT", "ETHUSDT"):
        ids = [trade["t"] for trade in trades if trade["s"] == symbol]
        assert ids == list(range(100, 600))


def test_update_ids_increase_and_the_book_is_not_crossed() -> None:
    quotes = take(SyntheticMarket(first_id=100), ["btcusdt@bookTicker"], 5000)
    updates = [quote["u"] for quote in quotes]
    assert updates == sorted(set(updates))
    assert all(float(quote["b"]) < float(quote["a"]) for quote in quotes)


@pytest.mark.parametrize(
    ("kind", "stream", "keys"),
    [
        ("spot", "btcusdt@trade", "e E s t p q T m M"),
        ("spot", "btcusdt@aggTrade", "e E s a p q f l T m M"),
        ("spot", "btcusdt@bookTicker", "u s b B a A"),
        ("usdm", "btcusdt@trade", "e E T s t p q X m"),
        ("usdm", "btcusdt@aggTrade", "e E a s p q f l T m"),
        ("usdm", "btcusdt@bookTicker", "e u s b B a A T E"),
        ("coinm", "ethusd_perp@trade", "e E T s t p q X m"),
    ],
)
def test_frames_have_the_keys_of_their_market(kind: str, stream: str, keys: str) -> None:
    (frame,) = take(SyntheticMarket(first_id=1, kind=Market(kind)), [stream], 1)
    assert list(frame) == keys.split()


@pytest.mark.parametrize("symbol", ["BTCUSDT", "ETHBTC", "SHIBUSDT", "NEVERHEARDUSDT", "X"])
def test_prices_and_quantities_are_positive_with_eight_decimals(symbol: str) -> None:
    trades = take(SyntheticMarket(first_id=1), [f"{symbol.lower()}@trade"], 20_000)
    for trade in trades:
        assert re.fullmatch(r"\d+\.\d{8}", trade["p"])
        assert re.fullmatch(r"\d+\.\d{8}", trade["q"])
    assert min(float(trade["p"]) for trade in trades) > 0
    assert min(float(trade["q"]) for trade in trades) > 0
    assert len({trade["p"] for trade in trades}) > 10


def test_futures_print_their_own_decimals() -> None:
    (trade,) = take(SyntheticMarket(first_id=1, kind=Market.COINM), ["ethusd_perp@trade"], 1)
    assert re.fullmatch(r"\d{4}\.\d\d", trade["p"])
    assert re.fullmatch(r"\d+", trade["q"])


def test_well_known_symbols_cost_what_one_expects() -> None:
    bitcoin = instrument("BTCUSDT", Market.SPOT)
    assert bitcoin.base_ticks * bitcoin.tick == 67_000 * 10**8


def test_same_seed_and_id_give_the_same_trade_whatever_else_is_followed() -> None:
    def content(seed: int, streams: list[str]) -> list[tuple[str, ...]]:
        trades = take(SyntheticMarket(first_id=5, seed=seed), streams, 400)
        keys = ("s", "t", "p", "q", "m")
        return [tuple(trade[key] for key in keys) for trade in trades if trade["s"] == "BTCUSDT"]

    alone = content(1, ["btcusdt@trade"])
    among_others = content(1, ["ethusdt@trade", "btcusdt@trade"])
    assert among_others == alone[:200]
    assert content(2, ["btcusdt@trade"]) != alone


def test_blocks_do_not_change_the_content() -> None:
    def frames(blocks: list[int]) -> list[tuple[str, int, str]]:
        play = SyntheticMarket(first_id=5).play(is_combined=False)
        play.follow(["btcusdt@trade", "ethusdt@trade", "bnbusdt@trade"])
        taken = [json.loads(frame) for block in blocks for frame in play.take(block, NOW_US)]
        return sorted((trade["s"], trade["t"], trade["p"]) for trade in taken)

    assert frames([300]) == frames([1, 2, 97, 0, 200])


@pytest.mark.parametrize(("is_micros", "unit_us"), [(False, 1000), (True, 1)])
def test_times_are_the_given_clock_in_the_asked_unit(is_micros: bool, unit_us: int) -> None:
    trades = take(SyntheticMarket(first_id=1), ["btcusdt@trade"], 1000, is_micros=is_micros)
    times = [trade["T"] for trade in trades]
    assert times == sorted(times)
    assert all(trade["T"] <= trade["E"] <= NOW_US // unit_us for trade in trades)
    assert times[0] > (NOW_US - 200_000) // unit_us


def test_a_new_connection_begins_at_the_highest_id_reached() -> None:
    market = SyntheticMarket(first_id=100)
    take(market, ["btcusdt@trade"], 50)
    take(market, ["ethusdt@trade"], 10)
    trades = take(market, ["btcusdt@trade", "ethusdt@trade"], 2)
    assert {trade["s"]: trade["t"] for trade in trades} == {"BTCUSDT": 150, "ETHUSDT": 110}


def test_a_stream_that_is_left_and_followed_again_goes_on() -> None:
    play = SyntheticMarket(first_id=100).play(is_combined=False)
    play.follow(["btcusdt@trade"])
    play.take(10, NOW_US)
    play.follow([])
    assert play.is_idle
    assert play.take(10, NOW_US) == []
    play.follow(["btcusdt@trade"])
    assert json.loads(play.take(1, NOW_US)[0])["t"] == 110


def test_combined_frames_name_their_stream() -> None:
    play = SyntheticMarket(first_id=1).play(is_combined=True)
    play.follow(["btcusdt@trade"])
    (frame,) = play.take(1, NOW_US)
    assert frame.startswith(b'{"stream":"btcusdt@trade","data":{"e":"trade",')
    assert json.loads(frame)["data"]["s"] == "BTCUSDT"


def test_only_offered_symbols_and_channels_are_played() -> None:
    market = SyntheticMarket(first_id=1, symbols=["BTCUSDT"], channels=["trade"])
    assert market.offers("btcusdt@trade")
    assert not market.offers("ethusdt@trade")
    assert not market.offers("btcusdt@bookTicker")
    assert not market.offers("btcusdt@kline_1m")


def test_first_ids_of_later_starts_are_beyond_what_can_be_sent_until_then() -> None:
    second = 1_000_000
    assert first_id_at(NOW_US + second) - first_id_at(NOW_US) >= 4_000_000
    assert 2 * first_id_at(NOW_US + 3 * 365 * 86_400 * second) < 2**53


# --- published trades


def rows_of(market: SyntheticMarket, symbol: str, ids: range) -> dict[int, dict[str, Any]]:
    rows = market.rows("historicalTrades", symbol, np.arange(ids.start, ids.stop), is_micros=True)
    return {row["id"]: row for row in map(json.loads, rows)}


def content(trade: dict[str, Any]) -> tuple[Any, ...]:
    """Return what a trade and its REST row have in common."""
    if "price" in trade:
        return trade["price"], trade["qty"], trade["time"], trade["isBuyerMaker"]
    return trade["p"], trade["q"], trade["T"], trade["m"]


def live_market(rate: float = 1000, **over: Any) -> SyntheticMarket:
    live = LiveMarket(first_id=100, began_us=NOW_US, rate=rate, **over)
    return SyntheticMarket(first_id=100, live=live)


@pytest.mark.parametrize("kind", list(Market))
def test_every_trade_has_one_content_and_one_time_wherever_it_is_seen(kind: Market) -> None:
    market = SyntheticMarket(first_id=100, kind=kind)
    plays = [market.play(is_combined=False, is_micros=True) for _ in range(3)]
    plays[0].follow(["btcusdt@trade", "ethusdt@trade"])
    plays[1].follow(["btcusdt@trade"])
    plays[2].follow(["btcusdt@aggTrade"])
    trades = []
    for step, most in enumerate([30, 7, 1, 90, 40, 300]):
        for at, play in enumerate(plays):
            now_us = NOW_US + 1000 * (10 * step + at)
            trades += [json.loads(frame) for frame in play.take(most, now_us)]
    ids = market.published("BTCUSDT", NOW_US)
    assert ids == range(100, 568)
    rows = rows_of(market, "BTCUSDT", ids)
    mine = [trade for trade in trades if trade["s"] == "BTCUSDT"]
    assert {content(trade) == content(rows[trade.get("t", trade.get("a"))]) for trade in mine} == {
        True
    }
    times = [rows[number]["time"] for number in ids]
    assert times == sorted(times)


def test_unlisted_ids_are_nowhere() -> None:
    market = SyntheticMarket(first_id=100, unlisted_every=7)
    trades = take(market, ["btcusdt@trade"], 70)
    assert [trade["t"] for trade in trades] == [n for n in range(100, 170) if n % 7]
    assert market.listed(np.arange(104, 108)).tolist() == [104, 106, 107]


def test_only_the_latest_blocks_are_remembered() -> None:
    sent = SentIds(10)
    for number in range(100):
        ids = range(sent.end, 20 + 10 * number)
        assert sent.send(ids, since_us=1000 * number, span_us=500, most_blocks=8)
    assert sent.end == 1010
    assert 70 < (sent.end - sent.first) < 160
    assert sent.times(np.array([990, 994, 1000, 1009])).tolist() == [98050, 98250, 99050, 99500]


def test_times_of_ids_sent_before_are_not_changed() -> None:
    sent = SentIds(0)
    assert sent.send(range(10), since_us=0, span_us=100, most_blocks=8)
    assert not sent.send(range(5), since_us=900, span_us=100, most_blocks=8)
    assert not sent.send(range(5, 12), since_us=2000, span_us=200, most_blocks=8)
    assert not sent.send(range(12, 14), since_us=2100, span_us=200, most_blocks=8)
    assert sent.times(np.arange(8, 14)).tolist() == [90, 100, 2100, 2200, 2250, 2300]
    assert sent.times(np.array([], dtype=np.int64)).tolist() == []


def test_a_live_market_goes_on_without_connections() -> None:
    market = live_market(1000)
    second = 1_000_000
    assert market.published("BTCUSDT", NOW_US) == range(100, 100)
    assert market.published("BTCUSDT", NOW_US + 3 * second) == range(100, 3100)
    play = market.play(is_combined=False, is_micros=True)
    play.follow(["btcusdt@trade"])
    assert play.take(1000, NOW_US + second) == []  # it has missed what was before
    trades = [json.loads(frame) for frame in play.take(1000, NOW_US + second + 5000)]
    assert [trade["t"] for trade in trades] == [1100, 1101, 1102, 1103, 1104]
    rows = rows_of(market, "BTCUSDT", range(1100, 1105))
    assert [content(trade) for trade in trades] == [content(row) for row in rows.values()]


def test_a_live_stream_that_was_left_has_missed_what_passed() -> None:
    market = live_market(1000)
    play = market.play(is_combined=False)

    def ids(now_ms: int) -> list[tuple[str, int]]:
        frames = play.take(1000, NOW_US + 1000 * now_ms)
        return [(trade["s"], trade["t"]) for trade in map(json.loads, frames)]

    play.follow(["btcusdt@trade", "ethusdt@trade"])
    ids(10)
    play.follow(["ethusdt@trade"])
    assert ids(11) == [("ETHUSDT", 110)]
    play.follow(["btcusdt@trade", "ethusdt@trade"])
    ids(12)
    assert ids(13) == [("BTCUSDT", 112), ("ETHUSDT", 112)]


def test_a_live_stream_that_lags_gets_everything_in_blocks() -> None:
    market = live_market(1000)
    play = market.play(is_combined=False)
    play.follow(["btcusdt@trade", "ethusdt@trade"])
    play.take(1, NOW_US)
    taken = [json.loads(f) for _ in range(30) for f in play.take(100, NOW_US + 1_000_000)]
    for symbol in ("BTCUSDT", "ETHUSDT"):
        assert [trade["t"] for trade in taken if trade["s"] == symbol] == list(range(100, 1100))


def test_the_clock_of_a_live_market_may_jump() -> None:
    steady, jumping = live_market(1000), live_market(1000, jump_us=-60_000_000, jump_every=10)
    ids = range(105, 125)
    moved = {
        number: rows_of(jumping, "BTCUSDT", ids)[number]["time"] - row["time"]
        for number, row in rows_of(steady, "BTCUSDT", ids).items()
    }
    assert {number for number, by_us in moved.items() if by_us} == set(range(110, 120))
    assert set(moved.values()) == {0, -60_000_000}


def test_the_first_trade_since_a_time_is_found() -> None:
    market = live_market(1000)
    ids = market.published("BTCUSDT", NOW_US + 5_000_000)
    times = {number: row["time"] for number, row in rows_of(market, "BTCUSDT", ids).items()}
    for number in (100, 101, 2500, 5099):
        assert market.first_at("BTCUSDT", ids, times[number]) == number
        assert market.first_at("BTCUSDT", ids, times[number] - 1) == number
    assert market.first_at("BTCUSDT", ids, times[5099] + 1) == ids.stop


def test_the_turnover_is_the_price_times_the_quantity() -> None:
    for kind, symbol in ((Market.SPOT, "SHIBUSDT"), (Market.USDM, "BTCUSDT")):
        market = SyntheticMarket(first_id=1, kind=kind)
        take(market, [f"{symbol.lower()}@trade"], 200)
        for row in rows_of(market, symbol, range(1, 201)).values():
            exact = Decimal(row["price"]) * Decimal(row["qty"])
            assert 0 <= exact - Decimal(row["quoteQty"]) < Decimal("1e-8")
    market = SyntheticMarket(first_id=1, kind=Market.COINM)
    take(market, ["ethusd_perp@trade"], 1)
    row = rows_of(market, "ETHUSD_PERP", range(1, 2))[1]
    exact = Decimal(row["qty"]) * 10 / Decimal(row["price"])
    assert 0 <= exact - Decimal(row["baseQty"]) < Decimal("1e-8")


# --- recordings


@pytest.mark.parametrize(
    ("line", "stream", "frame"),
    [
        pytest.param(
            b'{"stream":"btcusdt@trade","data":' + TRADE + b"}",
            "btcusdt@trade",
            TRADE,
            id="combined-trade",
        ),
        pytest.param(TRADE, "btcusdt@trade", TRADE, id="raw-trade"),
        pytest.param(BOOK, "nknusdt@bookTicker", BOOK, id="quote"),
        pytest.param(FUTURES_BOOK, "btcusdt@bookTicker", FUTURES_BOOK, id="futures-quote"),
        pytest.param(b"{broken", None, b"{broken", id="broken-json"),
        pytest.param(b"[1]", None, b"[1]", id="array"),
        pytest.param(b"\xff\xfe", None, b"\xff\xfe", id="not-utf8"),
        pytest.param(b'{"result":null,"id":1}', None, b'{"result":null,"id":1}', id="reply"),
        pytest.param(
            b'{"stream":5,"data":{}}', None, b'{"stream":5,"data":{}}', id="wrong-envelope"
        ),
    ],
)
def test_a_recorded_frame_belongs_to_its_stream(
    line: bytes, stream: str | None, frame: bytes
) -> None:
    assert stream_and_frame(line) == (stream, frame)


def write(path: Path, content: bytes) -> Path:
    if path.suffix == ".gz":
        content = gzip.compress(content)
    if path.suffix == ".zst":
        content = pa.compress(content, codec="zstd", asbytes=True)
    path.write_bytes(content)
    return path


def play_all(recording: Recording, most: int = 2) -> list[bytes]:
    frames = []
    while not recording.is_at_end:
        frames += recording.take(most, NOW_US)
    return frames


def test_a_recording_is_filtered_and_wrapped_or_unwrapped(tmp_path: Path) -> None:
    wrapped = b'{"stream":"btcusdt@trade","data":' + TRADE + b"}"
    path = write(tmp_path / "f", b"\n".join([wrapped, TRADE, BOOK, b"garbage"]))
    for is_combined, expected in (
        (False, [TRADE, TRADE, b"garbage"]),
        (True, [wrapped, wrapped, b"garbage"]),
    ):
        recording = Recording(path, is_combined=is_combined)
        recording.follow(["btcusdt@trade"])
        assert play_all(recording) == expected


def test_a_recording_goes_on_at_a_position(tmp_path: Path) -> None:
    lines = [b'{"e":"trade","s":"%b","n":%d}' % (b"AB"[n % 2 : n % 2 + 1], n) for n in range(20)]
    path = write(tmp_path / "f", b"\n".join(lines))
    first = Recording(path, is_combined=False)
    first.follow(["a@trade"])
    taken = first.take(3, NOW_US)
    second = Recording(path, is_combined=False, position=first.position)
    second.follow(["a@trade"])
    assert taken + play_all(second, 100) == lines[::2]


def test_a_looped_recording_starts_over(tmp_path: Path) -> None:
    recording = Recording(write(tmp_path / "f", TRADE), is_combined=False, is_looped=True)
    recording.follow(["btcusdt@trade"])
    assert [frame for _ in range(3) for frame in recording.take(5, NOW_US)] == [TRADE] * 3


def test_a_loop_ends_when_a_pass_has_nothing_to_play(tmp_path: Path) -> None:
    recording = Recording(write(tmp_path / "f", TRADE), is_combined=False, is_looped=True)
    recording.follow(["ethusdt@trade"])
    assert play_all(recording) == []
