"""The client against servers on this machine: failover, reconnects, limits, TLS."""

import asyncio
import re
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
import trustme
from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed
from websockets.protocol import State

from k2cli.errors import Unavailable
from k2cli.ingestion.binance.venues import STREAMS_PER_CONNECTION, Channel
from k2cli.ingestion.intake import QUEUE_HIGH_BYTES
from k2cli.ingestion.reconnect import MIN_DELAY_S, AttemptBudget
from k2cli.ingestion.stream import ExchangeStream
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.simulator import SimulatorOptions, running_simulator
from k2cli.simulator.server import Simulator
from services.processes import free_port
from support.streamreading import Read, read_all, read_until, serving, stream_of, trade_frame
from support.waiting import PATIENCE_S, ManualClock, wait_for

DEAD = "ws://127.0.0.1:1"  # nothing listens there


def many_instruments(count: int) -> Sequence[Instrument]:
    return [Instrument(f"S{n}USDT", f"S{n}", "USDT") for n in range(count)]


def wait_until_held_back(stream: ExchangeStream, simulator: Simulator) -> int:
    """Wait until the exchange cannot send more, with a bounded queue; return what it has sent."""
    sent = [-2, -1, 0]
    deadline = time.monotonic() + PATIENCE_S
    while len({*sent[-3:]}) > 1 or not stream.queue.is_over(QUEUE_HIGH_BYTES // 2):
        time.sleep(0.2)
        sent.append(simulator.frames_sent)
        assert sum(burst.size_bytes for burst in list(stream.queue._bursts)) < 10_000_000
        assert time.monotonic() < deadline
    return sent[-1]


# --- what is asked for


@pytest.mark.parametrize(
    ("market", "unit"),
    [
        (Market.SPOT, "&timeUnit=MICROSECOND"),
        (Market.US, "&timeUnit=MICROSECOND"),
        (Market.USDM, ""),
        (Market.COINM, ""),
    ],
)
def test_path_is_combined_and_asks_for_microseconds_where_known(market: Market, unit: str) -> None:
    instruments = [parse_symbol("BTCUSDT", Market.SPOT), parse_symbol("ETHUSD_PERP", Market.SPOT)]
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        read_all(
            simulator.url,
            market=market,
            instruments=instruments,
            channels=list(Channel),
            max_messages=1,
        )
        names = "btcusdt@trade/btcusdt@bookTicker/ethusd_perp@trade/ethusd_perp@bookTicker"
        assert simulator.paths == [f"/stream?streams={names}{unit}"]


def test_many_streams_are_split_over_connections() -> None:
    instruments = many_instruments(STREAMS_PER_CONNECTION + 50)
    with running_simulator(SimulatorOptions(first_id=1, rate=2_000)) as simulator:
        read = read_until(
            lambda read: (
                len(
                    {
                        s
                        for b in read.batches
                        for _, rows in b.rows
                        for s in rows["symbol"].to_pylist()
                    }
                )
                == len(instruments)
            ),
            simulator.url,
            instruments=instruments,
        )
        streams = sorted(len(path.split("/")) - 1 for path in simulator.paths)
        assert streams == [50, STREAMS_PER_CONNECTION]
        asked = {name for path in simulator.paths for name in re.findall(r"s\d+usdt@trade", path)}
    assert asked == {f"{i.symbol.lower()}@trade" for i in instruments}
    assert read.sessions == [0]


# --- the end


@pytest.mark.parametrize("count", [1, 2, 999, 4096, 20_000])
def test_max_messages_is_exact(count: int) -> None:
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        read = read_all(simulator.url, max_messages=count)
    assert read.numbers == [100 + n for n in range(count)]
    assert [event for event, _ in read.events] == ["connected"]


def test_max_messages_counts_bad_frames_too() -> None:
    with running_simulator(SimulatorOptions(first_id=100, garbage_every=3)) as simulator:
        read = read_all(simulator.url, max_messages=403)
    assert (read.messages, len(read.numbers), read.rejects) == (403, 303, 100)
    assert read.numbers == list(range(100, 403))
    positions = [reject.position for batch in read.batches for reject in batch.rejects]
    assert positions == list(range(4, 404, 4))


@pytest.mark.parametrize("attempt", range(5))
def test_max_messages_is_exact_over_several_connections(attempt: int) -> None:
    instruments = many_instruments(3 * STREAMS_PER_CONNECTION)
    with running_simulator(SimulatorOptions(first_id=1, seed=attempt)) as simulator:
        read = read_all(simulator.url, instruments=instruments, max_messages=1_000 + attempt)
    assert read.messages == 1_000 + attempt


def test_stop_from_another_thread_ends_the_stream() -> None:
    with running_simulator(SimulatorOptions(first_id=100, rate=5_000)) as simulator:
        read = Read()
        stream = stream_of(simulator.url, read=read)
        has_messages = threading.Event()

        def stop() -> None:
            assert has_messages.wait(PATIENCE_S)
            stream.stop()

        with ThreadPoolExecutor(1) as executor:
            stopped = executor.submit(stop)
            for batch in stream.batches():  # to the end
                read.batches.append(batch)
                if read.messages:
                    has_messages.set()
            stopped.result()
    assert read.numbers == [100 + n for n in range(read.messages)]
    assert read.messages > 0


def test_stop_before_the_start_connects_to_nothing() -> None:
    with running_simulator(SimulatorOptions()) as simulator:
        stream = stream_of(simulator.url)
        stream.stop()
        assert sum(batch.messages for batch in stream.batches()) == 0
        assert simulator.paths == []


def test_stop_while_nothing_answers_ends_the_stream() -> None:
    read = read_until(lambda read: len(read.batches) > 3, DEAD, connect_timeout_s=60)
    assert read.messages == 0


def test_reader_that_goes_away_ends_the_connections() -> None:
    with running_simulator(SimulatorOptions(first_id=1, rate=1_000)) as simulator:
        batches = stream_of(simulator.url).batches()
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        wait_for(lambda: simulator.open_connections == 0)


# --- interruptions


def test_dead_server_is_passed_over_for_the_next_one() -> None:
    with (
        running_simulator(SimulatorOptions(first_id=1)) as second,
        running_simulator(SimulatorOptions(first_id=1)) as third,
    ):
        read = read_all(DEAD, second.url, third.url, max_messages=10)
        assert (second.connections, third.connections) == (1, 0)
    assert read.values("disconnected", "url") == [DEAD]
    assert read.values("connected", "url") == [second.url]
    assert read.sessions == [0]  # nothing was interrupted


def test_dropped_connection_is_reopened_and_is_a_new_session() -> None:
    with running_simulator(SimulatorOptions(first_id=100, drop_after=50)) as simulator:
        read = read_until(lambda read: len(read.sessions) >= 4, simulator.url)
    assert read.sessions[:4] == [0, 1, 2, 3]
    assert len(read.values("connected", "url")) >= 4
    for batch in read.batches:  # a batch never mixes what came before and after
        assert batch.messages <= 50
    # Frames that arrived do not reset the backoff.
    delays_s = read.values("disconnected", "retry_in_s")
    assert all(MIN_DELAY_S <= delay_s <= 0.5 * 2 ** (n + 1) for n, delay_s in enumerate(delays_s))


def test_attempts_beyond_the_budget_wait_and_are_reported() -> None:
    read = Read()
    with running_simulator(SimulatorOptions(first_id=100, drop_after=5)) as simulator:
        stream = stream_of(simulator.url, read=read)
        stream.connections._shared.budget = AttemptBudget(attempts=2, window_s=3600)
        for batch in stream.batches():
            read.batches.append(batch)
            if read.values("attempts_limited", "retry_in_s"):
                stream.stop()
        assert simulator.connections == 2
    (wait_s,) = read.values("attempts_limited", "retry_in_s")
    assert 0 < wait_s <= 3600
    assert read.messages == 10


def test_silent_connection_is_reopened() -> None:
    options = SimulatorOptions(first_id=100, silent_after=20, ping_interval_s=600)
    clock = ManualClock()

    def is_enough(read: Read) -> bool:
        """Let time go by, but no more of it than the watchdog has seen."""
        if clock.readings:
            clock.readings = 0
            clock.advance(0.05)
        return 2 in read.sessions

    with running_simulator(options) as simulator:
        read = read_until(is_enough, simulator.url, stale_after_s=0.2, clock=clock)
    assert len(read.values("stale", "silent_s")) >= 2
    assert all(0.2 <= silent_s <= 0.3 for silent_s in read.values("stale", "silent_s"))


def test_connection_that_only_pings_is_not_stale() -> None:
    clock = ManualClock()

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await connection.send(trade_frame(1))
            for _ in range(5):
                await (await connection.ping())  # until it is answered
                clock.advance(0.4)
                clock.readings = 0
                while clock.readings < 2 and connection.state is State.OPEN:  # the watchdog looks
                    await asyncio.sleep(0.01)
            await connection.send(trade_frame(2))
            await connection.wait_closed()

    with serving(handle) as url:
        limits = {"stale_after_s": 0.6, "silent_after_s": 60}
        read = read_until(lambda read: read.messages == 2, url, clock=clock, **limits)
    assert clock.now_s > 3 * 0.6
    assert read.values("stale", "silent_s") == []
    assert read.sessions == [0]


def test_slow_reader_does_not_make_a_connection_stale() -> None:
    clock = ManualClock()
    read = Read()
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        stream = stream_of(simulator.url, read=read, stale_after_s=0.2, clock=clock)
        batches = stream.batches()
        read.batches.append(next(batches))
        wait_until_held_back(stream, simulator)
        clock.advance(60)
        clock.readings = 0
        wait_for(lambda: clock.readings >= 3)  # the watchdog looks
        sent = simulator.frames_sent
        while read.messages <= sent:  # until the connection goes on
            read.batches.append(next(batches))
        stream.stop()
        read.batches.extend(batches)
    assert read.values("stale", "silent_s") == []
    assert read.sessions == [0]


def test_connection_that_is_refused_waits_although_another_one_receives() -> None:
    """The frames of one connection say nothing about the health of another one."""
    accepted: list[str] = []
    refused: list[str] = []

    async def handle(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            for number in range(100_000):
                await connection.send(trade_frame(number))
                await asyncio.sleep(0.001)

    def admit(connection: ServerConnection, request: Any) -> Any:
        if accepted:
            refused.append(request.path)
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "full")
        accepted.append(request.path)
        return None

    with serving(handle, process_request=admit) as url:
        started = time.monotonic()
        read = read_until(
            lambda read: time.monotonic() - started > 1.5 and read.messages > 0 and bool(refused),
            url,
            instruments=many_instruments(STREAMS_PER_CONNECTION + 1),
        )
    assert read.messages > 0
    assert 1 <= len(refused) < 20


# --- refusals


def test_server_that_is_not_there_is_unavailable_in_time() -> None:
    for _ in range(5):  # the waits between attempts are random
        read = Read()
        started = time.monotonic()
        with pytest.raises(Unavailable, match=re.escape(DEAD)):
            read_all(DEAD, read=read, connect_timeout_s=0.25)
        assert time.monotonic() - started >= 0.25
        waits_s = read.values("disconnected", "retry_in_s")
        assert sum(waits_s) <= 0.25 + 0.005 * len(waits_s)  # as they are rounded


def test_server_that_never_answers_is_unavailable_in_time() -> None:
    """That is, long before the 10 s that an attempt may take otherwise."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"ws://127.0.0.1:{mute.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(Unavailable, match=re.escape(url)):
            read_all(url, DEAD, connect_timeout_s=0.6)
        assert 0.6 <= time.monotonic() - started < 10


def test_server_that_speaks_no_websocket_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"ws://127.0.0.1:{server.getsockname()[1]}"
        is_over = threading.Event()

        def answer() -> None:
            while not is_over.is_set():
                with suppress(OSError):
                    client, _ = server.accept()
                    with client:
                        client.recv(4096)
                        client.sendall(b"220 mail.example ESMTP\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with pytest.raises(Unavailable, match=re.escape(url)):
                read_all(url, connect_timeout_s=0.4)
        finally:
            is_over.set()
            with socket.create_connection(server.getsockname()):
                pass
            thread.join()


@pytest.mark.parametrize("status", [400, 403, 404, 451])
def test_refusal_for_good_is_unavailable_at_once(status: int) -> None:
    tries: list[str] = []

    async def handle(connection: ServerConnection) -> None:
        pass

    def refuse(connection: ServerConnection, request: Any) -> Any:
        tries.append(request.path)
        return connection.respond(HTTPStatus(status), "no")

    read = Read()
    with (
        serving(handle, process_request=refuse) as url,
        pytest.raises(Unavailable, match=f"HTTP {status}"),
    ):
        read_all(url, read=read)
    assert len(tries) == 1
    assert read.values("disconnected", "retry_in_s") == []  # nothing was waited for


@pytest.mark.parametrize("status", [418, 429, 500, 503])
def test_refusal_for_now_is_tried_again(status: int) -> None:
    tries: list[str] = []

    async def handle(connection: ServerConnection) -> None:
        await connection.send(trade_frame(1))
        await connection.wait_closed()

    def refuse_once(connection: ServerConnection, request: Any) -> Any:
        tries.append(request.path)
        return connection.respond(HTTPStatus(status), "wait") if len(tries) == 1 else None

    with serving(handle, process_request=refuse_once) as url:
        read = read_all(url, max_messages=1)
    assert read.numbers == [1]
    assert len(tries) == 2


def test_outage_after_the_first_connection_is_waited_out() -> None:
    """Also longer than the time that the first connection may take."""
    port, clock, read = free_port(), ManualClock(), Read()
    stream = stream_of(f"ws://127.0.0.1:{port}", read=read, clock=clock)
    batches = stream.batches()

    def outages() -> int:
        return len(read.values("disconnected", "url"))

    with running_simulator(SimulatorOptions(port=port, first_id=1, rate=1_000)):
        while not read.messages:
            read.batches.append(next(batches))
    while not outages():
        read.batches.append(next(batches))
    clock.advance(2 * PATIENCE_S)
    before = outages()
    while outages() < before + 2:  # at least one attempt began when it was that late
        read.batches.append(next(batches))
    with running_simulator(SimulatorOptions(port=port, first_id=1, rate=1_000)):
        while 1 not in read.sessions:
            read.batches.append(next(batches))
        stream.stop()
        read.batches.extend(batches)
    assert read.sessions == [0, 1]


# --- frames


def test_frame_of_five_megabytes_costs_only_itself() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.send(trade_frame(1))
        await connection.send("x" * 5_000_000)
        await connection.send(trade_frame(2)[:-1] + ',"pad":"' + "y" * 5_000_000 + '"}')
        await connection.send(b"\xff\xfe")
        await connection.send(["", trade_frame(3)[:50]])  # in fragments
        await connection.send(trade_frame(4))
        await connection.wait_closed()

    with serving(handle) as url:
        read = read_all(url, max_messages=6)
    assert read.numbers == [1, 2, 4]
    rejects = [reject for batch in read.batches for reject in batch.rejects]
    assert [reject.position for reject in rejects] == [2, 4, 5]
    assert [len(reject.raw) for reject in rejects] == [5_000_000, 2, 50]
    assert read.sessions == [0]


def test_receive_times_are_of_now_and_in_order() -> None:
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        before = time.time()
        read = read_all(simulator.url, max_messages=1_000)
        after = time.time()
    times = [
        moment.timestamp()
        for batch in read.batches
        for _, rows in batch.rows
        for moment in rows["ingestion_timestamp"].to_pylist()
    ]
    assert times == sorted(times)
    assert before - 0.001 <= times[0] <= times[-1] <= after


def test_slow_reader_holds_the_exchange_back() -> None:
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        read = Read()
        stream = stream_of(simulator.url, read=read)
        batches = stream.batches()
        while not read.messages:
            read.batches.append(next(batches))
        sent = wait_until_held_back(stream, simulator)  # in the meantime nobody reads
        while read.messages < 2 * sent:
            read.batches.append(next(batches))
        stream.stop()
        read.batches.extend(batches)
    assert read.numbers == list(range(1, read.messages + 1))
    assert read.sessions == [0]


# --- TLS


def server_tls(authority: trustme.CA, *names: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    return context


def test_certificate_of_an_unknown_authority_is_refused_at_once() -> None:
    options = SimulatorOptions(ssl=server_tls(trustme.CA(), "127.0.0.1"))
    with running_simulator(options) as simulator:
        read = Read()
        with pytest.raises(Unavailable, match="certificate") as caught:
            read_all(simulator.url, read=read)
        assert simulator.connections == 0
    assert read.values("disconnected", "retry_in_s") == []  # nothing was waited for
    assert "SSL_CERT_FILE" in str(caught.value.hint)


def test_certificate_of_a_trusted_authority_is_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    options = SimulatorOptions(ssl=server_tls(authority, "127.0.0.1"), first_id=1)
    with running_simulator(options) as simulator:
        assert simulator.url.startswith("wss://")
        assert read_all(simulator.url, max_messages=5).numbers == [1, 2, 3, 4, 5]


def test_certificate_for_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    options = SimulatorOptions(ssl=server_tls(authority, "stream.example"))
    with (
        running_simulator(options) as simulator,
        pytest.raises(Unavailable, match="certificate"),
    ):
        read_all(simulator.url)


def test_events_without_a_trade_are_messages_that_are_only_seen(tmp_path: Path) -> None:
    frame = (
        '{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161348055,"T":1723161348055,'
        '"s":"BTCUSDT","t":%d,"p":"%s","q":"%s","X":"%s","m":true}}\n'
    )
    path = tmp_path / "frames.ndjson"
    trades = [(101, "61800.1", "2", "MARKET"), (102, "0", "0", "NA"), (103, "61800.1", "2", "ADL")]
    path.write_text("".join(frame % trade for trade in trades))
    with running_simulator(SimulatorOptions(market=Market.USDM, frames=path)) as simulator:
        read = read_all(simulator.url, market=Market.USDM, max_messages=3)
    assert (read.messages, read.rejects, read.numbers) == (3, 0, [101, 103])
    seen = [row for batch in read.batches for _, rows in batch.seen for row in rows.to_pylist()]
    assert seen == [{"exchange": "BINANCE_USDM", "symbol": "BTCUSDT", "source_sequence": 102}]


def test_names_that_are_not_ascii_are_streamed() -> None:
    instruments = [parse_symbol(text, Market.SPOT) for text in ("币安人生USDT", "BTCUSDT")]
    with running_simulator(SimulatorOptions(first_id=1)) as simulator:
        read = read_all(simulator.url, instruments=instruments, max_messages=20)
        (path,) = simulator.paths
    assert path.isascii()
    assert "%E5%B8%81" in path
    symbols = {
        symbol
        for batch in read.batches
        for _, rows in batch.rows
        for symbol in rows["symbol"].to_pylist()
    }
    assert symbols == {"币安人生USDT", "BTCUSDT"}
    assert read.rejects == 0
