"""The live view of `k2 consume` on a terminal: one row per partition, and totals."""

import time
from typing import Final

from rich.console import RenderableType

from k2cli.commands.terminal.plain import printable
from k2cli.commands.terminal.screen import Frame, Rate, RunState, Screen
from k2cli.ingestion.kafka.topics import PartitionId
from k2cli.pipelines.consume.loop import Consumption
from k2cli.pipelines.consume.reader import Reader

_REFRESH_S: Final = 0.5


class LagView(Screen):
    """Shows per partition the next offset, uncommitted messages, and the age of the newest
    committed record. Partitions that are furthest behind come first.
    """

    def __init__(self) -> None:
        super().__init__(RunState("joining the group", "reading", self._progress))
        self._consumption: Consumption | None = None
        self._ends: dict[PartitionId, int] = {}
        self._refreshed_at = 0.0
        self._messages = Rate()
        self._began = time.monotonic()

    def watch(self, consumption: Consumption) -> None:
        """Show this run from now on."""
        self._consumption = consumption
        self._began = time.monotonic()
        self.state.is_stopping = lambda: consumption.is_stopping

    def _progress(self, event: str) -> object:
        if self._consumption is None:
            return None
        totals = self._consumption.totals
        return totals.messages if event == "kafka_unavailable" else (totals.rows, totals.commits)

    def on_read(self, reader: Reader) -> None:
        """Update the partitions' ends at intervals. Runs in the reading thread."""
        now = time.monotonic()
        if self._consumption is None:
            return
        with self.lock:
            self.state.is_running = bool(self._consumption.progress.next_offsets())
            count = self._consumption.totals.messages - self._messages.total
            if count:
                self._messages.add(count, now)
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            ends = reader.ends()
            with self.lock:
                self._ends = ends

    def draw(self, width: int, height: int, now: float) -> RenderableType:
        """Draw the current view."""
        progress = self._consumption.progress if self._consumption else None
        committed = progress.committed() if progress else {}
        committed_ms = progress.committed_ms() if progress else {}
        lags = []
        for partition, offset in (progress.next_offsets() if progress else {}).items():
            end = max(self._ends.get(partition, offset), offset)
            lags.append(
                (end - min(committed.get(partition, offset), offset), partition, offset, end)
            )
        lags.sort(key=lambda each: (-each[0], each[1]))
        rows = [
            [
                printable(f"{partition[0]}/{partition[1]}"),
                f"{offset:,}",
                f"{end:,}",
                f"{behind:,}",
                _age(committed_ms.get(partition)),
            ]
            for behind, partition, offset, end in lags
        ]
        frame = Frame(
            title="k2 consume",
            state=self.state,
            names=("partition", "next offset", "end", "lag", "commit lag"),
            texts=("partition",),
            details=("end", "next offset", "commit lag"),
            rows=rows,
            sums=self._sums(sum(behind for behind, *_ in lags), now),
        )
        return frame.draw(width, height, now)

    def _sums(self, lag: int, now: float) -> list[str]:
        if self._consumption is None:
            return []
        totals = self._consumption.totals
        return [
            f"{totals.messages:,} messages",
            f"{self._messages.per_second(now):,.0f}/s",
            f"{lag:,} to commit",
            f"{totals.rows:,} rows committed",
            f"{totals.commits:,} commits",
            f"{totals.rejects:,} rejects",
            f"{totals.lost_commits:,} lost commits",
            f"{now - self._began:.0f} s",
        ]


def _age(time_ms: int | None) -> str:
    return "" if time_ms is None else f"{max(0.0, time.time() - time_ms / 1000):.1f} s"
