"""Which streams each connection carries, while streams are added and removed.

The streams of a `Subscription` are what its connection should carry: a connection that is opened
asks for all of them, and one that is open follows their changes by messages, within the exchange's
limit. Everything here belongs to the event loop of the connections.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol
from urllib.parse import quote


class StreamLimits(Protocol):
    """The exchange's limits for one connection, with a margin."""

    @property
    def streams(self) -> int:
        """The most streams."""

    @property
    def url_bytes(self) -> int:
        """The most bytes of their names in a URL."""

    @property
    def messages_per_s(self) -> float:
        """The most messages that a client may send."""


class StreamVenue(Protocol):
    """How an exchange is asked for streams; see `Venue`."""

    @property
    def limits(self) -> StreamLimits:
        """The limits of a connection."""

    def stream_url(self, base: str, names: Sequence[str]) -> str:
        """Return the URL of a connection for these streams."""

    def subscribe(self, names: Sequence[str]) -> Sequence[str]:
        """Return the messages to send once connected."""

    def change(self, added: Sequence[str], removed: Sequence[str]) -> Sequence[str]:
        """Return the messages that change the streams of an open connection."""


class Subscription:
    """The streams of one connection, on any of its servers."""

    def __init__(self, venue: StreamVenue, bases: Sequence[str], names: Iterable[str]) -> None:
        self._venue = venue
        self.bases = bases  # of its servers, in failover order
        self._names = dict.fromkeys(names)
        self._size_bytes = sum(map(_size_bytes, self._names))
        self._changed = asyncio.Event()

    @property
    def names(self) -> Sequence[str]:
        """The exchange's names of the streams."""
        return tuple(self._names)

    @property
    def streams(self) -> int:
        """The number of streams."""
        return len(self._names)

    @property
    def urls(self) -> Mapping[str, str]:
        """The URL on each server, by base, in failover order."""
        return {base: self._venue.stream_url(base, self.names) for base in self.bases}

    @property
    def messages(self) -> Sequence[str]:
        """The messages to send once connected."""
        return self._venue.subscribe(self.names)

    def add(self, name: str) -> bool:
        """Add a stream; return False if the connection has no room for it."""
        limits, size_bytes = self._venue.limits, self._size_bytes + _size_bytes(name)
        if self.streams >= limits.streams or size_bytes > limits.url_bytes:
            return False
        self._names[name] = None
        self._size_bytes = size_bytes
        self._notify()
        return True

    def remove(self, names: Iterable[str]) -> None:
        """Remove the streams that are among these names."""
        for name in self._names.keys() & set(names):
            del self._names[name]
            self._size_bytes -= _size_bytes(name)
        self._notify()

    def _notify(self) -> None:
        """Wake everything that waits for a change: during a rollover two connections do."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def follow(self, names: Sequence[str], send: Callable[[str], None]) -> None:
        """Keep an open connection, which was opened for `names`, up to date until none is left."""
        pause_s = 1 / self._venue.limits.messages_per_s
        carried = dict.fromkeys(names)
        while self._names:
            added = [name for name in self._names if name not in carried]
            removed = [name for name in carried if name not in self._names]
            if not added and not removed:
                await self._changed.wait()
                continue
            carried = dict.fromkeys(self._names)
            for message in self._venue.change(added, removed):
                send(message)
                await asyncio.sleep(pause_s)


def _size_bytes(name: str) -> int:
    return len(quote(name)) + 1  # and a separator


class Subscriptions:
    """The streams of all connections, within the limits of each."""

    def __init__(self, venue: StreamVenue, bases: Sequence[str]) -> None:
        self._venue = venue
        self._bases = bases
        self.all: Sequence[Subscription] = ()

    def change(self, added: Iterable[str], removed: Iterable[str] = ()) -> list[Subscription]:
        """Add streams where there is room, remove others; return the new subscriptions.

        A subscription without streams is dropped: its connection ends.
        """
        dropped = set(removed)
        for each in self.all:
            each.remove(dropped)
        self.all = [each for each in self.all if each.streams]
        known = {name for each in self.all for name in each.names}
        fresh: list[Subscription] = []
        for name in dict.fromkeys(added):
            if name not in known and not self._add(name):
                fresh.append(Subscription(self._venue, self._bases, [name]))
                self.all = [*self.all, fresh[-1]]
        return fresh

    def _add(self, name: str) -> bool:
        """Add a stream to the connection with the fewest, if there is room."""
        return bool(self.all) and min(self.all, key=lambda each: each.streams).add(name)
