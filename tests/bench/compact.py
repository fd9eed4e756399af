"""Compact the many small files of a day, against DuckDB's sort of the same files."""

import json
from pathlib import Path
from typing import Final

from data import trades
from processes import K2, check_equal, helper, watched
from report import Aim, Line, Setup

from k2cli.config import load_settings
from k2cli.records import TRADES
from k2cli.storage.datafiles import write_data_files
from k2cli.storage.lake import open_lake

_ROWS: Final = 340  # of a file: a stream of 1.7 million trades a day that commits every 17 s
_DAY_US: Final = 86_400_000_000


def run(setup: Setup) -> list[Line]:
    """Sort a closed day of small files into files of the target size, each in a new process."""
    files = 500 if setup.is_quick else 5_000
    rows = files * _ROWS
    home = setup.folder / "home"
    paths = setup.folder / "paths.json"
    paths.write_text(json.dumps(_fill(home, files)), encoding="utf-8")
    sorted_file = setup.folder / "sorted.parquet"
    reference = watched(helper("sort_by_duckdb.py", str(paths), str(sorted_file)), home=home)
    seen = watched([*K2, "table", "compact", "trades", "--summary", "json"], home=home)
    summary = json.loads(seen.stdout)
    check_equal((summary["files_before"], summary["rows"]), (files, rows))
    check_equal(int(reference.stdout), rows)
    what, against = f"{files:,} files of {_ROWS} rows", "DuckDB's COPY with ORDER BY, two threads"
    return [
        Line(
            what=f"compact {what}",
            value=rows / seen.took_s,
            unit="rows/s",
            reference=rows / reference.took_s,
            against=against,
            aim=Aim("ratio", ">=", 0.8),
        ),
        Line(
            what="peak memory",
            value=seen.peak_mb,
            unit="MB",
            reference=reference.peak_mb,
            against=against,
            aim=Aim("value", "<=", 700),
        ),
        Line(
            what="size afterwards",
            value=summary["bytes_after"] / 1e6,
            unit="MB",
            reference=summary["bytes_before"] / 1e6,
            against="before",
        ),
    ]


def _fill(home: Path, files: int) -> list[str]:
    """Write the files of a day, commit them together, and return their paths."""
    step_us = (_DAY_US - 1) // (files * _ROWS)
    with open_lake(load_settings({"K2_HOME": str(home)}), create=True) as lake:
        table = lake.open(TRADES).iceberg
        written = [
            file
            for number in range(files)
            for file in write_data_files(
                table, TRADES, trades(number * _ROWS, _ROWS, step_us=step_us)
            )
        ]
        with (
            table.transaction() as transaction,
            transaction.update_snapshot().fast_append() as snapshot,
        ):
            for file in written:
                snapshot.append_data_file(file)
        # k2 learns which rows the table has, as if it had written the files one by one.
        check_equal(lake.open(TRADES).append(trades(0, _ROWS, step_us=step_us)).rows, 0)
    return [file.file_path.removeprefix("file://") for file in written]
