"""`k2 load csv` of a day's dump, against DuckDB turning the same file into Parquet by hand."""

import json
import time
from pathlib import Path
from typing import Final

import duckdb
from processes import K2, check_equal, watched
from report import Aim, Line, Setup

_TURNS: Final = 3

# The columns of a trade, with the same types, made and sorted in DuckDB's own SQL.
_BY_HAND: Final = """
    COPY (
        SELECT md5('BINANCE/trades/BTCUSDT/' || id) AS message_id,
            'BINANCE-' || id AS trade_id, 'BTCUSDT' AS symbol, 'BINANCE' AS exchange,
            'crypto' AS asset_class, make_timestamp(time) AS timestamp,
            price::DECIMAL(18, 8) AS price, qty::DECIMAL(18, 8) AS quantity,
            'USDT' AS currency, CASE WHEN maker THEN 'SELL' ELSE 'BUY' END AS side,
            []::VARCHAR[] AS trade_conditions, id AS source_sequence,
            now() AS ingestion_timestamp, NULL::BIGINT AS platform_sequence,
            MAP {{'is_buyer_maker': maker::VARCHAR, 'trade_time': time::VARCHAR,
                'quote_quantity': quote_qty, 'is_best_match': best::VARCHAR,
                'base_asset': 'BTC', 'quote_asset': 'USDT'}} AS vendor_data
        FROM read_csv('{source}', header = false, columns = {{'id': 'BIGINT', 'price': 'VARCHAR',
            'qty': 'VARCHAR', 'quote_qty': 'VARCHAR', 'time': 'BIGINT', 'maker': 'BOOLEAN',
            'best': 'BOOLEAN'}})
        ORDER BY symbol, timestamp, source_sequence
    ) TO '{target}' (FORMAT parquet, COMPRESSION zstd)
"""


def run(setup: Setup) -> list[Line]:
    """Load the same file into a new table, and COPY it by hand, in turns."""
    rows = 500_000 if setup.is_quick else 5_000_000
    source = setup.folder / "BTCUSDT-trades-2026-01-12.csv"
    _write_dump(source, rows)
    loaded, by_hand, peaks = [], [], []
    for turn in range(_TURNS):
        seen = watched(_command(source), home=setup.folder / f"home-{turn}")
        sums = json.loads(seen.stdout)
        check_equal(sums["rows"], rows)
        loaded.append(rows / sums["duration_s"])
        peaks.append(seen.peak_mb)
        by_hand.append(rows / _copy_s(source, setup.folder / f"{turn}.parquet", rows))
    return [
        Line(
            what=f"{rows:,} lines of a dump into the table",
            value=max(loaded),
            unit="rows/s",
            reference=max(by_hand),
            against="DuckDB's COPY of the same file",
            aim=Aim("ratio", ">=", 0.8),
            samples=loaded,
            reference_samples=by_hand,
        ),
        Line(what="its peak memory", value=max(peaks), unit="MB", aim=Aim("value", "<=", 700)),
    ]


def _command(source: Path) -> list[str]:
    return [*K2, "load", "csv", str(source), "--layout", "binance-trades", "--summary", "json"]


def _copy_s(source: Path, target: Path, rows: int) -> float:
    started = time.perf_counter()
    with duckdb.connect() as connection:
        connection.execute(_BY_HAND.format(source=source, target=target))
        took_s = time.perf_counter() - started
        found = connection.execute(f"SELECT count(*) FROM '{target}'").fetchone()
    check_equal(found[0] if found else 0, rows)
    return took_s


def _write_dump(path: Path, rows: int) -> None:
    """Write a file as the exchange publishes them, in microseconds."""
    with duckdb.connect() as connection:
        connection.execute(f"""
            COPY (
                SELECT 4000000000 + i, (9000000 + i * 7919 % 100000)::DECIMAL(18, 0) * 0.01 AS p,
                    (1 + i * 104729 % 100000)::DECIMAL(18, 0) * 0.00001 AS q,
                    ((9000000 + i * 7919 % 100000) * (1 + i * 104729 % 100000)) * 0.0000001,
                    1768176000000000 + i * 17000 // 1, i % 3 = 0, true
                FROM range({rows}) t(i) ORDER BY i
            ) TO '{path}' (FORMAT csv, HEADER false)
        """)
