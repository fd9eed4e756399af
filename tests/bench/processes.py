"""Processes of their own: k2 as users run it, the simulated exchange, and a watched process."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

K2: Final = (sys.executable, "-m", "k2cli")
SYMBOLS: Final = (
    *("BTCUSDT", "ETHUSDT", "BNBUSDT", "SOLUSDT", "XRPUSDT"),
    *("ADAUSDT", "DOGEUSDT", "ETHBTC", "BNBEUR", "LINKUSDT"),
)
_HERE: Final = Path(__file__).parent


class Failed(Exception):
    """A benchmark could not run, or did not do the work that it timed."""


def environment(home: Path) -> dict[str, str]:
    """This machine's environment, without any K2_* but the home."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
    return {**env, "K2_HOME": str(home)}


def output_of(command: Sequence[str], *, home: Path, text: str = "") -> str:
    """Run a command with this text on stdin and return its stdout; stderr is for failures."""
    done = subprocess.run(
        command, env=environment(home), input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Failed(f"exit code {done.returncode} of {command}:\n{done.stderr}")
    return done.stdout


def helper(name: str, *args: str) -> list[str]:
    """Make the command that runs a script of this folder."""
    return [sys.executable, str(_HERE / name), *args]


@contextmanager
def simulated_exchange(*options: str) -> Iterator[str]:
    """Run `k2 simulate binance`, by default as fast as it is read, and yield its URL."""
    command = [*K2, "simulate", "binance", "--port", "0", *options]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            listening = process.stderr.readline()
            if not listening.startswith("listening on "):
                raise Failed(f"the simulator does not listen: {listening}")
            yield listening.split()[-1]
        finally:
            process.terminate()


def stream_command(url: str, messages: int, k2: Sequence[str] = K2) -> list[str]:
    """Make the command that streams so many trades into the tables of its home."""
    return [
        *(*k2, "stream", "binance", "--url", url, "--symbols", ",".join(SYMBOLS)),
        *("--max-messages", str(messages), "--summary", "json", "--log-format", "json"),
    ]


def check_summary(summary: dict[str, Any], messages: int) -> None:
    """Fail unless every message of a stream became a committed row."""
    expected = {"messages": messages, "rows": messages, "rejects": 0, "duplicates": 0, "missing": 0}
    check_equal({name: summary[name] for name in expected}, expected)


def check_equal(found: object, expected: object) -> None:
    """Fail when the rows that a benchmark worked on are not those it should have."""
    if found != expected:
        raise Failed(f"wrong rows: {found}, expected {expected}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """What became of a watched process."""

    stdout: str
    took_s: float
    peak_mb: float  # as the system counted it
    samples_mb: Sequence[float]  # resident memory, at regular times


def watched(command: Sequence[str], *, home: Path) -> Watched:
    """Run a command while a process of its own watches its memory."""
    path = home.with_name(f"{home.name}-watched.json")
    stdout = output_of(helper("watch.py", str(path), *command), home=home)
    found = json.loads(path.read_text(encoding="utf-8"))
    return Watched(
        stdout=stdout,
        took_s=found["took_s"],
        peak_mb=found["peak_kb"] / 1000,
        samples_mb=[sample / 1000 for sample in found["samples_kb"]],
    )
