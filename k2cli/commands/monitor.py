"""The log, the live view and the metrics of a run."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from k2cli.commands.options import Address
from k2cli.commands.terminal.events import RunLog
from k2cli.events import Observer

if TYPE_CHECKING:
    from k2cli.commands.metrics import RunMetrics
    from k2cli.commands.stream_metrics import StreamState
    from k2cli.commands.terminal.lag import LagView
    from k2cli.commands.terminal.live import LiveView
    from k2cli.flow import Batch
    from k2cli.pipelines.consume.loop import Consumption
    from k2cli.pipelines.consume.reader import Reader
    from k2cli.pipelines.stream import Pump


@dataclass(frozen=True, slots=True, kw_only=True)
class Monitor:
    """What a run reports to: its log, live view and metrics. Created by `open_monitor`.

    A run emits its events to `observe`, and regularly calls the function that `follow_pump` or
    `follow_consumption` returns.
    """

    observe: Observer
    live: "LiveView | None" = None
    lag: "LagView | None" = None
    metrics: "RunMetrics | None" = None

    def follow_pump(self, pump: "Pump") -> "Callable[[Batch], None]":
        """Follow a stream; return the function to call with every batch."""
        followers = [each for each in (self.live, self.metrics) if each]
        for follower in followers:
            follower.watch(pump.totals)
        if self.live:
            self.live.watch_end(lambda: pump.is_stopping)

        def on_batch(batch: "Batch") -> None:
            for follower in followers:
                follower.on_batch(batch)

        return on_batch

    def watch_stream(self, state: "StreamState") -> None:
        """Report the state of a stream whose pump is followed."""
        if self.metrics:
            self.metrics.watch_stream(state)

    def follow_consumption(self, consumption: "Consumption") -> "Callable[[Reader], None]":
        """Follow a consumer; return the function to call after every read, in that thread."""
        if self.lag:
            self.lag.watch(consumption)
        if self.metrics:
            self.metrics.watch_consumption(consumption)
        followers = [each for each in (self.lag, self.metrics) if each]

        def on_read(reader: "Reader") -> None:
            for follower in followers:
                follower.on_read(reader)

        return on_read


def open_monitor(
    stack: ExitStack,
    log: RunLog,
    *,
    stream_title: str | None = None,
    has_lag_view: bool = False,
    metrics: Address | None = None,
) -> Monitor:
    """Open the monitor of a run: a live view if stderr is a terminal, metrics with an address.

    A stream with a title gets a live view of its symbols, a consumer one of its lag.

    Raises:
        Unavailable: the address of the metrics is not available.
    """
    live, lag, served = None, None, None
    if stream_title is not None and sys.stderr.isatty():
        from k2cli.commands.terminal.live import LiveView

        live = stack.enter_context(LiveView(title=stream_title))
        log.view = live.on_event
    if has_lag_view and sys.stderr.isatty():
        from k2cli.commands.terminal.lag import LagView

        lag = stack.enter_context(LagView())
        log.view = lag.on_event
    if metrics is not None:
        from k2cli.commands.metrics import serving_metrics

        served = stack.enter_context(serving_metrics(metrics, log.on_event))
    observe = served.on_event if served else log.on_event
    return Monitor(observe=observe, live=live, lag=lag, metrics=served)
