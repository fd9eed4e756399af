"""A local server that plays the exchange: its protocol, its limits and its bad days.

Frames are made in blocks (`market.py`), framed by hand and given to the transport as one piece;
`websockets` does the handshake and the control frames. Everything runs on one event loop.
"""

import asyncio
import contextlib
import errno
import logging
import re
import struct
import sys
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for_futures
from dataclasses import dataclass
from itertools import cycle
from operator import itemgetter
from pathlib import Path
from ssl import SSLContext
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

import msgspec
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from k2cli.errors import BadData, NotFound, Unavailable, UsageError
from k2cli.ingestion.binance.market import (
    CHANNELS,
    FrameSource,
    Market,
    MarketKind,
    Recording,
    first_id_at,
    recorded_lines,
)

_log = logging.getLogger(__name__)

_BLOCK_FRAMES: Final = 1000
_WRITE_BUFFER_BYTES: Final = 1 << 18
_MOST_HEAD_BYTES: Final = 1 << 20  # a URL may name 1024 streams
_HANDSHAKE_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0
_REQUEST_WORDS: Final = 3  # GET, path, HTTP/1.1
_BURST_S: Final = 0.01
_MOST_BEHIND_S: Final = 1.0
_SYMBOL: Final = re.compile(r"[A-Z0-9]+(_[A-Z0-9]+)?")
_STREAM: Final = re.compile(r"([a-z0-9_]+@|!)[a-zA-Z0-9_]+(@[a-zA-Z0-9_]+)?")

# What --garbage-every puts between the frames, in turn.
GARBAGE: Final = (
    b"not json at all",
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":17231613480',
    b"\xff\xfe{\x00\x80}",
    b'{"e":"trade","s":null,"t":"x","p":12.5}',
    b"",
    b"[1,2,3]",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """What the simulated exchange plays, how fast, and how it misbehaves.

    Counts of frames are market frames of one connection; garbage does not count. Of
    `drop_after`, `silent_after`, `shutdown_after` and `limit`, the smallest ends a connection.
    """

    host: str = "127.0.0.1"
    port: int = 0  # 0 takes a free one
    ssl: SSLContext | None = None
    market: MarketKind = MarketKind.SPOT
    symbols: tuple[str, ...] = ()  # none: whatever is asked for
    channels: tuple[str, ...] = CHANNELS
    seed: int = 0
    first_id: int | None = None  # none: from the clock
    frames: Path | None = None  # a recording, instead of the synthetic market
    loop: bool = False
    limit: int | None = None  # frames of a connection, then the market has ended
    close_at_end: bool = False
    rate: float | None = None  # frames/s of a connection; none: as fast as possible
    drop_after: int | None = None
    silent_after: int | None = None
    shutdown_after: int | None = None
    shutdown_grace_s: float = 0.5
    garbage_every: int | None = None
    skip_every: int | None = None
    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    max_streams: int = 1024
    max_inbound_per_s: int = 5


# --- the protocol --------------------------------------------------------------------------


class RefusedPath(Exception):
    """A handshake that the exchange answers with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What the path of a handshake asks for."""

    streams: tuple[str, ...]
    is_combined: bool
    is_micros: bool


def parse_path(path: str, *, max_streams: int) -> Route:
    """Read a handshake's path.

    /ws/btcusdt@trade    /ws/btcusdt@trade/ethusdt@trade?timeUnit=MICROSECOND    /ws
    /stream?streams=btcusdt@trade/ethusdt@bookTicker    /stream

    Raises:
        RefusedPath: 404 for an unknown path, 400 for a malformed name or too many streams.
    """
    url = urlsplit(path)
    query = parse_qs(url.query)
    if url.path == "/stream":
        names = query.get("streams", [""])[0]
    elif url.path == "/ws" or url.path.startswith("/ws/"):
        names = url.path.removeprefix("/ws").replace("%40", "@")
    else:
        raise RefusedPath(404, f"no such path: {url.path}")
    streams = tuple(dict.fromkeys(name for name in names.split("/") if name))
    for name in streams:
        if _STREAM.fullmatch(name) is None:
            raise RefusedPath(400, f"invalid stream name: {name[:80]}")
    if len(streams) > max_streams:
        raise RefusedPath(400, f"{len(streams)} streams, at most {max_streams} a connection")
    unit = query.get("timeUnit", ["MILLISECOND"])[0].upper()
    if unit not in ("MILLISECOND", "MICROSECOND"):
        raise RefusedPath(400, f"invalid timeUnit: {unit[:80]}")
    return Route(
        streams=streams,
        is_combined=url.path == "/stream",
        is_micros=unit == "MICROSECOND",
    )


class RefusedRequest(Exception):
    """A control message that the exchange answers with an error."""

    def __init__(self, code: int, message: str, request_id: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


def answer_control(text: bytes, streams: dict[str, None], *, max_streams: int) -> bytes:
    """Carry out a control message on the subscribed streams, and return the reply.

    {"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1} -> {"result":null,"id":1}
    """
    try:
        request_id, result = _carry_out(text, streams, max_streams)
    except RefusedRequest as exc:
        reply: dict[str, object] = {"code": exc.code, "msg": str(exc), "id": exc.request_id}
    else:
        reply = {"result": result, "id": request_id}
    return msgspec.json.encode(reply)


def _carry_out(text: bytes, streams: dict[str, None], max_streams: int) -> tuple[object, object]:
    try:
        request = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RefusedRequest(3, f"Invalid JSON: {exc}") from exc
    if not isinstance(request, dict):
        raise RefusedRequest(2, "Invalid request: expected an object")
    request_id, method = request.get("id"), request.get("method")
    if not (request_id is None or isinstance(request_id, int | str)):
        raise RefusedRequest(2, "Invalid request: request ID must be an unsigned integer")
    match method:
        case "LIST_SUBSCRIPTIONS":
            return request_id, list(streams)
        case "SUBSCRIBE" | "UNSUBSCRIBE":
            names = _stream_names(request.get("params"), request_id)
        case _:
            raise RefusedRequest(2, f"Invalid request: unknown variant {method}", request_id)
    if method == "UNSUBSCRIBE":
        for name in names:
            streams.pop(name, None)
    elif len(streams | names) > max_streams:
        raise RefusedRequest(2, f"Invalid request: more than {max_streams} streams", request_id)
    else:
        streams.update(names)
    return request_id, None


def _stream_names(params: object, request_id: object) -> dict[str, None]:
    if not isinstance(params, list) or not params:
        raise RefusedRequest(2, "Invalid request: params must be a list of streams", request_id)
    for name in params:
        if not isinstance(name, str) or _STREAM.fullmatch(name) is None:
            raise RefusedRequest(2, f"Invalid request: invalid stream {str(name)[:80]}", request_id)
    return dict.fromkeys(params)


_SIZE_IN_16_BITS: Final = 126
_SIZE_IN_64_BITS: Final = 127


def _header(size: int) -> bytes:
    """Return the header of an unmasked text frame (RFC 6455, section 5.2)."""
    if size < _SIZE_IN_16_BITS:
        return bytes((0x81, size))
    if size < 1 << 16:
        return struct.pack(">BBH", 0x81, _SIZE_IN_16_BITS, size)
    return struct.pack(">BBQ", 0x81, _SIZE_IN_64_BITS, size)


_HEADERS: Final = tuple(_header(size) for size in range(1024))


def websocket_frames(payloads: list[bytes]) -> bytes:
    """Frame payloads as text messages of a server, one after the other."""
    try:
        parts = [part for payload in payloads for part in (_HEADERS[len(payload)], payload)]
    except IndexError:
        parts = [part for payload in payloads for part in (_header(len(payload)), payload)]
    return b"".join(parts)


# --- one connection ------------------------------------------------------------------------


class _Pace:
    """Lets frames through at a rate, in small regular bursts."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._started_s = time.monotonic()
        self._passed = 0

    async def allow(self, most: int) -> int:
        """Wait until something may be sent, and return how many frames."""
        if self._rate is None:
            await asyncio.sleep(0)  # others have their turn
            return most
        burst = max(self._rate * _BURST_S, 1)
        await asyncio.sleep(max((burst - self._due(self._rate)) / self._rate, 0))
        due = self._due(self._rate)
        behind = due - max(self._rate * _MOST_BEHIND_S, 2 * burst)
        if behind > 0:  # a slow reader: what it missed longer ago is not caught up
            self._started_s += behind / self._rate
        return min(int(due), most)

    def count(self, frames: int) -> None:
        """Take note of what was sent."""
        self._passed += frames

    def _due(self, rate: float) -> float:
        return (time.monotonic() - self._started_s) * rate - self._passed


class _Connection:
    """One client: a reader, a player and a pinger over one sans-I/O protocol."""

    def __init__(
        self, simulator: "Simulator", reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._simulator = simulator
        self._options = simulator.options
        self._reader = reader
        self._writer = writer
        self._protocol = ServerProtocol()
        self._path = ""
        self._route = Route(streams=(), is_combined=False, is_micros=False)
        self._streams: dict[str, None] = {}
        self._has_changed = asyncio.Event()
        self._inbound: deque[float] = deque(maxlen=simulator.options.max_inbound_per_s)
        self._message = b""
        self._pings: dict[bytes, float] = {}  # unanswered: payload -> when it was sent
        self._sent = 0
        self._taken = 0
        self._garbage = cycle(GARBAGE)
        self._is_silent = False
        self._source: FrameSource | None = None

    async def serve(self) -> None:
        """Serve the client until it or the simulator ends the connection."""
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                is_open = await self._shake_hands()
            if is_open:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._play()), group.create_task(self._ping())]
                    await self._read()
                    for task in tasks:
                        task.cancel()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the client went away, or never spoke HTTP
        finally:
            self._writer.transport.abort()

    def go_away(self) -> None:
        """Say goodbye because the simulator ends; wait for nothing."""
        self._close(CloseCode.GOING_AWAY, "the simulator ends")
        if not self._writer.transport.get_write_buffer_size():
            self._writer.close()

    async def _shake_hands(self) -> bool:
        """Answer the HTTP request; tell whether it became a WebSocket connection."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        line, end, headers = head.partition(b"\r\n")
        words = line.split(b" ")
        if len(words) == _REQUEST_WORDS:
            # The library refuses request lines over 8 kB; 1024 streams are longer.
            self._path, words[1] = words[1].decode("latin-1"), b"/"
        self._simulator.paths.append(self._path)
        self._protocol.receive_data(b" ".join(words) + end + headers)
        for request in self._protocol.events_received():
            assert isinstance(request, Request)
            self._protocol.send_response(self._response(request))
        self._flush()
        if self._protocol.state is State.OPEN:
            self._simulator.connections += 1
            return True
        await self._writer.wait_closed()
        return False

    def _response(self, request: Request) -> Response:
        try:
            self._route = parse_path(self._path, max_streams=self._options.max_streams)
        except RefusedPath as exc:
            return self._protocol.reject(exc.status, f"{exc}\n")
        self._streams = dict.fromkeys(self._route.streams)
        self._has_changed.set()
        return self._protocol.accept(request)

    # --- in

    async def _read(self) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(1 << 16):
                if self._is_silent:
                    continue
                self._protocol.receive_data(data)
                for event in self._protocol.events_received():
                    if isinstance(event, Frame):
                        self._receive(event)
                self._flush()

    def _receive(self, frame: Frame) -> None:
        if frame.opcode is Opcode.CLOSE or self._protocol.state is not State.OPEN:
            return
        now = time.monotonic()
        if len(self._inbound) == self._inbound.maxlen and now - self._inbound[0] < 1:
            self._cut("too many requests")
            return
        self._inbound.append(now)
        if frame.opcode is Opcode.PONG:
            self._pong(bytes(frame.data))
        elif frame.opcode is not Opcode.PING:  # the library has answered a ping
            self._message += frame.data
            if frame.fin:
                message, self._message = self._message, b""
                self._control(message)

    def _control(self, message: bytes) -> None:
        reply = answer_control(message, self._streams, max_streams=self._options.max_streams)
        self._protocol.send_text(reply)
        self._has_changed.set()

    def _pong(self, payload: bytes) -> None:
        if payload in self._pings:  # it answers the pings before it as well
            for earlier in list(self._pings):
                del self._pings[earlier]
                if earlier == payload:
                    break

    # --- out

    def _flush(self) -> None:
        for data in self._protocol.data_to_send():
            if self._is_silent:
                continue
            if data:
                self._writer.write(data)
            else:
                self._writer.close()
                self._abort_later()

    def _abort_later(self) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(_CLOSE_TIMEOUT_S, self._writer.transport.abort)

    def _close(self, code: CloseCode, reason: str) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush()
            self._abort_later()

    def _cut(self, reason: str) -> None:
        self._leave()
        self._close(CloseCode.POLICY_VIOLATION, reason)

    def _leave(self) -> None:
        """Remember where the recording stops: the next connection goes on from there."""
        if isinstance(self._source, Recording):
            self._simulator.resume_from(self._path, self._source.position)
        self._source = None

    async def _ping(self) -> None:
        interval_s, timeout_s = self._options.ping_interval_s, self._options.pong_timeout_s
        next_s = time.monotonic() + interval_s
        while not self._is_silent and self._protocol.state is State.OPEN:
            now = time.monotonic()
            deadline_s = next(iter(self._pings.values()), now) + timeout_s
            if now >= deadline_s:
                self._cut("no pong")
                return
            if now >= next_s:
                payload = b"%d" % (time.time_ns() // 1000)
                self._pings[payload] = now
                self._protocol.send_ping(payload)
                self._flush()
                next_s += interval_s
            await asyncio.sleep(min(next_s, deadline_s) - now)

    # --- the market

    async def _play(self) -> None:
        with contextlib.suppress(OSError):  # the client went away
            while not self._streams:
                await self._wait_for_change()
            source = self._simulator.open_source(self._path, self._route)
            self._source = source
            source.follow(self._streams)
            await self._play_from(source)

    async def _wait_for_change(self) -> None:
        await self._has_changed.wait()
        self._has_changed.clear()

    async def _play_from(self, source: FrameSource) -> None:
        pace = _Pace(self._options.rate)
        end, finish = self._ending()
        while self._sent < end and not source.is_at_end:
            if source.is_idle:
                await self._wait_for_change()
                source.follow(self._streams)
                pace = _Pace(self._options.rate)
                continue
            most = await pace.allow(min(_BLOCK_FRAMES, end - self._sent))
            if self._protocol.state is not State.OPEN:
                return
            if self._has_changed.is_set():
                self._has_changed.clear()
                source.follow(self._streams)
            frames = self._taken_from(source, most)
            if frames is None:
                break
            pace.count(len(frames))
            self._send(frames)
            await self._writer.drain()
        if self._sent >= end:
            await finish()
        else:
            await self._end_market()

    def _taken_from(self, source: FrameSource, most: int) -> list[bytes] | None:
        """Take frames; a file that turns out damaged ends there, as a recorder that was cut."""
        try:
            return source.take(most, time.time_ns() // 1000)
        except OSError as exc:
            _log.warning("%s ends early: %s", self._options.frames, exc)
            return None

    def _ending(self) -> tuple[int, Callable[[], Awaitable[None]]]:
        """Return after how many frames the play ends, and what happens then."""
        options = self._options
        endings = (
            (options.drop_after, self._drop),
            (options.silent_after, self._fall_silent),
            (options.shutdown_after, self._shut_down),
            (options.limit, self._end_market),
        )
        wanted = [(count, finish) for count, finish in endings if count is not None]
        return min(wanted, key=itemgetter(0), default=(sys.maxsize, self._end_market))

    def _send(self, frames: list[bytes]) -> None:
        every = self._options.skip_every
        if every is not None:
            first = every - 1 - self._taken % every
            self._taken += len(frames)
            del frames[first::every]
        payloads = self._with_garbage(frames)
        self._sent += len(frames)
        self._simulator.frames_sent += len(frames)
        self._writer.write(websocket_frames(payloads))

    def _with_garbage(self, frames: list[bytes]) -> list[bytes]:
        every = self._options.garbage_every
        if every is None:
            return frames
        payloads: list[bytes] = []
        for number, frame in enumerate(frames, self._sent + 1):
            payloads.append(frame)
            if number % every == 0:
                payloads.append(next(self._garbage))
        return payloads

    async def _end_market(self) -> None:
        if self._options.close_at_end:
            self._close(CloseCode.NORMAL_CLOSURE, "the end")

    async def _drop(self) -> None:
        self._leave()
        transport = self._writer.transport
        transport.set_write_buffer_limits(high=0)
        await self._writer.drain()  # the client gets every frame before the cut
        transport.abort()

    async def _fall_silent(self) -> None:
        self._leave()
        self._is_silent = True

    async def _shut_down(self) -> None:
        self._leave()
        now = time.time_ns() // (1000 if self._route.is_micros else 1_000_000)
        notice = b'{"e":"serverShutdown","E":%d}' % now
        if self._route.is_combined:
            notice = b'{"stream":"!serverShutdown","data":%b}' % notice
        self._writer.write(websocket_frames([notice]))
        await asyncio.sleep(self._options.shutdown_grace_s)
        self._close(CloseCode.GOING_AWAY, "server shutdown")


# --- the server ----------------------------------------------------------------------------


class Simulator:
    """A running exchange, and what it has seen. `open_simulator` makes one."""

    def __init__(self, *, options: SimulatorOptions) -> None:
        self.options = options
        self.connections = 0  # opened until now
        self.frames_sent = 0  # market frames, over all connections
        self.paths: list[str] = []  # of all handshakes, refused ones too
        self.url = ""
        self._market = Market(
            first_id=_first_id(options),
            seed=options.seed,
            kind=options.market,
            symbols=options.symbols,
            channels=options.channels,
        )
        self._stopped: dict[str, deque[int]] = {}  # path -> lines of a recording, by cut
        self._open: dict[asyncio.Task[None], _Connection] = {}

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._open)

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a client that has connected."""
        writer.transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        connection = _Connection(self, reader, writer)
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
        """Send every client away, at once."""
        tasks = list(self._open)
        for task, connection in self._open.items():
            connection.go_away()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def open_source(self, path: str, route: Route) -> FrameSource:
        """Open what a new connection plays."""
        if self.options.frames is None:
            return self._market.play(is_combined=route.is_combined, is_micros=route.is_micros)
        return Recording(
            self.options.frames,
            is_combined=route.is_combined,
            is_looped=self.options.loop,
            position=self._resume_position(path),
        )

    def resume_from(self, path: str, position: int) -> None:
        """Let the next connection of the same path go on after this many lines."""
        self._stopped.setdefault(path, deque()).append(position)

    def _resume_position(self, path: str) -> int:
        stopped = self._stopped.get(path)
        return stopped.popleft() if stopped else 0


def _first_id(options: SimulatorOptions) -> int:
    if options.first_id is not None:
        return options.first_id
    return first_id_at(time.time_ns() // 1000)


def _check(options: SimulatorOptions) -> None:
    for symbol in options.symbols:
        if _SYMBOL.fullmatch(symbol) is None:
            raise UsageError(f"{symbol!r} is not a symbol", hint="--symbols BTCUSDT,ETHUSDT")
    for channel in options.channels:
        if channel not in CHANNELS:
            raise UsageError(
                f"{channel!r} is not a channel", hint=f"--channels {','.join(CHANNELS)}"
            )
    if options.frames is None:
        return
    if not options.frames.is_file():
        raise NotFound(f"no file {options.frames}", hint="--frames takes one JSON frame a line")
    try:
        next(recorded_lines(options.frames), None)
    except OSError as exc:
        raise BadData(f"{options.frames} cannot be read: {exc}") from exc


@contextlib.asynccontextmanager
async def open_simulator(options: SimulatorOptions) -> AsyncIterator[Simulator]:
    """Run a simulator on this event loop.

    Raises:
        UsageError: a symbol or channel that cannot be one.
        NotFound: the recording does not exist.
        BadData: the recording cannot be read.
        Unavailable: the port is taken, or cannot be listened on.
    """
    _check(options)
    simulator = Simulator(options=options)
    try:
        server = await asyncio.start_server(
            simulator.accept,
            options.host,
            options.port,
            ssl=options.ssl,
            limit=_MOST_HEAD_BYTES,
        )
    except OSError as exc:
        is_taken = exc.errno == errno.EADDRINUSE
        reason = "the port is in use" if is_taken else exc.strerror or str(exc)
        raise Unavailable(
            f"cannot listen on {options.host}:{options.port}: {reason}",
            hint="--port 0 takes a free port" if is_taken else None,
        ) from exc
    port = server.sockets[0].getsockname()[1]
    host = f"[{options.host}]" if ":" in options.host else options.host
    simulator.url = f"{'wss' if options.ssl else 'ws'}://{host}:{port}"
    try:
        yield simulator
    finally:
        server.close()
        await simulator.end_connections()


@contextlib.contextmanager
def running_simulator(options: SimulatorOptions) -> Iterator[Simulator]:
    """Run a simulator in a thread of its own, for callers without an event loop.

    Raises what `open_simulator` raises.
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
