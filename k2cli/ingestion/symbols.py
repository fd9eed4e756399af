"""How symbols split into base and quote asset, and the markets that k2 has symbol lists for.

The split is the exchange's, from the list of a market (see listings.py). A symbol that is on no
list is split by the quote asset at its end; if that fails (a new quote asset), the user writes the
split: `FOO/BAR`.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

from k2cli.errors import UsageError
from k2cli.ingestion.listings import Listing, known_listing
from k2cli.symbols import fold_symbol, is_asset


class Market(StrEnum):
    """A market of Binance; each has separate ids and therefore a separate exchange name."""

    SPOT = "spot"
    US = "us"
    USDM = "usdm"
    COINM = "coinm"

    @property
    def exchange(self) -> str:
        """The name in the column `exchange`."""
        return _EXCHANGES[self]

    @property
    def asset_class(self) -> str:
        """What the market trades, as the column `asset_class` names it."""
        return "futures" if self in FUTURES else "crypto"


_EXCHANGES: Final[Mapping[Market, str]] = {
    Market.SPOT: "BINANCE",
    Market.US: "BINANCE_US",
    Market.USDM: "BINANCE_USDM",
    Market.COINM: "BINANCE_COINM",
}
FUTURES: Final = frozenset({Market.USDM, Market.COINM})


@dataclass(frozen=True, slots=True)
class Instrument:
    """A symbol and the two assets it trades."""

    symbol: str
    base: str
    quote: str
    is_guess: bool = field(default=False, compare=False)  # split by its suffix: it is on no list


_UNLISTED_QUOTES: Final = ("RLUSD", "USDE")  # on none of the lists that k2 ships
_SHORTEST: Final = 2
_LONGEST: Final = 30  # characters of a pair
_LONGEST_TEXT: Final = 100
_LONGEST_ASSET: Final = 20
_SYMBOL: Final = re.compile(r"([^_]+)(?:_(?:PERP|SETTLED|[0-9]{6}))?")
_SPLIT: Final = re.compile(r"([^/-]+)[/-]([^/-]+)")
_SETTLED: Final = re.compile(r"(?:SETTLED)+$")  # the archive's name for an expired contract


def parse_symbol(text: str, market: Market, home: Path | None = None) -> Instrument:
    """Parse a symbol of a market with the market's list; see `split_symbol`.

    `home` is the folder with the last refreshed list; without it the shipped list is used.

    Raises:
        UsageError: not a symbol, or its quote asset is unknown.
    """
    return split_symbol(text, known_listing(market, home))


def split_symbol(text: str, listing: Listing) -> Instrument:
    """Parse a symbol as users and exchanges write it: `BTCUSDT`, `btcusdt`, `BTC/USDT`,
    `BTC-USDT`, `ETHUSD_PERP`, `BTCUSDT_250926`, `币安人生USDT`.

    Raises:
        UsageError: not a symbol, or its quote asset is unknown.
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
    listed = listing.pairs.get(pair)
    if listed:
        return Instrument(word, listed.base, listed.quote)
    base, quote = _guess(_SETTLED.sub("", pair) or pair, listing)
    if not base:
        raise UsageError(
            f"cannot infer the quote asset of {word}",
            hint="write the split, for example FOO/BAR for FOOBAR",
        )
    return Instrument(word, base, quote, is_guess=True)


def _guess(pair: str, listing: Listing) -> tuple[str, str]:
    """Split an unlisted pair by its suffix; two empty strings if no suffix is a quote asset.

    A known base asset outranks a quote asset of this market; ties go to the quote asset with the
    most pairs: ADAEUR is ADA/EUR, not AD/AEUR.
    """
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
    for cut in range(1, len(pair)):
        yield pair[:cut], pair[cut:]


@dataclass(frozen=True, slots=True)
class _Assets:
    bases: frozenset[str]
    quotes: frozenset[str]


@cache
def _assets_of_all_markets() -> _Assets:
    listings = [known_listing(market) for market in Market]
    quotes = frozenset(_UNLISTED_QUOTES).union(*(listing.quotes for listing in listings))
    return _Assets(quotes.union(*(listing.bases for listing in listings)), quotes)
