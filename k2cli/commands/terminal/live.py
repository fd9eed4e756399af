"""The live view of a stream on a terminal: one row per symbol, and totals."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import RenderableType

from k2cli.commands.terminal.plain import for_people, printable
from k2cli.commands.terminal.screen import Frame, Rate, RunState, Screen
from k2cli.flow import Batch, Totals
from k2cli.ingestion.breaker import ServerHealth


@dataclass(slots=True)
class _Line:
    last_price: str = ""
    last_id: str = ""
    last_seen: float = 0.0
    rate: Rate = field(default_factory=Rate)


class LiveView(Screen):
    """Shows per symbol and channel the rate, last price, last id and its age.

    The busiest symbols come first.
    """

    def __init__(self, *, title: str) -> None:
        super().__init__(RunState("connecting", "connected", self._progress))
        self._title = title
        self._lines: dict[tuple[str, str], _Line] = {}
        self._totals = Totals()
        self._messages = Rate()
        self._began = time.monotonic()
        self._reading_since = float("inf")
        self._servers: Callable[[], Sequence[ServerHealth]] = list

    def watch(self, totals: Totals) -> None:
        """Show these totals from now on; they change during the run."""
        self._totals = totals
        self._began = time.monotonic()

    def watch_end(self, is_stopping: Callable[[], bool]) -> None:
        """Show that the run is stopping once this returns true."""
        self.state.is_stopping = is_stopping

    def watch_servers(self, servers: Callable[[], Sequence[ServerHealth]]) -> None:
        """Show the health of these servers."""
        self._servers = servers

    def _progress(self, _event: str) -> object:
        totals = self._totals
        return (totals.rows, totals.duplicates, totals.conflicts, totals.commits)

    def on_batch(self, batch: Batch) -> None:
        """Record the newest row of every symbol of a batch."""
        now = time.monotonic()
        with self.lock:
            if batch.messages:
                self._reading_since = min(self._reading_since, now)
                self._messages.add(batch.messages, now)
            for kind, rows in batch.rows:
                price = rows["price"] if "price" in rows.schema.names else rows["bid_price"]
                symbols = rows["symbol"].dictionary_encode()
                last: dict[int, tuple[int, int]] = {}
                for at, code in enumerate(symbols.indices.to_pylist()):
                    last[code] = (at, last[code][1] + 1 if code in last else 1)
                for code, (at, count) in last.items():
                    key = (symbols.dictionary[code].as_py(), kind.name)
                    line = self._lines.setdefault(key, _Line())
                    line.last_price = f"{price[at].as_py():f}"
                    line.last_id = str(rows["source_sequence"][at].as_py())
                    line.last_seen = now
                    line.rate.add(count, now)

    def draw(self, width: int, height: int, now: float) -> RenderableType:
        """Draw the current view."""
        lines = [
            (line.rate.per_second(now, since=self._reading_since), line.rate.total, key, line)
            for key, line in self._lines.items()
        ]
        lines.sort(key=lambda each: (-round(each[0]), -each[1], each[2]))
        rows = [
            [
                printable(symbol),
                kind,
                f"{rate:,.0f}",
                line.last_price,
                line.last_id,
                f"{now - line.last_seen:.1f} s",
            ]
            for rate, _, (symbol, kind), line in lines[: max(height, 1)]
        ]
        rows += [[""] * 6] * (len(lines) - len(rows))  # too many for the screen, so only counted
        totals = self._totals
        frame = Frame(
            title=self._title,
            state=self.state,
            names=("symbol", "kind", "rows/s", "last price", "last id", "age"),
            texts=("symbol", "kind"),
            details=("last id", "kind", "age"),
            rows=rows,
            sums=[
                f"{totals.messages:,} messages",
                f"{self._messages.per_second(now):,.0f}/s",
                f"{totals.rows:,} rows committed",
                f"{totals.commits:,} commits",
                f"{totals.rejects:,} rejects",
                f"{totals.duplicates:,} duplicates",
                f"{totals.reconnects:,} reconnects",
                f"{now - self._began:.0f} s",
                *_server_texts(self._servers()),
            ],
        )
        return frame.draw(width, height, now)


def _server_texts(servers: Sequence[ServerHealth]) -> list[str]:
    """Describe the servers in use, and those that failed repeatedly."""
    texts = []
    for each in servers:
        parts = [] if each.breaker == "closed" else [f"breaker {each.breaker}"]
        if each.message_age_s is not None:
            parts.append(f"last message {each.message_age_s:.0f} s ago")
        if parts:
            texts.append(for_people(f"{each.url}: {', '.join(parts)}"))
    return texts
