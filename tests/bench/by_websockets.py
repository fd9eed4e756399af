"""`k2` with a client of the package `websockets`: `python by_websockets.py ARGUMENTS OF K2`.

The reference for the client in k2: each read is taken from the protocol without its queues.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode
from websockets.protocol import Event

from k2cli.__main__ import main
from k2cli.ingestion import subscriber
from k2cli.ingestion.connection import Ending

_MESSAGES = (Opcode.TEXT, Opcode.BINARY)


class WebsocketsConnection:
    """What `k2cli.ingestion.connection.Connection` is, by another package."""

    def __init__(
        self,
        *,
        take: Callable[["WebsocketsConnection", list[bytes]], None],
        clock: Callable[[], float],
    ) -> None:
        self.is_paused = False
        self.is_started = False
        self.received_ns = 0
        self.last_data_s = clock()
        self.last_message_s: float | None = None
        self.clock = clock
        self.take = take

    async def open(self, url: str, **_options: object) -> None:
        self._client: Any = await connect(
            url,
            create_connection=partial(_Client, self),  # type: ignore[arg-type]
            compression=None,
            ping_interval=None,
            max_size=1 << 24,
        )

    def start(self) -> None:
        self.is_started = True
        self._client.hand_over()

    @property
    def is_closed(self) -> bool:
        return bool(self._client.close_code is not None)

    def send(self, message: str) -> None:
        raise NotImplementedError  # the bench changes no streams

    async def wait_closed(self) -> Ending:
        with suppress(ConnectionClosed):
            await self._client.recv()
        return Ending("closed", "closed")

    async def close(self) -> None:
        await self._client.close()

    def abort(self, _cause: str, _reason: str) -> None:
        self._client.transport.abort()

    def pause(self) -> None:
        self.is_paused = True
        self._client.transport.pause_reading()

    def resume(self) -> None:
        self.is_paused = False
        self._client.transport.resume_reading()


class _Client(ClientConnection):
    def __init__(self, connection: WebsocketsConnection, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connection = connection
        self._messages: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        transport.max_size = 32 * 1024
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        connection = self._connection
        connection.received_ns = time.time_ns()
        connection.last_data_s = connection.clock()
        super().data_received(data)
        self.hand_over()

    def hand_over(self) -> None:
        connection = self._connection
        if self._messages and connection.is_started:
            connection.last_message_s = connection.last_data_s
            messages, self._messages = self._messages, []
            connection.take(connection, messages)

    def process_event(self, event: Event) -> None:
        if isinstance(event, Frame) and event.opcode in _MESSAGES:
            self._messages.append(bytes(event.data))
        else:
            super().process_event(event)


if __name__ == "__main__":
    vars(subscriber)["Connection"] = WebsocketsConnection
    main()
