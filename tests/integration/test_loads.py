"""Files into a table: all or nothing, once, and known for ever after."""

import threading
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import trades_batch

from k2cli.config import Settings, load_settings
from k2cli.errors import Conflict
from k2cli.records import TRADES
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.loads import FileState, LoadEntry


def entry(name: str, rows: int = 0) -> LoadEntry:
    return LoadEntry(
        loaded_at=1_700_000_000_000_000,
        path=f"/data/{name}.csv",
        digest=name,
        size_bytes=7,
        layout="generic-trades",
        rows=rows,
        rejects=0,
    )


def load(lake: Lake, name: str, rows: int, *, is_forced: bool = False) -> int | None:
    with lake.load_file(TRADES) as file:
        file.write(trades_batch(rows))
        return file.commit(entry(name, rows), is_forced=is_forced)


def count(lake: Lake) -> int:
    return lake.describe(TRADES).rows


def test_load_commits_rows_and_entry_in_one_snapshot(lake: Lake) -> None:
    before = len(lake.snapshots(TRADES))
    assert load(lake, "a", 400) is not None
    assert len(lake.snapshots(TRADES)) == before + 1
    assert count(lake) == 400
    assert lake.loaded_before(TRADES, ["a", "b"]) == {"a"}
    assert lake.loads(TRADES)["rows"].to_pylist() == [400]


def test_second_load_adds_nothing_and_leaves_no_file(home: Path, lake: Lake) -> None:
    load(lake, "a", 10)
    assert load(lake, "a", 10) is None
    assert count(lake) == 10
    assert len(list(home.rglob("data/timestamp_day=*/*.parquet"))) == 1


def test_forced_load_adds_the_rows_again(lake: Lake) -> None:
    load(lake, "a", 10)
    assert load(lake, "a", 10, is_forced=True) is not None
    assert count(lake) == 20
    assert len(lake.loads(TRADES)) == 2


def test_load_that_is_given_up_leaves_nothing(home: Path, lake: Lake) -> None:
    with lake.load_file(TRADES) as file:
        for _ in range(3):
            file.write(trades_batch(100_000))
        assert list(home.rglob("data/**/*.parquet")) != []
    assert count(lake) == 0
    assert list(home.rglob("data/**/*.parquet")) == []


def test_two_loads_at_once_load_a_file_once(settings: Settings, lake: Lake) -> None:
    results: list[int | None] = []

    def run() -> None:
        with open_lake(settings) as own:
            results.append(load(own, "a", 100))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(result is not None for result in results) == [False, False, False, True]
    assert count(lake) == 100


def test_rolled_back_load_counts_as_not_loaded(lake: Lake) -> None:
    first = load(lake, "a", 10)
    load(lake, "b", 10)
    assert first is not None
    with lake.table(TRADES).manage_snapshots() as manage:
        manage.rollback_to_snapshot(first)
    assert lake.loaded_before(TRADES, ["a", "b"]) == {"a"}
    assert load(lake, "b", 10) is not None


def test_loads_outlive_the_snapshots_that_are_expired(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_SNAPSHOTS": "3"})
    names = [f"file-{n}" for n in range(40)]
    with open_lake(settings, create=True) as lake:
        for name in names:
            load(lake, name, 1)
        assert len(lake.snapshots(TRADES)) < 6
        assert lake.loaded_before(TRADES, names) == set(names)
        assert sorted(lake.loads(TRADES)["digest"].to_pylist()) == sorted(names)
        assert load(lake, "file-0", 1) is None
    # 40 entries are 32 + 8; a few older segments belong to the snapshots that are kept.
    assert len(list(tmp_path.rglob("k2-loads-*.parquet"))) < 10


def test_newest_load_of_a_path_is_found_among_many(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path)})
    with open_lake(settings, create=True) as lake:
        for size in range(1, 12):
            state = lake.newest_load(TRADES, "/data/a.csv", "generic-trades")
            assert state == (FileState(size - 1, f"a{size - 1}") if size > 1 else None)
            with lake.load_file(TRADES) as file:
                file.write(trades_batch(1))
                grown = replace(entry("a", 1), digest=f"a{size}", size_bytes=size)
                assert file.commit(grown, after=state, is_forced=False) is not None
            load(lake, f"other-{size}", 1)
        assert lake.newest_load(TRADES, "/data/a.csv", "asx-trades") is None
        assert lake.newest_load(TRADES, "-", "generic-trades") is None


def test_path_that_was_loaded_meanwhile_is_a_conflict(home: Path, lake: Lake) -> None:
    with lake.load_file(TRADES) as file:
        file.write(trades_batch(5))
        load(lake, "a", 10)
        grown = replace(entry("a", 5), digest="longer", size_bytes=9)
        with pytest.raises(Conflict, match=r"/data/a\.csv was loaded meanwhile"):
            file.commit(grown, after=None, is_forced=False)
    assert count(lake) == 10
    assert len(list(home.rglob("data/timestamp_day=*/*.parquet"))) == 1


def test_log_without_offsets_is_read_and_extended(home: Path, lake: Lake) -> None:
    load(lake, "a", 10)
    (segment,) = home.rglob("k2-loads-*.parquet")
    old = pq.ParquetFile(segment).read().drop_columns("offset_bytes")
    pq.write_table(old, segment)
    assert lake.newest_load(TRADES, "/data/a.csv", "generic-trades") == FileState(7, "a")
    load(lake, "b", 1)
    assert lake.loads(TRADES)["offset_bytes"].to_pylist() == [None, 0]
