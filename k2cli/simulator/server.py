"""The simulated exchange as a server: on an event loop, or in a thread."""

import asyncio
import contextlib
import errno
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import replace
from typing import Any, Final

import numpy as np

from k2cli.errors import BadData, Unavailable, UsageError
from k2cli.files import reading
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.recordings import Damage, read_recordings
from k2cli.ingestion.symbols import Instrument, parse_symbol
from k2cli.simulator.connection import Connection
from k2cli.simulator.instruments import PAIRS
from k2cli.simulator.market import CHANNELS, SyntheticMarket, first_id_at
from k2cli.simulator.options import FrameSource, SimulatorOptions
from k2cli.simulator.publication import LiveMarket
from k2cli.simulator.recording import PlayClock, Recording
from k2cli.simulator.rest import Rest
from k2cli.simulator.wire import Route, exchange_info
from k2cli.symbols import fold_symbol, is_asset

_WRITE_BUFFER_BYTES: Final = 1 << 18
_ACCEPTING_TURNS: Final = 5  # event loop iterations until an incoming connection is served
_MAX_HEAD_BYTES: Final = 1 << 20  # a URL may name 1024 streams
_SECOND_US: Final = 1_000_000
_MAX_PATHS: Final = 10_000


class Simulator:
    """A running exchange and its counters. Created by `open_simulator`."""

    def __init__(
        self, *, options: SimulatorOptions, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.options = options
        self.clock = clock  # of the market, rates, pings and limits
        self.connections = 0  # opened so far
        self.frames_sent = 0  # market frames, over all connections
        self.paths: list[str] = []  # of all handshakes, including refused ones
        self.rest_paths: deque[str] = deque(maxlen=_MAX_PATHS)  # of the latest REST requests
        self.info_requests = 0  # answered so far
        self.url = ""
        self._listed = {i.symbol: i for i in _listed(options)}
        self._statuses: dict[str, str] = {}  # of symbols that do not trade
        self.exchange_info = exchange_info(list(self._listed.values()))
        self._accepted = 0  # connections, also those that are never answered
        self._started_us = time.time_ns() // 1000
        self._started_s = clock()
        self._stopped_us: int | None = None
        self._market = _market(options, self._started_us)
        info_path = VENUES[options.market].info_path
        self.rest = Rest(self, self._market, info_path.rpartition("/")[0])
        self._stopped: dict[str, deque[int]] = {}  # path -> recorded lines to skip, in order
        self._open: dict[asyncio.Task[None], Connection] = {}

    @property
    def open_connections(self) -> int:
        """The number of connected clients."""
        return len(self._open)

    def list_symbols(self, *symbols: str) -> None:
        """Trade more symbols, or delisted ones again. Any thread."""
        for symbol in symbols:
            instrument = parse_symbol(symbol, self.options.market)
            self._listed[instrument.symbol] = instrument
            self._statuses.pop(instrument.symbol, None)
            self._market.open(instrument.symbol)
        self.exchange_info = exchange_info(list(self._listed.values()), self._statuses)

    def delist_symbols(self, *symbols: str, status: str = "BREAK") -> None:
        """End symbols: they stay listed with a status, and new subscriptions are silent."""
        for symbol in symbols:
            self._statuses[symbol] = status
            self._market.close(symbol)
        self.exchange_info = exchange_info(list(self._listed.values()), self._statuses)

    def market_time_us(self) -> int:
        """Return the market's time: now, or between `history_s` ago and now."""
        if self._stopped_us is not None:
            return self._stopped_us
        passed_us = self.utc_s() * _SECOND_US - self._started_us
        began_us = self._started_us - self.options.history_s * _SECOND_US
        return int(min(self._started_us + passed_us, began_us + passed_us * self.options.speed))

    def utc_s(self) -> float:
        """Return the time in UTC seconds; steps of the machine's clock do not change it."""
        return self._started_us / _SECOND_US + self.clock() - self._started_s

    def stop_market(self) -> None:
        """Stop the clock of a live market: nothing more is published."""
        self._stopped_us = self.market_time_us()

    def change(self, **over: Any) -> None:
        """Change options that concern faults and limits, for open connections, too."""
        self.options = replace(self.options, **over)

    @property
    def rest_url(self) -> str:
        """The URL of the REST side."""
        return self.url.replace("ws", "http", 1)

    def published(self) -> Mapping[str, range]:
        """Return the ids that each listed symbol's trades have so far; see `unlisted`."""
        now_us, first_id = self.market_time_us(), self._market.first_id
        found = {i.symbol: self._market.published(i.symbol, now_us) for i in self._listed.values()}
        return {symbol: range(first_id, ids.stop) if ids else ids for symbol, ids in found.items()}

    def unlisted(self, ids: range) -> list[int]:
        """Return those of these ids that no stream and no REST answer has."""
        numbers = np.arange(ids.start, ids.stop, dtype=np.int64)
        missing: list[int] = np.setdiff1d(numbers, self._market.listed(numbers)).tolist()
        return missing

    def is_answering(self) -> bool:
        """Count a connection; return whether it is answered."""
        self._accepted += 1
        every = self.options.half_open_every
        return every is None or self._accepted % every != 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connected client."""
        writer.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        connection = Connection(self, reader, writer)
        task = asyncio.create_task(connection.serve())
        self._open[task] = connection
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        del self._open[task]
        if not task.cancelled() and (exc := task.exception()) is not None:
            task.get_loop().call_exception_handler(
                {"message": "a connection of the simulator failed", "exception": exc}
            )

    async def end_connections(self) -> None:
        """Disconnect every client immediately."""
        tasks = list(self._open)
        for task, connection in self._open.items():
            connection.go_away()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # until their sockets are closed

    def open_source(self, path: str, route: Route) -> FrameSource:
        """Open the frames for a new connection."""
        if self.options.frames is None:
            return self._market.play(is_combined=route.is_combined, is_micros=route.is_micros)
        speed = self.options.frames_speed
        return Recording(
            self.options.frames,
            is_combined=route.is_combined,
            is_looped=self.options.loop,
            position=self._resume_position(path),
            pace=PlayClock(speed, self.clock) if speed else None,
        )

    def resume_from(self, path: str, position: int) -> None:
        """Make the next connection of the same path continue after this many lines."""
        self._stopped.setdefault(path, deque()).append(position)

    def _resume_position(self, path: str) -> int:
        stopped = self._stopped.get(path)
        return stopped.popleft() if stopped else 0


def _listed(options: SimulatorOptions) -> list[Instrument]:
    """Return the symbols that `exchangeInfo` lists: those with a known split."""
    instruments = []
    for symbol in options.symbols or PAIRS[options.market]:
        with contextlib.suppress(UsageError):
            instruments.append(parse_symbol(symbol, options.market))
    return instruments


def _market(options: SimulatorOptions, started_us: int) -> SyntheticMarket:
    first_id = first_id_at(started_us) if options.first_id is None else options.first_id
    live = None
    if options.live_rate is not None:
        live = LiveMarket(
            first_id=first_id,
            began_us=started_us - int(options.history_s * _SECOND_US),
            rate=options.live_rate,
            jump_us=int(options.clock_jump_s * _SECOND_US),
            jump_every=options.clock_jump_every,
        )
    return SyntheticMarket(
        first_id=first_id,
        seed=options.seed,
        kind=options.market,
        symbols=options.symbols,
        channels=options.channels,
        unlisted_every=options.unlisted_every,
        live=live,
    )


def _check(options: SimulatorOptions) -> None:
    for symbol in options.symbols:
        if symbol != fold_symbol(symbol) or not all(map(is_asset, symbol.split("_", 1))):
            raise UsageError(
                f"{symbol!r} is not a symbol", hint="use for example --symbols BTCUSDT,ETHUSDT"
            )
    for channel in options.channels:
        if channel not in CHANNELS:
            raise UsageError(
                f"{channel!r} is not a channel", hint=f"--channels {','.join(CHANNELS)}"
            )
    if options.live_rate is not None and options.rate is not None:
        raise UsageError("a live market has its own rate", hint="use --live or --rate")
    if options.frames is None:
        return
    if options.live_rate is not None:
        raise UsageError("a recording is not live", hint="use --live or --frames")
    with reading(options.frames):
        next(read_recordings(options.frames, _refuse), None)


def _refuse(damage: Damage) -> None:
    raise BadData(f"{damage.path} is damaged at byte {damage.position}: {damage.reason}")


@contextlib.asynccontextmanager
async def open_simulator(
    options: SimulatorOptions, *, clock: Callable[[], float] = time.monotonic
) -> AsyncIterator[Simulator]:
    """Run a simulator on this event loop.

    Raises:
        UsageError: invalid symbol or channel.
        NotFound: the recording does not exist.
        BadData: the recording cannot be read.
        Unavailable: the port is in use, or cannot be opened.
    """
    _check(options)
    simulator = Simulator(options=options, clock=clock)
    try:
        server = await asyncio.start_server(
            simulator.accept,
            options.host,
            options.port,
            ssl=options.ssl,
            limit=_MAX_HEAD_BYTES,
        )
    except OSError as exc:
        is_taken = exc.errno == errno.EADDRINUSE
        reason = "the port is in use" if is_taken else exc.strerror or str(exc)
        raise Unavailable(
            f"cannot listen on {options.host}:{options.port}: {reason}",
            hint="--port 0 chooses a free port" if is_taken else None,
        ) from exc
    port = server.sockets[0].getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    simulator.url = f"{'wss' if options.ssl else 'ws'}://{host}:{port}"
    try:
        yield simulator
    finally:
        server.close()
        for _ in range(_ACCEPTING_TURNS):  # includes clients that have just connected
            await asyncio.sleep(0)
        await simulator.end_connections()


@contextlib.contextmanager
def running_simulator(options: SimulatorOptions) -> Iterator[Simulator]:
    """Run a simulator in a thread, for callers without an event loop.

    Raises the errors of `open_simulator`.
    """
    started: Future[tuple[Simulator, Callable[[], object]]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        async with open_simulator(options) as simulator:
            started.set_result((simulator, lambda: loop.call_soon_threadsafe(stop.set)))
            await stop.wait()

    with ThreadPoolExecutor(1, thread_name_prefix="simulator") as executor:
        ended = executor.submit(asyncio.run, run())
        either: tuple[Future[Any], ...] = (started, ended)
        wait_for_futures(either, return_when=FIRST_COMPLETED)
        if ended.done():
            ended.result()
        simulator, stop = started.result()
        try:
            yield simulator
        finally:
            stop()
            ended.result()
