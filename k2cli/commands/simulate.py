"""`k2 simulate`: simulate an exchange on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.options import DURATION
from k2cli.commands.terminal.streams import note
from k2cli.errors import Unavailable
from k2cli.files import replace_file
from k2cli.ingestion.symbols import Market
from k2cli.symbols import fold_symbol, split_commas

if TYPE_CHECKING:
    from k2cli.simulator import Simulator, SimulatorOptions

simulate_app = typer.Typer(
    no_args_is_help=True, help="Simulate an exchange on this machine, to try and test k2."
)


_MARKET = "Market"
_PACE = "Pace"
_FAULTS = "Faults"
_REST = "REST"


def _count(help_text: str, *, least: int = 1, panel: str = _FAULTS) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help_text, min=least, rich_help_panel=panel, show_default=False, metavar="N"
    )
    return option


def _names(help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        help=help_text, rich_help_panel=_FAULTS, show_default=False
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
    live: Annotated[
        float | None,
        typer.Option(
            help="Trade at this rate per second in every stream, whether a client is connected or "
            "not; a client that reconnects has missed trades.",
            min=0.001,
            max=1_000_000,
            metavar="RATE",
            show_default="on demand: the market waits for its clients",
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
    life: Annotated[
        float | None,
        typer.Option(
            help="Cut every connection after this time, as the exchange does after 24h.",
            show_default=False,
            rich_help_panel=_FAULTS,
            **DURATION,
        ),
    ] = None,
    silent_stream_after: Annotated[
        int | None,
        _count("Let one stream of each connection fall silent after N frames; the others go on."),
    ] = None,
    silent_symbols: Annotated[
        list[str] | None,
        _names("Symbols that send nothing, comma-separated; REST serves their trades."),
    ] = None,
    silent_routes: Annotated[
        list[str] | None,
        _names(
            "Routes of USD-M that accept connections but send nothing, comma-separated: /public, "
            "/market, or / for URLs without a route."
        ),
    ] = None,
    half_open_every: Annotated[
        int | None, _count("Never answer every N-th connection, REST included.", least=2)
    ] = None,
    unlisted_every: Annotated[
        int | None,
        _count(
            "Leave out ids divisible by N, on the streams and in REST answers.",
            least=2,
            panel=_REST,
        ),
    ] = None,
    weight_limit: Annotated[
        int | None,
        typer.Option(
            help="Request weight per minute, then 429 and 418; 0: no limit.",
            min=0,
            show_default="6000, futures 2400",
            rich_help_panel=_REST,
        ),
    ] = None,
    rest_fault_every: Annotated[
        int | None,
        _count(
            "Fail every N-th request for history, in turn with 500, 429, HTML, 503, a delay, a cut "
            "answer, no answer, 418 and 403.",
            panel=_REST,
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            help="Write which trade ids were published to this JSON file at the end.",
            metavar="FILE",
            show_default=False,
            rich_help_panel=_MARKET,
        ),
    ] = None,
) -> None:
    """Serve Binance's WebSocket streams and REST history from this machine.

    Plays a synthetic market, or a recording with --frames. Every connection plays the recording
    from its start, except that after a simulated cut the next connection with the same path
    continues where the previous one stopped. With --speed a pause of more than a minute lasts a
    minute. At the same address, REST serves exchangeInfo, time, and the synthetic trades published
    so far: historicalTrades and aggTrades.

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
        live_rate=live,
        life_s=life,
        silent_stream_after=silent_stream_after,
        silent_symbols=tuple(fold_symbol(symbol) for symbol in split_commas(silent_symbols or [])),
        silent_routes=tuple(route.rstrip("/") for route in split_commas(silent_routes or [])),
        half_open_every=half_open_every,
        unlisted_every=unlisted_every,
        weight_limit=weight_limit,
        rest_fault_every=rest_fault_every,
    )
    asyncio.run(_serve(options, truth))


async def _serve(options: "SimulatorOptions", truth: Path | None) -> None:
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
        if truth is not None:
            _write_truth(simulator, truth)


def _write_truth(simulator: "Simulator", path: Path) -> None:
    """Write the published trade ids: per symbol the first and the last, and those left out."""
    import json

    published = {symbol: ids for symbol, ids in simulator.published().items() if ids}
    document = {
        "symbols": {symbol: [ids[0], ids[-1]] for symbol, ids in published.items()},
        "unlisted_every": simulator.options.unlisted_every,
    }
    try:
        replace_file(path, json.dumps(document) + "\n")
    except OSError as exc:
        raise Unavailable(f"cannot write {path}: {exc.strerror or exc}") from exc
