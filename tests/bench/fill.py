"""A hole in the trades, filled from a local REST server by `k2 stream`, against the budget's limit.

The first run stores the beginning of a live market. While nobody is connected, the market trades
on; the second run finds the hole and fills it. It is timed from its first connection to the commit
that completes the hole.
"""

import json
import signal
import subprocess
from collections.abc import Sequence
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
    took_s = _fill(home, trades, factor)
    times = "" if factor == 1 else f"{factor} times "
    return Line(
        what=f"a hole of {trades:,} trades, filled from a local REST server",
        value=trades / took_s,
        unit="rows/s",
        reference=factor * _BUDGET / _WEIGHT * _PAGE / 60,
        against=f"half of {times}the exchange's limit",
        aim=Aim("ratio", ">=", 0.8),
    )


def _fill(home: Path, trades: int, factor: int) -> float:
    """Make a hole of at least this many trades, fill it, and return how long that took."""
    market = ("--first-id", "0", "--live", str(_RATE), "--symbols", "BTCUSDT")
    with simulated_exchange(*market, "--weight-limit", "0") as url:
        first = _events(home, url, K2, until="commit")
    stored = sum(event["rows"] for event in first if event["event"] == "commit")
    passed_s = trades / _RATE + 30  # more than the first run has stored
    past = ("--history", f"{passed_s:.0f}s", "--speed", "1000000000")
    with simulated_exchange(*market, *past, "--weight-limit", "0") as url:
        k2 = helper("with_budget.py", str(factor))
        events = _events(home, url, k2, until="gap_filled", trades=trades)
    filled = [event for event in events if event["event"] == "gap_filled"]
    connected = next(event for event in events if event["event"] == "connected")
    _check(home, stored)
    took = datetime.fromisoformat(filled[-1]["time"]) - datetime.fromisoformat(connected["time"])
    rows: int = sum(event["filled"] for event in filled)
    return took.total_seconds() * trades / rows


def _events(
    home: Path, url: str, k2: Sequence[str], *, until: str, trades: int = 0
) -> list[dict[str, Any]]:
    """Stream until there is an event, or that many trades were filled; return all events."""
    command = [
        *(*k2, "stream", "binance", "--symbols", "BTCUSDT", "--to", "table"),
        *("--url", url, "--rest-url", url.replace("ws", "http", 1), "--backfill", str(10**9)),
        *("--flush-interval", "1s", "--log-format", "json", "--duration", f"{_TIMEOUT_S:.0f}s"),
    ]
    events: list[dict[str, Any]] = []
    filled, is_ending = 0, False
    env = environment(home)
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            event = json.loads(line)
            events.append(event)
            filled += event.get("filled", 0)
            if event["event"] == until and filled >= trades and not is_ending:
                process.send_signal(signal.SIGTERM)
                is_ending = True
    if process.returncode or filled < trades:
        raise Failed(f"exit code {process.returncode}, {filled} filled: {events[-3:]}")
    return events


def _check(home: Path, least: int) -> None:
    """Fail unless the table holds consecutive ids, more than the first run has stored."""
    with open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        rows = lake.open(TRADES).iceberg.scan(selected_fields=("source_sequence",)).to_arrow()
    ids = sorted(rows["source_sequence"].to_pylist())
    check_equal(ids, list(range(ids[0], ids[0] + len(ids))))
    check_equal(len(ids) > least, True)
