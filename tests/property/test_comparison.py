"""The comparison of a day with a source finds what a plain model finds, whatever the rows."""

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
from hypothesis import given, settings
from hypothesis import strategies as st

from k2cli.config import QuerySettings
from k2cli.query.comparison import SOURCE_COLUMNS, Comparison, SymbolDay, Totals, compare_day
from k2cli.query.engine import open_session
from k2cli.ranges import Ranges
from k2cli.records import TRADES
from k2cli.storage.admission import are_equal
from support.builders import START, Row, table_of, trade_row
from support.tablefiles import write_files

OF = SymbolDay(exchange="BINANCE", symbol="BTCUSDT", day=START.date())
IDS = st.integers(0, 6) | st.integers(100, 103)
# Within the day and around its ends; some differ by less than a millisecond.
TIMES = st.sampled_from(
    [OF.start + timedelta(microseconds=us) for us in (-1000, -1, 0, 1, 999, 1000, 1500)]
    + [OF.end + timedelta(microseconds=us) for us in (-1, 0, 1000)]
)


@st.composite
def trades(draw: st.DrawFn) -> Row:
    number = draw(IDS)
    return trade_row(
        source_sequence=number,
        trade_id=f"BINANCE-{number}",
        timestamp=draw(TIMES),
        ingestion_timestamp=OF.end + timedelta(days=9),
        price=Decimal(draw(st.integers(1, 2))),
        quantity=Decimal(draw(st.integers(1, 2))) / 10,
        side=draw(st.sampled_from(["BUY", "SELL", "UNKNOWN"])),
    )


ROWS = st.lists(trades(), max_size=12)


def compare(source: Sequence[Row], stored: Sequence[Row]) -> Comparison:
    numbers = [row["source_sequence"] for row in source if is_of_day(row)]
    with TemporaryDirectory() as folder:
        path = Path(folder, "source.parquet")
        pq.write_table(table_of(TRADES, list(source)).select(SOURCE_COLUMNS), path)
        plan = write_files(Path(folder), TRADES, table_of(TRADES, list(stored)))
        with open_session(QuerySettings(threads=1), [plan]) as session:
            bounds = (min(numbers), max(numbers)) if numbers else None
            return compare_day(session, path, OF, numbers=bounds)


def is_of_day(row: Row) -> bool:
    return bool(OF.start <= row["timestamp"] < OF.end)


def is_same(one: Row, other: Row) -> bool:
    return bool(are_equal(TRADES, table_of(TRADES, [one]), table_of(TRADES, [other]))[0])


def numbers_of(ranges: Ranges) -> list[int]:
    return [number for first, last in ranges.tolist() for number in range(first, last + 1)]


def totals_of(rows: Sequence[Row]) -> Totals:
    numbers = [row["source_sequence"] for row in rows]
    return Totals(
        trades=len(rows),
        first_id=min(numbers, default=None),
        last_id=max(numbers, default=None),
        volume=sum((row["quantity"] for row in rows), Decimal()),
        turnover=sum((row["price"] * row["quantity"] for row in rows), Decimal()),
    )


@settings(max_examples=60)
@given(source=ROWS, stored=ROWS)
def test_comparison_finds_what_a_model_finds(source: list[Row], stored: list[Row]) -> None:
    published = {row["source_sequence"] for row in source if is_of_day(row)}
    visible = [
        row
        for row in stored
        if is_of_day(row)
        or (published and min(published) <= row["source_sequence"] <= max(published))
    ]
    known = {row["source_sequence"] for row in visible}
    of_day = [row for row in stored if is_of_day(row)]
    held = [row["source_sequence"] for row in of_day]
    found = compare(source, stored)
    assert numbers_of(found.missing) == sorted(published - known)
    assert numbers_of(found.extra) == sorted(set(held) - {row["source_sequence"] for row in source})
    differing = {
        one["source_sequence"]
        for one in source
        for other in visible
        if one["source_sequence"] == other["source_sequence"]
        and (is_of_day(one) or is_of_day(other))
        and not is_same(one, other)
    }
    assert numbers_of(found.differing) == sorted(differing)
    assert {each.id for each in found.examples} == differing
    assert numbers_of(found.repeated) == sorted({each for each in held if held.count(each) > 1})
    assert found.stored == totals_of(of_day)
    assert found.source.trades == len(published)
    if found.is_equal:
        assert sorted(held) == sorted(published)


@given(rows=ROWS)
def test_a_table_with_the_rows_of_its_source_is_equal(rows: list[Row]) -> None:
    once = list({row["source_sequence"]: row for row in rows}.values())
    found = compare(once, once)
    assert found.is_equal
    assert found.source == found.stored == totals_of([row for row in once if is_of_day(row)])
    assert np.concatenate([found.missing, found.extra, found.differing]).size == 0
