"""The symbols that trade on a market, from the exchange or, if it does not answer, as last listed.

The last list is in the home folder, so that a stream of `all:USDT` can restart while the exchange's
REST API is down.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from k2cli.errors import Unavailable, UsageError
from k2cli.files import replace_file
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.selection import Selection
from k2cli.ingestion.symbols import Instrument

_MAX_AGE_S: Final = 7 * 24 * 3600.0


class TradingList(msgspec.Struct, frozen=True, kw_only=True):
    """The symbols that traded at a time, in the order of the exchange."""

    url: str  # of the REST API
    time_s: float  # since 1970, UTC
    symbols: Sequence[Instrument]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A selection as a run starts with it."""

    selection: Selection
    instruments: Sequence[Instrument]
    trading: TradingList | None = None  # the newest list, if there is one
    failure: str = ""  # why it is not the exchange's current one, if the selection needs that


def select(
    selection: Selection, venue: Venue, home: Path, clock: Callable[[], float] = time.time
) -> Selected:
    """Resolve a selection. Only rules need the exchange's list.

    Raises:
        UsageError: there are rules, but no REST API.
        NotFound: a rule selects nothing.
        Unavailable: the exchange does not list its symbols, and did not during the last week.
    """
    if not selection.rules:
        trading = read_trading(venue, home)
        return Selected(selection=selection, instruments=selection.named, trading=trading)
    if not venue.rest_urls:
        raise UsageError(
            f"{selection.rules[0].text!r} needs the exchange's list of symbols",
            hint="add --rest-url, or name the symbols",
        )
    failure = ""
    try:
        trading = fetch_trading(venue, home, clock)
    except Unavailable as exc:
        trading, failure = _recent(venue, home, clock(), exc), str(exc)
    selection.check(trading.symbols)
    return Selected(
        selection=selection,
        instruments=selection.resolve(trading.symbols),
        trading=trading,
        failure=failure,
    )


def fetch_trading(venue: Venue, home: Path, clock: Callable[[], float] = time.time) -> TradingList:
    """Fetch the symbols that trade now, and store them in the home folder.

    Raises:
        Unavailable: the exchange does not list its symbols.
    """
    url, symbols = _fetch_from_any(venue, home)
    trading = TradingList(url=url, time_s=clock(), symbols=symbols)
    with suppress(OSError):  # it is only for a restart during an outage
        replace_file(_path(venue, home), msgspec.json.encode(trading).decode())
    return trading


def _fetch_from_any(venue: Venue, home: Path) -> tuple[str, Sequence[Instrument]]:
    """Ask the servers in order; return the URL of the first that answers, and its symbols."""
    failures = []
    for url in venue.rest_urls:
        try:
            return url, venue.trading_symbols(url, home)
        except Unavailable as exc:
            failures.append(exc)
    # The first server is the one that should have answered.
    raise failures[0] if failures else Unavailable(f"{venue.exchange} has no REST API")


def read_trading(venue: Venue, home: Path) -> TradingList | None:
    """Read the list last stored; None if there is none of this REST API."""
    try:
        content = _path(venue, home).read_bytes()
        trading = msgspec.json.decode(content, type=TradingList)
    except (OSError, ValueError):
        return None
    return trading if trading.url in venue.rest_urls and trading.symbols else None


def _recent(venue: Venue, home: Path, now_s: float, failure: Unavailable) -> TradingList:
    trading = read_trading(venue, home)
    if trading is None or now_s - trading.time_s > _MAX_AGE_S:
        raise Unavailable(
            str(failure),
            hint="try again later, choose another API with --rest-url, or name symbols",
        ) from failure
    return trading


def _path(venue: Venue, home: Path) -> Path:
    return home / "symbols" / f"trading-{venue.exchange}.json"
