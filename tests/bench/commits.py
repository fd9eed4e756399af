"""What a commit costs late in a table's life, against early in another's, in turns."""

import statistics
import time
from pathlib import Path
from typing import Any, Final

from data import trades
from processes import check_equal
from report import Aim, Line, Setup

from k2cli.config import Settings, load_settings
from k2cli.records import TRADES
from k2cli.storage.gaps import GapWatch
from k2cli.storage.lake import open_lake

_ROWS: Final = 10  # of a commit: the next trade of each of ten symbols
_STEP_US: Final = 1_000_000  # so a commit comes every ten seconds, as a quiet stream's
_COMPARED: Final = 50  # commits: the last ones of the old table, those after 50 of the young one
_EARLY: Final = 200  # commits after which the metadata folder is looked at first


def run(setup: Setup) -> list[Line]:
    """Commit a few rows at a time, as a stream does for months."""
    commits = 600 if setup.is_quick else 5_000
    old, young = _Life(setup.folder / "old"), _Life(setup.folder / "young")
    old.go_on(_EARLY)
    early = old.metadata()
    old.go_on(commits - _COMPARED - _EARLY)
    young.go_on(_COMPARED)
    late_ms, early_ms = [], []
    for _ in range(_COMPARED):
        late_ms += old.go_on(1)
        early_ms += young.go_on(1)
    old.check(commits)
    return [
        *_compare(f"one of the last {_COMPARED} of {commits:,} commits", late_ms, early_ms),
        *_sizes(old.metadata(), early),
    ]


def _compare(what: str, late_ms: list[float], early_ms: list[float]) -> list[Line]:
    """Compare the median, and the slowest: the one that merges manifests."""
    common: dict[str, Any] = {
        "unit": "ms",
        "against": f"{_COMPARED} commits after the first {_COMPARED} of a new table",
        "samples": late_ms,
        "reference_samples": early_ms,
    }
    values: list[dict[str, Any]] = [
        {"value": of(late_ms), "reference": of(early_ms)} for of in (statistics.median, max)
    ]
    median, slowest = values
    return [
        Line(what=f"{what}, median", aim=Aim("ratio", "<=", 2), **median, **common),
        Line(what=f"{what}, slowest", **slowest, **common),
    ]


def _sizes(late: tuple[int, int], early: tuple[int, int]) -> list[Line]:
    """Show what the metadata folder has grown to."""
    against = f"after {_EARLY} commits"
    files, megabytes = zip(late, early, strict=True)
    return [
        Line(
            what="files in the metadata folder at the end",
            value=files[0],
            unit="files",
            reference=files[1],
            against=against,
        ),
        Line(
            what="size of the metadata folder at the end",
            value=megabytes[0] / 1e6,
            unit="MB",
            reference=megabytes[1] / 1e6,
            against=against,
        ),
    ]


class _Life:
    """A table that lives from commit to commit."""

    def __init__(self, home: Path) -> None:
        self._settings: Settings = load_settings({"K2_HOME": str(home)})
        self._commits = 0

    def go_on(self, commits: int) -> list[float]:
        """Make so many commits; return the milliseconds that each took."""
        took_ms = []
        with open_lake(self._settings, create=self._commits == 0) as lake:
            table = lake.open(TRADES)
            for _ in range(commits):
                rows = trades(self._commits * _ROWS, _ROWS, step_us=_STEP_US)
                started = time.perf_counter()
                commit = table.append(rows, watch=GapWatch("BINANCE"))
                took_ms.append((time.perf_counter() - started) * 1000)
                check_equal((commit.rows, commit.duplicates, list(commit.gaps)), (_ROWS, 0, []))
                self._commits += 1
        return took_ms

    def check(self, commits: int) -> None:
        """Fail unless the table holds the rows of so many commits."""
        with open_lake(self._settings) as lake:
            check_equal(lake.open(TRADES).plan().rows, commits * _ROWS)

    def metadata(self) -> tuple[int, int]:
        """Count files and bytes of the table's metadata folder."""
        (folder,) = self._settings.home.glob(f"warehouse/**/{TRADES.table}/metadata")
        sizes = [path.stat().st_size for path in folder.iterdir()]
        return len(sizes), sum(sizes)
