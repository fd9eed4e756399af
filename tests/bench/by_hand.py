"""What a person with DuckDB would write: `python by_hand.py TARGET SYMBOL` reads paths on stdin."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import duckdb

_OPTIONS: Final = {".csv": "FORMAT csv, HEADER", ".parquet": "FORMAT parquet, COMPRESSION zstd"}


def copy_by_hand(paths: Sequence[str], symbol: str, target: Path) -> int:
    """Copy the trades of one symbol, by time, out of data files; return how many they are."""
    listed = ", ".join(f"'{path}'" for path in paths)
    with duckdb.connect() as connection:
        counted = connection.execute(
            f"COPY (SELECT * FROM read_parquet([{listed}]) WHERE symbol = '{symbol}'"
            f" ORDER BY timestamp, source_sequence) TO '{target}' ({_OPTIONS[target.suffix]})"
        ).fetchone()
    return int(counted[0]) if counted else 0


if __name__ == "__main__":
    print(copy_by_hand(sys.stdin.read().split(), sys.argv[2], Path(sys.argv[1])))
