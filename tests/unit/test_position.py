"""The position of a stream: what is new, what is there already, what is missing."""

import pyarrow as pa
import pytest
from builders import table_of, trade_row

from k2cli.errors import BadData
from k2cli.records import TRADES
from k2cli.storage.position import (
    MIN_RANGES,
    Advance,
    Gap,
    StreamPosition,
    decode_position,
    encode_position,
)


def trades(*numbers: int, symbol: str = "BTCUSDT") -> pa.Table:
    return table_of(TRADES, [trade_row(symbol=symbol, source_sequence=n) for n in numbers])


def numbers(advance: Advance) -> list[int]:
    return advance.rows["source_sequence"].to_pylist()


@pytest.fixture
def dense() -> StreamPosition:
    return StreamPosition(series="BINANCE", is_dense=True)


@pytest.fixture
def sparse() -> StreamPosition:
    return StreamPosition(series="BINANCE", is_dense=False)


def test_advance_from_nothing_takes_all(dense: StreamPosition) -> None:
    advance = dense.advance(None, trades(5, 6, 7))
    assert numbers(advance) == [5, 6, 7]
    assert decode_position(advance.reached) == {"BTCUSDT": ((5, 7),)}
    assert advance.duplicates == 0
    assert advance.gaps == []


def test_advance_leaves_out_what_is_held(dense: StreamPosition) -> None:
    held = encode_position({"BTCUSDT": ((5, 7),)})
    advance = dense.advance(held, trades(6, 7, 8))
    assert numbers(advance) == [8]
    assert advance.duplicates == 2
    assert decode_position(advance.reached) == {"BTCUSDT": ((5, 8),)}


def test_advance_keeps_one_of_two_in_the_same_batch(dense: StreamPosition) -> None:
    advance = dense.advance(None, trades(5, 6, 5, 6))
    assert numbers(advance) == [5, 6]
    assert advance.duplicates == 2


def test_advance_takes_late_rows_into_their_hole(dense: StreamPosition) -> None:
    held = encode_position({"BTCUSDT": ((1, 5), (8, 9))})
    advance = dense.advance(held, trades(7, 6, 9))
    assert numbers(advance) == [7, 6]
    assert decode_position(advance.reached) == {"BTCUSDT": ((1, 9),)}
    assert advance.gaps == []


def test_advance_takes_rows_older_than_all(dense: StreamPosition) -> None:
    held = encode_position({"BTCUSDT": ((100, 200),)})
    advance = dense.advance(held, trades(1, 2))
    assert numbers(advance) == [1, 2]
    assert decode_position(advance.reached) == {"BTCUSDT": ((1, 2), (100, 200))}


def test_advance_reports_a_gap_once(dense: StreamPosition) -> None:
    first = dense.advance(None, trades(5, 8, 9, 12))
    assert first.gaps == [Gap("BTCUSDT", first=6, last=11, missing=4)]
    second = dense.advance(first.reached, trades(13))
    assert second.gaps == []


def test_numbers_passed_before_the_run_are_a_gap_of_their_own(dense: StreamPosition) -> None:
    held = encode_position({"BTCUSDT": ((1, 5),)})
    first = dense.advance(held, trades(8, 9, 12))
    assert first.gaps == [
        Gap("BTCUSDT", first=6, last=7, missing=2, is_restart=True),
        Gap("BTCUSDT", first=10, last=11, missing=2),
    ]
    dense.committed(first)
    dense.interrupted()
    assert dense.advance(first.reached, trades(14)).gaps == [Gap("BTCUSDT", 13, 13, 1)]


def test_advance_tells_symbols_apart(dense: StreamPosition) -> None:
    held = encode_position({"BTCUSDT": ((1, 5),), "SOLUSDT": ((7, 7),)})
    rows = pa.concat_tables([trades(5, 6), trades(5, 6, symbol="ETHUSDT")])
    advance = dense.advance(held, rows)
    assert advance.rows.select(["symbol", "source_sequence"]).to_pylist() == [
        {"symbol": "BTCUSDT", "source_sequence": 6},
        {"symbol": "ETHUSDT", "source_sequence": 5},
        {"symbol": "ETHUSDT", "source_sequence": 6},
    ]
    assert decode_position(advance.reached) == {
        "BTCUSDT": ((1, 6),),
        "ETHUSDT": ((5, 6),),
        "SOLUSDT": ((7, 7),),
    }


def test_sparse_numbers_between_first_and_last_count_as_seen(sparse: StreamPosition) -> None:
    advance = sparse.advance(None, trades(10, 15, 30))
    assert decode_position(advance.reached) == {"BTCUSDT": ((10, 30),)}
    assert advance.gaps == []
    assert numbers(sparse.advance(advance.reached, trades(15, 30, 31))) == [31]


def test_sparse_numbers_join_while_uninterrupted(sparse: StreamPosition) -> None:
    first = sparse.advance(None, trades(10, 30))
    sparse.committed(first)
    assert decode_position(sparse.advance(first.reached, trades(40)).reached) == {
        "BTCUSDT": ((10, 40),)
    }


def test_sparse_numbers_do_not_join_over_an_interruption(sparse: StreamPosition) -> None:
    first = sparse.advance(None, trades(10, 30))
    sparse.committed(first)
    sparse.interrupted()
    second = sparse.advance(first.reached, trades(40))
    assert decode_position(second.reached) == {"BTCUSDT": ((10, 30), (40, 40))}
    # What another writer saw in between is welcome.
    assert numbers(sparse.advance(second.reached, trades(35))) == [35]


def test_lowest_holes_close_when_there_are_too_many(dense: StreamPosition) -> None:
    many = {f"S{n}USDT": ((1, 1),) for n in range(5_000)}
    spread = trades(*range(0, 100, 10))
    ranges = decode_position(dense.advance(encode_position(many), spread).reached)["BTCUSDT"]
    assert ranges == ((0, 60), (70, 70), (80, 80), (90, 90))
    assert len(ranges) == MIN_RANGES


def test_position_of_2000_symbols_is_small() -> None:
    position = {
        f"{n:04x}USDT": ((3_735_685_016 + n * 7_919, 3_735_685_016 + n * 7_919 + n),)
        for n in range(2_000)
    }
    text = encode_position(position)
    assert decode_position(text) == position
    assert len(text) < 32_000


@pytest.mark.parametrize("text", ["", "z1:", "z1:!!", "z1:" + "0" * 40, "x9:abc"])
def test_damaged_position_is_bad_data(text: str) -> None:
    with pytest.raises(BadData, match="stream position"):
        decode_position(text)
