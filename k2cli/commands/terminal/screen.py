"""Shared parts of the live views on a terminal: the frame, the run's state, rates."""

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from threading import Lock
from typing import Final, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from k2cli.commands.terminal.events import event_text
from k2cli.commands.terminal.fitting import GAP, cell_width, fit_rows, shorten
from k2cli.commands.terminal.plain import for_people
from k2cli.commands.terminal.streams import view_console
from k2cli.events import Level, level_of

_WINDOW_S: Final = 5.0
_MIN_S: Final = 1.0  # window of a rate
_NARROW: Final = 20  # columns of the narrowest supported screen
_SERVERS: Final = {
    "catalog_unavailable": "catalog",
    "kafka_unavailable": "Kafka",
    "registry_unavailable": "schema registry",
    "dead_letters_unavailable": "dead-letter topic",
}


class Rate:
    """A rate per second over the last five seconds, or the time since the first event."""

    def __init__(self) -> None:
        self.total = 0
        self._first_at = math.nan
        self._recent: deque[tuple[float, int]] = deque()

    def add(self, count: int, now: float) -> None:
        """Count new items."""
        if not self.total:
            self._first_at = now
        self.total += count
        self._recent.append((now, count))
        self._forget(now)

    def per_second(self, now: float, *, since: float = math.inf) -> float:
        """Return the rate; `since` is when the run started to read, if before the first item."""
        if not self.total:
            return 0.0
        self._forget(now)
        passed = now - min(self._first_at, since)
        return sum(count for _, count in self._recent) / min(max(passed, _MIN_S), _WINDOW_S)

    def _forget(self, now: float) -> None:
        while self._recent and self._recent[0][0] <= now - _WINDOW_S:
            self._recent.popleft()


@dataclass(frozen=True, slots=True)
class _Outage:
    """A server that does not answer."""

    name: str
    waiting: object  # rows waiting for a commit
    retry_at: float | None
    progress: object  # reconnects of the run when it was reported


class RunState:
    """The state of a run, from its events: connecting, waiting for a server, stopping.

    `progress` returns a value that changes when the server of an event answers again.
    """

    def __init__(self, first: str, running: str, progress: Callable[[str], object]) -> None:
        self.is_running = False
        self.is_stopping: Callable[[], bool] = bool  # False
        self.has_ended = False
        self._first, self._running = first, running
        self._progress = progress
        self._retries: list[float] = []  # when each lost connection is retried
        self._outages: dict[str, _Outage] = {}

    def on_event(self, event: str, fields: dict[str, object], now: float) -> None:
        """Record an event."""
        wait_s = fields.get("retry_in_s")
        retry_at = now + wait_s if isinstance(wait_s, int | float) else None
        if event in ("connected", "disconnected", "attempts_limited"):
            is_due = self._retries and (event == "connected" or min(self._retries) <= now)
            if is_due:  # events do not identify the connection: it is the one that was retried
                self._retries.remove(min(self._retries))
            self.is_running |= event == "connected"
            if event != "connected" and retry_at is not None:
                self._retries.append(retry_at)
        elif event in _SERVERS:
            rows = fields.get("rows", fields.get("waiting"))
            self._outages[event] = _Outage(_SERVERS[event], rows, retry_at, self._progress(event))
        elif event == "commit":
            self._outages.pop("catalog_unavailable", None)

    def parts(self, now: float) -> list[str]:
        """Describe what the run is doing, the most important first."""
        for event, outage in list(self._outages.items()):
            if self._progress(event) != outage.progress:
                self._outages.pop(event, None)
        parts = []
        if self.has_ended:
            parts.append("ended")
        elif self.is_stopping():
            parts.append("stopping, committing")
        elif self._retries:
            parts.append(self._connecting(now))
        else:
            parts.append(self._running if self.is_running else self._first)
        for outage in self._outages.values():
            parts.append(f"{outage.name} unavailable")
            if isinstance(outage.waiting, int):
                parts.append(f"{outage.waiting:,} rows waiting")
            if outage.retry_at is not None and not self.has_ended:
                left_s = math.ceil(outage.retry_at - now)
                parts.append(f"next try in {left_s} s" if left_s > 0 else "trying now")
        return parts

    @property
    def is_well(self) -> bool:
        """Whether data flows."""
        return self.is_running and not self._retries and not self._outages

    def _connecting(self, now: float) -> str:
        verb = "reconnecting" if self.is_running else "connecting"
        left_s = math.ceil(min(self._retries) - now)
        count = len(self._retries)
        what = f"{count} connections " if count > 1 else ""
        return f"{verb} {what}in {left_s} s" if left_s > 0 else f"{verb} {what}now"


class Screen:
    """Draws a view on stderr four times a second, below log lines; never wider than it."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.lock = Lock()  # of the drawn view
        self._console = view_console()
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        # Here, because it draws immediately.
        live = Live(get_renderable=self._render, console=self._console, refresh_per_second=4)
        self._stack.enter_context(live)
        return self

    def __exit__(self, *_: object) -> None:
        self.state.has_ended = True
        self._stack.close()

    def on_event(self, event: str, /, **fields: object) -> None:
        """Update the state from an event; print warnings above the view."""
        with self.lock:
            self.state.on_event(event, fields, time.monotonic())
        if level_of(event) is Level.WARNING:
            self._console.print(Text(for_people(event_text(event, fields)), style="yellow"))

    def _render(self) -> RenderableType:
        size = self._console.size
        with self.lock:
            return self.draw(max(size.width, _NARROW), size.height, time.monotonic())

    def draw(self, width: int, height: int, now: float) -> RenderableType:
        """Draw the current view."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A table between a title and totals, in lines that fit the screen."""

    title: str
    state: RunState
    names: Sequence[str]
    texts: Sequence[str]  # the names of columns that are not numbers
    details: Sequence[str]  # columns to omit on a narrow screen, in order
    rows: Sequence[Sequence[str]]
    sums: Sequence[str]

    def draw(self, width: int, height: int, now: float) -> RenderableType:
        """Draw the rows that fit, and how many more there are."""
        state = [Text(line, style=self._style()) for line in pack(self.state.parts(now), width)]
        sums = [Text(line) for line in pack(self.sums, width)]
        title = Text(shorten(self.title, width), style="bold")
        room = max(1, height - len(state) - len(sums) - 3)  # title, names, and the cursor's line
        shown = self.rows if len(self.rows) <= room else self.rows[: max(1, room - 1)]
        lines, _ = fit_rows(self.names, shown, width, texts=self.texts, details=self.details)
        if len(shown) < len(self.rows):
            lines.append(f"and {len(self.rows) - len(shown):,} more")
        table = [Text(line, style="bold" if at == 0 else "") for at, line in enumerate(lines)]
        everything = [title, *state, *(table if self.rows else ()), *sums]
        for line in everything:
            line.no_wrap, line.overflow = True, "crop"
        return Group(*everything)

    def _style(self) -> str:
        return "green" if self.state.is_well or self.state.has_ended else "yellow"


def pack(parts: Sequence[str], width: int) -> list[str]:
    """Arrange parts in as few lines as possible; shorten one that is too long."""
    lines: list[str] = []
    for part in parts:
        longer = f"{lines[-1]}{GAP}{part}" if lines else part
        if lines and cell_width(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(shorten(part, width))
    return lines
