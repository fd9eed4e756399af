"""Dated lists of pairs, one per market: the base and quote asset of each symbol.

k2 ships a list (symbols.tsv) that includes delisted pairs, and stores the exchange's latest list in
the home folder, in the same format. A line is market, date, quote asset, and the base assets that
were listed against it by that date:

    spot	2025-05	AEUR	BTC ETH EUR

A pair whose name is not base plus quote is written PAIR=BASE. Futures of one pair (BTCUSD_PERP,
BTCUSD_240329) share its line. If a name was split differently over time, the newest date wins.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Final, NamedTuple

_FILE: Final = "symbols.tsv"
_FIELDS: Final = 4
_HEADER: Final = """\
# Base and quote assets of the exchange's symbols, per market, as its exchangeInfo lists them.
# market, date, quote asset, base assets; PAIR=BASE where the pair is not named base and quote.
"""


class Pair(NamedTuple):
    """The two assets of a pair, and the last date on which the exchange listed it."""

    base: str
    quote: str
    date: str  # ISO 8601, to the year, month or day


Pairs = Mapping[str, Pair]  # BTCUSDT -> its assets


def pair_of(symbol: str) -> str:
    """Return the pair of a symbol: BTCUSD for BTCUSD_PERP and BTCUSD_240329."""
    return symbol.partition("_")[0]


def parse_listing(text: str, market: str) -> dict[str, Pair]:
    """Parse one market's pairs from a list.

    Raises:
        ValueError: a line is malformed.
    """
    pairs: dict[str, Pair] = {}
    for line in text.splitlines():
        if line.startswith("#") or line.partition("\t")[0] != market:
            continue
        fields = line.split("\t")
        if len(fields) != _FIELDS:
            raise ValueError(f"not a line of a symbol list: {line[:80]!r}")
        _, date, quote, bases = fields
        merge_pairs(pairs, _pairs_of(bases.split(" "), quote, date))
    return pairs


def _pairs_of(words: Iterable[str], quote: str, date: str) -> dict[str, Pair]:
    pairs = {}
    for word in words:
        name, equals, base = word.partition("=")
        pairs[name if equals else name + quote] = Pair(base if equals else name, quote, date)
    return pairs


def format_listing(markets: Mapping[str, Pairs]) -> str:
    """Format the pairs of markets as a list; the same pairs always give the same text."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for market, pairs in markets.items():
        for name, pair in pairs.items():
            word = pair.base if name == pair.base + pair.quote else f"{name}={pair.base}"
            lines.setdefault((market, pair.quote, pair.date), []).append(word)
    return _HEADER + "".join(
        f"{market}\t{date}\t{quote}\t{' '.join(sorted(words))}\n"
        for (market, quote, date), words in sorted(lines.items())
    )


def merge_pairs(pairs: dict[str, Pair], others: Pairs) -> None:
    """Merge pairs, keeping existing ones with a newer date."""
    for name, pair in others.items():
        if name not in pairs or pairs[name].date <= pair.date:
            pairs[name] = pair


def home_list(home: Path, market: str) -> Path:
    """Return the path of the list last refreshed from the exchange."""
    return home / "symbols" / f"binance-{market}.tsv"


@dataclass(frozen=True)
class Listing:
    """The known pairs of one market, and its assets."""

    pairs: Pairs

    @cached_property
    def bases(self) -> frozenset[str]:
        """The base assets."""
        return frozenset(pair.base for pair in self.pairs.values())

    @cached_property
    def quotes(self) -> Mapping[str, int]:
        """The quote assets, with the number of pairs of each."""
        return Counter(pair.quote for pair in self.pairs.values())


def known_listing(market: str, home: Path | None = None) -> Listing:
    """Return the pairs of a market: the shipped list merged with the home folder's.

    A list in the home folder that cannot be read is ignored: the next refresh replaces it.
    """
    path = home_list(home, market) if home else None
    try:
        status = path.stat() if path else None
    except OSError:
        status = None
    if path is None or status is None:
        return _shipped(market)
    return _with_home(market, path, (status.st_mtime_ns, status.st_size, status.st_ino))


@cache
def shipped_text() -> str:
    """Return the list that k2 ships."""
    folder = resources.files("k2cli.ingestion")
    return (folder / _FILE).read_text(encoding="utf-8")


@cache
def _shipped(market: str) -> Listing:
    return Listing(parse_listing(shipped_text(), market))


@lru_cache(maxsize=8)
def _with_home(market: str, path: Path, version: tuple[int, int, int]) -> Listing:  # noqa: ARG001
    pairs = dict(_shipped(market).pairs)
    try:
        merge_pairs(pairs, parse_listing(path.read_text(encoding="utf-8"), market))
    except (OSError, ValueError):
        return _shipped(market)
    return Listing(pairs)
