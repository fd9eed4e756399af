"""One client of the simulated exchange: a reader, a player and a pinger, or requests for REST.

Market frames are framed here, block by block, and passed to the transport as one buffer;
`websockets` handles the handshake and control frames.

The module is long because all faults of a connection share its state.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from itertools import cycle
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request as Handshake
from websockets.http11 import Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from k2cli.simulator.options import GARBAGE, FrameSource, RestFault, SimulatorOptions
from k2cli.simulator.recording import Recording
from k2cli.simulator.rest import Rest
from k2cli.simulator.wire import (
    RefusedPath,
    Request,
    Route,
    answer_control,
    http_answer,
    parse_head,
    parse_path,
    websocket_frames,
)
from k2cli.symbols import lower_symbol

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

_log = logging.getLogger(__name__)

_BLOCK_FRAMES: Final = 1000
_HANDSHAKE_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0
_BURST_S: Final = 0.01
_NONE_DUE_S: Final = 0.002
_MAX_BEHIND_S: Final = 1.0


class _Pace:
    """Limits the frame rate, with small regular bursts; a live market has its own."""

    def __init__(self, rate: float | None, clock: Callable[[], float], *, is_live: bool) -> None:
        self._rate = rate
        self._is_live = is_live
        self._clock = clock
        self._started_s = clock()
        self._passed = 0
        self._is_drained = False  # no more frames were published

    async def allow(self, most: int) -> int:
        """Wait until frames may be sent; return how many."""
        if self._rate is None:
            await asyncio.sleep(_BURST_S if self._is_drained else 0)  # let other tasks run
            return most
        burst = max(self._rate * _BURST_S, 1)
        await asyncio.sleep(max((burst - self._due(self._rate)) / self._rate, 0))
        due = self._due(self._rate)
        behind = due - max(self._rate * _MAX_BEHIND_S, 2 * burst)
        if behind > 0:  # a slow reader does not catch up on what it missed long ago
            self._started_s += behind / self._rate
        return min(int(due), most)

    def count(self, frames: int, most: int) -> None:
        """Count sent frames, of this many that were allowed."""
        self._passed += frames
        self._is_drained = self._is_live and frames < most

    def _due(self, rate: float) -> float:
        return (self._clock() - self._started_s) * rate - self._passed


class Exchange(Protocol):
    """State shared by the connections of an exchange: its market and counters."""

    options: SimulatorOptions
    clock: Callable[[], float]
    connections: int
    frames_sent: int
    paths: list[str]
    rest_paths: deque[str]
    rest: Rest
    info_requests: int

    def market_time_us(self) -> int:
        """Return the exchange's time, in UTC microseconds."""

    def open_source(self, path: str, route: Route) -> FrameSource:
        """Open the frames for a client of this path."""

    def resume_from(self, path: str, position: int) -> None:
        """Remember how far a client of this path was served."""

    def is_answering(self) -> bool:
        """Count a connection; return whether it is answered."""


class Connection:
    """One client: a reader, a player and a pinger over one sans-I/O protocol."""

    def __init__(
        self, simulator: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._simulator = simulator
        self._clock = simulator.clock
        self._reader = reader
        self._writer = writer
        self._socket: TransportSocket = writer.get_extra_info("socket")
        self._protocol = ServerProtocol()
        self._path = ""
        self._number = 0  # of the WebSocket connections
        self._route = Route(streams=(), is_combined=False, is_micros=False)
        self._streams: dict[str, None] = {}
        self._silent_stream = ""
        self._has_changed = asyncio.Event()
        self._inbound: deque[float] = deque(maxlen=simulator.options.max_inbound_per_s)
        self._message = b""
        self._pings: dict[bytes, float] = {}  # unanswered: payload -> when it was sent
        self._sent = 0
        self._taken = 0
        self._garbage = cycle(GARBAGE)
        self._is_silent = False
        self._source: FrameSource | None = None

    @property
    def _options(self) -> SimulatorOptions:
        return self._simulator.options

    async def serve(self) -> None:
        """Serve the client until it or the simulator ends the connection."""
        try:
            if not self._simulator.is_answering():
                await self._ignore()
                return
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT_S):
                request = await self._read_head()
                is_rest = self._simulator.rest.serves(request.path)
                is_open = not is_rest and await self._shake_hands(request)
            if is_rest:
                await self._serve_rest(request)
            elif is_open:
                await self._serve_streams()
        except (OSError, EOFError, asyncio.LimitOverrunError):
            pass  # the client disconnected, or never spoke HTTP
        finally:
            transport = self._writer.transport
            if not transport.is_closing() or transport.get_write_buffer_size():
                self._abort()

    async def _serve_streams(self) -> None:
        async with asyncio.TaskGroup() as group:
            running = [self._play(), self._ping(), self._end_life()]
            tasks = [group.create_task(each) for each in running]
            await self._read()
            for task in tasks:
                task.cancel()

    async def _ignore(self) -> None:
        """Keep the connection open without an answer."""
        while await self._reader.read(1 << 16):
            pass

    async def _read_head(self) -> Request:
        return parse_head(await self._reader.readuntil(b"\r\n\r\n"))

    def go_away(self) -> None:
        """Close because the simulator stops, without waiting."""
        self._close(CloseCode.GOING_AWAY, "the simulator ends")
        if not self._writer.transport.get_write_buffer_size():
            self._writer.close()

    # --- REST

    async def _serve_rest(self, request: Request) -> None:
        """Answer requests until the client closes the connection."""
        rest = self._simulator.rest
        while rest.serves(request.path):
            self._simulator.rest_paths.append(request.path)
            self._simulator.info_requests += rest.is_info(request.path)
            answer = rest.answer(request.path, request.headers)
            if answer.delay_s:
                await asyncio.sleep(answer.delay_s)
            data = http_answer(answer.body, status=answer.status, headers=answer.headers)
            match answer.fault:
                case RestFault.HUNG:
                    await self._ignore()
                    return
                case RestFault.CUT:
                    self._writer.write(data[: -(len(answer.body) // 2 + 1)])
                    await self._writer.drain()
                    self._writer.close()
                    return
                case RestFault.ENDLESS:
                    await self._send_endlessly(answer.body)
                case _:
                    self._writer.write(data)
                    await self._writer.drain()
            request = await self._read_head()

    async def _send_endlessly(self, body: bytes) -> None:
        """Send chunks until the client disconnects."""
        self._writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            self._writer.write(b"%x\r\n%b\r\n" % (len(body), body))
            await self._writer.drain()

    # --- the handshake

    async def _shake_hands(self, head: Request) -> bool:
        """Answer the request; return whether it became a WebSocket connection."""
        words = list(head.words)
        if head.path:
            # The library refuses request lines over 8 kB; 1024 streams are longer.
            self._path, words[1] = head.path, b"/"
        self._simulator.paths.append(self._path)
        self._protocol.receive_data(b" ".join(words) + b"\r\n" + head.lines)
        for request in self._protocol.events_received():
            assert isinstance(request, Handshake)
            self._protocol.send_response(self._response(request))
        self._flush()
        if self._protocol.state is State.OPEN:
            self._simulator.connections += 1
            self._number = self._simulator.connections
            return True
        await self._writer.wait_closed()
        return False

    def _response(self, request: Handshake) -> Response:
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
        now = self._clock()
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
        if payload in self._pings:  # it also answers the pings before it
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
        loop.call_later(_CLOSE_TIMEOUT_S, self._abort)

    def _abort(self) -> None:
        """Disconnect; a transport that closed when its buffer was empty can no longer do that."""
        if not self._is_disconnected:
            self._writer.transport.abort()

    @property
    def _is_disconnected(self) -> bool:
        return self._socket.fileno() == -1

    def _close(self, code: CloseCode, reason: str) -> None:
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason)
            self._flush()
            self._abort_later()

    def _cut(self, reason: str) -> None:
        self._leave()
        self._close(CloseCode.POLICY_VIOLATION, reason)

    def _leave(self) -> None:
        """Remember the position in the recording: the next connection continues there."""
        if isinstance(self._source, Recording):
            self._simulator.resume_from(self._path, self._source.position)
        self._source = None

    async def _ping(self) -> None:
        interval_s, timeout_s = self._options.ping_interval_s, self._options.pong_timeout_s
        next_s = self._clock() + interval_s
        while not self._is_silent and self._protocol.state is State.OPEN:
            now = self._clock()
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
        with contextlib.suppress(OSError):  # the client disconnected
            while not self._followed():
                await self._wait_for_change()
            source = self._simulator.open_source(self._path, self._route)
            self._source = source
            source.follow(self._followed())
            await self._play_from(source)

    def _followed(self) -> list[str]:
        """Return the subscribed streams that are not silent."""
        options = self._options
        if self._route.prefix in options.silent_routes:
            return []
        symbols = {lower_symbol(symbol) for symbol in options.silent_symbols}
        return [
            stream
            for stream in self._streams
            if stream != self._silent_stream and stream.partition("@")[0] not in symbols
        ]

    async def _wait_for_change(self) -> None:
        await self._has_changed.wait()
        self._has_changed.clear()

    async def _play_from(self, source: FrameSource) -> None:
        pace = self._pace()
        while self._sent < self._ending()[0] and not source.is_at_end:
            if source.is_idle:
                await self._wait_for_change()
                source.follow(self._followed())
                pace = self._pace()
                continue
            most = await pace.allow(min(_BLOCK_FRAMES, self._ending()[0] - self._sent))
            if self._protocol.state is not State.OPEN:
                return
            self._silence_one()
            if self._has_changed.is_set():
                self._has_changed.clear()
                source.follow(self._followed())
            frames = self._taken_from(source, most)
            if frames is None:
                break
            pace.count(len(frames), most)
            if not frames:  # none is due, or it searches on
                await asyncio.sleep(_NONE_DUE_S)
                continue
            self._send(frames)
            await self._writer.drain()
        end, finish = self._ending()
        if self._sent >= end:
            await finish()
        else:
            await self._end_market()

    def _pace(self) -> _Pace:
        options = self._options
        return _Pace(options.rate, self._clock, is_live=options.live_rate is not None)

    def _silence_one(self) -> None:
        """Let one stream fall silent after some frames: another one on every connection."""
        after = self._options.silent_stream_after
        if after is not None and self._sent >= after and not self._silent_stream and self._streams:
            self._silent_stream = sorted(self._streams)[self._number % len(self._streams)]
            self._has_changed.set()

    def _taken_from(self, source: FrameSource, most: int) -> list[bytes] | None:
        """Take frames; a corrupt file ends there, like an interrupted recording."""
        try:
            return source.take(most, self._simulator.market_time_us())
        except OSError as exc:
            _log.warning("%s ends early: %s", self._options.frames, exc)
            return None

    def _ending(self) -> tuple[int, Callable[[], Awaitable[None]]]:
        """Return after how many frames the connection ends, and how."""
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

    async def _end_life(self) -> None:
        if self._options.life_s is not None:
            await asyncio.sleep(self._options.life_s)
            with contextlib.suppress(OSError):
                await self._drop()

    async def _drop(self) -> None:
        self._leave()
        self._writer.transport.set_write_buffer_limits(high=0)
        await self._writer.drain()  # the client gets every frame before the cut
        self._abort()

    async def _fall_silent(self) -> None:
        self._leave()
        self._is_silent = True

    async def _shut_down(self) -> None:
        self._leave()
        if self._protocol.state is not State.OPEN:
            return  # the client closed the connection first
        now = time.time_ns() // (1000 if self._route.is_micros else 1_000_000)
        notice = b'{"e":"serverShutdown","E":%d}' % now
        if self._route.is_combined:
            notice = b'{"stream":"!serverShutdown","data":%b}' % notice
        self._writer.write(websocket_frames([notice]))
        await asyncio.sleep(self._options.shutdown_grace_s)
        self._close(CloseCode.GOING_AWAY, "server shutdown")
