"""Pages of trades from a REST API: the rows of the stream, or an invalid page."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.ingestion.binance.answers import (
    InvalidAnswer,
    TradesRequest,
    parse_aggregates,
    parse_error,
    parse_trades,
)
from k2cli.ingestion.binance.protocol import FrameParser
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.history import Page
from k2cli.ingestion.symbols import Market, parse_symbol
from k2cli.records import TRADES
from k2cli.rejects import Cause
from support.builders import Row, rest_trades, streamed
from support.restserver import aggregates_of

RECEIVED_US = 1_723_200_000_000_000
FIRST, LAST = 1000, 1009
SHARED = [name for name in TRADES.arrow.names if name not in ("vendor_data", "ingestion_timestamp")]


def request(first: int = FIRST, last: int = LAST, market: Market = Market.SPOT) -> TradesRequest:
    symbol = "BTCUSD_PERP" if market is Market.COINM else "BTCUSDT"
    venue = VENUES[market]
    return TradesRequest(venue=venue, instrument=venue.parse_symbol(symbol), first=first, last=last)


def page(rows: object, first: int = FIRST, last: int = LAST) -> Page:
    return parse_trades(json.dumps(rows).encode(), request(first, last), RECEIVED_US)


def numbers(page: Page) -> list[int]:
    found: list[int] = page.rows["source_sequence"].to_pylist()
    return found


@pytest.mark.parametrize("is_exact", [True, False])
def test_rows_are_those_of_the_stream(is_exact: bool) -> None:
    trades = rest_trades(10, is_exact=is_exact)
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=[])
    frames = [streamed("BTCUSDT", each) for each in trades]
    ((_, rows),) = parser.parse(frames, [RECEIVED_US] * 10, first=1).rows
    found = page(trades)
    assert found.rejects == ()
    assert found.known_to == LAST
    assert found.rows.schema.equals(TRADES.arrow)
    assert found.rows.select(SHARED).equals(rows.select(SHARED))
    assert set(found.rows["ingestion_timestamp"].cast("int64").to_pylist()) == {RECEIVED_US}
    for mine, theirs in zip(
        found.rows["vendor_data"].to_pylist(), rows["vendor_data"].to_pylist(), strict=True
    ):
        added = dict(mine).keys() - dict(theirs).keys()
        assert added == {"backfilled", "quote_quantity"}
        assert {key: value for key, value in mine if key not in added}.items() <= dict(
            theirs
        ).items()


def test_vendor_data_has_the_names_of_the_daily_files() -> None:
    (trade,) = rest_trades(1)
    (vendor,) = page([trade]).rows["vendor_data"].to_pylist()
    assert dict(vendor) == {
        "is_buyer_maker": "false",
        "trade_time": str(trade["time"]),
        "base_asset": "BTC",
        "quote_asset": "USDT",
        "quote_quantity": "1000.50000000",
        "is_best_match": "true",
        "backfilled": "true",
    }


def test_futures_have_other_keys() -> None:
    (trade,) = rest_trades(1, is_exact=False)
    del trade["quoteQty"], trade["isBestMatch"]
    answer = json.dumps([{**trade, "baseQty": "0.5", "isRPITrade": False}]).encode()
    found = parse_trades(answer, request(market=Market.COINM), RECEIVED_US)
    (row,) = found.rows.to_pylist()
    assert (row["exchange"], row["symbol"]) == ("BINANCE_COINM", "BTCUSD_PERP")
    vendor = dict(row["vendor_data"])
    assert vendor["base_quantity"] == "0.5"
    assert not {"is_best_match", "quote_quantity"} & vendor.keys()


@pytest.mark.parametrize(
    ("trades", "expected", "known_to"),
    [
        pytest.param(rest_trades(10), range(1000, 1010), 1009, id="all"),
        pytest.param(rest_trades(4), range(1000, 1004), 1003, id="short"),
        pytest.param(rest_trades(30), range(1000, 1010), 1009, id="more-than-asked-for"),
        pytest.param(
            rest_trades(3) + rest_trades(7, first=1005),
            [1000, 1001, 1002, 1005, 1006, 1007, 1008, 1009],
            1009,
            id="hole",
        ),
        pytest.param(rest_trades(3) + rest_trades(7, first=9000), range(1000, 1003), 1009,
                     id="hole-to-the-end"),
        pytest.param(rest_trades(10, first=2000), [], 1009, id="only-later-ones"),
        pytest.param([], [], 999, id="empty"),
    ],
)  # fmt: skip
def test_page_is_known_up_to_its_last_trade(
    trades: Sequence[Row], expected: Sequence[int], known_to: int
) -> None:
    found = page(trades)
    assert (numbers(found), found.known_to) == (list(expected), known_to)


def changed(index: int, **over: Any) -> list[Row]:
    trades = rest_trades(10)
    trades[index] = {**trades[index], **over}
    return trades


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"<html>no</html>",
        b"[",
        b"[1]",
        b"[null]",
        b'["\xff"]',
        b"null",
        b"{}",
        b'{"code":-1121,"msg":"Invalid symbol."}',
        b"[" * 100_000,
        json.dumps(list(reversed(rest_trades(10)))).encode(),
        json.dumps(rest_trades(2) + rest_trades(2)).encode(),
        json.dumps(rest_trades(3, first=999)).encode(),
        *(json.dumps(changed(5, id=value)).encode() for value in (
            1004, 0, -1, 1005.0, 1005.5, "1005", None, True, 2**63, 10**40, [1005])),
        json.dumps([{"price": "1"}]).encode(),
    ],
)  # fmt: skip
def test_page_is_invalid(answer: bytes) -> None:
    with pytest.raises(InvalidAnswer):
        parse_trades(answer, request(), RECEIVED_US)


@pytest.mark.parametrize(
    ("over", "code", "cause"),
    [
        ({"price": "-1"}, "bad_price", Cause.NEGATIVE),
        ({"price": "1e5"}, "bad_price", Cause.NOT_A_NUMBER),
        ({"price": "1.123456789"}, "bad_price", Cause.TOO_MANY_DECIMALS),
        ({"qty": "9" * 40}, "bad_quantity", Cause.DECIMAL_OVERFLOW),
        ({"qty": ""}, "bad_quantity", Cause.MISSING),
        ({"price": 61800.5}, "bad_frame", Cause.BAD_FRAME),
        ({"time": 10**14 * 9}, "bad_timestamp", Cause.TIME_OUT_OF_RANGE),
        ({"time": 10**20}, "bad_frame", Cause.BAD_FRAME),
        ({"time": "now"}, "bad_frame", Cause.BAD_FRAME),
        ({"isBuyerMaker": "yes"}, "bad_frame", Cause.BAD_FRAME),
        ({"quoteQty": "9" * 100}, "bad_frame", Cause.BAD_FRAME),
    ],
)
def test_row_that_does_not_fit_is_a_reject(over: Row, code: str, cause: Cause) -> None:
    trades = changed(4, **over)
    found = page(trades)
    (reject,) = found.rejects
    assert (reject.code, reject.fault.cause, reject.position) == (code, cause, 1004)
    assert json.loads(reject.raw) == trades[4]
    assert (reject.source, reject.received_us) == ("BINANCE/BTCUSDT", RECEIVED_US)
    assert numbers(found) == [each for each in range(1000, 1010) if each != 1004]
    assert found.known_to == 1009


@pytest.mark.parametrize("key", ["price", "qty", "time", "isBuyerMaker"])
def test_row_without_a_required_key_is_a_reject(key: str) -> None:
    trades = rest_trades(2)
    del trades[0][key]
    (reject,) = page(trades).rejects
    assert (reject.fault.cause, reject.column) == (Cause.MISSING, key)


def test_rejects_beyond_what_was_asked_for_are_left_out() -> None:
    trades = [*rest_trades(10), *rest_trades(1, first=1010, price="no")]
    found = page(trades)
    assert (found.rejects, found.known_to) == ((), 1009)


_VALUES = st.one_of(
    st.integers(), st.floats(), st.text(), st.none(), st.booleans(), st.just([]),
    st.sampled_from(["1.5", "-1", "1e400", "NaN", "\ud800"]),
)  # fmt: skip
_ROWS = st.lists(
    st.dictionaries(
        st.sampled_from(["id", "price", "qty", "time", "isBuyerMaker", "quoteQty", "isBestMatch"]),
        _VALUES,
    )
    | st.integers(990, 1020).map(lambda number: rest_trades(1, first=number)[0])
    | st.tuples(st.integers(1000, 1012), st.sampled_from(["price", "qty", "time"]), _VALUES).map(
        lambda each: {**rest_trades(1, first=each[0])[0], each[1]: each[2]}
    ),
    max_size=8,
)


@given(_ROWS)
def test_any_answer_is_a_page_or_invalid(rows: list[Any]) -> None:
    try:
        found = page(rows)
    except InvalidAnswer:
        return
    accounted = [*numbers(found), *(each.position for each in found.rejects)]
    assert sorted(accounted) == [each["id"] for each in rows if each["id"] <= LAST]
    assert numbers(found) == sorted(set(numbers(found)))
    assert FIRST - 1 <= found.known_to <= LAST


@given(st.binary(max_size=200))
def test_any_bytes_are_a_page_or_invalid(answer: bytes) -> None:
    for parse in (lambda each: parse_trades(each, request(), RECEIVED_US), parse_aggregates):
        try:
            parse(answer)
        except InvalidAnswer:
            continue
    parse_error(answer)


def test_aggregates_have_the_numbers_of_their_trades() -> None:
    trades = rest_trades(4)
    found = parse_aggregates(json.dumps(aggregates_of(trades)).encode())
    assert [(each.first, each.last) for each in found] == [(1000, 1001), (1002, 1003)]
    assert [each.time_us for each in found] == [trades[0]["time"], trades[2]["time"]]
    unnumbered = b'[{"a":1,"f":-1,"l":-1,"T":1498793709153,"p":"0","q":"0","m":true}]'
    (other,) = parse_aggregates(unnumbered)
    assert not other.is_numbered
    assert other.time_us == 1_498_793_709_153_000


@pytest.mark.parametrize(
    "over",
    [{"a": 5000}, {"f": 1001}, {"l": 1001}, {"f": -2}, {"a": "5001"}, {"T": 0}, {"f": 1002.0}],
)
def test_aggregates_are_invalid(over: Row) -> None:
    rows = aggregates_of(rest_trades(4))
    rows[1] = {**rows[1], **over}
    with pytest.raises(InvalidAnswer):
        parse_aggregates(json.dumps(rows).encode())


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b'{"code":-1121,"msg":"Invalid symbol."}', (-1121, "Invalid symbol.")),
        (b'{"code":-1}', (-1, "")),
        (b"[]", None),
        (b"<html>", None),
        (b'{"code":"x"}', None),
    ],
)
def test_error_of_the_exchange(answer: bytes, expected: tuple[int, str] | None) -> None:
    assert parse_error(answer) == expected


def test_unlisted_symbol_is_no_obstacle() -> None:
    venue = VENUES[Market.SPOT]
    instrument = parse_symbol("币安人生/USDT", Market.SPOT)
    asked = TradesRequest(venue=venue, instrument=instrument, first=FIRST, last=LAST)
    found = parse_trades(json.dumps(rest_trades(2)).encode(), asked, RECEIVED_US)
    assert found.rows["symbol"].to_pylist() == ["币安人生USDT"] * 2
