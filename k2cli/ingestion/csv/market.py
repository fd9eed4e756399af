"""Infer the market of a dump from its name, folder and columns.

The exchange names the dumps of its spot and USD-M markets alike, and each market has its own ids,
so a dump must not be attributed to another market. All evidence of the market is used; if it
contradicts itself or the user's options, the file is refused.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path, PurePath, PurePosixPath
from typing import Final

from k2cli.errors import BadData, UsageError
from k2cli.ingestion.listings import known_listing, pair_of
from k2cli.ingestion.symbols import FUTURES, Market, parse_symbol
from k2cli.symbols import fold_symbol, normalize_symbol

_SUFFIXES: Final = (".gz", ".zst", ".zip", ".csv", ".txt")
_NAMED: Final = re.compile(
    r"(?:(?P<market>spot|us|usdm|um|coinm|cm)-)?(?P<symbol>[^\s/\\-]+)"
    r"-(?P<dump>trades|aggTrades|quotes|bookTicker)-(?P<period>[0-9]{4}-[0-9]{2}(?:-[0-9]{2})?)"
)
_MARKETS: Final[Mapping[str, Market]] = {
    **{market.value: market for market in Market},
    "um": Market.USDM,
    "cm": Market.COINM,
}
_LAYOUTS: Final = {
    "trades": "binance-trades",
    "aggTrades": "binance-agg-trades",
    "bookTicker": "binance-book-ticker",
}
_CONTRACT: Final = re.compile(r"[^_]+_(?P<kind>PERP|SETTLED|[0-9]{6})")
_BASE_QUANTITY: Final = "baseqty"
_QUOTE_QUANTITY: Final = "quoteqty"
_BUYER_MAKER: Final = "isbuyermaker"
# In every spot dump and no futures dump; first the exchange's name, then those of scripts.
_BEST_MATCH: Final = "isbestmatch"
_BEST_MATCHES: Final = frozenset({_BEST_MATCH, "bestmatch", "wasthetradethebestpricematch"})
_SPOT: Final = frozenset({Market.SPOT, Market.US})
_UPDATE_ID: Final = "update_id"  # of a book ticker, which only futures have dumps of
_HINT: Final = "choose one: --market usdm or --market coinm"


@dataclass(frozen=True, slots=True)
class Named:
    """The parts of the exchange's file names: `usdm-BTCUSDT-trades-2024-08-08`."""

    symbol: str
    market: Market | None
    dump: str = "trades"  # content: trades, aggTrades, quotes, bookTicker
    period: str = ""  # its day or month: 2024-08-08, 2024-08


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What is known of a file before its rows are read."""

    path: Path | None  # None: stdin
    member: str = ""  # the name of the file in a zip archive
    symbol: str | None = None  # if the user gives it
    header: Sequence[str] = ()  # column names; empty: no header
    cells: Sequence[str] = ()  # of the first line, if there is no header


@dataclass(frozen=True, slots=True)
class _Evidence:
    text: str
    markets: frozenset[Market]


def plain_name(name: str) -> str:
    """Return a column name without case and punctuation: `quoteqty`."""
    return "".join(char for char in name.lower() if char.isalnum())


def stem_of(path: PurePath) -> str:
    """Return a file's name without folder and extensions: `7078` for `x/7078.csv.gz`."""
    name = path.name
    while name.lower().endswith(_SUFFIXES):
        name = name.rpartition(".")[0]
    return normalize_symbol(name)


def parse_name(stem: str) -> Named | None:
    """Parse a file name without extensions; None if it does not have the exchange's form."""
    match = _NAMED.fullmatch(stem)
    if match is None:
        return None
    market = _MARKETS[match["market"]] if match["market"] else None
    return Named(match["symbol"], market, match["dump"], match["period"])


def check_dump(path: Path | None, member: str, dump: str) -> None:
    """Check that the content that a file's name states is what its layout is for.

    Raises:
        BadData: it is not.
    """
    for each in _paths(Dump(path=path, member=member)):
        named = parse_name(stem_of(each))
        if named and named.dump != dump:
            layout = _LAYOUTS.get(named.dump)
            raise BadData(
                f"the name {each.name} indicates {named.dump}, but the layout is for {dump}",
                hint=f"use --layout {layout}" if layout else "rename the file, or use its layout",
            )


def check_period(path: Path | None, member: str, symbol: str, day: date) -> None:
    """Check that a file whose name states a symbol and a day or month is of these.

    Raises:
        BadData: it is not.
    """
    for each in _paths(Dump(path=path, member=member)):
        named = parse_name(stem_of(each))
        if named and fold_symbol(named.symbol) != symbol:
            raise BadData(f"the name {each.name} indicates {named.symbol}, not {symbol}")
        if named and not day.isoformat().startswith(named.period):
            raise BadData(f"the name {each.name} indicates {named.period}, not {day}")


def find_market(
    given: Market | None, exchange: str | None, dump: Dump, columns: Sequence[str]
) -> Market:
    """Infer the market of a dump; `columns` are the columns of its layout.

    Raises:
        BadData: the evidence contradicts itself or the options, or the market of a futures dump
        cannot be inferred.
    """
    evidence = [*_given(given, exchange), *_evidence(dump), *_of_best_match(dump, columns)]
    for number, one in enumerate(evidence):
        for other in evidence[:number]:
            if not one.markets & other.markets:
                raise BadData(
                    f"{other.text} contradicts {one.text}",
                    hint="load the files of each market with their own --market, or without it",
                )
    possible = frozenset(Market).intersection(*(each.markets for each in evidence))
    if not evidence:
        is_of_futures = _UPDATE_ID in columns or _lacks_best_match(dump, columns)
        possible = FUTURES if is_of_futures else frozenset({Market.SPOT})
    if Market.SPOT in possible:
        return Market.SPOT
    if len(possible) == 1:
        return next(iter(possible))
    raise BadData("this is a futures dump, of USD-M or COIN-M", hint=_HINT)


def _given(market: Market | None, exchange: str | None) -> Iterator[_Evidence]:
    if market is not None:
        yield _Evidence(f"--market {market}", frozenset({Market(market)}))
    for each in Market:
        if exchange is not None and exchange.strip() == each.exchange:
            yield _Evidence(f"--exchange {each.exchange}", frozenset({each}))


def _evidence(dump: Dump) -> Iterator[_Evidence]:
    if dump.symbol:
        yield from _of_symbol(dump.symbol)
    for path in _paths(dump):
        yield from _of_folder(path)
        named = parse_name(stem_of(path))
        if named and named.market:
            yield _Evidence(f"the name {path.name}", frozenset({named.market}))
        if named:
            yield from _of_symbol(named.symbol)
    yield from _of_header({plain_name(name) for name in dump.header})


def _paths(dump: Dump) -> Iterator[PurePath]:
    """Yield every path of a file: as given, with symlinks resolved, and in its archive."""
    if dump.path is not None:
        given = Path(os.path.abspath(dump.path))  # noqa: PTH100  not through symlinks
        yield given
        if (real := dump.path.resolve()) != given:
            yield real
    if dump.member:
        yield PurePosixPath(dump.member.replace("\\", "/"))


def _of_folder(path: PurePath) -> Iterator[_Evidence]:
    """Find futures/um, futures/cm or spot/daily in a path; the innermost wins."""
    folders = [folder.lower() for folder in path.parent.parts]
    for outer, inner in reversed(list(pairwise(folders))):
        if outer == "futures" and inner in ("um", "cm"):
            yield _Evidence(f"the folder futures/{inner}", frozenset({_MARKETS[inner]}))
            return
        if outer == "spot" and inner in ("daily", "monthly"):
            yield _Evidence(f"the folder spot/{inner}", frozenset({Market.SPOT}))
            return


def _of_symbol(symbol: str) -> Iterator[_Evidence]:
    markets = markets_of_symbol(symbol)
    if len(markets) < len(Market):
        yield _Evidence(f"the symbol {fold_symbol(symbol)}", markets)


def markets_of_symbol(symbol: str) -> frozenset[Market]:
    """Return the possible markets of a symbol: a contract trades on a futures market."""
    word = fold_symbol(symbol.strip())
    contract = _CONTRACT.fullmatch(word)
    if contract is None:
        return FUTURES if word.endswith("SETTLED") else frozenset(Market)
    if contract["kind"] == "PERP":
        return frozenset({Market.COINM})
    return FUTURES if contract["kind"] == "SETTLED" else _of_dated(word)


def _of_dated(symbol: str) -> frozenset[Market]:
    """An expiring contract is coin-margined if its quote asset is USD."""
    pair = pair_of(symbol)
    for market in (Market.COINM, Market.USDM):
        if pair in known_listing(market).pairs:
            return frozenset({market})
    try:
        quote = parse_symbol(symbol, Market.USDM).quote
    except UsageError:
        return FUTURES
    return frozenset({Market.COINM if quote == "USD" else Market.USDM})


def _of_header(names: set[str]) -> Iterator[_Evidence]:
    """Inspect a header: spot dumps have isBestMatch, COIN-M dumps base_qty for quote_qty."""
    if _BASE_QUANTITY in names:
        yield _Evidence("the column base_qty", frozenset({Market.COINM}))
    elif {_QUOTE_QUANTITY, _BUYER_MAKER} <= names and not names & _BEST_MATCHES:
        text = "the header of futures (quote_qty, is_buyer_maker, no is_best_match)"
        yield _Evidence(text, frozenset({Market.USDM}))


def _of_best_match(dump: Dump, columns: Sequence[str]) -> Iterator[_Evidence]:
    """Find the column that only spot dumps have; without a header, in the first line.

    The cell of a futures trade is empty: `k2 export` writes one beside trades of the spot market.
    """
    if dump.header:
        is_filled = not _BEST_MATCHES.isdisjoint(map(plain_name, dump.header))
    else:
        is_filled = bool(_named_cells(dump, columns).get(_BEST_MATCH, "").strip())
    if is_filled:
        yield _Evidence("the column is_best_match", _SPOT)


def _named_cells(dump: Dump, columns: Sequence[str]) -> dict[str, str]:
    """Return the cells of the first line of a file without a header, by column."""
    return dict(zip(map(plain_name, columns), dump.cells, strict=False))


def _lacks_best_match(dump: Dump, columns: Sequence[str]) -> bool:
    """Return whether a dump lacks the column of every spot dump that its layout has.

    A header with names other than the exchange's is from elsewhere and proves nothing.
    """
    if _BEST_MATCH not in map(plain_name, columns):
        return False
    if dump.header:
        own = {plain_name(name) for name in dump.header}
        return _BUYER_MAKER in own and not own & _BEST_MATCHES
    cells = _named_cells(dump, columns)
    if cells.get(_BEST_MATCH, ""):
        return False
    # An empty cell means a futures trade if the other boolean is lower case, too.
    return bool(cells) and (_BEST_MATCH not in cells or cells.get(_BUYER_MAKER, "").islower())
