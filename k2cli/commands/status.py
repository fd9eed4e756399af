"""`k2 status`: check everything k2 uses, and show how to fix problems."""

import json
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer

from k2cli.commands.config import json_settings, own_settings
from k2cli.commands.options import (
    DURATION,
    GROUP,
    SHORT_TIMEOUT_S,
    HomeOpt,
    ShortTimeoutOpt,
    TextOrJson,
    TextOrJsonOpt,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.fitting import fit_rows
from k2cli.commands.terminal.plain import printable
from k2cli.commands.terminal.signals import stopped_by_signals
from k2cli.commands.terminal.streams import screen_width
from k2cli.config import DEFAULT, Settings
from k2cli.errors import UsageError
from k2cli.iso import iso_utc

if TYPE_CHECKING:
    from rich.text import Text

    from k2cli.health import Check, HealthReport, PartitionLag, TableStatus

_EVERY_S: Final = 2.0
_STYLES: Final = {"green": "green", "yellow": "yellow", "red": "bold red"}
# Columns that a narrow terminal omits, in order.
_TABLE_DETAILS: Final = ("last commit", "rows", "newest record")
_LAG_DETAILS: Final = ("group at", "table at", "end")
_UNITS: Final = (("d", 86_400), ("h", 3_600), ("m", 60))
Show = Callable[["HealthReport"], None]


def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Repeat until Ctrl-C.")] = False,
    every: Annotated[
        float | None,
        typer.Option("--every", help="Interval of --watch.", show_default="2s", **DURATION),
    ] = None,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    timeout: ShortTimeoutOpt = None,
    home: HomeOpt = None,
) -> None:
    """Check catalog, store, Kafka, registry, tables, consumer lag and disk.

    A check is green, yellow (needs attention) or red, with a hint on how to fix it. The exit code
    is 0 if nothing is red, 5 if a server is unavailable, else that of the error; with --watch it is
    0, and JSON is one object per line. k2 doctor is an alias.

    Example: k2 status --format json
    """
    if every is not None and not watch:
        raise UsageError("--every requires --watch", hint="use k2 status --watch --every 10s")
    config = settings(home)

    from k2cli.health import check_health

    timeout_s = timeout or SHORT_TIMEOUT_S
    stop = threading.Event()
    if not watch:
        report = check_health(config, group=GROUP, timeout_s=timeout_s)
        _shower(config, fmt)(report)
        raise typer.Exit(report.exit_code)
    with stopped_by_signals(stop.set), _redrawn(config, fmt) as show:
        while not stop.is_set():
            report = check_health(config, group=GROUP, timeout_s=timeout_s)
            show(report)
            stop.wait(every or _EVERY_S)


def _shower(config: Settings, fmt: TextOrJson) -> Show:
    """Return a function that prints each report below the previous one."""

    def show_json(report: "HealthReport") -> None:
        output.data(json.dumps(_document(config, report), default=_iso, ensure_ascii=False))
        sys.stdout.flush()

    def show_text(report: "HealthReport") -> None:
        output.rich_data(_report(config, report))

    return show_json if fmt is TextOrJson.JSON else show_text


@contextmanager
def _redrawn(config: Settings, fmt: TextOrJson) -> Iterator[Show]:
    """Yield a function that redraws the report, if stdout is a terminal."""
    if fmt is TextOrJson.JSON or not sys.stdout.isatty():
        yield _shower(config, fmt)
        return

    from rich.live import Live

    with Live(auto_refresh=False, vertical_overflow="crop") as live:
        yield lambda report: live.update(_report(config, report), refresh=True)


def _document(config: Settings, report: "HealthReport") -> dict[str, object]:
    names = ("name", "state", "detail", "hint", "runbook", "latency_ms")
    return {
        "time": datetime.now(tz=UTC),
        "settings": json_settings(config),
        "checks": [{name: getattr(check, name) for name in names} for check in report.checks],
        "tables": [asdict(table) for table in report.tables],
        "lag": [asdict(lag) for lag in report.lag],
    }


def _report(config: Settings, report: "HealthReport") -> "Text":
    from rich.text import Text

    text = Text()
    for name, value in own_settings(config).items():
        origin = config.origins.get(name, DEFAULT)
        text.append(
            f"{name:8}{printable(value or 'none')}{'' if origin == DEFAULT else f' ({origin})'}\n"
        )
    text.append("\n")
    width = max(len(check.name) for check in report.checks)
    for check in report.checks:
        text.append(f"{check.state:8}", style=_STYLES[check.state])
        text.append(f"{check.name:{width}}  {printable(_verdict(check))}\n")
    missing = []
    for (names, *rows), details in (
        (_table_rows(report.tables), _TABLE_DETAILS),
        (_lag_rows(report.lag), _LAG_DETAILS),
    ):
        if rows:
            screen = screen_width()
            cells = [[printable(cell) for cell in row] for row in rows]
            lines, fit = fit_rows(names, cells, screen, texts=names[:1], details=details)
            text.append("\n".join(["", *lines, ""]))
            missing.append(fit.note("--format json shows everything"))
    for line in dict.fromkeys(filter(None, missing)):
        text.append(f"\n{line}\n", style="dim")
    text.right_crop(1)
    return text


def _verdict(check: "Check") -> str:
    latency = "" if check.latency_ms is None else f" ({check.latency_ms:g} ms)"
    hint = f"; hint: {check.hint}" if check.hint else ""
    return f"{check.detail}{latency}{hint}" + (f"; see {check.runbook}" if check.runbook else "")


def _table_rows(tables: Sequence["TableStatus"]) -> list[list[str]]:
    return [["table", "rows", "newest record", "last commit", "age"]] + [
        [
            table.name,
            f"{table.rows:,}",
            _iso(table.newest_record),
            _iso(table.last_commit),
            _age(table.age_s),
        ]
        for table in tables
    ]


def _lag_rows(lags: Sequence["PartitionLag"]) -> list[list[str]]:
    return [["topic", "partition", "end", "table at", "group at", "lag"]] + [
        [
            lag.topic,
            str(lag.partition),
            f"{lag.end:,}",
            "none" if lag.table_offset is None else f"{lag.table_offset:,}",
            "none" if lag.group_offset is None else f"{lag.group_offset:,}",
            f"{lag.lag:,}",
        ]
        for lag in lags
    ]


def _iso(moment: datetime | None) -> str:
    return "none" if moment is None else iso_utc(moment)


def _age(age_s: float | None) -> str:
    if age_s is None:
        return ""
    for unit, size in _UNITS:
        if age_s >= size:
            return f"{age_s / size:.1f} {unit}"
    return f"{age_s:.0f} s"
