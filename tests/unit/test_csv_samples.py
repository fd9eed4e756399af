"""The recorded files, row by row against csv, Decimal and zoneinfo of the standard library."""

import csv
import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from k2cli.ingestion.binance.protocol import FrameParser
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.ingestion.symbols import Market
from k2cli.records import TRADES

SYDNEY = ZoneInfo("Australia/Sydney")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SYMBOLS = {"3153": "MWR", "7078": "BHP", "7181": "DVN"}
TRADE_COLUMNS = ["date", "time", "price", "volume", "qualifiers", "venue", "buyer_id"]
BY_CONTENT = ("message_id", "ingestion_timestamp")  # checked apart
Row = dict[str, Any]


def read(path: Path, layout: str, options: CsvOptions) -> list[Row]:
    source = read_csv(path, load_layout(layout), options)
    rows: list[Row] = []
    for batch in source:
        assert batch.rejects == []
        for kind, found in batch.rows:
            assert kind is load_layout(layout).record
            assert found.schema.equals(kind.arrow, check_metadata=True)
            found.validate(full=True)
            rows += found.to_pylist()
    assert source.hash() == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source.bytes_read == source.size_bytes == path.stat().st_size
    return [{**row, "vendor_data": dict(row["vendor_data"])} for row in rows]


def sydney(date: str, time: str) -> datetime:
    naive = f"{date} {time}"
    return (
        datetime.strptime(naive + " +0000", "%m/%d/%Y %H:%M:%S.%f %z")
        .replace(tzinfo=SYDNEY)
        .astimezone(UTC)
    )


def milliseconds(moment: datetime) -> int:
    return (moment - EPOCH) // timedelta(milliseconds=1)


def asx_row(stem: str, when: datetime) -> Row:
    return {
        "symbol": SYMBOLS[stem],
        "exchange": "ASX",
        "asset_class": "equities",
        "timestamp": when,
        "currency": "AUD",
        "source_sequence": None,
        "platform_sequence": None,
    }


def asx_trades(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            cell = dict(zip(TRADE_COLUMNS, line, strict=True))
            when = sydney(cell["date"], cell["time"])
            vendor = {name: cell[name] for name in TRADE_COLUMNS[4:] if cell[name]}
            yield {
                **asx_row(path.stem, when),
                "trade_id": f"ASX-{milliseconds(when)}-{number}",
                "price": Decimal(cell["price"]),
                "quantity": Decimal(cell["volume"]),
                "side": "UNKNOWN",
                "trade_conditions": [],
                "vendor_data": {"company_id": path.stem, **vendor},
            }


def asx_quotes(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        for number, line in enumerate(csv.reader(file), start=1):
            date, time, bid, ask, bid_size, ask_size = line
            when = sydney(date, time)
            yield {
                **asx_row(path.stem, when),
                "quote_id": f"ASX-{milliseconds(when)}-{number}",
                "bid_price": Decimal(bid),
                "bid_quantity": Decimal(bid_size),
                "ask_price": Decimal(ask),
                "ask_quantity": Decimal(ask_size),
                "vendor_data": {"company_id": path.stem},
            }


def content(rows: list[Row]) -> list[Row]:
    return [{key: row[key] for key in row if key not in BY_CONTENT} for row in rows]


@pytest.mark.parametrize("stem", SYMBOLS)
@pytest.mark.parametrize("kind", ["trades", "quotes"])
def test_asx_files_become_exactly_their_lines(recordings: Path, kind: str, stem: str) -> None:
    path = recordings / "asx" / kind / f"{stem}.csv"
    reference = recordings / "asx" / "reference-data" / "company_info.csv"
    rows = read(path, f"asx-{kind}", CsvOptions(reference=reference))
    expected = list(asx_trades(path) if kind == "trades" else asx_quotes(path))
    assert content(rows) == expected
    ids = {row["message_id"] for row in rows}
    assert len(ids) == len(expected)  # identical lines are distinct trades
    again = read(path, f"asx-{kind}", CsvOptions(symbol=SYMBOLS[stem]))
    assert {row["message_id"] for row in again} == ids


def binance_rows(path: Path, exchange: str, asset_class: str) -> Iterator[Row]:
    names = ["id", "price", "quantity", "quote_quantity", "time", "maker", "best"]
    symbol = path.name.split("-")[1]
    with path.open(newline="") as file:
        for line in csv.reader(file):
            if not line[0].isdigit():
                continue
            cell = dict(zip(names, line, strict=False))
            best = {"is_best_match": cell["best"].lower()} if "best" in cell else {}
            yield {
                "trade_id": f"{exchange}-{cell['id']}",
                "symbol": symbol,
                "exchange": exchange,
                "asset_class": asset_class,
                "timestamp": EPOCH + timedelta(milliseconds=int(cell["time"])),
                "price": Decimal(cell["price"]),
                "quantity": Decimal(cell["quantity"]),
                "currency": "USDT",
                "side": "SELL" if cell["maker"].lower() == "true" else "BUY",
                "trade_conditions": [],
                "source_sequence": int(cell["id"]),
                "platform_sequence": None,
                "vendor_data": {
                    "is_buyer_maker": cell["maker"].lower(),
                    "trade_time": cell["time"],
                    "base_asset": symbol.removesuffix("USDT"),
                    "quote_asset": "USDT",
                    "quote_quantity": cell["quote_quantity"],
                    **best,
                },
            }


@pytest.mark.parametrize(
    ("name", "count", "exchange", "asset_class"),
    [
        ("spot-BTCUSDT-trades-2024-08-08", 7981, "BINANCE", "crypto"),
        ("spot-BTCUSDT-trades-2024-08-09", 19, "BINANCE", "crypto"),
        ("usdm-ETHUSDT-trades-2024-07-18", 1640, "BINANCE_USDM", "futures"),
    ],
)
def test_binance_files_become_exactly_their_lines(
    recordings: Path, name: str, count: int, exchange: str, asset_class: str
) -> None:
    path = recordings / "binance-derived" / f"{name}.csv"
    rows = read(path, "binance-trades", CsvOptions())
    assert len(rows) == count
    assert content(rows) == list(binance_rows(path, exchange, asset_class))


def test_a_trade_has_the_same_id_from_the_file_and_from_the_stream(recordings: Path) -> None:
    frames = (recordings / "binance" / "spot-BTCUSDT-20240808.trade.ndjson").read_bytes()
    lines = frames.splitlines()
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=[])
    ((kind, streamed),) = parser.parse(lines, [1] * len(lines), first=1).rows
    assert kind is TRADES
    folder = recordings / "binance-derived"
    days = [folder / f"spot-BTCUSDT-trades-2024-08-0{day}.csv" for day in (8, 9)]
    loaded = [row for day in days for row in read(day, "binance-trades", CsvOptions())]
    same = ("message_id", "trade_id", "timestamp", "price", "quantity", "side", "currency")
    assert [{key: row[key] for key in same} for row in loaded] == streamed.select(same).to_pylist()
