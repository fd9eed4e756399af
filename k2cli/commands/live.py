"""The live view of a stream on a terminal: a row a symbol, and the totals below."""

import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from k2cli.commands.events import event_text, level_of
from k2cli.commands.plain import for_people, printable
from k2cli.commands.streams import view_console
from k2cli.flow import Batch, Totals

_RATE_WINDOW_S: Final = 5.0
_MAX_ROWS: Final = 20


@dataclass(slots=True)
class _Line:
    last_price: str = ""
    last_id: str = ""
    last_seen: float = 0.0
    recent: deque[tuple[float, int]] = field(default_factory=deque)


class LiveView:
    """Shows what streams by: per symbol and channel the rate, last price, last id and its age."""

    def __init__(self, *, title: str) -> None:
        self._title = title
        self._lines: dict[tuple[str, str], _Line] = {}
        self._totals = Totals()
        self._reconnects = 0
        self._live = Live(
            get_renderable=self._render,
            console=view_console(),
            refresh_per_second=4,
            transient=False,
        )

    def __enter__(self) -> "LiveView":
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, exc, trace)

    def watch(self, totals: Totals) -> None:
        """Show these totals from now on; they change while the run goes on."""
        self._totals = totals

    def on_event(self, event: str, **fields: object) -> None:
        """Print warnings above the view; the rest is in the view itself."""
        if level_of(event) == "warning":
            self._live.console.print(
                Text(for_people(event_text(event, dict(fields))), style="yellow")
            )

    def on_batch(self, batch: Batch) -> None:
        """Take the newest row of every symbol of a batch."""
        now = time.monotonic()
        for kind, rows in batch.rows:
            price = rows["price"] if "price" in rows.schema.names else rows["bid_price"]
            symbols = rows["symbol"].dictionary_encode()
            last: dict[int, tuple[int, int]] = {}
            for place, code in enumerate(symbols.indices.to_pylist()):
                last[code] = (place, last[code][1] + 1 if code in last else 1)
            for code, (place, count) in last.items():
                key = (symbols.dictionary[code].as_py(), kind.name)
                line = self._lines.setdefault(key, _Line())
                line.last_price = f"{price[place].as_py():f}"
                line.last_id = str(rows["source_sequence"][place].as_py())
                line.last_seen = now
                line.recent.append((now, count))

    def _render(self) -> RenderableType:
        now = time.monotonic()
        table = Table(title=self._title, title_justify="left", title_style="bold", expand=False)
        table.add_column("symbol")
        table.add_column("kind")
        for name in ("rows/s", "last price", "last id", "age"):
            table.add_column(name, justify="right")
        lines = sorted(self._lines.copy().items())
        for (symbol, kind), line in lines[:_MAX_ROWS]:
            table.add_row(
                printable(symbol),
                kind,
                f"{_rate(line, now):,.0f}",
                line.last_price,
                line.last_id,
                f"{now - line.last_seen:.1f} s",
            )
        if len(lines) > _MAX_ROWS:
            table.add_row(f"and {len(lines) - _MAX_ROWS} more", *[""] * 5)
        totals = self._totals
        rate = totals.messages / totals.duration_s if totals.duration_s else 0
        footer = Text.assemble(
            (f"{totals.messages:,} messages", "bold"),
            f" ({rate:,.0f}/s)  ",
            (f"{totals.rows:,} rows committed", "green"),
            f" in {totals.commits} commits  ",
            (f"{totals.rejects:,} rejects", "red" if totals.rejects else ""),
            f"  {totals.duplicates:,} duplicates  {totals.reconnects} reconnects",
            f"  {totals.duration_s:.0f} s",
        )
        return Group(table, footer)


def _rate(line: _Line, now: float) -> float:
    recent = line.recent
    while recent and recent[0][0] < now - _RATE_WINDOW_S:
        recent.popleft()
    return sum(count for _, count in list(recent)) / _RATE_WINDOW_S
