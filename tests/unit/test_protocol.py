"""Stream names and URLs out, frames in: each frame is one row or one reject."""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.errors import UsageError
from k2cli.ingestion.binance.protocol import SEEN, FrameParser
from k2cli.ingestion.binance.venues import VENUES, Channel, stream_url
from k2cli.ingestion.exchange import Parsed
from k2cli.ingestion.listings import home_list
from k2cli.ingestion.symbols import Instrument, Market, parse_symbol
from k2cli.records import QUOTES, TRADES, RecordKind

RECEIVED_US = 1_723_161_350_000_000
SPOT_TRADE = json.loads(
    '{"e":"trade","E":1723161348056,"s":"BTCUSDT","t":3735685016,'
    '"p":"61800.12000000","q":"0.00010000","T":1723161348055,"m":true,"M":true}'
)
OLD_TRADE = {**SPOT_TRADE, "b": 20720542158, "a": 20720542592}
FUTURES_TRADE = json.loads(
    '{"e":"trade","E":1721347022708,"T":1721347022707,"s":"ETHUSDT","t":4217896584,'
    '"p":"3424.98","q":"0.007","X":"MARKET","m":false}'
)
SPOT_QUOTE = json.loads(
    '{"u":499869768,"s":"NKNUSDT","b":"0.35210000","B":"672.00000000",'
    '"a":"0.35260000","A":"3199.00000000"}'
)
FUTURES_QUOTE = json.loads(
    '{"e":"bookTicker","u":4984028370881,"s":"BTCUSDT","b":"63943.90","B":"46.371",'
    '"a":"63944.00","A":"0.095","T":1721347022507,"E":1721347022510}'
)


def short(value: object) -> str:
    """Name a parameter, however large it is."""
    return repr(value)[:30]


def combined(payload: object, stream: str = "btcusdt@trade") -> bytes:
    return json.dumps({"stream": stream, "data": payload}).encode()


def parse(*frames: bytes, market: Market = Market.SPOT, symbols: Sequence[str] = ()) -> Parsed:
    instruments = [parse_symbol(symbol, market) for symbol in symbols]
    parser = FrameParser(venue=VENUES[market], instruments=instruments)
    times = [RECEIVED_US + place for place in range(len(frames))]
    return parser.parse(frames, times, first=1)


def rows_of(parsed: Parsed, kind: RecordKind) -> list[dict[str, Any]]:
    batches = [rows for found, rows in parsed.rows if found is kind]
    return [row for batch in batches for row in batch.to_pylist()]


def row_of(payload: object, kind: RecordKind = TRADES, **over: Any) -> dict[str, Any]:
    parsed = parse(combined(payload), **over)
    assert parsed.rejects == []
    (row,) = rows_of(parsed, kind)
    return row


def reason_of(frame: bytes) -> str:
    """The reason why a frame is rejected; as it came, and alone."""
    parsed = parse(frame)
    assert parsed.rows == []
    (reject,) = parsed.rejects
    assert (reject.raw, reject.position, reject.received_us) == (frame, 1, RECEIVED_US)
    return reject.reason


# --- names and URLs


def test_stream_names_are_lower_case_and_keep_the_channel_as_it_is() -> None:
    venue = VENUES[Market.SPOT]
    instruments = [venue.parse_symbol(text) for text in ("BTC/USDT", "ETHUSD_PERP")]
    assert [venue.stream_name(each, channel) for each in instruments for channel in Channel] == [
        *("btcusdt@trade", "btcusdt@bookTicker"),
        *("ethusd_perp@trade", "ethusd_perp@bookTicker"),
    ]


@pytest.mark.parametrize(
    ("base", "has_microseconds", "url"),
    [
        ("wss://x.y:9443", True, "wss://x.y:9443/stream?streams=a@trade/b@trade&timeUnit=MICROSECOND"),
        ("wss://x.y:9443", False, "wss://x.y:9443/stream?streams=a@trade/b@trade"),
        ("ws://127.0.0.1:1/", False, "ws://127.0.0.1:1/stream?streams=a@trade/b@trade"),
        ("ws://[::1]:1/proxy", False, "ws://[::1]:1/proxy/stream?streams=a@trade/b@trade"),
    ],
)  # fmt: skip
def test_stream_url_is_the_combined_path(base: str, has_microseconds: bool, url: str) -> None:
    assert stream_url(base, ["a@trade", "b@trade"], has_microseconds=has_microseconds) == url


def test_names_that_are_not_ascii_are_percent_encoded_in_the_url() -> None:
    venue = VENUES[Market.SPOT]
    instruments = [venue.parse_symbol(text) for text in ("币安人生USDT", "ßUSDT", "ΩUSDT")]
    names = [venue.stream_name(each, Channel.TRADE) for each in instruments]
    assert names == ["币安人生usdt@trade", "ßusdt@trade", "Ωusdt@trade"]  # ASCII letters alone
    url = stream_url("wss://x.y", names, has_microseconds=False)
    assert url.isascii()
    assert url.endswith("streams=%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@trade/%C3%9Fusdt@trade/"
                        "%CE%A9usdt@trade")  # fmt: skip


@pytest.mark.parametrize(
    "base",
    [
        "ws://a..b",
        f"ws://{'a' * 64}.b",
        "ws://[::1",
        "ws://x.y:99999",
        "wss://x.y:port",
        "ws://[x]",
    ],
)
def test_stream_url_that_cannot_be_one_is_a_usage_error(base: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--url {base}: ")):
        stream_url(base, [], has_microseconds=False)


@pytest.mark.parametrize("base", ["ws://[::1]:9443", "wss://币安.example", "ws://a-b.c"])
def test_stream_url_of_unusual_hosts(base: str) -> None:
    assert stream_url(base, ["x"], has_microseconds=False) == f"{base}/stream?streams=x"


@pytest.mark.parametrize("base", ["", "127.0.0.1:9443", "http://x.y", "ws://", "ws://x.y?a=b"])
def test_stream_url_of_no_websocket_base_is_a_usage_error(base: str) -> None:
    with pytest.raises(UsageError, match="is not a WebSocket URL"):
        stream_url(base, ["a@trade"], has_microseconds=False)


# --- rows


def test_spot_trade_becomes_a_row() -> None:
    row = row_of(SPOT_TRADE)
    assert row.pop("message_id")
    assert dict(row.pop("vendor_data")) == {
        "is_buyer_maker": "true",
        "event_type": "trade",
        "event_time": "1723161348056",
        "trade_time": "1723161348055",
        "base_asset": "BTC",
        "quote_asset": "USDT",
        "is_best_match": "true",
    }
    assert row == {
        "trade_id": "BINANCE-3735685016",
        "symbol": "BTCUSDT",
        "exchange": "BINANCE",
        "asset_class": "crypto",
        "timestamp": datetime(2024, 8, 8, 23, 55, 48, 55_000, tzinfo=UTC),
        "price": Decimal("61800.12"),
        "quantity": Decimal("0.0001"),
        "currency": "USDT",
        "side": "SELL",
        "trade_conditions": [],
        "source_sequence": 3735685016,
        "ingestion_timestamp": datetime(2024, 8, 8, 23, 55, 50, tzinfo=UTC),
        "platform_sequence": None,
    }


def test_spot_quote_becomes_a_row_of_the_time_it_came() -> None:
    row = row_of(SPOT_QUOTE, QUOTES)
    assert row.pop("message_id")
    assert dict(row.pop("vendor_data")) == {"base_asset": "NKN", "quote_asset": "USDT"}
    assert row == {
        "quote_id": "BINANCE-499869768",
        "symbol": "NKNUSDT",
        "exchange": "BINANCE",
        "asset_class": "crypto",
        "timestamp": datetime(2024, 8, 8, 23, 55, 50, tzinfo=UTC),
        "bid_price": Decimal("0.3521"),
        "bid_quantity": Decimal(672),
        "ask_price": Decimal("0.3526"),
        "ask_quantity": Decimal(3199),
        "currency": "USDT",
        "source_sequence": 499869768,
        "ingestion_timestamp": datetime(2024, 8, 8, 23, 55, 50, tzinfo=UTC),
        "platform_sequence": None,
    }


def test_futures_trade_carries_the_order_type() -> None:
    row = row_of(FUTURES_TRADE, market=Market.USDM)
    vendor = dict(row["vendor_data"])
    assert (row["exchange"], row["asset_class"]) == ("BINANCE_USDM", "futures")
    assert row["trade_id"] == "BINANCE_USDM-4217896584"
    assert vendor["order_type"] == "MARKET"
    assert "is_best_match" not in vendor


def test_futures_quote_keeps_the_times_of_the_exchange() -> None:
    row = row_of(FUTURES_QUOTE, QUOTES, market=Market.USDM)
    assert row["timestamp"] == datetime(2024, 7, 18, 23, 57, 2, 507_000, tzinfo=UTC)
    assert dict(row["vendor_data"]) == {
        "event_type": "bookTicker",
        "event_time": "1721347022510",
        "transaction_time": "1721347022507",
        "base_asset": "BTC",
        "quote_asset": "USDT",
    }


def test_old_trade_carries_the_order_ids() -> None:
    vendor = dict(row_of(OLD_TRADE)["vendor_data"])
    assert vendor["buyer_order_id"] == "20720542158"
    assert vendor["seller_order_id"] == "20720542592"


@pytest.mark.parametrize(("is_maker", "side"), [(True, "SELL"), (False, "BUY")])
def test_side_is_who_took_liquidity(is_maker: bool, side: str) -> None:
    row = row_of({**SPOT_TRADE, "m": is_maker})
    assert row["side"] == side
    assert dict(row["vendor_data"])["is_buyer_maker"] == str(is_maker).lower()


def test_optional_fields_of_one_row_do_not_leak_into_its_neighbours() -> None:
    parsed = parse(
        combined({**SPOT_TRADE, "t": 1, "b": 7, "a": 8}),
        combined({**SPOT_TRADE, "t": 2, "X": "NA"}),
        combined({name: value for name, value in SPOT_TRADE.items() if name != "M"}),
    )
    optional = {"buyer_order_id", "seller_order_id", "order_type", "is_best_match"}
    found = [
        {key: value for key, value in row["vendor_data"] if key in optional}
        for row in rows_of(parsed, TRADES)
    ]
    assert found == [
        {"buyer_order_id": "7", "seller_order_id": "8", "is_best_match": "true"},
        {"order_type": "NA", "is_best_match": "true"},
        {},
    ]


@pytest.mark.parametrize(
    ("time", "us"),
    [
        (1723161348055, 1723161348055_000),
        (1723161348055_123, 1723161348055_123),
        (999_999_999_999, 999_999_999_999_000),  # 2001 in milliseconds
        (10**15, 10**15),  # 2001 in microseconds
    ],
)
def test_unit_of_a_time_is_told_by_its_magnitude(time: int, us: int) -> None:
    (_, rows), *_ = parse(combined({**SPOT_TRADE, "T": time})).rows
    assert rows["timestamp"].cast(pa.int64()).to_pylist() == [us]


def test_unit_of_a_time_is_told_for_each_value() -> None:
    times = [1723161348055, 1723161348055_123, 1723161348056]
    (_, rows), *_ = parse(*(combined({**SPOT_TRADE, "T": time}) for time in times)).rows
    expected = [1723161348055_000, 1723161348055_123, 1723161348056_000]
    assert rows["timestamp"].cast(pa.int64()).to_pylist() == expected
    assert [dict(v.as_py())["trade_time"] for v in rows["vendor_data"]] == [str(t) for t in times]


def test_quote_without_a_time_leaves_the_times_of_its_neighbours() -> None:
    bare = {name: value for name, value in FUTURES_QUOTE.items() if name not in "TE"}
    parsed = parse(combined(FUTURES_QUOTE), combined(bare), market=Market.USDM)
    (_, rows), *_ = parsed.rows
    expected = [1721347022507_000, RECEIVED_US + 1]
    assert rows["timestamp"].cast(pa.int64()).to_pylist() == expected


def test_raw_frame_without_envelope_is_a_row_too() -> None:
    parsed = parse(json.dumps(SPOT_TRADE).encode(), json.dumps(SPOT_QUOTE).encode())
    assert [row["trade_id"] for row in rows_of(parsed, TRADES)] == ["BINANCE-3735685016"]
    assert [row["quote_id"] for row in rows_of(parsed, QUOTES)] == ["BINANCE-499869768"]


def test_unknown_fields_are_passed_over() -> None:
    row = row_of({**SPOT_TRADE, "new": {"deep": [1, None]}, "z": "more"})
    assert row["trade_id"] == "BINANCE-3735685016"


def test_currency_is_the_quote_asset_of_each_symbol() -> None:
    symbols = ["BTCUSDT", "ETHBTC", "BNBUSD", "OMGBUSD"]
    parsed = parse(*(combined({**SPOT_TRADE, "s": symbol}) for symbol in symbols))
    found = [(row["symbol"], row["currency"]) for row in rows_of(parsed, TRADES)]
    assert found == list(zip(symbols, ["USDT", "BTC", "USD", "BUSD"], strict=True))


def test_split_that_the_user_wrote_decides_the_currency() -> None:
    row = row_of({**SPOT_TRADE, "s": "FOOBAR"}, symbols=["FOO/BAR"])
    assert (row["currency"], dict(row["vendor_data"])["base_asset"]) == ("BAR", "FOO")


def test_message_id_is_a_function_of_the_trade() -> None:
    again = {**SPOT_TRADE, "E": 1, "M": False}
    assert row_of(SPOT_TRADE)["message_id"] == row_of(again)["message_id"]


def test_message_id_differs_between_trades_symbols_markets_and_kinds() -> None:
    quote = {**SPOT_QUOTE, "s": "BTCUSDT", "u": SPOT_TRADE["t"]}
    ids = [
        *(row_of(SPOT_TRADE, market=market)["message_id"] for market in Market),
        row_of({**SPOT_TRADE, "t": 3735685017})["message_id"],
        row_of({**SPOT_TRADE, "s": "ETHUSDT"})["message_id"],
        row_of(quote, QUOTES)["message_id"],
    ]
    assert len(set(ids)) == len(ids)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9999999999.99999999", "9999999999.99999999"),
        ("0.00000001", "0.00000001"),
        ("0", "0"),
        ("12", "12"),
        ("1.0000000000", "1"),
        ("0000000000000000000001.5", "1.5"),
    ],
)
def test_price_at_the_edge_stays_exact(text: str, value: str) -> None:
    assert row_of({**SPOT_TRADE, "p": text})["price"] == Decimal(value)


# --- rejects


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        pytest.param(b"", "truncated", id="empty"),
        pytest.param(b"not json at all", "not a frame", id="not-json"),
        pytest.param(b"\xff\xfe{\x00\x80}", "not a frame", id="random-bytes"),
        pytest.param(b"\xef\xbb\xbf{}", "not a frame", id="bom"),
        pytest.param(b"null", "got `null`", id="null"),
        pytest.param(b"[1,2,3]", "got `array`", id="array"),
        pytest.param(b'"text"', "got `str`", id="string"),
        pytest.param(b"17", "got `int`", id="number"),
        pytest.param(b"{}", "neither a trade nor a quote", id="empty-object"),
        pytest.param(b'{"data":{}}', "neither a trade nor a quote", id="empty-data"),
        pytest.param(b'{"data":null}', "got `null`", id="null-data"),
        pytest.param(b'{"data":[]}', "got `array`", id="array-data"),
        pytest.param(b'{"result":[],"id":1}', "neither a trade nor a quote", id="list-reply"),
        pytest.param(b'{"result":null}', "neither a trade nor a quote", id="result"),
        pytest.param(combined(SPOT_TRADE)[:-30], "truncated", id="trade-cut-off"),
        pytest.param(combined(SPOT_TRADE) + b"}", "trailing", id="trade-with-a-brace-too-many"),
        pytest.param(
            combined(SPOT_TRADE).replace(b'"trade"', b'"tr\xffde"'), "utf-8", id="event-not-utf8"
        ),
        pytest.param(
            combined(SPOT_TRADE).replace(b'"BTCUSDT"', b'"\\ud800"'),
            "not a frame",
            id="escaped-lone-surrogate",
        ),
        pytest.param(
            combined(SPOT_TRADE).replace(b'"BTCUSDT"', b'"\xed\xa0\x80"'),
            "utf-8",
            id="encoded-lone-surrogate",
        ),
        pytest.param(
            combined({**SPOT_TRADE, "e": "aggTrade"}),
            "unknown event 'aggTrade'",
            id="unknown-event",
        ),
        pytest.param(
            combined({**SPOT_TRADE, "e": "x" * 1_000_000}),
            "unknown event 'xxxxx",
            id="event-of-a-megabyte",
        ),
        pytest.param(combined({**SPOT_TRADE, "e": None}), "got `null`", id="event-null"),
    ],
)
def test_frame_that_is_no_message_is_rejected(frame: bytes, reason: str) -> None:
    found = reason_of(frame)
    assert reason in found
    assert len(found) < 300


@pytest.mark.parametrize("frame", [b'{"result":null,"id":1}', b'{"id": "a", "result": null}'])
def test_acknowledgement_is_neither_a_row_nor_a_reject(frame: bytes) -> None:
    parsed = parse(combined(SPOT_TRADE), frame, combined(SPOT_TRADE))
    assert (parsed.rejects, parsed.seen) == ([], ())
    assert len(rows_of(parsed, TRADES)) == 2


def test_more_instruments_are_split_as_the_exchange_does() -> None:
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=[])
    frame = combined({**SPOT_TRADE, "s": "AAABBB"})
    (reject,) = parser.parse([frame], [RECEIVED_US], first=1).rejects
    assert "cannot infer the quote asset of AAABBB" in reject.reason
    parser.add([Instrument("AAABBB", "AAAB", "BB")])
    parsed = parser.parse([frame], [RECEIVED_US], first=1)
    (row,) = rows_of(parsed, TRADES)
    assert row["currency"] == "BB"


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ({"code": 2, "msg": "bad", "id": 1}, "the exchange reports error 2: bad"),
        ({"id": 1, "error": {"code": -2, "msg": "No."}}, "the exchange reports error -2: No."),
        ({"code": 5}, "the exchange reports error 5: "),
        ({"code": "5"}, "neither a trade nor a quote"),
        ({"error": None}, "neither a trade nor a quote"),
    ],
)
def test_error_of_the_exchange_is_the_reason(frame: object, reason: str) -> None:
    assert reason_of(json.dumps(frame).encode()) == reason


@pytest.mark.parametrize(
    "frame",
    [
        b'{"code":1,"msg":"\xff"}',
        b'{"error":{"code":1,"msg":"\xff\xfe"}}',
        b'{"code":1' + b"0" * 5_000 + b',"msg":"x"}',
        b'{"code":1e400}',
    ],
    ids=["message-not-utf8", "nested-message-not-utf8", "code-too-long", "code-too-large"],
)
def test_unreadable_error_of_the_exchange_is_rejected(frame: bytes) -> None:
    assert reason_of(frame) == "neither a trade nor a quote"


@pytest.mark.parametrize(
    "opening",
    [b"[", b'{"x":', b'{"data":', b'{"error":'],
    ids=["arrays", "objects", "data", "errors"],
)
def test_nesting_of_any_depth_is_rejected(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"
    # Around Python's own limit, where one decoder may give up and another one not; and far above.
    for depth in (*range(960, 1010), 100_000):
        nested = opening * depth + b"1" + closing * depth
        assert reason_of(nested)
        assert reason_of(b'{"data":{"x":' + nested + b"}}")


@pytest.mark.parametrize("name", ["E", "T", "s", "t", "p", "q", "m"])
def test_trade_that_lacks_a_field_is_rejected(name: str) -> None:
    payload = {key: value for key, value in SPOT_TRADE.items() if key != name}
    assert reason_of(combined(payload)) == f"trades: lacks {name}"


@pytest.mark.parametrize("name", ["s", "b", "B", "a", "A"])
def test_quote_that_lacks_a_field_is_rejected(name: str) -> None:
    payload = {key: value for key, value in SPOT_QUOTE.items() if key != name}
    assert reason_of(combined(payload)) == f"quotes: lacks {name}"


@pytest.mark.parametrize(
    ("name", "json_value"),
    [
        *(("E", '"1723161348056"'), ("E", "0"), ("E", "-1"), ("E", "null"), ("E", "1" + 18 * "0")),
        *(("T", "1.5"), ("T", "true"), ("T", "null"), ("T", "1" * 400), ("T", "9" * 15)),
        *(("t", "-1"), ("t", str(2**62)), ("t", str(2**64)), ("t", '"17"'), ("t", "1e400")),
        *(("t", "1.5"), ("t", "true"), ("p", "61800.12"), ("p", "61800"), ("p", "null")),
        *(("p", "[]"), ("q", "{}"), ("q", "true"), ("m", "1"), ("m", '"true"'), ("m", "null")),
        *(("M", "0"), ("X", "1"), ("b", "1" * 5_000), ("s", "null"), ("s", "5"), ("s", '""')),
        *(("s", '"btcusdt"'), ("s", '"BTC/USDT"'), ("s", '"FOOBAR"'), ("s", '"BTCUSDT "')),
        ("s", f'"{"X" * 5_000_000}"'),
    ],
    ids=short,
)
def test_trade_with_an_impossible_value_is_rejected(name: str, json_value: str) -> None:
    marked = combined({**SPOT_TRADE, name: "?"})
    assert len(reason_of(marked.replace(b'"?"', json_value.encode()))) < 300


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", ".", "-", "1.2.3", "1,5", "1_000", "0x10", "NaN", "inf", "-1", "-0.00000001"),
        *("+1", " 1", "1 ", "1\n", "1000000000000", "9999999999999.99999999", "0.000000001"),
        *("1.000000001", "٣", "1e5", "1e-9", "1e999999999", "1e99999999999999999999"),
        # Arrow's parser reads out of bounds for these: wrong values, or the end of the process.
        *("1e-50", "1e-1000", "1e-999999999", "0e-999999999", "0." + "0" * 100 + "1"),
        *("0" * 5_000_000, "9" * 5_000),
    ],
    ids=[
        "empty",
        "space",
        "point",
        "minus",
        "two-points",
        "comma",
        "underscore",
        "hexadecimal",
        "nan",
        "infinity",
        "negative",
        "least-negative",
        "plus-sign",
        "leading-space",
        "trailing-space",
        "newline",
        "too-high",
        "largest-too-high",
        "too-exact",
        "one-too-exact",
        "arabic-digit",
        "exponent",
        "negative-exponent",
        "large-exponent",
        "huge-exponent",
        "tiny",
        "tinier",
        "tiniest",
        "zero-with-tiny-exponent",
        "hundred-decimals",
        "five-million-zeros",
        "five-thousand-nines",
    ],
)
@pytest.mark.parametrize("name", ["p", "q"])
def test_number_that_does_not_fit_is_rejected(name: str, text: str) -> None:
    reason = reason_of(combined({**SPOT_TRADE, name: text}))
    assert f"trades: {name} {text[:80]!r} does not fit" in reason
    assert len(reason) < 400


def test_quantities_may_be_larger_than_prices() -> None:
    large = "999999999999.99999999"
    assert row_of({**SPOT_TRADE, "q": large})["quantity"] == Decimal(large)
    row = row_of({**SPOT_QUOTE, "B": large, "A": "35962838485.00"}, QUOTES)
    assert row["bid_quantity"] == Decimal(large)
    assert row["ask_quantity"] == Decimal("35962838485")
    for payload, name in ((SPOT_TRADE, "p"), (SPOT_QUOTE, "b"), (SPOT_QUOTE, "a")):
        reason = reason_of(combined({**payload, name: "10000000000"}))
        assert f"{name} '10000000000' does not fit decimal128(18, 8)" in reason


@pytest.mark.parametrize("name", ["b", "B", "a", "A"])
@pytest.mark.parametrize("value", ["-1", "1e-999999999", "x", 5])
def test_number_of_a_quote_that_does_not_fit_is_rejected(name: str, value: object) -> None:
    assert name in reason_of(combined({**SPOT_QUOTE, name: value}))


def test_last_of_two_equal_keys_counts() -> None:
    frame = combined(SPOT_TRADE).replace(b'"p": ', b'"p": "1.5", "p": ')
    (row,) = rows_of(parse(frame), TRADES)
    assert row["price"] == Decimal("61800.12")


def test_bad_frames_among_good_ones_cost_only_themselves() -> None:
    bad = [
        b"",
        b"\xff",
        combined({**SPOT_TRADE, "p": "-1"}),
        combined({**SPOT_TRADE, "s": "FOOBAR"}),
        combined({**SPOT_TRADE, "T": 999_999_999_999_999}),
        combined({**SPOT_QUOTE, "A": "x"}),
        combined({name: value for name, value in SPOT_TRADE.items() if name != "m"}),
    ]
    frames = []
    for number, frame in enumerate(bad):
        frames += [combined({**SPOT_TRADE, "t": number}), frame]
        frames.append(combined({**SPOT_QUOTE, "u": number}))
    parsed = parse(*frames)
    assert [row["source_sequence"] for row in rows_of(parsed, TRADES)] == list(range(7))
    assert [row["source_sequence"] for row in rows_of(parsed, QUOTES)] == list(range(7))
    assert [reject.raw for reject in parsed.rejects] == bad
    assert [reject.position for reject in parsed.rejects] == [2 + 3 * n for n in range(7)]
    received = [row["ingestion_timestamp"].microsecond for row in rows_of(parsed, TRADES)]
    assert received == [3 * n for n in range(7)]


# --- symbols


def test_symbol_that_is_not_ascii_becomes_a_row() -> None:
    row = row_of(SPOT_TRADE | {"s": "币安人生USDT"})
    assert (row["symbol"], row["currency"]) == ("币安人生USDT", "USDT")
    assert dict(row["vendor_data"])["base_asset"] == "币安人生"


def test_symbol_in_another_normal_form_is_the_same_symbol() -> None:
    one, other = (row_of(SPOT_TRADE | {"s": symbol}) for symbol in ("éUSDT", "e\u0301USDT"))
    assert one["symbol"] == "éUSDT"
    assert other["symbol"] == "éUSDT"
    assert one["message_id"] == other["message_id"]


@pytest.mark.parametrize(
    "symbol",
    ["btcusdt", "币安人生usdt", "BTC/USDT", "BTC USDT"],
    ids=["lower-case", "chinese-lower-case", "with-a-slash", "with-a-space"],
)
def test_symbol_that_the_exchange_does_not_write_so_is_rejected(symbol: str) -> None:
    assert "symbol" in reason_of(combined(SPOT_TRADE | {"s": symbol}))


def test_list_that_is_refreshed_while_streaming_is_used_at_once(tmp_path: Path) -> None:
    guess = parse_symbol("FOOBTC", Market.SPOT, tmp_path)
    given = parse_symbol("BAR/BTC", Market.SPOT)
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=[guess, given], home=tmp_path)

    def currencies() -> list[str]:
        frames = [combined(SPOT_TRADE | {"s": symbol}) for symbol in ("FOOBTC", "BARBTC")]
        rows = rows_of(parser.parse(frames, [RECEIVED_US] * 2, first=1), TRADES)
        return [row["currency"] for row in rows]

    assert currencies() == ["BTC", "BTC"]
    path = home_list(tmp_path, Market.SPOT)
    path.parent.mkdir()
    path.write_text("spot\t2026-02-01\tOBTC\tFO\nspot\t2026-02-01\tRBTC\tBA\n")
    assert currencies() == ["OBTC", "BTC"]  # a split that the user wrote stays


# --- order types of futures

USDM_TRADE = {
    "e": "trade",
    "E": 1723161348056,
    "T": 1723161348055,
    "s": "BTCUSDT",
    "t": 101,
    "p": "61800.10",
    "q": "0.002",
    "X": "MARKET",
    "m": True,
}
NO_TRADE = USDM_TRADE | {"t": 102, "p": "0", "q": "0", "X": "NA"}


@pytest.mark.parametrize(
    ("order", "conditions"),
    [
        ("MARKET", []),
        ("INSURANCE_FUND", ["INSURANCE_FUND"]),
        ("ADL", ["ADL"]),
        ("SOMETHING_NEW", ["SOMETHING_NEW"]),
        ("NA", ["NA"]),  # with a price and a quantity it is a trade
        ("", []),
    ],
)
def test_order_type_is_a_condition_unless_it_is_the_usual_one(
    order: str, conditions: list[str]
) -> None:
    row = row_of(USDM_TRADE | {"X": order}, market=Market.USDM)
    assert row["trade_conditions"] == conditions
    assert dict(row["vendor_data"])["order_type"] == order


def test_order_types_of_one_chunk_stay_with_their_rows() -> None:
    orders = ["MARKET", "ADL", "MARKET", "INSURANCE_FUND", "ADL", None]
    payloads = [USDM_TRADE | {"t": n, "X": order} for n, order in enumerate(orders)]
    del payloads[-1]["X"]
    parsed = parse(*map(combined, payloads), market=Market.USDM)
    assert [row["trade_conditions"] for row in rows_of(parsed, TRADES)] == [
        *([], ["ADL"], [], ["INSURANCE_FUND"], ["ADL"], []),
    ]


@pytest.mark.parametrize(
    "over",
    [
        *({}, {"p": "0.00", "q": "0.000"}, {"p": "00"}, {"q": "0.5"}, {"p": "61800.1"}),
        *({"p": ".0", "q": "0."},),
    ],
)
@pytest.mark.parametrize("others", [[], [USDM_TRADE], [USDM_TRADE, {"e": "unknown"}]])
def test_event_without_a_trade_is_no_row_but_its_id_is_seen(
    over: dict[str, str], others: list[dict[str, Any]]
) -> None:
    frames = [combined(payload) for payload in (*others, NO_TRADE | over)]
    parsed = parse(*frames, market=Market.USDM)
    trades = [row["source_sequence"] for row in rows_of(parsed, TRADES)]
    assert trades == [101] * others.count(USDM_TRADE)
    assert len(parsed.rejects) == others.count({"e": "unknown"})
    ((kind, seen),) = parsed.seen
    assert kind is TRADES
    assert seen.schema == SEEN
    assert seen.to_pylist() == [
        {"exchange": "BINANCE_USDM", "symbol": "BTCUSDT", "source_sequence": 102}
    ]


def test_nothing_is_seen_where_all_are_trades() -> None:
    parsed = parse(combined(USDM_TRADE), combined(USDM_TRADE | {"X": "ADL"}))
    assert parsed.seen == ()


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"t": None}, "lacks t"),
        ({"s": None}, "lacks s"),
        ({"s": "???"}, "is not a symbol"),
        ({"q": "abc"}, "'abc' does not fit"),
        ({"p": "."}, "'.' does not fit"),
        ({"p": "-0", "q": "-1"}, "does not fit"),
    ],
)
def test_broken_event_without_a_trade_is_rejected(over: dict[str, Any], reason: str) -> None:
    payload = {name: value for name, value in (NO_TRADE | over).items() if value is not None}
    parsed = parse(combined(payload), combined(USDM_TRADE), market=Market.USDM)
    assert [reject.position for reject in parsed.rejects] == [1]
    assert reason in parsed.rejects[0].reason
    assert parsed.seen == ()
    assert len(rows_of(parsed, TRADES)) == 1
