"""The time that `k2 --help` and a completing shell take, against a Python that does nothing."""

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from processes import K2, output_of
from report import Aim, Line, Setup

_ROUNDS: Final = 10
_HEAVY: Final = ("confluent_kafka", "duckdb", "numpy", "polars", "pyarrow", "pyiceberg")
_COMPLETING: Final = (
    *("_K2_COMPLETE=complete_bash", "COMP_CWORD=4"),
    "COMP_WORDS=k2 query trades --symbol ",
)
_LIST_LOADED: Final = f"""
import sys
from k2cli.__main__ import main
sys.argv = ["k2", "--help"]
try:
    main()
finally:
    print("loaded:", *sys.modules.keys() & set({_HEAVY!r}))
"""


def run(setup: Setup) -> list[Line]:
    """Start each in turn; medians count."""
    k2 = str(Path(sys.executable).with_name("k2"))
    commands = {
        "python -m k2cli --help": [*K2, "--help"],
        "k2 --help": [k2, "--help"],
        "k2 query trades --symbol TAB": ["env", *_COMPLETING, k2],
    }
    nothing: list[float] = []
    samples: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(_ROUNDS):
        nothing.append(_time_ms([sys.executable, "-c", "pass"], setup.folder))
        for name, command in commands.items():
            samples[name].append(_time_ms(command, setup.folder))
    lines = [
        Line(
            what=f"{name}, median of {_ROUNDS}",
            value=statistics.median(samples[name]),
            unit="ms",
            reference=statistics.median(nothing),
            against="python -c pass",
            aim=Aim("value", "<=", 150 if "TAB" in name else 200),
            samples=samples[name],
            reference_samples=nothing,
        )
        for name in commands
    ]
    loaded = _heavy_packages(setup.folder)
    what = f"heavy packages that k2 --help loads {' '.join(loaded)}"
    return [*lines, Line(what=what.rstrip(), value=len(loaded), unit="", aim=Aim("value", "<=", 0))]


def _time_ms(command: Sequence[str], home: Path) -> float:
    started = time.perf_counter()
    output_of(command, home=home)
    return (time.perf_counter() - started) * 1000


def _heavy_packages(home: Path) -> list[str]:
    said = output_of([sys.executable, "-c", _LIST_LOADED], home=home)
    return sorted(said.splitlines()[-1].split()[1:])
