"""One subscription, and the connection that delivers it: failover, watchdog, rollover.

A `Subscriber` keeps one connection open. When that nears the end of its life, or the exchange
announces a shutdown, a second one takes over: see `rollover`. Nothing here is specific to an
exchange.

The module is long because the states of a connection and its successor share their data.
"""

import asyncio
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from typing import Final

from k2cli.errors import Unavailable
from k2cli.events import Cause, Observer
from k2cli.ingestion.breaker import Servers
from k2cli.ingestion.bursts import NOTICE_MAX_BYTES
from k2cli.ingestion.connection import Connection, Ending, Refused
from k2cli.ingestion.intake import Intake
from k2cli.ingestion.reconnect import STABLE_S, AttemptBudget, Backoff
from k2cli.ingestion.recorder import Record
from k2cli.ingestion.rollover import DelayedFrames, Overlap, Plan, RolloverReason
from k2cli.ingestion.silence import StreamWatch
from k2cli.ingestion.subscriptions import Subscription

_OPEN_S: Final = 10.0  # at most, for one attempt
_MAX_TICK_S: Final = 1.0  # between checks of a connection
_OVERLAP_TICK_S: Final = 0.05  # between checks of two connections


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionOptions:
    """The servers, and when to give up on a connection, replace it or stop."""

    bases: Sequence[str]  # in failover order, as events name them
    attempts: int  # to connect, within each window, for all connections
    window_s: float
    lifetime_s: float  # then the exchange cuts a connection
    shutdown_notice: bytes  # in the short frame that announces the end; empty if there is none
    stream_of: Callable[[bytes], str]  # the stream that a frame names, or an empty text
    connect_timeout_s: float  # for the first connection; later outages are waited out
    stale_after_s: float  # without anything
    silent_after_s: float  # without data, once there was some
    overlap_s: float  # of two connections, at most
    rollover_at: time | None  # every day, UTC
    max_messages: int | None
    record: Record | None  # gets all frames as they are received, in one thread
    clock: Callable[[], float]


@dataclass(slots=True, kw_only=True)
class Shared:
    """What the subscribers of a process share."""

    options: ConnectionOptions
    servers: Servers
    budget: AttemptBudget
    intake: Intake
    watch: StreamWatch
    proxies: Mapping[str, str | None]  # by base
    observe: Observer
    was_connected: bool = False  # to any server, since the start


@dataclass(slots=True, eq=False)
class Link:
    """An open connection to one of the servers."""

    base: str
    names: Sequence[str]  # of the streams that it was opened for
    opened_s: float
    plan: Plan
    receive: Callable[[list[bytes]], None]
    connection: Connection = field(init=False)
    is_wanted: asyncio.Event = field(default_factory=asyncio.Event)  # a rollover is
    reason: RolloverReason | None = None  # of the rollover

    def replace(self, reason: RolloverReason) -> None:
        """Ask for a rollover, immediately."""
        self.reason = self.reason or reason
        self.is_wanted.set()


class Subscriber:
    """Keeps a connection open for one subscription.

    It reports the events `connected`, `disconnected`, `rollover`, `rollover_delayed`,
    `attempts_limited`, `stale` and `silent`. After a reconnect a new session begins in the queue,
    but not after a rollover. `is_extra` is set if the streams belong to another subscriber, which
    did not receive them. No failure of such a subscriber ends the run, nor of one that is added
    during the run: then `is_late` is set.
    """

    def __init__(
        self,
        subscription: Subscription,
        shared: Shared,
        *,
        is_extra: bool = False,
        is_late: bool = False,
    ) -> None:
        self.subscription: Final = subscription
        self.is_extra: Final = is_extra
        self._shared = shared
        self._options = shared.options
        self._observe = shared.observe
        self._clock = shared.options.clock
        self._is_vital = not is_extra and not is_late
        self._bases = subscription.bases
        self._backoff = Backoff(len(self._bases))
        self._is_first = True
        self._deadline_s: float | None = None
        self._avoided: str | None = None  # the server of a connection that was stale
        self._links: set[Link] = set()  # all that are open
        self._link: Link | None = None  # the current one
        self._successor: tuple[Link, Overlap, DelayedFrames] | None = None

    @property
    def base(self) -> str | None:
        """The server of the current connection, if there is one."""
        return self._link.base if self._link is not None else None

    def replace(self, reason: RolloverReason) -> None:
        """Replace the current connection, if there is one, by one to another server."""
        if self._link is not None:
            self._link.replace(reason)

    async def run(self) -> None:
        """Receive until cancelled.

        Raises:
            Unavailable: no first connection in time, or its server refuses permanently.
        """
        try:
            while True:
                link: Link | None = await self._connect()
                while link is not None:
                    link = await self._serve(link)
        finally:
            await asyncio.gather(*(link.connection.close() for link in self._links))

    # --- opening

    async def _connect(self) -> Link:
        """Open a connection and make it the current one, however long that takes."""
        while True:
            await self._wait_for_budget()
            started_s = self._clock()
            if self._deadline_s is None:
                self._deadline_s = started_s + self._options.connect_timeout_s
            base = self._choose(avoid=self._avoided)
            self._avoided = None
            try:
                link = await self._open(base)
            except OSError as exc:  # TimeoutError is one
                self._give_up(exc, base)
                await self._wait_to_reconnect(base, _ending(exc), 0.0, _retry_after_s(exc))
                continue
            if not self._is_first:
                self._shared.intake.interrupt()
            self._is_first, self._shared.was_connected = False, True
            self._shared.watch.opened(self.subscription.names)
            self._observe("connected", url=base, streams=len(self.subscription.names))
            self._use(link)
            link.connection.start()
            return link

    def _use(self, link: Link) -> None:
        """Queue what this link receives from now on."""
        self._link = link
        link.receive = lambda frames: self._queue(link, frames)

    def _choose(self, *, avoid: str | None = None) -> str:
        first = self._backoff.server
        return self._shared.servers.choose(
            [*self._bases[first:], *self._bases[:first]], avoid=avoid
        )

    async def _wait_for_budget(self) -> None:
        """Wait until the attempt budget shared by all connections allows another attempt."""
        while (wait_s := self._shared.budget.take()) > 0:
            self._observe("attempts_limited", retry_in_s=round(wait_s, 2))
            await asyncio.sleep(wait_s)

    async def _open(self, base: str) -> Link:
        """Open a connection that does not read yet, and subscribe.

        Raises:
            OSError: it cannot be opened.
        """
        options = self._options
        link = Link(
            base=base,
            names=self.subscription.names,
            opened_s=self._clock(),
            plan=Plan.of(options.lifetime_s, options.rollover_at, datetime.now(UTC)),
            receive=lambda _: None,
        )
        link.connection = Connection(take=lambda _, frames: link.receive(frames), clock=self._clock)
        self._links.add(link)
        self._shared.servers.attempt(base)
        try:
            await link.connection.open(
                self.subscription.urls[base],
                proxy=self._shared.proxies[base],
                timeout_s=min(_OPEN_S, options.connect_timeout_s),
            )
            link.opened_s = self._clock()
            for message in self.subscription.messages:
                link.connection.send(message)
        except BaseException:
            await self._close(link)
            raise
        return link

    async def _close(self, link: Link) -> None:
        await link.connection.close()
        self._links.discard(link)

    def _give_up(self, exc: OSError, base: str) -> None:
        """Raise if another attempt is pointless: refused permanently, or not connected in time."""
        if not self._is_vital:
            return
        if isinstance(exc, ssl.SSLCertVerificationError):
            raise Unavailable(
                f"{base}: the server's certificate is not valid: {exc.verify_message}",
                hint="set SSL_CERT_FILE=ca.pem to trust a private authority",
            ) from exc
        if not self._is_first:
            return
        if isinstance(exc, Refused) and exc.is_final:
            raise Unavailable(
                f"{base} refuses the connection: HTTP {exc.status}",
                hint="check --symbols and --url; 451 means not available in your location, "
                "3xx a redirect to another server, which k2 does not follow",
            ) from exc
        if self._deadline_s is not None and self._clock() > self._deadline_s:
            raise Unavailable(
                f"no connection to {', '.join(self._options.bases)}: {_reason(exc)}",
                hint="check the network, or choose another server with --url",
            ) from exc

    async def _wait_to_reconnect(
        self, base: str, ending: Ending, lasted_s: float, min_delay_s: float = 0.0
    ) -> None:
        """Report a lost connection or a failed attempt, and wait."""
        is_dead = ending.cause in ("stale", "silent")
        if is_dead:
            self._avoided = base
        if is_dead or (lasted_s < STABLE_S and ending.cause != "shutdown"):
            self._shared.servers.fail(base)
        delay_s = max(self._backoff.lost(lasted_s), min_delay_s)
        if self._is_first and self._deadline_s is not None:
            delay_s = min(delay_s, max(0.0, self._deadline_s - self._clock()))
        cause, reason = ending
        self._observe(
            "disconnected", url=base, cause=cause, reason=reason, retry_in_s=round(delay_s, 2)
        )
        await asyncio.sleep(delay_s)

    # --- receiving

    def _queue(self, link: Link, frames: list[bytes]) -> None:
        """Queue what the current link received."""
        self._shared.intake.record(frames, link.connection.received_ns)
        frames = self._without_notice(link, frames)
        if frames:
            self._shared.intake.put(frames, link.connection.received_ns // 1000)
            self._shared.intake.throttle(link.connection)

    def _without_notice(self, link: Link, frames: list[bytes]) -> list[bytes]:
        """Drop a shutdown notice; the link will be replaced immediately."""
        notice = self._options.shutdown_notice
        if not notice or notice not in b"".join(frames):
            return frames
        kept = [f for f in frames if notice not in f or len(f) >= NOTICE_MAX_BYTES]
        if len(kept) < len(frames):
            link.replace("shutdown")
        return kept

    async def _serve(self, link: Link) -> Link | None:
        """Receive until the link ends. Return the link that took over, if one did."""
        closed = asyncio.create_task(link.connection.wait_closed())
        rolled_over = asyncio.create_task(self._roll_over(link))
        watched = asyncio.create_task(self._watch(link))
        followed = asyncio.create_task(self.subscription.follow(link.names, link.connection.send))
        tasks = (closed, rolled_over, watched)
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            closed.cancel()
            raise
        finally:
            rolled_over.cancel()
            watched.cancel()
            followed.cancel()
            await asyncio.wait((rolled_over, watched, followed))
        for task in done - {closed}:
            task.result()  # raises its exception, if any
        if rolled_over in done and closed not in done:
            successor = self._take_over(link)
            await self._close(link)
            return successor
        return await self._after_loss(link, await closed)

    async def _after_loss(self, link: Link, ending: Ending) -> Link | None:
        """Let the successor of a lost link take over, if there is one; else wait to reconnect."""
        if link.reason == "shutdown" and ending.cause == "closed":
            ending = Ending("shutdown", f"the exchange shuts the server down: {ending.reason}")
        successor = self._take_over(link) if self._successor is not None else None
        await self._close(link)
        if successor is not None:
            return successor
        self._link = None
        if not self.is_extra:
            self._shared.watch.closed(self.subscription.names)
        await self._wait_to_reconnect(link.base, ending, self._clock() - link.opened_s)
        return None

    async def _watch(self, link: Link) -> None:
        """Record a connection's health; abort one without data, or with only pings after data."""
        options, connection = self._options, link.connection
        tick_s = min(options.stale_after_s / 10, options.silent_after_s / 10, _MAX_TICK_S)
        counted_s = link.opened_s
        while True:
            await asyncio.sleep(tick_s)
            now, since_s = self._clock(), connection.last_message_s
            if connection.is_paused:
                continue
            if since_s is not None:
                self._shared.servers.hear(link.base, since_s)
            idle_s = now - connection.last_data_s
            silent_s = 0.0 if since_s is None else now - since_s
            if idle_s > options.stale_after_s:
                self._observe("stale", silent_s=round(idle_s, 1))
                return connection.abort("stale", "no data")
            if silent_s > options.silent_after_s:
                self._observe("silent", silent_s=round(silent_s, 1))
                return connection.abort("silent", "pings but no market data")
            if now - counted_s >= STABLE_S and since_s is not None and since_s > counted_s:
                counted_s = now
                self._shared.servers.succeed(link.base)

    # --- rollover

    async def _roll_over(self, link: Link) -> None:
        """Wait until a link has to be replaced, and find a successor that may take over."""
        reason = await self._rollover_reason(link)
        if self._clock() - link.opened_s >= STABLE_S:
            self._backoff.reset()  # the first server may work again
        await self._pace(link)
        failures = Backoff(1)
        avoid = link.base if reason in ("shutdown", "silence") else None
        while True:
            base = self._choose(avoid=avoid)
            while (wait_s := self._shared.budget.take()) > 0:
                await self._delay_rollover(base, "too many attempts to connect", wait_s)
            try:
                successor = await self._open(base)
            except OSError as exc:
                failure, retry_after_s = _reason(exc), _retry_after_s(exc)
            else:
                if await self._overlap(link, successor):
                    return
                failure, retry_after_s = await self._dismiss(link), 0.0
            self._shared.servers.fail(base)
            delay_s = max(failures.lost(0.0), retry_after_s)
            avoid = base
            await self._delay_rollover(base, failure, delay_s)

    async def _delay_rollover(self, base: str, reason: str, delay_s: float) -> None:
        self._observe("rollover_delayed", url=base, reason=reason, retry_in_s=round(delay_s, 2))
        await asyncio.sleep(delay_s)

    async def _rollover_reason(self, link: Link) -> RolloverReason:
        """Wait until a link has to be replaced, and return why."""
        tick_s = min(self._options.lifetime_s / 100, _MAX_TICK_S)
        while link.reason is None:
            with suppress(TimeoutError):
                async with asyncio.timeout(tick_s):
                    await link.is_wanted.wait()
            link.reason = link.reason or link.plan.reason(
                self._clock() - link.opened_s, datetime.now(UTC)
            )
        return link.reason

    async def _pace(self, link: Link) -> None:
        """Wait if a link is young and attempts are scarce: servers may shut down repeatedly."""
        least_s = self._options.window_s / self._options.attempts
        if self._shared.budget.is_half_used:
            await asyncio.sleep(max(0.0, least_s - (self._clock() - link.opened_s)))

    async def _overlap(self, link: Link, successor: Link) -> bool:
        """Let two links deliver; return whether the successor may take over."""
        overlap = Overlap(
            expected=self._shared.watch.delivered(self.subscription.names),
            limit_s=self._options.overlap_s,
            clock=self._clock,
        )
        delayed = DelayedFrames(self._clock)
        self._successor = (successor, overlap, delayed)
        link.receive = lambda frames: self._queue_noted(link, frames, overlap)
        successor.receive = lambda frames: self._delay(successor, frames, overlap, delayed)
        successor.connection.start()
        while not successor.connection.is_closed:
            self._queue_delayed(delayed)
            decision = overlap.decide()
            if decision != "wait":
                return decision == "take over"
            await asyncio.sleep(_OVERLAP_TICK_S)
        return False

    def _queue_noted(self, link: Link, frames: list[bytes], overlap: Overlap) -> None:
        overlap.note(self._streams(frames), is_successor=False)
        self._queue(link, frames)

    def _delay(
        self, link: Link, frames: list[bytes], overlap: Overlap, delayed: DelayedFrames
    ) -> None:
        """Keep what the successor received for a moment."""
        self._shared.intake.record(frames, link.connection.received_ns)
        frames = self._without_notice(link, frames)
        overlap.note(self._streams(frames), is_successor=True)
        delayed.add(frames, link.connection.received_ns // 1000)
        self._shared.intake.throttle(link.connection)

    def _streams(self, frames: Sequence[bytes]) -> set[str]:
        return {name for frame in frames if (name := self._options.stream_of(frame))}

    def _queue_delayed(self, delayed: DelayedFrames, *, all_of_them: bool = False) -> None:
        for received_us, frames in delayed.take(all_of_them=all_of_them):
            self._shared.intake.put(frames, received_us)

    async def _dismiss(self, link: Link) -> str:
        """Close the successor of a link: it does not deliver what it should; return why."""
        assert self._successor is not None
        (successor, _, delayed), self._successor = self._successor, None
        self._queue_delayed(delayed, all_of_them=True)
        self._use(link)
        reason = "it lacks streams that the current connection delivers"
        if successor.connection.is_closed:
            reason = (await successor.connection.wait_closed()).reason
        await self._close(successor)
        return reason

    def _take_over(self, link: Link) -> Link:
        """Make the successor the current link. Both were open, so the session goes on."""
        assert self._successor is not None
        (successor, overlap, delayed), self._successor = self._successor, None
        self._queue_delayed(delayed, all_of_them=True)
        self._use(successor)
        self._observe(
            "rollover",
            url=successor.base,
            streams=len(self.subscription.names),
            reason=link.reason or "",
            overlap_s=round(overlap.duration_s, 2),
        )
        return successor


def _retry_after_s(exc: OSError) -> float:
    return exc.retry_after_s if isinstance(exc, Refused) else 0.0


def _ending(exc: OSError) -> Ending:
    """Return why a connection could not be opened."""
    cause: Cause = "error"
    if isinstance(exc, Refused):
        cause = "refused"
    elif isinstance(exc, TimeoutError):
        cause = "timeout"
    return Ending(cause, _reason(exc))


def _reason(exc: OSError) -> str:
    return str(exc) or type(exc).__name__
