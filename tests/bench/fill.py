"""A hole in the trades, filled from a local REST server by `k2 stream`, against the budget's limit.

The first run stores the beginning of a live market. While nobody is connected, the market trades
on; the second run finds the hole and fills it. It is timed from its first connection to the commit
that completes the hole.
"""

import json
import signal
import subprocess
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from processes import K2, Failed, check_equal, environment, helper, simulated_exchange
from report import Aim, Line, Setup

from k2cli.config import load_settings
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake

_PAGE: Final = 1000
_WEIGHT: Final = 25  # of a page
_BUDGET: Final = 3000  # half of the exchange's weight per minute
_RATE: Final = 1000  # trades per second of the live market
_FACTOR: Final = 20  # of the budget, for the large hole
_TIMEOUT_S: Final = 1200.0


def run(setup: Setup) -> list[Line]:
    """Fill a hole within the exchange's budget, and a large one within a multiple of it."""
    small, large = (20_000, 200_000) if setup.is_quick else (100_000, 1_000_000)
    return [
        _line(setup.folder / "small", small, 1),
        _line(setup.folder / "large", large, _FACTOR),
    ]


def _line(home: Path, trades: int, factor: int) -> Line:
    rate = _fill(home, trades, factor)
    times = "" if factor == 1 else f"{factor} times "
    return Line(
        what=f"a hole of {trades:,} trades, filled from a local REST server",
        value=rate,
        unit="rows/s",
        reference=factor * _BUDGET / _WEIGHT * _PAGE / 60,
        against=f"half of {times}the exchange's limit",
        aim=Aim("ratio", ">=", 0.8),
    )


def _fill(home: Path, trades: int, factor: int) -> float:
    """Make a hole of at least this many trades, fill it, and return the rows filled per second."""
    market = ("--first-id", "0", "--live", str(_RATE), "--symbols", "BTCUSDT")
    with simulated_exchange(*market, "--weight-limit", "0") as url:
        _stream(home, url, K2, is_enough=lambda events: bool(_of(events, "commit")))
    end = max(_ids(home)) + trades
    past = ("--history", f"{end / _RATE:.0f}s", "--speed", "1000000000")
    with simulated_exchange(*market, *past, "--weight-limit", "0") as url:
        k2 = helper("with_budget.py", str(factor))
        events = _stream(home, url, k2, is_enough=_is_filled)
    ids = _ids(home)
    check_equal((len(ids), len(set(ids))), (max(ids) - min(ids) + 1, len(ids)))
    filled, connected = _of(events, "gap_filled"), _of(events, "connected")[0]
    rows: int = sum(event["filled"] for event in filled)
    check_equal(rows >= trades, True)
    took = datetime.fromisoformat(filled[-1]["time"]) - datetime.fromisoformat(connected["time"])
    return rows / took.total_seconds()


Events = list[dict[str, Any]]


def _of(events: Events, name: str) -> Events:
    return [event for event in events if event["event"] == name]


def _is_filled(events: Events) -> bool:
    missing: int = sum(event["missing"] for event in _of(events, "restart_gap"))
    filled: int = sum(event["filled"] for event in _of(events, "gap_filled"))
    return 0 < missing <= filled


def _stream(
    home: Path, url: str, k2: Sequence[str], *, is_enough: Callable[[Events], bool]
) -> Events:
    """Stream until the events are enough, and return all of them."""
    command = [
        *(*k2, "stream", "binance", "--symbols", "BTCUSDT", "--to", "table"),
        *("--url", url, "--rest-url", url.replace("ws", "http", 1), "--backfill", str(10**9)),
        *("--flush-interval", "1s", "--log-format", "json", "--duration", f"{_TIMEOUT_S:.0f}s"),
    ]
    events: Events = []
    is_ending = False
    env = environment(home)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            events.append(json.loads(line))
            if not is_ending and is_enough(events):
                process.send_signal(signal.SIGTERM)
                is_ending = True
    if process.returncode or not is_ending:
        raise Failed(f"exit code {process.returncode}: {events[-3:]}")
    return events


def _ids(home: Path) -> list[int]:
    with open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        rows = lake.open(TRADES).iceberg.scan(selected_fields=("source_sequence",)).to_arrow()
    ids: list[int] = rows["source_sequence"].to_pylist()
    return ids
