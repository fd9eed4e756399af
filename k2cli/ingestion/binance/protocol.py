"""The exchange's protocol, pure: stream names and URLs out, frames into RecordBatches.

A trade and a quote as combined streams send them:

    {"stream":"btcusdt@trade","data":{"e":"trade","E":1723161348056,"s":"BTCUSDT",
     "t":3735685016,"p":"61800.00000000","q":"0.00010000","T":1723161348055,"m":true,"M":true}}
    {"stream":"nknusdt@bookTicker","data":{"u":499869768,"s":"NKNUSDT",
     "b":"0.35210000","B":"672.00000000","a":"0.35260000","A":"3199.00000000"}}

Frames are decoded one by one into typed structs and turned into columns many at a time; what
does not fit is found only when a column as a whole does not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Final, cast
from urllib.parse import urlsplit

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from msgspec import UNSET, UnsetType

from k2cli.errors import UsageError
from k2cli.flow import Reject
from k2cli.ingestion.binance.symbols import Channel, Instrument, Venue, parse_symbol
from k2cli.records import MAX_NUMBER, QUOTES, TRADES, RecordKind, message_ids

MICROSECONDS_FROM: Final = 10**15  # a time at or above it is in microseconds, below in milliseconds
_YEAR_9999_US: Final = 253_402_300_799_999_999
_DECIMAL: Final = TRADES.arrow.field("price").type
_MOST_DIGITS: Final = 38  # what a decimal128 holds
_UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def stream_names(instruments: Sequence[Instrument], channels: Sequence[Channel]) -> list[str]:
    """Name the streams of all instruments and channels: `btcusdt@trade`."""
    return [f"{i.symbol.lower()}@{channel.value}" for i in instruments for channel in channels]


def stream_url(base: str, names: Sequence[str], *, has_microseconds: bool) -> str:
    """Build the URL of a combined stream from a base such as `wss://stream.binance.com:9443`.

    Raises:
        UsageError: the base is no ws:// or wss:// URL.
    """
    parts = urlsplit(base)
    if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.query:
        raise UsageError(f"{base!r} is not a WebSocket base", hint="like ws://127.0.0.1:9443")
    unit = "&timeUnit=MICROSECOND" if has_microseconds else ""
    return f"{base.rstrip('/')}/stream?streams={'/'.join(names)}{unit}"


_Ints = npt.NDArray[np.int64]
_Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
_Time = Annotated[int, msgspec.Meta(ge=1, le=_YEAR_9999_US)]


class _Payload(msgspec.Struct, gc=False):
    """Every field of a trade or bookTicker; the event decides which ones must be there."""

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


class _ErrorBody(msgspec.Struct):
    code: int
    msg: str


class _ErrorFrame(msgspec.Struct):
    code: int | UnsetType = UNSET
    msg: str | UnsetType = UNSET
    error: _ErrorBody | UnsetType = UNSET


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """The rows and rejects of a chunk of frames; every frame became one or the other."""

    rows: Sequence[tuple[RecordKind, pa.RecordBatch]]
    rejects: Sequence[Reject]


class FrameParser:
    """Turn frames of one venue into trades and quotes."""

    def __init__(self, *, venue: Venue, instruments: Sequence[Instrument]) -> None:
        self._venue = venue
        self._instruments = {instrument.symbol: instrument for instrument in instruments}
        self._decode = msgspec.json.Decoder(_Envelope).decode
        self._decode_raw = msgspec.json.Decoder(_Payload).decode

    def parse(self, frames: Sequence[bytes], received_us: Sequence[int], *, first: int) -> Parsed:
        """Parse a chunk of frames, received at these UTC microseconds; `first` numbers them."""
        reasons: dict[int, str] = {}
        trades, quotes = self._grouped(frames) or self._sorted_out(frames, reasons)
        received = np.array(received_us, dtype=np.int64)
        rows = []
        for kind, group in ((TRADES, trades), (QUOTES, quotes)):
            batch = self._build(kind, group, received, reasons) if group[0] else None
            if batch is not None and batch.num_rows:
                rows.append((kind, batch))
        rejects = [
            Reject(
                raw=frames[place],
                position=first + place,
                received_us=received_us[place],
                reason=reasons[place],
            )
            for place in sorted(reasons)
        ]
        return Parsed(rows=rows, rejects=rejects)

    def _grouped(self, frames: Sequence[bytes]) -> "tuple[_Group, _Group] | None":
        """Decode frames that are all good, the fast path; None if one of them is not."""
        decode = self._decode
        try:
            payloads = cast("list[_Payload]", [decode(frame).data for frame in frames])
            events = [payload.e for payload in payloads]
        except (*_UNDECODABLE, AttributeError):  # the data of a raw frame is UNSET
            return None
        count = len(payloads)
        trades = [place for place, event in enumerate(events) if event == "trade"]
        if len(trades) == count:
            return (payloads, range(count)), ([], [])
        quotes = [place for place, event in enumerate(events) if event != "trade"]
        others = [payloads[place] for place in quotes] if trades else payloads
        if not _are_quotes(others):
            return None
        return ([payloads[place] for place in trades], trades), (others, quotes)

    def _sorted_out(
        self, frames: Sequence[bytes], reasons: dict[int, str]
    ) -> "tuple[_Group, _Group]":
        """Decode frames one by one; those that are neither trade nor quote enter `reasons`."""
        trades: tuple[list[_Payload], list[int]] = ([], [])
        quotes: tuple[list[_Payload], list[int]] = ([], [])
        for place, frame in enumerate(frames):
            try:
                payload = self._decode(frame).data
                if payload is UNSET:
                    payload = self._decode_raw(frame)
            except _UNDECODABLE as exc:
                reasons[place] = f"not a frame of the exchange: {exc}"
                continue
            if payload.e == "trade":
                payloads, places = trades
            elif _are_quotes([payload]):
                payloads, places = quotes
            else:
                reasons[place] = _why_unknown(frame, payload)
                continue
            payloads.append(payload)
            places.append(place)
        return trades, quotes

    def _build(
        self, kind: RecordKind, group: "_Group", received: _Ints, reasons: dict[int, str]
    ) -> pa.RecordBatch:
        """Build a batch of one kind; payloads that do not fit leave it and enter `reasons`."""
        payloads, places = group
        columns = self._trades if kind is TRADES else self._quotes
        times = received if len(places) == len(received) else received[places]
        try:
            return _batch(kind, columns(payloads, times))
        except (pa.ArrowException, TypeError, _Unfit):
            faults = [self._fault(kind, payload) for payload in payloads]
        fit = [number for number, fault in enumerate(faults) if fault is None]
        if len(fit) == len(faults):
            raise AssertionError(f"{kind.name} of which each fits do not fit together")
        reasons.update(
            {place: fault for place, fault in zip(places, faults, strict=True) if fault is not None}
        )
        kept = [payloads[number] for number in fit]
        return _batch(kind, columns(kept, received[[places[number] for number in fit]]))

    def _trades(self, payloads: Sequence[_Payload], received: _Ints) -> Mapping[str, pa.Array]:
        common = self._common(TRADES, payloads, [p.t for p in payloads], received)
        trade_time = _integers([p.T for p in payloads])
        is_maker = _integers([p.m for p in payloads])
        vendor = _VendorData(len(payloads))
        vendor.add("is_buyer_maker", _BOOLEANS, is_maker)
        vendor.add("event_type", _TRADE, np.zeros(len(payloads), dtype=np.int64))
        vendor.add_numbers("event_time", _integers([p.E for p in payloads]))
        vendor.add_numbers("trade_time", trade_time)
        vendor.add("base_asset", common.bases, common.codes)
        vendor.add("quote_asset", common.quotes, common.codes)
        is_best = [p.M for p in payloads]
        if UNSET in is_best:
            vendor.add_texts("is_best_match", [_BOOLEAN_TEXT.get(best) for best in is_best])
        else:
            vendor.add("is_best_match", _BOOLEANS, _integers(is_best))
        vendor.add_texts("order_type", [p.X for p in payloads])
        vendor.add_texts("buyer_order_id", [p.b for p in payloads])
        vendor.add_texts("seller_order_id", [p.a for p in payloads])
        return {
            **common.columns,
            "timestamp": _timestamps(_microseconds(trade_time)),
            "price": _decimals([p.p for p in payloads]),
            "quantity": _decimals([p.q for p in payloads]),
            "side": _SIDES.take(pa.array(is_maker)),
            "trade_conditions": pa.ListArray.from_arrays(
                pa.array(np.zeros(len(payloads) + 1, dtype=np.int32)), pa.array([], pa.string())
            ),
            "vendor_data": vendor.build(),
        }

    def _quotes(self, payloads: Sequence[_Payload], received: _Ints) -> Mapping[str, pa.Array]:
        common = self._common(QUOTES, payloads, [p.u for p in payloads], received)
        # Spot sends no times: the quote is valid from when it was received.
        pairs = zip(payloads, received.tolist(), strict=True)
        times = _integers([now if p.T is UNSET else p.T for p, now in pairs])
        vendor = _VendorData(len(payloads))
        vendor.add_texts("event_type", [p.e for p in payloads])
        vendor.add_texts("event_time", [p.E for p in payloads])
        vendor.add_texts("transaction_time", [p.T for p in payloads])
        vendor.add("base_asset", common.bases, common.codes)
        vendor.add("quote_asset", common.quotes, common.codes)
        return {
            **common.columns,
            "timestamp": _timestamps(_microseconds(times)),
            "bid_price": _decimals([p.b for p in payloads]),
            "bid_quantity": _decimals([p.B for p in payloads]),
            "ask_price": _decimals([p.a for p in payloads]),
            "ask_quantity": _decimals([p.A for p in payloads]),
            "vendor_data": vendor.build(),
        }

    def _common(
        self,
        kind: RecordKind,
        payloads: Sequence[_Payload],
        numbers: Sequence[int | UnsetType],
        received: _Ints,
    ) -> "_Common":
        """Build the columns that trades and quotes share, by symbol and the exchange's number."""
        symbols = pa.array([p.s for p in payloads], pa.string())
        encoded = symbols.dictionary_encode()
        codes = encoded.indices.to_numpy()
        names = encoded.dictionary.to_pylist()
        instruments = [self._instrument(name) for name in names]
        quotes = pa.array([i.quote for i in instruments], pa.string())
        venue, sequence = self._venue, _integers(numbers)
        texts = pa.array(sequence).cast(pa.string())
        series = [f"{venue.exchange}/{kind.name}/{name}" for name in names]
        same = pa.array(np.zeros(len(payloads), dtype=np.int32))
        return _Common(
            codes=codes,
            bases=pa.array([i.base for i in instruments], pa.string()),
            quotes=quotes,
            columns={
                "message_id": message_ids(series, codes, sequence)
                if series
                else pa.array([], pa.string()),
                kind.id_column: pc.binary_join_element_wise(venue.exchange, texts, "-"),
                "symbol": symbols,
                "exchange": pa.array([venue.exchange]).take(same),
                "asset_class": pa.array([venue.asset_class]).take(same),
                "currency": quotes.take(encoded.indices),
                "source_sequence": pa.array(sequence),
                "ingestion_timestamp": _timestamps(received),
                "platform_sequence": pa.nulls(len(payloads), pa.int64()),
            },
        )

    def _instrument(self, symbol: str) -> Instrument:
        """Look a symbol up, or split it; what the exchange sends beyond the asked is kept too."""
        instrument = self._instruments.get(symbol)
        if instrument is None:
            try:
                instrument = parse_symbol(symbol)
            except UsageError as exc:
                raise _Unfit(str(exc)) from exc
            if instrument.symbol != symbol:
                raise _Unfit(f"{symbol[:80]!r} is not a symbol of the exchange")
            self._instruments[symbol] = instrument
        return instrument

    def _fault(self, kind: RecordKind, payload: _Payload) -> str | None:
        """Say why a payload is no row of its kind, or None: the slow, explaining path."""
        required, decimals = _REQUIRED[kind.name]
        missing = [name for name in required if getattr(payload, name) is UNSET]
        if missing:
            return f"{kind.name}: lacks {', '.join(missing)}"
        for name in decimals:
            value = getattr(payload, name)
            try:
                _decimals([value])
            except (pa.ArrowException, _Unfit) as exc:
                return f"{kind.name}: {name} {str(value)[:80]!r} does not fit {_DECIMAL}: {exc}"
        try:
            self._instrument(payload.s if isinstance(payload.s, str) else "")
            _microseconds(_integers([] if payload.T is UNSET else [payload.T]))
        except _Unfit as exc:
            return f"{kind.name}: {exc}"
        return None


_Group = tuple[Sequence[_Payload], Sequence[int]]  # payloads, and their places in the chunk
_UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_REQUIRED: Final[Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "trades": (("E", "T", "s", "t", "p", "q", "m"), ("p", "q")),
    "quotes": (("s", "u", "b", "B", "a", "A"), ("b", "B", "a", "A")),
}
_TRADE: Final = pa.array(["trade"])
_BOOLEANS: Final = pa.array(["false", "true"])
_BOOLEAN_TEXT: Final[Mapping[object, str]] = {False: "false", True: "true"}
_SIDES: Final = pa.array(["BUY", "SELL"])  # the buyer is the maker: the seller took liquidity


class _Unfit(Exception):
    """A column holds a value that its kind cannot."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    codes: _Ints  # place of each row's symbol in bases and quotes
    bases: pa.StringArray
    quotes: pa.StringArray
    columns: Mapping[str, pa.Array]


class _VendorData:
    """Build a map<string, string> column from columns of texts, an entry a column and row."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._keys: list[str] = []
        self._pools: list[pa.Array] = []
        self._places: list[_Ints] = []  # in the pool; below 0: the row has no such entry

    def add(self, key: str, pool: pa.Array, places: _Ints) -> None:
        """Add an entry whose value for each row stands at `places` in `pool`."""
        self._keys.append(key)
        self._pools.append(pool)
        self._places.append(places)

    def add_numbers(self, key: str, numbers: _Ints) -> None:
        """Add an entry with a number as text in every row."""
        self.add(key, pa.array(numbers).cast(pa.string()), np.arange(self._count))

    def add_texts(self, key: str, values: Sequence[object]) -> None:
        """Add an entry with a few distinct values; None and UNSET leave the row without it."""
        if values.count(UNSET) == len(values):
            return
        distinct = dict.fromkeys(values)
        distinct.pop(None, None)
        distinct.pop(UNSET, None)
        codes: dict[object, int] = {value: code for code, value in enumerate(distinct)}
        pool = pa.array([str(value) for value in distinct], pa.string())
        self.add(key, pool, np.array([codes.get(value, -1) for value in values], dtype=np.int64))

    def build(self) -> pa.MapArray:
        """Return the column; entries stand in the order in which they were added."""
        width = len(self._keys)
        starts = np.cumsum([0, *(len(pool) for pool in self._pools)])[:width]
        places = np.stack(self._places, axis=1)
        is_there = places >= 0
        values = places + starts
        keys = np.broadcast_to(np.arange(width), places.shape)
        if is_there.all():
            offsets = np.arange(0, width * (self._count + 1), width, dtype=np.int32)
            values, keys = values.ravel(), keys.ravel()
        else:
            offsets = np.zeros(self._count + 1, dtype=np.int32)
            np.cumsum(is_there.sum(axis=1), out=offsets[1:])
            values, keys = values[is_there], keys[is_there]
        return pa.MapArray.from_arrays(
            pa.array(offsets),
            pa.array(self._keys).take(pa.array(keys)),
            pa.concat_arrays(self._pools).take(pa.array(values)),
        )


def _are_quotes(payloads: Sequence[_Payload]) -> bool:
    """Tell bookTickers; on spot they name no event, and only they have an update id."""
    events = [payload.e for payload in payloads]
    named, unnamed = events.count("bookTicker"), events.count(UNSET)
    has_ids = unnamed == 0 or UNSET not in [payload.u for payload in payloads]
    return has_ids and named + unnamed == len(payloads)


def _batch(kind: RecordKind, columns: Mapping[str, pa.Array]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays(
        [columns[name] for name in kind.arrow.names], schema=kind.arrow
    )


def _integers(values: Sequence[object]) -> _Ints:
    """Make a column of integers; UNSET among them raises TypeError."""
    return np.array(values, dtype=np.int64)


def _decimals(values: Sequence[object]) -> pa.Array:
    """Make an exact column of prices or quantities from their texts: digits, at most one dot."""
    texts = pa.array(values, pa.string())
    _, _, characters = texts.buffers()
    strange = characters.to_pybytes().translate(None, b"0123456789.") if characters else b""
    # Arrow's parser must not see an exponent or a long fraction: it reads past its own tables.
    if strange or (pc.max(pc.binary_length(texts)).as_py() or 0) > _MOST_DIGITS:
        raise _Unfit("negative" if strange == b"-" else "not a plain number")
    return texts.cast(_DECIMAL)


def _microseconds(times: _Ints) -> _Ints:
    """Bring times to microseconds, each by its magnitude."""
    times_us = np.where(times >= MICROSECONDS_FROM, times, times * 1000)
    if len(times_us) and times_us.max() > _YEAR_9999_US:
        raise _Unfit("later than the year 9999")
    return times_us


def _timestamps(times_us: _Ints) -> pa.Array:
    return pa.array(times_us).cast(pa.timestamp("us", tz="UTC"))


def _why_unknown(frame: bytes, payload: _Payload) -> str:
    if payload.e is not UNSET:
        return f"unknown event {payload.e[:80]!r}"
    try:
        body = msgspec.json.decode(frame, type=_ErrorFrame)
    except _UNREADABLE:
        return "neither a trade nor a quote"
    if body.error is not UNSET:
        return f"the exchange reports error {body.error.code}: {body.error.msg}"
    if body.code is not UNSET:
        return f"the exchange reports error {body.code}: {body.msg or ''}"
    return "neither a trade nor a quote"
