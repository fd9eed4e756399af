"""Parse the answers of the REST API, without I/O.

A page of `historicalTrades` (spot, futures, and COIN-M with `baseQty`) and one of `aggTrades`:

    [{"id":28457,"price":"4.00000100","qty":"12.00000000","quoteQty":"48.000012",
      "time":1499865549590,"isBuyerMaker":true,"isBestMatch":true}]
    [{"a":26129,"p":"0.01633102","q":"4.70443515","f":27781,"l":27781,"T":1498793709153,
      "m":true,"M":true}]

The exchange serves both oldest first. A page in any other order, or with a number that was not
asked for, is invalid as a whole, because what it omits cannot be known.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Final

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, UnsetType

from k2cli.columns import (
    YEAR_9999_US,
    Unfit,
    VendorData,
    decimals,
    integers,
    microseconds,
    timestamps,
    to_batch,
)
from k2cli.ingestion.binance.columns import (
    BOOLEAN_TEXT,
    BOOLEANS,
    SIDES,
    RowKeys,
    shared_columns,
    unfit_amount,
)
from k2cli.ingestion.exchange import Venue
from k2cli.ingestion.history import Page
from k2cli.ingestion.symbols import Instrument
from k2cli.records import MAX_NUMBER, TRADES
from k2cli.rejects import Cause, Fault, Reject, shown

_LONGEST_AMOUNT: Final = 64  # characters of an amount that is only kept as text
_UNNUMBERED: Final = -1  # the trades of an aggregate that the exchange has no ids for

_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
_NumberOrNone = Annotated[int, msgspec.Meta(ge=_UNNUMBERED, le=MAX_NUMBER)]
_Time = Annotated[int, msgspec.Meta(ge=1, le=YEAR_9999_US)]
_Amount = Annotated[str, msgspec.Meta(max_length=_LONGEST_AMOUNT)]


class InvalidAnswer(Exception):
    """An answer that cannot be right; the text is what is wrong with it."""


class _Numbered(msgspec.Struct, gc=False):
    id: _Number


class _Trade(msgspec.Struct, gc=False, rename="camel"):
    id: _Number
    price: str | UnsetType = UNSET
    qty: str | UnsetType = UNSET
    quote_qty: _Amount | UnsetType = UNSET
    base_qty: _Amount | UnsetType = UNSET
    time: _Time | UnsetType = UNSET
    is_buyer_maker: bool | UnsetType = UNSET
    is_best_match: bool | UnsetType = UNSET


class Aggregate(
    msgspec.Struct,
    gc=False,
    frozen=True,
    rename={"number": "a", "first": "f", "last": "l", "time": "T"},
):
    """Consecutive trades of one order at one price."""

    number: _Number
    first: _NumberOrNone  # of its trades; below 0 if the exchange has no ids for them
    last: _NumberOrNone
    time: _Time

    @property
    def time_us(self) -> int:
        """UTC microseconds."""
        return int(microseconds(integers([self.time]))[0])

    @property
    def is_numbered(self) -> bool:
        """Whether the numbers of its trades are known."""
        return self.first >= 0


class _Error(msgspec.Struct):
    code: int
    msg: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TradesRequest:
    """The trades that were asked for: numbers from `first` to at most `last`."""

    venue: Venue
    instrument: Instrument
    first: int
    last: int


def parse_error(answer: bytes) -> tuple[int, str] | None:
    """Return the code and text of an error that the exchange reports, or None.

    {"code":-1121,"msg":"Invalid symbol."}
    """
    try:
        error = _decode_error(answer)
    except _UNDECODABLE:
        return None
    return error.code, shown(error.msg) or ""


def parse_trades(answer: bytes, request: TradesRequest, received_us: int) -> Page:
    """Parse a page of `historicalTrades`; rows that do not fit are rejects.

    Trades above what was asked for are left out: the exchange fills a page beyond a hole.

    Raises:
        InvalidAnswer: not a page, or not one of what was asked for.
    """
    try:
        trades = _decode_trades(answer)
        count, known_to = _measure([trade.id for trade in trades], request)
        rows = _trade_rows(trades[:count], request, received_us)
    except (*_UNDECODABLE, pa.ArrowException, TypeError, Unfit):
        return _parse_one_by_one(answer, request, received_us)
    return Page(rows=rows, known_to=known_to)


def empty_page(known_to: int) -> Page:
    """Return a page without trades."""
    return Page(rows=pa.RecordBatch.from_pylist([], schema=TRADES.arrow), known_to=known_to)


def parse_aggregates(answer: bytes) -> list[Aggregate]:
    """Parse a page of `aggTrades`.

    Raises:
        InvalidAnswer: not a page, unordered or overlapping.
    """
    try:
        aggregates = _decode_aggregates(answer)
    except _UNDECODABLE as exc:
        raise InvalidAnswer(f"not a page of aggregate trades: {exc}") from exc
    _check_ascending([each.number for each in aggregates])
    numbered = [each for each in aggregates if each.is_numbered]
    if any(each.last < each.first for each in numbered) or any(
        before.last >= after.first for before, after in pairwise(numbered)
    ):
        raise InvalidAnswer("aggregate trades overlap")
    return aggregates


def _measure(numbers: Sequence[int], request: TradesRequest) -> tuple[int, int]:
    """Return how many of a page's trades were asked for, and up to which number it is complete.

    Raises:
        InvalidAnswer: they are unordered, repeated or below what was asked for.
    """
    if not numbers:
        return 0, request.first - 1
    _check_ascending(numbers)
    if numbers[0] < request.first:
        raise InvalidAnswer(f"trade {numbers[0]} instead of {request.first} and later")
    return bisect_right(numbers, request.last), min(numbers[-1], request.last)


def _check_ascending(numbers: Sequence[int]) -> None:
    for before, after in pairwise(numbers):
        if before >= after:
            raise InvalidAnswer(f"number {after} follows {before}")


def _parse_one_by_one(answer: bytes, request: TradesRequest, received_us: int) -> Page:
    """Parse a page of which some rows do not fit: the slow path."""
    try:
        raws = _decode_rows(answer)
        numbers = [_decode_number(raw).id for raw in raws]
    except _UNDECODABLE as exc:
        raise InvalidAnswer(f"not a page of trades: {exc}") from exc
    count, known_to = _measure(numbers, request)
    trades: list[_Trade] = []
    rejects: list[Reject] = []
    for number, raw in zip(numbers[:count], raws, strict=False):
        judged = _judge(raw)
        if isinstance(judged, _Trade):
            trades.append(judged)
        else:
            rejects.append(
                Reject(
                    fault=judged,
                    raw=bytes(raw),
                    position=number,
                    received_us=received_us,
                    source=f"{request.venue.exchange}/{request.instrument.symbol}",
                )
            )
    rows = _trade_rows(trades, request, received_us)
    return Page(rows=rows, known_to=known_to, rejects=rejects)


def _judge(raw: msgspec.Raw) -> _Trade | Fault:
    """Decode a row, or describe why it is not a trade."""
    try:
        trade = _decode_trade(raw)
    except _UNDECODABLE as exc:
        return Fault(reason=f"not a trade of the exchange: {exc}", cause=Cause.BAD_FRAME)
    missing = [each for each in _REQUIRED if getattr(trade, each.attribute) is UNSET]
    if missing:
        brief = f"lacks {', '.join(each.key for each in missing)}"
        return _fault(missing[0], None, brief, Cause.MISSING)
    for each in _REQUIRED:
        value = getattr(trade, each.attribute)
        unfit = _unfit(each, value)
        if unfit is not None:
            return _fault(each, value, str(unfit), unfit.cause)
    return trade


def _unfit(required: "_Required", value: object) -> Unfit | None:
    if required.column in ("price", "quantity"):
        return unfit_amount(required.key, value, TRADES.type_of(required.column))
    if required.column == "timestamp":
        try:
            microseconds(integers([value]))
        except Unfit as exc:
            return exc
    return None


def _fault(required: "_Required", value: object, brief: str, cause: Cause) -> Fault:
    return Fault(
        reason=f"trades: {brief}",
        cause=cause,
        field=required.column,
        value=shown(value),
        column=required.key,
        brief=brief,
    )


def _trade_rows(
    trades: Sequence[_Trade], request: TradesRequest, received_us: int
) -> pa.RecordBatch:
    """Build the rows of trades, all of which fit."""
    count = len(trades)
    same = np.zeros(count, dtype=np.int64)
    keys = RowKeys(
        instruments=[request.instrument],
        codes=same,
        numbers=integers([trade.id for trade in trades]),
        received_us=np.full(count, received_us, dtype=np.int64),
    )
    shared = shared_columns(TRADES, request.venue, keys)
    times = integers([trade.time for trade in trades])
    is_maker = integers([trade.is_buyer_maker for trade in trades])
    vendor = VendorData(count)
    vendor.add("is_buyer_maker", BOOLEANS, is_maker)
    vendor.add_numbers("trade_time", times)
    vendor.add("base_asset", shared.bases, shared.codes)
    vendor.add("quote_asset", shared.quotes, shared.codes)
    vendor.add_texts("quote_quantity", [trade.quote_qty for trade in trades])
    vendor.add_texts("base_quantity", [trade.base_qty for trade in trades])
    vendor.add_texts("is_best_match", [BOOLEAN_TEXT.get(each.is_best_match) for each in trades])
    vendor.add("backfilled", _TRUE, same)
    no_conditions = pa.array(np.zeros(count + 1, dtype=np.int32))
    return to_batch(
        TRADES,
        {
            **shared.columns,
            "timestamp": timestamps(microseconds(times)),
            "price": decimals([trade.price for trade in trades], TRADES.type_of("price")),
            "quantity": decimals([trade.qty for trade in trades], TRADES.type_of("quantity")),
            "side": SIDES.take(pa.array(is_maker)),
            "trade_conditions": pa.ListArray.from_arrays(no_conditions, pa.array([], pa.string())),
            "vendor_data": vendor.build(),
        },
    )


@dataclass(frozen=True, slots=True)
class _Required:
    key: str
    attribute: str
    column: str


_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_decode_trade: Final = msgspec.json.Decoder(_Trade).decode
_decode_trades: Final = msgspec.json.Decoder(list[_Trade]).decode
_decode_rows: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_number: Final = msgspec.json.Decoder(_Numbered).decode
_decode_aggregates: Final = msgspec.json.Decoder(list[Aggregate]).decode
_decode_error: Final = msgspec.json.Decoder(_Error).decode
_REQUIRED: Final = (
    _Required("price", "price", "price"),
    _Required("qty", "qty", "quantity"),
    _Required("time", "time", "timestamp"),
    _Required("isBuyerMaker", "is_buyer_maker", "side"),
)
_TRUE: Final = pa.array(["true"])
