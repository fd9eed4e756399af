"""The client against an exchange that floods it, goes silent or sends it elsewhere."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from k2cli.errors import Unavailable
from k2cli.ingestion.binance.venues import Channel
from k2cli.ingestion.bursts import FRAME_MIN_BYTES
from k2cli.ingestion.connection import READ_BYTES
from k2cli.ingestion.intake import QUEUE_HIGH_BYTES
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.simulator import SimulatorOptions, running_simulator
from support.streamreading import Read, read_all, read_until, serving, stream_of, trade_frame
from support.waiting import PATIENCE_S, ManualClock, wait_for

PING = b"\x89\x7d" + b"x" * 125
TINY = b"\x81\x01x"  # a text frame of one byte
EMPTY_FRAGMENT = b"\x00\x00"


async def flood(connection: ServerConnection, frames: bytes) -> None:
    """Send frames for ever, as fast as the client takes them; read nothing."""
    connection.transport.pause_reading()
    while not connection.transport.is_closing():
        if connection.transport.get_write_buffer_size() < 1 << 20:
            connection.transport.write(frames)
        await asyncio.sleep(0)


def flooding(frames: bytes) -> Callable[[ServerConnection], Awaitable[None]]:
    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await flood(connection, frames)

    return handle


def test_pings_whose_replies_are_never_read_end_the_connection() -> None:
    with serving(flooding(PING * 500)) as url:
        read = read_until(lambda read: len(read.values("connected", "url")) == 2, url)
    assert "does not read" in read.values("disconnected", "reason")[0]


def test_queue_of_tiny_frames_is_bounded() -> None:
    most = QUEUE_HIGH_BYTES // FRAME_MIN_BYTES + READ_BYTES
    with serving(flooding(TINY * 5_000)) as url:
        stream = stream_of(url)
        batches = stream.batches()
        next(batches)  # now it connects
        wait_for(lambda: stream.queue.is_over(QUEUE_HIGH_BYTES))
        for _ in range(20):
            queued = sum(len(burst.frames) for burst in list(stream.queue._bursts))
            assert queued <= most
            assert next(batches).messages < 2 * 4096
        stream.stop()
        assert sum(batch.messages for batch in batches) <= most + READ_BYTES


def test_max_messages_is_exact_in_a_flood() -> None:
    with serving(flooding(TINY * 5_000)) as url:
        read = read_all(url, max_messages=12_345)
    assert (read.messages, read.rejects) == (12_345, 12_345)


def test_fragments_that_never_end_keep_no_memory_and_can_be_stopped() -> None:
    async def handle(connection: ServerConnection) -> None:
        connection.transport.write(b"\x01\x00")  # begins a message
        await flood(connection, EMPTY_FRAGMENT * 5_000)

    with serving(handle) as url:
        read = read_until(
            lambda read: len(read.batches) > 20 and bool(read.values("connected", "url")), url
        )
    assert read.messages == 0


def test_message_in_fragments_is_put_together() -> None:
    text = trade_frame(7)

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await connection.send([text[:10], "", text[10:]])
            await connection.wait_closed()

    with serving(handle) as url:
        assert read_all(url, max_messages=1).numbers == [7]


# --- silence


def test_connection_that_goes_silent_after_data_is_reopened() -> None:
    """Its pings go on."""
    clock = ManualClock()

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await connection.send(trade_frame(1))
            while True:
                await (await connection.ping())
                clock.advance(0.05)
                clock.readings = 0
                while clock.readings < 2 and connection.state is State.OPEN:
                    await asyncio.sleep(0.01)

    limits = {"stale_after_s": 0.5, "silent_after_s": 2.0}
    with serving(handle) as url:
        read = read_until(lambda read: 1 in read.sessions, url, clock=clock, **limits)
    assert read.values("stale", "silent_s") == []
    assert 2.0 <= read.values("silent", "silent_s")[0] < 3.0
    assert "no market data" in read.values("disconnected", "reason")[0]


def test_streams_that_deliver_nothing_are_reported_in_the_end() -> None:
    instruments = [parse_symbol(symbol, Market.SPOT) for symbol in ("BTCUSDT", "BTCUSTD/USDT")]
    read = Read()

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await connection.send(trade_frame(1))
            await connection.wait_closed()

    with serving(handle) as url:
        stream = stream_of(
            url,
            read=read,
            instruments=instruments,
            channels=list(Channel),
            max_messages=1,
        )
        read.batches.extend(stream.batches())
    stream.report_silent_streams()
    silent = ["btcusdt@bookTicker", "btcustdusdt@trade", "btcustdusdt@bookTicker"]
    assert stream.silent_streams == silent
    assert read.values("silent_streams", "streams") == [",".join(silent)]
    assert read.values("silent_streams", "count") == [3]


def test_streams_that_all_deliver_are_not_reported() -> None:
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        read = Read()
        stream = stream_of(simulator.url, read=read, channels=list(Channel))
        for batch in stream.batches():
            read.batches.append(batch)
            if not stream.silent_streams:
                stream.stop()
        stream.report_silent_streams()
    assert read.values("silent_streams", "count") == []


# --- redirects


def redirecting(where: Callable[[str], str | None]) -> Any:
    def answer(connection: ServerConnection, request: Any) -> Any:
        target = where(request.path)
        if target is None:
            return None
        response = connection.respond(HTTPStatus.FOUND, "")
        response.headers["Location"] = target
        return response

    return answer


async def one_trade(connection: ServerConnection) -> None:
    with suppress(ConnectionClosed):
        await connection.send(trade_frame(1))
        await connection.wait_closed()


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_redirect_to_another_server_is_refused(scheme: str) -> None:
    with running_simulator(SimulatorOptions(first_id=1)) as other:
        target = other.url.replace("ws", scheme, 1) + "/stream?streams=btcusdt@trade"
        with (
            serving(one_trade, process_request=redirecting(lambda _: target)) as url,
            pytest.raises(Unavailable, match="HTTP 302") as caught,
        ):
            read_all(url)
        assert other.connections == 0
    assert "redirect" in str(caught.value.hint)


def test_redirect_within_a_server_is_followed() -> None:
    def where(path: str) -> str | None:
        return None if path.startswith("/new") else f"/new{path}"

    with serving(one_trade, process_request=redirecting(where)) as url:
        assert read_all(url, max_messages=1).numbers == [1]


# --- proxies


async def target_of(kind: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
    if kind == "http":
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        return head.split()[1].decode()
    await reader.readexactly((await reader.readexactly(2))[1])
    writer.write(b"\x05\x00")
    *_, address_kind = await reader.readexactly(4)
    size = 4 if address_kind == 1 else (await reader.readexactly(1))[0]
    address = await reader.readexactly(size)
    port = int.from_bytes(await reader.readexactly(2))
    writer.write(b"\x05\x00\x00\x01" + bytes(6))
    host = ".".join(map(str, address)) if address_kind == 1 else address.decode()
    return f"{host}:{port}"


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


@contextmanager
def proxying(kind: str) -> Iterator[tuple[str, list[str]]]:
    """Run a proxy that speaks just enough HTTP CONNECT or SOCKS5; list whom it connected to."""
    asked: list[str] = []
    started: list[Any] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target = await target_of(kind, reader, writer)
        asked.append(target)
        host, _, port = target.rpartition(":")
        there, out = await asyncio.open_connection(host, int(port))
        await asyncio.gather(pump(reader, out), pump(there, writer))

    async def run() -> None:
        stop = asyncio.Event()
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        started.extend([asyncio.get_running_loop(), stop, server.sockets[0].getsockname()[1]])
        await stop.wait()
        server.close()

    with ThreadPoolExecutor(1) as executor:
        ended = executor.submit(asyncio.run, run())
        wait_for(lambda: len(started) == 3)
        try:
            yield f"127.0.0.1:{started[2]}", asked
        finally:
            started[0].call_soon_threadsafe(started[1].set)
            ended.result(PATIENCE_S)


@pytest.mark.parametrize(
    ("kind", "scheme"),
    [("http", "http://"), ("http", ""), ("socks", "socks5h://"), ("socks", "SOCKS5://")],
)
def test_proxy_of_the_environment_is_used(
    monkeypatch: pytest.MonkeyPatch, kind: str, scheme: str
) -> None:
    with (
        running_simulator(SimulatorOptions(first_id=1)) as simulator,
        proxying(kind) as (at, asked),
    ):
        monkeypatch.setenv("HTTPS_PROXY", scheme + at)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert read_all(simulator.url, max_messages=5).numbers == [1, 2, 3, 4, 5]
        assert asked == [simulator.url.removeprefix("ws://")]


def test_no_proxy_names_exceptions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        assert read_all(simulator.url, max_messages=5).messages == 5


@pytest.mark.parametrize("proxy", ["127.0.0.1:1", "socks5://127.0.0.1:1", "https://127.0.0.1:1"])
def test_proxy_that_is_not_there_is_unavailable(
    monkeypatch: pytest.MonkeyPatch, proxy: str
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", "")
    with pytest.raises(Unavailable, match="no connection"):
        read_all("wss://exchange.invalid:9443", connect_timeout_s=0.3)
