"""Files into a table: all or nothing, once, and known for ever after."""

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.expressions import AlwaysTrue
from pyiceberg.manifest import DataFile
from pyiceberg.types import StringType

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData, Conflict, NotFound
from k2cli.records import QUOTES, TRADES, RecordKind, line_series, message_ids
from k2cli.storage.append import Attempt
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.lines import Bools, Lines
from k2cli.storage.loads import FileKey, FileState, LoadEntry
from k2cli.storage.rewrite import Removed, Rewrite
from k2cli.storage.state import TableState
from support.builders import batch_of, quotes_batch, trades_batch
from support.foreign import append_as_another_engine, rewrite_as_another_engine

A = Lines(TRADES, ("a",))
LATER = 4_000_000_000_000_000  # loaded after all rows of the tests were received


def entry(name: str) -> LoadEntry:
    return LoadEntry(
        loaded_at=1_700_000_000_000_000,
        path=f"/data/{name}.csv",
        digest=name,
        size_bytes=7,
        layout="generic-trades",
        rejects=0,
        meaning="trades of X",
        identity=f"{name} as trades of X",
    )


def key(name: str, **over: str) -> FileKey:
    made = entry(name)
    values = {"path": made.path, "layout": made.layout, "meaning": made.meaning}
    return FileKey(**{**values, "identity": made.identity, **over}, digests=(name,))


def line_rows(file: str, count: int) -> pa.RecordBatch:
    """Make rows without ids: the lines of a file."""
    rows = trades_batch(count, source_sequence=None).to_pylist()
    for number, row in enumerate(rows):
        series = line_series(file, f"{row['exchange']}/trades/{row['symbol']}")
        at = np.array([number], dtype=np.int64)
        row["message_id"] = message_ids([series], np.zeros(1, np.int64), at)[0].as_py()
    return batch_of(TRADES, rows)


def load(lake: Lake, name: str, rows: int, *, is_forced: bool = False) -> int | None:
    """Load so many lines without ids."""
    made = entry(name)
    known = Lines(TRADES, (made.identity,)) if is_forced else None
    with lake.open(TRADES).load_file(
        "a.csv", file=made.identity, known=known, is_again=is_forced
    ) as file:
        file.write(line_rows(made.identity, rows))
        return file.commit(made, key=key(name))


def loaded(lake: Lake, *names: str) -> set[str]:
    return {name for name in names if lake.open(TRADES).loaded_before([key(name)])}


def count(lake: Lake) -> int:
    return lake.open(TRADES).describe().rows


def test_load_commits_rows_and_entry_in_one_snapshot(lake: Lake) -> None:
    before = len(lake.open(TRADES).snapshots())
    assert load(lake, "a", 400) is not None
    assert len(lake.open(TRADES).snapshots()) == before + 1
    assert count(lake) == 400
    assert loaded(lake, "a", "b") == {"a"}
    assert lake.open(TRADES).loads()["rows"].to_pylist() == [400]


def test_second_load_adds_nothing_and_leaves_no_file(home: Path, lake: Lake) -> None:
    load(lake, "a", 10)
    assert load(lake, "a", 10) is None
    assert count(lake) == 10
    assert len(list(home.rglob("data/timestamp_day=*/*.parquet"))) == 1


def test_forced_load_adds_nothing_that_is_stored(lake: Lake) -> None:
    load(lake, "a", 10)
    assert load(lake, "a", 10, is_forced=True) is not None
    assert count(lake) == 10
    found = [(each["rows"], each["duplicates"]) for each in lake.open(TRADES).loads().to_pylist()]
    assert sorted(found) == [(0, 10), (10, 0)]


def test_forced_loads_at_once_add_the_rows_once(settings: Settings, lake: Lake) -> None:
    with (
        open_lake(settings) as other,
        lake.open(TRADES).load_file("a.csv", file="a", known=A, is_again=True) as first,
    ):
        first.write(line_rows("a", 10))
        with other.open(TRADES).load_file("a.csv", file="a", known=A, is_again=True) as second:
            second.write(line_rows("a", 10))
            assert second.commit(entry("a"), key=key("a")) is not None
        assert first.commit(entry("a"), key=key("a")) is not None
    assert count(lake) == 10
    assert sorted(lake.open(TRADES).loads()["duplicates"].to_pylist()) == [0, 10]


def test_copies_at_once_cannot_be_told_apart_and_one_is_refused(
    settings: Settings, lake: Lake
) -> None:
    with (
        open_lake(settings) as other,
        lake.open(TRADES).load_file("a.csv", file="a#2", is_again=True) as first,
    ):
        first.write(line_rows("a#2", 10))
        with other.open(TRADES).load_file("a.csv", file="a#2", is_again=True) as second:
            second.write(line_rows("a#2", 10))
            assert second.commit(replace(entry("a"), copy=2), key=key("a")) is not None
        with pytest.raises(Conflict, match="was loaded meanwhile"):
            first.commit(replace(entry("a"), copy=2), key=key("a"))
    assert count(lake) == 10
    assert lake.open(TRADES).copies(entry("a").identity) == 2


def test_load_that_left_rows_out_which_are_removed_meanwhile_is_refused(lake: Lake) -> None:
    with lake.open(TRADES).load_file("a.csv", file="a") as file:
        file.write(trades_batch(10))
        file.commit(entry("a"), key=key("a"))
    (load_id,) = lake.open(TRADES).loads()["load"].to_pylist()
    with lake.open(TRADES).load_file("a.csv", file="b") as file:
        file.write(trades_batch(11))
        file.write(trades_batch(5))
        file._write_files()
        lake.open(TRADES).undo_load(load_id)
        with pytest.raises(Conflict, match="rows were removed from trades_v2 meanwhile"):
            file.commit(entry("b"), key=key("b"))
    assert count(lake) == 0
    assert lake.open(TRADES).loads().num_rows == 0


@pytest.mark.parametrize("is_extended", [False, True])
def test_load_that_left_rows_out_of_a_table_that_is_rolled_back_is_refused(
    lake: Lake, is_extended: bool
) -> None:
    load(lake, "z", 3)
    before = lake.open(TRADES).iceberg.current_snapshot()
    lake.open(TRADES).append(pa.Table.from_batches([trades_batch(5)]))
    assert before is not None
    with lake.open(TRADES).load_file("a.csv", file="b") as file:
        file.write(trades_batch(11))
        file._write_files()
        with lake.open(TRADES).iceberg.manage_snapshots() as manage:
            manage.rollback_to_snapshot(before.snapshot_id)
        if is_extended:
            load(lake, "y", 2)
        with pytest.raises(Conflict, match="rows were removed from trades_v2 meanwhile"):
            file.commit(entry("b"), key=key("b"))


def test_rollback_does_not_disturb_a_load_that_left_nothing_out(lake: Lake) -> None:
    load(lake, "z", 3)
    before = lake.open(TRADES).iceberg.current_snapshot()
    load(lake, "y", 2)
    assert before is not None
    with lake.open(TRADES).load_file("a.csv", file="b") as file:
        file.write(trades_batch(11))
        file._write_files()
        with lake.open(TRADES).iceberg.manage_snapshots() as manage:
            manage.rollback_to_snapshot(before.snapshot_id)
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(5)]))
        file.commit(entry("b"), key=key("b"))
    assert count(lake) == 3 + 11


def test_forced_load_is_refused_if_lines_of_its_path_were_loaded_meanwhile(lake: Lake) -> None:
    """What follows a growing file stores its lines under another identity."""
    with lake.open(TRADES).load_file("a.csv", file="a", known=A, is_again=True) as first:
        first.write(line_rows("a", 10))
        shorter = replace(entry("b"), path=entry("a").path, meaning=entry("a").meaning)
        with lake.open(TRADES).load_file("a.csv", file="b") as second:
            second.write(line_rows("b", 7))
            second.commit(shorter, key=key("b", path=shorter.path, meaning=shorter.meaning))
        with pytest.raises(Conflict, match="was loaded meanwhile"):
            first.commit(entry("a"), key=key("a"))
    assert count(lake) == 7


def test_undo_of_rows_that_others_have_too_leaves_those_known(lake: Lake) -> None:
    """Another engine stored numbers once more: when the rows of the load go, its rows stay."""
    with lake.open(TRADES).load_file("a.csv", file="a") as file:
        file.write(trades_batch(3))
        file.commit(entry("a"), key=key("a"))
    (load_id,) = lake.open(TRADES).loads()["load"].to_pylist()
    twice = pa.Table.from_batches([trades_batch(2, ingestion_timestamp=LATER)])
    append_as_another_engine(lake.open(TRADES).iceberg, twice)
    assert lake.open(TRADES).undo_load(load_id).rows == 3
    again = lake.open(TRADES).append(pa.Table.from_batches([trades_batch(4)]))
    assert (again.rows, again.duplicates, count(lake)) == (2, 2, 4)


def test_load_that_is_given_up_leaves_nothing(home: Path, lake: Lake) -> None:
    with lake.open(TRADES).load_file("a.csv", file="a") as file:
        for n in range(3):
            file.write(line_rows(f"a{n}", 70_000))
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
    with lake.open(TRADES).iceberg.manage_snapshots() as manage:
        manage.rollback_to_snapshot(first)
    assert loaded(lake, "a", "b") == {"a"}
    assert load(lake, "b", 10) is not None


def test_loads_outlive_the_snapshots_that_are_expired(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_SNAPSHOTS": "3"})
    names = [f"file-{n}" for n in range(40)]
    with open_lake(settings, create=True) as lake:
        for name in names:
            load(lake, name, 1)
        assert len(lake.open(TRADES).snapshots()) < 6
        assert loaded(lake, *names) == set(names)
        assert sorted(lake.open(TRADES).loads()["digest"].to_pylist()) == sorted(names)
        assert load(lake, "file-0", 1) is None
    # 40 entries are 32 + 8; a few older segments belong to the snapshots that are kept.
    assert len(list(tmp_path.rglob("k2-loads-*.parquet"))) < 10


def test_newest_load_of_a_path_is_found_among_many(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path)})
    with open_lake(settings, create=True) as lake:
        for size in range(1, 12):
            now = key("a", identity=f"a{size}")
            state = lake.open(TRADES).newest_loads([now]).get(now.path)
            assert state == (FileState(size - 1, f"a{size - 1}") if size > 1 else None)
            with lake.open(TRADES).load_file("a.csv", file=f"a{size}") as file:
                file.write(line_rows(f"a{size}", 1))
                grown = replace(entry("a"), digest=f"a{size}", identity=f"a{size}", size_bytes=size)
                assert file.commit(grown, key=now, after=state) is not None
            load(lake, f"other-{size}", 1)
        assert lake.open(TRADES).newest_loads([key("a", layout="asx-trades")]) == {}
        assert lake.open(TRADES).newest_loads([key("a", meaning="trades of Y")]) == {}
        assert lake.open(TRADES).newest_loads([key("a", path="-")]) == {}


def test_path_that_was_loaded_meanwhile_is_a_conflict(home: Path, lake: Lake) -> None:
    with lake.open(TRADES).load_file("a.csv", file="longer") as file:
        file.write(line_rows("longer", 5))
        load(lake, "a", 10)
        grown = replace(entry("a"), digest="longer", identity="longer", size_bytes=9)
        with pytest.raises(Conflict, match=r"/data/a\.csv was loaded meanwhile"):
            file.commit(grown, key=key("a", identity="longer"), after=None)
    assert count(lake) == 10
    assert len(list(home.rglob("data/timestamp_day=*/*.parquet"))) == 1


OLDEST = ("loaded_at", "path", "digest", "size_bytes", "layout", "rows", "rejects")


def make_old(home: Path, columns: Sequence[str]) -> None:
    """Make the only segment of a log one that an older k2 wrote."""
    (segment,) = home.rglob("k2-loads-*.parquet")
    pq.write_table(pq.ParquetFile(segment).read(list(columns)), segment)


@pytest.mark.parametrize("columns", [OLDEST, (*OLDEST, "offset_bytes")])
def test_log_of_an_older_k2_is_read_and_extended(
    home: Path, lake: Lake, columns: Sequence[str]
) -> None:
    load(lake, "a", 10)
    make_old(home, columns)
    assert list(lake.open(TRADES).newest_loads([key("a")]).values()) == [FileState(7, "a")]
    assert list(
        lake.open(TRADES).newest_loads([key("a", meaning="of another symbol")]).values()
    ) == [FileState(7, "a")]
    assert lake.open(TRADES).loaded_before([key("a", identity="as anything")])
    assert not lake.open(TRADES).loaded_before([key("a", layout="my.toml")])
    load(lake, "b", 1)
    loads = lake.open(TRADES).loads()
    assert sorted(loads["identity"].to_pylist(), key=str) == [None, entry("b").identity]
    assert len(set(loads["load"].to_pylist())) == 2


def old_lines(count: int) -> pa.RecordBatch:
    """Make rows without ids as k2 0.1.0 did: ids of the file's digest and the line."""
    rows = trades_batch(count, source_sequence=None).to_pylist()
    for number, row in enumerate(rows):
        at = np.array([number], dtype=np.int64)
        row["message_id"] = message_ids(["a/trades"], np.zeros(1, np.int64), at)[0].as_py()
    return batch_of(TRADES, rows)


def load_as_old(home: Path, lake: Lake, rows: pa.RecordBatch, loaded_at: int) -> None:
    with lake.open(TRADES).load_file("a.csv", file="a") as file:
        file.write(rows)
        file.commit(replace(entry("a"), loaded_at=loaded_at), key=key("a"))
    make_old(home, OLDEST)


def test_lines_that_an_older_k2_stored_are_known_and_can_be_undone(home: Path, lake: Lake) -> None:
    load_as_old(home, lake, old_lines(10), LATER)
    known = lake.open(TRADES).stored_lines(key("a"), lambda *_: False)
    assert known.legacy == ("a",)
    file = entry("a").identity
    with lake.open(TRADES).load_file("a.csv", file=file, known=known, is_again=True) as again:
        again.write(line_rows(file, 11))
        again.commit(entry("a"), key=key("a"))
    assert count(lake) == 11
    old, new = sorted(
        lake.open(TRADES).loads().to_pylist(), key=lambda each: bool(each["identity"])
    )
    assert (new["rows"], new["duplicates"]) == (1, 10)
    assert (lake.open(TRADES).undo_load(new["load"]).rows, count(lake)) == (1, 10)
    assert (lake.open(TRADES).undo_load(old["load"]).rows, count(lake)) == (10, 0)


def test_numbered_rows_that_an_older_k2_loaded_cannot_be_undone(home: Path, lake: Lake) -> None:
    load_as_old(home, lake, trades_batch(10), LATER)
    (load_id,) = lake.open(TRADES).loads()["load"].to_pylist()
    for is_dry_run in (True, False):
        with pytest.raises(BadData, match=r"by k2 0\.1\.0"):
            lake.open(TRADES).undo_load(load_id, is_dry_run=is_dry_run)
    assert (count(lake), lake.open(TRADES).loads().num_rows) == (10, 1)


@pytest.mark.parametrize("kind", [TRADES, QUOTES], ids=lambda kind: kind.name)
@pytest.mark.parametrize("is_expiring", [False, True])
def test_load_is_undone_after_another_engine_compacted_the_table(
    lake: Lake, kind: RecordKind, is_expiring: bool
) -> None:
    make = trades_batch if kind is TRADES else quotes_batch
    for name, rows in (("a", make(100)), ("b", make(150)), ("c", make(120))):
        with lake.open(kind).load_file("a.csv", file=name) as file:
            file.write(rows.set_column(*received(rows, ord(name[0]))))
            file.commit(entry(name), key=key(name))
    rewrite_as_another_engine(lake.open(kind).iceberg, is_expiring=is_expiring)
    ids = {each["path"][6]: each["load"] for each in lake.open(kind).loads().to_pylist()}
    assert lake.open(kind).undo_load(ids["c"]).rows == 0
    assert lake.open(kind).undo_load(ids["a"], is_dry_run=True).rows == 100
    assert lake.open(kind).describe().rows == 150
    undone = lake.open(kind).undo_load(ids["a"])
    assert (undone.rows, lake.open(kind).describe().rows) == (100, 50)
    assert rows_of(lake, kind) == unreceived(make(150))[100:]
    with pytest.raises(NotFound, match="no load"):
        lake.open(kind).undo_load(ids["a"])
    with lake.open(kind).load_file("d.csv", file="d") as file:
        file.write(make(150))
        file.commit(entry("d"), key=key("d"))
    assert (file.result.rows, file.result.duplicates) == (100, 50)
    assert rows_of(lake, kind) == unreceived(make(150))


def received(rows: pa.RecordBatch, moment: int) -> tuple[int, str, pa.Array]:
    name = "ingestion_timestamp"
    column = pa.array([moment] * rows.num_rows, rows.schema.field(name).type)
    return rows.schema.get_field_index(name), rows.schema.field(name), column


def rows_of(lake: Lake, kind: RecordKind) -> list[dict[str, Any]]:
    """Return the rows of a table in the order of their times, but for when they were received."""
    return sorted(
        unreceived(lake.open(kind).iceberg.scan().to_arrow()), key=lambda row: row["timestamp"]
    )


def unreceived(rows: pa.Table | pa.RecordBatch) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = rows.drop_columns("ingestion_timestamp").to_pylist()
    return found


@pytest.mark.parametrize("is_compacted", [False, True])
def test_rows_are_removed_while_others_write(
    settings: Settings, lake: Lake, is_compacted: bool
) -> None:
    load(lake, "a", 50)
    load(lake, "b", 60)
    lines = Lines(TRADES, (entry("a").identity,))
    tries: list[int] = []

    def choose(file: DataFile, rows: pa.Table) -> Bools:
        assert file.record_count >= rows.num_rows
        return lines.mask(rows)

    def finish(state: TableState, removed: Removed) -> Attempt:
        tries.append(removed.rows)
        if len(tries) == 1 and is_compacted:
            rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=True)
        elif len(tries) == 1:
            load(lake, "c", 7)
        return Attempt(files=[], properties=state.properties, scratch=[])

    target = lake.open(TRADES)._target()
    with Rewrite(target, AlwaysTrue(), choose, columns=[]) as rewrite:
        assert rewrite.commit(finish) is not None
    assert tries == [50, 50]
    assert count(lake) == (60 if is_compacted else 67)
    table = lake.open(TRADES).iceberg
    assert not lines.mask(table.scan().to_arrow()).any()
    on_disk = {str(path) for path in settings.home.rglob("timestamp_day=*/*.parquet")}
    known = {
        each.data_file.file_path.removeprefix("file://")
        for snapshot in table.snapshots()
        for manifest in snapshot.manifests(table.io)
        for each in manifest.fetch_manifest_entry(table.io)
    }
    assert known >= {
        task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()
    }
    assert on_disk - known == set() or is_compacted  # that engine leaves files behind


def test_undo_keeps_columns_that_k2_does_not_know(lake: Lake) -> None:
    load(lake, "a", 5)
    with lake.open(TRADES).iceberg.update_schema() as update:
        update.add_column("desk", StringType())
    rows = lake.open(TRADES).iceberg.scan().to_arrow().slice(0, 3)
    rows = rows.set_column(
        rows.schema.get_field_index("desk"), "desk", pa.array(["north", None, "south"])
    )
    ids = pa.array(["x1", "x2", "x3"], rows["message_id"].type)
    append_as_another_engine(
        lake.open(TRADES).iceberg, rows.set_column(0, rows.schema.field(0), ids)
    )
    rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    (load_id,) = lake.open(TRADES).loads()["load"].to_pylist()
    assert lake.open(TRADES).undo_load(load_id).rows == 5
    kept = lake.open(TRADES).iceberg.scan().to_arrow().sort_by("message_id")
    assert kept["message_id"].to_pylist() == ["x1", "x2", "x3"]
    assert kept["desk"].to_pylist() == ["north", None, "south"]


def test_files_of_undone_loads_are_deleted_once_their_snapshots_expire(tmp_path: Path) -> None:
    variables = {
        "K2_HOME": str(tmp_path),
        "K2_TABLE_KEEP_SNAPSHOTS": "3",
        "K2_TABLE_KEEP_FOR": "0s",
    }
    with open_lake(load_settings(variables), create=True) as lake:
        for n in range(12):
            load(lake, f"a{n}", 3)
            if n % 2:
                newest = lake.open(TRADES).loads().to_pylist()
                ids = {each["path"]: each["load"] for each in newest}
                assert lake.open(TRADES).undo_load(ids[f"/data/a{n - 1}.csv"]).rows == 3
        table = lake.open(TRADES).iceberg
        assert (count(lake), table.scan().to_arrow().num_rows) == (18, 18)
        assert loaded(lake, *(f"a{n}" for n in range(12))) == {f"a{n}" for n in range(1, 12, 2)}
        known = {
            each.data_file.file_path.removeprefix("file://")
            for snapshot in table.snapshots()
            for manifest in snapshot.manifests(table.io)
            for each in manifest.fetch_manifest_entry(table.io)
        }
        assert len(table.snapshots()) < 6
    on_disk = {str(path) for path in tmp_path.rglob("timestamp_day=*/*.parquet")}
    assert on_disk == known


def test_a_log_of_loads_that_was_deleted_is_named(home: Path, lake: Lake) -> None:
    load(lake, "a", 3)
    for path in home.rglob("k2-loads-log-*"):
        path.unlink()
    with pytest.raises(BadData, match="k2-loads-log-") as caught:
        lake.open(TRADES).loads()
    assert "orphan files" in str(caught.value.hint)
