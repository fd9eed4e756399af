"""Compacted tables: the same rows in fewer, sorted files, whatever else writes meanwhile."""

import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.io import FileIO
from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table.snapshots import Operation, Snapshot

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData, Conflict
from k2cli.records import TRADES
from k2cli.storage import compact, expire
from k2cli.storage.compact import DayDone
from k2cli.storage.compactplan import Choice, plan_compaction
from k2cli.storage.datafiles import write_sorted_files
from k2cli.storage.expire import unreferenced_files
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.lease import KEY
from k2cli.storage.state import read_state
from support.builders import START, table_of, trade_row
from support.foreign import append_as_another_engine, rewrite_as_another_engine

ALL = Choice(target_bytes=128_000_000)
DAY = START.date()


def trades(first: int, count: int = 5, **over: Any) -> pa.Table:
    """Make trades of two symbols, a second apart."""
    rows = [
        trade_row(
            **{
                "source_sequence": number,
                "trade_id": f"BINANCE-{number}",
                "symbol": ("BTCUSDT", "ETHUSDT")[number % 2],
                "timestamp": START + timedelta(seconds=number),
                **over,
            }
        )
        for number in range(first, first + count)
    ]
    return table_of(TRADES, rows)


def fill(lake: Lake, files: int = 10, first: int = 0) -> LakeTable:
    """Commit small files of one closed day."""
    table = lake.open(TRADES)
    for number in range(first, first + files):
        table.append(trades(number * 5))
    return table


def run(table: LakeTable, choice: Choice = ALL) -> list[DayDone]:
    with table.compaction() as lease:
        done = [
            table.compact_day(plan, lease, choice, lambda _: None)
            for plan in table.plan_compaction(choice)
        ]
    return [each for each in done if each is not None]


def content(table: LakeTable) -> list[dict[str, Any]]:
    table.refresh()
    rows = table.iceberg.scan().to_arrow()
    return sorted(rows.to_pylist(), key=lambda row: (row["source_sequence"], row["symbol"]))


def paths(table: LakeTable) -> list[Path]:
    table.refresh()
    tasks = table.iceberg.scan().plan_files()
    return [Path(task.file.file_path.removeprefix("file://")) for task in tasks]


def on_disk(home: Path) -> set[Path]:
    return set(home.rglob("*.parquet"))


def test_a_closed_day_is_sorted_once_in_one_replace_snapshot(lake: Lake) -> None:
    table = fill(lake)
    before, state = content(table), read_state(table.iceberg)
    (done,) = run(table)
    assert (len(done.plan.stored), done.files) == (10, 1)
    assert content(table) == before
    (path,) = paths(table)
    rows = pq.read_table(path)
    keys = list(zip(*(rows[name].to_pylist() for name in TRADES.sort_by), strict=True))
    assert keys == sorted(keys)
    snapshot = table.iceberg.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert snapshot.summary.operation is Operation.REPLACE
    assert snapshot.summary["total-records"] == "50"
    after = read_state(table.iceberg)
    assert (after.position, after.properties) == (state.position, state.properties)
    assert KEY not in table.iceberg.properties
    assert not run(table)  # it is in shape
    again = table.append(trades(0, 60))
    assert (again.rows, again.duplicates) == (10, 50)


def test_the_running_day_is_packed_and_not_marked(lake: Lake) -> None:
    running = Choice(target_bytes=128_000_000, over_for_s=1e12)
    table = fill(lake, 7)
    assert not run(table, running)
    table = fill(lake, 1, first=7)
    assert [(len(each.plan.stored), each.files) for each in run(table, running)] == [(8, 1)]
    assert not run(table, running)
    fill(lake, 1, first=8)
    assert [(len(each.plan.stored), each.files) for each in run(table)] == [(2, 1)]


def test_every_value_survives(lake: Lake) -> None:
    table = lake.open(TRADES)
    for conditions in ([], ["a", ""], ["\U0001f600", "z" * 300]):
        table.append(
            trades(
                len(conditions) * 10, trade_conditions=conditions, vendor_data={"a": "", "b": "1"}
            )
        )
    table.append(trades(90, platform_sequence=2**63 - 1, source_sequence=None))
    before = content_any(table)
    assert run(table)
    assert content_any(table) == before


def content_any(table: LakeTable) -> list[str]:
    table.refresh()
    return sorted(map(repr, table.iceberg.scan().to_arrow().to_pylist()))


def test_a_target_size_makes_several_files_which_are_left_alone(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compact, "ROW_GROUP_ROWS", 20)
    table = fill(lake, 12)
    before = content(table)
    small = Choice(target_bytes=1)
    (done,) = run(table, small)
    assert done.files == 3
    assert content(table) == before
    assert not run(table, small)


@contextmanager
def before_commit(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> Iterator[None]:
    """Let something happen once, after the files were written and before they are committed."""
    real, calls = compact._Outputs._exchange, list[int]()

    def exchange(self: Any) -> Any:
        if not calls:
            calls.append(1)
            act()
        return real(self)

    monkeypatch.setattr(compact._Outputs, "_exchange", exchange)
    yield
    assert calls


def test_an_append_in_between_stays_and_the_files_are_used(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    table = fill(lake)
    with before_commit(monkeypatch, lambda: lake.open(TRADES).append(trades(500))):
        (done,) = run(table)
    assert done.files == 1
    assert [row["source_sequence"] for row in content(table)] == [*range(50), *range(500, 505)]
    position = read_state(table.iceberg).position
    assert position is not None
    again = table.append(trades(500))
    assert (again.rows, again.duplicates) == (0, 5)
    assert len(on_disk(home)) == 10 + 1 + 1


def test_an_append_and_expiry_in_between_do_not_matter(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fill(lake)

    def act() -> None:
        other = lake.open(TRADES)
        other.append(trades(500))
        other.refresh()
        current = other.iceberg.current_snapshot()
        gone = [each.snapshot_id for each in other.iceberg.snapshots() if each != current]
        other.iceberg.maintenance.expire_snapshots().by_ids(gone).commit()

    with before_commit(monkeypatch, act):
        (done,) = run(table)
    assert done.files == 1
    assert len(content(table)) == 55


def test_files_replaced_in_between_are_planned_again(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    table = fill(lake)
    before = content(table)

    def act() -> None:
        rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)

    with before_commit(monkeypatch, act):
        assert not run(table)  # one file is left
    assert content(table) == before
    assert len(on_disk(home)) == 10 + 1


def test_a_delete_in_between_wins(lake: Lake, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    table = fill(lake)
    with before_commit(
        monkeypatch, lambda: lake.open(TRADES).iceberg.delete("source_sequence < 5")
    ):
        run(table)
    assert [row["source_sequence"] for row in content(table)] == list(range(5, 50))
    assert len(paths(table)) == 1
    assert len(on_disk(home)) == 10 + 1


def test_another_engine_that_appends_in_between_is_counted(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fill(lake)
    with before_commit(
        monkeypatch, lambda: append_as_another_engine(lake.open(TRADES).iceberg, trades(500))
    ):
        run(table)
    assert len(content(table)) == 55
    assert table.append(trades(500)).rows == 0


def test_a_missing_file_is_named_and_nothing_is_left(lake: Lake, home: Path) -> None:
    table = fill(lake)
    gone = paths(table)[3]
    gone.unlink()
    before, snapshot = on_disk(home), table.iceberg.current_snapshot()
    with pytest.raises(BadData, match=gone.name):
        run(table)
    table.refresh()
    assert on_disk(home) == before
    assert table.iceberg.current_snapshot() == snapshot
    assert KEY not in table.iceberg.properties


def test_a_damaged_file_is_named_and_nothing_is_left(lake: Lake, home: Path) -> None:
    table = fill(lake)
    bad = paths(table)[3]
    bad.write_bytes(bad.read_bytes()[:-200])
    before = on_disk(home)
    with pytest.raises(BadData, match=bad.name):
        run(table)
    assert on_disk(home) == before


def test_a_full_disk_changes_nothing(
    lake: Lake, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = fill(lake)
    before = on_disk(home)
    real = write_sorted_files

    def full(*args: Any, **kwargs: Any) -> Iterator[Any]:
        yield from real(*args, **kwargs)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compact, "write_sorted_files", full)
    with pytest.raises(Exception, match="No space left") as failed:
        run(table)
    assert failed.type.__name__ == "Unavailable"
    assert on_disk(home) == before
    assert len(paths(table)) == 10


def test_a_second_compaction_is_refused_until_the_lease_ends(lake: Lake) -> None:
    table = fill(lake)
    with table.compaction() as lease:
        with pytest.raises(Conflict, match="another compaction of trades_v2 is running"):
            run(lake.open(TRADES))
        taken = json.loads(lake.open(TRADES).iceberg.properties[KEY])
        stale = {**taken, "until": int(time.time()) - 1}
        with lake.open(TRADES).iceberg.transaction() as transaction:
            transaction.set_properties({KEY: json.dumps(stale)})
        assert run(lake.open(TRADES))
        with pytest.raises(Conflict, match="took over"):
            lease.check(lake.open(TRADES).iceberg)


def test_a_lease_of_a_process_that_died_is_taken_over(lake: Lake) -> None:
    table = fill(lake)
    with table.compaction():
        taken = json.loads(lake.open(TRADES).iceberg.properties[KEY])
        dead = {**taken, "pid": 2**22 + 1}
        with lake.open(TRADES).iceberg.transaction() as transaction:
            transaction.set_properties({KEY: json.dumps(dead)})
        assert run(lake.open(TRADES))


def test_a_compaction_that_was_taken_over_does_not_commit(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    table = fill(lake)

    def take_over() -> None:
        with lake.open(TRADES).iceberg.transaction() as transaction:
            transaction.remove_properties(KEY)

    with (
        before_commit(monkeypatch, take_over),
        pytest.raises(Conflict, match="took over"),
    ):
        run(table)
    assert len(on_disk(home)) == 10


def test_a_stream_that_appends_meanwhile_loses_nothing(lake: Lake, settings: Settings) -> None:
    table = fill(lake)
    failures: list[BaseException] = []
    is_done = threading.Event()
    numbers: list[int] = []

    def stream() -> None:
        try:
            with open_lake(settings) as other:
                mine = other.open(TRADES)
                number = 100
                while not is_done.is_set() or len(numbers) < 10:
                    assert mine.append(trades(number * 5)).rows == 5
                    numbers.extend(range(number * 5, number * 5 + 5))
                    number += 1
                    time.sleep(0.2)
        except BaseException as exc:  # noqa: BLE001  reported below
            failures.append(exc)

    thread = threading.Thread(target=stream)
    thread.start()
    try:
        for _ in range(3):
            run(table)
    finally:
        is_done.set()
        thread.join()
    assert not failures
    assert [row["source_sequence"] for row in content(table)] == [*range(50), *numbers]


def test_row_lineage_is_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = fill(lake, 2)
    metadata = table.iceberg.metadata.model_copy(update={"format_version": 3})
    monkeypatch.setattr(table.iceberg, "metadata", metadata)
    with pytest.raises(BadData, match="format version 3"):
        plan_compaction(table.iceberg, TRADES, ALL)


def test_row_level_deletes_are_refused(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    table = fill(lake, 2)
    real = Snapshot.manifests

    def with_deletes(self: Snapshot, io: FileIO) -> list[ManifestFile]:
        found = real(self, io)
        for each in found:
            each[3] = ManifestContent.DELETES
        return found

    assert real(table.iceberg.snapshots()[-1], table.iceberg.io)[0].content is ManifestContent.DATA
    monkeypatch.setattr(Snapshot, "manifests", with_deletes)
    with pytest.raises(BadData, match="row-level deletes"):
        run(table)


def test_days_are_chosen(lake: Lake) -> None:
    table = fill(lake, 2)
    later = timedelta(days=1)
    for number in (0, 1):
        rows = [trade_row(source_sequence=900 + number, timestamp=START + later)]
        table.append(table_of(TRADES, rows))
    assert [plan.day for plan in table.plan_compaction(ALL)] == [DAY, DAY + later]
    one = Choice(day=DAY + later, target_bytes=128_000_000)
    assert [plan.day for plan in table.plan_compaction(one)] == [DAY + later]
    none = Choice(day=date(2001, 1, 1), target_bytes=128_000_000)
    assert not table.plan_compaction(none)
    old = Choice(older_than_s=1e10, target_bytes=128_000_000)
    assert not table.plan_compaction(old)
    assert len(run(table, one)) == 1
    assert [plan.day for plan in table.plan_compaction(ALL)] == [DAY]


def test_expiry_after_a_compaction_deletes_what_it_replaced(
    lake: Lake, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """Only the manifests of deleted files are read, and the result is that of reading all."""
    table = fill(lake)
    run(table)
    fill(lake, 10, first=10)
    run(table)
    fill(lake, 3, first=20)
    table.refresh()
    snapshots = sorted(table.iceberg.snapshots(), key=lambda each: each.sequence_number or 0)
    for count in range(1, len(snapshots)):
        gone = {each.snapshot_id for each in snapshots[:count]}
        quick = unreferenced_files(table.iceberg, gone, next_log=None)
        with monkeypatch.context() as patch:
            patch.setattr(expire, "_is_oldest", lambda *_: False)
            assert unreferenced_files(table.iceberg, gone, next_log=None) == quick
    limits = {"K2_HOME": str(home), "K2_TABLE_KEEP_SNAPSHOTS": "2", "K2_TABLE_KEEP_FOR": "0s"}
    with open_lake(load_settings(limits)) as other:
        other.open(TRADES).append(trades(900))
    assert len(content(table)) == 23 * 5 + 5
    assert on_disk(home) >= set(paths(table))
    assert len(on_disk(home)) <= len(paths(table)) + 1


_KILLED = """
import sys
from k2cli.config import load_settings
from k2cli.records import TRADES
from k2cli.storage.compactplan import Choice
from k2cli.storage.datafiles import write_sorted_files
from k2cli.storage.expire import unreferenced_files
from k2cli.storage.lake import open_lake

with open_lake(load_settings({"K2_HOME": sys.argv[1]})) as lake:
    table, choice = lake.open(TRADES), Choice(target_bytes=128_000_000)
    print("ready", flush=True)
    with table.compaction() as lease:
        for plan in table.plan_compaction(choice):
            table.compact_day(plan, lease, choice, lambda _: None)
"""


def test_no_row_is_lost_by_a_compaction_that_is_killed(lake: Lake, home: Path) -> None:
    dice = random.Random(15)
    expected: list[int] = []
    table = lake.open(TRADES)
    for number in range(10):
        fill(lake, 8, first=number * 8)
        expected += range(number * 40, number * 40 + 40)
        words = [sys.executable, "-c", _KILLED, str(home)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            with suppress(subprocess.TimeoutExpired):
                process.wait(dice.uniform(0, 0.5))
            process.kill()
        assert [row["source_sequence"] for row in content(table)] == expected
        assert table.append(trades(number * 40, 40)).rows == 0
    run(table)  # the lease of a process that was killed does not block it
    assert not table.plan_compaction(ALL)
    assert len(paths(table)) <= 3
    assert [row["source_sequence"] for row in content(table)] == expected
