"""A market whose connections all get the same trades, as at an exchange, with faults on demand."""

import asyncio
import re
from typing import TYPE_CHECKING, Any

from websockets.asyncio.server import ServerConnection, broadcast
from websockets.exceptions import ConnectionClosed

from support.streamreading import trade_frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

NOTICE = '{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1723161348056}}'


class SharedMarket:
    """Publishes a trade of every requested symbol at short intervals, with the same number.

    `delivers` decides whether the nth connection gets the trade of a symbol with a number. `acts`
    has what happens before a number is published.
    """

    def __init__(self, interval_s: float = 0.02) -> None:
        self.connections: list[ServerConnection] = []  # all so far
        self.paths: list[str] = []
        self.number = 0
        self.delivers: Callable[[int, str, int], bool] = lambda _nth, _symbol, _number: True
        self.acts: dict[int, Callable[[], Awaitable[None]]] = {}
        self._symbols: dict[int, list[str]] = {}
        self._interval_s = interval_s
        self._publishing: asyncio.Task[None] | None = None

    async def handle(self, connection: ServerConnection) -> None:
        """Serve a client."""
        assert connection.request is not None
        path = connection.request.path
        self._symbols[len(self.connections)] = re.findall(r"(\w+)@trade", path)
        self.connections.append(connection)
        self.paths.append(path)
        if self._publishing is None:
            self._publishing = asyncio.create_task(self._publish())
        await connection.wait_closed()

    async def _publish(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            self.number += 1
            act = self.acts.get(self.number)
            if act is not None:
                await act()
            for symbol in sorted({name for names in self._symbols.values() for name in names}):
                receivers = [
                    connection
                    for nth, connection in enumerate(self.connections)
                    if symbol in self._symbols[nth] and self.delivers(nth, symbol, self.number)
                ]
                broadcast(receivers, trade_frame(self.number, symbol.upper()))

    async def announce(self, nth: int = 0) -> None:
        """Announce that the server of the nth connection shuts down."""
        await self.connections[nth].send(NOTICE)

    async def cut(self, nth: int = 0) -> None:
        """End the nth connection without a handshake."""
        self.connections[nth].transport.abort()

    async def close(self, nth: int = 0) -> None:
        """Close the nth connection."""
        try:
            await self.connections[nth].close(1001, "going away")
        except ConnectionClosed:
            return


def refusing(*numbers: int) -> Any:
    """Refuse these handshakes, counted from 0; pass it to `serving` as `process_request`."""
    tries = iter(range(10_000))

    def answer(connection: ServerConnection, _request: Any) -> Any:
        return connection.respond(503, "not now") if next(tries) in numbers else None

    return answer
