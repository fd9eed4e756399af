"""The figures of a run, served to Prometheus while it lasts. Imported where `--metrics` is given.

The sums are looked up when somebody asks for them: all that a run does for its metrics is to count
its events, of which there are few.
"""

import time
from collections.abc import Iterator
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
    start_http_server,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from k2cli import __version__
from k2cli.commands.options import Address
from k2cli.errors import Unavailable
from k2cli.events import EVENTS, Level, Listener, Observer, level_of
from k2cli.flow import Batch, Totals

if TYPE_CHECKING:
    from k2cli.ingestion.kafka.topics import Place
    from k2cli.pipelines.consume.loop import Consumption
    from k2cli.pipelines.consume.policy import ConsumeTotals
    from k2cli.pipelines.consume.progress import Progress
    from k2cli.pipelines.consume.reader import Reader

_SUMS: Final = {
    "messages": "Messages that were read.",
    "rows": "Rows that were committed.",
    "rejects": "Messages that were rejected.",
    "duplicates": "Rows that were left out because they are stored already.",
    "conflicts": "Rows that were left out because their id is stored with other values.",
    "missing": "Trade ids or offsets that never arrived, as far as is known.",
    "commits": "Snapshots that were written.",
    "lost_commits": "Commits lost to another consumer.",
    "reconnects": "Times that the exchange's connection was opened again.",
    "recovered": "Rows kept by earlier runs that this run committed.",
    "uncommitted": "Rows that the run read and could not commit by its end.",
}
_LAG: Final = ("k2_consumer_lag_messages", "Messages that are not committed yet.")
_DELAY: Final = ("k2_commit_delay_seconds", "Age of the newest row or message that is committed.")
_PLACE: Final = ("topic", "partition")
_COMMIT_BUCKETS_S: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_LOOK_S: Final = 1.0


class RunMetrics(Collector):
    """What Prometheus reads of one run. Made by `serving_metrics`."""

    def __init__(self, observe: Observer) -> None:
        self.registry: Final = CollectorRegistry()
        self._pass_on: Listener = observe
        self._totals: Totals | ConsumeTotals | None = None
        self._consumption: Consumption | None = None
        self._newest_us: int | None = None  # time of the newest row that was read
        self._committed_us: int | None = None  # and of the newest committed one
        self._settled_rows = 0
        self._ends: dict[Place, int] = {}
        self._looked_at = 0.0
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._events = Counter(
            "k2_events", "Lines of the log.", ["event", "level"], registry=self.registry
        )
        for event in EVENTS.values():
            if event.level is Level.WARNING:  # from the start, so that the first one is a rise
                self._events.labels(event.name, event.level)
        self._commit_duration = Histogram(
            "k2_commit_duration_seconds",
            "How long the commits of a table took.",
            buckets=_COMMIT_BUCKETS_S,
            registry=self.registry,
        )
        build = Info("k2_build", "The version that runs.", registry=self.registry)
        build.info({"version": __version__})
        ProcessCollector(registry=self.registry)
        self.registry.register(self)

    def watch(self, totals: Totals) -> None:
        """Tell these sums from now on; they change while the run goes on."""
        self._totals = totals

    def watch_consumption(self, consumption: "Consumption") -> None:
        """Tell its sums from now on, and how far it is in every partition."""
        self._totals = consumption.totals
        self._consumption = consumption

    def on_event(self, event: str, /, **fields: object) -> None:
        """Count an event, and pass it on."""
        self._events.labels(event, level_of(event)).inc()
        took_ms = fields.get("took_ms")
        if event == "commit" and isinstance(took_ms, float):
            self._commit_duration.observe(took_ms / 1000)
        self._pass_on(event, **fields)

    def on_batch(self, batch: Batch) -> None:
        """Look whether what came before this batch was committed, and how new its rows are."""
        totals = self._totals
        if isinstance(totals, Totals):
            settled = totals.rows + totals.duplicates + totals.conflicts
            if settled != self._settled_rows:
                self._settled_rows = settled
                self._committed_us = self._newest_us
        for _, rows in batch.rows:
            self._newest_us = rows["timestamp"][-1].value

    def on_read(self, reader: "Reader") -> None:
        """Look where the partitions end, now and then. In the thread that reads."""
        now = time.monotonic()
        if now - self._looked_at >= _LOOK_S:
            self._looked_at = now
            self._ends = reader.ends()

    def collect(self) -> Iterator[Metric]:
        """Yield what the run does not count for Prometheus alone. In the thread of the server."""
        if self._totals is not None:
            for name, value in asdict(self._totals).items():
                if name in _SUMS:
                    yield CounterMetricFamily(f"k2_{name}", _SUMS[name], value=value)
        if self._consumption is not None:
            yield from self._partitions(self._consumption.progress)
        elif self._committed_us is not None:
            yield GaugeMetricFamily(*_DELAY, value=_age_s(self._committed_us / 1e6))

    def _partitions(self, progress: "Progress") -> Iterator[Metric]:
        lag = GaugeMetricFamily(*_LAG, labels=_PLACE)
        for (topic, number), offset in progress.committed().items():
            end = self._ends.get((topic, number), offset)
            lag.add_metric((topic, str(number)), max(0, end - offset))
        yield lag
        delay = GaugeMetricFamily(*_DELAY, labels=_PLACE)
        for (topic, number), time_ms in progress.committed_ms().items():
            delay.add_metric((topic, str(number)), _age_s(time_ms / 1e3))
        yield delay


@contextmanager
def serving_metrics(address: Address, observe: Observer) -> Iterator[RunMetrics]:
    """Serve the metrics of a run on this address and no other, until the block ends.

    Raises:
        Unavailable: the address cannot be had.
    """
    metrics = RunMetrics(observe)
    try:
        server, thread = start_http_server(address.port, address.host, metrics.registry)
    except (OSError, UnicodeError) as exc:  # a host name that is no name is a UnicodeError
        raise Unavailable(
            f"cannot serve metrics on {address}: {exc}",
            hint="end what serves there, or take a free port with --metrics 127.0.0.1:0",
        ) from exc
    try:
        observe("metrics", url=f"http://{Address(address.host, server.server_port)}/metrics")
        yield metrics
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _age_s(time_s: float) -> float:
    return max(0.0, time.time() - time_s)
