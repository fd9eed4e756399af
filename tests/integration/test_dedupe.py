"""Records that a table stores more than once, and how they go."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.storage import dedupe
from k2cli.storage.duplicates import Keep
from k2cli.storage.lake import Lake
from k2cli.storage.rewrite import Rewrite
from k2cli.storage.state import read_state
from support.builders import START, quote_row, table_of, trade_row
from support.foreign import append_as_another_engine, rewrite_as_another_engine


def trades(*numbers: int | None, seconds: int = 0, **over: Any) -> pa.Table:
    """Make trades, received so many seconds late."""
    received = START + timedelta(days=1, seconds=seconds)
    rows = [trade_row(source_sequence=n, ingestion_timestamp=received, **over) for n in numbers]
    return table_of(TRADES, rows)


def add(lake: Lake, rows: pa.Table, kind: RecordKind = TRADES) -> None:
    """Add rows as a program does that does not look what is there."""
    append_as_another_engine(lake.open(kind).iceberg, rows)


def run(lake: Lake, keep: Keep | None = None, **over: Any) -> tuple[int, int]:
    found = list(lake.open(TRADES).dedupe(keep, **over))
    return sum(each.rows for each in found), sum(each.conflicts for each in found)


def stored(lake: Lake) -> list[tuple[int, Decimal]]:
    rows = lake.open(TRADES).iceberg.scan().to_arrow().select(["source_sequence", "price"])
    return sorted((row["source_sequence"], row["price"]) for row in rows.to_pylist())


PRICE = Decimal("61800.00000000")
OTHER = Decimal("7.00000000")


def test_rows_that_say_the_same_go_but_for_the_first(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2, 3))
    add(lake, trades(2, 3, 4, seconds=5))
    add(lake, trades(2, seconds=9, side="UNKNOWN"))  # says nothing else
    assert run(lake, is_dry_run=True) == (3, 0)
    assert len(stored(lake)) == 7
    assert run(lake) == (3, 0)
    rows = lake.open(TRADES).iceberg.scan().to_arrow().sort_by("source_sequence")
    assert rows["source_sequence"].to_pylist() == [1, 2, 3, 4]
    first = START + timedelta(days=1)
    assert rows["ingestion_timestamp"].to_pylist()[1:3] == [first, first]
    assert run(lake) == (0, 0)


def test_a_table_without_doubles_is_not_written_to(lake: Lake) -> None:
    assert run(lake) == (0, 0)
    lake.open(TRADES).append(trades(1, 2))
    before = lake.open(TRADES).iceberg.metadata_location
    assert run(lake) == (0, 0)
    assert lake.open(TRADES).iceberg.metadata_location == before


@pytest.mark.parametrize(
    ("keep", "expected"),
    [(None, [PRICE, OTHER]), (Keep.FIRST, [PRICE]), (Keep.NEWEST, [OTHER])],
    ids=["all", "first", "newest"],
)
def test_other_values_of_an_id_are_listed(
    lake: Lake, keep: Keep | None, expected: list[Decimal]
) -> None:
    lake.open(TRADES).append(trades(1, 2))
    add(lake, trades(2, seconds=5, price=OTHER))
    found = list(lake.open(TRADES).dedupe(keep))
    assert [(each.rows, each.conflicts) for each in found] == [(1 if keep else 0, 1)]
    assert "price 7.00000000 (stored 61800.00000000)" in str(found[0].examples[0])
    assert stored(lake) == sorted([(1, PRICE), *((2, price) for price in expected)])


def test_an_id_on_two_days_is_found(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2))
    add(lake, trades(2, seconds=5, timestamp=START + timedelta(days=3)))
    assert run(lake) == (0, 1)
    assert run(lake, Keep.FIRST) == (1, 1)
    assert [number for number, _ in stored(lake)] == [1, 2]


def test_rows_without_a_number_are_known_by_symbol_and_message_id(lake: Lake) -> None:
    """Of old files that were loaded as two symbols, the message ids are the same."""
    one, other = (
        trades(None, message_id="line-1", symbol=symbol) for symbol in ("AAAUSDT", "BBBUSDT")
    )
    for rows in (one, other, one):
        add(lake, rows)
    assert run(lake) == (1, 0)
    assert lake.open(TRADES).describe().rows == 2


def test_quotes_are_told_apart_by_their_values_alone(lake: Lake) -> None:
    """Their times are when each was received."""
    for second in (0, 1):
        moment = START + timedelta(seconds=second)
        row = quote_row(source_sequence=7, timestamp=moment, ingestion_timestamp=moment)
        add(lake, table_of(QUOTES, [row]), QUOTES)
    found = list(lake.open(QUOTES).dedupe(None))
    assert [(each.rows, each.conflicts) for each in found] == [(1, 0)]
    assert lake.open(QUOTES).describe().rows == 1


def test_what_is_stored_stays_known(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2, 3))
    add(lake, trades(2, 3, seconds=5))
    assert run(lake) == (2, 0)
    state = read_state(lake.open(TRADES).iceberg)
    assert state.position is not None
    again = lake.open(TRADES).append(trades(1, 2, 3, 4))
    assert (again.rows, again.duplicates) == (1, 3)


def test_files_that_are_rewritten_meanwhile_are_searched_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.open(TRADES).append(trades(1, 2))
    add(lake, trades(2, seconds=5))
    real, calls = Rewrite, []

    def rewritten_before(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
        return real(*args, **kwargs)

    monkeypatch.setattr(dedupe, "Rewrite", rewritten_before)
    assert run(lake) == (1, 0)
    assert [number for number, _ in stored(lake)] == [1, 2]
