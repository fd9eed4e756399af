"""The exactly-once append against a real catalog."""

import re
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitStateUnknownException
from pyiceberg.io import FileIO
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from k2cli.config import Settings, TableSettings, load_settings
from k2cli.errors import BadData, ConfigError, NotFound
from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.storage import position, rebuild
from k2cli.storage.append import OutcomeUnknown, append_rows
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.lookup import StoredIds, read_numbers
from k2cli.storage.position import Series, State
from k2cli.storage.state import read_state
from k2cli.storage.stored import FileIndex
from k2cli.storage.target import Target
from support.builders import START, quotes_batch, table_of, trade_row, trades_batch
from support.foreign import append_as_another_engine, forget_everything, rewrite_as_another_engine

_SYNC_BYTES = 16  # the marker at the end of a block of an Avro file


def trades(*numbers: int, **over: Any) -> pa.Table:
    rows = [
        trade_row(source_sequence=n, timestamp=START + timedelta(milliseconds=n), **over)
        for n in numbers
    ]
    return table_of(TRADES, rows)


def target_of(table: Table, settings: Settings) -> Target:
    return Target(
        table=table,
        kind=TRADES,
        settings=settings,
        index=FileIndex(),
        ids=StoredIds(),
        observe=lambda *_, **__: None,
    )


def stored(lake: Lake, kind: RecordKind = TRADES) -> pa.Table:
    """All rows, read by field id from the files of the current snapshot, in the sort order."""
    scan = lake.open(kind).iceberg.scan().to_arrow()
    return scan.sort_by([(name, "ascending") for name in kind.sort_by]).cast(kind.arrow)


def numbers(lake: Lake) -> list[int]:
    return sorted(stored(lake)["source_sequence"].to_pylist())


@pytest.mark.parametrize(
    ("kind", "batch"), [(TRADES, trades_batch(400)), (QUOTES, quotes_batch(400))]
)
def test_rows_come_back_exactly(lake: Lake, kind: RecordKind, batch: pa.RecordBatch) -> None:
    rows = pa.Table.from_batches([batch])
    commit = lake.open(kind).append(rows)
    expected = rows.sort_by([(name, "ascending") for name in kind.sort_by])
    assert commit.rows == 400
    assert stored(lake, kind).equals(expected)


def test_rows_of_two_days_land_in_two_sorted_files(lake: Lake) -> None:
    rows = pa.Table.from_batches([trades_batch(400)])  # from 23:55 on, one a second
    lake.open(TRADES).append(rows)
    paths = lake.open(TRADES).plan().paths
    days = [re.search(r"timestamp_day=([\d-]+)", path) for path in paths]
    assert [day and day[1] for day in days] == ["2024-08-09", "2024-08-08"]
    for path in paths:
        order = duckdb.sql(
            "select symbol, epoch_us(timestamp), source_sequence from read_parquet($path)",
            params={"path": path},
        ).fetchall()
        assert order == sorted(order)


def test_plan_prunes_by_symbol_and_time(lake: Lake) -> None:
    lake.open(TRADES).append(table_of(TRADES, [trade_row(symbol="AAAUSDT")]))
    lake.open(TRADES).append(table_of(TRADES, [trade_row(symbol="ZZZUSDT")]))
    moment = START + timedelta(days=3)
    later = trade_row(symbol="AAAUSDT", source_sequence=9, timestamp=moment)
    lake.open(TRADES).append(table_of(TRADES, [later]))
    assert len(lake.open(TRADES).plan().paths) == 3
    assert len(lake.open(TRADES).plan(symbols=["AAAUSDT"]).paths) == 2
    assert (
        len(lake.open(TRADES).plan(symbols=["AAAUSDT"], end=START + timedelta(days=1)).paths) == 1
    )
    assert lake.open(TRADES).plan(start=START + timedelta(days=9)).paths == ()
    assert lake.open(TRADES).plan(exchanges=["ASX"]).paths == ()


def test_replayed_rows_are_left_out(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2, 3))
    again = lake.open(TRADES).append(trades(1, 2, 3))
    more = lake.open(TRADES).append(trades(3, 4))
    assert (again.rows, again.duplicates, again.snapshot_id) == (0, 3, None)
    assert (more.rows, more.duplicates) == (1, 1)
    assert numbers(lake) == [1, 2, 3, 4]


def test_writers_of_the_same_feed_never_double_a_row(settings: Settings, lake: Lake) -> None:
    """Four writers push overlapping pieces of one feed at once, each through its own catalog."""
    failures: list[BaseException] = []

    def write(offset: int) -> None:
        try:
            with open_lake(settings) as own:
                for start in range(offset, 400, 20):
                    own.open(TRADES).append(trades(*range(start, start + 40)))
        except BaseException as exc:
            failures.append(exc)
            raise

    writers = [threading.Thread(target=write, args=(offset,)) for offset in (0, 5, 10, 15)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    held = numbers(lake)
    assert held == sorted(set(held))
    assert held == list(range(held[0], held[-1] + 1))


def test_writers_of_different_feeds_both_succeed(settings: Settings, lake: Lake) -> None:
    with open_lake(settings) as other:
        for n in range(5):
            lake.open(TRADES).append(trades(n))
            other.open(TRADES).append(trades(n, exchange="BINANCE_USDM"))
    assert numbers(lake) == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    position = read_state(lake.open(TRADES).iceberg).position
    assert position is not None
    assert {series: stored.exact.tolist() for series, stored in position.series.items()} == {
        Series("BINANCE", "BTCUSDT"): [[0, 4]],
        Series("BINANCE_USDM", "BTCUSDT"): [[0, 4]],
    }


def test_position_is_found_below_a_foreign_snapshot(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2))
    table = lake.open(TRADES).iceberg
    table.append(trades(50).cast(table.schema().as_arrow()))  # as another engine would
    again = lake.open(TRADES).append(trades(1, 2, 3))
    assert (again.rows, again.duplicates) == (1, 2)
    assert numbers(lake) == [1, 2, 3, 50]


def test_rolled_back_table_rolls_its_position_back(lake: Lake) -> None:
    first = lake.open(TRADES).append(trades(1))
    lake.open(TRADES).append(trades(2))
    assert first.snapshot_id is not None
    with lake.open(TRADES).iceberg.manage_snapshots() as manage:
        manage.rollback_to_snapshot(first.snapshot_id)
    assert lake.open(TRADES).append(trades(1, 2)).rows == 1
    assert numbers(lake) == [1, 2]


def test_data_files_of_rolled_back_snapshots_go_with_them(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_SNAPSHOTS": "4"})
    with open_lake(settings, create=True) as lake:
        first = lake.open(TRADES).append(trades(1))
        lake.open(TRADES).append(trades(2))
        assert first.snapshot_id is not None
        with lake.open(TRADES).iceberg.manage_snapshots() as manage:
            manage.rollback_to_snapshot(first.snapshot_id)
        for n in range(3, 12):
            lake.open(TRADES).append(trades(n))
        assert numbers(lake) == [1, *range(3, 12)]
        planned = set(lake.open(TRADES).plan().paths)
    assert {str(path) for path in tmp_path.rglob("*.parquet")} == planned


class LostAnswer(SqlCatalog):
    """A catalog that commits, or not, and then loses the answer."""

    is_committing = True

    def commit_table(self, *args: Any, **kwargs: Any) -> Any:
        if self.is_committing:
            super().commit_table(*args, **kwargs)
        raise CommitStateUnknownException("the answer was lost")


@pytest.mark.parametrize("is_committing", [True, False])
def test_lost_answer_is_settled_by_looking(
    home: Path, settings: Settings, lake: Lake, is_committing: bool
) -> None:
    url = f"sqlite:///{home}/catalog.db"
    catalog = LostAnswer("k2", uri=url, warehouse=str(home / "warehouse"))
    catalog.is_committing = is_committing
    table = catalog.load_table("market_data.trades_v2")
    try:
        if is_committing:
            commit = append_rows(target_of(table, settings), trades(1))
            assert commit.rows == 1
        else:
            with pytest.raises(OutcomeUnknown, match="the answer was lost"):
                append_rows(target_of(table, settings), trades(1))
    finally:
        catalog.close()
    assert numbers(lake) == [1] * is_committing
    # Any one of the attempts without an answer may land yet.
    assert len(list(home.rglob("*.parquet"))) == (1 if is_committing else 3)


def test_metadata_stays_bounded_over_many_commits(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_SNAPSHOTS": "5"})
    with open_lake(settings, create=True) as lake:
        tagged = lake.open(TRADES).append(trades(0)).snapshot_id
        assert tagged is not None
        with lake.open(TRADES).iceberg.manage_snapshots() as manage:
            manage.create_tag(tagged, "month-end")
        for n in range(1, 120):
            lake.open(TRADES).append(trades(n))
        table = lake.open(TRADES).iceberg
        snapshots = lake.open(TRADES).snapshots()
        assert numbers(lake) == list(range(120))
        assert 5 <= len(snapshots) <= 8
        assert "month-end" in snapshots[-1].refs
        assert table.scan(snapshot_id=tagged).to_arrow()["source_sequence"].to_pylist() == [0]
        files = {path.name for path in (Path(table.location()) / "metadata").iterdir()}
    reachable = {Path(table.metadata_location).name}
    reachable |= {Path(entry.metadata_file).name for entry in table.metadata.metadata_log}
    for snapshot in table.metadata.snapshots:
        reachable.add(Path(snapshot.manifest_list).name)
        reachable |= {Path(m.manifest_path).name for m in snapshot.manifests(table.io)}
    assert files == reachable


def test_snapshots_younger_than_keep_for_stay(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path)})
    keeping = Settings(
        home=settings.home, table=TableSettings(keep_snapshots=2, keep_for=settings.table.keep_for)
    )
    day = load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_FOR": "1d"})
    with open_lake(day, create=True) as lake:
        for n in range(30):
            lake.open(TRADES).append(trades(n))
        assert len(lake.open(TRADES).snapshots()) == 30
    with open_lake(keeping) as lake:
        lake.open(TRADES).append(trades(30))
        assert len(lake.open(TRADES).snapshots()) == 2


def test_describe_tells_what_a_table_is(lake: Lake) -> None:
    before = datetime.now(UTC)
    lake.open(TRADES).append(trades(1, 2))
    info = lake.open(TRADES).describe()
    assert (info.name, info.rows, info.files, info.snapshots) == ("market_data.trades_v2", 2, 1, 1)
    assert info.partition == "day(timestamp)"
    assert info.sort_order == "symbol, timestamp, source_sequence"
    assert info.columns[6][1:4] == ("price", "decimal(18, 8)", True)
    assert info.last_commit is not None
    assert before - timedelta(milliseconds=1) <= info.last_commit <= datetime.now(UTC)


def test_reading_a_home_without_tables_makes_nothing(home: Path, settings: Settings) -> None:
    with pytest.raises(NotFound) as caught, open_lake(settings):
        pass
    assert "k2 stream" in str(caught.value.hint)
    assert not home.exists()


def test_damaged_catalog_is_bad_data(home: Path, settings: Settings) -> None:
    home.mkdir()
    (home / "catalog.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(BadData, match="not a database") as caught, open_lake(settings):
        pass
    assert "backup" in str(caught.value.hint)


def test_home_that_is_a_file_is_a_wrong_setting(home: Path, settings: Settings) -> None:
    home.write_text("")
    with (
        pytest.raises(ConfigError, match="cannot use the folder"),
        open_lake(settings, create=True),
    ):
        pass


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
@pytest.mark.parametrize("which", ["list", "manifest"])
def test_a_manifest_that_is_cut_off_is_bad_data(lake: Lake, which: str, share: float) -> None:
    """Whatever is cut off; of the end, at least the last marker and some bytes before it."""
    lake.open(TRADES).append(trades(1))
    table = lake.open(TRADES).iceberg
    snapshot = table.current_snapshot()
    assert snapshot is not None
    (manifest,) = snapshot.manifests(table.io)
    path = Path(snapshot.manifest_list if which == "list" else manifest.manifest_path)
    path.write_bytes(path.read_bytes()[: int(share * (path.stat().st_size - _SYNC_BYTES - 8))])
    with pytest.raises(BadData, match="a metadata file is damaged") as caught:
        lake.open(TRADES).plan()
    assert "backup" in str(caught.value.hint)


def test_missing_metadata_file_is_bad_data(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1))
    Path(lake.open(TRADES).iceberg.metadata_location).unlink()
    with pytest.raises(BadData, match="missing"):
        lake.open(TRADES).plan()


def test_lost_race_leaves_no_file_behind(settings: Settings, lake: Lake) -> None:
    """A writer that loaded the table before another one committed must try again."""
    table = lake.open(TRADES).iceberg
    lake.open(TRADES).append(trades(1))
    commit = append_rows(target_of(table, settings), trades(1, 2))
    assert (commit.rows, commit.duplicates) == (1, 1)
    data = Path(table.location()) / "data"
    assert len(list(data.rglob("*.parquet"))) == 2
    assert numbers(lake) == [1, 2]


# --- what other engines do, and what k2 finds when it comes back


@pytest.mark.parametrize("retries", ["0", "10"])
def test_the_tables_own_retries_double_no_row(settings: Settings, lake: Lake, retries: str) -> None:
    """pyiceberg's retry would add rows again that another writer has just added."""
    with lake.open(TRADES).iceberg.transaction() as transaction:
        transaction.set_properties({"commit.retry.num-retries": retries})
    failures: list[BaseException] = []

    def write(offset: int) -> None:
        try:
            with open_lake(settings) as own:
                for start in range(0, 60, 5):
                    own.open(TRADES).append(trades(*range(start + offset, start + offset + 8)))
        except BaseException as exc:
            failures.append(exc)
            raise

    writers = [threading.Thread(target=write, args=(offset,)) for offset in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert failures == []
    assert numbers(lake) == list(range(65))
    assert lake.open(TRADES).iceberg.properties["commit.retry.num-retries"] == retries


def test_new_tables_let_other_engines_retry(lake: Lake) -> None:
    """With 0, Spark's rewrite fails whenever k2 commits at the same time."""
    assert int(lake.open(TRADES).iceberg.properties["commit.retry.num-retries"]) > 0


def test_a_tag_keeps_what_k2_knows_from_being_expired(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2))
    rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=True)
    state = read_state(lake.open(TRADES).iceberg)
    assert state.position is not None
    assert state.position.of(Series("BINANCE", "BTCUSDT")).exact.tolist() == [[1, 2]]
    again = lake.open(TRADES).append(trades(1, 2, 3))
    assert (again.rows, again.duplicates) == (1, 2)


@pytest.mark.parametrize("is_as_large", [True, False])
def test_what_snapshots_did_that_are_gone_is_not_guessed(lake: Lake, is_as_large: bool) -> None:
    """Between k2's snapshot and a compaction, rows may have come and gone, as many as were there.

    What the tag has of files and offsets stays known only if the table is as large as then.
    """
    lake.open(TRADES).append(trades(1, 2))
    lake.open(TRADES).iceberg.delete("source_sequence = 2")
    new = trades(7) if is_as_large else trades(7, 8)
    append_as_another_engine(lake.open(TRADES).iceberg, new)
    rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=True)
    state = read_state(lake.open(TRADES).iceberg)
    assert (state.position, state.is_lost) == (None, not is_as_large)
    again = lake.open(TRADES).append(trades(1, 2, 7))
    assert (again.rows, again.duplicates) == (1, 2)
    assert {1, 2, 7} <= set(numbers(lake))


def test_what_was_lost_is_built_from_the_rows(settings: Settings, home: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    with open_lake(
        settings, create=True, observe=lambda event, /, **f: events.append((event, f))
    ) as lake:
        unnumbered = table_of(TRADES, [trade_row(source_sequence=None, message_id="file-1")])
        lake.open(TRADES).append(trades(1, 2, 5))
        lake.open(TRADES).append(unnumbered)
        forget_everything(lake.open(TRADES).iceberg)
        assert read_state(lake.open(TRADES).iceberg).is_lost
        again = lake.open(TRADES).append(trades(1, 2, 3))
        assert (again.rows, again.duplicates) == (1, 2)
        assert lake.open(TRADES).append(unnumbered).duplicates == 1
        other = table_of(TRADES, [trade_row(source_sequence=None, message_id="file-2")])
        assert lake.open(TRADES).append(other).rows == 1
        assert lake.open(TRADES).describe().rows == 6
    names = [name for name, _ in events]
    assert "rebuild_position" in names
    assert list((home / "rebuild").iterdir()) == []


def test_a_table_of_the_version_before_is_recognised(lake: Lake) -> None:
    """It has positions of streams alone, whose closed holes said nothing of what is stored."""
    lake.open(TRADES).append(trades(1, 2, 5))
    table = lake.open(TRADES).iceberg
    table.append(
        trades(7).cast(table.schema().as_arrow()),
        snapshot_properties={"k2.position.BINANCE": "z1:xyz", "k2.loads": "a:1", "k2.run": "r"},
    )
    state = read_state(lake.open(TRADES).iceberg)
    assert (state.position, state.is_lost, state.properties) == (None, False, {"k2.loads": "a:1"})
    again = lake.open(TRADES).append(trades(1, 2, 3, 7))
    assert (again.rows, again.duplicates) == (1, 3)
    assert read_state(lake.open(TRADES).iceberg).properties.keys() == {"k2.loads", "k2.position"}


def test_a_rebuild_that_was_cut_off_goes_on(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        lake.open(TRADES).append(trades(number))
    append_as_another_engine(lake.open(TRADES).iceberg, trades(9))
    read: list[str] = []
    real = read_numbers

    def cut_off(table: Table, kind: RecordKind, path: str) -> Any:
        if len(read) == 3:
            raise KeyboardInterrupt
        read.append(path)
        return real(table, kind, path)

    monkeypatch.setattr(rebuild, "read_numbers", cut_off)
    monkeypatch.setattr(rebuild, "_SAVE_S", 0)
    with pytest.raises(KeyboardInterrupt):
        lake.open(TRADES).append(trades(9, 10))
    first, read = read, []
    again = lake.open(TRADES).append(trades(0, 1, 2, 3, 9, 10))
    assert (again.rows, again.duplicates) == (1, 5)
    assert len(read) == 2
    assert not set(first) & set(read)


def test_other_values_of_an_id_that_is_text_are_a_conflict(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1))
    forget_everything(lake.open(TRADES).iceberg)
    row = trade_row(source_sequence=None, message_id="T-1")
    assert lake.open(TRADES).append(table_of(TRADES, [row])).rows == 1
    other = {**row, "price": Decimal("7.00000000")}
    elsewhere = {**row, "symbol": "ETHUSDT"}
    again = lake.open(TRADES).append(table_of(TRADES, [row, other, elsewhere, elsewhere]))
    assert (again.rows, again.duplicates, again.conflicts) == (1, 2, 1)
    (conflict,) = again.examples
    assert conflict.received["price"] == Decimal("7.00000000")
    assert conflict.stored["price"] == row["price"]
    assert str(conflict).startswith(f"BINANCE BTCUSDT {row['trade_id']} is already stored: price")


def test_rows_without_a_number_are_stored_once_by_k2_s_ids_whatever_other_ids_say(
    lake: Lake,
) -> None:
    """Lines of a file and aggregate trades that were sent twice; ids from elsewhere may repeat."""
    own = [
        trade_row(source_sequence=None, message_id=f"76632e9f-15b1-8342-8000-00000000000{n}")
        for n in range(3)
    ]
    foreign = trade_row(source_sequence=None, message_id="")
    first = lake.open(TRADES).append(table_of(TRADES, [*own[:2], foreign, foreign]))
    assert (first.rows, first.duplicates) == (4, 0)
    other = {**own[1], "price": Decimal("7.00000000")}
    again = lake.open(TRADES).append(table_of(TRADES, [own[0], other, own[2], own[2], foreign]))
    assert (again.rows, again.duplicates, again.conflicts) == (2, 2, 1)
    assert lake.open(TRADES).describe().rows == 6


def test_a_table_with_row_level_deletes_is_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are deleted still stand in the data files; pyiceberg itself writes no deletes."""
    lake.open(TRADES).append(trades(1))
    append_as_another_engine(lake.open(TRADES).iceberg, trades(2))
    real = Snapshot.manifests

    def with_deletes(self: Snapshot, io: FileIO) -> list[ManifestFile]:
        manifests = real(self, io)
        manifests[-1][3] = ManifestContent.DELETES
        return manifests

    assert ManifestFile.from_args(content=ManifestContent.DELETES)[3] is ManifestContent.DELETES
    monkeypatch.setattr(Snapshot, "manifests", with_deletes)
    with pytest.raises(BadData, match="table trades_v2 has row-level deletes") as caught:
        lake.open(TRADES).append(trades(2))
    assert "compact" in str(caught.value.hint)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_damaged_data_file_is_named(lake: Lake, share: float) -> None:
    lake.open(TRADES).append(trades(1))
    (path,) = lake.open(TRADES).plan().paths
    Path(path).write_bytes(Path(path).read_bytes()[: int(share * Path(path).stat().st_size)])
    with pytest.raises(BadData, match=f"data file .*{Path(path).name} is damaged"):
        lake.open(TRADES).append(trades(1))


def test_a_look_up_follows_a_table_that_is_compacted_and_expired(
    settings: Settings, lake: Lake
) -> None:
    """A writer that loaded the table before looks for rows in files that are gone."""
    lake.open(TRADES).append(trades(1, 2))
    lake.open(TRADES).append(trades(3))
    target = target_of(lake.open(TRADES).iceberg, settings)
    rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    lake.open(TRADES).append(trades(4))
    for path in lake_files_of(target.table):
        Path(path).unlink()
    commit = append_rows(target, trades(2, 3, 4, 5))
    assert (commit.rows, commit.duplicates) == (1, 3)
    assert numbers_of_newest(lake) == [1, 2, 3, 4, 5]


def lake_files_of(table: Table) -> list[str]:
    return [task.file.file_path.removeprefix("file://") for task in table.scan().plan_files()]


def numbers_of_newest(lake: Lake) -> list[int]:
    return sorted(lake.open(TRADES).iceberg.scan().to_arrow()["source_sequence"].to_pylist())


@pytest.mark.parametrize("hours", [20, 24 * 40, -24 * 3])
def test_a_number_that_may_be_stored_is_looked_for_on_all_days(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """A file that was loaded with wrong times has the same numbers on other days."""
    monkeypatch.setattr(position, "MAX_RANGES", 1)
    lake.open(TRADES).append(trades(1))
    lake.open(TRADES).append(trades(5))
    state = read_state(lake.open(TRADES).iceberg).position
    assert state is not None
    assert state.of(Series("BINANCE", "BTCUSDT")).states(np.array([5])) == [State.UNKNOWN]
    late = table_of(
        TRADES, [trade_row(source_sequence=5, timestamp=START + timedelta(hours=hours))]
    )
    again = lake.open(TRADES).append(late)
    assert (again.rows, again.conflicts) == (0, 1)


def test_look_ups_read_only_manifests_of_their_days(settings: Settings, lake: Lake) -> None:
    with lake.open(TRADES).iceberg.transaction() as transaction:
        transaction.set_properties({"commit.manifest-merge.enabled": "false"})
    for day in range(5):
        row = trade_row(source_sequence=day, timestamp=START + timedelta(days=day))
        lake.open(TRADES).append(table_of(TRADES, [row]))
    target = target_of(lake.open(TRADES).iceberg, settings)
    row = trade_row(source_sequence=3, timestamp=START + timedelta(days=3))
    assert append_rows(target, table_of(TRADES, [row])).duplicates == 1
    assert len(target.index._statistics) == 1
    assert len(target.index.files(target.table).paths) == 5


def test_rows_that_another_engine_deleted_are_welcome_again(lake: Lake) -> None:
    lake.open(TRADES).append(trades(1, 2, 3))
    lake.open(TRADES).iceberg.delete("source_sequence = 2")
    again = lake.open(TRADES).append(trades(1, 2, 3))
    assert (again.rows, again.duplicates) == (1, 2)
    assert numbers(lake) == [1, 2, 3]


def test_evolving_lets_other_engines_retry_on_old_tables(lake: Lake) -> None:
    with lake.open(TRADES).iceberg.transaction() as transaction:
        transaction.set_properties({"commit.retry.num-retries": "0"})
    change = "set commit.retry.num-retries 0 to 10"
    assert lake.open(TRADES).evolve(TRADES.avro, is_dry_run=True) == [change]
    assert lake.open(TRADES).evolve(TRADES.avro) == [change]
    assert lake.open(TRADES).iceberg.properties["commit.retry.num-retries"] == "10"
    assert lake.open(TRADES).evolve(TRADES.avro) == []
