"""`k2 load undo`: exactly the rows of one load, and the load may come again."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings
from k2cli.records import TRADES, RecordKind
from k2cli.storage.lake import open_lake
from support.builders import table_of, trade_row
from support.foreign import rewrite_as_another_engine
from support.running import K2, Run, k2_at, kill_while_writing

ASX = ["--layout", "asx-trades"]
BINANCE = ["--layout", "binance-trades"]
GENERIC = ["--layout", "generic-trades", "--exchange", "X", "--asset-class", "crypto"]
JSON = ["--summary", "json"]


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    path = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    path.write_text(binance(1, 1_000))
    return path


def binance(first: int, count: int) -> str:
    return "".join(
        f"{n},1.5,{n},1,{1_723_161_348_000 + n},True,True\n" for n in range(first, first + count)
    )


def asx(count: int) -> str:
    return "".join(f"03/10/2014,13:50:38.849,1.11,{n},0,,\n" for n in range(1, count + 1))


def sums(k2: K2, *args: object) -> dict[str, Any]:
    return {**json.loads(k2("load", *args, *JSON).stdout)}


def history(k2: K2) -> list[dict[str, Any]]:
    return [*json.loads(k2("load", "history", "-f", "json").stdout)]


def stored(settings: Settings, *columns: str, kind: RecordKind = TRADES) -> list[Any]:
    """Return columns of all rows, sorted; a column alone as plain values."""
    with open_lake(settings) as lake:
        rows = lake.open(kind).iceberg.scan().to_arrow().select(list(columns)).to_pylist()
    return sorted(row[columns[0]] if len(columns) == 1 else tuple(row.values()) for row in rows)


def test_file_that_was_loaded_as_the_wrong_symbol_is_loaded_again_as_the_right_one(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(asx(3))
    k2("load", "csv", path, *ASX, "--symbol", "BHQ")
    undone = sums(k2, "undo", path)
    assert (undone["rows"], undone["symbol"], undone["path"]) == (3, "BHQ", str(path))
    assert history(k2) == []
    assert sums(k2, "csv", path, *ASX, "--symbol", "BHP")["rows"] == 3
    assert stored(settings, "symbol") == ["BHP"] * 3


def test_wrong_time_zone_is_undone_after_the_right_one_was_loaded(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(asx(3))
    args = [*ASX, "--symbol", "BHP"]
    k2("load", "csv", path, *args, "--timezone", "UTC")
    k2("load", "csv", path, *args)
    assert len(stored(settings, "timestamp")) == 6
    wrong = history(k2)[-1]["load"]
    result = k2("load", "undo", wrong[:6])
    assert "rows=3" in result.stderr
    assert f"other loads of this path remain: {history(k2)[0]['load']}" in result.stderr
    assert {time.hour for time in stored(settings, "timestamp")} == {2}  # 13:50 in Sydney
    assert sums(k2, "csv", path, *args)["skipped"] == 1


def test_what_other_loads_and_streams_stored_stays(
    k2: K2, dump: Path, tmp_path: Path, settings: Settings
) -> None:
    month = tmp_path / "BTCUSDT-trades-2024-08.csv"
    month.write_text(binance(1, 1_500))
    streamed = [trade_row(source_sequence=n, trade_id=f"BINANCE-{n}") for n in (10, 2_000)]
    with open_lake(settings, create=True) as lake:
        lake.open(TRADES).append(table_of(TRADES, streamed))
    assert sums(k2, "csv", dump, *BINANCE, "--max-rejects", "1")["rows"] == 999
    assert sums(k2, "csv", month, *BINANCE)["rows"] == 500
    result = k2("load", "undo", dump)
    assert "rows=999" in result.stderr
    assert "later loads skipped duplicates" in result.stderr
    assert stored(settings, "source_sequence") == [10, *range(1_001, 1_501), 2_000]
    again = sums(k2, "csv", month, *BINANCE, "--force")
    assert (again["rows"], again["duplicates"] + again["conflicts"]) == (999, 501)
    assert stored(settings, "source_sequence") == [*range(1, 1_501), 2_000]


def test_quotes_and_texts_are_undone_in_their_table(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    quotes, trades = tmp_path / "quotes.csv", tmp_path / "trades.csv"
    quotes.write_text("03/10/2014,05:46:13.604,1.11,1.18,10300,3667\n" * 3)
    trades.write_text(
        "id,symbol,timestamp,price,quantity\n"
        + "".join(f"{name},A,{1_723_161_348_000},1.5,1\n" for name in ("t1", "", "7", "t2"))
    )
    k2("load", "csv", quotes, "--layout", "asx-quotes", "--symbol", "BHP")
    k2("load", "csv", trades, *GENERIC, "--currency", "USD")
    assert sums(k2, "undo", quotes)["table"] == "quotes_v2"
    assert [each["path"] for each in history(k2)] == [str(trades)]
    assert sums(k2, "undo", trades)["rows"] == 4
    assert stored(settings, "price") == []
    assert sums(k2, "csv", trades, *GENERIC, "--currency", "USD")["rows"] == 4


def test_copies_are_undone_one_by_one(k2: K2, tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "x.csv"
    path.write_text(asx(3))
    for _ in range(2):
        k2("load", "csv", path, *ASX, "--symbol", "A", "--allow-duplicates")
    first = set(stored(settings, "message_id"))
    assert sums(k2, "undo", history(k2)[-1]["load"])["rows"] == 3
    second = set(stored(settings, "message_id"))
    assert (len(second), second < first) == (3, True)
    k2("load", "csv", path, *ASX, "--symbol", "A", "--allow-duplicates")
    assert len(set(stored(settings, "message_id"))) == 6


def test_part_of_a_file_that_grows_is_undone_and_followed_again(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    args = [*ASX, "--symbol", "A", "--follow-appends"]
    for count in (2, 5):
        path.write_text(asx(count))
        k2("load", "csv", path, *args)
    assert sums(k2, "undo", path)["rows"] == 3
    assert sums(k2, "csv", path, *args)["rows"] == 3
    assert stored(settings, "quantity") == [1, 2, 3, 4, 5]


def test_dry_run_only_counts(k2: K2, dump: Path, settings: Settings) -> None:
    k2("load", "csv", dump, *BINANCE)
    with open_lake(settings) as lake:
        before = lake.open(TRADES).iceberg.metadata_location
        result = k2("load", "undo", dump, "--dry-run")
        assert lake.open(TRADES).iceberg.metadata_location == before
    assert "rows=1000" in result.stderr
    assert "dry run" in result.stderr
    assert len(history(k2)) == 1


def test_stdin_is_undone_by_its_dash(k2: K2, settings: Settings) -> None:
    text = asx(3).encode()
    k2("load", "csv", "-", *ASX, "--symbol", "A", stdin=text)
    assert sums(k2, "undo", "-")["rows"] == 3
    assert stored(settings, "price") == []


@pytest.mark.parametrize("word", ["nope.csv", "0123abcd", "0", "-"])
def test_unknown_load_is_not_found(k2: K2, dump: Path, word: str) -> None:
    k2("load", "undo", word, code=4)
    k2("load", "csv", dump, *BINANCE)
    assert "k2 load history" in k2("load", "undo", word, code=4).stderr
    assert len(history(k2)) == 1


def test_load_that_was_undone_twice_at_once_is_undone_once(
    run: Run, dump: Path, settings: Settings
) -> None:
    run(["load", "csv", str(dump), *BINANCE])
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda _: run(["load", "undo", str(dump)]), range(2)))
    assert sorted(result.exit_code for result in results) == [0, 4], results
    assert stored(settings, "price") == []


def test_load_is_undone_while_other_processes_load(
    run: Run, dump: Path, tmp_path: Path, settings: Settings
) -> None:
    others = []
    for n in range(1, 4):
        others.append(tmp_path / f"BTCUSDT-trades-2024-09-0{n}.csv")
        others[-1].write_text(binance(10_000 * n, 500))
    run(["load", "csv", str(dump), *BINANCE])
    commands = [["load", "undo", str(dump)], *(["load", "csv", str(o), *BINANCE] for o in others)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(run, commands))
    assert [result.exit_code for result in results] == [0] * 4, results
    expected = [n * 10_000 + i for n in range(1, 4) for i in range(500)]
    assert stored(settings, "source_sequence") == expected
    assert run(["load", "csv", str(dump), *BINANCE]).exit_code == 0
    assert stored(settings, "source_sequence") == [*range(1, 1_001), *expected]


def test_killed_undo_leaves_all_or_nothing(
    k2_env: dict[str, str], k2: K2, tmp_path: Path, settings: Settings
) -> None:
    """The files have rows of both loads, so they have to be written again."""
    paths = []
    for n in range(2):
        paths.append(tmp_path / f"BTCUSDT-trades-2024-08-0{n + 1}.csv")
        paths[-1].write_text(binance(1 + 150_000 * n, 150_000))
        k2("load", "csv", paths[-1], *BINANCE)
    with open_lake(settings) as lake:
        rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    args = ("load", "undo", paths[0])
    more, is_undone = 0, False
    while not is_undone:  # one more file each time
        more += 1
        kill_while_writing(*args, env=k2_env, folder=settings.home / "warehouse", files=more)
        rows = len(stored(settings, "source_sequence"))
        loads = [each["path"] for each in history(k2)]
        is_undone = rows == 150_000
        assert (rows, loads) in [
            (300_000, [str(path) for path in reversed(paths)]),
            (150_000, [str(paths[1])]),
        ]
    assert sums(k2, "csv", paths[0], *BINANCE)["rows"] == 150_000
    assert stored(settings, "source_sequence") == [*range(1, 300_001)]
