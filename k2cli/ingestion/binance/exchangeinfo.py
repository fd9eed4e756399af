"""The exchange's list of symbols, `exchangeInfo`: which trade now, and how each splits into assets.

The home folder's list is refreshed from it in the background. Nothing waits for that or fails
because of it: if the REST API is unreachable or its answer invalid, the stream keeps the list that
it has. Only a stream of symbols that are selected by rules needs an answer; see trading.py.
"""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

import msgspec

from k2cli.errors import Unavailable
from k2cli.events import Listener, Observer
from k2cli.files import replace_file
from k2cli.ingestion.binance.http import STEP_TIMEOUT_S, Answer, check_rest_url, tls_context
from k2cli.ingestion.listings import (
    Pair,
    format_listing,
    home_list,
    merge_pairs,
    pair_of,
    parse_listing,
)
from k2cli.ingestion.symbols import Instrument, Market
from k2cli.symbols import fold_symbol, is_asset

_MAX_BYTES: Final = 128 << 20  # of the decompressed answer; the spot market's is about 20 MB
_TRADING: Final = "TRADING"  # the status of a symbol that trades
_MAX_AGE_S: Final = 24 * 3600.0
_TIMEOUT_S: Final = 60.0  # in total


class ListedVenue(Protocol):
    """A market with a REST API that lists its symbols."""

    @property
    def market(self) -> Market:
        """The market, which names the list."""

    @property
    def info_path(self) -> str:
        """The path of `exchangeInfo` in the REST API."""


class _Symbol(msgspec.Struct):
    symbol: str
    base: str = msgspec.field(name="baseAsset")
    quote: str = msgspec.field(name="quoteAsset")
    status: object = None  # a text; its values change over the years
    contract_status: object = msgspec.field(name="contractStatus", default=None)  # on COIN-M


class _ExchangeInfo(msgspec.Struct):
    symbols: list[_Symbol]


def parse_exchange_info(answer: bytes, date: str) -> dict[str, Pair]:
    """Parse the pairs of an `exchangeInfo` answer, of any market.

    {"symbols":[{"symbol":"BTCUSDT","status":"TRADING","baseAsset":"BTC","quoteAsset":"USDT"}]}

    Raises:
        ValueError: the answer is invalid or empty.
    """
    return _pairs(_decode(answer), date)


def _decode(answer: bytes) -> Sequence[_Symbol]:
    try:
        return msgspec.json.decode(answer, type=_ExchangeInfo).symbols
    except RecursionError as exc:
        raise ValueError("the answer is nested too deeply") from exc


def _trading(symbols: Sequence[_Symbol]) -> list[Instrument]:
    instruments: dict[str, Instrument] = {}
    for each in symbols:
        if _TRADING in (each.status, each.contract_status):
            name, base, quote = map(fold_symbol, (each.symbol, each.base, each.quote))
            if all(map(is_asset, (*name.split("_"), base, quote))):
                instruments[name] = Instrument(name, base, quote)
    if not instruments:
        raise ValueError("lists no symbols that trade")
    return list(instruments.values())


def _pairs(symbols: Sequence[_Symbol], date: str) -> dict[str, Pair]:
    pairs: dict[str, Pair] = {}
    for each in symbols:
        name, base, quote = map(fold_symbol, (pair_of(each.symbol), each.base, each.quote))
        if is_asset(name) and is_asset(base) and is_asset(quote):
            pairs[name] = Pair(base, quote, date)
    if not pairs:
        raise ValueError("lists no symbols")
    return pairs


class SymbolRefresh:
    """Refreshes the list of a market once, in the background, when the stream is connected."""

    def __init__(
        self, *, venue: ListedVenue, rest_urls: Sequence[str], home: Path, observe: Observer
    ) -> None:
        """Prepare the refresh from the first of these REST APIs that answers.

        Raises:
            UsageError: one of them is not the base of a REST API.
        """
        for each in rest_urls:
            check_rest_url(each)
        self._venue = venue
        self._rest_urls = rest_urls
        self._home = home
        self._observe = observe
        self._pass_on: Listener = observe
        self._is_started = False

    def on_event(self, event: str, /, **fields: object) -> None:
        """Forward an event; the first `connected` starts the refresh."""
        self._pass_on(event, **fields)
        if event == "connected" and not self._is_started:
            self._is_started = True
            if is_stale(self._venue, self._home):
                # A daemon, so that the process can exit without it.
                threading.Thread(target=self._run, name="exchange-info", daemon=True).start()

    def _run(self) -> None:
        reasons = []
        for url in self._rest_urls:
            reason = self._refresh(url)
            if not reason:
                return
            reasons.append(reason)
        # The first server is the one that should have answered.
        self._observe("symbols_not_refreshed", url=self._rest_urls[0], reason=reasons[0])

    def _refresh(self, url: str) -> str:
        """Refresh the list from one server; return why that failed, if it did."""
        try:
            count = refresh_symbols(self._venue, rest_url=url, home=self._home)
        except _failures() as exc:
            return str(exc) or type(exc).__name__
        self._observe("symbols_refreshed", url=url, symbols=count)
        return ""


def _failures() -> tuple[type[Exception], ...]:
    """Return what a request for the list may raise."""
    from k2cli.ingestion.binance.client import FAILURES  # noqa: PLC0415  imports httpx2

    return FAILURES


def is_stale(venue: ListedVenue, home: Path) -> bool:
    """Return whether a market's list in the home folder is missing, damaged or a day old."""
    path = home_list(home, venue.market)
    try:
        age_s = time.time() - path.stat().st_mtime
        return not 0 <= age_s < _MAX_AGE_S or not _read(path, venue)
    except (OSError, ValueError):
        return True


def refresh_symbols(venue: ListedVenue, *, rest_url: str, home: Path) -> int:
    """Fetch `exchangeInfo`, and merge it into the home folder's list; return its pairs.

    Raises:
        httpx2.HTTPError: the exchange is unreachable or refuses.
        ValueError: the answer is too large, too slow or not an `exchangeInfo` answer.
        OSError: the list cannot be written.
    """
    return _merge_list(_ask(venue, rest_url), venue, home)


def trading_symbols(venue: ListedVenue, *, rest_url: str, home: Path) -> list[Instrument]:
    """Fetch the symbols that trade now, and refresh the home folder's list.

    Raises:
        UsageError: `rest_url` is not the base of a REST API.
        Unavailable: the exchange is unreachable or refuses, or its answer is not a list.
    """
    check_rest_url(rest_url)
    try:
        symbols = _ask(venue, rest_url)
        trading = _trading(symbols)
        with suppress(OSError):  # the list only helps to split symbols
            _merge_list(symbols, venue, home)
    except _failures() as exc:
        reason = str(exc) or type(exc).__name__
        raise Unavailable(f"cannot list the symbols of {rest_url}: {reason}") from exc
    return trading


def _ask(venue: ListedVenue, rest_url: str) -> Sequence[_Symbol]:
    return _decode(_fetch(f"{rest_url.rstrip('/')}{venue.info_path}"))


def _merge_list(symbols: Sequence[_Symbol], venue: ListedVenue, home: Path) -> int:
    """Merge symbols into the home folder's list; return the pairs among them."""
    path = home_list(home, venue.market)
    pairs: dict[str, Pair] = {}
    try:
        pairs.update(_read(path, venue))
    except (OSError, ValueError):
        pairs.clear()  # missing or damaged: it is rewritten
    listed = _pairs(symbols, datetime.now(UTC).date().isoformat())
    merge_pairs(pairs, listed)
    replace_file(path, format_listing({venue.market.value: pairs}))
    return len(listed)


def _read(path: Path, venue: ListedVenue) -> dict[str, Pair]:
    return parse_listing(path.read_text(encoding="utf-8"), venue.market)


def _fetch(url: str) -> bytes:
    import httpx2  # noqa: PLC0415

    deadline_s = time.monotonic() + _TIMEOUT_S
    answer = Answer(_MAX_BYTES)
    with (
        httpx2.Client(verify=tls_context(), timeout=STEP_TIMEOUT_S) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        for part in response.iter_bytes():
            answer.add(part)
            if time.monotonic() > deadline_s:
                raise ValueError(f"the answer takes longer than {_TIMEOUT_S:g} s")
    return bytes(answer.body)
