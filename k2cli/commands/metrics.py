"""Serve the metrics of a run to Prometheus. Imported only with `--metrics`.

Totals are read when Prometheus requests them, so metrics cost a run only the counting of its
events, of which there are few.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from k2cli import __version__
from k2cli.commands.options import Address
from k2cli.commands.probes import serving
from k2cli.commands.readiness import Readiness
from k2cli.commands.stream_metrics import COMMIT_DELAY, StreamMetrics, StreamState
from k2cli.events import EVENTS, Level, Listener, Observer, level_of
from k2cli.flow import Batch, Totals

if TYPE_CHECKING:
    from k2cli.ingestion.kafka.topics import PartitionId
    from k2cli.pipelines.consume.loop import Consumption
    from k2cli.pipelines.consume.policy import ConsumeTotals
    from k2cli.pipelines.consume.progress import Progress
    from k2cli.pipelines.consume.reader import Reader

_SUMS: Final = {
    "messages": "Messages read.",
    "rows": "Rows committed.",
    "rejects": "Messages rejected.",
    "duplicates": "Rows skipped because they are already stored.",
    "conflicts": "Rows skipped because their id is stored with other values.",
    "missing": "Trade ids or offsets that were skipped, also those filled later.",
    "commits": "Snapshots written.",
    "lost_commits": "Commits lost to another consumer.",
    "reconnects": "Reconnects to the exchange.",
    "backfilled": "Rows and rejects from the exchange's REST API, to fill gaps.",
    "recovered": "Rows saved by earlier runs and committed by this run.",
    "uncommitted": "Rows read but not committed by the end of the run.",
}
_LAG: Final = ("k2_consumer_lag_messages", "Messages not committed yet.")
_PARTITION_LABELS: Final = ("topic", "partition")
_COMMIT_BUCKETS_S: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_REFRESH_S: Final = 1.0


class RunMetrics(Collector):
    """The metrics of one run, for Prometheus. Created by `serving_metrics`."""

    def __init__(self, observe: Observer) -> None:
        self.registry: Final = CollectorRegistry()
        self._pass_on: Listener = observe
        self._totals: Totals | ConsumeTotals | None = None
        self._consumption: Consumption | None = None
        self._stream: StreamMetrics | None = None
        self._readiness = Readiness()
        self._ends: dict[PartitionId, int] = {}
        self._refreshed_at = 0.0
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._events = Counter(
            "k2_events", "Log lines.", ["event", "level"], registry=self.registry
        )
        for event in EVENTS.values():
            if event.level is Level.WARNING:  # from 0 on, so that the first one is an increase
                self._events.labels(event.name, event.level)
        self._commit_duration = Histogram(
            "k2_commit_duration_seconds",
            "Duration of the commits of a table.",
            buckets=_COMMIT_BUCKETS_S,
            registry=self.registry,
        )
        build = Info("k2_build", "Version of k2.", registry=self.registry)
        build.info({"version": __version__})
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def watch(self, totals: Totals) -> None:
        """Report the totals of a stream from now on; they change during the run."""
        self._totals = totals
        self._stream = StreamMetrics(totals)

    def watch_stream(self, state: StreamState) -> None:
        """Report the connections, servers and gaps of a stream, too."""
        assert self._stream is not None, "its totals come first"
        self._stream.state = state
        self._readiness.watch(state.unready)

    def watch_consumption(self, consumption: "Consumption") -> None:
        """Report its totals from now on, and its progress in every partition."""
        self._totals = consumption.totals
        self._consumption = consumption

    def on_event(self, event: str, /, **fields: object) -> None:
        """Count an event and forward it."""
        self._events.labels(event, level_of(event)).inc()
        took_ms = fields.get("took_ms")
        if event == "commit" and isinstance(took_ms, float):
            self._commit_duration.observe(took_ms / 1000)
        if self._stream is not None:
            self._stream.on_event(event, fields)
        self._readiness.on_event(event, fields)
        self._pass_on(event, **fields)

    def on_batch(self, batch: Batch) -> None:
        """Count a batch of the stream."""
        self._readiness.on_step()
        if self._stream is not None:
            self._stream.on_batch(batch)

    def on_read(self, reader: "Reader") -> None:
        """Update the partitions' ends at intervals. Runs in the reading thread."""
        self._readiness.on_step()
        now = time.monotonic()
        if now - self._refreshed_at >= _REFRESH_S:
            self._refreshed_at = now
            self._ends = reader.ends()

    def unready_reasons(self) -> Sequence[str]:
        """Return why the run is not ready; nothing if it is. Runs in the server's thread."""
        return self._readiness.reasons()

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics from the run's totals. Runs in the server's thread."""
        if self._totals is not None:
            for name, value in asdict(self._totals).items():
                if name in _SUMS:
                    yield CounterMetricFamily(f"k2_{name}", _SUMS[name], value=value)
        if self._consumption is not None:
            yield from self._partitions(self._consumption.progress)
        if self._stream is not None:
            yield from self._stream.collect()

    def _partitions(self, progress: "Progress") -> Iterator[Metric]:
        lag = GaugeMetricFamily(*_LAG, labels=_PARTITION_LABELS)
        for (topic, number), offset in progress.committed().items():
            end = self._ends.get((topic, number), offset)
            lag.add_metric((topic, str(number)), max(0, end - offset))
        yield lag
        delay = GaugeMetricFamily(*COMMIT_DELAY, labels=_PARTITION_LABELS)
        for (topic, number), time_ms in progress.committed_ms().items():
            delay.add_metric((topic, str(number)), _age_s(time_ms / 1e3))
        yield delay


@contextmanager
def serving_metrics(address: Address, observe: Observer) -> Iterator[RunMetrics]:
    """Serve the metrics of a run on exactly this address until the block ends.

    Raises:
        Unavailable: the address is not available.
    """
    metrics = RunMetrics(observe)
    with serving(address, metrics.registry, metrics.unready_reasons) as url:
        observe("metrics", url=f"{url}/metrics")
        yield metrics


def _age_s(time_s: float) -> float:
    return max(0.0, time.time() - time_s)
