"""Binance as an `Exchange`: its markets, channels, servers and limits, and how to subscribe.

A connection's URL names its streams: `wss://stream.binance.com:9443/stream?streams=btcusdt@trade`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from k2cli.ingestion.exchange import Exchange, Limits, Parser, Venue, check_base
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.kinds import KindName
from k2cli.symbols import lower_symbol

if TYPE_CHECKING:
    from k2cli.events import Observer


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


@dataclass(frozen=True, kw_only=True)
class BinanceVenue(Venue):
    """One market of Binance."""

    market: Market
    has_microseconds: bool  # supports timeUnit=MICROSECOND
    info_path: str  # of `exchangeInfo` in the REST API

    def parse_symbol(self, text: str, home: Path | None = None) -> Instrument:
        """Parse a symbol with the market's list."""
        return parse_symbol(text, self.market, home)

    def stream_name(self, instrument: Instrument, channel: str) -> str:
        """Name a stream: `btcusdt@trade`, `币安人生usdt@trade`."""
        return f"{lower_symbol(instrument.symbol)}@{channel}"

    def stream_url(self, base: str, names: Sequence[str]) -> str:
        """Build the URL of a combined stream."""
        return stream_url(base, names, has_microseconds=self.has_microseconds)

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

    def refresh_symbols(self, rest_url: str, home: Path, observe: "Observer") -> "Observer":
        """Return an observer that fetches `exchangeInfo` once connected, at most once a day."""
        from k2cli.ingestion.binance.exchangeinfo import SymbolRefresh  # noqa: PLC0415  pyarrow

        return SymbolRefresh(venue=self, rest_url=rest_url, home=home, observe=observe).on_event


def stream_url(base: str, names: Sequence[str], *, has_microseconds: bool) -> str:
    """Build the URL of a combined stream from a base such as `wss://stream.binance.com:9443`.

    Names that are not ASCII are percent-encoded.

    Raises:
        UsageError: the base is not a ws:// or wss:// URL, or its host or port is invalid.
    """
    unit = "&timeUnit=MICROSECOND" if has_microseconds else ""
    return f"{check_base(base)}/stream?streams={quote('/'.join(names), safe='/@!')}{unit}"


def stream_names(instruments: Sequence[Instrument], channels: Sequence[str]) -> list[str]:
    """Name the streams of all instruments and channels: `btcusdt@trade`, `币安人生usdt@trade`."""
    venue = VENUES[Market.SPOT]
    return [venue.stream_name(i, channel) for i in instruments for channel in channels]


def _venue(
    market: Market, *urls: str, rest_url: str, info_path: str, has_microseconds: bool
) -> BinanceVenue:
    return BinanceVenue(
        market=market,
        exchange=market.exchange,
        asset_class=market.asset_class,
        urls=urls,
        channels={
            Channel.TRADE.value: KindName.TRADES,
            Channel.BOOK_TICKER.value: KindName.QUOTES,
        },
        limits=Limits(streams=STREAMS_PER_CONNECTION, attempts=MAX_ATTEMPTS, window_s=WINDOW_S),
        shutdown_notice=b"serverShutdown",
        has_microseconds=has_microseconds,
        rest_url=rest_url,
        info_path=info_path,
    )


VENUES: Final[Mapping[Market, BinanceVenue]] = {
    Market.SPOT: _venue(
        Market.SPOT,
        "wss://stream.binance.com:9443",
        "wss://stream.binance.com:443",
        "wss://data-stream.binance.vision",
        rest_url="https://api.binance.com",
        info_path="/api/v3/exchangeInfo",
        has_microseconds=True,
    ),
    Market.US: _venue(
        Market.US,
        "wss://stream.binance.us:9443",
        rest_url="https://api.binance.us",
        info_path="/api/v3/exchangeInfo",
        has_microseconds=True,
    ),
    Market.USDM: _venue(
        Market.USDM,
        "wss://fstream.binance.com/public",
        rest_url="https://fapi.binance.com",
        info_path="/fapi/v1/exchangeInfo",
        has_microseconds=False,
    ),
    Market.COINM: _venue(
        Market.COINM,
        "wss://dstream.binance.com",
        rest_url="https://dapi.binance.com",
        info_path="/dapi/v1/exchangeInfo",
        has_microseconds=False,
    ),
}

BINANCE: Final = Exchange(
    name="binance",
    title="Binance",
    venues={market.value: venue for market, venue in VENUES.items()},
    about_markets="Spot, Binance.US, USD-M or COIN-M futures.",
    example="--symbols BTCUSDT,ETHUSDT --channels trade,bookTicker",
)
