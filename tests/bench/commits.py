"""What a commit costs late in a table's life, against early in it."""

import statistics
import time
from pathlib import Path
from typing import Final

from data import trades
from processes import SYMBOLS, check_equal
from report import Aim, Line, Setup

from k2cli.config import load_settings
from k2cli.records import TRADES
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.position import StreamPosition

_ROWS: Final = 10  # of a commit: the next trade of each of ten symbols
_STEP_US: Final = 1_000_000  # so a commit comes every ten seconds, as a quiet stream's
_EARLY: Final = 200  # commits after which the metadata folder is looked at first


def run(setup: Setup) -> list[Line]:
    """Commit a few rows at a time, as a stream does for months."""
    commits = 600 if setup.is_quick else 5_000
    settings = load_settings({"K2_HOME": str(setup.folder / "home")})
    with open_lake(settings, create=True) as lake:
        position = StreamPosition(series="BINANCE", is_dense=True)
        took_ms = [_commit_ms(lake, number, position) for number in range(_EARLY)]
        early = _metadata(settings.home)
        took_ms += [_commit_ms(lake, number, position) for number in range(_EARLY, commits)]
        check_equal(lake.plan(TRADES).rows, commits * _ROWS)
    late = _metadata(settings.home)
    against = f"after {_EARLY} commits"
    return [
        Line(
            what=f"one of the last 50 of {commits:,} commits, median",
            value=statistics.median(took_ms[-50:]),
            unit="ms",
            reference=statistics.median(took_ms[50:100]),
            against="median of the 50th to the 100th",
            aim=Aim("ratio", "<=", 2),
            samples=took_ms[-50:],
            reference_samples=took_ms[50:100],
        ),
        Line(
            what="files in the metadata folder at the end",
            value=late[0],
            unit="files",
            reference=early[0],
            against=against,
        ),
        Line(
            what="size of the metadata folder at the end",
            value=late[1] / 1e6,
            unit="MB",
            reference=early[1] / 1e6,
            against=against,
        ),
    ]


def _commit_ms(lake: Lake, number: int, position: StreamPosition) -> float:
    rows = trades(number * _ROWS, _ROWS, step_us=_STEP_US)
    started = time.perf_counter()
    commit = lake.append(TRADES, rows, position=position)
    took_ms = (time.perf_counter() - started) * 1000
    check_equal((commit.rows, commit.duplicates, list(commit.gaps)), (len(SYMBOLS), 0, []))
    return took_ms


def _metadata(home: Path) -> tuple[int, int]:
    """Count files and bytes of the table's metadata folder."""
    (folder,) = home.glob(f"warehouse/**/{TRADES.table}/metadata")
    sizes = [path.stat().st_size for path in folder.iterdir()]
    return len(sizes), sum(sizes)
