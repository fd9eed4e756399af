"""Message ids of lines: which file, symbol and line they come from."""

import numpy as np
import pyarrow as pa

from k2cli.ingestion.csv.ids import IdRows, Labels, row_ids
from k2cli.records import TRADES, line_series, message_ids, nth_copy, series_prefix
from k2cli.storage.lines import Lines, line_keys
from support.builders import batch_of, trades_batch


def ids(file: str, exchange: str = "X", symbols: tuple[str, ...] = ("A", "B")) -> list[str]:
    """Make the ids of one line a symbol."""
    count = len(symbols)
    rows = IdRows(
        kind="trades",
        identity=lambda: file,
        exchanges=Labels([exchange], np.zeros(count, dtype=np.int64)),
        symbols=Labels(symbols, np.arange(count)),
        moments=np.zeros(count, dtype=np.int64),
        numbers=np.ones(count, dtype=np.int64),
    )
    return [*row_ids(rows).message_ids.to_pylist()]


def table(file: str) -> pa.Table:
    rows = trades_batch(4, source_sequence=None, exchange="X").to_pylist()
    for number, row in enumerate(rows):
        series = line_series(file, f"X/trades/{row['symbol']}")
        at = np.array([number], dtype=np.int64)
        row["message_id"] = message_ids([series], np.zeros(1, np.int64), at)[0].as_py()
    return pa.Table.from_batches([batch_of(TRADES, rows)])


def test_the_same_line_has_another_id_for_each_file_exchange_and_symbol() -> None:
    made = [*ids("f"), *ids("f", "Y"), *ids("g"), *ids(nth_copy("f", 2)), *ids(nth_copy("f", 3))]
    assert len(set(made)) == len(made)
    assert ids(nth_copy("f", 1)) == ids("f")
    assert ids("f", symbols=("B",)) == ids("f")[1:]


def test_lines_of_a_file_are_told_by_their_ids() -> None:
    both = pa.concat_tables([table("f"), table("g"), pa.Table.from_batches([trades_batch(3)])])
    assert Lines(TRADES, ("f",)).mask(both).tolist() == [True] * 4 + [False] * 7
    assert Lines(TRADES, ("f", "g")).mask(both).tolist() == [True] * 8 + [False] * 3
    assert not Lines(TRADES, ("h",)).mask(both).any()
    assert not Lines(TRADES)


def test_lines_of_k2_0_1_0_are_told_by_digest_and_kind() -> None:
    rows = table("f")
    legacy = message_ids(["d/trades"], np.zeros(4, np.int64), np.arange(4))
    assert legacy[0].as_py().startswith(series_prefix("d/trades"))
    old = rows.set_column(0, rows.schema.field(0), legacy)
    assert Lines(TRADES, legacy=("d",)).mask(old).all()
    assert not Lines(TRADES, legacy=("d",)).mask(rows).any()
    assert line_keys(old).equals(line_keys(rows))


def test_key_of_a_line_is_that_of_the_same_line_of_another_load() -> None:
    assert line_keys(table("f")).equals(line_keys(table("g")))
    keys = line_keys(table("f")).to_pylist()
    assert len(set(keys)) == len(keys)
