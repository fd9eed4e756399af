"""The only place that makes data: rows and tables of exactly the schema of their kind.

Row `n` of a batch is the trade or quote of second `n` after START; everything else follows from
`n` too, so that tests can tell what they must read.
"""

import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa

from k2cli.records import QUOTES, TRADES, RecordKind, avro_to_arrow_schema, message_ids

START = datetime(2024, 8, 8, 23, 55, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = dict[str, Any]


def trade_row(**over: Any) -> Row:
    """Make one trade; keyword arguments replace its values."""
    return _identified(TRADES, {**_shared(0), **_trade(0)}, over)


def quote_row(**over: Any) -> Row:
    """Make one quote; keyword arguments replace its values."""
    return _identified(QUOTES, {**_shared(0), **_quote(0)}, over)


def trades_batch(n: int, **over: Any) -> pa.RecordBatch:
    """Make `n` trades, one a second, of BTCUSDT and ETHUSDT in turn."""
    rows = [_identified(TRADES, {**_shared(i), **_trade(i)}, over) for i in range(n)]
    return batch_of(TRADES, rows)


def quotes_batch(n: int, **over: Any) -> pa.RecordBatch:
    """Make `n` quotes, one a second, of BTCUSDT and ETHUSDT in turn."""
    rows = [_identified(QUOTES, {**_shared(i), **_quote(i)}, over) for i in range(n)]
    return batch_of(QUOTES, rows)


def batch_of(kind: RecordKind, rows: list[Row]) -> pa.RecordBatch:
    """Put rows into a batch of the kind's schema."""
    return pa.RecordBatch.from_pylist(rows, schema=kind.arrow)


def table_of(kind: RecordKind, rows: list[Row]) -> pa.Table:
    """Put rows into a table of the kind's schema."""
    return pa.Table.from_batches([batch_of(kind, rows)])


def narrow(kind: RecordKind) -> RecordKind:
    """Return a kind as it was: quantities had 18 digits, like prices, and quotes both sides."""
    avro = json.loads(json.dumps(kind.avro))
    for field in avro["fields"]:
        match field["type"]:
            case ["null", {"logicalType": "decimal"} as amount]:
                field["type"] = amount
                del field["default"]
            case _:
                pass
        if field["name"].endswith("quantity"):
            field["type"]["precision"] = 18
    return replace(kind, avro=avro, arrow=avro_to_arrow_schema(avro))


def written(schema: Mapping[str, Any], *records: Row) -> list[bytes]:
    """Write records with fastavro: the reference for every body."""
    parsed = fastavro.parse_schema(dict(schema))
    bodies = []
    for record in records:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, record)
        bodies.append(out.getvalue())
    return bodies


def trade_v1(i: int = 0, **over: Any) -> Row:
    """Make one record of schemas/trade_v1.avsc; keyword arguments replace its values."""
    own = {
        "price": Decimal("45.123456"),
        "volume": 100 + i,
        "qualifiers": 3,
        "venue": "X",
        "buyer_id": "B7",
    }
    return {**_shared_v1(i), **own} | over


def quote_v1(i: int = 0, **over: Any) -> Row:
    """Make one record of schemas/quote_v1.avsc; keyword arguments replace its values."""
    own = {
        "bid_price": Decimal("45.120000"),
        "bid_volume": 200 + i,
        "ask_price": Decimal("45.130000"),
        "ask_volume": 300 + i,
    }
    return {**_shared_v1(i), **own} | over


def _shared_v1(i: int) -> Row:
    moment = START + timedelta(seconds=i, milliseconds=55)
    return {
        "symbol": ("BHP", "CBA")[i % 2],
        "company_id": (7078, 7162)[i % 2],
        "exchange": "ASX",
        "exchange_timestamp": moment,
        "ingestion_timestamp": moment + timedelta(milliseconds=7),
        "sequence_number": 1_000 + i,
    }


def _identified(kind: RecordKind, row: Row, over: Row) -> Row:
    """Replace values of a row, whose message id then is what k2 makes of them."""
    row = row | over
    if "message_id" not in over and row["source_sequence"] is not None:
        series = f"{row['exchange']}/{kind.name}/{row['symbol']}"
        number = np.array([row["source_sequence"]], dtype=np.int64)
        row["message_id"] = message_ids([series], np.zeros(1, np.int64), number)[0].as_py()
    return row


def _shared(i: int) -> Row:
    moment = START + timedelta(seconds=i, microseconds=55_000)
    base = ("BTC", "ETH")[i % 2]
    return {
        "message_id": f"00000000-0000-8000-8000-{i:012x}",
        "symbol": f"{base}USDT",
        "exchange": "BINANCE",
        "asset_class": "crypto",
        "timestamp": moment,
        "currency": "USDT",
        "source_sequence": 1_000 + i,
        "ingestion_timestamp": moment + timedelta(milliseconds=7),
        "platform_sequence": None,
        "vendor_data": {"base_asset": base, "is_buyer_maker": "true"},
    }


def _trade(i: int) -> Row:
    return {
        "trade_id": f"BINANCE-{1_000 + i}",
        "price": Decimal("61800.00000000") + Decimal(i) / 100,
        "quantity": Decimal("0.00000001") * (i + 1),
        "side": ("BUY", "SELL")[i % 2],
        "trade_conditions": [],
    }


def _quote(i: int) -> Row:
    return {
        "quote_id": f"BINANCE-{1_000 + i}",
        "bid_price": Decimal("61799.99000000"),
        "bid_quantity": Decimal("1.50000000"),
        "ask_price": Decimal("61800.01000000"),
        "ask_quantity": Decimal("0.25000000") + i,
    }


def rest_trades(n: int, *, first: int = 1000, is_exact: bool = True, **over: Any) -> list[Row]:
    """Make `n` consecutive trades as Binance's REST API has them, of which two share a time.

    Times are microseconds, or milliseconds unless `is_exact`.
    """
    start = int(START.timestamp()) * 1_000_000
    rows = []
    for number in range(first, first + n):
        time_us = start + (number // 2) * 1_000_123
        rows.append(
            {
                "id": number,
                "price": f"61800.{number % 100:02}000000",
                "qty": f"0.{1 + number % 9}0000000",
                "quoteQty": f"{number}.50000000",
                "time": time_us if is_exact else time_us // 1000,
                "isBuyerMaker": number % 3 == 0,
                "isBestMatch": True,
                **over,
            }
        )
    return rows


def streamed(symbol: str, trade: Mapping[str, Any]) -> bytes:
    """Write the frame of a stream with the same trade as a row of the REST API."""
    payload = {"e": "trade", "E": trade["time"], "T": trade["time"], "s": symbol, "M": True}
    payload |= {"t": trade["id"], "p": trade["price"], "q": trade["qty"]}
    payload |= {"m": trade["isBuyerMaker"]}
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": payload}).encode()


def dump_lines(rows: Iterable[Row], *, is_exact: bool = True) -> str:
    """Write trades as the lines of the exchange's dump of the spot market.

    Times are microseconds, or milliseconds unless `is_exact`, as in dumps before 2025.
    """
    lines = []
    for row in rows:
        time_us = (row["timestamp"] - EPOCH) // timedelta(microseconds=1)
        cells = [
            row["source_sequence"],
            row["price"],
            f"{row['quantity']:f}",
            f"{row['price'] * row['quantity']:f}",
            time_us if is_exact else time_us // 1000,
            row["side"] == "SELL",
            True,
        ]
        lines.append(",".join(map(str, cells)) + "\n")
    return "".join(lines)
