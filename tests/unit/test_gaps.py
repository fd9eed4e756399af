"""Numbers that a stream skipped."""

import numpy as np
import pytest

from k2cli.ranges import ranges_of
from k2cli.records import TRADES
from k2cli.storage.gaps import Gap, GapWatch
from k2cli.storage.position import Position, Series, Stored
from support.builders import table_of, trade_row

BTC = Series("BINANCE", "BTCUSDT")


def stored(*numbers: int) -> Stored:
    return Stored(exact=ranges_of(np.array(numbers, dtype=np.int64)))


@pytest.fixture
def watch() -> GapWatch:
    return GapWatch("BINANCE")


def test_a_gap_is_reported_once(watch: GapWatch) -> None:
    first = stored(5, 8, 9, 12)
    assert watch.gaps(Position(), {BTC: first}) == [Gap("BTCUSDT", first=6, last=11, missing=4)]
    assert watch.gaps(Position({BTC: first}), {BTC: stored(13)}) == []


def test_numbers_passed_before_the_run_are_a_gap_of_their_own(watch: GapWatch) -> None:
    before = Position({BTC: stored(1, 2, 3, 4, 5)})
    added = {BTC: stored(8, 9, 12)}
    assert watch.gaps(before, added) == [
        Gap("BTCUSDT", first=6, last=7, missing=2, is_restart=True),
        Gap("BTCUSDT", first=10, last=11, missing=2),
    ]
    watch.committed(table_of(TRADES, [trade_row()]), before)
    after = before.extended(added)
    assert watch.gaps(after, {BTC: stored(14)}) == [Gap("BTCUSDT", 13, 13, 1)]


def test_rows_that_fill_a_hole_open_none(watch: GapWatch) -> None:
    before = Position({BTC: stored(1, 2, 8, 9)})
    assert watch.gaps(before, {BTC: stored(4, 5)}) == []


def test_older_rows_open_no_gap(watch: GapWatch) -> None:
    assert watch.gaps(Position({BTC: stored(100, 101)}), {BTC: stored(1, 5)}) == []


def test_series_of_other_exchanges_are_not_watched(watch: GapWatch) -> None:
    assert watch.gaps(Position(), {Series("BINANCE_US", "BTCUSDT"): stored(1, 5)}) == []


def test_rows_that_fill_older_gaps_do_not_end_the_restart(watch: GapWatch) -> None:
    before = Position({BTC: stored(1, 2, 8, 9)})
    filling = table_of(TRADES, [trade_row(source_sequence=5)])
    watch.committed(filling, before)
    assert not watch.has_streamed("BTCUSDT")
    filled = before.extended({BTC: stored(5)})
    (gap,) = watch.gaps(filled, {BTC: stored(12)})
    assert (gap.is_restart, gap.holes) == (True, [(10, 11)])
    watch.committed(table_of(TRADES, [trade_row(source_sequence=12)]), filled)
    assert watch.has_streamed("BTCUSDT")
