"""What a day is verified against: pages of the exchange's history, and the copy of the source."""

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from k2cli.errors import BadData, ConfigError, NotFound, Unavailable
from k2cli.ingestion.history import HistoryLocked, HistoryRefused, Page
from k2cli.ingestion.symbols import Instrument
from k2cli.pipelines.verify.copy import SourceCopy
from k2cli.pipelines.verify.job import mark_backfilled
from k2cli.pipelines.verify.sources import RestSource
from k2cli.query.comparison import SOURCE_COLUMNS, SymbolDay
from k2cli.ranges import ranges_of
from k2cli.records import TRADES
from k2cli.rejects import Cause, Fault, Reject
from support.builders import START, Row, batch_of, trade_row

OF = SymbolDay(exchange="BINANCE", symbol="BTCUSDT", day=START.date())
BTCUSDT = Instrument("BTCUSDT", "BTC", "USDT")
START_US = int(OF.start.timestamp()) * 1_000_000


def batch(*numbers: int, **over: object) -> pa.RecordBatch:
    return batch_of(TRADES, [trade_row(source_sequence=number, **over) for number in numbers])


class FakeHistory:
    """An exchange with the trades of these numbers, the day's from `first` to before `after`."""

    def __init__(self, numbers: Sequence[int], *, first: int | None, after: int | None) -> None:
        self.numbers = numbers
        self.edges = {START_US: first, START_US + 86_400_000_000: after}
        self.asked: list[tuple[int, int]] = []
        self.refused: HistoryRefused | None = None
        self.rejects: Sequence[Reject] = ()
        self.is_closed = False

    async def trades(self, instrument: Instrument, first: int, last: int) -> Page:
        """Serve three trades at once."""
        assert instrument == BTCUSDT
        if self.refused is not None:
            raise self.refused
        self.asked.append((first, last))
        found = [each for each in self.numbers if first <= each <= last][:3]
        known_to = found[-1] if found else first - 1
        return Page(rows=batch(*found), known_to=known_to, rejects=self.rejects)

    async def first_since(self, instrument: Instrument, time_us: int) -> int | None:
        """Know the edges of the day only."""
        assert instrument == BTCUSDT
        return self.edges[time_us]

    async def close(self) -> None:
        """Remember it."""
        self.is_closed = True


def read(history: FakeHistory) -> list[int]:
    source = RestSource(history, BTCUSDT, of=OF, name="http://exchange")
    try:
        found = [n for rows in source.batches() for n in rows["source_sequence"].to_pylist()]
    finally:
        source.close()
        assert history.is_closed
    assert not source.is_partial
    return found


@pytest.mark.parametrize(
    ("numbers", "first", "after", "expected"),
    [
        pytest.param(range(5, 30), 10, 20, list(range(10, 20)), id="within-the-day"),
        pytest.param(range(10, 17), 10, None, list(range(10, 17)), id="newest"),
        pytest.param([10, 11, 15, 19, 24], 10, 20, [10, 11, 15, 19], id="holes"),
        pytest.param([30], 30, 30, [], id="none-on-the-day"),
        pytest.param([], None, None, [], id="none-at-all"),
    ],
)
def test_rest_serves_the_ids_of_the_day(
    numbers: Sequence[int], first: int | None, after: int | None, expected: list[int]
) -> None:
    history = FakeHistory(numbers, first=first, after=after)
    assert read(history) == expected
    assert len(history.asked) == len(set(history.asked))


@pytest.mark.parametrize(
    ("refused", "error"),
    [(HistoryRefused("too old"), NotFound), (HistoryLocked("set the key"), ConfigError)],
)
def test_refusal_is_an_error_with_its_reason(
    refused: HistoryRefused, error: type[Exception]
) -> None:
    history = FakeHistory([1], first=1, after=2)
    history.refused = refused
    with pytest.raises(error, match=str(refused)):
        read(history)


@pytest.mark.parametrize(
    ("numbers", "unserved"),
    [
        pytest.param(range(10, 15), 15, id="ends-early"),
        pytest.param([*range(12, 20)], 10, id="starts-late"),
        pytest.param([], 10, id="nothing"),
    ],
)
def test_rest_that_serves_a_part_of_the_day_proves_nothing(
    numbers: Sequence[int], unserved: int
) -> None:
    history = FakeHistory(numbers, first=10, after=20)
    with pytest.raises(Unavailable, match=f"does not serve trade {unserved} of"):
        read(history)


def test_rest_that_serves_no_trades_of_a_day_with_trades_proves_nothing() -> None:
    with pytest.raises(Unavailable, match="does not serve trade 10 of"):
        read(FakeHistory([], first=10, after=None))


def test_invalid_trade_is_an_error() -> None:
    history = FakeHistory([1, 3], first=1, after=4)
    fault = Fault(reason="price '-1' is negative", cause=Cause.NEGATIVE, field="price")
    history.rejects = [Reject(fault=fault, raw=b"", position=2, received_us=0)] * 2
    with pytest.raises(BadData, match=r"trade 2: price '-1' is negative \(and 1 more\)"):
        read(history)


def test_day_is_partial_until_it_is_over() -> None:
    tomorrow = SymbolDay(exchange="X", symbol="Y", day=START.date() + timedelta(days=36_500))
    history = FakeHistory([], first=None, after=None)
    history.edges = dict.fromkeys(
        int(each.timestamp()) * 1_000_000 for each in (tomorrow.start, tomorrow.end)
    )
    source = RestSource(history, BTCUSDT, of=tomorrow, name="http://exchange")
    assert list(source.batches()) == []
    assert source.is_partial
    source.close()


def test_copy_knows_the_ids_of_the_day(tmp_path: Path) -> None:
    with SourceCopy(tmp_path / "copy.parquet", OF, SOURCE_COLUMNS) as copy:
        copy.write(batch(12, 10, 11, 11))
        copy.write(batch(3, 99, timestamp=OF.end))
        copy.write(batch(20, 10))
        copy.write(batch())
    assert (copy.rows, copy.trades, copy.repeated, copy.other_days) == (6, 4, 2, 2)
    assert copy.numbers == (10, 20)
    assert copy.holes.tolist() == [[13, 19]]


def test_copy_returns_wanted_trades_of_the_day(tmp_path: Path) -> None:
    with SourceCopy(tmp_path / "copy.parquet", OF, TRADES.arrow.names) as copy:
        rows = batch(10, 11, 12)
        copy.write(rows)
        copy.write(batch(13, timestamp=OF.end))
    wanted = ranges_of(pa.array([10, 12, 13]).to_numpy())
    (found,) = copy.rows_of(wanted)
    assert found.equals(rows.take(pa.array([0, 2])))
    assert found.schema.equals(TRADES.arrow, check_metadata=True)


def test_empty_copy_has_no_ids(tmp_path: Path) -> None:
    with SourceCopy(tmp_path / "copy.parquet", OF, SOURCE_COLUMNS) as copy:
        pass
    assert (copy.numbers, copy.trades, len(copy.holes)) == (None, 0, 0)


def test_copy_refuses_trades_without_numbers(tmp_path: Path) -> None:
    rows = batch_of(TRADES, [trade_row(source_sequence=None, message_id="x")])
    with (
        pytest.raises(BadData, match="ids are not numbers"),
        SourceCopy(tmp_path / "copy.parquet", OF, SOURCE_COLUMNS) as copy,
    ):
        copy.write(rows)


def test_marks_are_added_where_they_are_missing() -> None:
    entries: list[Row | None] = [
        {"a": "1", "b": "2"},
        None,
        {"backfilled": "true", "a": "1"},
        {},
        {"a": "3"},
    ]
    rows = batch_of(TRADES, [trade_row(vendor_data=each) for each in entries])
    expected = [
        [("a", "1"), ("b", "2"), ("backfilled", "true")],
        [("backfilled", "true")],
        [("backfilled", "true"), ("a", "1")],
        [("backfilled", "true")],
        [("a", "3"), ("backfilled", "true")],
    ]
    marked = mark_backfilled(rows)
    assert marked["vendor_data"].to_pylist() == expected
    assert marked.schema.equals(rows.schema, check_metadata=True)
    assert mark_backfilled(rows.slice(1, 3))["vendor_data"].to_pylist() == expected[1:4]
    assert mark_backfilled(marked) is marked
