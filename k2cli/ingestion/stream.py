"""An exchange's live stream as a source of batches, for every exchange.

One thread runs the connections, which queue what they receive. The thread that iterates over
`batches` takes what has arrived, parses it with the exchange's parser and yields the rows.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from k2cli.events import Observer
from k2cli.flow import Batch
from k2cli.ingestion.bursts import CHUNK_FRAMES, BurstQueue
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.recorder import Record
from k2cli.ingestion.symbols import Instrument
from k2cli.ingestion.websocket import ConnectionOptions, Connections, Subscription

_TICK_S: Final = 0.05  # how long frames are collected before they are parsed
_SILENT_FACTOR: Final = 3  # times `stale_after_s`
_SILENT_REPORT_S: Final = 3600.0
_LISTED_STREAMS: Final = 20  # per report


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """What to subscribe to, on which servers, and when to give up or stop."""

    venue: Venue
    instruments: Sequence[Instrument]
    channels: Sequence[str]
    urls: Sequence[str]  # bases, in failover order
    home: Path | None = None  # the folder with the last refreshed symbol lists
    connect_timeout_s: float = 10.0  # for the first connection only
    stale_after_s: float = 60.0
    silent_after_s: float | None = None  # without more market data; 3 * stale_after_s
    max_messages: int | None = None
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
        self._clock = clock
        self._parser = options.venue.open_parser(options.instruments, options.home)
        self._silent = _streams(options)
        self._silent_reported = clock()
        self._silent_interval_s = options.stale_after_s  # when the next report is due
        self.queue: Final = BurstQueue()
        self.connections: Final = Connections(
            subscriptions=_subscriptions(options),
            options=_connection_options(options),
            queue=self.queue,
            observe=observe,
            clock=clock,
        )

    @property
    def was_connected(self) -> bool:
        """Whether any server was reached so far."""
        return self.connections.was_connected

    @property
    def silent_streams(self) -> list[str]:
        """Names of the streams that have not delivered a trade or quote yet."""
        return list(self._silent.values())

    def report_silent_streams(self) -> None:
        """Report the streams without data, if a server was reached."""
        if self._silent and self.was_connected:
            names = self.silent_streams
            listed = ",".join(names[:_LISTED_STREAMS])
            self._observe("silent_streams", count=len(names), streams=listed)

    def _note_streams(self, batch: Batch) -> None:
        """Record which streams deliver; report the others at intervals."""
        if not self._silent:
            return
        for kind, rows in (*batch.rows, *batch.seen):
            for symbol in rows["symbol"].unique().to_pylist():
                self._silent.pop((kind.name, symbol), None)
        now = self._clock()
        if now - self._silent_reported >= self._silent_interval_s:
            self._silent_reported, self._silent_interval_s = now, _SILENT_REPORT_S
            self.report_silent_streams()

    def stop(self) -> None:
        """Stop reading; `batches` still yields frames read before. Any thread, any time."""
        self.connections.stop()

    def batches(self) -> Iterator[Batch]:
        """Yield what has arrived since the last batch, or a tick, until the stream ends.

        Raises:
            Unavailable: no connection in time, or the exchange refuses permanently.
        """
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="exchange") as executor:
            connections = executor.submit(self.connections.run)
            try:
                yield from self._batches(connections)
            finally:
                self.stop()
        connections.result()

    def _batches(self, connections: Future[None]) -> Iterator[Batch]:
        position, session = 1, 0
        while self.queue or not connections.done():
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
            self._note_streams(batch)
            yield batch
            position += len(frames)
            if len(frames) < CHUNK_FRAMES:
                wait([connections], timeout=_TICK_S)


def _streams(options: StreamOptions) -> dict[tuple[str, str], str]:
    """Map the record kind and symbol that each stream delivers to its name."""
    venue = options.venue
    return {
        (venue.channels[channel], instrument.symbol): venue.stream_name(instrument, channel)
        for instrument in options.instruments
        for channel in options.channels
    }


def _subscriptions(options: StreamOptions) -> list[Subscription]:
    """Distribute the streams over connections."""
    venue = options.venue
    names = [
        venue.stream_name(instrument, channel)
        for instrument in options.instruments
        for channel in options.channels
    ]
    per_connection = venue.limits.streams
    return [
        Subscription(
            streams=len(some),
            urls=[venue.stream_url(base, some) for base in options.urls],
            messages=venue.subscribe(some),
        )
        for start in range(0, len(names), per_connection)
        if (some := names[start : start + per_connection])
    ]


def _connection_options(options: StreamOptions) -> ConnectionOptions:
    venue = options.venue
    return ConnectionOptions(
        bases=options.urls,
        attempts=venue.limits.attempts,
        window_s=venue.limits.window_s,
        shutdown_notice=venue.shutdown_notice,
        connect_timeout_s=options.connect_timeout_s,
        stale_after_s=options.stale_after_s,
        silent_after_s=options.silent_after_s or _SILENT_FACTOR * options.stale_after_s,
        max_messages=options.max_messages,
        record=options.record,
    )
