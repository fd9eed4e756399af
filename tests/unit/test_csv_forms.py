"""Files in the forms that people have: other headers, times, sides, numbers, marks, encodings."""

import json
import zipfile
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2cli.errors import BadData, ConfigError, UsageError
from k2cli.ingestion.csv import blocks as blocks_module
from k2cli.ingestion.csv.layout import Layout, load_layout, parse_layout
from k2cli.ingestion.csv.parquet import read_parquet
from k2cli.ingestion.csv.source import CsvOptions, CsvSource, read_csv
from k2cli.rejects import Reject

OF_FILE: dict[str, Any] = {
    "symbol": "ABC",
    "exchange": "X",
    "asset_class": "equities",
    "currency": "EUR",
}
Row = dict[str, Any]


def read(source: CsvSource) -> tuple[list[Row], list[Reject], list[str]]:
    rows: list[Row] = []
    rejects: list[Reject] = []
    for batch in source:
        rejects += batch.rejects
        for _, part in batch.rows:
            part.validate(full=True)
            rows += part.to_pylist()
    return rows, rejects, source.notices()


def load(
    folder: Path, data: bytes | str, layout: str | Layout, name: str = "any.csv", **options: Any
) -> tuple[list[Row], list[Reject], list[str]]:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    chosen = load_layout(layout) if isinstance(layout, str) else layout
    return read(read_csv(path, chosen, CsvOptions(**options)))


def generic(folder: Path, data: bytes | str, **options: Any) -> tuple[list[Row], list[Reject], Any]:
    return load(folder, data, "generic-trades", **{**OF_FILE, **options})


def us(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- headers


@pytest.mark.parametrize(
    "header",
    [
        "trade Id,price,qty,quoteQty,time,isBuyerMaker,isBestMatch",
        "trade_id,Price,Quantity,quote_quantity,Timestamp,maker,best match",
        "tradeId,p,q,quoteqty,trade time,was the buyer the maker,isBestMatch",
    ],
)
def test_a_header_in_other_spellings_names_the_same_columns(tmp_path: Path, header: str) -> None:
    data = f"{header}\n4477080301,42314.0,0.005,211.57,1704067200053,True,true\n"
    name = "BTCUSDT-trades-2024-01-01.csv"
    ((row,), rejects, notices) = load(tmp_path, data, "binance-trades", name)
    assert (rejects, notices) == ([], [])
    assert (row["trade_id"], row["side"]) == ("BINANCE-4477080301", "SELL")
    assert row["source_sequence"] == 4477080301
    assert dict(row["vendor_data"])["quote_quantity"] == "211.57"
    plain = "4477080301,42314.0,0.005,211.57,1704067200053,True,true\n"
    ((same,), *_) = load(tmp_path, plain, "binance-trades", name)
    assert same["message_id"] == row["message_id"]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            "number,price,qty,quote_qty,time,is_buyer_maker",
            "unknown column 'number', and no column for id",
        ),
        ("id,price,qty,quote_qty,time,taker", "unknown column 'taker', and no column for side"),
        ("id,price,qty,quote_qty,time,is_buyer_maker,x", "unknown column 'x' in the header"),
        ("id,price,qty,quote_qty,time", "no column for side in the header"),
        ("ID,trade_id,price,qty,time,maker", "unknown column 'ID'"),
        ("a,b,c,d,e,f", "unknown column 'a'"),
    ],
)
def test_a_dump_with_an_unknown_header_is_refused(
    tmp_path: Path, header: str, message: str
) -> None:
    row = ",".join(["1", "2", "3", "6", "1704067200053", "true", "true"][: header.count(",") + 1])
    with pytest.raises(BadData, match=message):
        load(tmp_path, f"{header}\n{row}\n", "binance-trades", symbol="BTCUSDT")


def test_two_spellings_of_one_column_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="'Trade ID' and 'tradeId', which both mean trade_id"):
        generic(tmp_path, "timestamp,price,size,Trade ID,tradeId\n2024-01-01,1,2,3,4\n")


def test_what_a_header_seems_to_lack_is_noted(tmp_path: Path) -> None:
    _, _, notices = generic(tmp_path, "timestamp,price,size,ref,way\n2024-01-01,1,2,3,buy\n")
    assert [notice.partition(",")[0] for notice in notices] == ["no id column", "no side column"]
    assert all("unused columns: ref, way" in notice for notice in notices)
    _, _, notices = generic(tmp_path, "timestamp,price,size\n2024-01-01,1,2\n")
    assert notices == []


def test_of_two_columns_for_a_field_the_one_that_is_read_is_named(tmp_path: Path) -> None:
    header = "id,timestamp,price,amount,volume,side"
    ((row,), _, notices) = generic(tmp_path, f"{header}\n5,2024-01-01,10,3,30,BUY\n")
    assert (row["quantity"], dict(row["vendor_data"])["amount"]) == (30, "3")
    assert notices == [
        "quantity is read from column volume, not from amount (--map quantity=amount changes that)"
    ]


def test_quotes_need_no_sizes_where_the_layout_lets_them_be_empty(tmp_path: Path) -> None:
    (row,), rejects, notices = load(
        tmp_path, "timestamp,bid,ask\n2024-01-01,1,2\n", "generic-quotes", **OF_FILE
    )
    assert (row["bid_price"], row["bid_quantity"], row["ask_quantity"]) == (1, None, None)
    assert (rejects, notices) == ([], [])
    (row,), _, notices = load(
        tmp_path, "timestamp,bid,ask,bidqty,x\n2024-01-01,1,2,3,4\n", "generic-quotes", **OF_FILE
    )
    assert (row["bid_quantity"], row["ask_quantity"]) == (3, None)
    assert "no column for ask_quantity, so it is null" in notices[0]


@pytest.mark.parametrize("number", ["61.500", "1.234,5", "1234.5"])
def test_a_point_beside_a_decimal_comma_is_rejected(tmp_path: Path, number: str) -> None:
    layout = load_layout("generic-trades").formatted(decimal=",", delimiter=";")
    lines = f"timestamp;price;size\n2024-01-01;999,5;1\n2024-01-01;{number};1\n"
    rows, (reject,), _ = load(tmp_path, lines, layout, **OF_FILE)
    assert [row["price"] for row in rows] == [Decimal("999.5")]
    assert "decimal mark is a comma" in reject.reason


def test_a_header_in_two_scripts(tmp_path: Path) -> None:
    names = "trade_id/撮合id,side/方向,size/数量,price/价格,time/时间"
    data = f"{names}\n7,buy,0.01,43000.1,1704067200053\n"
    layout = load_layout("generic-trades").formatted(encoding="gbk")
    ((row,), rejects, _) = load(tmp_path, data.encode("gbk"), layout, **OF_FILE)
    assert (row["trade_id"], row["side"], rejects) == ("X-7", "BUY", [])
    with pytest.raises(BadData, match="the header is not UTF-8 at byte 10") as caught:
        generic(tmp_path, data.encode("gbk"))
    assert "--encoding" in str(caught.value.hint)


def test_too_many_columns_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadData, match="1,001 columns, more than 1,000"):
        generic(tmp_path, ",".join(f"c{n}" for n in range(1001)) + "\n")


# --- times


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("1704067200", "2024-01-01T00:00:00"),
        ("1704067200.1234", "2024-01-01T00:00:00.123400"),
        ("1704067200.", "2024-01-01T00:00:00"),
        ("1704067200053", "2024-01-01T00:00:00.053000"),
        ("1704067200053.25", "2024-01-01T00:00:00.053250"),
        ("1704067200053001", "2024-01-01T00:00:00.053001"),
        ("1704067200123456000", "2024-01-01T00:00:00.123456"),
        ("631152000", "1990-01-01T00:00:00"),
        ("631152000000000", "1990-01-01T00:00:00"),
        ("2024-01-01", "2024-01-01T00:00:00"),
        ("2024-01-01T00:00:00Z", "2024-01-01T00:00:00"),
        ("2024-01-01 00:00:00.1 UTC", "2024-01-01T00:00:00.100000"),
        ("2024-01-01 02:00:00.123456000 +02:00", "2024-01-01T00:00:00.123456"),
        ("2023-12-31T19:00:00-0500", "2024-01-01T00:00:00"),
        ("20240101000000", "2024-01-01T00:00:00"),
        ("20240101000000123", "2024-01-01T00:00:00.123000"),
        ("20240101000000123456", "2024-01-01T00:00:00.123456"),
    ],
)
def test_times_of_all_forms(tmp_path: Path, cell: str, expected: str) -> None:
    lines = "".join(f"{each},1,2\n" for each in (cell, "1704067200000", "2024-01-01 00:00:00.5Z"))
    rows, rejects, notices = generic(tmp_path, f"timestamp,price,size\n{lines}")
    assert (rejects, notices) == ([], [])
    assert [row["timestamp"] for row in rows] == [
        us(expected),
        us("2024-01-01"),
        us("2024-01-01T00:00:00.5"),
    ]


@pytest.mark.parametrize(
    "cell", ["1672756200123456789", "2023-01-03T14:30:00.123456789", "1672756200.1234567"]
)
def test_finer_times_are_cut_off_and_that_is_noted(tmp_path: Path, cell: str) -> None:
    ((row,), _, notices) = generic(tmp_path, f"timestamp,price,size\n{cell},1,2\n")
    assert row["timestamp"] == us("2023-01-03T14:30:00.123456")
    assert notices == ["times are finer than microseconds: truncated to microseconds"]


@pytest.mark.parametrize("cell", ["1989-12-31T23:59:59", "86400", "2611-01-01", "5000000000"])
def test_implausible_times_are_rejected_unless_any_is_good(tmp_path: Path, cell: str) -> None:
    data = f"timestamp,price,size\n{cell},1,2\n"
    rows, (reject,), _ = generic(tmp_path, data)
    assert rows == []
    assert f"is out of the years 1990 to {datetime.now(UTC).year + 1}" in reject.reason
    assert len(generic(tmp_path, data, is_any_time=True)[0]) == 1


def test_compact_times_in_a_dump_are_rejected(tmp_path: Path) -> None:
    line = "1,42314.0,0.005,211.57,20240101000000053,True,True\n"
    _, (reject,), _ = load(tmp_path, line, "binance-trades", "BTCUSDT-trades-2024-01-01.csv")
    assert reject.code == "bad_timestamp"


@pytest.mark.parametrize(
    ("formats", "cells"),
    [
        ('"%d.%m.%Y %H:%M:%S.%f"', ["01.06.2020 00:00:00.123", "01.06.2020 00:00:01"]),
        ('"%Y%m%d %H%M%S%f"', ["20200601 000000123", "20200601 000001"]),
        ('"%d %b %Y %H:%M:%S.%f"', ["01 Jun 2020 00:00:00.123", "01 Jun 2020 00:00:01"]),
        (
            '["%d.%m.%Y %H:%M:%S.%f", "%Y/%m/%d %H:%M:%S"]',
            ["01.06.2020 00:00:00.123", "2020/06/01 00:00:01"],
        ),
    ],
)
def test_formats_with_fractions_read_whole_seconds(
    tmp_path: Path, formats: str, cells: list[str]
) -> None:
    layout = parse_layout(
        f"""
        kind = "trades"
        header = "none"
        columns = ["t", "p", "q"]
        fields = {{ timestamp = "t", price = "p", quantity = "q" }}
        time = {{ how = "format", date_format = {formats} }}
        """,
        origin="text",
    )
    rows, rejects, _ = load(tmp_path, "".join(f"{c},1,2\n" for c in cells), layout, **OF_FILE)
    assert rejects == []
    assert [row["timestamp"] for row in rows] == [
        us("2020-06-01T00:00:00.123"),
        us("2020-06-01T00:00:01"),
    ]


# --- sides


def test_sides_in_other_words_are_mapped_or_rejected(tmp_path: Path) -> None:
    words = ["bid", "ASK", "Sell ", " b", "1", ""]
    data = "timestamp,price,size,side\n" + "".join(f"2024-01-01,1,2,{w}\n" for w in words)
    rows, rejects, _ = generic(tmp_path, data)
    assert [row["side"] for row in rows] == ["SELL", "BUY", "UNKNOWN"]
    assert [(r.position, r.code, r.column) for r in rejects] == [
        (2, "bad_side", "side"),
        (3, "bad_side", "side"),
        (6, "bad_side", "side"),
    ]
    mapped = load_layout("generic-trades").mapped({}, {"side": {"bid": "SELL", "ask": "BUY"}})
    rows, (reject,), _ = load(tmp_path, data, mapped, **OF_FILE)
    assert [row["side"] for row in rows] == ["SELL", "BUY", "SELL", "BUY", "UNKNOWN"]
    assert reject.position == 6


def test_sides_that_a_layout_takes_as_unknown_are_counted(tmp_path: Path) -> None:
    layout = load_layout("generic-trades").mapped({}, {"side": {"other": "UNKNOWN"}})
    data = "timestamp,price,size,side\n" + "".join(f"2024-01-01,1,2,{w}\n" for w in "xxyb")
    rows, rejects, (notice,) = load(tmp_path, data, layout, **OF_FILE)
    assert [row["side"] for row in rows] == ["UNKNOWN"] * 3 + ["BUY"]
    assert rejects == []
    assert notice.startswith("3 unknown sides stored as UNKNOWN: 'x', 'y'")


def test_values_of_other_fields_are_mapped(tmp_path: Path) -> None:
    layout = load_layout("generic-trades").mapped(
        {}, {"asset_class": {"spot": "crypto"}, "symbol": {"XBT": "BTC"}}
    )
    data = "timestamp,price,size,symbol,asset_class\n2024-01-01,1,2,XBT,spot\n"
    ((row,), *_) = load(tmp_path, data, layout, exchange="X", currency="USD")
    assert (row["symbol"], row["asset_class"]) == ("BTC", "crypto")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"side": {"bid": "SOLD"}}, "side 'bid' cannot be mapped to 'SOLD'"),
        ({"price": {"x": "1"}}, "values of price cannot be mapped"),
        ({"asset_class": {"spot": "coins"}}, "asset_class 'spot' cannot be mapped to 'coins'"),
    ],
)
def test_values_that_cannot_be_mapped(values: dict[str, dict[str, str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_layout("generic-trades").mapped({}, values)


def test_a_negative_amount_is_a_sell(tmp_path: Path) -> None:
    data = "401,1704067200123,-0.5,42000\n402,1704067200124,0.25,42001\n"
    rows, rejects, _ = load(tmp_path, data, "bitfinex-trades", symbol="BTCUSD")
    assert rejects == []
    assert [(r["side"], r["quantity"], r["currency"]) for r in rows] == [
        ("SELL", Decimal("0.5"), "USD"),
        ("BUY", Decimal("0.25"), "USD"),
    ]


# --- numbers, marks, encodings


def test_numbers_as_floats_print_them(tmp_path: Path) -> None:
    cells = ["5.07e+10", "1E3", "+1.5", " 2 ", ".5e1"]
    data = "timestamp,price,size\n" + "".join(f"2024-01-01,3.5e-05,{cell}\n" for cell in cells)
    rows, rejects, _ = generic(tmp_path, data)
    assert rejects == []
    sizes = [Decimal(each) for each in ("50700000000", "1000", "1.5", "2", "5")]
    assert [row["quantity"] for row in rows] == sizes
    assert {row["price"] for row in rows} == {Decimal("0.000035")}


@pytest.mark.parametrize(
    ("form", "data"),
    [
        ({"delimiter": ";", "decimal": ","}, b"timestamp;price;size\n2024-01-01;13800,1;0,5\n"),
        ({"delimiter": "tab"}, b'timestamp\tprice\tsize\n2024-01-01\t"13800.1"\t0.5\n'),
        ({"skip_lines": 2}, b"made by x\n\ntimestamp,price,size\n2024-01-01,13800.1,0.5\n"),
        ({"columns": ["timestamp", "price", "size"]}, b"2024-01-01,13800.1,0.5\n"),
        (
            {"encoding": "latin-1"},
            "timestamp,price,size,\xe9\n2024-01-01,13800.1,0.5,\xe9\n".encode("latin-1"),
        ),
        (
            {"encoding": "utf-16"},
            "timestamp,price,size\r\n2024-01-01,13800.1,0.5\r\n".encode("utf-16"),
        ),
        ({}, "timestamp,price,size\n2024-01-01,13800.1,0.5\n".encode("utf-16")),
    ],
)
def test_files_of_other_forms(tmp_path: Path, form: dict[str, Any], data: bytes) -> None:
    layout = load_layout("generic-trades").formatted(**form)
    ((row,), rejects, _) = load(tmp_path, data, layout, **OF_FILE)
    assert rejects == []
    assert (row["price"], row["quantity"]) == (Decimal("13800.1"), Decimal("0.5"))
    assert row["trade_id"].endswith("-1")  # the first row, whatever is above it


def test_the_form_is_part_of_what_a_file_is_loaded_as(tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_text("timestamp,price,size,side\n2024-01-01,1,2,b\n")
    plain = load_layout("generic-trades")
    layouts = [
        plain,
        plain.formatted(decimal=",", delimiter=";"),
        plain.formatted(encoding="latin-1"),
        plain.formatted(columns=["timestamp", "price", "size", "side"]),
        plain.mapped({}, {"side": {"b": "SELL"}}),
    ]
    path.write_text("timestamp,price,size,side\n2024-01-01,1,2,b\n")
    meanings = set()
    for layout in layouts:
        if layout.delimiter == ";":
            path.write_text("timestamp;price;size;side\n2024-01-01;1;2;b\n")
        else:
            path.write_text("timestamp,price,size,side\n2024-01-01,1,2,b\n")
        meanings.add(read_csv(path, layout, CsvOptions(**OF_FILE)).meaning())
    assert len(meanings) == len(layouts)


@pytest.mark.parametrize(
    ("data", "hint"),
    [
        ("timestamp;price;size\n2024-01-01;1;2\n", "--delimiter ';'"),
        ("timestamp\tprice\tsize\n2024-01-01\t1\t2\n", "--delimiter tab"),
        ("https://a.b\ntimestamp,price,size\n2024-01-01,1,2\n", "--skip-lines 1"),
        ("1381095255,122.00,0.1\n", "--columns timestamp,price"),
        (
            "agg_trade_id,price,quantity,first_trade_id,last_trade_id,transact_time,is_buyer_maker\n",
            "--layout binance-agg-trades",
        ),
    ],
)
def test_a_file_of_another_form_says_which_option_fits(
    tmp_path: Path, data: str, hint: str
) -> None:
    with pytest.raises(BadData, match=r"in the header .* \(delimiter ','\)") as caught:
        generic(tmp_path, data)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "form",
    [
        {"delimiter": "ab"},
        {"delimiter": "."},
        {"delimiter": "1"},
        {"decimal": ","},
        {"decimal": ";"},
        {"encoding": "klingon"},
        {"encoding": "base64"},
        {"skip_lines": -1},
        {"columns": ["a", "a"]},
    ],
)
def test_forms_that_there_are_not(form: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        load_layout("generic-trades").formatted(**form)


def test_bytes_that_are_not_of_the_encoding_are_bad_data(tmp_path: Path) -> None:
    layout = load_layout("generic-trades").formatted(encoding="gbk")
    with pytest.raises(BadData, match="is not gbk at byte 22"):
        load(tmp_path, b"timestamp,price,size\n\xff\xff", layout, **OF_FILE)


def test_what_else_is_in_archives(tmp_path: Path) -> None:
    path = tmp_path / "any.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("any.csv", "timestamp,price,size\n2024-01-01,1,2\n")
        archive.writestr("__MACOSX/._any.csv", "x")
        archive.writestr(".DS_Store", "x")
        archive.writestr("report.txt", "one gap")
    ((_,), rejects, _) = read(read_csv(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))
    assert rejects == []


# --- vendors


def test_aggregate_trades_have_ids_of_their_own(tmp_path: Path) -> None:
    line = "1002004001,46210.5,0.5,1803580001,1803580003,1640995200053,true\n"
    name = "BTCUSDT-aggTrades-2022-01-01.csv"
    ((row,), *_) = load(tmp_path, line, "binance-agg-trades", name, market="usdm")
    assert row["trade_id"] == "BINANCE_USDM-agg-1002004001"
    assert (row["source_sequence"], row["side"]) == (None, "SELL")
    assert dict(row["vendor_data"])["first_trade_id"] == "1803580001"
    trade = "1002004001,46210.5,0.5,23105.25,1640995200053,true\n"
    ((other,), *_) = load(tmp_path, trade, "binance-trades", symbol="BTCUSDT", market="usdm")
    assert other["message_id"] != row["message_id"]
    with pytest.raises(
        BadData, match=r"the name .* indicates aggTrades, but the layout is for trades"
    ):
        load(tmp_path, line, "binance-trades", name, market="usdm")


def test_book_tickers_have_the_ids_of_the_stream(tmp_path: Path) -> None:
    data = (
        "update_id,best_bid_price,best_bid_qty,best_ask_price,best_ask_qty,transaction_time,"
        "event_time\n9001,49999.9,1.5,50000.1,2.0,1687392000123,1687392000125\n"
    )
    name = "BTCUSDT-bookTicker-2023-06-22.csv"
    ((row,), *_) = load(tmp_path, data, "binance-book-ticker", name, market="usdm")
    assert (row["quote_id"], row["source_sequence"]) == ("BINANCE_USDM-9001", 9001)
    assert row["timestamp"] == us("2023-06-22T00:00:00.123")
    with pytest.raises(BadData, match="futures dump"):
        load(tmp_path, data, "binance-book-ticker", name)


@pytest.mark.parametrize(
    ("layout", "data", "options", "expected"),
    [
        (
            "dukascopy-quotes",
            "Gmt time,Ask,Bid,AskVolume,BidVolume\n01.06.2020 00:00:01,1.11032,1.11029,1.5,0.75\n",
            {"symbol": "EURUSD"},
            ("2020-06-01T00:00:01", "1.11029", Decimal("0.75"), Decimal("1.5")),
        ),
        (
            "histdata-quotes",
            "20120201 000003660,1.306600,1.306770,0\n",
            {"symbol": "EURUSD"},
            ("2012-02-01T05:00:03.660", "1.3066", None, None),
        ),
        (
            "truefx-quotes",
            "EUR/USD,20090501 00:00:00.256,1.3234,1.3235\n",
            {},
            ("2009-05-01T00:00:00.256", "1.3234", None, None),
        ),
    ],
)
def test_quotes_of_vendors(
    tmp_path: Path, layout: str, data: str, options: dict[str, str], expected: tuple[Any, ...]
) -> None:
    ((row,), *_) = load(tmp_path, data, layout, asset_class="futures", currency="USD", **options)
    time, price, *sizes = expected
    assert row["timestamp"] == us(time)
    assert row["bid_price"] == Decimal(price)
    assert [row["bid_quantity"], row["ask_quantity"]] == sizes


@pytest.mark.parametrize(
    ("layout", "data", "trade_id", "currency"),
    [
        (
            "bybit-trades",
            "timestamp,symbol,side,size,price,tickDirection,trdMatchID\n"
            "1704067200.1234,BTCUSDT,Sell,1e-02,42283.60,ZeroPlusTick,6a9b\n",
            "BYBIT-6a9b",
            "USDT",
        ),
        (
            "kaiko-trades",
            "id,exchange,symbol,date,price,amount,sell\n7,cbse,btcusd,1704067200123,42283.6,0.01,true\n",
            "cbse-7",
            "USD",
        ),
    ],
)
def test_trades_of_vendors(
    tmp_path: Path, layout: str, data: str, trade_id: str, currency: str
) -> None:
    ((row,), *_) = load(tmp_path, data, layout, asset_class="crypto")
    assert (row["trade_id"], row["side"], row["currency"]) == (trade_id, "SELL", currency)
    assert row["quantity"] == Decimal("0.01")


def test_one_sided_quotes(tmp_path: Path) -> None:
    data = (
        "timestamp,bid_price,bid_size,ask_price,ask_size\n"
        "2024-01-01,46210.0,1.2,,\n2024-01-01,,,1,2\n2024-01-01,,3,,4\n2024-01-01,1,2,3,\n"
    )
    rows, (reject,), _ = load(tmp_path, data, "generic-quotes", **OF_FILE)
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    assert [[row[name] for name in names] for row in rows] == [
        [Decimal("46210"), Decimal("1.2"), None, None],
        [None, None, 1, 2],
        [1, 2, 3, None],
    ]
    assert (reject.position, reject.code) == (4, "bad_bid_price")


def test_the_currency_of_crypto_is_the_symbols(tmp_path: Path) -> None:
    data = "timestamp,price,size,symbol\n" + "".join(
        f"2024-01-01,1,2,{symbol}\n" for symbol in ("BTC-USD", "ETHEUR", "??")
    )
    rows, (reject,), _ = load(tmp_path, data, "generic-trades", exchange="X", asset_class="crypto")
    assert [row["currency"] for row in rows] == ["USD", "EUR"]
    assert "has no known currency" in reject.reason
    with pytest.raises(UsageError, match="no currency given"):
        load(tmp_path, data, "generic-trades", exchange="X", asset_class="equities")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('delimiter = "ab"', "cannot be a delimiter"),
        ('may_be_empty = ["price"]', "may_be_empty cannot have 'price'"),
        ('dump = "trades"', "dump needs market"),
        ('id_series = "agg"', "id_series is a word"),
        ("aliases = { z = ['y'] }", "unknown key aliases.z"),
        ("values = { side = { x = 'SOLD' } }", "side 'x' cannot be mapped to 'SOLD'"),
        ("values = { price = { x = '1' } }", "values of price cannot be mapped"),
    ],
)
def test_layout_keys_are_checked(text: str, message: str) -> None:
    layout = f"""
        kind = "trades"
        header = "none"
        columns = ["t", "p", "q"]
        {text}
        fields = {{ timestamp = "t", price = "p", quantity = "q" }}
        time = {{ how = "iso" }}
    """
    with pytest.raises(ConfigError, match=message):
        parse_layout(layout, origin="text")


# --- bounds


def test_a_block_of_bad_lines_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "any.csv"
    path.write_text("timestamp,price,size\n" + "x\n" * 100_000)
    batches = iter(read_csv(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))
    assert 0 < len(next(batches).rejects) < 10_000


def test_blank_lines_between_rows_are_skipped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "_PIECE_LINES", 2)
    lines = ["2024-01-01,1,2", "", "\r", "2024-01-01,1,2\r", "", "bad", "2024-01-01,1,2", ""]
    rows, (reject,), _ = generic(tmp_path, "timestamp,price,size\n" + "\n".join(lines) + "\n\n\n")
    assert [row["trade_id"].rpartition("-")[2] for row in rows] == ["1", "4", "7"]
    assert (reject.position, reject.code) == (7, "bad_column_count")


# --- Parquet


def parquet(folder: Path, layout: str, table: pa.Table, **options: Any) -> Any:
    path = folder / "any.parquet"
    pq.write_table(table, path, row_group_size=2)
    return read(read_parquet(path, load_layout(layout), CsvOptions(**{**OF_FILE, **options})))


def test_parquet_gives_the_rows_of_the_csv(tmp_path: Path) -> None:
    table = pa.table(
        {
            "timestamp": pa.array([1704067200123456, 1704067200000001], pa.timestamp("us", "UTC")),
            "price": pa.array([Decimal("1.50"), Decimal("2.25")], pa.decimal128(10, 2)),
            "size": pa.array([5.07e10, 0.1]),
            "side": pa.array(["Buy", "sell"]).dictionary_encode(),
            "trade_id": pa.array([1, 2], pa.uint32()),
            "tags": pa.array([["a"], None], pa.list_(pa.string())),
        }
    )
    rows, rejects, _ = parquet(tmp_path, "generic-trades", table)
    data = (
        "timestamp,price,size,side,trade_id,tags\n"
        '1704067200123456,1.5,50700000000,Buy,1,"[""a""]"\n1704067200000001,2.25,0.1,sell,2,\n'
    )
    expected, *_ = generic(tmp_path, data)
    for row in (*rows, *expected):
        del row["ingestion_timestamp"]
    assert (rows, rejects) == (expected, [])


def test_parquet_times_without_a_zone_are_local(tmp_path: Path) -> None:
    table = pa.table(
        {
            "timestamp": pa.array([1704067200123456789], pa.timestamp("ns")),
            "price": [1.0],
            "size": [2],
        }
    )
    ((row,), _, notices) = parquet(tmp_path, "generic-trades", table, timezone="Etc/GMT+5")
    assert row["timestamp"] == us("2024-01-01T05:00:00.123456")
    assert len(notices) == 1


def test_parquet_rejects_name_row_and_column(tmp_path: Path) -> None:
    table = pa.table(
        {"timestamp": ["2024-01-01"] * 5, "price": [1, 2, -3, None, 5], "size": [1] * 5}
    )
    rows, rejects, _ = parquet(tmp_path, "generic-trades", table)
    assert len(rows) == 3
    assert [(r.position, r.column, r.code) for r in rejects] == [
        (3, "price", "bad_price"),
        (4, "price", "bad_price"),
    ]
    assert b'"price": "-3"' in rejects[0].raw


def test_a_broken_parquet_file_is_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "any.parquet"
    path.write_bytes(b"PAR1 but not much more")
    with pytest.raises(BadData, match="is not a Parquet file"):
        read(read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))


def test_parquet_text_that_is_not_utf8_is_a_reject(tmp_path: Path) -> None:
    def texts(*values: bytes) -> pa.Array:
        lengths = [0, *(len(value) for value in values)]
        offsets = pa.py_buffer(np.cumsum(lengths).astype(np.int32).tobytes())
        data = pa.py_buffer(b"".join(values))
        return pa.Array.from_buffers(pa.string(), len(values), [None, offsets, data])

    table = pa.table(
        {
            "timestamp": ["2024-01-01"] * 4,
            "symbol": texts(b"A", b"\xff\xfe", b"C", b"D"),
            "price": [1, 2, -3, 4],
            "size": [1] * 4,
            "note": texts(b"\xff\xfeqqqq", b"fine", b"\xc3", b"good"),
        }
    )
    rows, rejects, _ = parquet(tmp_path, "generic-trades", table, symbol=None)
    assert [(row["symbol"], dict(row["vendor_data"])) for row in rows] == [("D", {"note": "good"})]
    assert [(r.position, r.column, r.code) for r in rejects] == [
        (1, "note", "bad_encoding"),
        (2, "symbol", "bad_encoding"),
        (3, "note", "bad_encoding"),
    ]
    assert rb"\xff\xfeqqqq" in rejects[0].raw.replace(rb"\\", b"\\")
    assert rows[0]["trade_id"].endswith("-4")  # its number in the file


def test_parquet_ids_that_are_floats_are_whole_numbers(tmp_path: Path) -> None:
    table = pa.table(
        {
            "timestamp": [1704067200123.0] * 5,
            "price": [1.0] * 5,
            "size": [0.5] * 5,
            "trade_id": [12345678901.0, None, 2.0**53, 1.5, float("nan")],
            "volume": [1e10, 1e-7, 1.0, 1.0, 1.0],
        }
    )
    (first, second), rejects, _ = parquet(tmp_path, "generic-trades", table)
    assert (first["trade_id"], first["source_sequence"]) == ("X-12345678901", 12345678901)
    assert second["source_sequence"] is None
    assert [dict(row["vendor_data"])["volume"] for row in (first, second)] == [
        "10000000000",
        "0.0000001",
    ]
    assert [(r.position, r.column, r.code) for r in rejects] == [
        (position, "trade_id", "bad_id") for position in (3, 4, 5)
    ]
    assert "is a float that is not exact" in rejects[0].reason


def test_parquet_times_that_are_floats_are_those_of_the_csv(tmp_path: Path) -> None:
    times = [1704067200.25, 1704067200123.0, 1704067200123.5, 1704067200123456.0]
    table = pa.table({"timestamp": times, "price": [1.0] * 4, "size": [1] * 4})
    rows, rejects, _ = parquet(tmp_path, "generic-trades", table)
    lines = "".join(f"{time!r},1.0,1\n" for time in times)
    expected, *_ = generic(tmp_path, f"timestamp,price,size\n{lines}")
    assert [row["timestamp"] for row in rows] == [row["timestamp"] for row in expected]
    assert rejects == []
    narrow = table.set_column(0, "timestamp", pa.array([1704067200.0] * 4, pa.float32()))
    rows, rejects, _ = parquet(tmp_path, "generic-trades", narrow)
    assert (len(rows), {reject.code for reject in rejects}) == (0, {"bad_timestamp"})


def test_parquet_values_that_are_repeated_do_not_fill_the_memory(tmp_path: Path) -> None:
    count = 20_000
    path = tmp_path / "any.parquet"
    columns: dict[str, list[Any]] = {
        "timestamp": ["2024-01-01"] * count,
        "price": [1] * count,
        "size": [1] * count,
        "note": ["x" * 4096] * count,
    }
    pq.write_table(pa.table(columns), path)
    source = read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE))
    sizes = [(rows.num_rows, rows.nbytes) for batch in source for _, rows in batch.rows]
    assert sum(rows for rows, _ in sizes) == count
    assert max(size for _, size in sizes) < 20 << 20  # of 82 MB
    columns["note"][-1] = "x" * (1 << 20)
    pq.write_table(pa.table(columns), path)
    with pytest.raises(BadData, match="has a row of more than 1 MB"):
        read(read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))


def test_parquet_text_in_delta_encodings_is_read_few_rows_at_a_time(tmp_path: Path) -> None:
    count = 500
    path = tmp_path / "any.parquet"
    notes = [f"note {number}" for number in range(count)]
    table = pa.table(
        {
            "timestamp": ["2024-01-01"] * count,
            "trade_id": [f"t{number}" for number in range(count)],
            "price": [1] * count,
            "size": [1] * count,
            "note": notes,
        }
    )
    encodings = {"trade_id": "DELTA_BYTE_ARRAY", "note": "DELTA_LENGTH_BYTE_ARRAY"}
    pq.write_table(table, path, use_dictionary=False, column_encoding=encodings)
    rows, rejects, _ = read(
        read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE))
    )
    assert [row["trade_id"] for row in rows] == [f"X-t{number}" for number in range(count)]
    assert [dict(row["vendor_data"])["note"] for row in rows] == notes
    assert rejects == []


def test_parquet_text_that_is_too_long_is_bad_data_in_delta_encodings_too(tmp_path: Path) -> None:
    path = tmp_path / "any.parquet"
    table = pa.table(
        {
            "timestamp": ["2024-01-01"] * 50,
            "price": [1] * 50,
            "size": [1] * 50,
            "note": ["y"] * 32 + ["x" * (2 << 20)] * 18,  # stored once, as the prefix of the others
        }
    )
    pq.write_table(table, path, use_dictionary=False, column_encoding={"note": "DELTA_BYTE_ARRAY"})
    with pytest.raises(BadData, match="has a row of more than 1 MB"):
        read(read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))


def test_parquet_row_groups_of_few_rows_are_joined(tmp_path: Path) -> None:
    count, path = 300, tmp_path / "any.parquet"
    table = pa.table(
        {
            "timestamp": ["2024-01-01"] * count,
            "side": [["buy", "sell", None][number % 3] for number in range(count)],
            "price": range(1, count + 1),
            "size": [1] * count,
            "tags": [[number] for number in range(count)],
        }
    )
    pq.write_table(table, path, row_group_size=1)
    source = read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE))
    (batch,) = source
    ((_, rows),) = batch.rows
    assert [int(price) for price in rows["price"].to_pylist()] == list(range(1, count + 1))
    assert rows["side"].to_pylist() == ["BUY", "SELL", "UNKNOWN"] * (count // 3)
    assert dict(rows["vendor_data"][7].as_py()) == {"tags": "[7]"}


def test_parquet_pages_that_do_not_match_their_checksum_are_bad_data(tmp_path: Path) -> None:
    path = tmp_path / "any.parquet"
    table = pa.table(
        {"timestamp": ["2024-01-01"] * 50, "price": [float(n) for n in range(50)], "size": [1] * 50}
    )
    pq.write_table(table, path, use_dictionary=False, compression="none", write_page_checksum=True)
    content = bytearray(path.read_bytes())
    at = content.index(np.arange(50, dtype=np.float64).tobytes())
    content[at + 8 * 20 + 6] ^= 0x10  # another price, and as good a number
    path.write_bytes(content)
    with pytest.raises(BadData, match="cannot be read to its end"):
        read(read_parquet(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))


def test_parquet_text_in_nested_values_is_utf8_or_a_reject(tmp_path: Path) -> None:
    lists = pa.array([[b"\xc3\xa9"], [b"fine"], [b"\xff"], None], pa.list_(pa.binary()))
    table = pa.table(
        {
            "timestamp": ["2024-01-01"] * 4,
            "price": [1] * 4,
            "size": [1] * 4,
            "info": pa.StructArray.from_arrays([lists, pa.array(range(4))], ["notes", "n"]),
        }
    )
    rows, rejects, _ = parquet(tmp_path, "generic-trades", table)
    assert [dict(row["vendor_data"])["info"] for row in rows] == [
        '{"notes": ["é"], "n": 0}',
        '{"notes": ["fine"], "n": 1}',
        '{"notes": null, "n": 3}',
    ]
    assert [(r.position, r.column, r.code) for r in rejects] == [(3, "info", "bad_encoding")]


def test_parquet_rejects_distinguish_null_from_empty_text(tmp_path: Path) -> None:
    table = pa.table(
        {"timestamp": ["2024-01-01"] * 2, "price": [None, ""], "size": [1] * 2, "note": ["", None]}
    )
    _, rejects, _ = parquet(tmp_path, "generic-trades", table)
    assert [json.loads(reject.raw) for reject in rejects] == [
        {"timestamp": "2024-01-01", "price": None, "size": "1", "note": ""},
        {"timestamp": "2024-01-01", "price": "", "size": "1", "note": None},
    ]


def test_parquet_ids_that_are_decimals_are_whole_numbers(tmp_path: Path) -> None:
    ids = pa.array([Decimal(12), Decimal(130), None, Decimal("2.5")], pa.decimal128(38, 10))
    table = pa.table(
        {"timestamp": ["2024-01-01"] * 4, "price": [1] * 4, "size": [1] * 4, "trade_id": ids}
    )
    rows, _, _ = parquet(tmp_path, "generic-trades", table)
    assert [row["source_sequence"] for row in rows] == [12, 130, None, None]
    assert [row["trade_id"] for row in rows[:2]] == ["X-12", "X-130"]


def test_parquet_timestamps_of_a_dump_are_numbers_in_vendor_data(tmp_path: Path) -> None:
    micros = 1_723_118_400_123_456
    table = pa.table(
        {
            "id": [1],
            "price": [1.5],
            "qty": [2.0],
            "quote_qty": [3.0],
            "time": pa.array([micros * 1000], pa.timestamp("ns")),
            "is_buyer_maker": [True],
            "is_best_match": [True],
        }
    )
    options = {"symbol": "BTCUSDT", "exchange": "BINANCE", "currency": None}
    ((row,), rejects, _) = parquet(tmp_path, "binance-trades", table, **options)
    assert rejects == []
    assert row["timestamp"] == datetime(2024, 8, 8, 12, 0, 0, 123_456, UTC)
    assert dict(row["vendor_data"])["trade_time"] == str(micros)


@pytest.mark.parametrize("date", ["date32", "timestamp"])
def test_parquet_dates_and_clock_times_are_those_of_a_layout_with_formats(
    tmp_path: Path, date: str
) -> None:
    table = pa.table(
        {
            "date": pa.array([16_139] * 2, pa.int32())  # days since 1970
            .cast(pa.date32())
            .cast(pa.date32() if date == "date32" else pa.timestamp("ns")),
            "time": pa.array([49_548_849, 49_548_850], pa.time32("ms")),
            "price": [1.11, 1.12],
            "volume": [3667, 1],
            "qualifiers": [0, 0],
            "venue": ["", ""],
            "buyer_id": ["", ""],
        }
    )
    options = {"symbol": "BHP", "exchange": None, "asset_class": None, "currency": None}
    (first, _), rejects, _ = parquet(tmp_path, "asx-trades", table, **options)
    assert rejects == []
    assert first["timestamp"] == datetime(2014, 3, 10, 2, 45, 48, 849_000, UTC)


def test_parquet_columns_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    table = pa.table(
        {
            "note": ["x" * (2 << 20)] * 2,  # longer than a row may be
            "Timestamp": ["2024-01-01"] * 2,
            "price": [1, -1],
            "price.currency": ["EUR"] * 2,
            "size": [1] * 2,
        }
    )
    layout = msgspec.structs.replace(load_layout("generic-trades"), rest=False)
    path = tmp_path / "any.parquet"
    pq.write_table(table, path)
    ((row,), (reject,), _) = read(read_parquet(path, layout, CsvOptions(**OF_FILE)))
    assert row["price"] == 1
    assert b"xx" not in reject.raw


# --- damage


def test_a_line_of_too_many_cells_is_a_reject(tmp_path: Path) -> None:
    start, commas = "2024-01-01,1,2,", "," * 100_000
    lines = [f'{start}"{commas}"', f'{start}a"{commas}', f'{start}"a"{commas}"']
    (rows, rejects, _) = generic(tmp_path, "timestamp,price,size,note\n" + "\n".join(lines))
    assert [dict(row["vendor_data"]) for row in rows] == [{"note": commas}]
    assert [reject.code for reject in rejects] == ["bad_column_count"] * 2
    assert "too many columns" in rejects[0].reason


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_a_damaged_zip_file_is_bad_data(tmp_path: Path, method: int) -> None:
    path = tmp_path / "any.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a\u00e9.csv", "timestamp,price,size\n" + "2024-01-01,1,2\n" * 20)
    whole = path.read_bytes()
    damaged = 0
    for at in range(4, len(whole)):
        path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
        try:
            read(read_csv(path, load_layout("generic-trades"), CsvOptions(**OF_FILE)))
        except BadData:
            damaged += 1
    assert damaged
