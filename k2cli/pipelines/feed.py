"""Assemble what `k2 stream` runs: an exchange's live feed into a sink."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from k2cli.config import Settings
from k2cli.errors import Unavailable
from k2cli.events import Observer
from k2cli.flow import Sink, Totals
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.pipelines.printing import NdjsonPrinter
from k2cli.pipelines.sinks import ForwardingSink, TableSink
from k2cli.pipelines.spill import SpillFolder
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.records import KINDS
from k2cli.rejects import RejectLog
from k2cli.storage.lake import open_lake

if TYPE_CHECKING:
    from k2cli.pipelines.produce import ProduceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedOptions:
    """What to stream, and the target of its rows: `out`, else Kafka, else the tables."""

    stream: StreamOptions
    policy: PumpPolicy
    rejects: Path
    produce: "ProduceOptions | None" = None
    out: BinaryIO | None = None


@dataclass(frozen=True, slots=True)
class Feed:
    """An open feed: run its pump once."""

    stream: ExchangeStream
    pump: Pump

    @property
    def totals(self) -> Totals:
        """The totals so far."""
        return self.pump.totals

    def summarize(self) -> dict[str, object]:
        """Return the totals of the run, by name."""
        silent = len(self.stream.silent_streams)
        duration_s = round(self.totals.duration_s, 3)
        return {**asdict(self.totals), "silent_streams": silent, "duration_s": duration_s}

    def check_connected(self, duration_s: float | None) -> None:
        """Check that a run that lasted its whole duration reached a server.

        Raises:
            Unavailable: there was no connection.
        """
        if duration_s is None or self.totals.duration_s < duration_s or self.stream.was_connected:
            return
        raise Unavailable(
            f"no connection within {duration_s:g} s",
            hint="check the network, or choose another server with --url",
        )


@contextmanager
def open_feed(options: FeedOptions, config: Settings, observe: Observer) -> Iterator[Feed]:
    """Open the sink and prepare the stream; it connects when the pump runs.

    Raises:
        UsageError: a URL is invalid.
        ConfigError, Unavailable, NotFound: the sink cannot be opened.
    """
    observe = options.stream.venue.refresh_symbols(config.home, observe)
    stream = ExchangeStream(options=options.stream, observe=observe)
    with ExitStack() as stack:
        pump = Pump(
            source=stream,
            sink=_open_sink(stack, options, config, observe),
            rejects=stack.enter_context(RejectLog(options.rejects, run=config.run)),
            policy=options.policy,
            observe=observe,
        )
        yield Feed(stream, pump)


def _open_sink(stack: ExitStack, options: FeedOptions, config: Settings, observe: Observer) -> Sink:
    venue = options.stream.venue
    if options.out is not None:
        printer = NdjsonPrinter(options.out)
        return ForwardingSink(
            write=printer.write,
            flush=options.out.flush,
            exchange=venue.exchange,
            observe=observe,
        )
    if options.produce is not None:
        from k2cli.pipelines.produce import open_topics  # noqa: PLC0415  tables need no Kafka

        topics = stack.enter_context(open_topics(options.produce, observe=observe))
        for channel in options.stream.channels:
            topics.prepare(KINDS[venue.channels[channel]], venue.asset_class)
        return ForwardingSink(
            write=topics.write, flush=topics.flush, exchange=venue.exchange, observe=observe
        )
    lake = stack.enter_context(open_lake(config, create=True, observe=observe))
    spill = SpillFolder(config, observe)
    return TableSink(lake=lake, exchange=venue.exchange, observe=observe, spill=spill)
