"""One connection against a server that writes raw frames, as no library would."""

import asyncio
import base64
import re
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import chain
from typing import Final

import pytest
from websockets.utils import accept_key

from k2cli.ingestion import connection as connection_module
from k2cli.ingestion.connection import Connection

_TEXT: Final = 0x1
_CONTINUATION: Final = 0x0
_CLOSE: Final = 0x8
_PING: Final = 0x9
_FIN: Final = 0x80
_RSV1: Final = 0x40

Write = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Reads = tuple[list[list[bytes]], str]


def frame(opcode: int, payload: bytes, flags: int = _FIN) -> bytes:
    """Write a frame of a server; RFC 6455, section 5.2."""
    size = len(payload)
    if size < 126:
        return bytes([flags | opcode, size]) + payload
    if size < 1 << 16:
        return bytes([flags | opcode, 126]) + struct.pack(">H", size) + payload
    return bytes([flags | opcode, 127]) + struct.pack(">Q", size) + payload


@asynccontextmanager
async def writing(write: Write, requests: list[str]) -> AsyncIterator[str]:
    """Serve a WebSocket handshake, then whatever `write` does."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        requests.append(request)
        found = re.search(r"Sec-WebSocket-Key: (\S+)", request)
        assert found
        writer.write(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(found[1])}\r\n\r\n".encode()
        )
        try:
            await write(reader, writer)
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def received(write: Write, *, user: str = "", requests: list[str] | None = None) -> Reads:
    """Return the messages of each read, and why the connection ended."""

    async def run() -> Reads:
        reads: list[list[bytes]] = []
        connection = Connection(
            take=lambda _, messages: reads.append(messages),
            clock=time.monotonic,
        )
        async with writing(write, [] if requests is None else requests) as address:
            await connection.open(f"ws://{user}{address}/stream", proxy=None, timeout_s=60)
            connection.start()
            try:
                _, reason = await asyncio.wait_for(connection.wait_closed(), 60)
            finally:
                await connection.close()
        return reads, reason

    return asyncio.run(run())


def sending(*frames: bytes) -> Write:
    """Return what writes frames in one go, and waits for the client to close."""

    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"".join(frames))
        await reader.read()

    return write


CLOSE: Final = frame(_CLOSE, struct.pack(">H", 1001) + "für heute".encode())
CLOSED: Final = "the exchange closed the connection: 1001 für heute"


def test_messages_of_one_read_arrive_together_even_if_a_ping_ends_it() -> None:
    async def write(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(_TEXT, b"a") + frame(_TEXT, b"b") + frame(_PING, b"?"))
        await reader.readexactly(7)  # the masked pong
        writer.write(CLOSE)
        await reader.read()

    reads, reason = received(write)
    assert [*chain.from_iterable(reads)] == [b"a", b"b"]
    assert len(reads) <= 2  # the first may come with the handshake
    assert reason == CLOSED


def test_fragments_are_joined_and_other_frames_may_come_between() -> None:
    fragments = [frame(_TEXT, b"one", 0), frame(_PING, b""), frame(_CONTINUATION, b"", 0)]
    reads, reason = received(sending(*fragments, frame(_CONTINUATION, b"two"), CLOSE))
    assert [*chain.from_iterable(reads)] == [b"onetwo"]
    assert reason == CLOSED


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([frame(_CONTINUATION, b"x")], "out of order"),
        ([frame(_TEXT, b"x", 0), frame(_TEXT, b"y")], "out of order"),
        ([frame(_TEXT, b"x", _FIN | _RSV1)], "compressed"),
        ([frame(_TEXT, b"x", 0), frame(_CONTINUATION, b"x", _FIN | _RSV1)], "compressed"),
        ([frame(0x3, b"x")], "opcode"),
        ([bytes([_FIN | _TEXT, 0x80, 0, 0, 0, 0])], "masked"),
        ([bytes([_FIN | _TEXT, 127]) + struct.pack(">Q", 1 << 40)], "size"),
    ],
    ids=["continuation", "interrupted", "rsv", "rsv-later", "opcode", "masked", "huge"],
)
def test_frames_against_the_protocol_end_the_connection(frames: list[bytes], reason: str) -> None:
    reads, found = received(sending(*frames))
    assert reads == []
    assert reason in found


def test_a_message_of_many_fragments_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "MAX_MESSAGE_BYTES", 1_000)
    frames = [frame(_TEXT, b"x" * 300, 0), *[frame(_CONTINUATION, b"x" * 300, 0)] * 3]
    reads, reason = received(sending(*frames))
    assert (reads, reason) == ([], "a message is too long")


@pytest.mark.parametrize("code", [3000, 4999])
def test_codes_of_applications_are_shown(code: int) -> None:
    _, reason = received(sending(frame(_CLOSE, struct.pack(">H", code))))
    assert reason == f"the exchange closed the connection: {code}"


def test_a_close_without_a_code_and_a_lost_connection_have_their_reasons() -> None:
    _, reason = received(sending(frame(_CLOSE, b"")))
    assert reason == "the exchange closed the connection"

    async def drop(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(frame(_TEXT, b"last"))

    reads, reason = received(drop)
    assert ([*chain.from_iterable(reads)], reason) == ([b"last"], "the connection was closed")


def test_user_and_password_go_into_a_header_only() -> None:
    requests: list[str] = []
    received(sending(CLOSE), user="u%40x:p%2Fw@", requests=requests)
    expected = base64.b64encode(b"u@x:p/w").decode()
    assert f"Authorization: Basic {expected}" in requests[0]
    assert re.search(r"^Host: 127\.0\.0\.1:\d+\r$", requests[0], re.MULTILINE)
    assert "p%2Fw" not in requests[0]


def test_a_server_that_does_not_answer_is_described_in_words() -> None:
    async def run() -> None:
        is_closed = asyncio.Event()

        async def ignore(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                await reader.read()
            writer.close()
            is_closed.set()

        async with await asyncio.start_server(ignore, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()
            connection = Connection(take=lambda _connection, _frames: None, clock=time.monotonic)
            with pytest.raises(TimeoutError, match=r"^no answer within 0\.2 s$"):
                await connection.open(f"ws://{host}:{port}/", proxy=None, timeout_s=0.2)
            await connection.close()
            await is_closed.wait()

    asyncio.run(run())
