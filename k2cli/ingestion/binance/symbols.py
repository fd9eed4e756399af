"""The exchange's markets and channels, and how a symbol splits into base and quote asset.

The split is the exchange's own, from its lists of each market (see listings.py). A symbol that
no list has is split by the quote asset at its end; where that is not enough (a new quote asset),
the user writes the split: `FOO/BAR`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

from k2cli.errors import UsageError
from k2cli.ingestion.binance.listings import known_listing
from k2cli.kinds import KindName
from k2cli.symbols import fold_symbol, is_asset


class Market(StrEnum):
    """Where on the exchange: each market has its own id series, and so its own exchange name."""

    SPOT = "spot"
    US = "us"
    USDM = "usdm"
    COINM = "coinm"


FUTURES: Final = frozenset({Market.USDM, Market.COINM})


class Channel(StrEnum):
    """The kinds of stream that k2 subscribes to."""

    TRADE = "trade"
    BOOK_TICKER = "bookTicker"

    @property
    def kind(self) -> KindName:
        """The kind of record that its frames become."""
        return _KINDS[self]


_KINDS: Final = {Channel.TRADE: KindName.TRADES, Channel.BOOK_TICKER: KindName.QUOTES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """What k2 must know of one market."""

    market: Market
    exchange: str
    asset_class: str
    urls: tuple[str, ...]  # bases, in failover order
    has_microseconds: bool  # understands timeUnit=MICROSECOND
    rest_url: str  # base of the REST API
    info_path: str  # of `exchangeInfo` in it


VENUES: Final = {
    Market.SPOT: Venue(
        market=Market.SPOT,
        exchange="BINANCE",
        asset_class="crypto",
        urls=(
            "wss://stream.binance.com:9443",
            "wss://stream.binance.com:443",
            "wss://data-stream.binance.vision",
        ),
        has_microseconds=True,
        rest_url="https://api.binance.com",
        info_path="/api/v3/exchangeInfo",
    ),
    Market.US: Venue(
        market=Market.US,
        exchange="BINANCE_US",
        asset_class="crypto",
        urls=("wss://stream.binance.us:9443",),
        has_microseconds=True,
        rest_url="https://api.binance.us",
        info_path="/api/v3/exchangeInfo",
    ),
    Market.USDM: Venue(
        market=Market.USDM,
        exchange="BINANCE_USDM",
        asset_class="futures",
        urls=("wss://fstream.binance.com/public",),
        has_microseconds=False,
        rest_url="https://fapi.binance.com",
        info_path="/fapi/v1/exchangeInfo",
    ),
    Market.COINM: Venue(
        market=Market.COINM,
        exchange="BINANCE_COINM",
        asset_class="futures",
        urls=("wss://dstream.binance.com",),
        has_microseconds=False,
        rest_url="https://dapi.binance.com",
        info_path="/dapi/v1/exchangeInfo",
    ),
}


@dataclass(frozen=True, slots=True)
class Instrument:
    """A symbol and the two assets it trades."""

    symbol: str
    base: str
    quote: str
    is_guess: bool = field(default=False, compare=False)  # split by its end: no list has it


_UNLISTED_QUOTES: Final = ("RLUSD", "USDE")  # in none of the lists that k2 ships
_SHORTEST: Final = 2
_LONGEST: Final = 30  # characters of a pair
_LONGEST_TEXT: Final = 100
_LONGEST_ASSET: Final = 20
_SYMBOL: Final = re.compile(r"([^_]+)(?:_(?:PERP|SETTLED|[0-9]{6}))?")
_SPLIT: Final = re.compile(r"([^/-]+)[/-]([^/-]+)")
_SETTLED: Final = re.compile(r"(?:SETTLED)+$")  # what the archive calls a contract that has ended


def parse_symbol(text: str, market: Market, home: Path | None = None) -> Instrument:
    """Read a symbol of a market as users and the exchange write it: `BTCUSDT`, `btcusdt`,
    `BTC/USDT`, `BTC-USDT`, `ETHUSD_PERP`, `BTCUSDT_250926`, `币安人生USDT`.

    `home` is the folder with what the exchange said last; without it the shipped list decides.

    Raises:
        UsageError: not a symbol, or one whose quote asset is not known.
    """
    word = fold_symbol(text.strip()) if len(text) <= _LONGEST_TEXT else ""
    if split := _SPLIT.fullmatch(word):
        base, quote = split[1], split[2]
        if all(is_asset(asset) and len(asset) <= _LONGEST_ASSET for asset in (base, quote)):
            return Instrument(base + quote, base, quote)
    match = _SYMBOL.fullmatch(word)
    pair = match[1] if match else ""
    if not is_asset(pair) or not _SHORTEST <= len(pair) <= _LONGEST:
        raise UsageError(f"{text[:80]!r} is not a symbol", hint="write it like BTCUSDT or BTC/USDT")
    listed = known_listing(market, home).pairs.get(pair)
    if listed:
        return Instrument(word, listed.base, listed.quote)
    base, quote = _guess(_SETTLED.sub("", pair) or pair, market, home)
    if not base:
        raise UsageError(
            f"cannot tell the quote asset of {word}",
            hint="write where it splits, for instance FOO/BAR for FOOBAR",
        )
    return Instrument(word, base, quote, is_guess=True)


def _guess(pair: str, market: Market, home: Path | None) -> tuple[str, str]:
    """Split a pair that no list has by its end; two empty texts if no end is a quote asset.

    A base asset that is known counts more than a quote asset of this market; among equals the
    quote asset with the most pairs is the likeliest: ADAEUR is ADA/EUR, not AD/AEUR.
    """
    listing = known_listing(market, home)
    elsewhere = _assets_of_all_markets()
    best: tuple[tuple[int, int, int, int], str, str] | None = None
    for base, quote in _splits(pair):
        is_known = 2 if base in listing.bases else int(base in elsewhere.bases)
        pairs = listing.quotes.get(quote, 0)
        if not pairs and quote not in elsewhere.quotes:
            continue
        if not is_known and len(quote) == 1:
            continue  # XYZU may be anything
        rank = (int(is_known > 0), int(pairs > 0), is_known, pairs)
        if best is None or rank > best[0]:
            best = rank, base, quote
    return best[1:] if best else ("", "")


def _splits(pair: str) -> Iterator[tuple[str, str]]:
    """Yield every way to split a pair, the longest quote asset first."""
    for place in range(1, len(pair)):
        yield pair[:place], pair[place:]


@dataclass(frozen=True, slots=True)
class _Assets:
    bases: frozenset[str]
    quotes: frozenset[str]


@cache
def _assets_of_all_markets() -> _Assets:
    listings = [known_listing(market) for market in Market]
    quotes = frozenset(_UNLISTED_QUOTES).union(*(listing.quotes for listing in listings))
    return _Assets(quotes.union(*(listing.bases for listing in listings)), quotes)
