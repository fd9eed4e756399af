"""`k2 stream`: an exchange's live feed into the tables, to Kafka or to stdout.

Every exchange has a command, with its markets and channels.
"""

import inspect
import sys
from contextlib import ExitStack
from dataclasses import dataclass
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
from k2cli.config import BOOTSTRAP, Settings
from k2cli.ingestion.exchange import Exchange, Venue
from k2cli.ingestion.exchanges import EXCHANGES
from k2cli.memory import freeze_loaded_objects, return_freed_memory
from k2cli.redaction import remember_secrets
from k2cli.symbols import split_commas

if TYPE_CHECKING:
    from k2cli.ingestion.stream import StreamOptions
    from k2cli.ingestion.symbols import Instrument
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
        self, config: Settings, venue: Venue, instruments: "list[Instrument]", channels: list[str]
    ) -> "StreamOptions":
        """Build the options of the stream."""
        from k2cli.ingestion.stream import StreamOptions

        return StreamOptions(
            venue=venue,
            instruments=instruments,
            channels=channels,
            urls=venue.urls,
            home=config.home,
            connect_timeout_s=self.connect_timeout or config.stream.connect_timeout,
            stale_after_s=self.stale_after or config.stream.stale_after,
            silent_after_s=self.silent_after,
            max_messages=self.max_messages,
        )


def stream_exchange(
    exchange: Exchange,
    *,
    symbols: Annotated[
        list[str],
        typer.Option(
            "--symbols",
            "-s",
            help="Symbols to stream, comma-separated or repeated: BTCUSDT or BTC/USDT.",
            show_default=False,
        ),
    ],
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
    immediately. Lost connections are reopened; rows already in the table are not stored twice. With
    --to kafka a trade is sent once per run, and counts once the brokers have acknowledged it; k2
    waits during outages of the brokers.

    Example: k2 stream {name} {example}
    """
    for each in (*(url or ()), *(rest_url or ())):
        remember_secrets({"url": each})
    config, venue = settings(home), exchange.venues[market].at(url or (), rest_url or ())
    target = to or _usual_destination(config, servers)
    instruments = _instruments(venue, symbols, config)
    chosen = _channels(venue, channels, topic)
    return_freed_memory()
    from k2cli.pipelines.feed import FeedOptions

    options = FeedOptions(
        stream=run.stream_options(config, venue, instruments, chosen),
        policy=run.policy(config, max_rejects, max_reject_bytes),
        rejects=rejects or config.home / "rejects" / f"stream-{exchange.name}.ndjson",
        produce=servers.produce_options(config, topic, is_registering=auto_register)
        if target is _KAFKA
        else None,
        out=sys.stdout.buffer if target is _STDOUT else None,
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
        stack.enter_context(stopped_by_signals(feed.pump.stop))
        try:
            freeze_loaded_objects()
            feed.pump.run(monitor.follow_pump(feed.pump))
        finally:
            feed.stream.report_silent_streams()
            stack.close()
            output.summary(feed.summarize(), summary, is_data_on_stdout=is_printed, log=log)
        feed.check_connected(options.policy.duration_s)


def _usual_destination(config: Settings, servers: ServerOptions) -> Destination:
    is_clustered = bool(servers.kafka_settings(config).get(BOOTSTRAP))
    return _KAFKA if is_clustered else Destination.TABLE


def _instruments(venue: Venue, symbols: list[str], config: Settings) -> "list[Instrument]":
    instruments = [venue.parse_symbol(symbol, config.home) for symbol in split_commas(symbols)]
    if not instruments:
        raise typer.BadParameter("no symbol given", param_hint="--symbols")
    return instruments


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
