"""Parse the exchange's frames into RecordBatches, without I/O.

A trade and a quote as combined streams send them:

    {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161348056,"s":"BTCUSDT",
     "t":3735685016,"p":"61800.00000000","q":"0.00010000","T":1723161348055,"m":true,"M":true}}
    {"stream":"nknusdt@bookTicker","data":{"u":499869768,"s":"NKNUSDT",
     "b":"0.35210000","B":"672.00000000","a":"0.35260000","A":"3199.00000000"}}

Frames are decoded one by one into typed structs and converted to columns many at a time; values are
checked one by one only if a column fails as a whole.

The module is long because every frame type and its conversion to columns are kept together.
"""

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Final, cast

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET, UnsetType

from k2cli.columns import (
    YEAR_9999_US,
    Ints,
    Unfit,
    VendorData,
    decimals,
    integers,
    microseconds,
    timestamps,
    to_batch,
)
from k2cli.errors import UsageError
from k2cli.ingestion.binance.columns import (
    BOOLEAN_TEXT,
    BOOLEANS,
    SIDES,
    RowKeys,
    SharedColumns,
    shared_columns,
    unfit_amount,
)
from k2cli.ingestion.exchange import Parsed, Venue
from k2cli.ingestion.symbols import Instrument
from k2cli.records import MAX_NUMBER, QUOTES, TRADES, RecordKind
from k2cli.rejects import MAX_SHOWN, Cause, Fault, Reject, shown
from k2cli.symbols import normalize_symbol

_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
_Time = Annotated[int, msgspec.Meta(ge=1, le=YEAR_9999_US)]


class _Payload(msgspec.Struct, gc=False):
    """Every field of a trade or bookTicker; the event decides which ones are required."""

    e: str | UnsetType = UNSET
    E: _Time | UnsetType = UNSET
    T: _Time | UnsetType = UNSET
    s: str | UnsetType = UNSET
    t: _Number | UnsetType = UNSET
    p: str | UnsetType = UNSET
    q: str | UnsetType = UNSET
    m: bool | UnsetType = UNSET
    M: bool | UnsetType = UNSET
    X: str | UnsetType = UNSET
    u: _Number | UnsetType = UNSET
    b: int | str | UnsetType = UNSET
    B: str | UnsetType = UNSET
    a: int | str | UnsetType = UNSET
    A: str | UnsetType = UNSET


class _Envelope(msgspec.Struct, gc=False):
    data: _Payload | UnsetType = UNSET


_decode_envelope = msgspec.json.Decoder(_Envelope).decode
_decode_payload = msgspec.json.Decoder(_Payload).decode


class _ErrorBody(msgspec.Struct):
    code: int
    msg: str


class _ErrorFrame(msgspec.Struct):
    code: int | UnsetType = UNSET
    msg: str | UnsetType = UNSET
    error: _ErrorBody | UnsetType = UNSET


class _Acknowledgement(msgspec.Struct, forbid_unknown_fields=True):
    """The reply to a control message: {"result":null,"id":1}."""

    result: None
    id: int | str | None


class FrameParser:
    """Parses frames of one venue into trades and quotes.

    `home` is the folder with the exchange's latest symbol lists. A symbol on no list is looked up
    again with every chunk, because the list may have been refreshed.
    """

    def __init__(
        self, *, venue: Venue, instruments: Sequence[Instrument], home: Path | None = None
    ) -> None:
        self._venue = venue
        self._home = home
        self._instruments = {instrument.symbol: instrument for instrument in instruments}
        self._decode = _decode_envelope
        self._decode_raw = _decode_payload

    def add(self, instruments: Sequence[Instrument]) -> None:
        """Expect frames of more instruments."""
        self._instruments.update((instrument.symbol, instrument) for instrument in instruments)

    def parse(self, frames: Sequence[bytes], received_us: Sequence[int], *, first: int) -> Parsed:
        """Parse a chunk of frames, received at these UTC microseconds; `first` numbers them."""
        faults: dict[int, Fault] = {}
        trades, quotes = self._grouped(frames) or self._sorted_out(frames, faults)
        trades, events = _without_events(trades)
        received = np.array(received_us, dtype=np.int64)
        rows = []
        for kind, group in ((TRADES, trades), (QUOTES, quotes)):
            batch = self._build(kind, group, received, faults) if group[0] else None
            if batch is not None and batch.num_rows:
                rows.append((kind, batch))
        seen = self._seen(events, faults)
        rejects = [
            Reject(
                fault=faults[index],
                raw=frames[index],
                position=first + index,
                received_us=received_us[index],
            )
            for index in sorted(faults)
        ]
        return Parsed(rows=rows, rejects=rejects, seen=seen)

    def _seen(
        self, events: "_Group", faults: dict[int, Fault]
    ) -> Sequence[tuple[RecordKind, pa.RecordBatch]]:
        """List the ids of events without a trade; invalid events go to `faults`."""
        symbols: list[str] = []
        numbers: list[int] = []
        for payload, index in zip(*events, strict=True):
            fault = self._fault(TRADES, payload)
            if fault is not None:
                faults[index] = fault
            elif isinstance(payload.s, str) and isinstance(payload.t, int):
                symbols.append(self._instrument(payload.s).symbol)
                numbers.append(payload.t)
        if not numbers:
            return ()
        exchanges = [self._venue.exchange] * len(numbers)
        return ((TRADES, pa.record_batch([exchanges, symbols, numbers], schema=SEEN)),)

    def _grouped(self, frames: Sequence[bytes]) -> "tuple[_Group, _Group] | None":
        """Decode valid frames, the fast path; None if any frame is invalid."""
        decode = self._decode
        try:
            payloads = cast("list[_Payload]", [decode(frame).data for frame in frames])
            events = [payload.e for payload in payloads]
        except (*_UNDECODABLE, AttributeError):  # the data of a raw frame is UNSET
            return None
        count = len(payloads)
        trades = [index for index, event in enumerate(events) if event == "trade"]
        if len(trades) == count:
            return (payloads, range(count)), ([], [])
        quotes = [index for index, event in enumerate(events) if event != "trade"]
        others = [payloads[index] for index in quotes] if trades else payloads
        if not _are_quotes(others):
            return None
        return ([payloads[index] for index in trades], trades), (others, quotes)

    def _sorted_out(
        self, frames: Sequence[bytes], faults: dict[int, Fault]
    ) -> "tuple[_Group, _Group]":
        """Decode frames one by one; those that are neither trade nor quote go to `faults`."""
        trades: tuple[list[_Payload], list[int]] = ([], [])
        quotes: tuple[list[_Payload], list[int]] = ([], [])
        for index, frame in enumerate(frames):
            try:
                payload = self._decode(frame).data
                if payload is UNSET:
                    payload = self._decode_raw(frame)
            except _UNDECODABLE as exc:
                reason = f"not a frame of the exchange: {exc}"
                faults[index] = Fault(reason=reason, cause=Cause.BAD_FRAME)
                continue
            if payload.e == "trade":
                payloads, indexes = trades
            elif _are_quotes([payload]):
                payloads, indexes = quotes
            else:
                fault = _why_unknown(frame, payload)
                if fault is not None:
                    faults[index] = fault
                continue
            payloads.append(payload)
            indexes.append(index)
        return trades, quotes

    def _build(
        self, kind: RecordKind, group: "_Group", received: Ints, faults: dict[int, Fault]
    ) -> pa.RecordBatch:
        """Build a batch of one kind; payloads that do not fit go to `faults` instead."""
        payloads, indexes = group
        columns = self._trades if kind is TRADES else self._quotes
        times = received if len(indexes) == len(received) else received[indexes]
        try:
            return to_batch(kind, columns(payloads, times))
        except (pa.ArrowException, TypeError, Unfit):
            found = [self._fault(kind, payload) for payload in payloads]
        fit = [number for number, fault in enumerate(found) if fault is None]
        if len(fit) == len(found):
            raise AssertionError(f"{kind.name} fit one by one but not together")
        faults.update(
            {index: fault for index, fault in zip(indexes, found, strict=True) if fault is not None}
        )
        kept = [payloads[number] for number in fit]
        return to_batch(kind, columns(kept, received[[indexes[number] for number in fit]]))

    def _trades(self, payloads: Sequence[_Payload], received: Ints) -> Mapping[str, pa.Array]:
        common = self._common(TRADES, payloads, [p.t for p in payloads], received)
        trade_time = integers([p.T for p in payloads])
        is_maker = integers([p.m for p in payloads])
        vendor = VendorData(len(payloads))
        vendor.add("is_buyer_maker", BOOLEANS, is_maker)
        vendor.add("event_type", _TRADE, np.zeros(len(payloads), dtype=np.int64))
        vendor.add_numbers("event_time", integers([p.E for p in payloads]))
        vendor.add_numbers("trade_time", trade_time)
        vendor.add("base_asset", common.bases, common.codes)
        vendor.add("quote_asset", common.quotes, common.codes)
        is_best = [p.M for p in payloads]
        if UNSET in is_best:
            vendor.add_texts("is_best_match", [BOOLEAN_TEXT.get(best) for best in is_best])
        else:
            vendor.add("is_best_match", BOOLEANS, integers(is_best))
        orders = [p.X for p in payloads]
        vendor.add_texts("order_type", orders)
        vendor.add_texts("buyer_order_id", [p.b for p in payloads])
        vendor.add_texts("seller_order_id", [p.a for p in payloads])
        return {
            **common.columns,
            "timestamp": timestamps(microseconds(trade_time)),
            "price": decimals([p.p for p in payloads], TRADES.type_of("price")),
            "quantity": decimals([p.q for p in payloads], TRADES.type_of("quantity")),
            "side": SIDES.take(pa.array(is_maker)),
            "trade_conditions": _conditions(orders),
            "vendor_data": vendor.build(),
        }

    def _quotes(self, payloads: Sequence[_Payload], received: Ints) -> Mapping[str, pa.Array]:
        common = self._common(QUOTES, payloads, [p.u for p in payloads], received)
        # Spot sends no times: the quote is valid from when it was received.
        pairs = zip(payloads, received.tolist(), strict=True)
        times = integers([now if p.T is UNSET else p.T for p, now in pairs])
        vendor = VendorData(len(payloads))
        vendor.add_texts("event_type", [p.e for p in payloads])
        vendor.add_texts("event_time", [p.E for p in payloads])
        vendor.add_texts("transaction_time", [p.T for p in payloads])
        vendor.add("base_asset", common.bases, common.codes)
        vendor.add("quote_asset", common.quotes, common.codes)
        return {
            **common.columns,
            "timestamp": timestamps(microseconds(times)),
            "bid_price": decimals([p.b for p in payloads], QUOTES.type_of("bid_price")),
            "bid_quantity": decimals([p.B for p in payloads], QUOTES.type_of("bid_quantity")),
            "ask_price": decimals([p.a for p in payloads], QUOTES.type_of("ask_price")),
            "ask_quantity": decimals([p.A for p in payloads], QUOTES.type_of("ask_quantity")),
            "vendor_data": vendor.build(),
        }

    def _common(
        self,
        kind: RecordKind,
        payloads: Sequence[_Payload],
        numbers: Sequence[int | UnsetType],
        received: Ints,
    ) -> SharedColumns:
        """Build the columns that trades and quotes share, from symbol and exchange sequence."""
        encoded = pa.array([p.s for p in payloads], pa.string()).dictionary_encode()
        keys = RowKeys(
            instruments=[self._instrument(name) for name in encoded.dictionary.to_pylist()],
            codes=encoded.indices.to_numpy(),
            numbers=integers(numbers),
            received_us=received,
        )
        return shared_columns(kind, self._venue, keys)

    def _instrument(self, symbol: str) -> Instrument:
        """Look up or split a symbol; unrequested symbols from the exchange are kept, too."""
        instrument = self._instruments.get(symbol)
        if instrument is None or instrument.is_guess:
            try:
                instrument = self._venue.parse_symbol(symbol, self._home)
            except UsageError as exc:
                raise Unfit(str(exc), Cause.UNKNOWN_SYMBOL) from exc
            if instrument.symbol != normalize_symbol(symbol):
                reason = f"{symbol[:MAX_SHOWN]!r} is not a symbol of this exchange"
                raise Unfit(reason, Cause.UNKNOWN_SYMBOL)
            self._instruments[symbol] = instrument
        return instrument

    def _fault(self, kind: RecordKind, payload: _Payload) -> Fault | None:
        """Explain why a payload is not a row of its kind, or return None: the slow path."""
        required, numeric = _REQUIRED[kind.name]
        missing = [name for name in required if getattr(payload, name) is UNSET]
        if missing:
            brief = f"lacks {', '.join(missing)}"
            return _field_fault(kind, missing[0], None, brief, Cause.MISSING)
        for name, column in numeric.items():
            value = getattr(payload, name)
            unfit = unfit_amount(name, value, kind.type_of(column))
            if unfit is not None:
                return _field_fault(kind, name, value, str(unfit), unfit.cause)
        symbol = payload.s if isinstance(payload.s, str) else ""
        try:
            self._instrument(symbol)
        except Unfit as exc:
            return _field_fault(kind, "s", symbol, str(exc), exc.cause)
        try:
            microseconds(integers([] if payload.T is UNSET else [payload.T]))
        except Unfit as exc:
            return _field_fault(kind, "T", payload.T, str(exc), exc.cause)
        return None


def contract_of(frame: bytes) -> str | None:
    """Return the symbol of a trade or quote of futures; "" for one of spot, None if unclear.

    Only trades of futures have an order type `X`, only their quotes an event time `E`.
    """
    try:
        payload = _decode_envelope(frame).data
        if payload is UNSET:
            payload = _decode_payload(frame)
    except _UNDECODABLE:
        return None
    is_quote = payload.e is UNSET and payload.u is not UNSET
    symbol = payload.s if isinstance(payload.s, str) else ""
    if (payload.e == "trade" and payload.X is not UNSET) or payload.e == "bookTicker":
        return symbol or None
    is_spot = is_quote or (payload.e == "trade" and payload.M is not UNSET)
    return "" if is_spot else None


SEEN: Final = pa.schema(
    [("exchange", pa.string()), ("symbol", pa.string()), ("source_sequence", pa.int64())]
)
_NO_TRADE: Final = "NA"  # the order type of an event without a trade: its quantity is 0
_USUAL_ORDER: Final = frozenset({UNSET, "", "MARKET"})
_ZERO: Final = re.compile(r"0*\.?0*")
_Group = tuple[Sequence[_Payload], Sequence[int]]  # payloads, and their indexes in the chunk
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
# For each kind: the required attributes of a payload, and which of them are decimals, with their
# columns.
_REQUIRED: Final[Mapping[str, tuple[tuple[str, ...], Mapping[str, str]]]] = {
    "trades": (("E", "T", "s", "t", "p", "q", "m"), {"p": "price", "q": "quantity"}),
    "quotes": (
        ("s", "u", "b", "B", "a", "A"),
        {"b": "bid_price", "B": "bid_quantity", "a": "ask_price", "A": "ask_quantity"},
    ),
}
# Columns by payload key, of both kinds; those of numbers are in `_REQUIRED`.
_FIELDS: Final = {"s": "symbol", "t": "id", "u": "id", "T": "timestamp", "m": "side"}
_TRADE: Final = pa.array(["trade"])


def _without_events(trades: "_Group") -> "tuple[_Group, _Group]":
    """Separate trades from futures events that consume an id without a trade.

    {"e":"trade","E":1723161348055,"T":1723161348055,"s":"BTCUSDT","t":102,"p":"0","q":"0",
     "X":"NA","m":true}
    """
    payloads, indexes = trades
    if _NO_TRADE not in [payload.X for payload in payloads]:
        return trades, ([], [])
    pairs = list(zip(payloads, indexes, strict=True))
    kept = [pair for pair in pairs if not _is_without_trade(pair[0])]
    events = [pair for pair in pairs if _is_without_trade(pair[0])]
    return _unzipped(kept), _unzipped(events)


def _unzipped(pairs: Sequence[tuple[_Payload, int]]) -> "_Group":
    return [payload for payload, _ in pairs], [index for _, index in pairs]


def _is_without_trade(payload: _Payload) -> bool:
    amounts = (payload.p, payload.q)
    is_zero = any(isinstance(text, str) and text and _ZERO.fullmatch(text) for text in amounts)
    return payload.X == _NO_TRADE and is_zero


def _conditions(orders: Sequence[str | UnsetType]) -> pa.ListArray:
    """Record order types of trades outside the market: insurance fund, ADL, new ones."""
    if _USUAL_ORDER.issuperset(orders):
        offsets = np.zeros(len(orders) + 1, dtype=np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array([], pa.string()))
    is_noted = np.array([order not in _USUAL_ORDER for order in orders], dtype=np.int32)
    offsets = np.concatenate((np.zeros(1, dtype=np.int32), np.cumsum(is_noted, dtype=np.int32)))
    noted = [order for order in orders if order not in _USUAL_ORDER]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(noted, pa.string()))


def _are_quotes(payloads: Sequence[_Payload]) -> bool:
    """Detect bookTickers; on spot they have no event name, and only they have an update id."""
    events = [payload.e for payload in payloads]
    named, unnamed = events.count("bookTicker"), events.count(UNSET)
    has_ids = unnamed == 0 or UNSET not in [payload.u for payload in payloads]
    return has_ids and named + unnamed == len(payloads)


def _field_fault(kind: RecordKind, key: str, value: object, brief: str, cause: Cause) -> Fault:
    """Describe what is wrong with the value of one key of a payload."""
    _, amounts = _REQUIRED[kind.name]
    return Fault(
        reason=f"{kind.name}: {brief}",
        cause=cause,
        field=amounts.get(key) or _FIELDS.get(key, ""),
        value=shown(value),
        column=key,
        brief=brief,
    )


def _why_unknown(frame: bytes, payload: _Payload) -> Fault | None:
    """Explain a frame that is neither a trade nor a quote; None if it acknowledges a message."""
    unknown = Fault(reason="neither a trade nor a quote", cause=Cause.UNKNOWN_EVENT)
    if payload.e is not UNSET:
        return replace(unknown, reason=f"unknown event {payload.e[:MAX_SHOWN]!r}")
    with suppress(*_UNDECODABLE):
        msgspec.json.decode(frame, type=_Acknowledgement)
        return None
    try:
        body = msgspec.json.decode(frame, type=_ErrorFrame)
    except _UNDECODABLE:
        return unknown
    if body.error is not UNSET:
        reason = f"the exchange reports error {body.error.code}: {body.error.msg}"
    elif body.code is not UNSET:
        reason = f"the exchange reports error {body.code}: {body.msg or ''}"
    else:
        return unknown
    return Fault(reason=reason, cause=Cause.EXCHANGE_ERROR)
