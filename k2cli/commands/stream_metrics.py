"""What only a stream measures: connections, symbols, gaps, and the delay to the commit."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import pyarrow as pa
from prometheus_client import Metric
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from k2cli.flow import Batch, Totals
from k2cli.ranges import Ints
from k2cli.redaction import redact_url

if TYPE_CHECKING:
    from k2cli.ingestion.breaker import ServerHealth

_DELAY_BUCKETS_S: Final = np.array([0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 300, 3600])
_US: Final = 1_000_000
COMMIT_DELAY: Final = ("k2_commit_delay_seconds", "Age of the newest committed row or message.")
_EVENTS: Final = {
    "gap": ("k2_gaps_found", "Gaps found: runs of missing trade ids."),
    "restart_gap": ("k2_gaps_found", "Gaps found: runs of missing trade ids."),
    "gap_filled": ("k2_gaps_filled", "Gaps filled from the exchange's history."),
    "rollover": ("k2_rollovers", "Connections that were replaced without loss."),
}


class StreamState(Protocol):
    """What a stream knows of itself."""

    @property
    def is_connected(self) -> bool:
        """Whether all its connections are open."""

    @property
    def servers(self) -> "Sequence[ServerHealth]":
        """The health of every server, in failover order."""

    @property
    def open_gaps(self) -> int:
        """The number of gaps now, without ids that the exchange does not list."""

    def unready(self) -> Sequence[str]:
        """Return why it is not up to date; nothing if it is."""


class StreamMetrics(Collector):
    """Metrics of one stream. Its events and batches may come from different threads."""

    def __init__(self, totals: Totals) -> None:
        self.state: StreamState | None = None
        self._totals = totals
        self._settled_rows = 0
        self._received: Counter[tuple[str, str]] = Counter()  # by kind and symbol
        self._errors: Counter[str] = Counter()  # by cause
        self._pending: list[Ints] = []  # exchange times of rows that are not committed yet, us
        self._newest_us: int | None = None  # of the rows read, and of those committed
        self._committed_us: int | None = None
        self._delays: Ints = np.zeros(len(_DELAY_BUCKETS_S) + 1, dtype=np.int64)
        self._delay_sum_s = 0.0
        self._last_message_s: float | None = None
        self._events: Counter[str] = Counter()  # by metric
        self._disconnects: Counter[str] = Counter()  # by cause
        self._reconnect_delay_s: float | None = None

    def on_batch(self, batch: Batch) -> None:
        """Count a batch, and the rows of earlier ones that have been committed meanwhile."""
        totals = self._totals
        settled = totals.rows + totals.duplicates + totals.conflicts
        if settled != self._settled_rows:
            self._settled_rows = settled
            self._committed_us = self._newest_us
            self._note_commit()
        self._errors.update(reject.fault.cause.value for reject in batch.rejects)
        if batch.backfilled:  # past trades say nothing about the stream and its delay
            return
        if batch.messages:
            self._last_message_s = time.time()
        for kind, rows in batch.rows:
            for symbol, count in _counted(rows["symbol"]):
                self._received[kind.name, symbol] += count
            times = rows["timestamp"].cast(pa.int64()).to_numpy()
            self._pending.append(times)
            self._newest_us = int(times[-1])

    def _note_commit(self) -> None:
        delays = time.time() - np.concatenate([*self._pending, np.empty(0)]) / _US
        self._pending.clear()
        delays = np.maximum(delays, 0.0)
        self._delays = self._delays + np.bincount(
            np.searchsorted(_DELAY_BUCKETS_S, delays), minlength=len(self._delays)
        )
        self._delay_sum_s += float(delays.sum())

    def on_event(self, event: str, fields: Mapping[str, object]) -> None:
        """Count an event of the stream."""
        if event in _EVENTS:
            self._events[_EVENTS[event][0]] += 1
        elif event == "disconnected":
            self._disconnects[str(fields["cause"])] += 1
            self._reconnect_delay_s = float(str(fields["retry_in_s"]))

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics. Runs in the server's thread."""
        received = CounterMetricFamily(
            "k2_received", "Trades and quotes received.", labels=("kind", "symbol")
        )
        for labels, count in self._received.copy().items():
            received.add_metric(labels, count)
        yield received
        yield _by_label("k2_message_errors", "Messages rejected, by cause.", "cause", self._errors)
        yield _by_label(
            "k2_disconnects",
            "Connections lost, and attempts that failed, by cause.",
            "cause",
            self._disconnects,
        )
        for name, meaning in dict(_EVENTS.values()).items():
            yield CounterMetricFamily(name, meaning, value=self._events[name])
        yield _gauge(
            "k2_reconnect_delay_seconds",
            "Delay before the last reconnect.",
            self._reconnect_delay_s,
        )
        yield _gauge(
            "k2_last_message_timestamp_seconds",
            "When the last message arrived.",
            self._last_message_s,
        )
        committed_us = self._committed_us
        age_s = None if committed_us is None else max(0.0, time.time() - committed_us / _US)
        yield _gauge(*COMMIT_DELAY, age_s)
        yield self._delay_histogram()
        yield from self._states()

    def _states(self) -> Iterator[Metric]:
        state = self.state
        yield _gauge(
            "k2_connected",
            "Whether all connections to the exchange are open.",
            None if state is None else float(state.is_connected),
        )
        yield _gauge(
            "k2_gaps_open",
            "Gaps with trades that the exchange may have.",
            None if state is None else state.open_gaps,
        )
        breakers = GaugeMetricFamily(
            "k2_breaker_open",
            "Whether a server of the exchange is avoided, because it failed repeatedly.",
            labels=("server",),
        )
        for server in state.servers if state else ():
            breakers.add_metric((redact_url(server.url),), float(server.breaker != "closed"))
        yield breakers

    def _delay_histogram(self) -> Metric:
        counts = np.cumsum(self._delays).tolist()
        bounds = [*map(str, map(float, _DELAY_BUCKETS_S)), "+Inf"]
        return HistogramMetricFamily(
            "k2_exchange_to_commit_seconds",
            "Delay of rows from the exchange's time to the commit.",
            buckets=list(zip(bounds, counts, strict=True)),
            sum_value=self._delay_sum_s,
        )


def _counted(symbols: pa.Array) -> Iterator[tuple[str, int]]:
    counts = symbols.value_counts()
    return zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)


def _gauge(name: str, meaning: str, value: float | None) -> Metric:
    """Build a gauge, without a sample if its value is not known yet."""
    gauge = GaugeMetricFamily(name, meaning)
    if value is not None:
        gauge.add_metric((), value)
    return gauge


def _by_label(name: str, meaning: str, label: str, counts: Counter[str]) -> Metric:
    metric = CounterMetricFamily(name, meaning, labels=(label,))
    for value, count in counts.copy().items():
        metric.add_metric((value,), count)
    return metric
