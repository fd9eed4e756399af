"""The live view of `k2 consume` on a terminal: a row a partition, and the totals below."""

import time
from collections import deque
from types import TracebackType
from typing import Final

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from k2cli.commands.events import event_text, level_of
from k2cli.commands.plain import for_people, printable
from k2cli.commands.streams import view_console
from k2cli.consuming import Consumption
from k2cli.ingestion.kafka.consumer import TopicReader
from k2cli.ingestion.kafka.topics import Place

_RATE_WINDOW_S: Final = 5.0
_LOOK_S: Final = 0.5
_MAX_ROWS: Final = 20


class LagView:
    """Shows how far each partition was read, how much is not committed yet, and how old the newest
    committed record is.
    """

    def __init__(self) -> None:
        self._consumption: Consumption | None = None
        self._ends: dict[Place, int] = {}
        self._looked_at = 0.0
        self._recent: deque[tuple[float, int]] = deque()
        self._live = Live(
            get_renderable=self._render,
            console=view_console(),
            refresh_per_second=4,
            transient=False,
        )

    def __enter__(self) -> "LagView":
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, exc, trace)

    def watch(self, consumption: Consumption) -> None:
        """Show this from now on."""
        self._consumption = consumption

    def on_event(self, event: str, **fields: object) -> None:
        """Print warnings above the view; the rest is in the view itself."""
        if level_of(event) == "warning":
            self._live.console.print(
                Text(for_people(event_text(event, dict(fields))), style="yellow")
            )

    def on_read(self, reader: TopicReader) -> None:
        """Look where the partitions end, now and then. In the thread that reads."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S and self._consumption is not None:
            self._looked_at = now
            self._ends = reader.ends()
            self._recent.append((now, self._consumption.totals.messages))
            while self._recent[0][0] < now - _RATE_WINDOW_S:
                self._recent.popleft()

    def _render(self) -> RenderableType:
        if self._consumption is None:
            return Text("joining the group")
        table = Table(title="k2 consume", title_justify="left", title_style="bold", expand=False)
        table.add_column("partition")
        for name in ("next offset", "end", "lag", "commit lag"):
            table.add_column(name, justify="right")
        places = sorted(self._consumption.next_offsets.copy().items())
        committed = self._consumption.committed.copy()
        lag = 0
        for number, (place, offset) in enumerate(places):
            end = max(self._ends.get(place, offset), offset)
            behind = end - min(committed.get(place, offset), offset)
            lag += behind
            if number < _MAX_ROWS:
                age = _age(self._consumption.committed_ms.get(place))
                name = f"{place[0]}/{place[1]}"
                table.add_row(printable(name), f"{offset:,}", f"{end:,}", f"{behind:,}", age)
        if len(places) > _MAX_ROWS:
            table.add_row(f"and {len(places) - _MAX_ROWS} more", *[""] * 4)
        totals = self._consumption.totals
        footer = Text.assemble(
            (f"{totals.messages:,} messages", "bold"),
            f" ({self._rate():,.0f}/s, {lag:,} to commit)  ",
            (f"{totals.rows:,} rows committed", "green"),
            f" in {totals.commits} commits  ",
            (f"{totals.rejects:,} rejects", "red" if totals.rejects else ""),
            f"  {totals.lost_commits} lost commits  {totals.duration_s:.0f} s",
        )
        return Group(table, footer)

    def _rate(self) -> float:
        recent = list(self._recent)
        if len(recent) < 2 or recent[-1][0] == recent[0][0]:  # noqa: PLR2004
            return 0.0
        return (recent[-1][1] - recent[0][1]) / (recent[-1][0] - recent[0][0])


def _age(time_ms: int | None) -> str:
    return "" if time_ms is None else f"{max(0.0, time.time() - time_ms / 1000):.1f} s"
