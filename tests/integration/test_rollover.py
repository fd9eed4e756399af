"""Connections that are replaced, streams that fall silent, servers that refuse: nothing is lost."""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.history import HistoryRefused, HistoryUnavailable
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from support.sharedmarket import SharedMarket, refusing
from support.streamreading import Read, serving
from support.waiting import PATIENCE_S, wait_for

SPOT = VENUES[Market.SPOT]
SYMBOLS = ("BTCUSDT", "ETHUSDT")


def limited(venue: Venue = SPOT, **limits: Any) -> Venue:
    return replace(venue, limits=replace(venue.limits, **limits))


def read_until(
    is_enough: Callable[[Read], bool],
    *urls: str,
    symbols: tuple[str, ...] = SYMBOLS,
    venue: Venue = SPOT,
    read: Read | None = None,
    on_stream: Callable[[ExchangeStream], None] = lambda _: None,
    **over: Any,
) -> Read:
    """Read a stream until enough has arrived."""
    read = Read() if read is None else read
    options = {"connect_timeout_s": PATIENCE_S, "stale_after_s": PATIENCE_S, **over}
    stream = ExchangeStream(
        options=StreamOptions(
            venue=replace(venue, urls=urls),
            instruments=[parse_symbol(symbol, Market.SPOT) for symbol in symbols],
            channels=["trade"],
            **options,
        ),
        observe=lambda event, /, **fields: read.events.append((event, fields)),
    )
    on_stream(stream)
    for batch in stream.batches():
        read.batches.append(batch)
        if is_enough(read):
            stream.stop()
    return read


def numbers_of(read: Read, symbol: str) -> list[int]:
    return [
        row["source_sequence"]
        for batch in read.batches
        for _, rows in batch.rows
        for row in rows.select(["symbol", "source_sequence"]).to_pylist()
        if row["symbol"] == symbol
    ]


def count(read: Read, event: str) -> int:
    return sum(name == event for name, _ in read.events)


def check_nothing_is_missing(read: Read, *symbols: str) -> None:
    """Also not for a moment: no number arrives before all those below it."""
    for symbol in symbols or SYMBOLS:
        numbers = numbers_of(read, symbol)
        highest = numbers[0]
        for number in numbers:
            assert number <= highest + 1, (symbol, number, highest, read.events)
            highest = max(highest, number)


def has_gone_on(read: Read, market: SharedMarket, event: str, times: int = 1) -> bool:
    """Whether something happened, and all connections opened by then have delivered."""
    if count(read, event) < times:
        return False
    for name, fields in reversed(read.events):
        if name == event:
            fields.setdefault("at", market.number)
            return bool(numbers_of(read, SYMBOLS[0])[-1] > fields["at"] + 10)
    return False


# --- rollover


def test_shutdown_notice_leads_to_a_rollover_without_loss() -> None:
    market = SharedMarket()
    market.acts[20] = market.announce
    with serving(market.handle) as url:
        read = read_until(lambda read: has_gone_on(read, market, "rollover"), url)
    assert read.values("rollover", "reason") == ["shutdown"]
    assert read.values("rollover", "streams") == [2]
    assert read.sessions == [0]
    assert count(read, "disconnected") == 0
    assert read.rejects == 0  # the notice is not market data
    assert len(market.connections) == 2
    check_nothing_is_missing(read)


def test_connection_that_reaches_its_age_is_rolled_over_without_loss() -> None:
    market = SharedMarket()
    with serving(market.handle) as url:
        read = read_until(
            lambda read: has_gone_on(read, market, "rollover", 2),
            url,
            venue=limited(lifetime_s=3.0),
        )
    assert set(read.values("rollover", "reason")) == {"age"}
    assert read.sessions == [0]
    assert count(read, "disconnected") == 0
    check_nothing_is_missing(read)


def test_refused_successor_is_tried_again_while_the_old_connection_delivers() -> None:
    market = SharedMarket()
    market.acts[20] = market.announce
    with serving(market.handle, process_request=refusing(1, 2)) as url:
        read = read_until(lambda read: has_gone_on(read, market, "rollover"), url)
    assert len(read.values("rollover_delayed", "reason")) == 2
    assert "HTTP 503" in read.values("rollover_delayed", "reason")[0]
    assert read.sessions == [0]
    assert len(market.connections) == 2
    check_nothing_is_missing(read)


def test_successor_that_lacks_a_stream_does_not_take_over() -> None:
    market = SharedMarket()
    market.acts[20] = market.announce
    market.delivers = lambda nth, symbol, _: not (nth == 1 and symbol == "ethusdt")
    with serving(market.handle) as url:
        read = read_until(lambda read: has_gone_on(read, market, "rollover"), url, overlap_s=2.0)
    assert "lacks streams" in read.values("rollover_delayed", "reason")[0]
    assert read.sessions == [0]
    check_nothing_is_missing(read)


def test_quiet_stream_delays_a_rollover_only_by_the_overlap() -> None:
    market = SharedMarket()
    market.acts[20] = market.announce
    market.delivers = lambda _, symbol, number: symbol == "btcusdt" or number < 10
    with serving(market.handle) as url:
        read = read_until(lambda read: has_gone_on(read, market, "rollover"), url, overlap_s=2.0)
    assert read.values("rollover", "overlap_s")[0] >= 2.0
    assert count(read, "rollover_delayed") == 0
    check_nothing_is_missing(read, "BTCUSDT")


@pytest.mark.parametrize("end", ["cut", "close"])
def test_connection_lost_during_the_overlap_is_not_a_loss(end: str) -> None:
    market = SharedMarket()
    sent = 0

    def delivers(nth: int, symbol: str, number: int) -> bool:
        nonlocal sent
        is_quiet = symbol == "ethusdt" and number > 10  # so that the overlap lasts
        sent += nth == 1 and not is_quiet
        if sent == 150:
            sent += 1
            market.acts[number + 1] = getattr(market, end)
        return not is_quiet

    market.acts[20] = market.announce
    market.delivers = delivers
    with serving(market.handle) as url:
        read = read_until(lambda read: has_gone_on(read, market, "rollover"), url)
    assert [name for name, _ in read.events] == ["connected", "rollover"]
    assert read.sessions == [0]
    check_nothing_is_missing(read, "BTCUSDT")


def test_server_that_shuts_down_is_avoided() -> None:
    market, other = SharedMarket(), SharedMarket()
    market.acts[20] = market.announce
    with serving(market.handle) as url, serving(other.handle) as second:
        read = read_until(lambda read: count(read, "rollover") == 1, url, second)
    assert read.values("rollover", "url") == [second]


def test_rollovers_stop_with_the_stream() -> None:
    market = SharedMarket()
    market.acts[20] = market.announce
    with serving(market.handle) as url:
        read_until(lambda _: len(market.connections) == 2, url)
        wait_for(lambda: all(each.close_code is not None for each in market.connections))


# --- silent streams


def silence_of(symbol: str, connections: int = 1) -> Callable[[int, str, int], bool]:
    """Let the first connections deliver a symbol only at first."""
    return lambda nth, name, number: nth >= connections or name != symbol.lower() or number <= 20


def test_silent_stream_on_a_live_socket_is_named_and_replaced() -> None:
    market = SharedMarket()
    market.delivers = silence_of("ETHUSDT")
    asked: list[str] = []

    async def has_newer(instrument: Instrument, since_us: int) -> bool:
        asked.append(instrument.symbol)
        assert since_us > 0
        return instrument.symbol == "ETHUSDT"

    with serving(market.handle) as url:
        read = read_until(
            lambda read: has_gone_on(read, market, "rollover"),
            url,
            stream_silent_after_s=3.0,
            has_newer=has_newer,
        )
    assert read.values("silent_stream", "stream")[0] == "ethusdt@trade"
    assert read.values("silent_stream", "silent_s")[0] >= 1.0
    assert read.values("rollover", "reason")[0] == "silence"
    assert "ETHUSDT" in asked
    assert max(numbers_of(read, "ETHUSDT")) > 20
    assert read.sessions == [0]
    check_nothing_is_missing(read, "BTCUSDT")


def test_quiet_stream_is_checked_at_growing_intervals_and_left_alone() -> None:
    market = SharedMarket()
    market.delivers = silence_of("ETHUSDT", connections=100)
    asked: list[str] = []

    async def has_newer(instrument: Instrument, _since_us: int) -> bool:
        asked.append(instrument.symbol)
        return False

    with serving(market.handle) as url:
        read = read_until(
            lambda _: asked.count("ETHUSDT") == 2,
            url,
            stream_silent_after_s=0.5,
            has_newer=has_newer,
        )
    assert [name for name, _ in read.events] == ["connected"]


def test_history_that_is_unavailable_decides_nothing() -> None:
    market = SharedMarket()
    market.delivers = silence_of("ETHUSDT", connections=100)
    asked: list[str] = []

    async def has_newer(instrument: Instrument, _since_us: int) -> bool:
        asked.append(instrument.symbol)
        raise HistoryUnavailable("busy")

    with serving(market.handle) as url:
        read = read_until(
            lambda _: asked.count("ETHUSDT") == 2,
            url,
            stream_silent_after_s=0.5,
            has_newer=has_newer,
        )
    assert [name for name, _ in read.events] == ["connected"]


def test_misspelt_symbol_is_named_and_tried_elsewhere_a_few_times() -> None:
    market = SharedMarket()
    market.delivers = lambda _, symbol, __: symbol == "btcusdt"

    async def has_newer(instrument: Instrument, _since_us: int) -> bool:
        if instrument.symbol == "BTCUSDT":
            return False
        raise HistoryRefused("Invalid symbol.")

    with serving(market.handle) as url:
        read = read_until(
            lambda read: count(read, "silent_stream") == 2,
            url,
            symbols=("BTCUSDT", "ETHUSDTT/USDT"),
            stream_silent_after_s=0.5,
            has_newer=has_newer,
        )
        wait_for(lambda: all(each.close_code is not None for each in market.connections))
    assert {*read.values("silent_stream", "stream")} == {"ethusdttusdt@trade"}
    action = f"another connection to {url}; Invalid symbol."
    assert {*read.values("silent_stream", "action")} == {action}
    assert count(read, "rollover") == 0
    assert read.sessions == [0]
    check_nothing_is_missing(read, "BTCUSDT")


def test_attempt_to_find_a_silent_stream_elsewhere_does_not_make_a_run_unready() -> None:
    market = SharedMarket()
    market.delivers = lambda _, symbol, __: symbol == "btcusdt"
    streams: list[ExchangeStream] = []
    reasons: list[list[str]] = []

    def is_refused(read: Read) -> bool:
        if count(read, "disconnected"):
            reasons.append(streams[0].unready())
        return bool(reasons)

    with serving(market.handle, process_request=refusing(*range(1, 100))) as url:
        read_until(
            is_refused,
            url,
            symbols=("BTCUSDT", "ETHUSDTT/USDT"),
            stream_silent_after_s=0.5,
            on_stream=streams.append,
        )
    assert reasons[0] == []


def test_streams_of_a_retired_route_are_found_on_the_next_one() -> None:
    market = SharedMarket()
    market.delivers = lambda nth, *_: market.paths[nth].startswith("/market/")
    with serving(market.handle) as url:
        read = read_until(
            lambda read: min(len(numbers_of(read, symbol)) for symbol in SYMBOLS) > 10,
            f"{url}/public",
            f"{url}/market",
            venue=VENUES[Market.USDM],
            stream_silent_after_s=3.0,
        )
    assert read.values("silent_stream", "action")[0] == f"another connection to {url}/market"
    assert set(read.values("silent_stream", "stream")[0].split(",")) == {
        "btcusdt@trade",
        "ethusdt@trade",
    }
    assert count(read, "disconnected") == 0


def test_one_stream_that_is_on_another_route_leaves_the_others_where_they_are() -> None:
    market = SharedMarket()
    market.delivers = lambda nth, symbol, _: market.paths[nth].startswith(
        "/market/" if symbol == "ethusdt" else "/public/"
    )
    with serving(market.handle) as url:
        read = read_until(
            lambda read: len(numbers_of(read, "ETHUSDT")) > 10,
            f"{url}/public",
            f"{url}/market",
            venue=VENUES[Market.USDM],
            stream_silent_after_s=5.0,
        )
    assert re.findall(r"\w+@trade", market.paths[1]) == ["ethusdt@trade"]
    assert read.sessions == [0]
    check_nothing_is_missing(read, "BTCUSDT")


# --- failover


def test_server_that_refuses_repeatedly_is_skipped() -> None:
    market, dead = SharedMarket(), SharedMarket()
    streams: list[ExchangeStream] = []
    symbols = ("BTCUSDT", "ETHUSDT", "BNBUSDT")

    async def cut_once_all_are_open() -> None:
        if len(market.connections) < len(symbols):
            market.acts[market.number + 1] = cut_once_all_are_open
        else:
            await market.cut()

    market.acts[1] = cut_once_all_are_open
    with (
        serving(market.handle) as url,
        serving(dead.handle, process_request=refusing(*range(1_000))) as first,
    ):
        read = read_until(
            lambda read: count(read, "connected") == len(symbols) + 1,
            first,
            url,
            symbols=symbols,
            venue=limited(streams=1),
            on_stream=streams.append,
        )
    assert read.values("breaker_opened", "url") == [first]
    assert read.values("breaker_opened", "failures") == [3]
    assert read.values("disconnected", "url") == [first, first, first, url]
    assert read.values("disconnected", "cause") == ["refused"] * 3 + ["closed"]
    health = {each.url: each for each in streams[0].connections.servers}
    assert [health[each].breaker for each in (first, url)] == ["open", "closed"]
    assert health[first].message_age_s is None
