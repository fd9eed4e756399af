"""Persistent WebSocket connections: failover, sessions, back-pressure, watchdog.

`Connections` keeps one connection per subscription, in a separate event loop. It queues the
payloads of messages in a `BurstQueue`, with one receive time per read from the network. While the
queue is long the connections stop reading, so back-pressure reaches the exchange and memory stays
bounded. Nothing here is specific to an exchange.

This is the only ingestion module that imports the WebSocket library. Everything that depends on it
is here, including proxies and redirects, which is why the module is long.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from importlib.util import find_spec
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidProxy, InvalidStatus, InvalidURI, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import Event
from websockets.proxy import get_proxy, parse_proxy
from websockets.uri import parse_uri

from k2cli.errors import ConfigError, K2Error, Unavailable
from k2cli.events import Observer
from k2cli.ingestion.bursts import BurstQueue
from k2cli.ingestion.reconnect import AttemptBudget, Backoff
from k2cli.urls import check_password

_QUEUE_HIGH_BYTES: Final = 8 * 1024 * 1024  # reading pauses above it, until half is left
_READ_BYTES: Final = 32 * 1024  # per run: a loop over tiny frames cannot be interrupted
_UNSENT_MAX_BYTES: Final = 1024 * 1024  # of pongs that the exchange does not read
_DRAIN_CHECK_S: Final = 0.01  # between checks of a queue that is too long
_CLOSE_S: Final = 0.3  # for the closing handshake
_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_NOTICE_MAX_BYTES: Final = 256  # a longer frame is never a shutdown notice
_THROTTLED: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.IM_A_TEAPOT,  # "banned for a while", at some exchanges
)
_RETRIED_STATUS: Final = (HTTPStatus.REQUEST_TIMEOUT, *_THROTTLED)
_MAX_RETRY_AFTER_S: Final = 3600.0
_SOCKS_PORT: Final = 1080
_PROXY: Final = "the proxy from the environment"
_PROXY_HINT: Final = (
    "set HTTPS_PROXY to http://HOST:PORT or socks5h://HOST:PORT, and exceptions in NO_PROXY"
)

_DATA: Final = (Opcode.TEXT, Opcode.BINARY, Opcode.CONT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """What one connection subscribes to, on any of its servers."""

    streams: int
    urls: Sequence[str]  # one per base
    messages: Sequence[str] = ()  # to send once connected


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The servers, and when to give up on a connection or stop."""

    bases: Sequence[str]  # in failover order, as events name them
    attempts: int  # to connect, within each window, for all connections
    window_s: float
    shutdown_notice: bytes  # in the short frame that announces the end; empty if there is none
    connect_timeout_s: float  # for the first connection; later outages are waited out
    stale_after_s: float  # without anything
    silent_after_s: float  # without data, once there was some
    max_messages: int | None


class Connections:
    """Keeps a connection open for every subscription.

    It reports the events `connected`, `disconnected` (with the reason), `attempts_limited`,
    `stale` and `silent`. After a reconnect a new session begins in the queue.

    Raises:
        ConfigError: the proxy set in the environment cannot be used.
    """

    def __init__(
        self,
        *,
        subscriptions: Sequence[Subscription],
        options: ConnectionOptions,
        queue: BurstQueue,
        observe: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._proxies = {base: proxy_for(base) for base in options.bases}
        self._subscriptions = subscriptions
        self._options = options
        self._queue = queue
        self._observe = observe
        self._clock = clock
        self._received = 0
        self._budget = AttemptBudget(
            attempts=options.attempts, window_s=options.window_s, clock=clock
        )
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connections: asyncio.Task[None] | None = None
        self.was_connected = False  # to any server, since the start

    def stop(self) -> None:
        """Stop reading and make `run` return. Safe from any thread, at any time."""
        self._stopped.set()
        if self._loop is not None and self._connections is not None:
            with suppress(RuntimeError):  # the loop is closed, and so are the connections
                self._loop.call_soon_threadsafe(self._connections.cancel)

    def run(self) -> None:
        """Receive until stopped, or until the requested number of messages has arrived.

        Raises:
            Unavailable: no connection in time, or a server refuses permanently.
        """
        with suppress(asyncio.CancelledError):
            asyncio.run(self._connect_all())

    async def _connect_all(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._connections = asyncio.current_task()
        if self._stopped.is_set():
            return
        try:
            async with asyncio.TaskGroup() as group:
                for subscription in self._subscriptions:
                    group.create_task(self._keep_connected(subscription))
        except* K2Error as failures:
            raise failures.exceptions[0] from None

    async def _keep_connected(self, subscription: Subscription) -> None:
        """Keep one connection open for a subscription until cancelled."""
        options, urls = self._options, subscription.urls
        backoff, is_first, deadline = Backoff(len(urls)), True, 0.0
        while True:
            await self._wait_for_budget()
            started = self._clock()
            deadline = deadline or started + options.connect_timeout_s
            base, url = options.bases[backoff.server], urls[backoff.server]
            connection, reason, lasted_s, min_delay_s = None, "", 0.0, 0.0
            try:
                async with self._open(base, url, is_first=is_first) as connection:
                    started = self._clock()
                    is_first, self.was_connected = False, True
                    self._begin_session(connection)
                    for message in subscription.messages:
                        await connection.send(message)
                    self._observe("connected", url=base, streams=subscription.streams)
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
        """Wait until the attempt budget shared by all connections allows another attempt."""
        while (wait_s := self._budget.take()) > 0:
            self._observe("attempts_limited", retry_in_s=round(wait_s, 2))
            await asyncio.sleep(wait_s)

    @asynccontextmanager
    async def _open(self, base: str, url: str, *, is_first: bool) -> AsyncIterator["_Connection"]:
        """Open a connection; close it quickly even if the exchange does not respond."""
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
            ping_interval=None,  # pings from here would count as inbound messages
            max_size=_MAX_FRAME_BYTES,
        )

    def _begin_session(self, connection: "_Connection") -> None:
        """Start a new session for what arrives from now on."""
        if connection.is_reconnected:
            connection.is_reconnected = False
            self._queue.begin_session()

    async def _read(self, connection: "_Connection") -> None:
        """Wait until the connection closes, while `_take` receives.

        Raises:
            ConnectionClosed: always, with the reason.
        """
        watchdog = asyncio.create_task(self._watch(connection))
        try:
            await connection.recv()
        finally:
            watchdog.cancel()

    def _take(self, connection: "_Connection", frames: list[bytes]) -> None:
        """Queue frames, up to the requested number of messages."""
        if self._stopped.is_set():
            return
        self._begin_session(connection)
        notice = self._options.shutdown_notice
        if notice and notice in b"".join(frames):
            frames = self._without_notice(connection, frames, notice)
        limit = self._options.max_messages
        if limit is not None:
            frames = frames[: limit - self._received]
        if not frames:
            return
        self._queue.put(frames, connection.received_us)
        self._received += len(frames)
        if self._received == limit:
            self.stop()
        elif self._queue.is_over(_QUEUE_HIGH_BYTES) and not connection.is_paused:
            connection.pause()
            self._resume_when_drained(connection)

    def _without_notice(
        self, connection: "_Connection", frames: list[bytes], notice: bytes
    ) -> list[bytes]:
        """Drop a shutdown notice and reconnect immediately."""
        kept = [f for f in frames if notice not in f or len(f) >= _NOTICE_MAX_BYTES]
        if len(kept) < len(frames):
            connection.farewell = "the exchange shuts the server down"
            connection.transport.abort()
        return kept

    def _resume_when_drained(self, connection: "_Connection") -> None:
        if self._queue.is_over(_QUEUE_HIGH_BYTES // 2):
            loop = asyncio.get_running_loop()
            loop.call_later(_DRAIN_CHECK_S, self._resume_when_drained, connection)
        else:
            connection.resume()

    async def _watch(self, connection: "_Connection") -> None:
        """Close a connection without data, or with only pings after there was market data."""
        options = self._options
        while True:
            await asyncio.sleep(min(options.stale_after_s, options.silent_after_s) / 10)
            now = self._clock()
            if connection.is_paused:
                continue
            idle_s = now - connection.last_data_s
            silent_s = now - (now if connection.last_frame_s is None else connection.last_frame_s)
            if idle_s > options.stale_after_s:
                self._observe("stale", silent_s=round(idle_s, 1))
            elif silent_s > options.silent_after_s:
                connection.farewell = "pings but no market data"
                self._observe("silent", silent_s=round(silent_s, 1))
            else:
                continue
            connection.transport.abort()
            return

    def _give_up(self, exc: Exception, base: str, *, is_first: bool, is_late: bool) -> None:
        """Raise if another attempt is pointless: refused permanently, or not connected in time."""
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise Unavailable(
                f"{base}: the server's certificate is not valid: {exc.verify_message}",
                hint="set SSL_CERT_FILE=ca.pem to trust a private authority",
            ) from exc
        if not is_first:
            return
        if isinstance(exc, InvalidStatus) and _is_final(exc.response.status_code):
            raise Unavailable(
                f"{base} refuses the connection: HTTP {exc.response.status_code}",
                hint="check --symbols and --url; 451 means not available in your location, "
                "3xx a redirect to another server, which k2 does not follow",
            ) from exc
        if is_late:
            raise Unavailable(
                f"no connection to {', '.join(self._options.bases)}: {_reason(exc)}",
                hint="check the network, or choose another server with --url",
            ) from exc


class _SameOriginConnect(connect):
    """Follows redirects only within a server."""

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
    """A connection that passes messages on as they arrive, without queueing them.

    `received_us` and `last_data_s` are the times of the last data, pings included; `last_frame_s`
    is the time of the last market data.
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
        self.farewell = ""  # the exchange's shutdown notice
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


def proxy_for(url: str) -> str | None:
    """Return the proxy URL that the environment sets for a WebSocket URL, if any.

    A URL without a scheme means an HTTP proxy, as in curl.

    Raises:
        ConfigError: the value is not a proxy URL, or this kind of proxy needs a missing package.
    """
    proxy = get_proxy(parse_uri(url))
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    check_password(proxy, _PROXY, ConfigError)
    try:
        kind = parse_proxy(proxy).scheme
        is_socks = kind.startswith("socks")
        if is_socks and urlsplit(proxy).port is None:
            proxy = f"{proxy.rstrip('/')}:{_SOCKS_PORT}"
    except (InvalidProxy, ValueError) as exc:
        raise ConfigError(f"{_PROXY}: {exc}", hint=_PROXY_HINT) from exc
    if is_socks and find_spec("python_socks") is None:
        raise ConfigError(
            f"{_PROXY} is a {kind} proxy, which needs python-socks",
            hint="pip install 'k2cli[socks]'",
        )
    return proxy


def retry_after_s(exc: Exception) -> float:
    """Return how many seconds a throttling server asked clients to wait, or 0."""
    if not isinstance(exc, InvalidStatus) or exc.response.status_code not in _THROTTLED:
        return 0.0
    text = exc.response.headers.get("Retry-After", "")
    return min(float(text), _MAX_RETRY_AFTER_S) if text.isascii() and text.isdecimal() else 0.0


def _is_final(status: int) -> bool:
    """Return whether a status makes another attempt pointless, as redirects elsewhere do."""
    is_refused = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    return is_refused and status not in _RETRIED_STATUS


def _reason(exc: Exception) -> str:
    return str(exc) or type(exc).__name__
