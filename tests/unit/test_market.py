"""The synthetic market and the reading of recordings: no sockets, no clock."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.ingestion.symbols import Market
from k2cli.simulator.instruments import instrument
from k2cli.simulator.market import SyntheticMarket, first_id_at
from k2cli.simulator.recording import (
    Recording,
    recorded_lines,
    stream_and_frame,
)

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


@pytest.mark.parametrize("name", ["f.ndjson", "f.ndjson.gz", "f.ndjson.zst"])
def test_recorded_lines_are_read_plain_and_compressed(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, b"1721347021186954583 {1}\r\n{2}\n\n{3}")
    assert list(recorded_lines(path)) == [b"{1}", b"{2}", b"{3}"]


def test_recorded_lines_cross_block_borders(tmp_path: Path) -> None:
    lines = [b'{"n":%d,"pad":"%s"}' % (n, b"x" * 90) for n in range(30_000)]
    path = write(tmp_path / "big.gz", b"\n".join(lines))
    assert list(recorded_lines(path)) == lines


def test_gzip_members_that_were_appended_are_all_read(tmp_path: Path) -> None:
    path = tmp_path / "f.gz"
    path.write_bytes(gzip.compress(b"{1}\n") + gzip.compress(b"{2}\n"))
    assert list(recorded_lines(path)) == [b"{1}", b"{2}"]


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
