"""`k2 stream`: an exchange's live feed into the tables, to Kafka or to stdout.

Every exchange has a command, with its markets and channels. The module is long because it declares
all options of the command.
"""

import inspect
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from k2cli.commands.groups import OptionGroup, ServerOptions, ViewLogOptions, takes_groups
from k2cli.commands.known import remember_series
from k2cli.commands.monitor import open_monitor
from k2cli.commands.options import (
    DURATION,
    Address,
    AutoRegisterOpt,
    HomeOpt,
    MaxRejectBytesOpt,
    MetricsOpt,
    SummaryOpt,
    TopicOpt,
    rejects_option,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.signals import stopped_by_signals
from k2cli.config import BOOTSTRAP, Backfill, Settings, parse_backfill
from k2cli.ingestion.exchange import Exchange, Venue
from k2cli.ingestion.exchanges import EXCHANGES
from k2cli.ingestion.rollover import parse_daily
from k2cli.memory import freeze_loaded_objects, return_freed_memory
from k2cli.redaction import remember_secrets
from k2cli.symbols import split_commas

if TYPE_CHECKING:
    from k2cli.ingestion.stream import StreamOptions
    from k2cli.ingestion.symbols import Instrument
    from k2cli.ingestion.trading import Selected
    from k2cli.pipelines.feed import FeedOptions
    from k2cli.pipelines.stream import PumpPolicy

stream_app = typer.Typer(help="Stream an exchange's live feed.", no_args_is_help=True)


class Destination(StrEnum):
    """The target of rows."""

    TABLE = "table"
    KAFKA = "kafka"
    STDOUT = "stdout"


_KAFKA, _STDOUT = Destination.KAFKA, Destination.STDOUT


@stream_app.callback()
def stream() -> None:
    """Stream an exchange's live feed into the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(OptionGroup):
    """When a stream ends, commits and reconnects."""

    max_messages: Annotated[
        int | None, typer.Option("--max-messages", min=1, help="Stop after this many data frames.")
    ] = None
    duration: Annotated[
        float | None,
        typer.Option("--duration", help="Stop after this time, such as 60s or 8h.", **DURATION),
    ] = None
    flush_rows: Annotated[
        int | None,
        typer.Option(
            "--flush-rows", min=1, help="Commit after this many rows.", show_default="100000"
        ),
    ] = None
    flush_interval: Annotated[
        float | None,
        typer.Option("--flush-interval", help="Commit this often.", show_default="10s", **DURATION),
    ] = None
    stale_after: Annotated[
        float | None,
        typer.Option(
            "--stale-after",
            help="Reopen a connection without data for this long, not even a ping.",
            show_default="60s",
            **DURATION,
        ),
    ] = None
    silent_after: Annotated[
        float | None,
        typer.Option(
            "--silent-after",
            help="Reopen a connection that had data and then only pings for this long.",
            show_default="3 times --stale-after",
            **DURATION,
        ),
    ] = None
    connect_timeout: Annotated[
        float | None,
        typer.Option(
            "--connect-timeout",
            help="Give up if the first connection takes longer.",
            show_default="10s",
            **DURATION,
        ),
    ] = None
    rollover_at: Annotated[
        time | None,
        typer.Option(
            "--rollover-at",
            help="Replace every connection daily at this time of UTC, such as 03:00Z, or within "
            "two minutes after it.",
            show_default="before the exchange cuts it",
            parser=parse_daily,
            metavar="HH:MMZ",
        ),
    ] = None
    overlap: Annotated[
        float | None,
        typer.Option(
            "--overlap",
            help="How long a connection and the one that replaces it both run at most.",
            show_default="30s",
            **DURATION,
        ),
    ] = None
    backfill: Annotated[
        Backfill | None,
        typer.Option(
            "--backfill",
            help="Fetch what was missed since the last run: trades of this age, such as 1h, or "
            "this many per symbol; older ones stay open gaps. With off, fetch nothing, not even "
            "gaps during the run. See k2 query gaps.",
            show_default="1h",
            parser=parse_backfill,
            metavar="DURATION|COUNT|off",
        ),
    ] = None

    def policy(
        self, config: Settings, max_rejects: int | None, max_reject_bytes: int | None
    ) -> "PumpPolicy":
        """Build the policy of the pump."""
        from k2cli.pipelines.stream import PumpPolicy
        from k2cli.rejects import MAX_REJECT_BYTES

        return PumpPolicy(
            flush_rows=self.flush_rows or config.stream.flush_rows,
            flush_interval_s=self.flush_interval or config.stream.flush_interval,
            duration_s=self.duration,
            max_rejects=max_rejects,
            max_reject_bytes=max_reject_bytes or MAX_REJECT_BYTES,
        )

    def stream_options(
        self,
        config: Settings,
        venue: Venue,
        instruments: "Sequence[Instrument]",
        channels: list[str],
    ) -> "StreamOptions":
        """Build the options of the stream."""
        from k2cli.ingestion.stream import OVERLAP_S, StreamOptions

        return StreamOptions(
            venue=venue,
            instruments=instruments,
            channels=channels,
            home=config.home,
            connect_timeout_s=self.connect_timeout or config.stream.connect_timeout,
            stale_after_s=self.stale_after or config.stream.stale_after,
            silent_after_s=self.silent_after,
            max_messages=self.max_messages,
            overlap_s=OVERLAP_S if self.overlap is None else self.overlap,
            rollover_at=self.rollover_at,
        )


def stream_exchange(
    exchange: Exchange,
    *,
    symbols: Annotated[
        list[str] | None,
        typer.Option(
            "--symbols",
            "-s",
            help="Symbols to stream, comma-separated or repeated: BTCUSDT or BTC/USDT, patterns "
            "such as 'BTC*', all:USDT for a quote asset, all, or @FILE to read them (@- is stdin).",
            show_default="stream.symbols",
        ),
    ] = None,
    channels: list[str],
    market: str,
    url: Annotated[
        list[str] | None,
        typer.Option(
            "--url",
            help="Server URL such as ws://127.0.0.1:9443; repeat for failover, in that order.",
            show_default="the exchange's servers",
        ),
    ] = None,
    rest_url: Annotated[
        list[str] | None,
        typer.Option(
            "--rest-url",
            help="REST URL for lists of symbols and past trades; repeat for failover.",
            show_default="the exchange's API; none with --url",
        ),
    ] = None,
    to: Annotated[
        Destination | None,
        typer.Option(
            "--to",
            help="Target: the tables, Kafka topics, or stdout as ndjson.",
            show_default="kafka if it is configured, else table",
        ),
    ] = None,
    topic: TopicOpt = None,
    auto_register: AutoRegisterOpt = True,
    run: RunOptions,
    record: Annotated[
        Path | None,
        typer.Option(
            "--record",
            help="Also record every raw frame in this folder, for `k2 load frames`.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None,
    rejects: Path | None = None,
    max_rejects: Annotated[
        int | None,
        typer.Option("--max-rejects", min=0, help="Stop with exit code 6 above this many rejects."),
    ] = None,
    max_reject_bytes: MaxRejectBytesOpt = None,
    log: ViewLogOptions,
    metrics_address: MetricsOpt = None,
    summary: SummaryOpt = output.Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Stream trades and quotes from {title}, exactly once, until stopped.

    SIGINT, SIGTERM and SIGHUP end it cleanly after a last commit; a second signal ends it
    immediately. Lost connections are reopened; rows already in the table are not stored twice, and
    gaps in the trade ids are filled from the exchange's REST API. With --to kafka a trade is sent
    once, and counts once the brokers have acknowledged it; k2 waits during outages of the brokers.

    Example: k2 stream {name} {example}
    """
    for each in (*(url or ()), *(rest_url or ())):
        remember_secrets({"url": each})
    config, venue = settings(home), exchange.venues[market].at(url or (), rest_url or ())
    target = to or _usual_destination(config, servers)
    chosen = _channels(venue, channels, topic)
    selected = _select(venue, symbols, config)
    return_freed_memory()
    from k2cli.ingestion.recorder import RecorderOptions
    from k2cli.pipelines.feed import FeedOptions

    options = FeedOptions(
        stream=run.stream_options(config, venue, selected.instruments, chosen),
        policy=run.policy(config, max_rejects, max_reject_bytes),
        rejects=rejects or config.home / "rejects" / f"stream-{exchange.name}.ndjson",
        selected=selected,
        record=None
        if record is None
        else RecorderOptions(folder=record, source=f"{exchange.name}-{market}", run=config.run),
        produce=servers.produce_options(config, topic, is_registering=auto_register)
        if target is _KAFKA
        else None,
        out=sys.stdout.buffer if target is _STDOUT else None,
        backfill=run.backfill or config.stream.backfill,
    )
    title = None if log.log_format or target is _STDOUT else f"{venue.exchange} {','.join(chosen)}"
    _run(options, config, log, title, metrics_address, summary)


def _run(
    options: "FeedOptions",
    config: Settings,
    logging: ViewLogOptions,
    title: str | None,
    metrics_address: Address | None,
    summary: output.Summary,
) -> None:
    """Run a feed to its end and print its totals; `title` is for the live view, if any."""
    from k2cli.pipelines.feed import open_feed

    venue, is_printed = options.stream.venue, options.out is not None
    with (
        ExitStack() as files,
        logging.open(files, config.run).ending() as log,
        ExitStack() as stack,
    ):
        monitor = open_monitor(stack, log, stream_title=title, metrics=metrics_address)
        remember_series(config, ((venue.exchange, i.symbol) for i in options.stream.instruments))
        feed = stack.enter_context(open_feed(options, config, monitor.observe))
        if monitor.live:
            monitor.live.watch_servers(lambda: feed.servers)
        stack.enter_context(stopped_by_signals(feed.pump.stop))
        try:
            freeze_loaded_objects()
            on_batch = monitor.follow_pump(feed.pump)
            monitor.watch_stream(feed)
            feed.pump.run(on_batch)
        finally:
            feed.report_missing()
            stack.close()
            output.summary(feed.summarize(), summary, is_data_on_stdout=is_printed, log=log)
        feed.check_connected(options.policy.duration_s)
        feed.check_recorded()


def _usual_destination(config: Settings, servers: ServerOptions) -> Destination:
    is_clustered = bool(servers.kafka_settings(config).get(BOOTSTRAP))
    return _KAFKA if is_clustered else Destination.TABLE


def _select(venue: Venue, symbols: list[str] | None, config: Settings) -> "Selected":
    """Resolve the symbols of the option, or of the settings."""
    from k2cli.ingestion.selection import parse_selection, read_words
    from k2cli.ingestion.trading import select

    words = read_words(config.stream.symbols if symbols is None else symbols)
    if not words:
        raise typer.BadParameter(
            "no symbol given; name some, or set stream.symbols", param_hint="--symbols"
        )
    selection = parse_selection(words, lambda text: venue.parse_symbol(text, config.home))
    return select(selection, venue, config.home)


def _channels(venue: Venue, names: list[str], topic: str | None) -> list[str]:
    channels = split_commas(names)
    for name in channels:
        if name not in venue.channels:
            raise typer.BadParameter(
                f"{name!r} is not one of {', '.join(venue.channels)}", param_hint="--channels"
            )
    if not channels:
        raise typer.BadParameter("no channel given", param_hint="--channels")
    if topic is not None and len(channels) > 1:
        raise typer.BadParameter("a topic takes the rows of one channel only", param_hint="--topic")
    return channels


def add_exchange(app: typer.Typer, exchange: Exchange) -> None:
    """Add the command that streams from an exchange, with this exchange's choices."""
    market, *other_markets = exchange.markets

    run = takes_groups(stream_exchange)

    def command(**given: Any) -> None:
        run(exchange=exchange, **{"market": market, "rest_url": None, **given})

    parameters = dict(inspect.signature(run).parameters)
    del parameters["exchange"]
    for name, (option, default) in _own_options(exchange).items():
        parameters[name] = parameters[name].replace(annotation=option, default=default)
    if not other_markets:
        del parameters["market"]
    if not any(venue.rest_urls for venue in exchange.venues.values()):
        del parameters["rest_url"]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters.values()]
    )
    command.__annotations__ = {name: each.annotation for name, each in parameters.items()}
    command.__doc__ = inspect.cleandoc(stream_exchange.__doc__ or "").format(
        title=exchange.title, name=exchange.name, example=exchange.example
    )
    app.command(exchange.name)(command)


def _own_options(exchange: Exchange) -> dict[str, tuple[Any, Any]]:
    """Return the options that differ between exchanges: their declarations and defaults."""
    channels = [f"{name} ({kind})" for name, kind in exchange.channels.items()]
    names = {name.upper(): name for name in exchange.markets}
    markets = StrEnum("Market", names)  # type: ignore[misc]
    rejects = rejects_option("rejected frames", f"stream-{exchange.name}")
    listed = f"Channels, comma-separated: {', '.join(channels)}."
    return {
        "channels": (
            Annotated[list[str], typer.Option("--channels", help=listed)],
            [next(iter(exchange.channels))],
        ),
        "market": (
            Annotated[markets, typer.Option("--market", help=exchange.about_markets)],
            markets(exchange.markets[0]),
        ),
        "rejects": (Annotated[Path | None, rejects], None),
    }


for _exchange in EXCHANGES.values():
    add_exchange(stream_app, _exchange)
