"""Assemble what `k2 stream` runs: an exchange's live feed into a sink."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from k2cli.config import Backfill, Settings
from k2cli.errors import Unavailable
from k2cli.events import Observer
from k2cli.flow import Source, Totals
from k2cli.ingestion.breaker import ServerHealth
from k2cli.ingestion.recorder import Recorder, RecorderOptions, open_recorder
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.symbols import Instrument
from k2cli.ingestion.trading import Selected, fetch_trading
from k2cli.ingestion.watch import ListingWatch, watching
from k2cli.pipelines.backfill.filler import BackfilledSource, GapFiller
from k2cli.pipelines.backfill.ledger import GapLedger
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.pipelines.targets import SinkOptions, open_sink
from k2cli.records import KINDS, TRADES
from k2cli.rejects import RejectLog

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
    backfill: Backfill = Backfill("off")  # noqa: RUF009  immutable


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """An open feed: run its pump once."""

    stream: ExchangeStream
    pump: Pump
    observe: Observer
    recorder: Recorder | None
    gaps: "Gaps | None"  # None: no trades are streamed

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

    @property
    def open_gaps(self) -> int:
        """The number of gaps now, without ids that the exchange does not list."""
        return 0 if self.gaps is None else self.gaps.ledger.count_waiting()

    def unready(self) -> Sequence[str]:
        """Return why the stream is not up to date; nothing if it is."""
        return self.stream.unready()

    def change(self, added: Sequence[Instrument], removed: Sequence[Instrument]) -> None:
        """Begin and end streams of symbols. Any thread."""
        if self.gaps is not None:
            self.gaps.follow(added)
        self.stream.change(added, removed)

    def summarize(self) -> dict[str, object]:
        """Return the totals of the run, by name."""
        silent = len(self.stream.silent_streams)
        duration_s = round(self.totals.duration_s, 3)
        totals = {**asdict(self.totals), "silent_streams": silent, "duration_s": duration_s}
        if self.recorder is None:
            return totals
        recorder = self.recorder
        return {**totals, "recorded": recorder.recorded, "unrecorded": recorder.unrecorded}

    def report_missing(self) -> None:
        """Report the streams without data and the open gaps, at the end of a run."""
        self.stream.report_silent_streams()
        if self.gaps is not None:
            self.gaps.ledger.report_left(self.observe)

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

    def check_recorded(self) -> None:
        """Check that the recording, if any, has every frame; call it once the feed is closed.

        Raises:
            Unavailable: frames are missing.
        """
        if self.recorder is None or not self.recorder.unrecorded:
            return
        raise Unavailable(
            f"{self.recorder.unrecorded:,} frames are missing in the recording",
            hint="all rows were committed; events recording_failed say what the disk reported",
        )


@dataclass(frozen=True, slots=True)
class Gaps:
    """The gaps of a stream of trades, and what fills them, if anything does."""

    ledger: GapLedger
    filler: GapFiller | None

    def follow(self, instruments: Sequence[Instrument]) -> None:
        """Note, and fill, the gaps of more symbols. Any thread."""
        if self.filler is not None:
            self.filler.follow(instruments)
        self.ledger.follow(instrument.symbol for instrument in instruments)

    def source(self, stream: Source) -> Source:
        """Return a stream together with the trades that fill its gaps."""
        if self.filler is None:
            return stream
        return BackfilledSource(stream=stream, filler=self.filler, ledger=self.ledger)


@contextmanager
def open_feed(options: FeedOptions, config: Settings, observe: Observer) -> Iterator[Feed]:
    """Open the sink and prepare the stream; it connects when the pump runs.

    Raises:
        UsageError: a URL is invalid.
        ConfigError, Unavailable, NotFound: the sink or the recording cannot be opened.
    """
    venue = options.stream.venue
    observe = venue.refresh_symbols(config.home, observe)
    gaps = _plan_backfill(options, config, observe)
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
        if gaps is not None and gaps.filler is not None:
            streaming = replace(streaming, has_newer=gaps.filler.has_newer)
        stream = ExchangeStream(options=streaming, observe=observe)
        pump = Pump(
            source=stream if gaps is None else gaps.source(stream),
            sink=open_sink(stack, sink, config, observe, gaps.ledger if gaps else None),
            rejects=stack.enter_context(RejectLog(options.rejects, run=config.run)),
            policy=options.policy,
            observe=observe,
        )
        feed = Feed(stream=stream, pump=pump, observe=observe, recorder=recorder, gaps=gaps)
        if options.selected is not None and venue.rest_urls:
            watch = ListingWatch(
                selected=options.selected,
                fetch=lambda: fetch_trading(venue, config.home),
                streams=feed,
                observe=observe,
                interval_s=config.stream.symbols_refresh,
            )
            stack.enter_context(watching(watch))
        yield feed


def _plan_backfill(options: FeedOptions, config: Settings, observe: Observer) -> Gaps | None:
    """Prepare to note the gaps of a stream of trades, and to fill them if that is possible."""
    venue, instruments = options.stream.venue, options.stream.instruments
    if TRADES.name not in {venue.channels[channel] for channel in options.stream.channels}:
        return None
    history, unfilled = None, "backfill is off"
    if not options.backfill.is_off:
        history = venue.open_history(config.home, api_key=config.binance.api_key)
        unfilled = "no REST API to fetch them from"
    ledger = GapLedger(
        exchange=venue.exchange,
        symbols=[instrument.symbol for instrument in instruments],
        backfill=options.backfill,
        unfilled=unfilled if history is None else None,
    )
    filler = None
    if history is not None:
        filler = GapFiller(ledger=ledger, history=history, instruments=instruments, observe=observe)
    return Gaps(ledger, filler)
