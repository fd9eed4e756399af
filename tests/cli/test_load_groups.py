"""`k2 load csv` of many small files: snapshots are shared, files are not."""

import json
from pathlib import Path

import pytest

from k2cli.config import Settings
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from support.older import make_narrow
from support.running import K2, k2_at

BINANCE = ["--layout", "binance-trades"]
JSON = ["--summary", "json"]


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


def small_files(folder: Path, count: int) -> list[Path]:
    """Write dumps of one line each, of several days."""
    paths = [folder / f"BTCUSDT-trades-2024-08-{1 + n:02}.csv" for n in range(count)]
    for number, path in enumerate(paths):
        path.write_text(f"{number},1.5,2,3,{1_723_161_348_000 + number * 3_600_000},True,True\n")
    return paths


def test_small_files_share_snapshots_and_each_is_all_or_nothing(
    k2: K2, settings: Settings, tmp_path: Path
) -> None:
    paths = small_files(tmp_path, 30)
    paths[7].write_text(paths[7].read_text() + "8,not a price,2,3,1723161348000,True,True\n")
    (tmp_path / "copy.csv").write_text(paths[3].read_text())  # of the same symbol, by --symbol
    result = k2("load", "csv", tmp_path, *BINANCE, "--symbol", "BTCUSDT", *JSON, code=6)
    sums = json.loads(result.stdout)
    assert (sums["loaded"], sums["skipped"], sums["failed"]) == (29, 1, 1)
    assert (sums["rows"], sums["rejects"]) == (29, 1)
    assert paths[7].name in result.stderr
    with open_lake(settings) as lake:
        snapshots = lake.open(TRADES).snapshots()
        assert [each.added_rows for each in snapshots] == [29]
        stored = lake.open(TRADES).iceberg.scan().to_arrow()["source_sequence"].to_pylist()
        assert sorted(stored) == [n for n in range(30) if n != 7]
        loads = lake.open(TRADES).loads()
        assert loads["rows"].to_pylist() == [1] * 29
    again = k2("load", "csv", *paths[:3], *BINANCE, *JSON)
    assert json.loads(again.stdout)["skipped"] == 3
    k2("load", "undo", paths[2])
    with open_lake(settings) as lake:
        stored = lake.open(TRADES).iceberg.scan().to_arrow()["source_sequence"].to_pylist()
    assert sorted(stored) == [n for n in range(30) if n not in {2, 7}]


def test_duplicates_and_conflicts_within_a_group_count_with_their_file(
    k2: K2, settings: Settings, tmp_path: Path
) -> None:
    time = 1_723_161_348_000
    lines = [f"{n},{price},2,3,{time},True,True\n" for n, price in ((1, 1.5), (2, 1.5), (2, 7))]
    first, second, third = (tmp_path / f"BTCUSDT-trades-2024-08-0{n}.csv" for n in (1, 2, 3))
    first.write_text(lines[0] + lines[1])
    second.write_text(lines[1] + f"3,1.5,2,3,{time},True,True\n")
    third.write_text(lines[2])
    rejects = tmp_path / "rejects.ndjson"
    result = k2("load", "csv", first, second, third, *BINANCE, *JSON, "--rejects", rejects)
    sums = json.loads(result.stdout)
    assert (sums["rows"], sums["duplicates"], sums["conflicts"]) == (3, 1, 1)
    assert "price 7.00000000 (stored 1.50000000)" in rejects.read_text()
    with open_lake(settings) as lake:
        found = (
            lake.open(TRADES).loads().sort_by("path").select(["rows", "duplicates", "conflicts"])
        )
        counts = [tuple(each.values()) for each in found.to_pylist()]
        assert counts == [(2, 0, 0), (1, 1, 0), (0, 0, 1)]
        undone = lake.open(TRADES).loads().sort_by("path")["load"][0].as_py()
        assert lake.open(TRADES).undo_load(undone).rows == 2
        assert lake.open(TRADES).iceberg.scan().to_arrow()["source_sequence"].to_pylist() == [3]


def test_files_of_a_group_with_more_conflicts_than_are_shown_are_loaded_and_counted(
    k2: K2, tmp_path: Path
) -> None:
    def dump(name: str, price: int) -> Path:
        path = tmp_path / name / "BTCUSDT-trades-2024-08-08.csv"
        path.parent.mkdir()
        path.write_text(
            "".join(f"{n},{price},2,3,{1_723_161_348_000 + n},True,True\n" for n in range(150))
        )
        return path

    first, *others = (dump(name, price) for price, name in enumerate("abc", start=1))
    k2("load", "csv", first, *BINANCE)
    rejects = tmp_path / "rejects.ndjson"
    result = k2("load", "csv", *others, *BINANCE, *JSON, "--rejects", rejects)
    sums = json.loads(result.stdout)
    assert (sums["loaded"], sums["rows"], sums["conflicts"]) == (2, 0, 300)
    assert result.stderr.count("conflict table=trades_v2 count=150 reason=") == 2
    assert len(rejects.read_text().splitlines()) == 100


def test_files_before_one_that_cannot_be_opened_are_loaded(
    k2: K2, settings: Settings, tmp_path: Path
) -> None:
    paths = small_files(tmp_path, 3)
    result = k2("load", "csv", *paths, tmp_path / "none.csv", *BINANCE, code=4)
    assert "does not exist" in result.stderr
    with open_lake(settings) as lake:
        assert lake.open(TRADES).describe().rows == 3


def test_a_file_that_needs_an_option_ends_the_load_after_those_before(
    k2: K2, settings: Settings, tmp_path: Path
) -> None:
    paths = small_files(tmp_path, 2)
    nameless = tmp_path / "x.csv"
    nameless.write_text(paths[0].read_text())
    k2("load", "csv", *paths, nameless, *BINANCE, code=2)
    with open_lake(settings) as lake:
        assert lake.open(TRADES).describe().rows == 2


def test_rows_that_the_table_cannot_hold_fail_their_file_alone(
    k2: K2, settings: Settings, tmp_path: Path
) -> None:
    """A table of k2 0.1.0 has quantities below 10^10."""
    paths = small_files(tmp_path, 3)
    with open_lake(settings, create=True) as lake:
        make_narrow(lake)
    paths[1].write_text("1,1.5,20000000000,3,1723161348000,True,True\n")
    result = k2("load", "csv", *paths, *BINANCE, *JSON, code=6)
    sums = json.loads(result.stdout)
    assert (sums["loaded"], sums["failed"], sums["rows"]) == (2, 1, 2)
    assert "k2 table evolve trades" in result.stderr
