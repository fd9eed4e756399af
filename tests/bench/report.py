"""What a benchmark hands back, and how all of it is shown and kept."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from k2cli import __version__

_PACKAGES: Final = (
    *("confluent-kafka", "duckdb", "fastavro", "msgspec", "numpy", "polars-avro", "pyarrow"),
    *("pyiceberg", "typer", "websockets"),
)
_WIDTH: Final = 150  # of the tables where stdout is no terminal


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What a benchmark is given: how large to be, and a folder that is removed afterwards."""

    is_quick: bool
    folder: Path
    days: int | None = None  # of history that is loaded


@dataclass(frozen=True, slots=True)
class Aim:
    """What a value, or its ratio to the reference, should be."""

    of: Literal["value", "ratio"]
    way: Literal[">=", "<="]
    limit: float

    def is_met(self, reached: float) -> bool:
        """Compare; nothing fails over it."""
        return reached >= self.limit if self.way == ">=" else reached <= self.limit


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One measured value, beside the reference that was measured in the same run if it has one."""

    what: str
    value: float
    unit: str
    reference: float | None = None
    against: str = ""  # what the reference is
    aim: Aim | None = None
    samples: Sequence[float] = ()  # of the measured thing and of the reference, as they came
    reference_samples: Sequence[float] = ()

    @property
    def ratio(self) -> float | None:
        """The value over the reference."""
        return self.value / self.reference if self.reference else None

    @property
    def is_met(self) -> bool | None:
        """Whether the aim is met; None without one."""
        reached = self.value if self.aim is None or self.aim.of == "value" else self.ratio
        return self.aim.is_met(reached) if self.aim is not None and reached is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one benchmark found."""

    name: str
    took_s: float
    lines: Sequence[Line]
    failure: str = ""  # why it found no more


def show(results: Sequence[Result]) -> None:
    """Print a table: what, measured, reference, ratio, aim and whether it is met."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=_WIDTH)
    table = Table()
    table.add_column("benchmark")
    table.add_column("what", overflow="fold")
    table.add_column("k2", justify="right", no_wrap=True)
    table.add_column("reference", justify="right", no_wrap=True)
    table.add_column("which is", overflow="fold")
    table.add_column("ratio", justify="right", no_wrap=True)
    table.add_column("aim", no_wrap=True)
    for result in results:
        for number, line in enumerate(result.lines):
            is_last = number == len(result.lines) - 1
            name = result.name if number == 0 else ""
            table.add_row(name, *_cells(line), end_section=is_last)
        if result.failure:
            table.add_row(result.name, "[red]failed[/]", end_section=True)
    console.print(table)


def _cells(line: Line) -> tuple[str, ...]:
    return (
        line.what,
        f"{_number(line.value)} {line.unit}".strip(),
        "" if line.reference is None else f"{_number(line.reference)} {line.unit}".strip(),
        line.against,
        "" if line.ratio is None else f"{line.ratio:.2f}",
        _aim_text(line),
    )


def _aim_text(line: Line) -> str:
    if line.aim is None:
        return ""
    unit = f" {line.unit}" if line.aim.of == "value" and line.unit else ""
    verdict = "[green]met[/]" if line.is_met else "[red]missed[/]"
    return f"{line.aim.of} {line.aim.way} {_number(line.aim.limit)}{unit}: {verdict}"


def _number(value: float) -> str:
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3g}"


def as_json(results: Sequence[Result], *, is_quick: bool) -> Mapping[str, Any]:
    """Put everything that was measured, and on what, into one JSON document."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "is_quick": is_quick,
        "k2": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "packages": {name: version(name) for name in _PACKAGES},
        "benchmarks": {
            result.name: {
                "took_s": round(result.took_s, 1),
                "failure": result.failure,
                "lines": [
                    {**asdict(line), "ratio": line.ratio, "is_met": line.is_met}
                    for line in result.lines
                ],
            }
            for result in results
        },
    }


def _commit() -> str | None:
    """Tell the commit of the checkout, `-dirty` behind it with changes; None outside of git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
