"""Follow an exchange's listings during a run: streams of new symbols begin, those of others end.

The exchange is asked in a thread of its own, at jittered intervals, and again soon after it failed
or after symbols stopped trading: a stream ends once two lists in a row agree. A list with less than
half of the symbols of the one before means that the market pauses or that the list is incomplete;
it changes nothing.
"""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol

from k2cli.errors import Unavailable
from k2cli.events import Observer
from k2cli.ingestion.symbols import Instrument
from k2cli.ingestion.trading import Selected, TradingList
from k2cli.iso import iso_utc_ms
from k2cli.nearest import first_names

_CONFIRM_S: Final = 60.0  # until a list is asked for again before streams end
_RETRY_S: Final = 600.0  # after the exchange did not list its symbols
_MIN_S: Final = 1.0  # between two requests
_JITTER: Final = 0.1  # of the interval
_MIN_TO_COMPARE: Final = 10  # symbols; shorter lists are never incomplete
_MAX_NAMES: Final = 20  # in an event


class Streams(Protocol):
    """A stream whose symbols can change."""

    def change(self, added: Sequence[Instrument], removed: Sequence[Instrument]) -> None:
        """Begin and end streams of symbols. Any thread."""


class ListingWatch:
    """Compares the exchange's list of trading symbols with what is streamed.

    A named symbol ends only after it was seen trading: one that is not listed yet stays subscribed.
    An ended symbol that trades again is streamed again.
    """

    def __init__(
        self,
        *,
        selected: Selected,
        fetch: Callable[[], TradingList],
        streams: Streams,
        observe: Observer,
        interval_s: float,
    ) -> None:
        self._selection = selected.selection
        self._failure = selected.failure
        self._list = selected.trading
        self._fetch = fetch
        self._streams = streams
        self._observe = observe
        self._interval_s = interval_s
        self._streamed = {i.symbol: i for i in selected.instruments}
        self._traded = {i.symbol for i in self._list.symbols} if self._list else set()
        self._missing: set[str] = set()  # in the last list, although streamed and traded before
        self._stopped = threading.Event()

    def run(self) -> None:
        """Ask until stopped."""
        delay_s = self._failed(self._failure, _CONFIRM_S) if self._failure else self._usual_s()
        while not self._stopped.wait(max(delay_s, _MIN_S)):
            delay_s = self.check()

    def stop(self) -> None:
        """Stop asking, and stop changing streams."""
        self._stopped.set()

    def check(self) -> float:
        """Ask once and apply the changes; return the seconds until the next time."""
        try:
            trading = self._fetch()
        except Unavailable as exc:
            return 0.0 if self._stopped.is_set() else self._failed(str(exc), _RETRY_S)
        if self._stopped.is_set():
            return 0.0
        known = len(self._list.symbols) if self._list else 0
        count = len(trading.symbols)
        if known >= _MIN_TO_COMPARE and count < known / 2:
            return self._failed(f"{count} symbols trade, after {known}", _RETRY_S)
        self._list = trading
        self._apply(trading.symbols)
        return min(self._interval_s, _CONFIRM_S) if self._missing else self._usual_s()

    def _apply(self, symbols: Sequence[Instrument]) -> None:
        trading = {i.symbol for i in symbols}
        selected = self._selection.resolve(symbols)
        added = [i for i in selected if i.symbol in trading and i.symbol not in self._streamed]
        missing = (self._streamed.keys() & self._traded) - trading
        removed = [self._streamed.pop(symbol) for symbol in sorted(missing & self._missing)]
        self._missing = missing - self._missing
        self._streamed |= {i.symbol: i for i in added}
        self._traded = trading | self._missing
        if added or removed:
            self._streams.change(added, removed)
        if added:
            self._observe("listed", symbols=_names(added), count=len(added))
        if removed:
            self._observe("delisted", symbols=_names(removed), count=len(removed))

    def _failed(self, reason: str, retry_s: float) -> float:
        """Report that the list in use may be out of date; named symbols do not depend on it."""
        retry_in_s = min(self._interval_s, retry_s)
        listed_at = iso_utc_ms(int(self._list.time_s * 1000)) if self._list else "never"
        if self._selection.rules:
            self._observe(
                "listing_unavailable", reason=reason, listed_at=listed_at, retry_in_s=retry_in_s
            )
        return retry_in_s

    def _usual_s(self) -> float:
        return self._interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)


def _names(instruments: Sequence[Instrument]) -> str:
    return first_names([each.symbol for each in instruments], _MAX_NAMES, sep=",")


@contextmanager
def watching(watch: ListingWatch) -> Iterator[None]:
    """Run a watch in the background. It may still wait for an answer when this returns."""
    threading.Thread(target=watch.run, name="listings", daemon=True).start()
    try:
        yield
    finally:
        watch.stop()
