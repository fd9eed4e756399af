"""Sort Parquet files into one with DuckDB: a list of paths in a JSON file, and the output."""

import json
import sys
from pathlib import Path

import duckdb

paths = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
with duckdb.connect(config={"threads": 2}) as connection:
    done = connection.execute(
        f"COPY (FROM read_parquet({paths!r}) ORDER BY symbol, timestamp, source_sequence)"
        f" TO '{sys.argv[2]}' (FORMAT parquet, COMPRESSION zstd)"
    ).fetchone()
assert done is not None
print(done[0])
