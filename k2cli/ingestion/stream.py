"""An exchange's live stream as a source of batches, for every exchange.

One thread runs the connections, which queue what they receive. The thread that iterates over
`batches` takes what has arrived, parses it with the exchange's parser and yields the rows.
"""

import datetime
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k2cli.events import Observer
from k2cli.flow import Batch
from k2cli.ingestion.breaker import ServerHealth
from k2cli.ingestion.bursts import CHUNK_FRAMES, BurstQueue
from k2cli.ingestion.exchange import Venue, check_base
from k2cli.ingestion.guard import HasNewer, SilenceGuard
from k2cli.ingestion.recorder import Record
from k2cli.ingestion.silence import MIN_S, StreamWatch
from k2cli.ingestion.subscriber import ConnectionOptions
from k2cli.ingestion.subscriptions import Subscription, Subscriptions
from k2cli.ingestion.symbols import Instrument
from k2cli.ingestion.websocket import Connections
from k2cli.nearest import first_names

OVERLAP_S: Final = 30.0
_TICK_S: Final = 0.05  # how long frames are collected before they are parsed
_SILENT_FACTOR: Final = 3  # times `stale_after_s`
_LISTED_STREAMS: Final = 20  # per report


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What to subscribe to, at which venue and its servers, and when to give up or stop."""

    venue: Venue
    instruments: Sequence[Instrument]
    channels: Sequence[str]
    home: Path | None = None  # the folder with the last refreshed symbol lists
    connect_timeout_s: float = 10.0  # for the first connection only
    stale_after_s: float = 60.0
    silent_after_s: float | None = None  # without more market data; 3 * stale_after_s
    max_messages: int | None = None
    overlap_s: float = OVERLAP_S  # of a connection and the one that replaces it, at most
    rollover_at: datetime.time | None = None  # replace connections daily, UTC
    stream_silent_after_s: float = MIN_S  # when a stream may be suspicious
    # Whether the exchange has trades at or after a UTC time in microseconds, to check silent
    # streams; awaited in the connections' event loop. None: only the time counts.
    has_newer: Callable[[Instrument, int], Awaitable[bool]] | None = None
    record: Record | None = None  # gets all frames as they are received, in one thread


class ExchangeStream:
    """The live stream of one venue as a `Source`.

    Raises:
        UsageError: one of the bases is not a ws:// or wss:// URL.
        ConfigError: the proxy set in the environment cannot be used.
    """

    def __init__(
        self,
        *,
        options: StreamOptions,
        observe: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._observe = observe
        self._parser = options.venue.open_parser(options.instruments, options.home)
        self._changes: deque[tuple[Sequence[Instrument], Sequence[Instrument]]] = deque()
        self._instruments = _named(options, options.instruments)
        self._watch = StreamWatch(
            _streams(options, options.instruments),
            clock=clock,
            has_check=options.has_newer is not None,
            least_s=options.stream_silent_after_s,
        )
        self.queue: Final = BurstQueue()
        self.connections: Final = Connections(
            subscriptions=_subscriptions(options),
            options=_connection_options(options, clock),
            queue=self.queue,
            watch=self._watch,
            observe=observe,
        )
        self._guard = SilenceGuard(
            watch=self._watch,
            connections=self.connections,
            subscribe=lambda names, bases: Subscription(options.venue, bases, names),
            has_newer=self._by_stream(),
            observe=observe,
        )

    def _by_stream(self) -> HasNewer | None:
        """Return the check of silent streams by their names."""
        has_newer = self._options.has_newer
        if has_newer is None:
            return None
        return lambda name, since_us: has_newer(self._instruments[name], since_us)

    def change(self, added: Sequence[Instrument], removed: Sequence[Instrument]) -> None:
        """Begin and end the streams of symbols. Any thread; `batches` applies it."""
        self._changes.append((added, removed))

    def _apply_changes(self) -> None:
        while self._changes:
            added, removed = self._changes.popleft()
            begun, ended = (_named(self._options, each) for each in (added, removed))
            self._parser.add(added)
            self._instruments |= begun
            self._watch.change(_streams(self._options, added), _streams(self._options, removed))
            self.connections.change(list(begun), list(ended))

    @property
    def was_connected(self) -> bool:
        """Whether any server was reached so far."""
        return self.connections.was_connected

    @property
    def servers(self) -> list[ServerHealth]:
        """The health of every server, in failover order."""
        return self.connections.servers

    def unready(self) -> list[str]:
        """Return why the stream is not up to date: connections or messages are missing."""
        if not self.was_connected:
            return ["not connected yet"]
        reasons = []
        if closed := self.connections.closed:
            reasons.append(f"{closed} connection{'s are' if closed > 1 else ' is'} closed")
        ages = [each.message_age_s for each in self.servers if each.message_age_s is not None]
        if not ages:
            reasons.append("no messages yet")
        elif min(ages) > _silent_after_s(self._options):
            reasons.append(f"no messages for {min(ages):.0f} s")
        return reasons

    @property
    def silent_streams(self) -> list[str]:
        """Names of the streams that have not delivered a trade or quote yet."""
        return self._watch.silent

    def report_silent_streams(self) -> None:
        """Report the streams without data, if a server was reached."""
        names = self.silent_streams
        if names and self.was_connected:
            listed = first_names(names, _LISTED_STREAMS, sep=",")
            self._observe("silent_streams", count=len(names), streams=listed)

    def stop(self) -> None:
        """Stop reading; `batches` still yields frames read before. Any thread, any time."""
        self.connections.stop()

    def batches(self) -> Iterator[Batch]:
        """Yield what has arrived since the last batch, or a tick, until the stream ends.

        Raises:
            Unavailable: no connection in time, or the exchange refuses permanently.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="exchange") as executor:
            connections = executor.submit(self.connections.run, self._guard.run)
            try:
                yield from self._batches(connections)
            finally:
                self.stop()
        connections.result()

    def _batches(self, connections: Future[None]) -> Iterator[Batch]:
        position, session = 1, 0
        while self.queue or not connections.done():
            self._apply_changes()
            session, frames, received_us = self.queue.take(session)
            batch = Batch(session=session)
            if frames:
                parsed = self._parser.parse(frames, received_us, first=position)
                batch = Batch(
                    rows=parsed.rows,
                    rejects=parsed.rejects,
                    messages=len(frames),
                    session=session,
                    seen=parsed.seen,
                )
            self._watch.note(batch)
            yield batch
            position += len(frames)
            if len(frames) < CHUNK_FRAMES:
                wait([connections], timeout=_TICK_S)


def _streams(
    options: StreamOptions, instruments: Sequence[Instrument]
) -> dict[tuple[str, str], str]:
    """Map the record kind and symbol that each stream delivers to its name."""
    venue = options.venue
    return {
        (venue.channels[channel], instrument.symbol): venue.stream_name(instrument, channel)
        for instrument in instruments
        for channel in options.channels
    }


def _named(options: StreamOptions, instruments: Sequence[Instrument]) -> dict[str, Instrument]:
    """Map the name of each stream to its instrument."""
    return {
        options.venue.stream_name(instrument, channel): instrument
        for instrument in instruments
        for channel in options.channels
    }


def _subscriptions(options: StreamOptions) -> Subscriptions:
    """Distribute the streams over connections."""
    for base in options.venue.urls:
        check_base(base)
    subscriptions = Subscriptions(options.venue, options.venue.urls)
    subscriptions.change(_named(options, options.instruments))
    return subscriptions


def _silent_after_s(options: StreamOptions) -> float:
    return options.silent_after_s or _SILENT_FACTOR * options.stale_after_s


def _connection_options(options: StreamOptions, clock: Callable[[], float]) -> ConnectionOptions:
    venue = options.venue
    return ConnectionOptions(
        bases=venue.urls,
        attempts=venue.limits.attempts,
        window_s=venue.limits.window_s,
        lifetime_s=venue.limits.lifetime_s,
        shutdown_notice=venue.shutdown_notice,
        stream_of=venue.stream_of,
        connect_timeout_s=options.connect_timeout_s,
        stale_after_s=options.stale_after_s,
        silent_after_s=_silent_after_s(options),
        overlap_s=options.overlap_s,
        rollover_at=options.rollover_at,
        max_messages=options.max_messages,
        clock=clock,
        record=options.record,
    )
