"""What differs between exchanges, as values and pure functions.

An `Exchange` has one or more venues, its markets. A `Venue` defines which servers to connect to,
how to subscribe to symbols and channels, and how to parse frames into RecordBatches. Connections,
failover, sessions, back-pressure and watchdogs are the same for all of them (websocket.py,
stream.py).

This module imports nothing heavy, because the command line lists the exchanges at startup.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import urlsplit

from k2cli.errors import UsageError
from k2cli.ingestion.symbols import Instrument
from k2cli.urls import check_url

if TYPE_CHECKING:
    import pyarrow as pa

    from k2cli.events import Observer
    from k2cli.ingestion.history import History
    from k2cli.records import RecordKind
    from k2cli.rejects import Reject


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """The parsed content of a chunk of frames.

    A frame is a row, a reject, a sequence number without a row (`seen`, with the columns exchange,
    symbol and source_sequence), or a control message without data, such as an acknowledgement.
    """

    rows: "Sequence[tuple[RecordKind, pa.RecordBatch]]"
    rejects: "Sequence[Reject]"
    seen: "Sequence[tuple[RecordKind, pa.RecordBatch]]" = ()


class Parser(Protocol):
    """Parses frames of one venue into rows."""

    def parse(self, frames: Sequence[bytes], received_us: Sequence[int], *, first: int) -> Parsed:
        """Parse a chunk of frames, received at these UTC microseconds; `first` numbers them.

        An error message from the exchange is a reject with the exchange's text.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The exchange's limits for a client, with a margin."""

    streams: int  # of a connection
    attempts: int  # to connect, within each window, for all connections of a process
    window_s: float


@dataclass(frozen=True, kw_only=True)
class Venue(ABC):
    """One market of an exchange, with its servers and ids."""

    exchange: str  # the name in the column `exchange`
    asset_class: str
    urls: Sequence[str]  # ws:// or wss:// bases, in failover order
    channels: Mapping[str, str]  # the kinds of stream, and the record kind that each delivers
    limits: Limits
    shutdown_notice: bytes = b""  # in the frame that announces the end of a connection
    rest_urls: Sequence[str] = ()  # http:// or https:// bases of its REST API, in failover order

    def at(self, urls: Sequence[str], rest_urls: Sequence[str]) -> Self:
        """Return the venue with other servers; no URLs means its own.

        With other URLs it has no REST API, unless that is given, too.
        """
        own_rest_urls = () if urls else self.rest_urls
        return replace(self, urls=urls or self.urls, rest_urls=rest_urls or own_rest_urls)

    @abstractmethod
    def parse_symbol(self, text: str, home: Path | None = None) -> Instrument:
        """Parse a symbol as users write it; `home` is the folder with refreshed lists.

        Raises:
            UsageError: it is not a symbol of this market.
        """

    @abstractmethod
    def stream_name(self, instrument: Instrument, channel: str) -> str:
        """Return the exchange's name for one stream: `btcusdt@trade`."""

    @abstractmethod
    def stream_url(self, base: str, names: Sequence[str]) -> str:
        """Return the URL of a connection for these streams.

        Raises:
            UsageError: the base is invalid; see `check_base`.
        """

    def subscribe(self, names: Sequence[str]) -> Sequence[str]:  # noqa: ARG002
        """Return the messages to send once connected; none if the URL names the streams."""
        return ()

    @abstractmethod
    def open_parser(self, instruments: Sequence[Instrument], home: Path | None) -> Parser:
        """Return a parser for the frames of one stream of these instruments."""

    def refresh_symbols(self, home: Path, observe: "Observer") -> "Observer":  # noqa: ARG002
        """Return an observer that refreshes the list of symbols once connected.

        It forwards all events to `observe`. Without a REST API it is `observe` itself.

        Raises:
            UsageError: one of `rest_urls` is not the base of a REST API.
        """
        return observe

    def open_history(
        self,
        home: Path | None,  # noqa: ARG002
        *,
        api_key: str | None = None,  # noqa: ARG002
    ) -> "History | None":
        """Return the history of past trades; None if the venue has no REST API.

        It connects with the first request. `api_key` is the user's, if any.

        Raises:
            UsageError: one of `rest_urls` is not the base of a REST API.
        """
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """An exchange that `k2 stream` offers."""

    name: str  # of the command: k2 stream NAME
    title: str  # for people
    venues: Mapping[str, Venue]  # by market; the first is the default
    about_markets: str = ""  # for --help, with several markets
    example: str  # example options, for --help

    @property
    def markets(self) -> Sequence[str]:
        """The names of the markets, the default first."""
        return tuple(self.venues)

    @property
    def channels(self) -> Mapping[str, str]:
        """The channels of all markets, and the record kind of each."""
        return {
            name: kind for venue in self.venues.values() for name, kind in venue.channels.items()
        }


def check_base(base: str) -> str:
    """Check the base of a venue's URLs, such as `wss://stream.example.com:9443`.

    Returns it without a trailing slash.

    Raises:
        UsageError: it is not a ws:// or wss:// URL, or its host or port is invalid.
    """
    check_url(base, "--url", UsageError)
    parts = urlsplit(base)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.query:
        raise UsageError(f"{base!r} is not a WebSocket URL", hint="write ws://127.0.0.1:9443")
    return base.rstrip("/")
