"""Rows out of Kafka and the offsets they reach: together, or not at all."""

import pyarrow as pa
import pytest

from k2cli.errors import BadData
from k2cli.records import TRADES
from k2cli.storage.lake import Lake
from k2cli.storage.offsets import (
    KEY,
    OffsetPosition,
    Partition,
    PositionMoved,
    Span,
    decode_offsets,
    encode_offsets,
)
from support.builders import table_of, trade_row

ZERO = Partition("market.crypto.trades", "u-Q", 0)
ONE = Partition("market.crypto.trades", "u-Q", 1)
AGAIN = Partition("market.crypto.trades", "made again", 0)
FUTURES = Partition("market.futures.trades", "f_8", 10)


def rows(count: int, *, first: int = 0) -> pa.Table:
    """Make trades of which none has the number of another."""
    made = [trade_row(source_sequence=first + n) for n in range(count)]
    return table_of(TRADES, made)


def held(lake: Lake) -> dict[Partition, int]:
    return dict(decode_offsets(lake.open(TRADES).stored_position(KEY)))


def spans(expected: int | None, reached: int, *partitions: Partition) -> OffsetPosition:
    span = Span(expected=expected, reached=reached)
    return OffsetPosition(dict.fromkeys(partitions, span))


def test_offsets_are_read_as_they_were_written() -> None:
    offsets = {ZERO: 7, ONE: 2**62, AGAIN: 0, FUTURES: 12}
    assert decode_offsets(encode_offsets(offsets)) == offsets
    assert decode_offsets(None) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"t":{"i":{"0":"x"}}}', '{"t":{"i":{"x":1}}}', "{"])
def test_a_damaged_position_is_an_error(text: str) -> None:
    with pytest.raises(BadData, match="Kafka position cannot be read"):
        decode_offsets(text)


def test_rows_and_offsets_come_together(lake: Lake) -> None:
    lake.open(TRADES).append(rows(3), source=spans(None, 3, ZERO, ONE))
    lake.open(TRADES).append(rows(2, first=3), source=spans(3, 5, ONE))
    lake.open(TRADES).append(rows(1, first=5), source=spans(None, 9, FUTURES))
    assert held(lake) == {ZERO: 3, ONE: 5, FUTURES: 9}
    assert lake.open(TRADES).describe().rows == 6


@pytest.mark.parametrize("expected", [None, 2, 4])
def test_a_batch_that_begins_elsewhere_is_not_written(lake: Lake, expected: int | None) -> None:
    lake.open(TRADES).append(rows(3), source=spans(None, 3, ZERO, ONE))
    mixed = OffsetPosition(
        {ONE: Span(expected=3, reached=4), ZERO: Span(expected=expected, reached=9)}
    )
    with pytest.raises(PositionMoved, match=r"trades/0 was expected at .*, but .* is at 3"):
        lake.open(TRADES).append(rows(1), source=mixed)
    assert held(lake) == {ZERO: 3, ONE: 3}
    assert lake.open(TRADES).describe().rows == 3


def test_a_topic_that_was_made_again_begins_anew(lake: Lake) -> None:
    lake.open(TRADES).append(rows(3), source=spans(None, 3, ZERO))
    lake.open(TRADES).append(rows(1), source=spans(None, 1, AGAIN))
    assert held(lake) == {ZERO: 3, AGAIN: 1}


def test_offsets_move_without_rows_but_not_without_offsets(lake: Lake) -> None:
    commit = lake.open(TRADES).append(rows(0), source=spans(None, 5, ZERO))
    assert (commit.snapshot_id is None, commit.rows) == (False, 0)
    assert held(lake) == {ZERO: 5}
    assert lake.open(TRADES).append(rows(0), source=spans(5, 5, ZERO)).snapshot_id is None
    lake.open(TRADES).append(rows(2), source=spans(5, 7, ZERO))
    assert lake.open(TRADES).describe().rows == 2


def test_streams_and_loads_carry_the_offsets_on(lake: Lake) -> None:
    lake.open(TRADES).append(rows(1), source=spans(None, 5, ZERO))
    lake.open(TRADES).append(table_of(TRADES, [trade_row()]))
    assert held(lake) == {ZERO: 5}
