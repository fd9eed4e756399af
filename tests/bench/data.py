"""Trades by the million, made a column at a time; row `n` follows from `n` alone."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from processes import SYMBOLS

from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.records import TRADES, message_ids

START_US: Final = 1_723_075_200_000_000  # 2024-08-08, midnight
_FIRST_ID: Final = 3_700_000_000
# In units of the fourth decimal; a walk around 10,000 makes the other four.
_PRICES: Final = 10 * np.array(
    [61_800_000, 2_680_000, 515_000, 155_000, 600, 350, 100, 43, 470_000, 10_400]
)
_INSTRUMENTS: Final = [parse_symbol(symbol, Market.SPOT) for symbol in SYMBOLS]

_Ints = npt.NDArray[np.int64]


def trades(first: int, count: int, *, step_us: int) -> pa.Table:
    """Make the trades `first` and following, `step_us` apart, of ten symbols in turn."""
    n = np.arange(first, first + count)
    codes = n % len(SYMBOLS)
    ids = _FIRST_ID + n // len(SYMBOLS)
    times_us = START_US + n * step_us
    random = np.random.default_rng(first)
    is_maker = random.integers(0, 2, count)
    walk = 10**4 + np.cumsum(random.integers(-1, 2, count))
    lots = np.maximum(random.lognormal(12, 2, count).astype(np.int64), 1)
    columns = {
        "message_id": message_ids([f"BINANCE/trades/{name}" for name in SYMBOLS], codes, ids),
        "trade_id": pc.binary_join_element_wise("BINANCE", _texts(ids), "-"),
        "symbol": _pick(SYMBOLS, codes),
        "exchange": _pick(["BINANCE"], codes * 0),
        "asset_class": _pick(["crypto"], codes * 0),
        "timestamp": _times(times_us),
        "price": _decimals("price", _PRICES[codes] * walk),
        "quantity": _decimals("quantity", lots * 1000),
        "currency": _pick([found.quote for found in _INSTRUMENTS], codes),
        "side": _pick(["BUY", "SELL"], is_maker),
        "trade_conditions": pa.ListArray.from_arrays(
            np.zeros(count + 1, dtype=np.int32), pa.array([], pa.string())
        ),
        "source_sequence": pa.array(ids),
        "ingestion_timestamp": _times(times_us + random.integers(1_000, 60_000, count)),
        "platform_sequence": pa.nulls(count, pa.int64()),
        "vendor_data": _vendor_data(codes, is_maker, times_us),
    }
    return pa.Table.from_arrays([columns[name] for name in TRADES.arrow.names], schema=TRADES.arrow)


def _vendor_data(codes: _Ints, is_maker: _Ints, times_us: _Ints) -> pa.MapArray:
    """Make the seven entries that a trade of the exchange has."""
    same = codes * 0
    entries = {
        "is_buyer_maker": _pick(["false", "true"], is_maker),
        "event_type": _pick(["trade"], same),
        "event_time": _texts(times_us + 700),
        "trade_time": _texts(times_us),
        "base_asset": _pick([found.base for found in _INSTRUMENTS], codes),
        "quote_asset": _pick([found.quote for found in _INSTRUMENTS], codes),
        "is_best_match": _pick(["true"], same),
    }
    count, width = len(codes), len(entries)
    row_by_row = np.arange(count)[:, None] + count * np.arange(width)
    return pa.MapArray.from_arrays(
        np.arange(0, width * (count + 1), width, dtype=np.int32),
        _pick(list(entries), np.tile(np.arange(width), count)),
        pa.concat_arrays(entries.values()).take(pa.array(row_by_row.ravel())),
    )


def _pick(words: Sequence[str], places: _Ints) -> pa.StringArray:
    return pa.array(words).take(pa.array(places))


def _texts(numbers: _Ints) -> pa.StringArray:
    return pa.array(numbers).cast(pa.string())


def _times(times_us: _Ints) -> pa.TimestampArray:
    return pa.array(times_us).cast(pa.timestamp("us", tz="UTC"))


def _decimals(column: str, units: _Ints) -> pa.Decimal128Array:
    """Make decimals of units of the last place, all positive: sixteen bytes, the upper eight 0."""
    both = np.stack([units, np.zeros_like(units)], axis=1)
    return pa.Array.from_buffers(TRADES.type_of(column), len(units), [None, pa.py_buffer(both)])
