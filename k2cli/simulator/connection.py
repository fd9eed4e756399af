"""One client of the simulated exchange: a reader, a player and a pinger.

Market frames are framed here, block by block, and passed to the transport as one buffer;
`websockets` handles the handshake and control frames.
"""

import asyncio
import contextlib
import logging
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from itertools import cycle
from operator import itemgetter
from typing import TYPE_CHECKING, Final, Protocol

from websockets.datastructures import Headers
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol

from k2cli.simulator.options import GARBAGE, FrameSource, SimulatorOptions
from k2cli.simulator.recording import Recording
from k2cli.simulator.wire import (
    RefusedPath,
    Route,
    answer_control,
    parse_path,
    websocket_frames,
)

if TYPE_CHECKING:
    from asyncio.trsock import TransportSocket

_log = logging.getLogger(__name__)

_BLOCK_FRAMES: Final = 1000
_HANDSHAKE_TIMEOUT_S: Final = 10.0
_CLOSE_TIMEOUT_S: Final = 5.0
_REQUEST_WORDS: Final = 3  # GET, path, HTTP/1.1
_BURST_S: Final = 0.01
_NONE_DUE_S: Final = 0.002
_MOST_BEHIND_S: Final = 1.0


class _Pace:
    """Limits the frame rate, with small regular bursts."""

    def __init__(self, rate: float | None, clock: Callable[[], float]) -> None:
        self._rate = rate
        self._clock = clock
        self._started_s = clock()
        self._passed = 0

    async def allow(self, most: int) -> int:
        """Wait until frames may be sent; return how many."""
        if self._rate is None:
            await asyncio.sleep(0)  # let other tasks run
            return most
        burst = max(self._rate * _BURST_S, 1)
        await asyncio.sleep(max((burst - self._due(self._rate)) / self._rate, 0))
        due = self._due(self._rate)
        behind = due - max(self._rate * _MOST_BEHIND_S, 2 * burst)
        if behind > 0:  # a slow reader does not catch up on what it missed long ago
            self._started_s += behind / self._rate
        return min(int(due), most)

    def count(self, frames: int) -> None:
        """Count sent frames."""
        self._passed += frames

    def _due(self, rate: float) -> float:
        return (self._clock() - self._started_s) * rate - self._passed


class Exchange(Protocol):
    """State shared by the connections of an exchange: its market and counters."""

    options: SimulatorOptions
    clock: Callable[[], float]
    connections: int
    frames_sent: int
    paths: list[str]
    info_path: str
    info_requests: int
    exchange_info: bytes

    def market_time_us(self) -> int:
        """Return the exchange's time, in UTC microseconds."""

    def open_source(self, path: str, route: Route) -> FrameSource:
        """Open the frames for a client of this path."""

    def resume_from(self, path: str, position: int) -> None:
        """Remember how far a client of this path was served."""


class Connection:
    """One client: a reader, a player and a pinger over one sans-I/O protocol."""

    def __init__(
        self, simulator: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._simulator = simulator
        self._options = simulator.options
        self._clock = simulator.clock
        self._reader = reader
        self._writer = writer
        self._socket: TransportSocket = writer.get_extra_info("socket")
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
            pass  # the client disconnected, or never spoke HTTP
        finally:
            transport = self._writer.transport
            if not transport.is_closing() or transport.get_write_buffer_size():
                self._abort()

    def go_away(self) -> None:
        """Close because the simulator stops, without waiting."""
        self._close(CloseCode.GOING_AWAY, "the simulator ends")
        if not self._writer.transport.get_write_buffer_size():
            self._writer.close()

    async def _shake_hands(self) -> bool:
        """Answer the HTTP request; return whether it became a WebSocket connection."""
        head = await self._reader.readuntil(b"\r\n\r\n")
        line, end, headers = head.partition(b"\r\n")
        words = line.split(b" ")
        if len(words) == _REQUEST_WORDS:
            # The library refuses request lines over 8 kB; 1024 streams are longer.
            self._path, words[1] = words[1].decode("latin-1"), b"/"
        if not self._asks_for_info:
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

    @property
    def _asks_for_info(self) -> bool:
        return self._path.partition("?")[0] == self._simulator.info_path

    def _response(self, request: Request) -> Response:
        if self._asks_for_info:
            self._simulator.info_requests += 1
            return _json_response(self._simulator.exchange_info)
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
        pace = _Pace(self._options.rate, self._clock)
        end, finish = self._ending()
        while self._sent < end and not source.is_at_end:
            if source.is_idle:
                await self._wait_for_change()
                source.follow(self._streams)
                pace = _Pace(self._options.rate, self._clock)
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
            if not frames:  # none is due, or it searches on
                await asyncio.sleep(_NONE_DUE_S)
                continue
            pace.count(len(frames))
            self._send(frames)
            await self._writer.drain()
        if self._sent >= end:
            await finish()
        else:
            await self._end_market()

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


def _json_response(body: bytes) -> Response:
    headers = Headers(
        {
            "Connection": "close",
            "Content-Length": str(len(body)),
            "Content-Type": "application/json;charset=UTF-8",
        }
    )
    return Response(HTTPStatus.OK, HTTPStatus.OK.phrase, headers, body)
