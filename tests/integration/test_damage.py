"""Damaged files of a table: found by checksums and `k2 table check`, repaired by going back."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.table import Table

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData, ConfigError, Conflict
from k2cli.records import TRADES
from k2cli.storage.datafiles import read_data_file
from k2cli.storage.lake import Lake, open_lake
from services.seaweedfs import SeaweedFs
from support.builders import trades_batch
from support.running import Run


def flip_a_bit(path: Path, at: int) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def page_of(path: Path, column: str) -> int:
    """The offset of the last byte of a column's first row group, which is part of a page."""
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        group.column(n)
        for n in range(group.num_columns)
        if group.column(n).path_in_schema == column
    )
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    return int(begin + chunk.total_compressed_size - 1)


@pytest.mark.parametrize("column", ["price", "symbol", "message_id", "timestamp"])
def test_a_flipped_bit_in_a_page_is_found_by_its_checksum(lake: Lake, column: str) -> None:
    lake.open(TRADES).append(pa.Table.from_batches([trades_batch(50)]))
    table = lake.open(TRADES).iceberg
    file = next(iter(table.scan().plan_files())).file
    path = Path(file.file_path)
    assert sum(rows.num_rows for rows in read_data_file(table, file)) == 50
    flip_a_bit(path, page_of(path, column))
    with pytest.raises(BadData, match=r"is damaged: .*(CRC|checksum)"):
        list(read_data_file(table, file))


def test_a_file_that_the_disk_cannot_read_is_damaged(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake.open(TRADES).append(pa.Table.from_batches([trades_batch(50)]))

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("k2cli.storage.damage.read_data_file", failing)
    (damage,) = lake.check(TRADES).damage
    assert (damage.kind, damage.reason) == (
        "data file",
        "the disk cannot read it (input/output error)",
    )


def batch(exchange: str) -> pa.Table:
    return pa.Table.from_batches([trades_batch(40, exchange=exchange)])


@pytest.fixture
def home_of_three(settings: Settings) -> Settings:
    """Trades in three commits, 40 rows of an exchange each."""
    with open_lake(settings, create=True) as lake:
        for exchange in "ABC":
            lake.open(TRADES).append(batch(exchange))
    return settings


def table_at(settings: Settings) -> Table:
    with open_lake(settings) as lake:
        return lake.open(TRADES).iceberg


def exchanges(settings: Settings) -> list[str]:
    with open_lake(settings) as lake:
        rows = lake.open(TRADES).iceberg.scan().to_arrow()
    return sorted(set(rows["exchange"].to_pylist()))


def metadata_file(table: Table) -> Path:
    return Path(table.metadata_location)


def manifest_list(table: Table) -> Path:
    return Path(table.metadata.snapshots[-1].manifest_list)


def manifest(table: Table) -> Path:
    snapshot = table.metadata.snapshots[-1]
    own = [
        each
        for each in snapshot.manifests(table.io)
        if each.added_snapshot_id == snapshot.snapshot_id
    ]
    return Path(own[0].manifest_path)


def data_file(table: Table) -> Path:
    snapshot = table.metadata.snapshots[-1]
    own = [
        each
        for each in snapshot.manifests(table.io)
        if each.added_snapshot_id == snapshot.snapshot_id
    ]
    return Path(own[0].fetch_manifest_entry(table.io)[0].data_file.file_path)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])


def zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def scribble(path: Path) -> None:
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    content[half : half + 64] = b"\xff" * 64
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [empty, cut, zero, scribble, Path.unlink])
@pytest.mark.parametrize(
    ("kind", "find"),
    [
        ("metadata", metadata_file),
        ("manifest list", manifest_list),
        ("manifest", manifest),
        ("data file", data_file),
    ],
)
def test_check_names_a_damaged_file_and_repair_goes_back_to_before_it(
    home_of_three: Settings,
    kind: str,
    find: Callable[[Table], Path],
    damage: Callable[[Path], None],
) -> None:
    path = find(table_at(home_of_three))
    damage(path)
    with open_lake(home_of_three) as lake:
        assert [(each.kind, each.path) for each in lake.check(TRADES).damage] == [(kind, str(path))]
        plan = lake.plan_repair(TRADES)
        assert [fault.path for each in plan.damaged for fault in each.faults] == [str(path)]
        lake.repair(TRADES, plan)
        assert lake.check(TRADES).damage == []
    assert exchanges(home_of_three) == ["A", "B"]
    with open_lake(home_of_three) as lake:  # the position went back too
        commit = lake.open(TRADES).append(pa.concat_tables([batch("B"), batch("C")]))
    assert (commit.rows, commit.duplicates) == (40, 40)
    assert exchanges(home_of_three) == ["A", "B", "C"]


def test_repair_asks_first(run: Run, home_of_three: Settings) -> None:
    path = table_at(home_of_three).metadata_location
    empty(Path(path))
    checked = run(["table", "check", "trades", "-f", "json"])
    assert checked.exit_code == 6
    assert json.loads(checked.stdout)[0]["reason"] == "the file is empty"
    assert "hint: k2 table repair trades" in checked.stderr
    words = ["table", "repair", "trades"]
    for refused, code in ((words, 2), ([*words, "--dry-run"], 0)):
        result = run(refused)
        assert result.exit_code == code
        assert path in result.stdout
    assert run(["table", "snapshots", "trades"]).exit_code == 6
    assert run([*words, "--yes"]).exit_code == 0
    assert exchanges(home_of_three) == ["A", "B"]


def test_an_intact_table_needs_no_repair(run: Run, home_of_three: Settings) -> None:
    before = table_at(home_of_three).metadata_location
    checked = run(["table", "check", "trades", "-f", "json"])
    assert (checked.exit_code, checked.stdout) == (0, "[]\n")
    assert "intact: 3 data files, 120 rows" in checked.stderr
    result = run(["table", "repair", "trades"])
    assert result.exit_code == 0
    assert "nothing to repair" in result.stderr
    assert table_at(home_of_three).metadata_location == before


def test_several_damaged_metadata_files_are_passed_over(run: Run, home_of_three: Settings) -> None:
    table = table_at(home_of_three)
    log = [entry.metadata_file for entry in table.metadata.metadata_log]
    for path in (table.metadata_location, log[-1]):
        empty(Path(path))
    result = run(["table", "repair", "trades", "--yes", "-f", "json"])
    plan = json.loads(result.stdout)
    assert [each["path"] for each in plan["damaged"]] == [table.metadata_location, log[-1]]
    assert (plan["chosen"], plan["rows"]) == (log[-2], 40)
    assert (plan["left_files"], plan["left_rows"]) == (2, 80)
    assert exchanges(home_of_three) == ["A"]


def test_lost_commits_are_listed_where_they_are_known(run: Run, home_of_three: Settings) -> None:
    table = table_at(home_of_three)
    empty(data_file(table))
    plan = json.loads(run(["table", "repair", "trades", "--dry-run", "-f", "json"]).stdout)
    assert [(each["snapshot_id"], each["added_rows"]) for each in plan["lost"]] == [
        (table.metadata.snapshots[-1].snapshot_id, 40)
    ]


def test_damaged_history_is_dropped_and_no_row_lost(run: Run, home_of_three: Settings) -> None:
    oldest = table_at(home_of_three).metadata.snapshots[0]
    cut(Path(oldest.manifest_list))
    checked = json.loads(run(["table", "check", "trades", "-f", "json"]).stdout)
    assert [(each["snapshots"], each["is_current"]) for each in checked] == [(1, False)]
    result = run(["table", "repair", "trades", "--yes"])
    assert result.exit_code == 0
    assert "dropped" in result.stdout
    assert exchanges(home_of_three) == ["A", "B", "C"]
    assert oldest not in table_at(home_of_three).metadata.snapshots
    assert run(["table", "check", "trades"]).exit_code == 0


def test_a_file_that_every_state_needs_leaves_only_the_empty_table(
    run: Run, home_of_three: Settings
) -> None:
    table = table_at(home_of_three)
    first = table.metadata.snapshots[0].manifests(table.io)[0]
    data = Path(first.fetch_manifest_entry(table.io)[0].data_file.file_path)
    empty(data)
    plan = json.loads(run(["table", "repair", "trades", "--dry-run", "-f", "json"]).stdout)
    assert plan["rows"] == 0
    for path in Path(table.location(), "metadata").glob("00000-*"):
        path.unlink()
    result = run(["table", "repair", "trades", "--yes"])
    assert result.exit_code == 6
    assert "none of the 3 metadata files" in result.stderr
    assert str(data) in result.stderr
    assert table_at(home_of_three).metadata_location == table.metadata_location


def test_the_file_of_a_commit_that_lost_is_not_chosen(run: Run, home_of_three: Settings) -> None:
    table = table_at(home_of_three)
    before = Path(table.metadata.metadata_log[-1].metadata_file)
    oldest = Path(table.metadata.metadata_log[0].metadata_file)
    for name in ("00002-ffffffff.metadata.json", "00003-ffffffff.metadata.json"):
        shutil.copy(oldest, before.with_name(name))
    empty(Path(table.metadata_location))
    plan = json.loads(run(["table", "repair", "trades", "--dry-run", "-f", "json"]).stdout)
    assert plan["chosen"] == str(before)


def test_the_files_of_an_older_table_are_not_chosen(run: Run, home_of_three: Settings) -> None:
    table = table_at(home_of_three)
    text = Path(table.metadata_location).read_text()
    other = text.replace(str(table.metadata.table_uuid), "7c8f6f04-5d0b-4a9c-9d0c-000000000000")
    foreign = Path(table.metadata_location).with_name("00002-older.metadata.json")
    foreign.write_text(other)
    log = [Path(entry.metadata_file) for entry in table.metadata.metadata_log]
    empty(data_file(table))
    log[-1].unlink()
    plan = json.loads(run(["table", "repair", "trades", "--dry-run", "-f", "json"]).stdout)
    assert plan["chosen"] == str(log[-2])


def test_a_table_that_changed_meanwhile_is_not_repaired(home_of_three: Settings) -> None:
    with open_lake(home_of_three) as lake:
        path = data_file(lake.open(TRADES).iceberg)
        content = path.read_bytes()
        empty(path)
        plan = lake.plan_repair(TRADES)
        path.write_bytes(content)
        lake.open(TRADES).append(batch("D"))
        with pytest.raises(Conflict):
            lake.repair(TRADES, plan)
    assert exchanges(home_of_three) == ["A", "B", "C", "D"]


def test_a_damaged_load_log_is_named(run: Run, tmp_path: Path, settings: Settings) -> None:
    lines = [f"{n},61800.01,0.5,30900,{1723160000000 + n},true,true\n" for n in range(5)]
    csv = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    csv.write_text("id,price,qty,quote_qty,time,is_buyer_maker,is_best_match\n" + "".join(lines))
    assert run(["load", "csv", str(csv), "--layout", "binance-trades"]).exit_code == 0
    log = next(settings.home.rglob("k2-loads-log-*.parquet"))
    empty(log)
    checked = json.loads(run(["table", "check", "trades", "-f", "json"]).stdout)
    assert [(each["kind"], each["path"]) for each in checked] == [("load log", str(log))]


def test_a_rest_catalog_is_not_repaired(run: Run, seaweedfs: SeaweedFs) -> None:
    properties = seaweedfs.catalog_properties("rest")
    env = {
        f"K2_CATALOG_{key.replace('.', '__').replace('-', '_').upper()}": value
        for key, value in properties.items()
    }
    with open_lake(load_settings(env), create=True) as lake:
        lake.open(TRADES).append(batch("A"))
    assert run(["table", "check", "trades"], env=env).exit_code == 0
    result = run(["table", "repair", "trades", "--yes"], env=env)
    assert result.exit_code == ConfigError.exit_code
    assert "keeps track of the metadata files itself" in result.stderr
