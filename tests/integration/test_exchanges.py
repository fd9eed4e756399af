"""Another exchange than Binance: streamed over real connections, by the same code and command."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from k2cli.commands.stream import add_exchange
from k2cli.config import load_settings
from k2cli.errors import Unavailable, UsageError
from k2cli.ingestion.exchanges import EXCHANGES
from k2cli.ingestion.stream import ExchangeStream, StreamOptions
from k2cli.ingestion.symbols import Instrument
from k2cli.records import KINDS, TRADES
from k2cli.storage.lake import open_lake
from support.running import k2_at
from support.streamreading import Read, serving
from support.tinyexchange import TINY, TINY_VENUE, TinyServer, trade
from support.waiting import PATIENCE_S

ERROR = '{"error":"unknown symbol"}'
GOODBYE = '{"goodbye":true}'


def stream_of(url: str, read: Read, *symbols: str, **over: Any) -> ExchangeStream:
    options = StreamOptions(
        venue=replace(TINY_VENUE, urls=[url]),
        instruments=[TINY_VENUE.parse_symbol(symbol) for symbol in symbols],
        channels=["trades"],
        stale_after_s=PATIENCE_S,
        **over,
    )
    return ExchangeStream(
        options=options, observe=lambda event, /, **fields: read.events.append((event, fields))
    )


def read_all(url: str, *symbols: str, count: int) -> Read:
    read = Read()
    read.batches.extend(stream_of(url, read, *symbols, max_messages=count).batches())
    return read


def test_subscription_by_message_is_streamed() -> None:
    server = TinyServer(trade("BTC/USD", 7), trade("BTC/USD", 8))
    with serving(server.handle) as url:
        read = read_all(url, "BTC/USD", count=3)
    assert server.paths == ["/v2"]
    assert server.subscriptions == [["trades:BTC/USD"]]
    assert (read.messages, read.rejects, read.numbers) == (3, 0, [7, 8])
    assert read.events == [("connected", {"url": url, "streams": 1})]


def test_error_of_the_exchange_is_a_reject_in_its_own_words() -> None:
    server = TinyServer(ERROR)
    with serving(server.handle) as url:
        read = read_all(url, "NO/PE", count=2)
    (reject,) = [reject for batch in read.batches for reject in batch.rejects]
    assert (reject.reason, reject.position) == ("unknown symbol", 2)
    assert reject.received_us > 0


def test_streams_are_split_by_the_limit_of_the_exchange() -> None:
    server = TinyServer(
        answer=lambda _, names: [trade(name.partition(":")[2], 1) for name in names]
    )
    symbols = ["A/USD", "B/USD", "C/USD", "D/USD", "E/USD"]
    with serving(server.handle) as url:
        read = read_all(url, *symbols, count=3 + len(symbols))
    assert sorted(map(len, server.subscriptions)) == [1, 2, 2]
    asked = [name for names in server.subscriptions for name in names]
    assert sorted(asked) == [f"trades:{symbol}" for symbol in symbols]
    assert len(read.numbers) == len(symbols)
    assert read.sessions == [0]


def test_notice_of_a_shutdown_leads_to_another_connection_that_subscribes_again() -> None:
    server = TinyServer(
        answer=lambda connection, _: [
            trade("BTC/USD", connection),
            *([GOODBYE] if connection < 3 else []),
        ]
    )
    read = Read()
    with serving(server.handle) as url:
        stream = stream_of(url, read, "BTC/USD", overlap_s=0.1)
        for batch in stream.batches():
            read.batches.append(batch)
            if len(read.values("rollover", "reason")) == 2:
                stream.stop()
    assert server.subscriptions == [["trades:BTC/USD"]] * 3
    assert (read.numbers, read.sessions) == ([1, 2, 3], [0])  # nothing was interrupted
    assert read.values("rollover", "reason") == ["shutdown"] * 2
    assert read.values("disconnected", "reason") == []


def test_streams_that_deliver_nothing_are_named_as_the_exchange_does() -> None:
    server = TinyServer(trade("BTC/USD", 7))
    read = Read()
    with serving(server.handle) as url:
        stream = stream_of(url, read, "BTC/USD", "ETH/USD", max_messages=2)
        list(stream.batches())
    assert stream.silent_streams == ["trades:ETH/USD"]


def test_server_that_is_not_there_is_unavailable() -> None:
    stream = stream_of("ws://127.0.0.1:1", Read(), "BTC/USD", connect_timeout_s=0.5)
    with pytest.raises(Unavailable, match=r"no connection to ws://127\.0\.0\.1:1"):
        list(stream.batches())


def test_base_that_is_not_one_is_a_wrong_option() -> None:
    with pytest.raises(UsageError, match="not a WebSocket URL"):
        stream_of("http://127.0.0.1:1", Read(), "BTC/USD")


# --- its command


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.callback()(lambda: None)
    add_exchange(app, TINY)
    return app


def test_command_of_an_exchange_streams_into_the_tables(app: typer.Typer, tmp_path: Path) -> None:
    server = TinyServer(trade("BTC/USD", 7), ERROR, trade("BTC/USD", 8))
    home = tmp_path / "home"
    with serving(server.handle) as url:
        options = ["--symbols", "BTC/USD", "--url", url, "--max-messages", "4", "--to", "table"]
        result = k2_at(home, app=app)("tiny", *options)
    assert result.stdout == ""
    assert "summary messages=4 rows=2 rejects=1" in result.stderr
    assert "unknown symbol" in (home / "rejects" / "stream-tiny.ndjson").read_text()
    with open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        assert lake.open(TRADES).plan().rows == 2
        assert list(lake.open(TRADES).series()) == [("TINY", "BTC/USD")]


def test_command_has_the_choices_of_its_exchange(app: typer.Typer, home: Path) -> None:
    tiny = partial(k2_at(home, app=app), "tiny")
    shown = tiny("--help", COLUMNS="200").stdout
    assert "Stream trades and quotes from Tiny, exactly once" in shown
    assert "k2 stream tiny --symbols BTC/USD,ETH/USD" in shown
    assert "rejects/stream-tiny.ndjson" in shown
    assert "trades (trades)" in shown
    assert "--market" not in shown  # it has one
    assert "--rest-url" not in shown  # it lists no symbols
    refused = tiny("-s", "BTC/USD", "--channels", "trade", code=2)
    assert refused.stdout == ""
    assert "'trade' is not one of trades" in refused.stderr


@pytest.mark.parametrize("name", EXCHANGES)
def test_exchange_of_the_registry_is_complete(name: str) -> None:
    exchange = EXCHANGES[name]
    assert exchange.name == name
    assert exchange.example
    assert exchange.about_markets or len(exchange.markets) == 1
    for venue in exchange.venues.values():
        assert venue.channels
        assert set(venue.channels.values()) <= KINDS.keys()
        names = [venue.stream_name(Instrument("BTCUSDT", "BTC", "USDT"), c) for c in venue.channels]
        assert len(set(names)) == len(names)
        for base in venue.urls:
            assert venue.stream_url(base, names).startswith("wss://")
