"""`k2 stream`: a live exchange feed into the tables, or onto stdout."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands import output
from k2cli.commands.kafka import kafka_settings, produce_options
from k2cli.commands.known import remember_series
from k2cli.commands.options import (
    DURATION,
    LOG_FILE_KEEP,
    Address,
    AutoRegisterOpt,
    HomeOpt,
    KafkaOpt,
    LevelOpt,
    LogFileKeepOpt,
    LogFileOpt,
    LogFileSizeOpt,
    LogFormatOpt,
    MaxRejectBytesOpt,
    MetricsOpt,
    RegistryOpt,
    SummaryOpt,
    TimeoutOpt,
    TopicOpt,
    checked_file,
    open_log,
    settings,
    split_commas,
)
from k2cli.commands.signals import stopped_by_signals
from k2cli.config import BOOTSTRAP, Settings
from k2cli.errors import Unavailable
from k2cli.events import Level, Observer
from k2cli.ingestion.binance.symbols import VENUES, Channel, Market, Venue, parse_symbol
from k2cli.memory import freeze_loaded_objects, return_freed_memory
from k2cli.redaction import remember_secrets

if TYPE_CHECKING:
    from collections.abc import Callable

    from k2cli.commands.live import LiveView
    from k2cli.commands.metrics import RunMetrics
    from k2cli.flow import Batch, Sink, Totals
    from k2cli.ingestion.binance.client import BinanceStream
    from k2cli.pipelines.produce import ProduceOptions
    from k2cli.pipelines.stream import Pump

stream_app = typer.Typer(help="Stream an exchange's live feed.", no_args_is_help=True)


class Destination(StrEnum):
    """Where rows go."""

    TABLE = "table"
    KAFKA = "kafka"
    STDOUT = "stdout"


@stream_app.callback()
def stream() -> None:
    """Stream an exchange's live feed into the tables."""


@stream_app.command()
def binance(
    symbols: Annotated[
        list[str],
        typer.Option(
            "--symbols",
            "-s",
            help="What to stream: repeat it, or separate by commas. BTCUSDT or BTC/USDT.",
            show_default=False,
        ),
    ],
    channels: Annotated[
        list[str],
        typer.Option(
            "--channels", help="trade becomes trades, bookTicker quotes; a comma list of both."
        ),
    ] = ["trade"],  # noqa: B006
    market: Annotated[
        Market, typer.Option("--market", help="Spot, Binance.US, USD-M or COIN-M futures.")
    ] = Market.SPOT,
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url",
            help="Server base such as ws://127.0.0.1:9443; repeat it for failover, in that order.",
            show_default="the exchange's own",
        ),
    ] = None,
    rest_url: Annotated[
        str | None,
        typer.Option(
            "--rest-url",
            help="REST base to refresh the list of symbols from, once a day.",
            show_default="the exchange's own; none with --url",
        ),
    ] = None,
    to: Annotated[
        Destination | None,
        typer.Option(
            "--to",
            help="Into the tables, onto Kafka topics, or as ndjson onto stdout.",
            show_default="kafka where one is set up, else table",
        ),
    ] = None,
    topic: TopicOpt = None,
    auto_register: AutoRegisterOpt = True,
    max_messages: Annotated[
        int | None, typer.Option("--max-messages", min=1, help="End after this many data frames.")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("--duration", help="End after this time, such as 60s or 8h.", **DURATION),
    ] = None,
    flush_rows: Annotated[
        int | None,
        typer.Option(
            "--flush-rows", min=1, help="Commit after this many rows.", show_default="100000"
        ),
    ] = None,
    flush_interval: Annotated[
        float | None,
        typer.Option("--flush-interval", help="Commit this often.", show_default="10s", **DURATION),
    ] = None,
    stale_after: Annotated[
        float | None,
        typer.Option(
            "--stale-after",
            help="Reopen a connection on which nothing arrives for this long, not even a ping.",
            show_default="60s",
            **DURATION,
        ),
    ] = None,
    silent_after: Annotated[
        float | None,
        typer.Option(
            "--silent-after",
            help="Reopen a connection that delivered data and then only pings for this long.",
            show_default="3 times --stale-after",
            **DURATION,
        ),
    ] = None,
    connect_timeout: Annotated[
        float | None,
        typer.Option(
            "--connect-timeout",
            help="Give up if the first connection takes longer.",
            show_default="10s",
            **DURATION,
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="File for rejected frames.",
            show_default="rejects/stream-binance.ndjson in the home folder",
            callback=checked_file,
        ),
    ] = None,
    max_rejects: Annotated[
        int | None,
        typer.Option("--max-rejects", min=0, help="End with exit code 6 after more than these."),
    ] = None,
    max_reject_bytes: MaxRejectBytesOpt = None,
    log_format: LogFormatOpt = None,
    log_level: LevelOpt = Level.INFO,
    log_file: LogFileOpt = None,
    log_file_size: LogFileSizeOpt = None,
    log_file_keep: LogFileKeepOpt = LOG_FILE_KEEP,
    metrics_address: MetricsOpt = None,
    summary: SummaryOpt = output.Summary.TEXT,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Stream trades and quotes from Binance, exactly once, until stopped.

    SIGINT, SIGTERM and SIGHUP end it cleanly after a last commit; a second signal ends it at once.
    A connection that drops is reopened; what the table holds already is not written twice.
    With --to kafka a trade is sent once in a run, and counts when the brokers hold it; outages of
    theirs are waited out.

    Example: k2 stream binance --symbols BTCUSDT,ETHUSDT --channels trade,bookTicker
    """
    config = settings(home)
    for each in (*(url or ()), rest_url or ""):
        remember_secrets({"url": each})
    is_clustered = bool(kafka_settings(config, kafka).get(BOOTSTRAP))
    target = to or (Destination.KAFKA if is_clustered else Destination.TABLE)
    instruments = [parse_symbol(symbol, market, config.home) for symbol in split_commas(symbols)]
    if not instruments:
        raise typer.BadParameter("no symbol given", param_hint="--symbols")
    chosen = _channels(channels)
    if topic is not None and len(chosen) > 1:
        raise typer.BadParameter("one topic holds one channel's rows", param_hint="--topic")

    return_freed_memory()
    from k2cli.ingestion.binance.client import BinanceStream, StreamOptions
    from k2cli.pipelines.stream import Pump, PumpPolicy
    from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

    defaults, venue = config.stream, VENUES[market]
    options = StreamOptions(
        venue=venue,
        instruments=instruments,
        channels=chosen,
        urls=url or venue.urls,
        home=config.home,
        connect_timeout_s=connect_timeout or defaults.connect_timeout,
        stale_after_s=stale_after or defaults.stale_after,
        silent_after_s=silent_after,
        max_messages=max_messages,
    )
    produce = partial(
        produce_options,
        config,
        kafka=kafka,
        registry=registry,
        timeout=timeout,
        topic=topic,
        auto_register=auto_register,
    )
    policy = PumpPolicy(
        flush_rows=flush_rows or defaults.flush_rows,
        flush_interval_s=flush_interval or defaults.flush_interval,
        duration_s=duration,
        max_rejects=max_rejects,
        max_reject_bytes=max_reject_bytes or MAX_REJECT_BYTES,
    )
    with (
        ExitStack() as files,
        open_log(
            files, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ).ending() as log,
        ExitStack() as stack,
    ):
        is_watched = log_format is None and target is not Destination.STDOUT
        view = open_view(stack, _title(venue, chosen)) if is_watched else None
        log.view = view.on_event if view else None
        observe: Observer = log.on_event
        metrics = open_metrics(stack, metrics_address, observe)
        observe = _refreshing(
            metrics.on_event if metrics else observe,
            venue,
            rest_url or (None if url else venue.rest_url),
            config,
        )
        source = BinanceStream(options=options, observe=observe)
        remember_series(config, ((venue.exchange, each.symbol) for each in instruments))
        pump = Pump(
            source=source,
            sink=_open_sink(stack, target, config, produce, venue, chosen, observe),
            rejects=stack.enter_context(
                RejectLog(
                    rejects or config.home / "rejects" / "stream-binance.ndjson", run=config.run
                )
            ),
            policy=policy,
            observe=observe,
        )
        stack.enter_context(stopped_by_signals(pump.stop))
        try:
            freeze_loaded_objects()
            pump.run(_followed(pump, view, metrics))
        finally:
            source.report_silent_streams()
            stack.close()
            sums = _sums(source, pump.totals)
            output.summary(sums, summary, is_data_on_stdout=target is Destination.STDOUT, log=log)
        _check_reached(source, pump.totals, duration)


def _refreshing(
    observe: Observer, venue: Venue, rest_url: str | None, config: Settings
) -> Observer:
    """Refresh the list of symbols when the stream is connected, if there is a REST API to ask."""
    if rest_url is None:
        return observe
    from k2cli.ingestion.binance.exchangeinfo import SymbolRefresh

    return SymbolRefresh(venue=venue, rest_url=rest_url, home=config.home, observe=observe).on_event


def _title(venue: Venue, channels: list[Channel]) -> str:
    return f"{venue.exchange} {','.join(channel.value for channel in channels)}"


def _sums(source: "BinanceStream", totals: "Totals") -> dict[str, object]:
    silent = len(source.silent_streams)
    duration_s = round(totals.duration_s, 3)
    return {**asdict(totals), "silent_streams": silent, "duration_s": duration_s}


def _check_reached(source: "BinanceStream", totals: "Totals", duration_s: float | None) -> None:
    """Tell a stream that came to its end from one that never began."""
    if duration_s is not None and totals.duration_s >= duration_s and not source.was_connected:
        raise Unavailable(
            f"no connection was made within {duration_s:g} s",
            hint="check the network, or name another server with --url",
        )


def _channels(names: list[str]) -> list[Channel]:
    channels = [_channel(name) for name in split_commas(names)]
    if not channels:
        raise typer.BadParameter("no channel given", param_hint="--channels")
    return channels


def _channel(name: str) -> Channel:
    try:
        return Channel(name)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{name!r} is not one of {', '.join(Channel)}", param_hint="--channels"
        ) from exc


def open_view(stack: ExitStack, title: str) -> "LiveView | None":
    """Open the live view where people look: stderr is a terminal."""
    if not sys.stderr.isatty():
        return None
    from k2cli.commands.live import LiveView

    return stack.enter_context(LiveView(title=title))


def open_metrics(
    stack: ExitStack, address: Address | None, observe: Observer
) -> "RunMetrics | None":
    """Serve the run's metrics, if an address is given."""
    if address is None:
        return None
    from k2cli.commands.metrics import serving_metrics

    return stack.enter_context(serving_metrics(address, observe))


def _followed(
    pump: "Pump", view: "LiveView | None", metrics: "RunMetrics | None"
) -> "Callable[[Batch], None]":
    """Let the view and the metrics follow a run; return what is to see every batch."""
    present = [follower for follower in (view, metrics) if follower]
    for follower in present:
        follower.watch(pump.totals)
    if view:
        view.watch_end(lambda: pump.is_stopping)

    def on_batch(batch: "Batch") -> None:
        for follower in present:
            follower.on_batch(batch)

    return on_batch


def _open_sink(
    stack: ExitStack,
    to: Destination,
    config: Settings,
    produce: "Callable[[], ProduceOptions]",
    venue: Venue,
    channels: list[Channel],
    observe: Observer,
) -> "Sink":
    from k2cli.pipelines.sinks import NdjsonSink, TableSink, TopicSink

    match to:
        case Destination.STDOUT:
            return NdjsonSink(out=sys.stdout.buffer, exchange=venue.exchange, observe=observe)
        case Destination.KAFKA:
            from k2cli.pipelines.produce import open_topics
            from k2cli.records import KINDS

            topics = stack.enter_context(open_topics(produce(), observe=observe))
            for channel in channels:
                topics.prepare(KINDS[channel.kind], venue.asset_class)
            return TopicSink(topics=topics, exchange=venue.exchange, observe=observe)
        case Destination.TABLE:
            from k2cli.pipelines.spill import SpillFolder
            from k2cli.storage.lake import open_lake

            lake = stack.enter_context(open_lake(config, create=True, observe=observe))
            spill = SpillFolder(config, observe)
            return TableSink(lake=lake, exchange=venue.exchange, observe=observe, spill=spill)
