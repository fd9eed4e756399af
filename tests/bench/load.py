"""`k2 load csv` of a day's dump, against DuckDB's Parquet of it; and of a file after many."""

import hashlib
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import duckdb
from data import trades
from processes import K2, check_equal, watched
from report import Aim, Line, Setup

from k2cli.config import load_settings
from k2cli.records import TRADES
from k2cli.storage.append import Attempt, commit_attempts
from k2cli.storage.lake import open_lake
from k2cli.storage.loads import KEY, FileKey, FileState, LoadEntry, append_entries
from k2cli.storage.position import KEY as POSITION
from k2cli.storage.position import Position, encode_position

_TURNS: Final = 3
_KNOWN_TURNS: Final = 9

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
    """Load a large file, then small ones into a table that knows of many."""
    return [*_dump(setup), *_known(setup)]


def _dump(setup: Setup) -> list[Line]:
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


def _known(setup: Setup) -> list[Line]:
    """Look files up and commit one, where many loads are recorded and where few are, in turns."""
    many = 10_000 if setup.is_quick else 100_000
    old, young = _Known(setup.folder / "old", many), _Known(setup.folder / "young", 1)
    lookups: tuple[list[float], list[float]] = ([], [])
    commits: tuple[list[float], list[float]] = ([], [])
    for _ in range(_KNOWN_TURNS):
        for place, known in enumerate((old, young)):
            lookups[place].append(known.look_up())
            commits[place].append(known.load_one())
    what = f"with {many:,} loads recorded, median"
    return [
        Line(
            what=f"{name} {what}",
            value=statistics.median(samples[0]),
            unit="ms",
            reference=statistics.median(samples[1]),
            against="with one recorded",
            aim=Aim("value", "<=", limit),
            samples=samples[0],
            reference_samples=samples[1],
        )
        for name, samples, limit in (("look-up", lookups, 100), ("load of a row", commits, 250))
    ]


class _Known:
    """A table with so many loads in its log, in segments as so many single loads leave them."""

    def __init__(self, home: Path, loads: int) -> None:
        self._settings = load_settings({"K2_HOME": str(home)})
        self._made = 0
        with open_lake(self._settings, create=True) as lake:
            table = lake.open(TRADES).iceberg
            log: str | None = None
            for bit in reversed(range(loads.bit_length())):
                if loads >> bit & 1:
                    log, _ = append_entries(table, log, [self._entry() for _ in range(1 << bit)])
            properties = {KEY: log or "", POSITION: encode_position(Position())}
            attempt = Attempt(files=[], properties=properties, scratch=[])
            commit_attempts(table, lambda _: attempt, self._settings)
            check_equal(len(lake.open(TRADES).loads()), loads)

    def _entry(self) -> LoadEntry:
        self._made += 1
        path = f"/data/binance/spot/daily/trades/BTCUSDT-trades-{self._made:08d}.zip"
        return LoadEntry(
            loaded_at=1_768_176_000_000_000 + self._made,
            path=path,
            digest=hashlib.sha256(path.encode()).hexdigest(),
            size_bytes=10_000_000 + self._made,
            layout="binance-trades",
            rows=1,
            rejects=0,
            meaning="trades of BTCUSDT",
            identity=hashlib.sha256(f"{path} as trades of BTCUSDT".encode()).hexdigest(),
        )

    def look_up(self) -> float:
        """Ask for a file that was loaded first, and one that was not; by digest and by path."""
        self._made, made = 0, self._made
        first = self._entry()
        self._made = made
        known = _key(first)
        other = replace(known, identity="none", digests=("none",))
        with open_lake(self._settings) as lake:
            started = time.perf_counter()
            table = lake.open(TRADES)
            found = [bool(table.loaded_before([each])) for each in (known, other)]
            state = table.newest_loads([known]).get(known.path)
            took_ms = (time.perf_counter() - started) * 1000
        check_equal((found, state), ([True, False], FileState(first.size_bytes, first.digest)))
        return took_ms

    def load_one(self) -> float:
        """Load a file of one row."""
        with open_lake(self._settings) as lake:
            started = time.perf_counter()
            entry = self._entry()
            with lake.open(TRADES).load_file("a.csv", file=entry.identity) as file:
                file.write(trades(self._made, 1, step_us=1).to_batches()[0])
                snapshot_id = file.commit(entry, key=_key(entry))
            took_ms = (time.perf_counter() - started) * 1000
        check_equal(snapshot_id is not None, True)
        return took_ms


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


def _key(entry: LoadEntry) -> FileKey:
    return FileKey(
        path=entry.path,
        layout=entry.layout,
        meaning=entry.meaning,
        identity=entry.identity,
        digests=(entry.digest,),
    )
