"""History in random order: many symbols' daily files, by three loads at once that are killed.

Positions have far more holes then than they may keep, so most files are checked against the table.
"""

import random
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from data import trades
from processes import K2, check_equal, environment
from report import Aim, Line, Setup

from k2cli.config import load_settings
from k2cli.records import TRADES
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.position import KEY

_LINES: Final = 10  # of a file
_COMMANDS: Final = 40  # that load all files
_WORKERS: Final = 3
_KILLED: Final = 0.2  # share of the commands
_COMMITS: Final = 30
_START: Final = datetime(2023, 1, 1, tzinfo=UTC)
_SEED: Final = 11


def run(setup: Setup) -> list[Line]:
    """Load everything, then compare a commit with one into a new table."""
    symbols = 50 if setup.is_quick else 500
    days = setup.days or (6 if setup.is_quick else 20)
    home = setup.folder / "home"
    folder = setup.folder / "files"
    folder.mkdir()
    paths = list(_write_files(folder, symbols, days))
    random.Random(_SEED).shuffle(paths)
    settings = load_settings({"K2_HOME": str(home)})
    with open_lake(settings, create=True):
        pass
    started = time.perf_counter()
    kills = _load_all(home, paths)
    took_s = time.perf_counter() - started
    with open_lake(settings) as lake:
        _check(lake, symbols * days * _LINES)
        size = len(lake.open(TRADES).stored_position(KEY) or "")
        old_ms = _commits(lake)
    with open_lake(load_settings({"K2_HOME": str(setup.folder / "young")}), create=True) as lake:
        young_ms = _commits(lake)
    what = f"{symbols:,} symbols, {days:,} daily files each, at random, {kills} loads killed"
    return [
        Line(what=what, value=len(paths) / took_s, unit="files/s"),
        Line(
            what="the position afterwards",
            value=size,
            unit="bytes",
            aim=Aim("value", "<=", 64 << 10),
        ),
        Line(
            what=f"a commit of {_LINES} rows afterwards, median",
            value=statistics.median(old_ms),
            unit="ms",
            reference=statistics.median(young_ms),
            against="into a new table",
            aim=Aim("ratio", "<=", 2),
            samples=old_ms,
            reference_samples=young_ms,
        ),
    ]


def _write_files(folder: Path, symbols: int, days: int) -> Iterator[Path]:
    """Write files as the exchange publishes them: ids go on from one day to the next."""
    for symbol in range(symbols):
        for day in range(days):
            path = folder / f"S{symbol:03}USDT-trades-{_START + timedelta(days=day):%Y-%m-%d}.csv"
            first = symbol * 7_919_000_000 + day * (_LINES + 1)  # one id is missing each night
            time_ms = int((_START + timedelta(days=day)).timestamp() * 1000)
            path.write_text(
                "".join(
                    f"{first + n},1.5,2,3,{time_ms + n * 1000},True,True\n" for n in range(_LINES)
                )
            )
            yield path


def _load_all(home: Path, paths: Sequence[Path]) -> int:
    """Load all files; return how many commands were killed."""
    size = -(-len(paths) // _COMMANDS)
    chunks = [paths[at : at + size] for at in range(0, len(paths), size)]
    kills = [0] * _WORKERS

    def work(worker: int) -> None:
        chance = random.Random(_SEED + worker)
        for chunk in chunks[worker::_WORKERS]:
            while not _load(home, chunk, chance):
                kills[worker] += 1

    workers = [threading.Thread(target=work, args=(worker,)) for worker in range(_WORKERS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(kills)


def _load(home: Path, paths: Sequence[Path], chance: random.Random) -> bool:
    """Load files, or kill the command somewhere in the middle; return whether it ended well."""
    command = [*K2, "load", "csv", *map(str, paths), "--layout", "binance-trades"]
    is_killed = chance.random() < _KILLED
    with subprocess.Popen(
        command, env=environment(home), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        if is_killed:
            time.sleep(chance.uniform(0.5, 3))
            process.kill()
    return process.returncode == 0


def _check(lake: Lake, rows: int) -> None:
    found = lake.open(TRADES).iceberg.scan(selected_fields=("symbol", "source_sequence")).to_arrow()
    check_equal(found.num_rows, rows)
    check_equal(found.group_by(["symbol", "source_sequence"]).aggregate([]).num_rows, rows)


def _commits(lake: Lake) -> list[float]:
    table, took_ms = lake.open(TRADES), []
    for number in range(_COMMITS):
        rows = trades(number * _LINES, _LINES, step_us=1_000_000)
        started = time.perf_counter()
        commit = table.append(rows)
        took_ms.append((time.perf_counter() - started) * 1000)
        check_equal(commit.rows, _LINES)
    return took_ms
