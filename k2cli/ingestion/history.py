"""The trades that an exchange serves on request, page by page: what fills the gaps of a stream."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from k2cli.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pyarrow as pa

    from k2cli.ingestion.symbols import Instrument
    from k2cli.rejects import Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a series, as the exchange serves it.

    Every number from the one that was asked for up to `known_to` is in `rows` or `rejects`, or the
    exchange does not have it. `known_to` is the number before the one asked for if the exchange
    has nothing from there on.
    """

    rows: "pa.RecordBatch"  # trades, ascending and unique source_sequence, within what was asked
    known_to: int
    rejects: "Sequence[Reject]" = ()


class HistoryUnavailable(Unavailable):
    """The exchange does not serve history now.

    `retry_in_s` is how long it wants no requests at all, 0 if it does not say. `is_banned` is set
    if it blocks this address (HTTP 418, 403).
    """

    def __init__(self, message: str, *, retry_in_s: float = 0.0, is_banned: bool = False) -> None:
        super().__init__(message)
        self.retry_in_s = retry_in_s
        self.is_banned = is_banned


class HistoryRefused(Exception):
    """Asking again is pointless during this run; the text is the reason.

    Examples: futures without an API key, an unknown symbol, trades that are too old.
    """


class HistoryLocked(HistoryRefused):
    """An API key is missing or malformed; the text names the setting."""


class History(Protocol):
    """The REST history of one venue. All methods share one budget of requests."""

    async def trades(self, instrument: "Instrument", first: int, last: int) -> Page:
        """Fetch one page of trades with numbers from `first` to at most `last`.

        Raises:
            HistoryRefused: see there.
            HistoryUnavailable: no valid answer after some retries.
        """

    async def first_since(self, instrument: "Instrument", time_us: int) -> int | None:
        """Find the number of the first trade at or after a UTC time; None if there is none.

        Raises:
            HistoryRefused, HistoryUnavailable: as `trades`.
        """

    async def close(self) -> None:
        """Close the connections."""
