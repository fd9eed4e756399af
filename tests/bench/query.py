"""`k2 query trades` of a large table into files, against DuckDB on the same data files by hand."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow.parquet as pq
from by_hand import copy_by_hand
from data import trades
from processes import K2, SYMBOLS, check_equal, helper, output_of, watched
from report import Aim, Line, Setup

from k2cli.answers import LakeReader
from k2cli.commands.query import print_rows
from k2cli.commands.terminal.output import choose_output
from k2cli.config import Settings, load_settings
from k2cli.query.selection import Selection
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake

_SYMBOL: Final = SYMBOLS[1]
_PIECE_ROWS: Final = 250_000  # of one append
_DAYS: Final = 5
_DAY_US: Final = 86_400_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """A table that was filled, and the files that hold rows of the symbol."""

    settings: Settings
    folder: Path  # for answers
    rows: int
    paths: Sequence[str]


def run(setup: Setup) -> Iterator[Line]:
    """Fill a table, ask for one symbol of ten in both formats, and for everything once."""
    table = _filled(setup.folder, 1_000_000 if setup.is_quick else 10_000_000)
    for extension in ("csv", "parquet"):
        yield from _compare(table, extension, rounds=3 if setup.is_quick else 5)
    yield from _everything(table)


def _filled(folder: Path, rows: int) -> _Table:
    settings = load_settings({"K2_HOME": str(folder / "home")})
    with open_lake(settings, create=True) as lake:
        table = lake.open(TRADES)
        for first in range(0, rows, _PIECE_ROWS):
            piece = trades(first, _PIECE_ROWS, step_us=_DAYS * _DAY_US // rows)
            table.append(piece)
        plan = table.plan(symbols=[_SYMBOL])
    check_equal(plan.rows, rows)
    return _Table(settings=settings, folder=folder, rows=rows, paths=plan.paths)


def _compare(table: _Table, extension: str, *, rounds: int) -> list[Line]:
    """Measure in turns, in this process and as processes of their own; the best round counts."""
    target = table.folder / f"answer.{extension}"
    ways: dict[str, Callable[[Path], object]] = {
        "k2": lambda path: _ask(table.settings, path),
        "hand": lambda path: copy_by_hand(table.paths, _SYMBOL, path),
        "k2 command": lambda path: _run_command(table, path),
        "hand script": lambda path: _run_script(table, path),
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            samples[name].append(_time_s(way, target, table.rows // len(SYMBOLS)))
    what = f"{table.rows // len(SYMBOLS):,} of {table.rows:,} rows to {extension}"
    return [
        Line(
            what=f"{what}, without start-up",
            value=min(samples["k2"]),
            unit="s",
            reference=min(samples["hand"]),
            against="DuckDB by hand",
            aim=Aim("ratio", "<=", 1.3),
            samples=samples["k2"],
            reference_samples=samples["hand"],
        ),
        Line(
            what=f"{what}, the whole command",
            value=min(samples["k2 command"]),
            unit="s",
            reference=min(samples["hand script"]),
            against="a Python script with DuckDB",
            samples=samples["k2 command"],
            reference_samples=samples["hand script"],
        ),
    ]


def _time_s(way: Callable[[Path], object], target: Path, rows: int) -> float:
    started = time.perf_counter()
    way(target)
    took_s = time.perf_counter() - started
    check_equal(_count_rows(target), rows)
    target.unlink()
    return took_s


def _ask(settings: Settings, target: Path) -> None:
    """Do what the command does once its imports are done: open, plan, ask, write."""
    out = choose_output(None, target, is_forced=False)
    with LakeReader(settings) as reader:
        print_rows(reader, TRADES, Selection(symbols=[_SYMBOL]), out, zone="UTC")


def _run_command(table: _Table, target: Path) -> None:
    command = [*K2, "query", "trades", "--symbol", _SYMBOL, "-o", str(target)]
    output_of(command, home=table.settings.home)


def _run_script(table: _Table, target: Path) -> None:
    command = helper("by_hand.py", str(target), _SYMBOL)
    output_of(command, home=table.settings.home, text="\n".join(table.paths))


def _count_rows(path: Path) -> int:
    """Count the rows of an answer: lines below the header, or what parquet says."""
    if path.suffix == ".parquet":
        return int(pq.read_metadata(path).num_rows)
    with path.open("rb", buffering=0) as file:
        blocks = iter(lambda: file.read(1 << 22), b"")
        return sum(block.count(b"\n") for block in blocks) - 1


def _everything(table: _Table) -> list[Line]:
    """Sort and write every row of the table, and watch the memory."""
    target = table.folder / "everything.csv"
    command = [*K2, "query", "trades", "-o", str(target)]
    seen = watched(command, home=table.settings.home)
    check_equal(_count_rows(target), table.rows)
    what = f"all {table.rows:,} rows to csv"
    return [
        Line(what=f"{what}, peak memory", value=seen.peak_mb, unit="MB"),
        Line(what=f"{what}, the whole command", value=seen.took_s, unit="s"),
    ]
