"""Binance as an `Exchange`: its markets, channels, servers and limits, and how to subscribe.

A connection's URL names its streams: `wss://stream.binance.com:9443/stream?streams=btcusdt@trade`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import msgspec

from k2cli.ingestion.binance.restapi import KeyUse, RestApi
from k2cli.ingestion.exchange import Exchange, Limits, Parser, Venue, check_base
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.kinds import KindName
from k2cli.symbols import lower_symbol

if TYPE_CHECKING:
    from k2cli.events import Observer
    from k2cli.ingestion.history import History


class Channel(StrEnum):
    """The kinds of stream that k2 subscribes to."""

    TRADE = "trade"
    BOOK_TICKER = "bookTicker"


# 200 names keep the URL far below the servers' limit of 8 KiB; the exchange allows 1024.
STREAMS_PER_CONNECTION: Final = 200
# The exchange bans an address after 300 connection attempts in 5 minutes; a process makes at most
# half of that.
MAX_ATTEMPTS: Final = 150
WINDOW_S: Final = 300.0
# The exchange cuts a connection after more than 5 messages in a second, on COIN-M 10; pongs count.
_MESSAGES_PER_S: Final = 2.0
_COINM_MESSAGES_PER_S: Final = 5.0
_NAMES_PER_MESSAGE: Final = 100  # about 2 kB
LIFETIME_S: Final = 86_400.0  # then the exchange cuts a connection
_STREAM: Final = re.compile(rb'\s*\{\s*"stream"\s*:\s*("[^"]*")')


@dataclass(frozen=True, kw_only=True)
class BinanceVenue(Venue):
    """One market of Binance."""

    market: Market
    rest: RestApi

    @property
    def has_microseconds(self) -> bool:
        """Whether times can be requested in microseconds."""
        return self.rest.has_microseconds

    @property
    def info_path(self) -> str:
        """The path of `exchangeInfo` in the REST API."""
        return f"{self.rest.path}/exchangeInfo"

    def parse_symbol(self, text: str, home: Path | None = None) -> Instrument:
        """Parse a symbol with the market's list."""
        return parse_symbol(text, self.market, home)

    def stream_name(self, instrument: Instrument, channel: str) -> str:
        """Name a stream: `btcusdt@trade`, `币安人生usdt@trade`."""
        return f"{lower_symbol(instrument.symbol)}@{channel}"

    def stream_url(self, base: str, names: Sequence[str]) -> str:
        """Build the URL of a combined stream."""
        return stream_url(base, names, has_microseconds=self.has_microseconds)

    def change(self, added: Sequence[str], removed: Sequence[str]) -> Sequence[str]:
        """Build UNSUBSCRIBE and SUBSCRIBE messages."""
        return [
            control_message(method, names[start : start + _NAMES_PER_MESSAGE])
            for method, names in (("UNSUBSCRIBE", removed), ("SUBSCRIBE", added))
            for start in range(0, len(names), _NAMES_PER_MESSAGE)
        ]

    def stream_of(self, frame: bytes) -> str:
        """Return the stream that a combined frame names first: `{"stream":"btcusdt@trade",`."""
        match = _STREAM.match(frame)
        try:
            return "" if match is None else msgspec.json.decode(match[1], type=str)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return ""

    def open_parser(self, instruments: Sequence[Instrument], home: Path | None) -> Parser:
        """Return a parser for combined and raw frames."""
        from k2cli.ingestion.binance.protocol import FrameParser  # noqa: PLC0415  imports pyarrow

        return FrameParser(venue=self, instruments=instruments, home=home)

    def fits(self, frame: bytes) -> bool | None:
        """Distinguish trades and quotes of spot, USD-M and COIN-M."""
        from k2cli.ingestion.binance.protocol import contract_of  # noqa: PLC0415  imports pyarrow

        contract = contract_of(frame)
        if contract is None:
            return None
        if self.market is Market.USDM:
            return contract != "" and not contract.endswith("_PERP")
        if self.market is Market.COINM:
            return "_" in contract
        return contract == ""

    def refresh_symbols(self, home: Path, observe: "Observer") -> "Observer":
        """Return an observer that fetches `exchangeInfo` once connected, at most once a day."""
        if not self.rest_urls:
            return observe
        from k2cli.ingestion.binance.exchangeinfo import SymbolRefresh  # noqa: PLC0415  pyarrow

        refresh = SymbolRefresh(venue=self, rest_urls=self.rest_urls, home=home, observe=observe)
        return refresh.on_event

    def open_history(self, home: Path | None, *, api_key: str | None = None) -> "History | None":
        """Return the history from `historicalTrades` and `aggTrades`."""
        if not self.rest_urls:
            return None
        from k2cli.ingestion.binance.rest import BinanceHistory  # noqa: PLC0415  imports pyarrow

        return BinanceHistory(venue=self, api=self.rest, home=home, api_key=api_key)

    def trading_symbols(self, rest_url: str, home: Path) -> Sequence[Instrument]:
        """Fetch the symbols with the status TRADING from `exchangeInfo`."""
        from k2cli.ingestion.binance.exchangeinfo import trading_symbols  # noqa: PLC0415

        return trading_symbols(self, rest_url=rest_url, home=home)


def control_message(method: str, names: Sequence[str]) -> str:
    """Build a control message; it is acknowledged with its id.

    {"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1} -> {"result":null,"id":1}
    """
    return msgspec.json.encode({"method": method, "params": names, "id": 1}).decode()


def stream_url(base: str, names: Sequence[str], *, has_microseconds: bool) -> str:
    """Build the URL of a combined stream from a base such as `wss://stream.binance.com:9443`.

    Names that are not ASCII are percent-encoded.

    Raises:
        UsageError: the base is not a ws:// or wss:// URL, or its host or port is invalid.
    """
    unit = "&timeUnit=MICROSECOND" if has_microseconds else ""
    return f"{check_base(base)}/stream?streams={quote('/'.join(names), safe='/@!')}{unit}"


def _venue(market: Market, *urls: str, rest_urls: Sequence[str], rest: RestApi) -> BinanceVenue:
    return BinanceVenue(
        market=market,
        exchange=market.exchange,
        asset_class=market.asset_class,
        urls=urls,
        channels={
            Channel.TRADE.value: KindName.TRADES,
            Channel.BOOK_TICKER.value: KindName.QUOTES,
        },
        limits=Limits(
            streams=STREAMS_PER_CONNECTION,
            attempts=MAX_ATTEMPTS,
            window_s=WINDOW_S,
            messages_per_s=_COINM_MESSAGES_PER_S if market is Market.COINM else _MESSAGES_PER_S,
            lifetime_s=LIFETIME_S,
        ),
        shutdown_notice=b"serverShutdown",
        rest_urls=rest_urls,
        rest=rest,
    )


def _futures(path: str) -> RestApi:
    return RestApi(
        path=path,
        has_microseconds=False,
        weight_per_minute=2400,
        trades_weight=200,
        aggregates_weight=20,
        key_use=KeyUse.REQUIRED,
        aggregates_for_s=48 * 3600.0,
    )


VENUES: Final[Mapping[Market, BinanceVenue]] = {
    Market.SPOT: _venue(
        Market.SPOT,
        "wss://stream.binance.com:9443",
        "wss://stream.binance.com:443",
        "wss://data-stream.binance.vision",
        rest_urls=(
            "https://api.binance.com",
            "https://api1.binance.com",
            "https://api2.binance.com",
            "https://api3.binance.com",
            "https://api4.binance.com",
            "https://data-api.binance.vision",  # may not serve `historicalTrades`
        ),
        rest=RestApi(
            path="/api/v3",
            has_microseconds=True,
            weight_per_minute=6000,
            trades_weight=25,
            aggregates_weight=4,
            window_s=24 * 3600.0,
        ),
    ),
    Market.US: _venue(
        Market.US,
        "wss://stream.binance.us:9443",
        rest_urls=("https://api.binance.us",),
        # Its limits are not documented like those of the spot market: these are cautious.
        rest=RestApi(
            path="/api/v3",
            has_microseconds=True,
            weight_per_minute=1200,
            trades_weight=25,
            aggregates_weight=4,
            key_use=KeyUse.IF_SET,
        ),
    ),
    Market.USDM: _venue(
        Market.USDM,
        "wss://fstream.binance.com/public",  # routes; not every stream is on every one
        "wss://fstream.binance.com/market",
        rest_urls=("https://fapi.binance.com",),
        rest=_futures("/fapi/v1"),
    ),
    Market.COINM: _venue(
        Market.COINM,
        "wss://dstream.binance.com",
        "wss://dstream.binance.com/market",
        rest_urls=("https://dapi.binance.com",),
        rest=_futures("/dapi/v1"),
    ),
}

BINANCE: Final = Exchange(
    name="binance",
    title="Binance",
    venues={market.value: venue for market, venue in VENUES.items()},
    about_markets="Spot, Binance.US, USD-M or COIN-M futures.",
    example="--symbols BTCUSDT,ETHUSDT --channels trade,bookTicker",
)
