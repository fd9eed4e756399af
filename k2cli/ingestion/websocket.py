"""The WebSocket connections of a run, one for each subscription, in an event loop of their own.

They queue the payloads of messages in a `BurstQueue`, with one receive time per read from the
network. Nothing here is specific to an exchange.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from k2cli.errors import K2Error
from k2cli.events import Observer
from k2cli.ingestion.breaker import ServerHealth, Servers
from k2cli.ingestion.bursts import BurstQueue
from k2cli.ingestion.intake import Intake
from k2cli.ingestion.proxies import proxy_for
from k2cli.ingestion.reconnect import AttemptBudget
from k2cli.ingestion.silence import StreamWatch
from k2cli.ingestion.subscriber import ConnectionOptions, Shared, Subscriber
from k2cli.ingestion.subscriptions import Subscription, Subscriptions


class Connections:
    """Keeps a connection open for every subscription.

    It reports the events of `Subscriber` and `Servers`.

    Raises:
        ConfigError: the proxy set in the environment cannot be used.
    """

    def __init__(
        self,
        *,
        subscriptions: Subscriptions,
        options: ConnectionOptions,
        queue: BurstQueue,
        watch: StreamWatch,
        observe: Observer,
    ) -> None:
        self._shared = Shared(
            options=options,
            servers=Servers(options.bases, observe=observe, clock=options.clock),
            budget=AttemptBudget(
                attempts=options.attempts, window_s=options.window_s, clock=options.clock
            ),
            intake=Intake(
                queue,
                max_messages=options.max_messages,
                on_full=self.stop,
                record=options.record,
            ),
            watch=watch,
            proxies={base: proxy_for(base) for base in options.bases},
            observe=observe,
        )
        self._subscriptions = subscriptions
        self._changes: deque[tuple[Sequence[str], Sequence[str]]] = deque()
        self._subscribers = {Subscriber(each, self._shared): None for each in subscriptions.all}
        self._tasks: dict[Subscriber, asyncio.Task[None]] = {}
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: asyncio.Task[None] | None = None
        self._group: asyncio.TaskGroup | None = None

    @property
    def was_connected(self) -> bool:
        """Whether any server was reached so far."""
        return self._shared.was_connected

    @property
    def servers(self) -> list[ServerHealth]:
        """The health of every server, in failover order."""
        return self._shared.servers.health()

    @property
    def closed(self) -> int:
        """The number of subscriptions that have no open connection now.

        Extra ones do not count: their streams belong to another subscription.
        """
        return sum(each.base is None for each in list(self._subscribers) if not each.is_extra)

    def change(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Begin and end streams, by the exchange's names. Any thread, at any time."""
        self._changes.append((added, removed))
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._apply_changes)

    def _apply_changes(self) -> None:
        is_ending = self._running is None or self._running.cancelling()
        while self._changes and not is_ending:
            added, removed = self._changes.popleft()
            fresh = self._subscriptions.change(added, removed)
            for subscriber in list(self._subscribers):
                subscriber.subscription.remove(removed)
                if not subscriber.subscription.names:
                    self.remove(subscriber)
            for subscription in fresh:
                self.add(subscription, is_late=True)

    def stop(self) -> None:
        """Stop reading and make `run` return. Safe from any thread, at any time."""
        self._stopped.set()
        self._shared.intake.is_open = False
        if self._loop is not None and self._running is not None:
            with suppress(RuntimeError):  # the loop is closed, and so are the connections
                self._loop.call_soon_threadsafe(self._running.cancel)

    def run(self, *besides: Callable[[], Awaitable[None]]) -> None:
        """Receive until stopped, or until the requested number of messages has arrived.

        `besides` are started in the same event loop, and cancelled in the end.

        Raises:
            Unavailable: no connection in time, or a server refuses permanently.
        """
        with suppress(asyncio.CancelledError):
            asyncio.run(self._connect_all(besides))

    async def _connect_all(self, besides: Sequence[Callable[[], Awaitable[None]]]) -> None:
        self._loop = asyncio.get_running_loop()
        self._running = asyncio.current_task()
        if self._stopped.is_set():
            return
        try:
            async with asyncio.TaskGroup() as self._group:
                for subscriber in self._subscribers:
                    self._start(subscriber)
                for each in besides:
                    self._group.create_task(_run(each))
                self._apply_changes()
                await asyncio.Event().wait()  # streams may begin later, even if none is left
        except* K2Error as failures:
            raise failures.exceptions[0] from None

    def _start(self, subscriber: Subscriber) -> None:
        assert self._group is not None, "not running"
        self._tasks[subscriber] = self._group.create_task(subscriber.run())

    # --- changes during a run, within its event loop

    def add(
        self, subscription: Subscription, *, is_extra: bool = False, is_late: bool = False
    ) -> Subscriber:
        """Open another connection; see `Subscriber`."""
        subscriber = Subscriber(subscription, self._shared, is_extra=is_extra, is_late=is_late)
        self._subscribers[subscriber] = None
        self._start(subscriber)
        return subscriber

    def remove(self, subscriber: Subscriber) -> None:
        """Close the connection of a subscriber."""
        self._subscribers.pop(subscriber, None)
        self._tasks.pop(subscriber).cancel()

    def of_stream(self, name: str) -> list[Subscriber]:
        """Return the subscribers of a stream, the newest last."""
        return [each for each in self._subscribers if name in each.subscription.names]


async def _run(each: Callable[[], Awaitable[None]]) -> None:
    await each()
