"""What happens to streams that fall silent: they are checked, and their connection is changed."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from k2cli.events import Observer
from k2cli.ingestion.history import HistoryRefused, HistoryUnavailable
from k2cli.ingestion.silence import StreamWatch, Suspect
from k2cli.ingestion.subscriber import Subscriber
from k2cli.ingestion.subscriptions import Subscription
from k2cli.ingestion.websocket import Connections
from k2cli.nearest import first_names

# Returns whether the exchange has trades of a stream's instrument at or after a UTC time in
# microseconds. Raises HistoryRefused or HistoryUnavailable.
HasNewer = Callable[[str, int], Awaitable[bool]]

_MAX_UNCHECKED: Final = 3  # actions for one silence, if nothing confirms it
_CHECK_S: Final = 1.0
_LISTED: Final = 20  # streams per event


class SilenceGuard:
    """Acts on suspicious streams; reports the event `silent_stream`.

    A stream that has spoken before gets a new connection, to another server if there is one. A
    stream that never spoke gets another connection beside the first, which other streams use: to
    the next server or route.
    """

    def __init__(
        self,
        *,
        watch: StreamWatch,
        connections: Connections,
        subscribe: Callable[[Sequence[str], Sequence[str]], Subscription],
        has_newer: HasNewer | None,
        observe: Observer,
    ) -> None:
        """Prepare; `subscribe` builds a subscription for streams from servers in failover order."""
        self._watch = watch
        self._connections = connections
        self._subscribe = subscribe
        self._has_newer = has_newer
        self._observe = observe
        self._refusals: dict[str, str] = {}  # the exchange's reasons, by stream

    async def run(self) -> None:
        """Check the streams every second, until cancelled."""
        while True:
            await asyncio.sleep(_CHECK_S)
            await self.check()

    async def check(self) -> None:
        """Check the suspicious streams once, and act."""
        never: list[Suspect] = []
        replaced: set[Subscriber] = set()
        for suspect in self._watch.suspects():
            *_, owner = self._connections.of_stream(suspect.name) or (None,)
            if owner is None:
                continue  # its symbol was delisted in the meantime
            if suspect.has_spoken and owner in replaced:
                self._watch.wait(suspect)  # its connection is being replaced: no need to ask
            elif await self._is_really_silent(suspect):
                self._watch.act(suspect)
                if suspect.has_spoken:
                    replaced.add(owner)
                    owner.replace("silence")
                    self._report([suspect], "a new connection takes over")
                else:
                    never.append(suspect)
        self._try_elsewhere(never)

    async def _is_really_silent(self, suspect: Suspect) -> bool:
        """Return whether to act: the exchange has newer data, or cannot say."""
        try:
            is_silent = await self._has_missed(suspect)
        except HistoryUnavailable:  # for now
            self._watch.wait(suspect)
            return False
        except HistoryRefused as exc:
            is_silent = None
            self._refusals[suspect.name] = str(exc)
        if not self._watch.is_silent(suspect):  # it spoke in the meantime
            return False
        if is_silent is None:
            is_silent = suspect.actions < _MAX_UNCHECKED
            if not is_silent:
                self._watch.wait(suspect)
            return is_silent
        if not is_silent:
            self._watch.excuse(suspect)
        return is_silent

    async def _has_missed(self, suspect: Suspect) -> bool | None:
        """Ask for trades within the later half of the silence, as clocks may differ."""
        if self._has_newer is None:
            return None
        since_us = time.time_ns() // 1000 - int(suspect.silent_s / 2 * 1_000_000)
        return await self._has_newer(suspect.name, since_us)

    def _try_elsewhere(self, suspects: Sequence[Suspect]) -> None:
        """Open another connection for streams that never spoke, to the next server or route."""
        by_servers: dict[tuple[str, ...], list[Suspect]] = {}
        useless: set[Subscriber] = set()
        for suspect in suspects:
            if not (subscribers := self._connections.of_stream(suspect.name)):
                continue
            first, *others = subscribers
            by_servers.setdefault(_next_servers([first, *others][-1]), []).append(suspect)
            useless.update(each for each in others if each.base and not self._has_spoken(each))
        for subscriber in useless:
            self._connections.remove(subscriber)
        for bases, some in by_servers.items():
            names = [suspect.name for suspect in some]
            self._connections.add(self._subscribe(names, bases), is_extra=True)
            self._report(some, f"another connection to {bases[0]}")

    def _has_spoken(self, subscriber: Subscriber) -> bool:
        return bool(self._watch.delivered(subscriber.subscription.names))

    def _report(self, suspects: Sequence[Suspect], action: str) -> None:
        names = [suspect.name for suspect in suspects]
        refusals = {self._refusals[name] for name in names if name in self._refusals}
        self._observe(
            "silent_stream",
            stream=first_names(names, _LISTED, sep=","),
            silent_s=round(min(suspect.silent_s for suspect in suspects), 1),
            action="; ".join([action, *sorted(refusals)[:_LISTED]]),
        )


def _next_servers(subscriber: Subscriber) -> tuple[str, ...]:
    """Return the servers in failover order, beginning with the one after the current."""
    bases = subscriber.subscription.bases
    current = subscriber.base
    first = 0 if current is None else bases.index(current) + 1
    return (*bases[first:], *bases[:first])
