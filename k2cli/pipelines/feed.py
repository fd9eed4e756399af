"""Assemble what `k2 stream` runs: an exchange's live feed into a sink."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from k2cli.config import BOOTSTRAP, Backfill, Settings
from k2cli.errors import Unavailable
from k2cli.events import Observer
from k2cli.flow import Sink, Source, Totals
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.pipelines.backfill.filler import BackfilledSource, GapFiller
from k2cli.pipelines.backfill.gapfile import GapFile
from k2cli.pipelines.backfill.ledger import GapLedger
from k2cli.pipelines.printing import NdjsonPrinter
from k2cli.pipelines.sinks import ForwardedGaps, ForwardingSink, TableSink
from k2cli.pipelines.spill import SpillFolder
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.ranges import difference
from k2cli.records import KINDS, TRADES
from k2cli.rejects import RejectLog
from k2cli.storage.lake import open_lake
from k2cli.storage.opengaps import OpenGaps
from k2cli.storage.position import Series, Stored

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
    backfill: Backfill = Backfill("off")  # noqa: RUF009  immutable
    api_key: str | None = None  # for the exchange's history


@dataclass(frozen=True, slots=True)
class Feed:
    """An open feed: run its pump once."""

    stream: ExchangeStream
    pump: Pump
    ledger: GapLedger | None  # None: no trades are streamed
    observe: Observer

    @property
    def totals(self) -> Totals:
        """The totals so far."""
        return self.pump.totals

    def summarize(self) -> dict[str, object]:
        """Return the totals of the run, by name."""
        silent = len(self.stream.silent_streams)
        duration_s = round(self.totals.duration_s, 3)
        return {**asdict(self.totals), "silent_streams": silent, "duration_s": duration_s}

    def report_missing(self) -> None:
        """Report the streams without data and the open gaps, at the end of a run."""
        self.stream.report_silent_streams()
        if self.ledger is not None:
            self.ledger.report_left(self.observe)

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
    venue = options.stream.venue
    if venue.rest_url is not None:
        observe = venue.refresh_symbols(venue.rest_url, config.home, observe)
    stream = ExchangeStream(options=options.stream, observe=observe)
    ledger, source = _plan_backfill(stream, options, config, observe)
    with ExitStack() as stack:
        pump = Pump(
            source=source,
            sink=_open_sink(stack, options, config, ledger, observe),
            rejects=stack.enter_context(RejectLog(options.rejects, run=config.run)),
            policy=options.policy,
            observe=observe,
        )
        yield Feed(stream, pump, ledger, observe)


def _plan_backfill(
    stream: ExchangeStream, options: FeedOptions, config: Settings, observe: Observer
) -> tuple[GapLedger | None, Source]:
    """Prepare to note the gaps of a stream of trades, and to fill them if that is possible."""
    venue, instruments = options.stream.venue, options.stream.instruments
    if TRADES.name not in {venue.channels[channel] for channel in options.stream.channels}:
        return None, stream
    history, unfilled = None, "backfill is off"
    if not options.backfill.is_off:
        history = venue.open_history(config.home, api_key=options.api_key)
        unfilled = "no REST API to fetch them from"
    ledger = GapLedger(
        exchange=venue.exchange,
        symbols=[instrument.symbol for instrument in instruments],
        backfill=options.backfill,
        unfilled=unfilled if history is None else None,
    )
    if history is None:
        return ledger, stream
    filler = GapFiller(
        ledger=ledger,
        history=history,
        instruments={instrument.symbol: instrument for instrument in instruments},
        observe=observe,
    )
    return ledger, BackfilledSource(stream=stream, filler=filler, ledger=ledger)


def _open_sink(
    stack: ExitStack,
    options: FeedOptions,
    config: Settings,
    ledger: GapLedger | None,
    observe: Observer,
) -> Sink:
    venue = options.stream.venue
    if options.out is not None:
        printer = NdjsonPrinter(options.out)
        return ForwardingSink(
            write=printer.write,
            flush=options.out.flush,
            exchange=venue.exchange,
            observe=observe,
            gaps=ForwardedGaps(ledger=ledger) if ledger is not None else None,
        )
    if options.produce is not None:
        from k2cli.pipelines.produce import open_topics  # noqa: PLC0415  tables need no Kafka

        topics = stack.enter_context(open_topics(options.produce, observe=observe))
        names = {
            venue.channels[channel]: topics.prepare(
                KINDS[venue.channels[channel]], venue.asset_class
            )
            for channel in options.stream.channels
        }
        gaps = None
        if ledger is not None:
            topic = names[TRADES.name]
            gaps = _continue_topic(topic, options.produce, config, ledger, observe)
        return ForwardingSink(
            write=topics.write,
            flush=topics.flush,
            exchange=venue.exchange,
            observe=observe,
            gaps=gaps,
        )
    lake = stack.enter_context(open_lake(config, create=True, observe=observe))
    if ledger is not None:
        ledger.load(lake.open(TRADES).open_gaps())
    spill = SpillFolder(config, observe)
    return TableSink(
        lake=lake, exchange=venue.exchange, observe=observe, spill=spill, ledger=ledger
    )


def _continue_topic(
    topic: str,
    produce: "ProduceOptions",
    config: Settings,
    ledger: GapLedger,
    observe: Observer,
) -> ForwardedGaps:
    """Find where the trades of earlier runs end in a topic, and the gaps that they left."""
    from k2cli.ingestion.kafka.tails import newest_numbers  # noqa: PLC0415  tables need no Kafka

    target = f"{produce.kafka.get(BOOTSTRAP)} {topic}"
    file = GapFile(config.home, series=ledger.series, target=target)
    gaps = file.load()
    ledger.load(gaps)
    newest = newest_numbers(
        topic,
        TRADES,
        kafka=produce.kafka,
        registry=produce.registry,
        timeout_s=produce.timeout_s,
        observe=observe,
    )
    stored = {
        series: _sent_before(newest[series], gaps, series)
        for series in ledger.series
        if series in newest
    }
    return ForwardedGaps(ledger=ledger, file=file, stored=stored)


def _sent_before(newest: int, gaps: OpenGaps, series: Series) -> Stored:
    """Return what earlier runs sent of a series: everything up to a number but its open gaps."""
    sent = np.array([[0, newest]], dtype=np.int64)
    missing = [(gap.first, gap.last) for gap in gaps.get(series, ())]
    return Stored(exact=difference(sent, np.array(missing, dtype=np.int64).reshape(-1, 2)))
