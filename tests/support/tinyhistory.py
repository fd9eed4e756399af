"""The history of the tiny exchange: what it has on record, and how it misbehaves."""

import asyncio
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from pathlib import Path

from k2cli.ingestion.history import History, HistoryRefused, HistoryUnavailable, Page
from k2cli.ingestion.symbols import Instrument
from k2cli.records import TRADES
from support.builders import batch_of, trade_row
from support.tinyexchange import TinyVenue

_PAGE = 1_000


@dataclass
class TinyHistory:
    """Serves the trades that it lists, as long as nothing else is set."""

    listed: Container[int] = range(1_000_000)
    since: int | None = None  # the first trade since any time
    refusal: str | None = None
    outages: int = 0  # requests that fail at first
    is_stuck: bool = False  # never answers
    requests: list[tuple[str, int, int]] = field(default_factory=list)
    times_us: list[int] = field(default_factory=list)
    is_closed: bool = False

    async def trades(self, instrument: Instrument, first: int, last: int) -> Page:
        self.requests.append((instrument.symbol, first, last))
        await self._misbehave()
        known_to = min(last, first + _PAGE - 1)
        rows = [
            trade_row(
                symbol=instrument.symbol,
                exchange="TINY",
                source_sequence=number,
                trade_id=f"TINY-{number}",
                vendor_data={"backfilled": "true"},
            )
            for number in range(first, known_to + 1)
            if number in self.listed
        ]
        return Page(rows=batch_of(TRADES, rows), known_to=known_to)

    async def first_since(self, instrument: Instrument, time_us: int) -> int | None:  # noqa: ARG002
        self.times_us.append(time_us)
        await self._misbehave()
        return self.since

    async def close(self) -> None:
        self.is_closed = True

    async def _misbehave(self) -> None:
        if self.is_stuck:
            await asyncio.sleep(3_600)
        if self.refusal is not None:
            raise HistoryRefused(self.refusal)
        if self.outages:
            self.outages -= 1
            raise HistoryUnavailable("HTTP 503")


@dataclass(frozen=True, kw_only=True)
class TinyVenueWithHistory(TinyVenue):
    history: Callable[[], History | None]

    def open_history(
        self,
        home: Path | None,  # noqa: ARG002
        *,
        api_key: str | None = None,  # noqa: ARG002
    ) -> History | None:
        return self.history()
