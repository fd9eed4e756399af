"""A synthetic market without sockets or clock: the caller passes the time to `take`.

Every frame is a function of seed, stream and id: two connections that see the same id see the same
price. So the only state of a connection is the next id of each of its streams. Prices and
quantities are integers (ticks, steps) until they are formatted.

The module is long because the price paths and the frames made of them share their state.
"""

import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from k2cli.ingestion.symbols import FUTURES, Market
from k2cli.symbols import fold_symbol, lower_symbol

Ints = npt.NDArray[np.int64]


CHANNELS: Final = ("trade", "aggTrade", "bookTicker")

# $ and a letter is a value that changes with each frame: $k the id, $u the update id, $p $b
# $a prices, $q $B $A quantities, $T $E times. $S is the symbol.
_SPOT: Final[Mapping[str, str]] = {
    "trade": '{"e":"trade","E":$E,"s":"$S","t":$k,"p":"$p","q":"$q","T":$T,"m":$m,"M":true}',
    "aggTrade": (
        '{"e":"aggTrade","E":$E,"s":"$S","a":$k,"p":"$p","q":"$q","f":$k,"l":$k,"T":$T,"m":$m,'
        '"M":true}'
    ),
    "bookTicker": '{"u":$u,"s":"$S","b":"$b","B":"$B","a":"$a","A":"$A"}',
}
_FUTURES: Final[Mapping[str, str]] = {
    "trade": ('{"e":"trade","E":$E,"T":$T,"s":"$S","t":$k,"p":"$p","q":"$q","X":"MARKET","m":$m}'),
    "aggTrade": (
        '{"e":"aggTrade","E":$E,"a":$k,"s":"$S","p":"$p","q":"$q","f":$k,"l":$k,"T":$T,"m":$m}'
    ),
    "bookTicker": (
        '{"e":"bookTicker","u":$u,"s":"$S","b":"$b","B":"$B","a":"$a","A":"$A","T":$T,"E":$E}'
    ),
}
_MARK: Final = re.compile(r"\$(\w)")
_PRICES: Final = "pba"
_TEXTS: Final = "qBAm"

# The price of one unit in dollars; the first line has the quote currencies.
_QUOTES: Final = (
    "USDT=1 USDC=1 FDUSD=1 BUSD=1 TUSD=1 USD=1 EUR=1.08 TRY=0.03 BTC=67000 ETH=3400 BNB=580"
)
_BASES: Final = (
    "SOL=165 XRP=0.58 ADA=0.44 DOGE=0.12 AVAX=27 LINK=14 DOT=6.1 LTC=72 BCH=390 TRX=0.13 "
    "SHIB=0.000018 UNI=7.9 NEAR=5.4 ATOM=6.6 ETC=22 XLM=0.1 FIL=4.3 APT=7.1 ARB=0.7 OP=1.8"
)


def _worth(text: str) -> Mapping[str, Decimal]:
    pairs = (pair.split("=") for pair in text.split())
    return {name: Decimal(value) for name, value in pairs}


_QUOTE_USD: Final = _worth(_QUOTES)
_USD: Final = _worth(f"{_QUOTES} {_BASES}")


# The listing of a market that trades any symbol.
PAIRS: Final[Mapping[Market, Sequence[str]]] = {
    Market.SPOT: [f"{base}/USDT" for base in _USD if base not in ("USDT", "USD")],
    Market.US: [f"{base}/USD" for base in _USD if base not in ("USD", "EUR", "TRY")],
    Market.USDM: [f"{base}/USDT" for base in _USD if base not in _QUOTE_USD] + ["BTC/USDT"],
    Market.COINM: ["BTCUSD_PERP", "ETHUSD_PERP", "BNBUSD_PERP", "SOLUSD_PERP"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """How one symbol is priced and formatted, in integers."""

    symbol: str
    base_ticks: int  # the center of the walk
    move_ticks: int  # one step of the walk
    tick: int  # in units of the last printed decimal
    price_decimals: int
    step: int  # of the quantity, in units of its last printed decimal
    quantity_decimals: int


def instrument(symbol: str, kind: Market) -> Instrument:
    """Price a symbol: well-known ones realistically, others by the checksum of the name."""
    usd, quote_usd = _base_and_quote_usd(symbol.partition("_")[0])
    price, magnitude = usd / quote_usd, usd.adjusted()  # magnitude is 4 for 67000
    decimals = min(max(4 - price.adjusted(), 2), 8)
    quantity_decimals = min(max(magnitude + 1, 0), 5)
    lot = 10 ** max(-magnitude - 1, 0)
    if kind in FUTURES:
        quantity_decimals = 0 if kind is Market.COINM else min(quantity_decimals, 3)
    ticks = max(int(price.scaleb(decimals)), 1000)
    printed = (decimals, quantity_decimals) if kind in FUTURES else (8, 8)
    return Instrument(
        symbol=symbol,
        base_ticks=ticks,
        move_ticks=max(ticks // 100_000, 1),
        tick=10 ** (printed[0] - decimals),
        price_decimals=printed[0],
        step=lot * 10 ** (printed[1] - quantity_decimals),
        quantity_decimals=printed[1],
    )


def _base_and_quote_usd(pair: str) -> tuple[Decimal, Decimal]:
    quote = next((name for name in _QUOTE_USD if pair.endswith(name) and pair != name), "USDT")
    base = pair.removesuffix(quote)
    checksum = zlib.crc32(base.encode())
    made_up = Decimal(1 + checksum % 900).scaleb(checksum // 900 % 4 - 2)
    return _USD.get(base, made_up), _QUOTE_USD[quote]


_PERIOD: Final = 1 << 18  # the walk is periodic after this many ids
_MASK: Final = _PERIOD - 1
_WIDEST: Final = 900  # steps from the base, so prices stay above zero
_SIZES: Final = 1024
_MOST_GAP_US: Final = 100_000
_MOST_LAG_US: Final = 2000
_BOOLEANS: Final = np.array([b"false", b"true"], dtype=object)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chance:
    """The random data of a market, drawn once from its seed."""

    walk: Ints  # closed random walk, in steps
    is_sell: npt.NDArray[np.bool_]
    size: Ints  # index into sizes
    sizes: Ints  # steps
    lag_us: Ints  # from a trade to its event, below _MOST_LAG_US


@cache
def _chance(seed: int) -> _Chance:
    rng = np.random.default_rng(seed)
    steps = rng.choice(np.array([-1, 0, 0, 1]), _PERIOD)
    walk = np.cumsum(steps)
    walk -= np.linspace(0, walk[-1], _PERIOD).astype(np.int64)
    return _Chance(
        walk=np.clip(walk, -_WIDEST, _WIDEST),
        is_sell=rng.integers(0, 2, _PERIOD).astype(np.bool_),
        size=rng.integers(0, _SIZES, _PERIOD),
        sizes=np.maximum(rng.lognormal(4.0, 1.5, _SIZES).astype(np.int64), 1),
        lag_us=rng.integers(100, _MOST_LAG_US, _PERIOD),
    )


def _decimal_text(units: int, decimals: int) -> bytes:
    if decimals == 0:
        return b"%d" % units
    whole, fraction = divmod(units, 10**decimals)
    return b"%d.%0*d" % (whole, decimals, fraction)


@cache
def _size_texts(seed: int, step: int, decimals: int) -> npt.NDArray[np.object_]:
    units = (_chance(seed).sizes * step).tolist()
    return np.array([_decimal_text(unit, decimals) for unit in units], dtype=object)


class SyntheticMarket:
    """An endless synthetic market.

    A connection starts at the highest id that any connection reached. The first id comes from the
    clock, four per microsecond, so a market that starts later has higher ids.
    """

    def __init__(
        self,
        *,
        first_id: int,
        seed: int = 0,
        kind: Market = Market.SPOT,
        symbols: Collection[str] = (),
        channels: Collection[str] = CHANNELS,
    ) -> None:
        self.seed = seed
        self.kind = kind
        self.first_id = first_id
        self.reached: dict[str, int] = {}  # stream -> the next id
        self._symbols = {lower_symbol(symbol) for symbol in symbols}
        self._closed: set[str] = set()
        self._channels = frozenset(channels)

    def offers(self, stream: str) -> bool:
        """Return whether the market has data for a stream."""
        symbol, _, channel = stream.partition("@")
        is_open = not self._symbols or symbol in self._symbols
        return channel in self._channels and is_open and symbol not in self._closed

    def open(self, symbol: str) -> None:
        """Offer a symbol from now on."""
        name = lower_symbol(symbol)
        self._closed.discard(name)
        if self._symbols:
            self._symbols.add(name)

    def close(self, symbol: str) -> None:
        """Offer a symbol no longer."""
        self._closed.add(lower_symbol(symbol))

    def play(self, *, is_combined: bool, is_micros: bool = False) -> "Play":
        """Open one connection's view of the market."""
        return Play(self, is_combined=is_combined, is_micros=is_micros)


def first_id_at(now_us: int) -> int:
    """Return the first id of a market that starts at this time."""
    return (now_us - 1_577_836_800_000_000) * 4  # since 2020; update ids stay below 2**53


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The instruments of a group as columns, one row per stream."""

    phase: Ints
    base: Ints
    move: Ints
    tick: Ints
    scale: Ints
    texts: npt.NDArray[np.object_]  # of the sizes
    text_row: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The subscribed streams of one channel, which share a template and columns."""

    marks: str  # the variable parts, in the order of the template
    templates: list[bytes]
    table: _Table


def _table(instruments: Sequence[Instrument], seed: int) -> _Table:
    printed = list(dict.fromkeys((i.step, i.quantity_decimals) for i in instruments))
    phases = [zlib.crc32(f"{seed}/{i.symbol}".encode()) & _MASK for i in instruments]
    return _Table(
        phase=np.array(phases, dtype=np.int64),
        base=np.array([i.base_ticks for i in instruments], dtype=np.int64),
        move=np.array([i.move_ticks for i in instruments], dtype=np.int64),
        tick=np.array([i.tick for i in instruments], dtype=np.int64),
        scale=np.array([10**i.price_decimals for i in instruments], dtype=np.int64),
        texts=np.array([_size_texts(seed, *row) for row in printed], dtype=object),
        text_row=np.array(
            [printed.index((i.step, i.quantity_decimals)) for i in instruments], dtype=np.int64
        ),
    )


class Play:
    """One connection's view of a synthetic market."""

    is_at_end = False

    def __init__(self, market: SyntheticMarket, *, is_combined: bool, is_micros: bool) -> None:
        self._market = market
        self._is_combined = is_combined
        self._unit_us = 1 if is_micros else 1000
        self._chance = _chance(market.seed)
        self._random = np.random.default_rng(market.seed)
        self._next: dict[str, int] = {}
        self._groups: list[_Group] = []
        self._streams: list[str] = []
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
        """Subscribe to these streams; one subscribed before continues where it was."""
        self._next.update(zip(self._streams, self._ids.tolist(), strict=True))
        self._streams = [stream for stream in streams if self._market.offers(stream)]
        by_channel: dict[str, list[str]] = {}
        group_of, row_of = [], []
        for stream in self._streams:
            channel = stream.partition("@")[2]
            row_of.append(len(by_channel.setdefault(channel, [])))
            group_of.append(list(by_channel).index(channel))
            by_channel[channel].append(stream)
        self._groups = [self._group(*item) for item in by_channel.items()]
        self._group_of = np.array(group_of, dtype=np.int64)
        self._row_of = np.array(row_of, dtype=np.int64)
        self._ids = np.array([self._start(stream) for stream in self._streams], dtype=np.int64)
        self._order = np.empty(0, dtype=np.int64)

    def _group(self, channel: str, streams: Sequence[str]) -> _Group:
        kind = self._market.kind
        shape = (_FUTURES if kind in FUTURES else _SPOT)[channel]
        instruments = [instrument(fold_symbol(s.partition("@")[0]), kind) for s in streams]
        return _Group(
            marks="".join(mark for mark in _MARK.findall(shape) if mark != "S"),
            templates=[
                self._template(*item, shape) for item in zip(streams, instruments, strict=True)
            ],
            table=_table(instruments, self._market.seed),
        )

    def _start(self, stream: str) -> int:
        reached = self._market.reached.get(stream, self._market.first_id)
        return self._next.get(stream, reached)

    def _template(self, stream: str, found: Instrument, shape: str) -> bytes:
        def printed(mark: re.Match[str]) -> str:
            if mark[1] == "S":
                return found.symbol
            if mark[1] in _PRICES:
                return f"%d.%0{found.price_decimals}d"
            return "%b" if mark[1] in _TEXTS else "%d"

        text = _MARK.sub(printed, shape)
        if self._is_combined:
            text = f'{{"stream":"{stream}","data":{text}}}'
        return text.encode()

    def take(self, most: int, now_us: int) -> list[bytes]:
        """Return the next `most` frames; none without a subscribed stream."""
        if not self._streams or most < 1:
            return []
        picks = self._turns(most)
        ids = self._advance(picks)
        times = self._times(most, now_us)
        if len(self._groups) == 1:
            return self._frames(self._groups[0], self._row_of[picks], ids, times)
        group_of = self._group_of[picks]
        parts: list[Iterator[bytes]] = []
        for number, group in enumerate(self._groups):
            at = np.flatnonzero(group_of == number)
            frames = self._frames(group, self._row_of[picks[at]], ids[at], times[at])
            parts.append(iter(frames))
        return [next(parts[number]) for number in group_of.tolist()]

    def _turns(self, count: int) -> Ints:
        """Give every stream a turn in every round, in an order that changes by round."""
        if len(self._order) < count:
            rounds = max(count // len(self._streams), 1) + 1
            fresh = np.tile(np.arange(len(self._streams)), (rounds, 1))
            turns = self._random.permuted(fresh, axis=1).ravel()
            self._order = np.concatenate((self._order, turns))
        picks, self._order = self._order[:count], self._order[count:]
        return picks

    def _advance(self, picks: Ints) -> Ints:
        """Assign the next id of the stream to every turn."""
        counts = np.bincount(picks, minlength=len(self._streams))
        by_stream = np.argsort(picks, kind="stable")
        first = np.cumsum(counts) - counts
        rank = np.empty(len(picks), dtype=np.int64)
        rank[by_stream] = np.arange(len(picks)) - np.repeat(first, counts)
        ids: Ints = self._ids[picks] + rank
        self._ids = self._ids + counts
        reached = self._market.reached
        for at in np.flatnonzero(counts).tolist():
            stream, number = self._streams[at], int(self._ids[at])
            reached[stream] = max(number, reached.get(stream, 0))
        return ids

    def _times(self, count: int, now_us: int) -> Ints:
        """Spread a block's times over the time since the previous block."""
        since = min(max(now_us - self._last_us, 0), _MOST_GAP_US) if count > 1 else 0
        self._last_us = now_us
        return now_us - since + since * np.arange(1, count + 1) // count

    def _frames(self, group: _Group, row: Ints, ids: Ints, times: Ints) -> list[bytes]:
        by_mark = self._columns(group, row, ids, times)
        columns = [column for mark in group.marks for column in by_mark[mark]]
        if len(group.templates) == 1:
            template = group.templates[0]
            return [template % values for values in zip(*columns, strict=True)]
        used = map(group.templates.__getitem__, row.tolist())
        values = zip(*columns, strict=True)
        return [template % row for template, row in zip(used, values, strict=True)]

    def _columns(
        self, group: _Group, row: Ints, ids: Ints, times: Ints
    ) -> dict[str, list[list[Any]]]:
        """Return the values for the placeholders of a template; a price is two columns."""
        chance, table = self._chance, group.table
        at = (ids + table.phase[row]) & _MASK
        bid = table.base[row] + chance.walk[at] * table.move[row]
        tick, scale, text_row = table.tick[row], table.scale[row], table.text_row[row]
        is_sell = chance.is_sell[at]

        def price(ticks: Ints) -> list[list[Any]]:
            whole, fraction = np.divmod(ticks * tick, scale)
            return [whole.tolist(), fraction.tolist()]

        def size(turn: int) -> list[list[Any]]:
            return [table.texts[text_row, chance.size[(at + turn) & _MASK]].tolist()]

        def time(us: Ints) -> list[list[Any]]:
            return [(us // self._unit_us).tolist()]

        makers: Mapping[str, Callable[[], list[list[Any]]]] = {
            "k": lambda: [ids.tolist()],
            "u": lambda: [(2 * ids + is_sell).tolist()],
            "p": lambda: price(bid + ~is_sell),  # an aggressive buyer pays the ask
            "b": lambda: price(bid),
            "a": lambda: price(bid + 1),
            "q": lambda: size(0),
            "B": lambda: size(1),
            "A": lambda: size(2),
            "m": lambda: [_BOOLEANS[is_sell.astype(np.int64)].tolist()],
            "T": lambda: time(times - _MOST_LAG_US),
            "E": lambda: time(times - _MOST_LAG_US + chance.lag_us[at]),
        }
        return {mark: makers[mark]() for mark in dict.fromkeys(group.marks)}
