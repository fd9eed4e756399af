"""The sources that a day of trades is verified against: a daily dump, or the REST API."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import date, datetime
from pathlib import Path
from typing import Final, Protocol

import pyarrow as pa

from k2cli.errors import BadData, ConfigError, NotFound, Unavailable
from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, CsvSource, read_csv
from k2cli.ingestion.history import History, HistoryLocked, HistoryRefused
from k2cli.ingestion.symbols import Instrument, Market
from k2cli.pipelines.checksums import check_checksum
from k2cli.query.comparison import SymbolDay
from k2cli.records import MAX_NUMBER
from k2cli.rejects import Reject

_LAYOUT: Final = "binance-trades"


class Source(Protocol):
    """The trades of one symbol and day, as the exchange publishes them."""

    name: str  # for people: a path or a URL
    digest: str  # SHA-256 of a file, in hex; else empty
    size_bytes: int  # of a file
    has_checksum: bool  # a .CHECKSUM file confirmed the digest
    is_partial: bool  # after reading: the day is not over, so newer trades do not count

    @property
    def of(self) -> SymbolDay:
        """What the trades are of."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the trades, in any order, possibly with some of other days.

        Raises:
            BadData: a trade is invalid, or the source cannot be read to its end.
        """

    def close(self) -> None:
        """Close files and connections."""


class DumpSource:
    """A dump of the exchange for a day or a month, read as `k2 load csv` reads it."""

    def __init__(
        self, path: Path, *, symbol: str, market: Market | None, day: date, home: Path
    ) -> None:
        """Open the file, and check its names and its .CHECKSUM file, if there is one.

        Without `market`, it is inferred from the file.

        Raises:
            NotFound, ConfigError, UsageError: the file cannot be opened, or the symbol is invalid.
            BadData: the file is of another symbol, day or market, or its checksum is wrong.
        """
        options = CsvOptions(symbol=symbol, market=market, home=home)
        self._reader: Final[CsvSource] = read_csv(path, load_layout(_LAYOUT), options)
        self.name = str(path.absolute())
        self.is_partial = False
        try:
            self.has_checksum = check_checksum(path, self._reader.hash)
            values = self._reader.file_values
            self._of = SymbolDay(exchange=values["exchange"], symbol=values["symbol"], day=day)
            self._reader.check_period(self._of.symbol, day)
            self.digest, self.size_bytes = self._reader.hash(), self._reader.size_bytes
        except BaseException:
            self._reader.close()
            raise

    @property
    def of(self) -> SymbolDay:
        """What the trades are of."""
        return self._of

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the trades of the file."""
        for batch in self._reader:
            if batch.rejects:
                hint = "download it again; k2 load csv --dry-run shows all invalid lines"
                raise _invalid(self.name, batch.rejects, what="line", hint=hint)
            for _, rows in batch.rows:
                yield rows

    def close(self) -> None:
        """Close the file."""
        self._reader.close()


class RestSource:
    """The REST API of the exchange, asked for the ids of the day page by page."""

    digest = ""
    size_bytes = 0
    has_checksum = False

    def __init__(
        self,
        history: History,
        instrument: Instrument,
        *,
        of: SymbolDay,
        name: str,
    ) -> None:
        self.name = name
        self.is_partial = False
        self._of = of
        self._history = history
        self._instrument = instrument
        self._runner = asyncio.Runner()

    @property
    def of(self) -> SymbolDay:
        """What the trades are of."""
        return self._of

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the trades of the day, up to the newest if it is not over.

        Raises:
            ConfigError: an API key is required.
            NotFound: the exchange refuses to serve these trades.
            Unavailable: the exchange does not answer, or serves only a part of the day.
        """
        self.is_partial = time.time() < self._of.end.timestamp()
        try:
            yield from self._pages()
        except HistoryRefused as exc:
            error = ConfigError if isinstance(exc, HistoryLocked) else NotFound
            raise error(
                f"{self.name} does not serve these trades of {self._of.symbol}: {exc}",
                hint="use the exchange's dump of the day: --dump FILE",
            ) from exc

    def _pages(self) -> Iterator[pa.RecordBatch]:
        opening, after = map(self._first_since, (self._of.start, self._of.end))
        if opening is None:
            return
        first, last = opening, MAX_NUMBER if after is None else after - 1
        while first <= last:
            page = self._runner.run(self._history.trades(self._instrument, first, last))
            if page.rejects:
                raise _invalid(self.name, page.rejects, what="trade", hint=None)
            is_at_end = page.known_to < first
            if first == opening and not _starts_with(page.rows, opening):
                raise self._incomplete(opening)
            if is_at_end and after is not None:
                raise self._incomplete(first)
            if page.rows.num_rows:
                yield page.rows
            if is_at_end:
                return
            first = page.known_to + 1

    def _incomplete(self, number: int) -> Unavailable:
        """Return the error for trades that the API knows but does not serve."""
        return Unavailable(
            f"{self.name} does not serve trade {number} of {self._of.symbol},"
            " although it shows it or newer ones",
            hint="run it again later, or use the exchange's dump of the day: --dump FILE",
        )

    def _first_since(self, moment: datetime) -> int | None:
        time_us = int(moment.timestamp()) * 1_000_000
        return self._runner.run(self._history.first_since(self._instrument, time_us))

    def close(self) -> None:
        """Close the connections."""
        with closing(self._runner):
            self._runner.run(self._history.close())


def _starts_with(rows: pa.RecordBatch, number: int) -> bool:
    return bool(rows.num_rows) and rows["source_sequence"][0].as_py() == number


def _invalid(name: str, rejects: Sequence[Reject], *, what: str, hint: str | None) -> BadData:
    first, more = rejects[0], len(rejects) - 1
    others = f" (and {more:,} more)" if more else ""
    return BadData(f"{name}: {what} {first.position}: {first.reason}{others}", hint=hint)
