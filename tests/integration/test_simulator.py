"""The simulated exchange, spoken to by a real WebSocket client over loopback."""

import asyncio
import contextlib
import gzip
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trustme
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect as connect_sync

from k2cli.errors import BadData, NotFound, Unavailable, UsageError
from k2cli.ingestion.symbols import Market
from k2cli.simulator import (
    GARBAGE,
    Simulator,
    SimulatorOptions,
    open_simulator,
    running_simulator,
)
from k2cli.simulator.recording import stream_and_frame
from support.waiting import PATIENCE_S, ManualClock

RECORDINGS = (
    "coinm-ETHUSD_PERP-20240808.trade.ndjson",
    "spot-BTCUSDT-20230405.trade.ndjson",
    "spot-BTCUSDT-20240808.trade.ndjson",
    "spot-multi-20211012.aggTrade+bookTicker.ndjson",
    "us-multi-20211012.aggTrade+bookTicker.ndjson",
    "usdm-BTCUSDT-20240718.trade+bookTicker.ndjson",
    "usdm-ETHUSDT-20240718.trade.recv.txt",
    "usdm-multi-20210722.aggTrade+bookTicker.ndjson",
)
BTC = "/ws/btcusdt@trade"


def run(test: Callable[[], Any]) -> None:
    async def timed() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    asyncio.run(timed())


def options(**over: Any) -> SimulatorOptions:
    return SimulatorOptions(**{"first_id": 100, **over})


@asynccontextmanager
async def client(
    simulator: Simulator, path: str = BTC, **over: Any
) -> AsyncIterator[ClientConnection]:
    settings = {"compression": None, "ping_interval": None, "max_queue": None, **over}
    settings = {"open_timeout": PATIENCE_S, **settings}
    async with connect(simulator.url + path, **settings) as connection:
        yield connection


async def receive(connection: ClientConnection, count: int) -> list[bytes]:
    return [await connection.recv(decode=False) for _ in range(count)]


async def receive_all(connection: ClientConnection) -> tuple[list[bytes], int]:
    """Receive until the connection ends; 1006 is a cut without a closing handshake."""
    frames = []
    try:
        while True:
            frames.append(await connection.recv(decode=False))
    except ConnectionClosed as exc:
        return frames, exc.rcvd.code if exc.rcvd else 1006


async def receive_until_quiet(connection: ClientConnection, quiet_s: float = 0.1) -> list[bytes]:
    frames = []
    try:
        while True:
            async with asyncio.timeout(quiet_s):
                frames.append(await connection.recv(decode=False))
    except TimeoutError:
        return frames


async def ask(connection: ClientConnection, **request: Any) -> dict[str, Any]:
    """Send a control message and return its reply, passing over market frames."""
    await connection.send(json.dumps(request))
    while True:
        frame: dict[str, Any] = json.loads(await connection.recv(decode=False))
        if "id" in frame:
            return frame


@asynccontextmanager
async def ticking(clock: ManualClock) -> AsyncIterator[None]:
    """Let a clock run on this event loop: it stands still whenever the loop does."""

    async def tick() -> None:
        while True:
            await asyncio.sleep(0.01)
            clock.advance(0.01)

    ticks = asyncio.create_task(tick())
    try:
        yield
    finally:
        ticks.cancel()


def pings_of(connection: ClientConnection, *, are_answered: bool) -> list[bytes]:
    """Return the payloads of the pings that come, a list that grows."""
    pings: list[bytes] = []
    receive_frame = connection.protocol.recv_frame

    def recv_frame(frame: Any) -> None:
        receive_frame(frame)
        if frame.opcode == 9:
            pings.append(bytes(frame.data))
            if not are_answered:
                connection.protocol.writes.clear()

    connection.protocol.recv_frame = recv_frame  # type: ignore[method-assign]
    return pings


def ids(frames: list[bytes]) -> list[int]:
    return [json.loads(frame)["t"] for frame in frames]


def write_trades(path: Path, count: int) -> list[bytes]:
    lines = [b'{"e":"trade","s":"BTCUSDT","t":%d}' % number for number in range(count)]
    path.write_bytes(b"\n".join(lines))
    return lines


# --- paths


def test_raw_and_combined_streams() -> None:
    async def test() -> None:
        async with open_simulator(options()) as simulator:
            async with client(simulator, "/ws/btcusdt@trade") as raw:
                (frame,) = await receive(raw, 1)
                assert json.loads(frame)["e"] == "trade"
            async with client(simulator, "/ws/btcusdt@trade/ethusdt@trade") as raw:
                symbols = {json.loads(frame)["s"] for frame in await receive(raw, 10)}
                assert symbols == {"BTCUSDT", "ETHUSDT"}
            path = "/stream?streams=btcusdt@trade/btcusdt@bookTicker"
            async with client(simulator, path) as combined:
                for frame in await receive(combined, 10):
                    envelope = json.loads(frame)
                    is_trade = "e" in envelope["data"]
                    channel = "trade" if is_trade else "bookTicker"
                    assert envelope["stream"] == f"btcusdt@{channel}"
            assert simulator.connections == 3
            assert simulator.paths[-1] == path
            assert simulator.frames_sent >= 21

    run(test)


@pytest.mark.parametrize("query", ["", "?timeUnit=MICROSECOND"])
def test_times_are_in_the_asked_unit(query: str) -> None:
    async def test() -> None:
        before = time.time()
        async with open_simulator(options()) as simulator, client(simulator, BTC + query) as raw:
            (frame,) = await receive(raw, 1)
            seconds = json.loads(frame)["T"] / (1e6 if query else 1e3)
            assert before - 5 < seconds < time.time() + 5

    run(test)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 404),
        ("/api/v3/ping", 404),
        ("/wsx", 404),
        ("/ws/BTCUSDT@trade", 400),
        ("/ws/btcusdt", 400),
        ("/stream?streams=btcusdt@trade/ethusdt", 400),
        ("/ws/btcusdt@trade?timeUnit=NANOSECOND", 400),
        ("/stream?streams=" + "/".join(f"s{n}usdt@trade" for n in range(1025)), 400),
    ],
)
def test_bad_paths_are_refused(path: str, status: int) -> None:
    async def test() -> None:
        async with open_simulator(options()) as simulator:
            with pytest.raises(InvalidStatus) as caught:
                async with client(simulator, path):
                    pass
            assert caught.value.response.status_code == status
            assert (simulator.connections, simulator.paths) == (0, [path])

    run(test)


def test_1024_streams_fit_into_one_url() -> None:
    async def test() -> None:
        path = "/stream?streams=" + "/".join(f"s{n}usdt@trade" for n in range(1024))
        async with open_simulator(options()) as simulator, client(simulator, path) as combined:
            frames = await receive(combined, 1024)
            assert len({json.loads(frame)["stream"] for frame in frames}) == 1024

    run(test)


def test_what_is_no_http_is_cut() -> None:
    async def test() -> None:
        async with open_simulator(options()) as simulator:
            port = int(simulator.url.rpartition(":")[2])
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x00nonsense\r\n\r\n")
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            async with client(simulator) as raw:
                assert len(await receive(raw, 1)) == 1

    run(test)


def test_streams_over_tls() -> None:
    authority = trustme.CA()
    server, trusting = (
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert("127.0.0.1").configure_cert(server)
    authority.configure_trust(trusting)

    async def test() -> None:
        async with open_simulator(options(ssl=server, limit=5000, close_at_end=True)) as simulator:
            assert simulator.url.startswith("wss://")
            async with client(simulator, ssl=trusting) as raw:
                frames, code = await receive_all(raw)
                assert (ids(frames), code) == (list(range(100, 5100)), 1000)

    run(test)


# --- control messages


def test_subscribe_list_and_unsubscribe() -> None:
    async def test() -> None:
        async with open_simulator(options(rate=2000)) as simulator, client(simulator, "/ws") as raw:
            assert await receive_until_quiet(raw) == []
            reply = await ask(raw, method="SUBSCRIBE", params=["btcusdt@trade"], id=1)
            assert reply == {"result": None, "id": 1}
            assert {json.loads(f)["s"] for f in await receive(raw, 20)} == {"BTCUSDT"}
            await ask(raw, method="SUBSCRIBE", params=["ethusdt@trade"], id=2)
            assert {json.loads(f)["s"] for f in await receive(raw, 60)} == {"BTCUSDT", "ETHUSDT"}
            reply = await ask(raw, method="LIST_SUBSCRIPTIONS", id=3)
            assert reply == {"result": ["btcusdt@trade", "ethusdt@trade"], "id": 3}
            params = ["btcusdt@trade", "ethusdt@trade"]
            reply = await ask(raw, method="UNSUBSCRIBE", params=params, id=4)
            assert reply == {"result": None, "id": 4}
            assert await receive_until_quiet(raw) == []

    run(test)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{broken", 3),
        ("[]", 2),
        ('{"method":"SUBSCRIBE","params":"btcusdt@trade","id":7}', 2),
        ('{"method":"SUBSCRIBE","params":["BTCUSDT@trade"],"id":7}', 2),
        ('{"method":"SUBSCRIBE","params":["btcusdt"],"id":7}', 2),
        ('{"method":"DANCE","id":7}', 2),
        ('{"method":"LIST_SUBSCRIPTIONS","id":[7]}', 2),
    ],
)
def test_bad_control_messages_get_an_error(message: str, code: int) -> None:
    async def test() -> None:
        async with open_simulator(options()) as simulator, client(simulator, "/ws") as raw:
            await raw.send(message)
            reply = json.loads(await raw.recv())
            assert set(reply) == {"code", "msg", "id"}
            assert reply["code"] == code
            reply = await ask(raw, method="LIST_SUBSCRIPTIONS", id=8)
            assert reply == {"result": [], "id": 8}

    run(test)


def test_subscribing_beyond_1024_streams_is_refused() -> None:
    async def test() -> None:
        async with open_simulator(options(rate=100)) as simulator, client(simulator) as raw:
            names = [f"s{n}usdt@trade" for n in range(1024)]
            reply = await ask(raw, method="SUBSCRIBE", params=names, id=1)
            assert reply["code"] == 2
            assert "1024" in reply["msg"]
            reply = await ask(raw, method="SUBSCRIBE", params=names[:1023], id=2)
            assert reply == {"result": None, "id": 2}

    run(test)


def test_more_than_five_messages_a_second_are_cut() -> None:
    async def test() -> None:
        clock = ManualClock()
        async with (
            open_simulator(options(), clock=clock) as simulator,
            client(simulator, "/ws") as raw,
        ):
            for number in range(6):
                await raw.send(json.dumps({"method": "LIST_SUBSCRIPTIONS", "id": number}))
            frames, code = await receive_all(raw)
            assert (len(frames), code) == (5, 1008)

    run(test)


# --- pings


def test_pings_are_answered_and_the_connection_lives() -> None:
    async def test() -> None:
        clock = ManualClock()
        settings = options(ping_interval_s=0.05, pong_timeout_s=0.2, max_inbound_per_s=100)
        async with (
            open_simulator(settings, clock=clock) as simulator,
            client(simulator, "/ws") as raw,
        ):
            pings = pings_of(raw, are_answered=True)
            for number in range(1, 21):
                while len(pings) < number:
                    clock.advance(0.01)
                    await asyncio.sleep(0.01)
                # The pong is on its way before this, so it has come when the reply is here.
                assert (await ask(raw, method="LIST_SUBSCRIPTIONS", id=number))["result"] == []
            assert clock.now_s > 3 * 0.2

    run(test)


@pytest.mark.parametrize("path", ["/ws", BTC])
def test_a_client_without_pongs_is_pinged_with_a_payload_and_cut(path: str) -> None:
    async def test() -> None:
        clock = ManualClock()
        settings = options(ping_interval_s=0.1, pong_timeout_s=0.2, rate=100)
        async with (
            open_simulator(settings, clock=clock) as simulator,
            client(simulator, path) as raw,
            ticking(clock),
        ):
            pings = pings_of(raw, are_answered=False)
            _, code = await receive_all(raw)
            assert code == 1008
            assert 0.25 < clock.now_s < 5
            assert len(set(pings)) == len(pings) >= 2
            assert all(pings)

    run(test)


# --- the market


def test_ids_go_on_after_a_reconnect() -> None:
    async def test() -> None:
        async with open_simulator(options(drop_after=1500)) as simulator:
            seen: list[int] = []
            for _ in range(3):
                async with client(simulator) as raw:
                    frames, code = await receive_all(raw)
                    assert code == 1006
                    seen += ids(frames)
            assert seen == list(range(100, 4600))

    run(test)


def test_ids_go_on_after_a_restart() -> None:
    async def test() -> None:
        seen = []
        for _ in range(2):
            async with open_simulator(SimulatorOptions()) as simulator, client(simulator) as raw:
                seen += ids(await receive(raw, 3000))
        assert all(before < after for before, after in pairwise(seen))

    run(test)


def test_parallel_connections_see_the_same_content() -> None:
    async def test() -> None:
        async with (
            open_simulator(options(rate=2000)) as simulator,
            client(simulator, "/ws/btcusdt@trade") as one,
            client(simulator, "/ws/btcusdt@trade/ethusdt@trade") as two,
        ):

            def content(frames: list[bytes]) -> dict[int, tuple[str, str, bool]]:
                trades = [json.loads(frame) for frame in frames]
                return {t["t"]: (t["p"], t["q"], t["m"]) for t in trades if t["s"] == "BTCUSDT"}

            right = content(await receive(two, 400))
            left = content(await receive(one, 400))
            while max(left) < max(right):  # it may have begun much earlier
                left |= content(await receive(one, 1))
            both = left.keys() & right.keys()
            assert len(both) > 100
            assert all(left[number] == right[number] for number in both)

    run(test)


@pytest.mark.parametrize(("seed", "is_same"), [(3, True), (4, False)])
def test_the_seed_decides_the_market(seed: int, is_same: bool) -> None:
    async def prices(seed: int) -> list[str]:
        async with open_simulator(options(seed=seed)) as simulator, client(simulator) as raw:
            return [json.loads(frame)["p"] for frame in await receive(raw, 200)]

    async def test() -> None:
        assert (await prices(3) == await prices(seed)) is is_same

    run(test)


def test_futures_shapes() -> None:
    async def test() -> None:
        settings = options(market=Market.USDM)
        path = "/ws/btcusdt@trade/btcusdt@bookTicker"
        async with open_simulator(settings) as simulator, client(simulator, path) as raw:
            frames = [json.loads(frame) for frame in await receive(raw, 10)]
            assert {frame["e"] for frame in frames} == {"trade", "bookTicker"}
            assert all(frame["X"] == "MARKET" for frame in frames if frame["e"] == "trade")

    run(test)


def test_symbols_that_are_not_traded_are_silent() -> None:
    async def test() -> None:
        settings = options(symbols=("BTCUSDT",), rate=1000)
        path = "/ws/ethusdt@trade"
        async with open_simulator(settings) as simulator, client(simulator, path) as raw:
            assert await receive_until_quiet(raw) == []
            await ask(raw, method="SUBSCRIBE", params=["btcusdt@trade"], id=1)
            assert len(await receive(raw, 3)) == 3

    run(test)


def test_the_rate_is_kept_in_regular_bursts() -> None:
    async def test() -> None:
        clock = ManualClock()
        async with (
            open_simulator(options(rate=2000), clock=clock) as simulator,
            client(simulator) as raw,
            ticking(clock),
        ):
            await receive(raw, 1)
            started_s = clock.now_s
            arrivals = []
            for _ in range(1000):
                await raw.recv()
                arrivals.append(clock.now_s - started_s)
            assert 0.4 < arrivals[-1] < 5
            assert len({int(arrival * 50) for arrival in arrivals}) > 10

    run(test)


def test_a_client_that_does_not_read_costs_no_memory() -> None:
    async def test() -> None:
        async with (
            open_simulator(options()) as simulator,
            client(simulator, max_queue=16, close_timeout=0.1),
        ):
            sent = 0
            while not sent or sent != simulator.frames_sent:  # for ever without flow control
                sent = simulator.frames_sent
                await asyncio.sleep(0.2)
            assert 0 < sent < 200_000
            async with client(simulator) as other:  # the others are still served
                assert len(await receive(other, 5000)) == 5000

    run(test)


@pytest.mark.parametrize("is_closed", [True, False])
def test_a_market_with_a_limit_ends(is_closed: bool) -> None:
    async def test() -> None:
        settings = options(limit=2500, close_at_end=is_closed)
        async with open_simulator(settings) as simulator, client(simulator) as raw:
            if is_closed:
                frames, code = await receive_all(raw)
                assert code == 1000
            else:
                frames = await receive(raw, 2500)
                assert await receive_until_quiet(raw) == []
                assert (await ask(raw, method="LIST_SUBSCRIPTIONS", id=1))["id"] == 1
            assert ids(frames) == list(range(100, 2600))
            assert simulator.frames_sent == 2500

    run(test)


# --- misbehaviour


def test_dropped_connections_end_without_a_closing_handshake() -> None:
    async def test() -> None:
        async with open_simulator(options(drop_after=10)) as simulator, client(simulator) as raw:
            frames, code = await receive_all(raw)
            assert (ids(frames), code) == (list(range(100, 110)), 1006)

    run(test)


def test_a_silent_connection_sends_nothing_more_not_even_pings() -> None:
    async def test() -> None:
        settings = options(silent_after=10, ping_interval_s=0.05)
        async with (
            open_simulator(settings) as simulator,
            client(simulator, close_timeout=0.1) as raw,
        ):
            assert len(await receive(raw, 10)) == 10
            await raw.send('{"method":"LIST_SUBSCRIPTIONS","id":1}')
            waiter = asyncio.ensure_future(await raw.ping())
            assert await receive_until_quiet(raw, 0.3) == []
            assert not waiter.done()
            waiter.cancel()
            assert simulator.open_connections == 1

    run(test)


def test_garbage_comes_between_the_frames() -> None:
    async def test() -> None:
        settings = options(garbage_every=3, limit=30, close_at_end=True)
        async with open_simulator(settings) as simulator, client(simulator) as raw:
            frames, _ = await receive_all(raw)
            assert frames[3::4] == [*GARBAGE, *GARBAGE][:10]
            assert ids([frame for at, frame in enumerate(frames) if at % 4 != 3]) == list(
                range(100, 130)
            )

    run(test)


@pytest.mark.parametrize(
    ("path", "stream"),
    [(BTC, None), ("/stream?streams=btcusdt@trade", "!serverShutdown")],
)
def test_a_shutdown_is_announced_and_then_closes(path: str, stream: str | None) -> None:
    async def test() -> None:
        settings = options(shutdown_after=10, shutdown_grace_s=0.1)
        async with open_simulator(settings) as simulator, client(simulator, path) as connection:
            frames, code = await receive_all(connection)
            assert (len(frames), code) == (11, 1001)
            notice = json.loads(frames[-1])
            assert notice.get("stream") == stream
            assert notice.get("data", notice)["e"] == "serverShutdown"

    run(test)


def test_skipped_frames_leave_holes() -> None:
    async def test() -> None:
        settings = options(skip_every=100, limit=1500, close_at_end=True)
        async with open_simulator(settings) as simulator, client(simulator) as raw:
            frames, _ = await receive_all(raw)
            assert len(frames) == 1500
            expected = [number for number in range(100, 1616) if (number - 99) % 100]
            assert ids(frames) == expected[:1500]

    run(test)


# --- recordings


@pytest.mark.parametrize("name", RECORDINGS)
def test_every_recording_plays_byte_for_byte(recordings: Path, name: str) -> None:
    path = recordings / "binance" / name
    lines = [line[line.index(b"{") :] for line in path.read_bytes().splitlines()]
    streams: dict[str, None] = dict.fromkeys(
        stream for stream, _ in map(stream_and_frame, lines) if stream
    )
    assert streams

    async def test() -> None:
        async with open_simulator(options(frames=path, close_at_end=True)) as simulator:
            names = "/".join(streams)
            frames = [stream_and_frame(line)[1] for line in lines]
            async with client(simulator, f"/stream?streams={names}") as combined:
                assert await receive_all(combined) == (lines, 1000)
            async with client(simulator, f"/ws/{names}") as raw:
                assert await receive_all(raw) == (frames, 1000)

    run(test)


@pytest.mark.parametrize("name", ["t.ndjson", "t.ndjson.gz", "t.ndjson.zst"])
def test_recordings_play_compressed_and_with_receive_times(tmp_path: Path, name: str) -> None:
    frame = b'{"e":"trade","s":"BTCUSDT","t":1}'
    content = b"1721347021186954583 " + frame + b"\nno frame at all\n" + frame + b"\n"
    packed = {
        ".ndjson": content,
        ".gz": gzip.compress(content),
        ".zst": pa.compress(content, codec="zstd", asbytes=True),
    }
    path = tmp_path / name
    path.write_bytes(packed[path.suffix])

    async def test() -> None:
        async with open_simulator(options(frames=path, close_at_end=True)) as simulator:
            async with client(simulator) as raw:
                assert await receive_all(raw) == ([frame, b"no frame at all", frame], 1000)
            async with client(simulator, "/ws/ethusdt@trade") as raw:
                assert await receive_all(raw) == ([b"no frame at all"], 1000)

    run(test)


def test_every_connection_plays_a_recording_from_its_start(tmp_path: Path) -> None:
    lines = write_trades(tmp_path / "t", 3000)

    async def test() -> None:
        settings = options(frames=tmp_path / "t")
        async with open_simulator(settings) as simulator:
            async with client(simulator) as raw:
                assert await receive(raw, 10) == lines[:10]
            async with client(simulator) as raw:
                assert await receive(raw, 3000) == lines
                assert await receive_until_quiet(raw) == []  # open and silent at the end

    run(test)


@pytest.mark.parametrize(
    "fault", [{"drop_after": 700}, {"silent_after": 700}, {"shutdown_after": 700}]
)
def test_a_recording_goes_on_after_a_cut(tmp_path: Path, fault: dict[str, int]) -> None:
    lines = write_trades(tmp_path / "t", 2000)

    async def test() -> None:
        settings = options(frames=tmp_path / "t", shutdown_grace_s=0.0, **fault)
        async with open_simulator(settings) as simulator:
            seen = []
            for count in (700, 700, 600):
                async with client(simulator, close_timeout=0.05) as raw:
                    seen += await receive(raw, count)
            assert seen == lines

    run(test)


def test_two_cut_connections_each_go_on_with_their_own_path(tmp_path: Path) -> None:
    lines = [
        b'{"e":"trade","s":"%b","t":%d}' % (symbol, number)
        for number in range(100)
        for symbol in ([b"BTCUSDT"] if number < 50 else [b"BTCUSDT", b"ETHUSDT"])
    ]
    (tmp_path / "t").write_bytes(b"\n".join(lines))

    async def test() -> None:
        async with open_simulator(options(frames=tmp_path / "t", drop_after=20)) as simulator:
            seen: dict[str, list[int]] = {"btcusdt": [], "ethusdt": []}
            for symbol in ("btcusdt", "ethusdt", "ethusdt", "btcusdt"):
                async with client(simulator, f"/ws/{symbol}@trade") as raw:
                    seen[symbol] += ids((await receive_all(raw))[0])
            assert seen == {"btcusdt": list(range(40)), "ethusdt": list(range(50, 90))}

    run(test)


def test_a_looped_recording_starts_over(tmp_path: Path) -> None:
    lines = write_trades(tmp_path / "t", 30)

    async def test() -> None:
        settings = options(frames=tmp_path / "t", loop=True)
        async with open_simulator(settings) as simulator, client(simulator) as raw:
            assert await receive(raw, 100) == (lines * 4)[:100]

    run(test)


def test_a_recording_that_breaks_off_ends_there(tmp_path: Path) -> None:
    lines = write_trades(tmp_path / "t", 100_000)
    packed = gzip.compress(b"\n".join(lines), 1)
    (tmp_path / "t.gz").write_bytes(packed[: len(packed) // 2])

    async def test() -> None:
        settings = options(frames=tmp_path / "t.gz", close_at_end=True)
        async with open_simulator(settings) as simulator, client(simulator) as raw:
            frames, code = await receive_all(raw)
            assert code == 1000
            assert 0 < len(frames) < 100_000

    run(test)


# --- a client that closes while frames are waiting for it


CLOSE_FRAME = b"\x88\x82\0\0\0\0\x03\xe8"  # masked, code 1000


async def close_behind(simulator: Simulator) -> int:
    """Read nothing until the simulator waits, close, then read all; return the frames sent."""
    port = int(simulator.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port)) as behind:
        behind.setblocking(False)
        loop = asyncio.get_running_loop()
        request = (
            f"GET {BTC} HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        await loop.sock_sendall(behind, request.encode())
        sent = -1
        while sent != simulator.frames_sent or not sent:
            sent = simulator.frames_sent
            await asyncio.sleep(0.05)
        await loop.sock_sendall(behind, CLOSE_FRAME)
        await asyncio.sleep(0.05)
        with contextlib.suppress(ConnectionResetError):
            while await loop.sock_recv(behind, 1 << 20):
                pass
        while simulator.open_connections:
            await asyncio.sleep(0.01)
        return sent


def test_a_client_may_close_while_frames_are_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("k2cli.simulator.connection._CLOSE_TIMEOUT_S", 0.1)
    failed: list[dict[str, Any]] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        async with open_simulator(options()) as simulator:
            sent = await close_behind(simulator)
            await asyncio.sleep(0.2)  # until the timeout of the close
        for fewer in (0, 500, 1000):  # the last block waits as well
            for ending in ("drop_after", "shutdown_after"):
                over = options(**{ending: sent - fewer}, shutdown_grace_s=0.0)
                async with open_simulator(over) as simulator:
                    await close_behind(simulator)

    run(test)
    assert failed == []


# --- starting and ending


def test_a_simulator_in_a_thread() -> None:
    with running_simulator(options(limit=1000, close_at_end=True)) as simulator:
        with connect_sync(simulator.url + BTC, compression=None) as raw:
            assert len(list(raw)) == 1000
        assert (simulator.connections, simulator.paths) == (1, [BTC])
        port = int(simulator.url.rpartition(":")[2])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_the_end_of_a_simulator_says_goodbye_at_once() -> None:
    with ExitStack() as stack:
        simulator = stack.enter_context(running_simulator(options(rate=1)))
        with connect_sync(simulator.url + BTC, compression=None) as raw:
            raw.recv()
            stack.close()
            assert simulator.open_connections == 0  # it waits for no answer
            assert len(list(raw)) < 100  # ends without an error
            assert raw.protocol.close_code == 1001


def test_a_port_in_use_is_unavailable() -> None:
    with running_simulator(options()) as simulator:
        port = int(simulator.url.rpartition(":")[2])
        with (
            pytest.raises(Unavailable, match="in use") as caught,
            running_simulator(options(port=port)),
        ):
            pass
        assert "--port" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("over", "error"),
    [
        ({"frames": Path("/nonexistent/frames")}, NotFound),
        ({"symbols": ("BTC USDT",)}, UsageError),
        ({"channels": ("kline_1m",)}, UsageError),
    ],
)
def test_wrong_options_are_told_at_the_start(over: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error), running_simulator(options(**over)):
        pass


def test_a_file_that_is_not_compressed_as_it_says_is_bad_data(tmp_path: Path) -> None:
    (tmp_path / "t.gz").write_bytes(b"plain text")
    with pytest.raises(BadData), running_simulator(options(frames=tmp_path / "t.gz")):
        pass
