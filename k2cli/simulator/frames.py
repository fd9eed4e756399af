"""The frames of the synthetic market and the rows of its REST answers, as text.

Their content is a function of seed, symbol, id and time, so a trade is the same on every connection
and in every answer. Prices and quantities are integers (ticks, steps) until they are formatted.
"""

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from k2cli.ingestion.symbols import Market
from k2cli.simulator.instruments import Instrument, instrument
from k2cli.symbols import fold_symbol

Ints = npt.NDArray[np.int64]

# $ and a letter is a value that changes with each frame: $k the id, $u the update id, $p $b
# $a prices, $q $B $A quantities, $Q the price times the quantity, $C the quantity in the base asset
# of a contract, $T $E times. $S is the symbol.
_SPOT: Final[Mapping[str, str]] = {
    "trade": '{"e":"trade","E":$E,"s":"$S","t":$k,"p":"$p","q":"$q","T":$T,"m":$m,"M":true}',
    "aggTrade": (
        '{"e":"aggTrade","E":$E,"s":"$S","a":$k,"p":"$p","q":"$q","f":$k,"l":$k,"T":$T,"m":$m,'
        '"M":true}'
    ),
    "bookTicker": '{"u":$u,"s":"$S","b":"$b","B":"$B","a":"$a","A":"$A"}',
    "historicalTrades": (
        '{"id":$k,"price":"$p","qty":"$q","quoteQty":"$Q","time":$T,"isBuyerMaker":$m,'
        '"isBestMatch":true}'
    ),
    "aggTrades": '{"a":$k,"p":"$p","q":"$q","f":$k,"l":$k,"T":$T,"m":$m,"M":true}',
}
_FUTURES: Final[Mapping[str, str]] = {
    "trade": ('{"e":"trade","E":$E,"T":$T,"s":"$S","t":$k,"p":"$p","q":"$q","X":"MARKET","m":$m}'),
    "aggTrade": (
        '{"e":"aggTrade","E":$E,"a":$k,"s":"$S","p":"$p","q":"$q","f":$k,"l":$k,"T":$T,"m":$m}'
    ),
    "bookTicker": (
        '{"e":"bookTicker","u":$u,"s":"$S","b":"$b","B":"$B","a":"$a","A":"$A","T":$T,"E":$E}'
    ),
    "historicalTrades": (
        '{"id":$k,"price":"$p","qty":"$q","quoteQty":"$Q","time":$T,"isBuyerMaker":$m}'
    ),
    "aggTrades": '{"a":$k,"p":"$p","q":"$q","f":$k,"l":$k,"T":$T,"m":$m}',
}
_COINM: Final[Mapping[str, str]] = {
    **_FUTURES,
    "historicalTrades": (
        '{"id":$k,"price":"$p","qty":"$q","baseQty":"$C","time":$T,"isBuyerMaker":$m}'
    ),
}
_SHAPES: Final[Mapping[Market, Mapping[str, str]]] = {
    Market.SPOT: _SPOT,
    Market.US: _SPOT,
    Market.USDM: _FUTURES,
    Market.COINM: _COINM,
}
_MARK: Final = re.compile(r"\$(\w)")
_PRICES: Final = "pba"
_TEXTS: Final = "qBAmQC"

_PERIOD: Final = 1 << 18  # the walk is periodic after this many ids
_MASK: Final = _PERIOD - 1
_WIDEST: Final = 900  # steps from the base, so prices stay above zero
_SIZES: Final = 1024
_MAX_DECIMALS: Final = 8
_BOOLEANS: Final = np.array([b"false", b"true"], dtype=object)
LAG_US: Final = 2000  # from a trade to its publication; its event time is between them


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chance:
    """The random data of a market, drawn once from its seed."""

    walk: Ints  # closed random walk, in steps
    is_sell: npt.NDArray[np.bool_]
    size: Ints  # index into sizes
    sizes: Ints  # steps
    lag_us: Ints  # from a trade to its event, below LAG_US


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
        lag_us=rng.integers(100, LAG_US, _PERIOD),
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The instruments of a group as columns, one row per stream."""

    instruments: Sequence[Instrument]
    phase: Ints
    base: Ints
    move: Ints
    tick: Ints
    scale: Ints
    texts: npt.NDArray[np.object_]  # of the sizes
    text_row: Ints


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Streams of one channel, or one symbol's REST rows: they share a template and columns."""

    marks: str  # the variable parts, in the order of the template
    templates: list[bytes]
    table: _Table


def _table(instruments: Sequence[Instrument], seed: int) -> _Table:
    printed = list(dict.fromkeys((i.step, i.quantity_decimals) for i in instruments))
    phases = [zlib.crc32(f"{seed}/{i.symbol}".encode()) & _MASK for i in instruments]
    return _Table(
        instruments=instruments,
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


def _template(shape: str, found: Instrument) -> str:
    def printed(mark: re.Match[str]) -> str:
        if mark[1] == "S":
            return found.symbol
        if mark[1] in _PRICES:
            return f"%d.%0{found.price_decimals}d"
        return "%b" if mark[1] in _TEXTS else "%d"

    return _MARK.sub(printed, shape)


class Printer:
    """Prints the frames and rows of a market, with times in milliseconds or microseconds."""

    def __init__(self, *, seed: int, kind: Market, is_micros: bool) -> None:
        self._seed = seed
        self._kind = kind
        self._unit_us = 1 if is_micros else 1000
        self._chance = _chance(seed)

    def group(self, channel: str, streams: Sequence[str], *, is_combined: bool = False) -> Group:
        """Prepare the frames of a channel's streams, or the REST rows of some symbols."""
        shape = _SHAPES[self._kind][channel]
        symbols = [fold_symbol(stream.partition("@")[0]) for stream in streams]
        instruments = [instrument(symbol, self._kind) for symbol in symbols]
        texts = [_template(shape, found) for found in instruments]
        if is_combined:
            pairs = zip(streams, texts, strict=True)
            texts = [f'{{"stream":"{stream}","data":{text}}}' for stream, text in pairs]
        return Group(
            marks="".join(mark for mark in _MARK.findall(shape) if mark != "S"),
            templates=[text.encode() for text in texts],
            table=_table(instruments, self._seed),
        )

    def frames(self, group: Group, row: Ints, ids: Ints, times: Ints) -> list[bytes]:
        """Print frames: the row of each in the group, its id and when it is published."""
        by_mark = self._columns(group, row, ids, times)
        columns = [column for mark in group.marks for column in by_mark[mark]]
        if len(group.templates) == 1:
            template = group.templates[0]
            return [template % values for values in zip(*columns, strict=True)]
        used = map(group.templates.__getitem__, row.tolist())
        values = zip(*columns, strict=True)
        return [template % row for template, row in zip(used, values, strict=True)]

    def _columns(
        self, group: Group, row: Ints, ids: Ints, times: Ints
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

        def worth(text: Callable[[Instrument, int, int], bytes]) -> list[list[Any]]:
            prices = ((bid + ~is_sell) * tick).tolist()
            sizes = chance.sizes[chance.size[at]].tolist()
            found = [table.instruments[each] for each in row.tolist()]
            return [list(map(text, found, prices, sizes))]

        makers: Mapping[str, Callable[[], list[list[Any]]]] = {
            "k": lambda: [ids.tolist()],
            "u": lambda: [(2 * ids + is_sell).tolist()],
            "p": lambda: price(bid + ~is_sell),  # an aggressive buyer pays the ask
            "b": lambda: price(bid),
            "a": lambda: price(bid + 1),
            "q": lambda: size(0),
            "B": lambda: size(1),
            "A": lambda: size(2),
            "Q": lambda: worth(_turnover),
            "C": lambda: worth(_base_quantity),
            "m": lambda: [_BOOLEANS[is_sell.astype(np.int64)].tolist()],
            "T": lambda: time(times - LAG_US),
            "E": lambda: time(times - LAG_US + chance.lag_us[at]),
        }
        return {mark: makers[mark]() for mark in dict.fromkeys(group.marks)}


def _turnover(found: Instrument, price: int, size: int) -> bytes:
    """Format price times quantity; both are integers, in units and steps of the instrument."""
    decimals = found.price_decimals + found.quantity_decimals
    surplus = max(decimals - _MAX_DECIMALS, 0)
    return _decimal_text(price * size * found.step // 10**surplus, decimals - surplus)


def _base_quantity(found: Instrument, price: int, size: int) -> bytes:
    """Format the base asset of so many contracts of 100 USD (BTC) or 10 USD (others)."""
    contract = 100 if found.symbol.startswith("BTC") else 10
    units = size * found.step * contract * 10 ** (found.price_decimals + _MAX_DECIMALS)
    return _decimal_text(units // (price * 10**found.quantity_decimals), _MAX_DECIMALS)
