"""Open the sink that an exchange's rows go to: stdout, Kafka topics or the tables."""

from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from k2cli.config import BOOTSTRAP, Settings
from k2cli.events import Observer
from k2cli.flow import Sink
from k2cli.ingestion.exchange import Venue
from k2cli.pipelines.backfill.gapfile import GapFile
from k2cli.pipelines.backfill.ledger import GapLedger
from k2cli.pipelines.printing import NdjsonPrinter
from k2cli.pipelines.sinks import ForwardedGaps, ForwardingSink, TableSink
from k2cli.pipelines.spill import SpillFolder
from k2cli.ranges import difference
from k2cli.records import TRADES, RecordKind
from k2cli.storage.lake import open_lake
from k2cli.storage.opengaps import OpenGaps
from k2cli.storage.position import Series, Stored

if TYPE_CHECKING:
    from k2cli.pipelines.produce import ProduceOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkOptions:
    """The target of rows: `out`, else Kafka, else the tables."""

    venue: Venue
    kinds: Collection[RecordKind]  # of the rows
    produce: "ProduceOptions | None" = None
    out: BinaryIO | None = None
    limit: int | None = None  # of rows printed to `out`
    has_spill: bool = False  # saves rows that could not be committed for the next run


def open_sink(
    stack: ExitStack,
    options: SinkOptions,
    config: Settings,
    observe: Observer,
    ledger: GapLedger | None = None,
) -> Sink:
    """Open the target of rows until the stack is closed.

    The gaps that earlier runs left there are added to `ledger`.

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
            gaps=None if ledger is None else ForwardedGaps(ledger=ledger),
        )
    if options.produce is not None:
        from k2cli.pipelines.produce import open_topics  # noqa: PLC0415  tables need no Kafka

        topics = stack.enter_context(open_topics(options.produce, observe=observe))
        names = {kind.name: topics.prepare(kind, venue.asset_class) for kind in options.kinds}
        gaps = None
        if ledger is not None:
            gaps = _continue_topic(names[TRADES.name], options.produce, config, ledger, observe)
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
    return TableSink(
        lake=lake,
        exchange=venue.exchange,
        observe=observe,
        spill=SpillFolder(config, observe) if options.has_spill else None,
        ledger=ledger,
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
    file = GapFile(config.home, target=target)
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
    stored = {  # also of symbols that may be listed during the run
        series: _sent_before(number, gaps, series)
        for series, number in ((Series(*pair), number) for pair, number in newest.items())
        if series.exchange == ledger.exchange
    }
    return ForwardedGaps(ledger=ledger, file=file, stored=stored)


def _sent_before(newest: int, gaps: OpenGaps, series: Series) -> Stored:
    """Return what earlier runs sent of a series: everything up to a number but its open gaps."""
    sent = np.array([[0, newest]], dtype=np.int64)
    missing = [(gap.first, gap.last) for gap in gaps.get(series, ())]
    return Stored(exact=difference(sent, np.array(missing, dtype=np.int64).reshape(-1, 2)))
