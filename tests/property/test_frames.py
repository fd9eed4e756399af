"""No frame, however damaged, crashes the parser: each is one row or one reject."""

import json
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from k2cli.ingestion.binance.protocol import SEEN, FrameParser
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.exchange import Parsed
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.records import TRADES

RECEIVED_US = 1_723_161_350_000_000
MARKETS = st.sampled_from(list(Market))
FRAMES = [
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161348056,"s":"BTCUSDT",'
    b'"t":3735685016,"p":"61800.00000000","q":"0.00010000","T":1723161348055,"m":true,"M":true}}',
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1680652800000,"s":"BTCUSDT","t":30,'
    b'"p":"2.5","q":"0.00056000","b":207,"a":208,"T":1680652799999,"m":false,"M":true}}',
    b'{"stream":"ethusd_perp@trade","data":{"e":"trade","E":1723161258769,"T":1723161258762,'
    b'"s":"ETHUSD_PERP","t":805376266,"p":"2682.18","q":"1","X":"MARKET","m":false}}',
    b'{"stream":"nknusdt@bookTicker","data":{"u":499869768,"s":"NKNUSDT",'
    b'"b":"0.35210000","B":"672.00000000","a":"0.35260000","A":"3199.00000000"}}',
    b'{"stream":"btcusdt@bookTicker","data":{"e":"bookTicker","u":4984028370881,"s":"BTCUSDT",'
    b'"b":"63943.90","B":"46.371","a":"63944.00","A":"0.095","T":1721347022507,"E":1721347022507}}',
    b'{"e":"trade","E":1723161348056,"s":"BTCUSDT","t":1,"p":"1","q":"2","T":1723161348055,"m":true}',
    b'{"stream":"btcusdt@aggTrade","data":{"e":"aggTrade","E":1634,"s":"BTCUSDT","a":1,"p":"1",'
    b'"q":"2","f":1,"l":1,"T":1634,"m":true,"M":true}}',
    b'{"error":{"code":-1121,"msg":"Invalid symbol."},"id":1}',
    b'{"code":2,"msg":"Invalid request","id":1}',
    b'{"result":null,"id":1}',
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1723161258769,"T":1723161258762,'
    b'"s":"BTCUSDT","t":805376267,"p":"0","q":"0","X":"NA","m":false}}',
]  # fmt: skip
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**400), max_value=10**400)
    | st.floats()
    | st.text()
    | st.sampled_from(["BTCUSDT", "ETHUSD_PERP", "trade", "bookTicker", "-1", "1e-999999999"])
    | st.decimals(allow_nan=False, allow_infinity=False).map(str),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.sampled_from([*"eEsTtpqmMXbBaAu", "stream", "data", "code", "msg", "error"])


@st.composite
def damaged_bytes(draw: st.DrawFn) -> bytes:
    """A frame of the exchange with some bytes flipped, inserted, deleted or doubled."""
    frame = bytearray(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, max(len(frame) - 1, 0)))
        how = draw(st.sampled_from(["flip", "insert", "delete", "cut", "double"]))
        if how == "flip" and frame:
            frame[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "insert":
            frame[place:place] = draw(st.binary(max_size=6))
        elif how == "delete":
            del frame[place : place + draw(st.integers(1, 20))]
        elif how == "cut":
            del frame[place:]
        else:
            frame[place:place] = frame[max(place - 20, 0) : place]
    return bytes(frame)


@st.composite
def swapped_values(draw: st.DrawFn) -> bytes:
    """A frame of the exchange with fields replaced, added, taken away or nested."""
    message: Any = json.loads(draw(st.sampled_from(FRAMES)))
    for _ in range(draw(st.integers(1, 3))):
        inner = message.get("data")
        target = inner if isinstance(inner, dict) and draw(st.booleans()) else message
        name = draw(FIELDS)
        if draw(st.booleans()):
            target[name] = draw(JSON)
        else:
            target.pop(name, None)
    return json.dumps(message).encode(errors="surrogatepass")


NUMBERS = st.from_regex(r"[-+ ]?[0-9]{0,12}[.]?[0-9]{0,10}([eE][-+]?[0-9]{1,10})?", fullmatch=True)
ANY_FRAME = st.one_of(damaged_bytes(), swapped_values(), st.binary(), JSON.map(json.dumps).map(
    lambda text: text.encode(errors="surrogatepass")))  # fmt: skip


def parse(frames: list[bytes], market: Market = Market.SPOT) -> Parsed:
    parser = FrameParser(venue=VENUES[market], instruments=[parse_symbol("BTCUSDT", Market.SPOT)])
    return parser.parse(frames, [RECEIVED_US + n for n in range(len(frames))], first=1)


def positions(parsed: Parsed) -> list[int]:
    """The numbers of the frames that rows and rejects came from, by their receive times."""
    rows = [
        round((moment.timestamp() * 1_000_000) - RECEIVED_US) + 1
        for _, batch in parsed.rows
        for moment in batch["ingestion_timestamp"].to_pylist()
    ]
    return sorted([*rows, *(reject.position for reject in parsed.rejects)])


class Acknowledgement(msgspec.Struct, forbid_unknown_fields=True):
    result: None
    id: int | str | None


def is_acknowledgement(frame: bytes) -> bool:
    try:
        msgspec.json.decode(frame, type=Acknowledgement)
    except (ValueError, RecursionError):
        return False
    return True


@given(st.lists(ANY_FRAME, max_size=8), MARKETS)
@settings(max_examples=250, deadline=None)
def test_every_frame_is_a_row_a_reject_or_only_seen(frames: list[bytes], market: Market) -> None:
    parsed = parse(frames, market)
    replies = sum(map(is_acknowledgement, frames))
    seen = sum(batch.num_rows for _, batch in parsed.seen)
    found = positions(parsed)
    assert len(found) + seen + replies == len(frames)
    assert len(set(found)) == len(found)
    assert set(found) <= set(range(1, len(frames) + 1))
    for kind, batch in parsed.seen:
        batch.validate(full=True)
        assert (kind, batch.schema) == (TRADES, SEEN)
        assert batch.column(0).to_pylist() == [VENUES[market].exchange] * seen
    for reject in parsed.rejects:
        assert reject.raw == frames[reject.position - 1]
        assert reject.reason
        assert len(reject.reason) < 1_000
    for kind, batch in parsed.rows:
        batch.validate(full=True)
        assert batch.schema.equals(kind.arrow)
        batch.to_pylist()  # every value can be read


@given(st.lists(ANY_FRAME, max_size=6), st.data())
@settings(max_examples=150, deadline=None)
def test_good_frames_survive_among_bad_ones(bad: list[bytes], data: st.DataObject) -> None:
    good = FRAMES[:6]
    alone = parse(good)
    order = data.draw(st.permutations(range(len(good) + len(bad))))
    frames = [[*good, *bad][place] for place in order]
    parser = FrameParser(
        venue=VENUES[Market.SPOT], instruments=[parse_symbol("BTCUSDT", Market.SPOT)]
    )
    # The times tell which frame a row came from.
    parsed = parser.parse(frames, [RECEIVED_US + place for place in order], first=1)

    def rows_of(found: Parsed) -> list[str]:
        rows = [row for _, batch in found.rows for row in batch.to_pylist()]
        limit = RECEIVED_US + len(good)
        return sorted(
            repr(row)
            for row in rows
            if round(row["ingestion_timestamp"].timestamp() * 1_000_000) < limit
        )

    assert rows_of(parsed) == rows_of(alone)


@given(NUMBERS, NUMBERS)
@settings(max_examples=300, deadline=None)
def test_price_that_comes_out_is_the_one_that_went_in(price: str, quantity: str) -> None:
    frame = json.loads(FRAMES[0])
    frame["data"] |= {"p": price, "q": quantity}
    parsed = parse([json.dumps(frame).encode()])
    for _, batch in parsed.rows:
        assert batch["price"].to_pylist() == [Decimal(price)]
        assert batch["quantity"].to_pylist() == [Decimal(quantity)]


PRICES = st.decimals(min_value=0, max_value=Decimal("9999999999.99999999"), places=8)
QUANTITIES = st.decimals(min_value=0, max_value=Decimal("999999999999.99999999"), places=8)


@given(st.tuples(PRICES, QUANTITIES, PRICES, QUANTITIES))
@settings(max_examples=150, deadline=None)
def test_number_that_fits_always_comes_out(numbers: tuple[Decimal, ...]) -> None:
    frame = json.loads(FRAMES[3])
    frame["data"] |= {name: f"{each:f}" for name, each in zip("bBaA", numbers, strict=True)}
    ((_, batch),) = parse([json.dumps(frame).encode()]).rows
    names = ("bid_price", "bid_quantity", "ask_price", "ask_quantity")
    assert [batch[name][0].as_py() for name in names] == list(numbers)


@given(st.lists(st.integers(1, 253_402_300_799_999_999), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_time_that_comes_out_is_the_one_that_went_in(times: list[int]) -> None:
    frames = []
    for time in times:
        frame = json.loads(FRAMES[0])
        frame["data"]["T"] = time
        frames.append(json.dumps(frame).encode())
    parsed = parse(frames)
    as_us = [time if time >= 10**15 else time * 1_000 for time in times]
    found = [us for _, batch in parsed.rows for us in batch["timestamp"].cast("int64").to_pylist()]
    assert found == [us for us in as_us if us <= 253_402_300_799_999_999]
    assert len(found) + len(parsed.rejects) == len(times)
