"""The recorded frames of the exchange, through the simulator and the client into the tables.

What must come out is computed here from the JSON of the files, with none of k2's parsing.
"""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings, load_settings
from k2cli.flow import Totals
from k2cli.ingestion.binance.venues import VENUES, Channel
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.pipelines.sinks import TableSink
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.rejects import RejectLog
from k2cli.simulator import Simulator, SimulatorOptions, running_simulator
from k2cli.storage.lake import open_lake
from support.waiting import PATIENCE_S

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
LARGE = "spot-BTCUSDT-20240808.trade.ndjson"
OLDER = "spot-BTCUSDT-20230405.trade.ndjson"
RECORDED = [
    ("coinm-ETHUSD_PERP-20240808.trade.ndjson", Market.COINM, (1732, 0)),
    (OLDER, Market.SPOT, (3144, 0)),
    (LARGE, Market.SPOT, (8000, 0)),
    ("spot-multi-20211012.aggTrade+bookTicker.ndjson", Market.SPOT, (0, 84)),
    ("us-multi-20211012.aggTrade+bookTicker.ndjson", Market.SPOT, (0, 128)),
    ("us-multi-20211012.aggTrade+bookTicker.ndjson", Market.US, (0, 128)),
    ("usdm-BTCUSDT-20240718.trade+bookTicker.ndjson", Market.USDM, (743, 5257)),
    ("usdm-ETHUSDT-20240718.trade.recv.txt", Market.USDM, (1640, 0)),
    ("usdm-multi-20210722.aggTrade+bookTicker.ndjson", Market.USDM, (0, 613)),
]
EXCHANGES = {
    Market.SPOT: ("BINANCE", "crypto"),
    Market.US: ("BINANCE_US", "crypto"),
    Market.USDM: ("BINANCE_USDM", "futures"),
    Market.COINM: ("BINANCE_COINM", "futures"),
}
CURRENCIES = {
    "BTCUSDT": "USDT",
    "ETHUSDT": "USDT",
    "ETHUSD_PERP": "USD",
    "NKNUSDT": "USDT",
    "LRCBTC": "BTC",
    "BLZETH": "ETH",
    "OMGBUSD": "BUSD",
    "COMPUSDT": "USDT",
    "ZRXUSDT": "USDT",
    "CRVUSDT": "USDT",
    "SUSHIUSDT": "USDT",
    "CTKUSDT": "USDT",
    "AKROUSDT": "USDT",
    "KEEPUSDT": "USDT",
}
Row = tuple[Any, ...]


@dataclass(frozen=True)
class Recorded:
    """What a file holds of trades and quotes, as rows to compare."""

    path: Path
    trades: list[Row]
    quotes: list[Row]
    symbols: list[str]

    @property
    def count(self) -> int:
        return len(self.trades) + len(self.quotes)


def read_recorded(path: Path) -> Recorded:
    trades, quotes, symbols = [], [], set()
    for line in path.read_text().splitlines():
        frame = json.loads(line[line.index("{") :])
        stream, data = frame["stream"], frame["data"]
        symbols.add(data["s"])
        if stream.endswith("@trade"):
            side = "SELL" if data["m"] else "BUY"
            numbers = Decimal(data["p"]), Decimal(data["q"])
            trades.append((data["s"], data["t"], time_of(data["T"]), *numbers, side))
        elif stream.endswith("@bookTicker"):
            moment = time_of(data["T"]) if "T" in data else None
            both = [Decimal(data[name]) for name in "bBaA"]
            quotes.append((data["s"], data["u"], moment, *both))
    return Recorded(path, sorted(trades), sorted(quotes), sorted(symbols))


def time_of(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


@pytest.fixture
def folder(recordings: Path) -> Path:
    return recordings / "binance"


@contextmanager
def playing(path: Path, **over: Any) -> Iterator[Simulator]:
    with running_simulator(SimulatorOptions(frames=path, **over)) as simulator:
        yield simulator


def stream(
    simulator: Simulator,
    settings: Settings,
    market: Market,
    symbols: list[str],
    *,
    count: int,
) -> Totals:
    """Stream so many messages of both channels into the tables."""

    def observe(event: str, /, **fields: object) -> None:
        pass

    options = StreamOptions(
        venue=replace(VENUES[market], urls=[simulator.url]),
        instruments=[parse_symbol(symbol, market) for symbol in symbols],
        channels=list(Channel),
        max_messages=count,
    )
    with (
        open_lake(settings, create=True) as lake,
        RejectLog(settings.home / "rejects", run="") as rejects,
    ):
        pump = Pump(
            source=ExchangeStream(options=options, observe=observe),
            sink=TableSink(lake=lake, exchange=VENUES[market].exchange, observe=observe),
            rejects=rejects,
            policy=PumpPolicy(
                flush_rows=settings.stream.flush_rows,
                flush_interval_s=60,
                duration_s=PATIENCE_S,
            ),
            observe=observe,
        )
        return pump.run()


def stored(settings: Settings, kind: RecordKind) -> list[dict[str, Any]]:
    with open_lake(settings) as lake:
        rows: list[dict[str, Any]] = lake.open(kind).iceberg.scan().to_arrow().to_pylist()
    return rows


def stored_trades(settings: Settings) -> list[Row]:
    names = ("symbol", "source_sequence", "timestamp", "price", "quantity", "side")
    return sorted(tuple(row[name] for name in names) for row in stored(settings, TRADES))


def stored_quotes(settings: Settings, *, has_time: bool) -> list[Row]:
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    return sorted(
        (
            *(row["symbol"], row["source_sequence"], row["timestamp"] if has_time else None),
            *(row[name] for name in names),
        )
        for row in stored(settings, QUOTES)
    )


@pytest.mark.parametrize(
    ("name", "market", "counts"), RECORDED, ids=[f"{m.value}:{n[:20]}" for n, m, _ in RECORDED]
)
def test_recording_comes_back_exactly(
    folder: Path, settings: Settings, name: str, market: Market, counts: tuple[int, int]
) -> None:
    expected = read_recorded(folder / name)
    assert (len(expected.trades), len(expected.quotes)) == counts
    started = datetime.now(UTC)
    with playing(expected.path) as simulator:
        totals = stream(simulator, settings, market, expected.symbols, count=expected.count)
        # What was not subscribed to was not sent, and nothing more than what came was there.
        assert simulator.frames_sent == expected.count
    assert (totals.messages, totals.rows) == (expected.count, expected.count)
    assert (totals.rejects, totals.duplicates, totals.reconnects) == (0, 0, 0)
    has_time = market not in (Market.SPOT, Market.US)
    assert stored_trades(settings) == expected.trades
    assert stored_quotes(settings, has_time=has_time) == expected.quotes
    exchange, asset_class = EXCHANGES[market]
    for kind in (TRADES, QUOTES):
        rows = stored(settings, kind)
        assert {row["exchange"] for row in rows} <= {exchange}
        assert {row["asset_class"] for row in rows} <= {asset_class}
        assert all(row[kind.id_column] == f"{exchange}-{row['source_sequence']}" for row in rows)
        assert all(row["currency"] == CURRENCIES[row["symbol"]] for row in rows)
        assert len({row["message_id"] for row in rows}) == len(rows)
        assert all(started <= row["ingestion_timestamp"] <= datetime.now(UTC) for row in rows)
        if kind is QUOTES and not has_time:
            assert all(row["timestamp"] == row["ingestion_timestamp"] for row in rows)


def test_vendor_data_of_old_frames_has_the_order_ids(folder: Path, settings: Settings) -> None:
    with playing(folder / OLDER) as simulator:
        stream(simulator, settings, Market.SPOT, ["BTCUSDT"], count=3144)
    lines = (folder / OLDER).read_text().splitlines()
    frames = {data["t"]: data for data in (json.loads(line)["data"] for line in lines)}
    for row in stored(settings, TRADES):
        data, vendor = frames[row["source_sequence"]], dict(row["vendor_data"])
        assert vendor == {
            "is_buyer_maker": json.dumps(data["m"]),
            "event_type": "trade",
            "event_time": str(data["E"]),
            "trade_time": str(data["T"]),
            "base_asset": "BTC",
            "quote_asset": "USDT",
            "is_best_match": json.dumps(data["M"]),
            "buyer_order_id": str(data["b"]),
            "seller_order_id": str(data["a"]),
        }


def test_vendor_data_of_futures_has_the_order_type(folder: Path, settings: Settings) -> None:
    path = folder / "usdm-ETHUSDT-20240718.trade.recv.txt"
    with playing(path) as simulator:
        stream(simulator, settings, Market.USDM, ["ETHUSDT"], count=1640)
    frames = [json.loads(line[line.index("{") :])["data"] for line in path.read_text().splitlines()]
    found = Counter(dict(row["vendor_data"])["order_type"] for row in stored(settings, TRADES))
    assert found == Counter(frame["X"] for frame in frames)


def test_recording_past_midnight_lands_in_two_days(folder: Path, settings: Settings) -> None:
    expected = read_recorded(folder / LARGE)
    with playing(expected.path) as simulator:
        stream(simulator, settings, Market.SPOT, ["BTCUSDT"], count=8000)
    with open_lake(settings) as lake:
        tasks = list(lake.open(TRADES).iceberg.scan().plan_files())
    days = {EPOCH.date() + timedelta(days=t.file.partition[0]): t.file.record_count for t in tasks}
    assert days == Counter(row[2].date() for row in expected.trades)
    assert len(days) == 2


def test_recording_played_twice_is_there_once(folder: Path, settings: Settings) -> None:
    expected = read_recorded(folder / "usdm-BTCUSDT-20240718.trade+bookTicker.ndjson")
    for duplicates in (0, expected.count):
        with playing(expected.path) as simulator:
            totals = stream(simulator, settings, Market.USDM, ["BTCUSDT"], count=expected.count)
        assert (totals.duplicates, totals.rows) == (duplicates, expected.count - duplicates)
    assert stored_trades(settings) == expected.trades
    assert stored_quotes(settings, has_time=True) == expected.quotes


def test_recordings_of_two_years_are_there_once_in_any_order(
    folder: Path, settings: Settings
) -> None:
    old, new = read_recorded(folder / OLDER), read_recorded(folder / LARGE)
    for expected in (new, old, new, old):
        with playing(expected.path) as simulator:
            stream(simulator, settings, Market.SPOT, ["BTCUSDT"], count=expected.count)
    assert stored_trades(settings) == sorted(old.trades + new.trades)


def test_same_recording_on_two_markets_is_there_twice(folder: Path, settings: Settings) -> None:
    expected = read_recorded(folder / "us-multi-20211012.aggTrade+bookTicker.ndjson")
    for market in (Market.SPOT, Market.US):
        with playing(expected.path) as simulator:
            totals = stream(simulator, settings, market, expected.symbols, count=expected.count)
        assert totals.duplicates == 0
    assert stored_quotes(settings, has_time=False) == sorted(expected.quotes * 2)


@pytest.mark.parametrize(
    ("name", "market"),
    [(LARGE, Market.SPOT), ("usdm-BTCUSDT-20240718.trade+bookTicker.ndjson", Market.USDM)],
)
def test_connection_that_is_cut_again_and_again_loses_nothing(
    folder: Path, settings: Settings, name: str, market: Market
) -> None:
    expected = read_recorded(folder / name)
    with playing(expected.path, drop_after=2_500) as simulator:
        totals = stream(simulator, settings, market, ["BTCUSDT"], count=expected.count)
        assert simulator.connections == -(-expected.count // 2_500)
        assert totals.reconnects == simulator.connections - 1
    assert stored_trades(settings) == expected.trades
    assert stored_quotes(settings, has_time=True) == expected.quotes
    assert totals.duplicates == 0


def test_recording_with_bad_frames_in_it_loses_none_of_the_good_ones(
    folder: Path, settings: Settings
) -> None:
    expected = read_recorded(folder / LARGE)
    with playing(expected.path, garbage_every=8) as simulator:
        totals = stream(simulator, settings, Market.SPOT, ["BTCUSDT"], count=9000)
    assert stored_trades(settings) == expected.trades
    assert (totals.messages, totals.rows, totals.rejects) == (9000, 8000, 1000)


def test_small_commits_add_up(folder: Path, home: Path) -> None:
    settings = load_settings({"K2_HOME": str(home), "K2_STREAM_FLUSH_ROWS": "300"})
    expected = read_recorded(folder / OLDER)
    with playing(expected.path, rate=4_000) as simulator:
        totals = stream(simulator, settings, Market.SPOT, ["BTCUSDT"], count=expected.count)
    assert totals.commits > 2
    assert stored_trades(settings) == expected.trades
