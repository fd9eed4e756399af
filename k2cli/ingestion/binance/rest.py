"""Past trades from the REST API: single trades by id, and ids by time.

Where no server offers single trades (`historicalTrades`), aggregate trades show what is missing,
but no trades are made of them: they lack the single quantities.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from k2cli.errors import UsageError
from k2cli.ingestion.binance.answers import (
    Aggregate,
    InvalidAnswer,
    TradesRequest,
    empty_page,
    parse_aggregates,
    parse_trades,
)
from k2cli.ingestion.binance.http import Timing, check_rest_url
from k2cli.ingestion.binance.restapi import KeyUse, RestApi
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.history import HistoryLocked, HistoryRefused, HistoryUnavailable, Page
from k2cli.ingestion.symbols import Instrument
from k2cli.iso import iso_utc_us
from k2cli.redaction import remember_secrets

if TYPE_CHECKING:
    from k2cli.ingestion.binance.client import RestClient

_PAGE_ROWS: Final = 1000  # the most that the exchange serves
_MAX_WINDOWS: Final = 1000  # requests to find a trade by time
_HOUR_MS: Final = 3_600_000
_TOO_LONG: Final = -1127  # the exchange's code for a window that it does not search


class BinanceHistory:
    """The history of one market; see `History`. Use it within one event loop.

    Raises:
        UsageError: one of the venue's REST URLs is not the base of a REST API.
    """

    def __init__(
        self,
        *,
        venue: Venue,
        api: RestApi,
        home: Path | None = None,
        api_key: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        """Prepare the history; it connects with the first request.

        `home` is the folder with the latest symbol lists.
        """
        for each in venue.rest_urls:
            check_rest_url(each)
        remember_secrets({"api_key": api_key or ""})
        self._venue = venue
        self._api = api
        self._home = home
        self._api_key = api_key or None
        self._timing = timing or Timing()
        self._longest_ms = round(api.window_s * 1000)
        self._client: RestClient | None = None

    async def trades(self, instrument: Instrument, first: int, last: int) -> Page:
        """Fetch one page of trades with numbers from `first` to at most `last`.

        Raises:
            HistoryRefused, HistoryUnavailable: see `History`.
        """
        from k2cli.ingestion.binance.client import TRADES_ENDPOINT, NotOffered  # noqa: PLC0415

        if not 0 <= first <= last:
            raise ValueError(f"no trades from {first} to {last}")
        self._check_key()
        request = TradesRequest(
            venue=self._venue, instrument=self._listed(instrument), first=first, last=last
        )
        parameters: dict[str, str | int] = {
            "symbol": instrument.symbol,
            "fromId": first,
            "limit": min(_PAGE_ROWS, last - first + 1),
        }
        try:
            return await self._open_client().get(
                TRADES_ENDPOINT,
                parameters,
                lambda answer: parse_trades(answer, request, round(self._timing.utc() * 1e6)),
            )
        except NotOffered as exc:
            return await self._learn(request, str(exc))

    async def first_since(self, instrument: Instrument, time_us: int) -> int | None:
        """Find the number of the first trade at or after a UTC time; None if there is none.

        Raises:
            HistoryRefused, HistoryUnavailable: see `History`.
        """
        self._check_reach(time_us)
        start_ms, window_ms = max(time_us // 1000, 0), min(_HOUR_MS, self._longest_ms)
        has_newer = False  # known only once a window is empty
        for _ in range(_MAX_WINDOWS):
            end_ms = start_ms + window_ms - 1
            page = await self._within(instrument, start_ms, end_ms)
            if page is None:  # the exchange does not search for so long
                self._longest_ms = window_ms = _HOUR_MS
                continue
            for each in page:
                if each.is_numbered and each.time_us >= time_us:
                    return each.first
            if page:  # aggregates before the time, in the same millisecond
                start_ms = page[-1].time_us // 1000 + 1
                continue
            is_over = end_ms >= self._timing.utc() * 1000
            if is_over or not (has_newer or await self._has_newer(instrument, time_us)):
                return None
            has_newer = True
            start_ms, window_ms = end_ms + 1, min(2 * window_ms, self._longest_ms)
        raise HistoryUnavailable(f"no trade of {instrument.symbol} was found since then")

    async def _has_newer(self, instrument: Instrument, time_us: int) -> bool:
        newest = await self._aggregates(instrument, {})
        return bool(newest) and newest[-1].time_us >= time_us

    async def close(self) -> None:
        """Close the connections."""
        if self._client is not None:
            await self._client.close()

    def _open_client(self) -> "RestClient":
        if self._client is None:
            from k2cli.ingestion.binance.client import RestClient  # noqa: PLC0415  imports httpx2

            self._client = RestClient(
                api=self._api,
                bases=self._venue.rest_urls,
                api_key=self._api_key,
                timing=self._timing,
            )
        return self._client

    def _check_key(self) -> None:
        use, key = self._api.key_use, self._api_key
        if use is KeyUse.REQUIRED and key is None:
            raise HistoryLocked(
                f"past trades of {self._venue.exchange} need an API key:"
                " set binance.api_key or K2_BINANCE_API_KEY"
            )
        if use is not KeyUse.NEVER and key is not None and not _can_be_key(key):
            raise HistoryLocked("binance.api_key has characters that an API key cannot have")

    def _check_reach(self, time_us: int) -> None:
        reach_s = self._api.aggregates_for_s
        if reach_s is not None and time_us < (self._timing.utc() - reach_s) * 1e6:
            raise HistoryRefused(
                f"{self._venue.exchange} finds trades by time only in the last {reach_s / 3600:g} h"
            )

    def _listed(self, instrument: Instrument) -> Instrument:
        """Split a symbol again that was on no list, as the stream does."""
        if not instrument.is_guess:
            return instrument
        try:
            return self._venue.parse_symbol(instrument.symbol, self._home)
        except UsageError:
            return instrument

    async def _learn(self, request: TradesRequest, why: str) -> Page:
        """Find out from aggregate trades which trades are missing, if any.

        Raises:
            HistoryRefused: the exchange has the next trade, but serves no single trades.
        """
        first, last = request.first, request.last
        try:
            known = await self._aggregates_from(request.instrument, first)
        except HistoryRefused as exc:
            raise HistoryRefused(f"{why}, and aggregate trades are not available: {exc}") from exc
        if not known:
            return empty_page(first - 1)
        if known[0].first > first:  # the exchange has no trades with the numbers before
            return empty_page(min(known[0].first - 1, last))
        missing = [each for each in known if each.first <= last]
        count = sum(min(each.last, last) - max(each.first, first) + 1 for each in missing)
        least = "" if known[-1].last >= last else "at least "
        begin, end = iso_utc_us(missing[0].time_us), iso_utc_us(missing[-1].time_us)
        raise HistoryRefused(
            f"{why}; aggregate trades show {least}{count:,} trades between {begin} and {end}"
        )

    async def _aggregates_from(self, instrument: Instrument, number: int) -> list[Aggregate]:
        """Fetch the aggregate with this trade, or else the next one, and those that follow."""
        page = _numbered(await self._aggregates(instrument, {}))  # the newest
        if not page or page[-1].last < number:
            return []
        low, high = 0, page[0].number
        while page[0].first > number and low < high:
            middle = (low + high) // 2
            answer = await self._aggregates(instrument, {"fromId": middle}, _from(middle))
            known = _numbered(answer)
            if not known or known[-1].last < number:
                low = max(answer[-1].number, middle) + 1
            elif known[0].first > number:
                high = middle
            else:
                page = known
        if page[0].first <= number:
            low = next(each.number for each in page if each.last >= number)
        answer = await self._aggregates(instrument, {"fromId": low}, _from(low))
        return [each for each in _numbered(answer) if each.last >= number]

    async def _within(
        self, instrument: Instrument, start_ms: int, end_ms: int
    ) -> Sequence[Aggregate] | None:
        """Fetch the first aggregates between two times; None if they are too far apart."""
        from k2cli.ingestion.binance.client import Refused  # noqa: PLC0415

        def parse(answer: bytes) -> Sequence[Aggregate]:
            page = parse_aggregates(answer)
            for each in page:
                if not start_ms <= each.time_us // 1000 <= end_ms:
                    raise InvalidAnswer("an aggregate trade of another time")
            return page

        parameters = {"startTime": start_ms, "endTime": end_ms}
        try:
            return await self._aggregates(instrument, parameters, parse)
        except Refused as exc:
            if exc.code == _TOO_LONG and end_ms - start_ms >= _HOUR_MS:
                return None
            raise

    async def _aggregates(
        self,
        instrument: Instrument,
        parameters: Mapping[str, int],
        parse: Callable[[bytes], Sequence[Aggregate]] = parse_aggregates,
    ) -> Sequence[Aggregate]:
        from k2cli.ingestion.binance.client import AGGREGATES_ENDPOINT  # noqa: PLC0415

        return await self._open_client().get(
            AGGREGATES_ENDPOINT,
            {"symbol": instrument.symbol, **parameters, "limit": _PAGE_ROWS},
            parse,
        )


def _can_be_key(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _numbered(page: Sequence[Aggregate]) -> list[Aggregate]:
    return [each for each in page if each.is_numbered]


def _from(number: int) -> Callable[[bytes], Sequence[Aggregate]]:
    """Return a parser of the page of aggregates from this one on, which is not empty."""

    def parse(answer: bytes) -> Sequence[Aggregate]:
        page = parse_aggregates(answer)
        if not page or page[0].number < number:
            raise InvalidAnswer(f"not the aggregate trades from {number} on")
        return page

    return parse
