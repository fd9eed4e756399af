"""`k2 demo`: stream, store and query in half a minute, offline."""

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from k2cli.commands.options import settings
from k2cli.commands.terminal import output
from k2cli.commands.terminal.events import RunLog
from k2cli.commands.terminal.streams import note
from k2cli.config import Settings
from k2cli.ingestion.binance.venues import VENUES, Channel
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.query.formats import Format

if TYPE_CHECKING:
    from k2cli.flow import Totals

_SYMBOLS: Final = ("BTCUSDT", "ETHUSDT", "SOLUSDT", "BNBEUR")
_RATE: Final = 4000.0  # frames per second
_HISTORY_S: Final = 3600.0  # the market's last hour ...
_SHARE: Final = (
    0.5  # ... is played in this share of the time, so that the newest trades are current
)


def demo(
    home: Annotated[
        Path | None,
        typer.Option(
            "--home",
            help="Folder for the tables of the demo.",
            show_default="demo in the home folder",
        ),
    ] = None,
    seconds: Annotated[
        float, typer.Option("--seconds", min=1, max=20, help="How long to stream.")
    ] = 6,
) -> None:
    """Show k2 at work: stream from a simulated exchange into tables, and query them.

    It needs no network and no other software. Run it as often as you like: every run adds to the
    tables.

    Example: k2 demo
    """
    config = settings(home or settings().home / "demo")
    _say(1, f"streaming {', '.join(_SYMBOLS)} from a simulated exchange into {config.home}")
    totals = _stream(config, seconds)
    note(
        f"{totals.messages:,} messages became {totals.rows:,} rows in {totals.commits} commits, "
        f"{totals.rejects} rejects, {totals.missing} missing, {totals.duplicates} duplicates"
    )
    _ask(config)
    _say(5, "try it yourself:")
    flag = f" --home {config.home}"
    for command in (
        f"k2 query trades --symbol BTCUSDT --start -15m --limit 10{flag}",
        f"k2 query trades --symbol ETHUSDT -o eth.parquet{flag}",
        f'k2 query sql "select symbol, sum(quantity) from trades group by all"{flag}',
        "k2 simulate binance --port 9443    # and in another terminal:",
        "k2 stream binance --symbols BTCUSDT,ETHUSDT --url ws://127.0.0.1:9443",
        "k2 stream binance --symbols BTCUSDT,ETHUSDT    # the real exchange",
    ):
        note(f"   {command}")


def _say(step: int, text: str) -> None:
    note(f"\n{step}. {text}")


def _stream(config: Settings, seconds: float) -> "Totals":
    from k2cli.commands.monitor import open_monitor
    from k2cli.ingestion.stream import ExchangeStream, StreamOptions
    from k2cli.pipelines.sinks import TableSink
    from k2cli.pipelines.stream import Pump, PumpPolicy
    from k2cli.rejects import RejectLog
    from k2cli.simulator import SimulatorOptions, running_simulator
    from k2cli.storage.lake import open_lake

    venue = VENUES[Market.SPOT]
    market = SimulatorOptions(
        rate=_RATE, history_s=_HISTORY_S, speed=_HISTORY_S / (seconds * _SHARE)
    )
    with ExitStack() as stack:
        lake = stack.enter_context(open_lake(config, create=True))
        simulator = stack.enter_context(running_simulator(market))  # its clock starts here
        rejects = stack.enter_context(
            RejectLog(config.home / "rejects" / "demo.ndjson", run=config.run)
        )
        title = f"{venue.exchange} at {simulator.url}"
        monitor = open_monitor(stack, RunLog(run=config.run), stream_title=title)
        observe = monitor.observe
        options = StreamOptions(
            venue=venue.at([simulator.url], ()),
            instruments=[parse_symbol(symbol, Market.SPOT) for symbol in _SYMBOLS],
            channels=list(Channel),
        )
        pump = Pump(
            source=ExchangeStream(options=options, observe=observe),
            sink=TableSink(lake=lake, exchange=venue.exchange, observe=observe),
            rejects=rejects,
            policy=PumpPolicy(flush_rows=100_000, flush_interval_s=2, duration_s=seconds),
            observe=observe,
        )
        return pump.run(monitor.follow_pump(pump))


def _ask(config: Settings) -> None:
    from k2cli.answers import LakeReader
    from k2cli.commands.terminal.chart import candles
    from k2cli.query.selection import Selection

    out = output.Output(format=Format.TABLE)
    with LakeReader(config) as reader:
        _say(2, "k2 query trades --order desc --limit 5")
        columns = ("timestamp", "symbol", "side", "price", "quantity", "trade_id")
        out.write(reader.trades(columns=columns, order="desc", limit=5), is_limited=True)
        _say(3, "one-minute bars of BTCUSDT")
        bars = reader.bars(Selection(symbols=["BTCUSDT"])).arrow()
        width = min(shutil.get_terminal_size().columns, 100)
        output.chart(candles(bars.slice(max(bars.num_rows - 60, 0)), title="BTCUSDT", width=width))
        _say(4, "k2 query symbols")
        out.write(reader.symbols(), is_limited=True)
