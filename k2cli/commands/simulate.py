"""`k2 simulate`: play an exchange on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.options import DURATION
from k2cli.commands.terminal.streams import note
from k2cli.ingestion.symbols import Market
from k2cli.symbols import fold_symbol, split_commas

if TYPE_CHECKING:
    from k2cli.simulator import SimulatorOptions

simulate_app = typer.Typer(
    no_args_is_help=True, help="Play an exchange on this machine, to try k2 and to test it."
)


_MARKET = "Market"
_PACE = "Pace"
_FAULTS = "Faults"


def _count(help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help_text, min=1, rich_help_panel=_FAULTS, show_default=False, metavar="N"
    )
    return option


@simulate_app.command()
def binance(
    *,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)
    ] = 9443,
    symbols: Annotated[
        list[str] | None,
        typer.Option(
            help="Symbols that are traded, a comma list.",
            show_default="whatever is asked for",
            rich_help_panel=_MARKET,
        ),
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            help="Channels that are offered, a comma list.",
            show_default="trade,aggTrade,bookTicker",
            rich_help_panel=_MARKET,
        ),
    ] = None,
    market: Annotated[
        Market,
        typer.Option(help="Whose frame shapes to play.", rich_help_panel=_MARKET),
    ] = Market.SPOT,
    seed: Annotated[
        int,
        typer.Option(help="Same seed and id, same price.", min=0, rich_help_panel=_MARKET),
    ] = 0,
    first_id: Annotated[
        int | None,
        typer.Option(
            help="Id to begin with.",
            min=0,
            max=2**51,
            show_default="from the clock, so that a later run has higher ids",
            rich_help_panel=_MARKET,
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            help="Play a recording instead: one JSON frame a line, plain, .gz or .zst; "
            "a leading receive time is dropped.",
            show_default=False,
            rich_help_panel=_MARKET,
        ),
    ] = None,
    loop: Annotated[
        bool,
        typer.Option("--loop", help="Start the recording over at its end.", rich_help_panel=_PACE),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="End the market after N frames of a connection.",
            min=1,
            metavar="N",
            show_default=False,
            rich_help_panel=_PACE,
        ),
    ] = None,
    close_at_end: Annotated[
        bool,
        typer.Option(
            "--close-at-end",
            help="Close with 1000 at the end; else the connection stays open and silent.",
            rich_help_panel=_PACE,
        ),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Frames per second of a connection.",
            min=0.001,
            show_default="as fast as possible",
            rich_help_panel=_PACE,
        ),
    ] = None,
    history: Annotated[
        float | None,
        typer.Option(
            help="Begin the market's time so long ago, and let it run fast until it is now.",
            show_default=False,
            rich_help_panel=_PACE,
            **DURATION,
        ),
    ] = None,
    speed: Annotated[
        float, typer.Option(help="How fast --history runs.", min=1, rich_help_panel=_PACE)
    ] = 60,
    ping_interval: Annotated[
        float | None,
        typer.Option(
            help="Time between pings.", show_default="20s", rich_help_panel=_PACE, **DURATION
        ),
    ] = None,
    pong_timeout: Annotated[
        float | None,
        typer.Option(
            help="Cut a client that does not answer a ping.",
            show_default="60s",
            rich_help_panel=_PACE,
            **DURATION,
        ),
    ] = None,
    drop_after: Annotated[
        int | None, _count("Cut the TCP connection after N frames of a connection.")
    ] = None,
    silent_after: Annotated[
        int | None, _count("Stay open after N frames, but send nothing more, not even pings.")
    ] = None,
    shutdown_after: Annotated[
        int | None, _count("Send serverShutdown after N frames, then close half a second later.")
    ] = None,
    garbage_every: Annotated[
        int | None,
        _count("Put a frame that is broken (no JSON, no UTF-8, cut off, empty) after every N."),
    ] = None,
    skip_every: Annotated[
        int | None, _count("Leave out every N-th frame, so that its id is missing.")
    ] = None,
) -> None:
    """Play Binance's WebSocket streams from a local server.

    A synthetic market, or a recording with --frames. Every connection plays
    the recording from its start; but after a cut of the simulator's own, the
    next connection with the same path goes on where the cut one stopped.

    Example: k2 simulate binance --port 9443 --rate 50000
    """
    import asyncio

    from k2cli.simulator import SimulatorOptions
    from k2cli.simulator.market import CHANNELS

    options = SimulatorOptions(
        host=host,
        port=port,
        symbols=tuple(fold_symbol(symbol) for symbol in split_commas(symbols or [])),
        channels=tuple(split_commas(channels or [])) or CHANNELS,
        market=market,
        seed=seed,
        first_id=first_id,
        frames=frames,
        loop=loop,
        limit=limit,
        close_at_end=close_at_end,
        rate=rate,
        history_s=history or 0.0,
        speed=speed,
        ping_interval_s=ping_interval or 20.0,
        pong_timeout_s=pong_timeout or 60.0,
        drop_after=drop_after,
        silent_after=silent_after,
        shutdown_after=shutdown_after,
        garbage_every=garbage_every,
        skip_every=skip_every,
    )
    asyncio.run(_serve(options))


async def _serve(options: "SimulatorOptions") -> None:
    """Run until SIGINT, SIGTERM or SIGHUP, which stays ignored where it is, as under nohup."""
    import asyncio
    import signal

    from k2cli.simulator import open_simulator

    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with open_simulator(options) as simulator:
        note(f"listening on {simulator.url}")
        names = ",".join(options.symbols) or "BTCUSDT,ETHUSDT"
        note(f"connect with: k2 stream binance --url {simulator.url} --symbols {names}")
        await stop.wait()
