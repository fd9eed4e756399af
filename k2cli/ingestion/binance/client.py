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
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, NamedTuple

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event
from websockets.uri import parse_uri

from k2cli.errors import K2Error, Unavailable
from k2cli.events import Observer
from k2cli.flow import Batch
from k2cli.ingestion.binance.protocol import FrameParser, stream_names, stream_url
from k2cli.ingestion.binance.proxy import proxy_for
from k2cli.ingestion.binance.reconnect import AttemptBudget, Backoff, retry_after_s
from k2cli.ingestion.binance.symbols import Channel, Instrument, Venue

# 200 names keep the URL far below the 8 KiB that servers take; the exchange allows 1024.
STREAMS_PER_CONNECTION: Final = 200
_CHUNK_FRAMES: Final = 4096  # parsed at once, about
_TICK_S: Final = 0.05  # how long frames gather before they are parsed
_QUEUE_HIGH_BYTES: Final = 8 * 1024 * 1024  # of frames; reading pauses above, until half of it
_FRAME_MIN_BYTES: Final = 512  # a smaller frame counts as this much: it costs as much to handle
_READ_BYTES: Final = 32 * 1024  # at most at once: a thread that parses tiny frames takes no stop
_UNSENT_MAX_BYTES: Final = 1024 * 1024  # of pongs that the exchange does not read
_SILENT_FACTOR: Final = 3  # times `stale_after_s`
_SILENT_REPORT_S: Final = 3600.0
_LISTED_STREAMS: Final = 20  # in one report
_CLOSE_S: Final = 0.3  # for the closing handshake
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
    silent_after_s: float | None = None  # without market data, after some; 3 * stale_after_s
    max_messages: int | None = None


class BinanceStream:
    """The exchange's live stream as a `Source`.

    Raises:
        UsageError: one of the bases is no ws:// or wss:// URL.
        ConfigError: the proxy that the environment names cannot be used.
    """

    def __init__(
        self,
        *,
        options: StreamOptions,
        observe: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxies = {
            base: proxy_for(stream_url(base, [], has_microseconds=options.venue.has_microseconds))
            for base in options.urls
        }
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
        self._silent = {
            (channel.kind.value, instrument.symbol): name
            for instrument in options.instruments
            for channel in options.channels
            for name in stream_names([instrument], [channel])
        }
        self._silent_reported = self._clock()
        self._silent_interval_s = options.stale_after_s  # until the next report
        self._budget = AttemptBudget(clock=clock)
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: asyncio.Task[None] | None = None
        self.was_connected = False  # ever, to any server

    @property
    def silent_streams(self) -> list[str]:
        """Names of the streams that have delivered no trade or quote so far."""
        return list(self._silent.values())

    def report_silent_streams(self) -> None:
        """Report the streams that have delivered nothing, if a server was reached."""
        if self._silent and self.was_connected:
            names = self.silent_streams
            listed = ",".join(names[:_LISTED_STREAMS])
            self._observe("silent_streams", count=len(names), streams=listed)

    def _note_streams(self, batch: Batch) -> None:
        """Take note of the streams that deliver; report the others now and then."""
        if not self._silent:
            return
        for kind, rows in (*batch.rows, *batch.seen):
            for symbol in rows["symbol"].unique().to_pylist():
                self._silent.pop((kind.name, symbol), None)
        now = self._clock()
        if now - self._silent_reported >= self._silent_interval_s:
            self._silent_reported, self._silent_interval_s = now, _SILENT_REPORT_S
            self.report_silent_streams()

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
                batch = Batch(
                    rows=parsed.rows,
                    rejects=parsed.rejects,
                    messages=len(frames),
                    session=session,
                    seen=parsed.seen,
                )
                self._note_streams(batch)
                yield batch
                position += len(frames)
            else:
                batch = Batch(session=session)
                self._note_streams(batch)
                yield batch
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
                async with self._open(base, url, is_first=is_first) as connection:
                    started = self._clock()
                    is_first, self.was_connected = False, True
                    self._begin_session(connection)
                    self._observe("connected", url=base, streams=len(names))
                    await self._read(connection)
            except (OSError, TimeoutError, WebSocketException) as exc:
                reason, min_delay_s = _reason(exc), retry_after_s(exc)
                self._give_up(exc, base, is_first=is_first, is_late=self._clock() > deadline)
            if connection is not None:
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

    @asynccontextmanager
    async def _open(self, base: str, url: str, *, is_first: bool) -> AsyncIterator["_Connection"]:
        """Open a connection; close it quickly, whatever the exchange does."""
        connection = await self._connect(base, url, is_first=is_first)
        assert isinstance(connection, _Connection)
        try:
            yield connection
        finally:
            try:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_CLOSE_S):
                        await connection.close()
            finally:
                connection.transport.abort()

    def _connect(self, base: str, url: str, *, is_first: bool) -> connect:
        make = partial(_Connection, take=self._take, is_reconnected=not is_first, clock=self._clock)
        return _SameOriginConnect(
            url,
            create_connection=make,  # type: ignore[arg-type]
            proxy=self._proxies[base],
            compression=None,
            open_timeout=min(10.0, self._options.connect_timeout_s),
            close_timeout=_CLOSE_S,
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
        if self._stopped.is_set():
            return
        self._begin_session(connection)
        if _SHUTDOWN in b"".join(frames):
            frames = self._without_goodbye(connection, frames)
        limit = self._options.max_messages
        if limit is not None:
            frames = frames[: limit - self._received]
        if not frames:
            return
        for start in range(0, len(frames), _CHUNK_FRAMES):
            some = frames[start : start + _CHUNK_FRAMES]
            size_bytes = max(sum(map(len, some)), _FRAME_MIN_BYTES * len(some))
            self._queued_bytes += size_bytes
            self._queue.append(_Burst(self._session, connection.received_us, some, size_bytes))
        self._received += len(frames)
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
        if self._is_full(_QUEUE_HIGH_BYTES // 2):
            loop = asyncio.get_running_loop()
            loop.call_later(_TICK_S / 5, self._resume_when_drained, connection)
        else:
            connection.resume()

    async def _watch(self, connection: "_Connection") -> None:
        """Cut a connection on which nothing comes, or only pings after there was market data."""
        options = self._options
        silent_after_s = options.silent_after_s or _SILENT_FACTOR * options.stale_after_s
        while True:
            await asyncio.sleep(min(options.stale_after_s, silent_after_s) / 10)
            now = self._clock()
            if connection.is_paused:
                continue
            idle_s = now - connection.last_data_s
            silent_s = now - (now if connection.last_frame_s is None else connection.last_frame_s)
            if idle_s > options.stale_after_s:
                self._observe("stale", silent_s=round(idle_s, 1))
            elif silent_s > silent_after_s:
                connection.farewell = "pings but no market data"
                self._observe("silent", silent_s=round(silent_s, 1))
            else:
                continue
            connection.transport.abort()
            return

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
                hint="check --symbols and --url; 451 means not served where you are, "
                "3xx a redirect to another server, which is not followed",
            ) from exc
        if is_late:
            raise Unavailable(
                f"no connection to {', '.join(self._options.urls)}: {_reason(exc)}",
                hint="check the network, or name another server with --url",
            ) from exc


class _SameOriginConnect(connect):
    """Follows redirects within a server only."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        before = self.ws_uri
        try:
            target = super().process_redirect(exc)
            if isinstance(target, Exception):
                return target
            after = parse_uri(target)
        except (InvalidURI, ValueError):  # http://, for instance
            return exc
        is_same = (after.secure, after.host, after.port) == (
            before.secure,
            before.host,
            before.port,
        )
        return target if is_same else exc


class _Connection(ClientConnection):
    """A connection that hands its messages over as they come, without a queue of its own.

    `received_us` and `last_data_s` say when data last came, pings included; `last_frame_s` when
    market data did.
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
        self.last_frame_s: float | None = None  # of market data
        self.is_paused = False
        self._clock = clock
        self._take = take
        self._messages: list[bytes] = []  # of the current read
        self._fragments = bytearray()
        self._is_fragmented = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if hasattr(transport, "max_size"):  # of asyncio's own sockets
            transport.max_size = _READ_BYTES
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self.received_us = time.time_ns() // 1000
        self.last_data_s = self._clock()
        super().data_received(data)
        if self.transport.get_write_buffer_size() > _UNSENT_MAX_BYTES:
            self.farewell = "the exchange does not read the replies to its pings"
            self.transport.abort()
        if self._messages:
            self.last_frame_s = self.last_data_s
            messages, self._messages = self._messages, []
            self._take(self, messages)

    def process_event(self, event: Event) -> None:
        if not isinstance(event, Frame) or event.opcode not in _DATA:
            super().process_event(event)
        elif event.fin and not self._is_fragmented:
            self._messages.append(bytes(event.data))
        else:
            self._fragments += event.data
            self._is_fragmented = not event.fin
            if event.fin:
                self._messages.append(bytes(self._fragments))
                self._fragments.clear()

    def pause(self) -> None:
        """Stop reading from the network, so that the exchange feels the back-pressure."""
        self.is_paused = True
        self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self.is_paused = False
        self.last_data_s = self.last_frame_s = self._clock()
        if not self.transport.is_closing():
            self.transport.resume_reading()


def _is_final(status: int) -> bool:
    """Return whether a status means that another attempt is pointless; redirects elsewhere do."""
    is_refused = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_refused and status not in _RETRIED_STATUS


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
