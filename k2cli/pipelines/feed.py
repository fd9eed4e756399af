"""Assemble what `k2 stream` runs: an exchange's live feed into a sink."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from k2cli.config import Settings
from k2cli.errors import Unavailable
from k2cli.events import Observer
from k2cli.flow import Sink, Totals
from k2cli.ingestion.breaker import ServerHealth
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.recorder import Recorder, RecorderOptions, open_recorder
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.trading import Selected, fetch_trading
from k2cli.ingestion.watch import ListingWatch, watching
from k2cli.pipelines.printing import NdjsonPrinter
from k2cli.pipelines.sinks import ForwardingSink, TableSink
from k2cli.pipelines.spill import SpillFolder
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.records import KINDS, RecordKind
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
    selected: Selected | None = None  # to follow the exchange's listings
    record: RecorderOptions | None = None
    produce: "ProduceOptions | None" = None
    out: BinaryIO | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkOptions:
    """The target of rows: `out`, else Kafka, else the tables."""

    venue: Venue
    kinds: Collection[RecordKind]  # of the rows
    produce: "ProduceOptions | None" = None
    out: BinaryIO | None = None
    limit: int | None = None  # of rows printed to `out`
    has_spill: bool = False  # saves rows that could not be committed for the next run


@dataclass(frozen=True, slots=True)
class Feed:
    """An open feed: run its pump once."""

    stream: ExchangeStream
    pump: Pump
    recorder: Recorder | None = None

    @property
    def totals(self) -> Totals:
        """The totals so far."""
        return self.pump.totals

    @property
    def is_connected(self) -> bool:
        """Whether all connections to the exchange are open."""
        return self.stream.was_connected and not self.stream.connections.closed

    @property
    def servers(self) -> Sequence[ServerHealth]:
        """The health of every server, in failover order."""
        return self.stream.servers

    def unready(self) -> Sequence[str]:
        """Return why the stream is not up to date; nothing if it is."""
        return self.stream.unready()

    def summarize(self) -> dict[str, object]:
        """Return the totals of the run, by name."""
        silent = len(self.stream.silent_streams)
        duration_s = round(self.totals.duration_s, 3)
        totals = {**asdict(self.totals), "silent_streams": silent, "duration_s": duration_s}
        if self.recorder is None:
            return totals
        recorder = self.recorder
        return {**totals, "recorded": recorder.recorded, "unrecorded": recorder.unrecorded}

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
        ConfigError, Unavailable, NotFound: the sink or the recording cannot be opened.
    """
    venue = options.stream.venue
    observe = venue.refresh_symbols(config.home, observe)
    sink = SinkOptions(
        venue=venue,
        kinds=[KINDS[venue.channels[channel]] for channel in options.stream.channels],
        produce=options.produce,
        out=options.out,
        has_spill=True,
    )
    with ExitStack() as stack:
        recorder, streaming = None, options.stream
        if options.record is not None:
            recorder = stack.enter_context(open_recorder(options.record, observe))
            streaming = replace(streaming, record=recorder.put)
        stream = ExchangeStream(options=streaming, observe=observe)
        pump = Pump(
            source=stream,
            sink=open_sink(stack, sink, config, observe),
            rejects=stack.enter_context(RejectLog(options.rejects, run=config.run)),
            policy=options.policy,
            observe=observe,
        )
        if options.selected is not None and venue.rest_urls:
            watch = ListingWatch(
                selected=options.selected,
                fetch=lambda: fetch_trading(venue, config.home),
                streams=stream,
                observe=observe,
                interval_s=config.stream.symbols_refresh,
            )
            stack.enter_context(watching(watch))
        yield Feed(stream, pump, recorder)


def open_sink(stack: ExitStack, options: SinkOptions, config: Settings, observe: Observer) -> Sink:
    """Open the target of rows until the stack is closed.

    Raises:
        ConfigError, Unavailable, NotFound: it cannot be opened.
    """
    venue = options.venue
    if options.out is not None:
        return ForwardingSink(
            write=NdjsonPrinter(options.out).first(options.limit),
            flush=options.out.flush,
            exchange=venue.exchange,
            observe=observe,
        )
    if options.produce is not None:
        from k2cli.pipelines.produce import open_topics  # noqa: PLC0415  tables need no Kafka

        topics = stack.enter_context(open_topics(options.produce, observe=observe))
        for kind in options.kinds:
            topics.prepare(kind, venue.asset_class)
        return ForwardingSink(
            write=topics.write, flush=topics.flush, exchange=venue.exchange, observe=observe
        )
    lake = stack.enter_context(open_lake(config, create=True, observe=observe))
    spill = SpillFolder(config, observe) if options.has_spill else None
    return TableSink(lake=lake, exchange=venue.exchange, observe=observe, spill=spill)
