"""A synthetic market without sockets or clock: the caller passes the time.

The market is pulled by its connections, as fast as they read, or it is live: then its ids advance
with the clock. The only state of a connection is the next id of each of its streams.
"""

from bisect import bisect_left
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from k2cli.ingestion.symbols import Market
from k2cli.simulator.frames import LAG_US, Group, Ints, Printer
from k2cli.simulator.publication import LiveMarket, SentIds
from k2cli.symbols import lower_symbol

CHANNELS: Final = ("trade", "aggTrade", "bookTicker")
_TRADE_CHANNELS: Final = ("trade", "aggTrade")  # one id series: every aggregate is one trade
_MAX_GAP_US: Final = 100_000
_MAX_BLOCKS: Final = 1 << 20  # of published ids, over all series: 24 MB
_MIN_BLOCKS: Final = 1 << 10  # of one series
_NOW: Final = -1  # the next id of a live stream that was just subscribed


@dataclass(kw_only=True)
class SyntheticMarket:
    """An endless synthetic market.

    Unless it is live, a connection starts at the highest id that any connection reached. The first
    id comes from the clock, four per microsecond, so a market that starts later has higher ids.
    Ids that are divisible by `unlisted_every` do not exist: no stream and no answer has them.
    """

    first_id: int
    seed: int = 0
    kind: Market = Market.SPOT
    symbols: Collection[str] = ()  # none: any symbol
    channels: Collection[str] = CHANNELS
    unlisted_every: int | None = None
    live: LiveMarket | None = None
    _sent: dict[str, SentIds] = field(default_factory=dict)  # by series
    _closed: set[str] = field(default_factory=set)

    @cached_property
    def _lower_symbols(self) -> set[str]:
        return set(map(lower_symbol, self.symbols))

    def offers(self, stream: str) -> bool:
        """Return whether the market has data for a stream."""
        symbol, _, channel = stream.partition("@")
        return channel in self.channels and self.lists(symbol)

    def lists(self, symbol: str) -> bool:
        """Return whether a symbol is traded."""
        name = lower_symbol(symbol)
        return (not self.symbols or name in self._lower_symbols) and name not in self._closed

    def open(self, symbol: str) -> None:
        """Offer a symbol from now on."""
        self._closed.discard(lower_symbol(symbol))
        self._lower_symbols.add(lower_symbol(symbol))

    def close(self, symbol: str) -> None:
        """Offer a symbol no longer."""
        self._closed.add(lower_symbol(symbol))

    def play(self, *, is_combined: bool, is_micros: bool = False) -> "Play":
        """Open one connection's view of the market."""
        return Play(self, is_combined=is_combined, is_micros=is_micros)

    def published(self, symbol: str, now_us: int) -> range:
        """Return the ids of a symbol's trades that are published, and whose times are known."""
        if self.live is not None:
            return range(self.first_id, self.live.end(now_us))
        sent = self._sent.get(lower_symbol(symbol))
        return range(sent.first, sent.end) if sent else range(0)

    def listed(self, ids: Ints) -> Ints:
        """Return those of these ids that exist."""
        every = self.unlisted_every
        return ids if every is None else ids[ids % every != 0]

    def rows(self, channel: str, symbol: str, ids: Ints, *, is_micros: bool) -> list[bytes]:
        """Return published trades as the REST rows of `historicalTrades` or `aggTrades`."""
        if not len(ids):
            return []
        printer = self._printers[is_micros]
        group = printer.group(channel, [symbol])
        return printer.frames(group, np.zeros_like(ids), ids, self._times(symbol, ids))

    def first_at(self, symbol: str, ids: range, time_us: int) -> int:
        """Return the first of these published ids with a trade at or after a time."""

        def trade_time_us(number: int) -> int:
            return int(self._times(symbol, np.array([number]))[0]) - LAG_US

        return ids.start + bisect_left(ids, time_us, key=trade_time_us)

    @cached_property
    def _printers(self) -> tuple[Printer, Printer]:
        """The printers of REST rows: with milliseconds, and with microseconds."""
        return (
            Printer(seed=self.seed, kind=self.kind, is_micros=False),
            Printer(seed=self.seed, kind=self.kind, is_micros=True),
        )

    def _times(self, symbol: str, ids: Ints) -> Ints:
        if self.live is not None:
            return self.live.times(ids)
        sent = self._sent[lower_symbol(symbol)]
        return sent.times(ids)

    def sent(self, stream: str) -> SentIds:
        """Return what was published of a stream; trades and aggregates are one series."""
        symbol, _, channel = stream.partition("@")
        series = symbol if channel in _TRADE_CHANNELS else stream
        return self._sent.setdefault(series, SentIds(self.first_id))

    @property
    def most_blocks(self) -> int:
        """How many blocks of ids each series may remember."""
        return max(_MAX_BLOCKS // max(len(self._sent), 1), _MIN_BLOCKS)


def first_id_at(now_us: int) -> int:
    """Return the first id of a market that starts at this time."""
    return (now_us - 1_577_836_800_000_000) * 4  # since 2020; update ids stay below 2**53


class Play:
    """One connection's view of a synthetic market."""

    is_at_end = False

    def __init__(self, market: SyntheticMarket, *, is_combined: bool, is_micros: bool) -> None:
        self._market = market
        self._is_combined = is_combined
        self._printer = Printer(seed=market.seed, kind=market.kind, is_micros=is_micros)
        self._random = np.random.default_rng(market.seed)
        self._next: dict[str, int] = {}
        self._groups: list[Group] = []
        self._streams: list[str] = []
        self._sent: list[SentIds] = []  # of every stream; none if the market is live
        self._ids: Ints = np.empty(0, dtype=np.int64)  # next id of every stream
        self._group_of: Ints = self._ids
        self._row_of: Ints = self._ids
        self._order: Ints = self._ids  # streams that are next in turn
        self._last_us = 0

    @property
    def is_idle(self) -> bool:
        """Return whether no subscribed stream has data."""
        return not self._streams

    def follow(self, streams: Collection[str]) -> None:
        """Subscribe to these streams.

        One subscribed before continues where it was; in a live market only if it is subscribed
        still.
        """
        reached = dict(zip(self._streams, self._ids.tolist(), strict=True))
        self._next = reached if self._market.live else {**self._next, **reached}
        self._streams = [stream for stream in streams if self._market.offers(stream)]
        by_channel: dict[str, list[str]] = {}
        group_of, row_of = [], []
        for stream in self._streams:
            channel = stream.partition("@")[2]
            row_of.append(len(by_channel.setdefault(channel, [])))
            group_of.append(list(by_channel).index(channel))
            by_channel[channel].append(stream)
        self._groups = [
            self._printer.group(*item, is_combined=self._is_combined) for item in by_channel.items()
        ]
        self._group_of = np.array(group_of, dtype=np.int64)
        self._row_of = np.array(row_of, dtype=np.int64)
        self._order = np.empty(0, dtype=np.int64)
        self._sent = [] if self._market.live else [*map(self._market.sent, self._streams)]
        starts = [_NOW] * len(self._streams) if self._market.live else [e.end for e in self._sent]
        ids = [self._next.get(*item) for item in zip(self._streams, starts, strict=True)]
        self._ids = np.array(ids, dtype=np.int64)

    def take(self, most: int, now_us: int) -> list[bytes]:
        """Return the next frames, at most this many; none without a subscribed stream."""
        if not self._streams or most < 1:
            return []
        live = self._market.live
        if live is None:
            picks, ids, times = self._pull(most, now_us)
        else:
            end = live.end(now_us)
            self._ids[self._ids == _NOW] = end
            picks, ids = self._passed(most, end)
            times = live.times(ids)
        every = self._market.unlisted_every
        if every is not None:
            is_listed = ids % every != 0
            picks, ids, times = picks[is_listed], ids[is_listed], times[is_listed]
        return self._frames(picks, ids, times)

    # --- a market that is pulled

    def _pull(self, most: int, now_us: int) -> tuple[Ints, Ints, Ints]:
        """Publish a block of frames: their streams, ids and times.

        The times are spread over the time since the previous block, unless another connection has
        published these ids, or the ones before them later.
        """
        picks = self._turns(most)
        counts = np.bincount(picks, minlength=len(self._streams))
        rank = _ranks(picks, counts)
        ids: Ints = self._ids[picks] + rank
        self._ids = self._ids + counts
        span_us = min(max(now_us - self._last_us, 0), _MAX_GAP_US) if most > 1 else 0
        self._last_us = now_us
        since_us = now_us - span_us
        times = since_us + span_us * (rank + 1) // counts[picks]
        most_blocks = self._market.most_blocks
        for at in np.flatnonzero(counts).tolist():
            sent, end = self._sent[at], int(self._ids[at])
            mine = range(end - int(counts[at]), end)
            if not sent.send(mine, since_us=since_us, span_us=span_us, most_blocks=most_blocks):
                times[picks == at] = sent.times(np.arange(mine.start, mine.stop))
        return picks, ids, times

    def _turns(self, count: int) -> Ints:
        """Give every stream a turn in every round, in an order that changes by round."""
        if len(self._order) < count:
            rounds = max(count // len(self._streams), 1) + 1
            fresh = np.tile(np.arange(len(self._streams)), (rounds, 1))
            turns = self._random.permuted(fresh, axis=1).ravel()
            self._order = np.concatenate((self._order, turns))
        picks, self._order = self._order[:count], self._order[count:]
        return picks

    # --- a live market

    def _passed(self, most: int, end: int) -> tuple[Ints, Ints]:
        """Return the streams and ids of the next published frames, in order of their times."""
        share = -(-most // len(self._streams))
        counts = np.clip(end - self._ids, 0, share)
        picks = np.repeat(np.arange(len(self._streams)), counts)
        ids: Ints = self._ids[picks] + _ranks(picks, counts)
        order = np.argsort(ids, kind="stable")[:most]
        picks, ids = picks[order], ids[order]
        self._ids = self._ids + np.bincount(picks, minlength=len(self._streams))
        return picks, ids

    # --- out

    def _frames(self, picks: Ints, ids: Ints, times: Ints) -> list[bytes]:
        if len(self._groups) == 1:
            return self._printer.frames(self._groups[0], self._row_of[picks], ids, times)
        group_of = self._group_of[picks]
        parts: list[Iterator[bytes]] = []
        for number, group in enumerate(self._groups):
            at = np.flatnonzero(group_of == number)
            row = self._row_of[picks[at]]
            parts.append(iter(self._printer.frames(group, row, ids[at], times[at])))
        return [next(parts[number]) for number in group_of.tolist()]


def _ranks(picks: Ints, counts: Ints) -> Ints:
    """Number the turns of every stream from 0."""
    by_stream = np.argsort(picks, kind="stable")
    first = np.cumsum(counts) - counts
    rank = np.empty(len(picks), dtype=np.int64)
    rank[by_stream] = np.arange(len(picks)) - np.repeat(first, counts)
    return rank
