"""The live view and the metrics of a run."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

from k2cli.commands.options import Address
from k2cli.events import Observer

if TYPE_CHECKING:
    from k2cli.commands.metrics import RunMetrics
    from k2cli.commands.terminal.live import LiveView
    from k2cli.flow import Batch
    from k2cli.pipelines.stream import Pump


def open_view(stack: ExitStack, title: str) -> "LiveView | None":
    """Open the live view if stderr is a terminal."""
    if not sys.stderr.isatty():
        return None
    from k2cli.commands.terminal.live import LiveView

    return stack.enter_context(LiveView(title=title))


def open_metrics(
    stack: ExitStack, address: Address | None, observe: Observer
) -> "RunMetrics | None":
    """Serve the run's metrics, if an address is given."""
    if address is None:
        return None
    from k2cli.commands.metrics import serving_metrics

    return stack.enter_context(serving_metrics(address, observe))


def follow(
    pump: "Pump", view: "LiveView | None", metrics: "RunMetrics | None" = None
) -> "Callable[[Batch], None]":
    """Attach the view and the metrics to a run; return the callback for every batch."""
    present = [follower for follower in (view, metrics) if follower]
    for follower in present:
        follower.watch(pump.totals)
    if view:
        view.watch_end(lambda: pump.is_stopping)

    def on_batch(batch: "Batch") -> None:
        for follower in present:
            follower.on_batch(batch)

    return on_batch
