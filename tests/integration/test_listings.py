"""Symbols that begin and end during a run, over real connections."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from websockets.asyncio.server import ServerConnection

from k2cli.ingestion.binance.venues import VENUES, BinanceVenue, Channel
from k2cli.ingestion.selection import parse_selection, read_words
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.ingestion.trading import fetch_trading, select
from k2cli.ingestion.watch import ListingWatch
from k2cli.simulator import Simulator, SimulatorOptions, running_simulator
from support.streamreading import Read
from support.streamreading import serving as serving_frames
from support.waiting import PATIENCE_S, wait_for

SPOT = VENUES[Market.SPOT]


def instrument(symbol: str) -> Instrument:
    return parse_symbol(symbol, Market.SPOT)


@contextmanager
def streaming(
    url: str, *symbols: str, venue: BinanceVenue = SPOT
) -> Iterator[tuple[ExchangeStream, Read]]:
    """Read a stream in a thread while the test changes it."""
    read = Read()
    options = StreamOptions(
        venue=replace(venue, urls=[url]),
        instruments=[instrument(symbol) for symbol in symbols],
        channels=[Channel.TRADE],
        stale_after_s=PATIENCE_S,
    )
    stream = ExchangeStream(
        options=options,
        observe=lambda event, /, **fields: read.events.append((event, fields)),
    )

    def run() -> None:
        for batch in stream.batches():
            read.batches.append(batch)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield stream, read
    finally:
        stream.stop()
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def counts(read: Read) -> Counter[str]:
    return Counter(
        symbol
        for batch in list(read.batches)
        for _, rows in batch.rows
        for symbol in rows["symbol"].to_pylist()
    )


def wait_for_more(read: Read, *symbols: str) -> None:
    """Wait until some more rows of each symbol have come."""
    before = counts(read)
    wait_for(lambda: all(counts(read)[each] > before[each] + 5 for each in symbols))


def is_quiet(read: Read, symbol: str) -> Callable[[], bool]:
    """A condition: no row of a symbol came for a while."""

    def check() -> bool:
        before = counts(read)[symbol]
        time.sleep(0.3)
        return counts(read)[symbol] == before

    return check


def test_symbols_begin_and_end_on_the_open_connection() -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=500)) as simulator,
        streaming(simulator.url, "BTCUSDT", "ETHUSDT") as (stream, read),
    ):
        wait_for_more(read, "BTCUSDT", "ETHUSDT")
        stream.change([instrument("XRP/USDT"), Instrument("币USDT", "币", "USDT")], [])
        wait_for_more(read, "BTCUSDT", "XRPUSDT", "币USDT")
        stream.change([], [instrument("ETHUSDT")])
        wait_for(is_quiet(read, "ETHUSDT"))
        wait_for_more(read, "BTCUSDT", "XRPUSDT")
        assert stream.silent_streams == []
        assert simulator.connections == 1
    assert read.rejects == 0  # the replies are neither
    assert [event for event, _ in read.events] == ["connected"]
    assert read.sessions == [0]


def test_streams_over_the_limit_get_a_connection_of_their_own() -> None:
    venue = replace(SPOT, limits=replace(SPOT.limits, streams=2))
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=200)) as simulator,
        streaming(simulator.url, "BTCUSDT", venue=venue) as (stream, read),
    ):
        wait_for_more(read, "BTCUSDT")
        more = [instrument(f"{base}USDT") for base in ("ETH", "XRP", "ADA", "SOL")]
        stream.change(more, [])
        wait_for_more(read, "BTCUSDT", *(each.symbol for each in more))
        wait_for(lambda: simulator.connections == 3)
        assert simulator.open_connections == 3
        stream.change([], more[1:3])  # of one connection, which ends
        wait_for(lambda: simulator.open_connections == 2)
        wait_for_more(read, "BTCUSDT", "ETHUSDT", "SOLUSDT")
    assert {event for event, _ in read.events} == {"connected"}
    assert read.sessions == [0]  # nothing was interrupted


def test_run_waits_for_symbols_when_none_is_left() -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=200)) as simulator,
        streaming(simulator.url, "BTCUSDT") as (stream, read),
    ):
        wait_for_more(read, "BTCUSDT")
        stream.change([], [instrument("BTCUSDT")])
        wait_for(lambda: simulator.open_connections == 0)
        stream.change([instrument("ETHUSDT")], [])
        wait_for_more(read, "ETHUSDT")
    assert [event for event, _ in read.events] == ["connected", "connected"]


def test_lost_connection_comes_back_with_the_changed_streams() -> None:
    paths: list[str] = []
    messages: list[str | bytes] = []

    async def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        paths.append(connection.request.path)
        if len(paths) == 1:
            messages.append(await connection.recv())
        else:
            await connection.wait_closed()

    with (
        serving_frames(handle) as url,
        streaming(url, "BTCUSDT") as (stream, _),
    ):
        wait_for(lambda: len(paths) == 1)
        stream.change([instrument("ETHUSDT")], [])
        wait_for(lambda: len(paths) == 2)
    assert messages == ['{"method":"SUBSCRIBE","params":["ethusdt@trade"],"id":1}']
    assert paths[1].startswith("/stream?streams=btcusdt@trade/ethusdt@trade&")


def test_new_connection_that_fails_does_not_end_the_run() -> None:
    """Only at the start a server that cannot be reached does."""
    venue = replace(SPOT, limits=replace(SPOT.limits, streams=1))
    options = SimulatorOptions(first_id=100, rate=200, max_streams=1)
    refused = Instrument("X", "X", "")  # a name that the exchange refuses

    class Venue(BinanceVenue):
        def stream_name(self, instrument: Instrument, channel: str) -> str:
            name = super().stream_name(instrument, channel)
            return "/".join([name, "btcusdt@trade"]) if instrument is refused else name

    failing = Venue(**{name: getattr(venue, name) for name in venue.__dataclass_fields__})
    with (
        running_simulator(options) as simulator,
        streaming(simulator.url, "BTCUSDT", venue=failing) as (stream, read),
    ):
        wait_for_more(read, "BTCUSDT")
        stream.change([refused], [])
        wait_for(lambda: "disconnected" in [event for event, _ in read.events])
        wait_for_more(read, "BTCUSDT")
    assert "HTTP 400" in read.values("disconnected", "reason")[0]


def test_inbound_limit_of_the_exchange_is_kept() -> None:
    """One message more in a second, and the simulator cuts the connection."""
    venue = replace(SPOT, limits=replace(SPOT.limits, streams=1000, url_bytes=100_000))
    options = SimulatorOptions(first_id=100, rate=2000, ping_interval_s=0.5)
    with (
        running_simulator(options) as simulator,
        streaming(simulator.url, "BTCUSDT", venue=venue) as (stream, read),
    ):
        wait_for_more(read, "BTCUSDT")
        for first in range(0, 700, 100):
            stream.change([instrument(f"N{n}USDT") for n in range(first, first + 100)], [])
        wait_for(lambda: len(counts(read)) == 701)
        assert stream.silent_streams == []
        assert simulator.connections == 1


def _rest(simulator: Simulator) -> BinanceVenue:
    return replace(SPOT, rest_urls=[simulator.url.replace("ws://", "http://")])


def test_selection_follows_what_the_exchange_lists(tmp_path: Path) -> None:
    options = SimulatorOptions(symbols=("BTCUSDT", "ETHUSDT", "ETHBTC"), first_id=100, rate=300)
    with running_simulator(options) as simulator:
        venue = _rest(simulator)
        selection = parse_selection(read_words(["all:USDT"]), venue.parse_symbol)
        selected = select(selection, venue, tmp_path)
        symbols = [each.symbol for each in selected.instruments]
        assert symbols == ["BTCUSDT", "ETHUSDT"]
        with streaming(simulator.url, *symbols, venue=venue) as (stream, read):
            watch = ListingWatch(
                selected=selected,
                fetch=lambda: fetch_trading(venue, tmp_path),
                streams=stream,
                observe=lambda event, /, **fields: read.events.append((event, fields)),
                interval_s=3600,
            )
            wait_for_more(read, *symbols)
            simulator.list_symbols("XRPUSDT", "XRP/BTC")
            watch.check()
            wait_for_more(read, "XRPUSDT")
            simulator.delist_symbols("ETHUSDT", status="CANCEL_ONLY")
            watch.check()
            watch.check()
            wait_for(is_quiet(read, "ETHUSDT"))
            wait_for_more(read, "BTCUSDT", "XRPUSDT")
    assert set(counts(read)) == {"BTCUSDT", "ETHUSDT", "XRPUSDT"}
    assert read.values("listed", "symbols") == ["XRPUSDT"]
    assert read.values("delisted", "symbols") == ["ETHUSDT"]
    assert read.rejects == 0
