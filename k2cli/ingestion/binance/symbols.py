"""The exchange's markets and channels, and how a symbol splits into base and quote asset.

Offline the split is found by the quote asset at the end of the symbol. Where that is not enough
(a new quote asset), the user writes the split: `FOO/BAR`.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from k2cli.errors import UsageError


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Venue:
    """What k2 must know of one market."""

    exchange: str
    asset_class: str
    urls: tuple[str, ...]  # bases, in failover order
    has_microseconds: bool  # understands timeUnit=MICROSECOND


VENUES: Final = {
    Market.SPOT: Venue(
        exchange="BINANCE",
        asset_class="crypto",
        urls=(
            "wss://stream.binance.com:9443",
            "wss://stream.binance.com:443",
            "wss://data-stream.binance.vision",
        ),
        has_microseconds=True,
    ),
    Market.US: Venue(
        exchange="BINANCE_US",
        asset_class="crypto",
        urls=("wss://stream.binance.us:9443",),
        has_microseconds=True,
    ),
    Market.USDM: Venue(
        exchange="BINANCE_USDM",
        asset_class="futures",
        urls=("wss://fstream.binance.com",),
        has_microseconds=False,
    ),
    Market.COINM: Venue(
        exchange="BINANCE_COINM",
        asset_class="futures",
        urls=("wss://dstream.binance.com",),
        has_microseconds=False,
    ),
}


@dataclass(frozen=True, slots=True)
class Instrument:
    """A symbol and the two assets it trades."""

    symbol: str
    base: str
    quote: str


# Longest first, so that FDUSD is not taken for USD.
_QUOTES: Final = sorted(
    [
        *("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "USDP", "USDS", "USD1", "USD", "USDE", "RLUSD"),
        *("PAX", "DAI", "UST", "IDRT", "BIDR", "BKRW", "BVND", "NGN", "VAI", "AEUR", "EURI"),
        *("BTC", "ETH", "BNB", "XRP", "TRX", "DOGE", "DOT", "SOL"),
        *("EUR", "GBP", "TRY", "BRL", "JPY", "AUD", "RUB", "UAH", "ZAR", "PLN", "RON", "ARS"),
        *("MXN", "CZK", "COP"),
    ],
    key=len,
    reverse=True,
)
# Assets whose last letter makes `...USD` look like BUSD or TUSD: BNBUSD is BNB/USD.
_LOOKS_LIKE_BUSD: Final = frozenset({"BNB", "SHIB", "ARB", "ORB", "CKB", "GLMB", "DGB"})
_LOOKS_LIKE_TUSD: Final = frozenset(
    {
        *("DOT", "BAT", "GRT", "APT", "VET", "LPT", "GMT", "MNT", "QNT", "ANT"),
        *("STPT", "ONT", "FORT", "IOT", "HNT", "BNT"),
    }
)
_SYMBOL: Final = re.compile(r"[A-Z0-9]{2,30}(?:_(?:PERP|[0-9]{6}))?")
_SPLIT: Final = re.compile(r"([A-Z0-9]{1,20})[/-]([A-Z0-9]{1,20})")


def parse_symbol(text: str) -> Instrument:
    """Read a symbol as users write it: `BTCUSDT`, `btcusdt`, `BTC/USDT`, `BTC-USDT`,
    `ETHUSD_PERP`, `BTCUSDT_250926`.

    Raises:
        UsageError: not a symbol, or one whose quote asset is not known.
    """
    word = text.strip().upper()
    if split := _SPLIT.fullmatch(word):
        return Instrument(split[1] + split[2], split[1], split[2])
    if not _SYMBOL.fullmatch(word):
        raise UsageError(f"{text[:80]!r} is not a symbol", hint="write it like BTCUSDT or BTC/USDT")
    pair = word.split("_")[0]
    for quote in _QUOTES:
        base = pair.removesuffix(quote)
        if base not in (pair, "") and not _hides_usd(base, quote):
            return Instrument(word, base, quote)
    raise UsageError(
        f"cannot tell the quote asset of {word}",
        hint="write where it splits, for instance FOO/BAR for FOOBAR",
    )


def _hides_usd(base: str, quote: str) -> bool:
    match quote:
        case "BUSD":
            return base + "B" in _LOOKS_LIKE_BUSD
        case "TUSD":
            return base + "T" in _LOOKS_LIKE_TUSD
        case _:
            return False
