"""TLS in front of a server that speaks plain HTTP."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

from support.waiting import PATIENCE_S


@contextmanager
def tls_in_front(url: str, context: ssl.SSLContext) -> Iterator[str]:
    """Yield the https:// URL of a server that passes all bytes on to `url`, which is http://."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    front = _Front(urlsplit(url).hostname or "", urlsplit(url).port or 80)
    try:
        started = asyncio.start_server(front.serve, "127.0.0.1", 0, ssl=context)
        server = asyncio.run_coroutine_threadsafe(started, loop).result(PATIENCE_S)
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        asyncio.run_coroutine_threadsafe(front.close(server), loop).result(PATIENCE_S)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


class _Front:
    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        behind_reader, behind_writer = await asyncio.open_connection(*self._address)
        with suppress(ConnectionError):  # either side may leave as it likes
            await asyncio.gather(_copy(reader, behind_writer), _copy(behind_reader, writer))
        behind_writer.close()
        writer.close()

    async def close(self, server: asyncio.Server) -> None:
        server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
        await writer.drain()
    writer.close()
