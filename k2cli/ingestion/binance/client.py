"""Connections to the exchange, as a source of batches.

One thread runs the connections and puts every frame, with the time it came, into a queue; the
thread that iterates over `batches` takes what has come since, parses it and yields it. When the
queue is long the connections stop reading, so that back-pressure reaches the exchange and memory
stays bounded.
"""

import asyncio
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from k2cli.errors import K2Error, Unavailable
from k2cli.flow import Batch, Observer
from k2cli.ingestion.binance.protocol import FrameParser, stream_names, stream_url
from k2cli.ingestion.binance.reconnect import AttemptBudget, Backoff, retry_after_s
from k2cli.ingestion.binance.symbols import Channel, Instrument, Venue

# 200 names keep the URL far below the 8 KiB that servers take; the exchange allows 1024.
STREAMS_PER_CONNECTION: Final = 200
_CHUNK_FRAMES: Final = 4096  # parsed at once, about
_TICK_S: Final = 0.05  # how long frames gather before they are parsed
_QUEUE_HIGH_BYTES: Final = 8 * 1024 * 1024  # of frames; reading pauses above ...
_QUEUE_LOW_BYTES: Final = _QUEUE_HIGH_BYTES // 2  # ... and goes on below
_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_SHUTDOWN: Final = b"serverShutdown"
_SHUTDOWN_MAX_BYTES: Final = 256
_RETRIED_STATUS: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.IM_A_TEAPOT,  # the exchange's "banned for a while"
)

_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


class _Burst(NamedTuple):
    """Frames that came with one read from the network."""

    session: int
    received_us: int
    frames: list[bytes]
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What to subscribe to, where, and when to give up on a connection or to end."""

    venue: Venue
    instruments: Sequence[Instrument]
    channels: Sequence[Channel]
    urls: Sequence[str]  # bases, in failover order
    home: Path | None = None  # the folder with what the exchange said last of its symbols
    connect_timeout_s: float = 10.0  # for the first connection; later outages are waited out
    stale_after_s: float = 60.0
    max_messages: int | None = None


class BinanceStream:
    """The exchange's live stream as a `Source`.

    Raises:
        UsageError: one of the bases is no ws:// or wss:// URL.
    """

    def __init__(
        self,
        *,
        options: StreamOptions,
        observe: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        for base in options.urls:
            stream_url(base, [], has_microseconds=options.venue.has_microseconds)
        self._options = options
        self._observe = observe
        self._clock = clock
        self._parser = FrameParser(
            venue=options.venue, instruments=options.instruments, home=options.home
        )
        self._queue: deque[_Burst] = deque()
        self._received = 0
        self._queued_bytes = 0  # written by the connections' thread ...
        self._taken_bytes = 0  # ... and by the one that takes the batches: both only grow
        self._session = 0
        self._budget = AttemptBudget(clock=clock)
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: asyncio.Task[None] | None = None
        self.was_connected = False  # ever, to any server

    def stop(self) -> None:
        """Stop reading; frames read before still come out of `batches`. Any thread, any time."""
        self._stopped.set()
        if self._loop is not None and self._connections is not None:
            with suppress(RuntimeError):  # the loop is closed: the connections are gone
                self._loop.call_soon_threadsafe(self._connections.cancel)

    def batches(self) -> Iterator[Batch]:
        """Yield what has come since the last batch, or a tick, until the end.

        Raises:
            Unavailable: no connection was made in time, or the exchange refuses for good.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="binance") as executor:
            connections = executor.submit(self._run)
            try:
                yield from self._batches(connections)
            finally:
                self.stop()
        connections.result()

    def _batches(self, connections: Future[None]) -> Iterator[Batch]:
        position, session = 1, 0
        while self._queue or not connections.done():
            frames, times, session = self._next_chunk(session)
            if frames:
                parsed = self._parser.parse(frames, times, first=position)
                yield Batch(
                    rows=parsed.rows,
                    rejects=parsed.rejects,
                    messages=len(frames),
                    session=session,
                    seen=parsed.seen,
                )
                position += len(frames)
            else:
                yield Batch(session=session)
            if len(frames) < _CHUNK_FRAMES:
                wait([connections], timeout=_TICK_S)

    def _next_chunk(self, session: int) -> tuple[list[bytes], list[int], int]:
        """Take frames off the queue, with the times they came, of one session only."""
        frames: list[bytes] = []
        times: list[int] = []
        while self._queue and len(frames) < _CHUNK_FRAMES:
            if frames and self._queue[0].session != session:
                break
            burst = self._queue.popleft()
            session = burst.session
            frames += burst.frames
            times += [burst.received_us] * len(burst.frames)
            self._taken_bytes += burst.size_bytes
        return frames, times, session

    # Below: in the thread of the connections.

    def _run(self) -> None:
        with suppress(asyncio.CancelledError):
            asyncio.run(self._connect_all())

    async def _connect_all(self) -> None:
        options = self._options
        names = stream_names(options.instruments, options.channels)
        self._loop = asyncio.get_running_loop()
        self._connections = asyncio.current_task()
        if self._stopped.is_set():
            return
        try:
            async with asyncio.TaskGroup() as group:
                for start in range(0, len(names), STREAMS_PER_CONNECTION):
                    some = names[start : start + STREAMS_PER_CONNECTION]
                    group.create_task(self._keep_connected(some))
        except* K2Error as failures:
            raise failures.exceptions[0] from None

    async def _keep_connected(self, names: Sequence[str]) -> None:
        """Hold one connection open for these streams, until cancelled."""
        options = self._options
        urls = [
            stream_url(base, names, has_microseconds=options.venue.has_microseconds)
            for base in options.urls
        ]
        backoff, is_first, deadline = Backoff(len(urls)), True, 0.0
        while True:
            await self._wait_for_budget()
            started = self._clock()
            deadline = deadline or started + options.connect_timeout_s
            base, url = options.urls[backoff.server], urls[backoff.server]
            connection, reason, lasted_s, min_delay_s = None, "", 0.0, 0.0
            try:
                async with self._open(url, is_first=is_first) as connection:
                    assert isinstance(connection, _Connection)
                    started = self._clock()
                    is_first, self.was_connected = False, True
                    self._begin_session(connection)
                    self._observe("connected", url=base, streams=len(names))
                    await self._read(connection)
            except (OSError, TimeoutError, InvalidHandshake, ConnectionClosed) as exc:
                reason, min_delay_s = _reason(exc), retry_after_s(exc)
                self._give_up(exc, base, is_first=is_first, is_late=self._clock() > deadline)
            if isinstance(connection, _Connection):
                reason, lasted_s = connection.farewell or reason, self._clock() - started
            delay_s = max(backoff.lost(lasted_s), min_delay_s)
            if is_first:
                delay_s = min(delay_s, max(0.0, deadline - self._clock()))
            self._observe("disconnected", url=base, reason=reason, retry_in_s=round(delay_s, 2))
            await asyncio.sleep(delay_s)

    async def _wait_for_budget(self) -> None:
        """Wait until the budget of attempts, which all connections share, allows another one."""
        while (wait_s := self._budget.take()) > 0:
            self._observe("attempts_limited", retry_in_s=round(wait_s, 2))
            await asyncio.sleep(wait_s)

    def _open(self, url: str, *, is_first: bool) -> connect:
        make = partial(_Connection, take=self._take, is_reconnected=not is_first, clock=self._clock)
        return connect(
            url,
            create_connection=make,  # type: ignore[arg-type]
            compression=None,
            open_timeout=min(10.0, self._options.connect_timeout_s),
            close_timeout=1,
            ping_interval=None,  # the server pings; ours would count as inbound messages
            max_size=_MAX_FRAME_BYTES,
        )

    def _begin_session(self, connection: "_Connection") -> None:
        """Let what comes from now on belong to another session than what came before."""
        if connection.is_reconnected:
            connection.is_reconnected = False
            self._session += 1
            self._queue.append(_Burst(self._session, 0, [], 0))

    async def _read(self, connection: "_Connection") -> None:
        """Wait for the end of the connection, while `_take` takes what comes.

        Raises:
            ConnectionClosed: always, with the reason.
        """
        watchdog = asyncio.create_task(self._watch(connection))
        try:
            await connection.recv()
        finally:
            watchdog.cancel()

    def _take(self, connection: "_Connection", frames: list[bytes]) -> None:
        """Put frames into the queue, up to the last one that is wanted."""
        self._begin_session(connection)
        if _SHUTDOWN in b"".join(frames):
            frames = self._without_goodbye(connection, frames)
        limit = self._options.max_messages
        if limit is not None:
            frames = frames[: limit - self._received]
        if not frames:
            return
        size_bytes = sum(map(len, frames))
        burst = _Burst(self._session, connection.received_us, frames, size_bytes)
        self._queue.append(burst)
        self._received += len(frames)
        self._queued_bytes += size_bytes
        if self._received == limit:
            self.stop()
        elif self._is_full(_QUEUE_HIGH_BYTES) and not connection.is_paused:
            connection.pause()
            self._resume_when_drained(connection)

    def _without_goodbye(self, connection: "_Connection", frames: list[bytes]) -> list[bytes]:
        """Leave the notice of a shutdown out, and reconnect at once if it is one."""
        kept = [f for f in frames if _SHUTDOWN not in f or len(f) >= _SHUTDOWN_MAX_BYTES]
        if len(kept) < len(frames):
            connection.farewell = "the exchange shuts the server down"
            connection.transport.abort()
        return kept

    def _is_full(self, limit_bytes: int) -> bool:
        return self._queued_bytes - self._taken_bytes > limit_bytes

    def _resume_when_drained(self, connection: "_Connection") -> None:
        if self._is_full(_QUEUE_LOW_BYTES):
            loop = asyncio.get_running_loop()
            loop.call_later(_TICK_S / 5, self._resume_when_drained, connection)
        else:
            connection.resume()

    async def _watch(self, connection: "_Connection") -> None:
        """Cut a connection on which nothing comes, not even a ping."""
        stale_after_s = self._options.stale_after_s
        while True:
            await asyncio.sleep(stale_after_s / 10)
            silent_s = self._clock() - connection.last_data_s
            if silent_s > stale_after_s and not connection.is_paused:
                self._observe("stale", silent_s=round(silent_s, 1))
                connection.transport.abort()

    def _give_up(self, exc: Exception, base: str, *, is_first: bool, is_late: bool) -> None:
        """Raise where another try is pointless: refused for good, or never connected in time."""
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise Unavailable(
                f"{base}: the server's certificate is not valid: {exc.verify_message}",
                hint="a private authority is trusted with SSL_CERT_FILE=ca.pem",
            ) from exc
        if not is_first:
            return
        if isinstance(exc, InvalidStatus) and _is_final(exc.response.status_code):
            raise Unavailable(
                f"{base} refuses the connection: HTTP {exc.response.status_code}",
                hint="check --symbols and --url; 451 means not served where you are",
            ) from exc
        if is_late:
            raise Unavailable(
                f"no connection to {', '.join(self._options.urls)}: {_reason(exc)}",
                hint="check the network, or name another server with --url",
            ) from exc


class _Connection(ClientConnection):
    """A connection that hands its messages over as they come, without a queue of its own.

    `received_us` and `last_data_s` tell when data last came, pings included.
    """

    def __init__(
        self,
        *args: Any,
        take: Callable[["_Connection", list[bytes]], None],
        is_reconnected: bool,
        clock: Callable[[], float],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.is_reconnected = is_reconnected
        self.farewell = ""  # what the exchange said before it went
        self.received_us = 0
        self.last_data_s = clock()
        self.is_paused = False
        self._clock = clock
        self._take = take
        self._messages: list[bytes] = []  # of the current read
        self._fragments: list[bytes] = []

    def data_received(self, data: bytes) -> None:
        self.received_us = time.time_ns() // 1000
        self.last_data_s = self._clock()
        super().data_received(data)
        if self._messages:
            messages, self._messages = self._messages, []
            self._take(self, messages)

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
        elif event.fin and not self._fragments:
            self._messages.append(bytes(event.data))
        else:
            self._fragments.append(bytes(event.data))
            if event.fin:
                self._messages.append(b"".join(self._fragments))
                self._fragments.clear()

    def pause(self) -> None:
        """Stop reading from the network, so that the exchange feels the back-pressure."""
        self.is_paused = True
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.is_paused = False
        self.last_data_s = self._clock()
        if not self.transport.is_closing():
            self.transport.resume_reading()


def _is_final(status: int) -> bool:
    is_refused = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_refused and status not in _RETRIED_STATUS


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
