"""`k2 simulate`: simulate an exchange on this machine."""

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
    no_args_is_help=True, help="Simulate an exchange on this machine, to try and test k2."
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
        int, typer.Option(help="Port to listen on; 0 chooses a free one.", min=0, max=65535)
    ] = 9443,
    symbols: Annotated[
        list[str] | None,
        typer.Option(
            help="Symbols to trade, comma-separated.",
            show_default="any requested symbol",
            rich_help_panel=_MARKET,
        ),
    ] = None,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            help="Channels to offer, comma-separated.",
            show_default="trade,aggTrade,bookTicker",
            rich_help_panel=_MARKET,
        ),
    ] = None,
    market: Annotated[
        Market,
        typer.Option(help="Market whose frame format to send.", rich_help_panel=_MARKET),
    ] = Market.SPOT,
    seed: Annotated[
        int,
        typer.Option(
            help="Seed of the prices: the same seed and id give the same price.",
            min=0,
            rich_help_panel=_MARKET,
        ),
    ] = 0,
    first_id: Annotated[
        int | None,
        typer.Option(
            help="First id.",
            min=0,
            max=2**51,
            show_default="from the clock, so a later run has higher ids",
            rich_help_panel=_MARKET,
        ),
    ] = None,
    frames: Annotated[
        Path | None,
        typer.Option(
            help="Play a recording instead: a file or folder of `k2 stream --record`, or one "
            "frame per line, plain, .gz or .zst. See --speed.",
            show_default=False,
            rich_help_panel=_MARKET,
        ),
    ] = None,
    loop: Annotated[
        bool,
        typer.Option("--loop", help="Restart the recording at its end.", rich_help_panel=_PACE),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            help="End the market after N frames per connection.",
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
            help="Close with code 1000 at the end instead of staying open and silent.",
            rich_help_panel=_PACE,
        ),
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(
            help="Frames per second and connection.",
            min=0.001,
            show_default="as fast as possible",
            rich_help_panel=_PACE,
        ),
    ] = None,
    history: Annotated[
        float | None,
        typer.Option(
            help="Start the market clock this long ago and fast-forward to now.",
            show_default=False,
            rich_help_panel=_PACE,
            **DURATION,
        ),
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(
            help="Speed factor of --history, or of a recording: 1 plays it at its own pace.",
            min=1,
            show_default="60 for --history; recordings as fast as possible",
            rich_help_panel=_PACE,
        ),
    ] = None,
    ping_interval: Annotated[
        float | None,
        typer.Option(
            help="Interval between pings.", show_default="20s", rich_help_panel=_PACE, **DURATION
        ),
    ] = None,
    pong_timeout: Annotated[
        float | None,
        typer.Option(
            help="Disconnect a client that does not answer a ping in this time.",
            show_default="60s",
            rich_help_panel=_PACE,
            **DURATION,
        ),
    ] = None,
    drop_after: Annotated[int | None, _count("Cut the TCP connection after N frames.")] = None,
    silent_after: Annotated[
        int | None, _count("Stay open after N frames, but send nothing more, not even pings.")
    ] = None,
    shutdown_after: Annotated[
        int | None, _count("Send serverShutdown after N frames, then close half a second later.")
    ] = None,
    garbage_every: Annotated[
        int | None,
        _count(
            "Send an invalid frame (not JSON, not UTF-8, truncated, empty) after every N frames."
        ),
    ] = None,
    skip_every: Annotated[
        int | None, _count("Skip every N-th frame, so that its id is missing.")
    ] = None,
) -> None:
    """Serve Binance's WebSocket streams from this machine.

    Plays a synthetic market, or a recording with --frames. Every connection plays the recording
    from its start, except that after a simulated cut the next connection with the same path
    continues where the previous one stopped. With --speed a pause of more than a minute lasts a
    minute.

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
        frames_speed=speed,
        speed=speed or 60.0,
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
    """Run until SIGINT, SIGTERM or SIGHUP, which stays ignored if it is, as under nohup."""
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
