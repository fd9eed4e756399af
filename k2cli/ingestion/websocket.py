"""Persistent WebSocket connections: failover, sessions, back-pressure, watchdog.

`Connections` keeps one connection per subscription, in a separate event loop. It queues the
payloads of messages in a `BurstQueue`, with one receive time per read from the network. While the
queue is long the connections stop reading, so back-pressure reaches the exchange and memory stays
bounded. Nothing here is specific to an exchange.
"""

import asyncio
import ssl
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from k2cli.errors import K2Error, Unavailable
from k2cli.events import Observer
from k2cli.ingestion.bursts import NOTICE_MAX_BYTES, BurstQueue
from k2cli.ingestion.connection import Connection, Refused
from k2cli.ingestion.proxies import proxy_for
from k2cli.ingestion.reconnect import AttemptBudget, Backoff
from k2cli.ingestion.recorder import Record

_QUEUE_HIGH_BYTES: Final = 8 * 1024 * 1024  # reading pauses above it, until half is left
_DRAIN_CHECK_S: Final = 0.01  # between checks of a queue that is too long
_OPEN_S: Final = 10.0  # at most, for one attempt


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
    record: Record | None = None  # gets all frames as they are received, in one thread


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
            reason, lasted_s, min_delay_s = "", 0.0, 0.0
            try:
                async with self._open(base, url) as connection:
                    started = self._clock()
                    if not is_first:
                        self._queue.begin_session()
                    is_first, self.was_connected = False, True
                    self._observe("connected", url=base, streams=subscription.streams)
                    for message in subscription.messages:
                        connection.send(message)
                    connection.start()
                    reason = await self._wait_closed(connection)
                    lasted_s = self._clock() - started
            except OSError as exc:  # TimeoutError is one
                reason = _reason(exc)
                min_delay_s = exc.retry_after_s if isinstance(exc, Refused) else 0.0
                self._give_up(exc, base, is_first=is_first, is_late=self._clock() > deadline)
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
    async def _open(self, base: str, url: str) -> AsyncIterator[Connection]:
        """Open a connection; close it quickly even if the exchange does not respond."""
        connection = Connection(take=self._take, clock=self._clock)
        timeout_s = min(_OPEN_S, self._options.connect_timeout_s)
        try:
            await connection.open(url, proxy=self._proxies[base], timeout_s=timeout_s)
            yield connection
        finally:
            await connection.close()

    async def _wait_closed(self, connection: Connection) -> str:
        """Wait until the connection closes, while `_take` receives; return the reason."""
        watchdog = asyncio.create_task(self._watch(connection))
        try:
            return await connection.wait_closed()
        finally:
            watchdog.cancel()

    def _take(self, connection: Connection, frames: list[bytes]) -> None:
        """Queue and record frames, up to the requested number of messages."""
        if self._stopped.is_set():
            return
        received = frames
        notice = self._options.shutdown_notice
        if notice and notice in b"".join(frames):
            frames = self._without_notice(connection, frames, notice)
        limit = self._options.max_messages
        if limit is not None and len(frames) > limit - self._received:
            received = frames = frames[: limit - self._received]
        if self._options.record is not None:
            self._options.record(received, connection.received_ns)
        if not frames:
            return
        self._queue.put(frames, connection.received_ns // 1000)
        self._received += len(frames)
        if self._received == limit:
            self.stop()
        elif self._queue.is_over(_QUEUE_HIGH_BYTES) and not connection.is_paused:
            connection.pause()
            self._resume_when_drained(connection)

    def _without_notice(
        self, connection: Connection, frames: list[bytes], notice: bytes
    ) -> list[bytes]:
        """Drop a shutdown notice and reconnect immediately."""
        kept = [f for f in frames if notice not in f or len(f) >= NOTICE_MAX_BYTES]
        if len(kept) < len(frames):
            connection.abort("the exchange shuts the server down")
        return kept

    def _resume_when_drained(self, connection: Connection) -> None:
        if self._queue.is_over(_QUEUE_HIGH_BYTES // 2):
            loop = asyncio.get_running_loop()
            loop.call_later(_DRAIN_CHECK_S, self._resume_when_drained, connection)
        else:
            connection.resume()

    async def _watch(self, connection: Connection) -> None:
        """Close a connection without data, or with only pings after there was market data."""
        options = self._options
        while True:
            await asyncio.sleep(min(options.stale_after_s, options.silent_after_s) / 10)
            now = self._clock()
            if connection.is_paused:
                continue
            idle_s = now - connection.last_data_s
            since_s = connection.last_message_s
            silent_s = 0.0 if since_s is None else now - since_s
            if idle_s > options.stale_after_s:
                self._observe("stale", silent_s=round(idle_s, 1))
                return connection.abort("no data")
            if silent_s > options.silent_after_s:
                self._observe("silent", silent_s=round(silent_s, 1))
                return connection.abort("pings but no market data")

    def _give_up(self, exc: OSError, base: str, *, is_first: bool, is_late: bool) -> None:
        """Raise if another attempt is pointless: refused permanently, or not connected in time."""
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise Unavailable(
                f"{base}: the server's certificate is not valid: {exc.verify_message}",
                hint="set SSL_CERT_FILE=ca.pem to trust a private authority",
            ) from exc
        if not is_first:
            return
        if isinstance(exc, Refused) and exc.is_final:
            raise Unavailable(
                f"{base} refuses the connection: HTTP {exc.status}",
                hint="check --symbols and --url; 451 means not available in your location, "
                "3xx a redirect to another server, which k2 does not follow",
            ) from exc
        if is_late:
            raise Unavailable(
                f"no connection to {', '.join(self._options.bases)}: {_reason(exc)}",
                hint="check the network, or choose another server with --url",
            ) from exc


def _reason(exc: OSError) -> str:
    return str(exc) or type(exc).__name__
