"""Reading a stream in tests: what came, until enough has come; and servers of a few lines."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from websockets.asyncio.server import ServerConnection, serve

from k2cli.flow import Batch
from k2cli.ingestion.binance.venues import VENUES, Channel
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.symbols import Market, parse_symbol
from support.waiting import PATIENCE_S

BTC = parse_symbol("BTCUSDT", Market.SPOT)


@dataclass
class Read:
    """What a stream gave, from the first batch to the last."""

    batches: list[Batch] = field(default_factory=list)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    @property
    def messages(self) -> int:
        return sum(batch.messages for batch in self.batches)

    @property
    def rejects(self) -> int:
        return sum(len(batch.rejects) for batch in self.batches)

    @property
    def sessions(self) -> list[int]:
        return sorted({batch.session for batch in self.batches if batch.messages})

    @property
    def numbers(self) -> list[int]:
        return [
            number
            for batch in self.batches
            for _, rows in batch.rows
            for number in rows["source_sequence"].to_pylist()
        ]

    def values(self, event: str, name: str) -> list[Any]:
        return [fields[name] for found, fields in self.events if found == event]


def stream_of(
    *urls: str,
    read: Read | None = None,
    market: Market = Market.SPOT,
    clock: Callable[[], float] = time.monotonic,
    **over: Any,
) -> ExchangeStream:
    read = Read() if read is None else read
    options = {
        "instruments": [BTC],
        "channels": [Channel.TRADE],
        "connect_timeout_s": PATIENCE_S,
        "stale_after_s": PATIENCE_S,
        **over,
    }
    return ExchangeStream(
        options=StreamOptions(venue=replace(VENUES[market], urls=urls), **options),
        observe=lambda event, /, **fields: read.events.append((event, fields)),
        clock=clock,
    )


def read_all(*urls: str, read: Read | None = None, **over: Any) -> Read:
    """Read a stream to its end."""
    read = Read() if read is None else read
    read.batches.extend(stream_of(*urls, read=read, **over).batches())
    return read


def read_until(is_enough: Callable[[Read], bool], *urls: str, **over: Any) -> Read:
    """Read a stream until enough has come."""
    read = Read()
    stream = stream_of(*urls, read=read, **over)
    deadline = time.monotonic() + PATIENCE_S
    for batch in stream.batches():
        read.batches.append(batch)
        if is_enough(read):
            stream.stop()
        assert time.monotonic() < deadline, read.events
    return read


@contextmanager
def serving(handle: Callable[[ServerConnection], Awaitable[None]], **options: Any) -> Iterator[str]:
    """Run a server of a few lines, for what the simulator does not do."""
    ready: list[Any] = []
    is_ready = threading.Event()

    async def run() -> None:
        stop = asyncio.Event()
        async with serve(handle, "127.0.0.1", 0, compression=None, **options) as server:
            ready.extend([asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]])
            is_ready.set()
            await stop.wait()

    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(asyncio.run, run())
        assert is_ready.wait(PATIENCE_S)
        loop, stop, port = ready
        try:
            yield f"ws://127.0.0.1:{port}"
        finally:
            loop.call_soon_threadsafe(stop.set)
            ended.result(PATIENCE_S)


def trade_frame(number: int, symbol: str = "BTCUSDT") -> str:
    payload = {
        "e": "trade",
        "E": 1723161348056,
        "s": symbol,
        "t": number,
        "p": "1.5",
        "q": "2",
        "T": 1723161348055,
        "m": True,
    }
    return json.dumps({"stream": f"{symbol.lower()}@trade", "data": payload})
