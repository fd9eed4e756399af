"""A home folder that was moved or copied works again after `k2 table relocate`."""

import json
import os
import shutil
from pathlib import Path

import fastavro
import pyarrow as pa
import pytest
from pyiceberg.table.update.snapshot import ManageSnapshots

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData, ConfigError
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import open_lake
from k2cli.storage.state import carried_properties
from support.builders import quotes_batch, trades_batch
from support.running import Run

LOAD = ("load", "csv", "--layout", "binance-trades")


def batch(exchange: str) -> pa.Table:
    return pa.Table.from_batches([trades_batch(40, exchange=exchange)])


def settings_at(home: Path) -> Settings:
    return load_settings({"K2_HOME": str(home)})


def relocated(home: Path) -> int:
    """Relocate a home; return how many tables were moved."""
    with open_lake(settings_at(home), is_relocating=True) as lake:
        return len(lake.relocate())


def stored(home: Path) -> list[str]:
    with open_lake(settings_at(home)) as lake:
        return sorted(lake.open(TRADES).iceberg.scan().to_arrow()["trade_id"].to_pylist())


@pytest.fixture
def old(settings: Settings) -> Path:
    """A home with trades in three commits, a tag, and quotes."""
    with open_lake(settings, create=True) as lake:
        for exchange in "ABC":
            lake.open(TRADES).append(batch(exchange))
        lake.open(QUOTES).append(pa.Table.from_batches([quotes_batch(10)]))
        table = lake.open(TRADES).iceberg
        with table.transaction() as transaction:
            first = table.metadata.snapshots[0].snapshot_id
            ManageSnapshots(transaction).create_tag(first, "monday").commit()
    return settings.home


def files_that_name(home: Path, text: str) -> list[Path]:
    """The files of a home that have a path in them; Avro files are decoded."""
    found = []
    for path in home.rglob("*"):
        if path.suffix == ".avro":
            with path.open("rb") as stream:
                content = repr(list(fastavro.reader(stream)))
        else:
            content = path.read_bytes().decode("latin-1") if path.is_file() else ""
        if text in content and path.name != "catalog.db":  # SQLite keeps what it overwrites
            found.append(path)
    return found


def test_a_moved_home_keeps_everything(old: Path, tmp_path: Path) -> None:
    with open_lake(settings_at(old)) as lake:
        before, snapshots = lake.open(TRADES).iceberg, lake.open(TRADES).snapshots()
        known = carried_properties(before)
    rows = stored(old)
    new = tmp_path / "elsewhere" / "k2 home"
    new.parent.mkdir()
    old.rename(new)
    assert relocated(new) == 2
    assert files_that_name(new, f"{old}/") == []
    assert stored(new) == rows
    with open_lake(settings_at(new)) as lake:
        table = lake.open(TRADES).iceberg
        assert carried_properties(table) == known
        assert lake.open(TRADES).snapshots() == snapshots
        assert table.metadata.refs == before.metadata.refs
        assert table.scan(snapshot_id=snapshots[-1].snapshot_id).to_arrow().num_rows == 40
        assert lake.check(TRADES).damage == []
        assert lake.check(QUOTES).damage == []
        commit = lake.open(TRADES).append(pa.concat_tables([batch("A"), batch("D")]))
        assert (commit.rows, commit.duplicates) == (40, 40)
    assert relocated(new) == 0


def test_a_home_moves_back_and_forth_and_into_itself(old: Path, tmp_path: Path) -> None:
    rows = stored(old)
    inside, beside = old / "data", tmp_path / "beside"
    for source, target in ((old, beside), (beside, old), (old, beside)):
        source.rename(target)
        assert relocated(target) == 2
        assert stored(target) == rows
    old.mkdir()
    beside.rename(old / "x")
    assert relocated(old / "x") == 2
    shutil.copytree(old / "x", inside / "x")
    assert relocated(inside / "x") == 2
    assert stored(inside / "x") == rows


def test_a_home_moves_into_a_folder_below_where_it_was(old: Path, tmp_path: Path) -> None:
    rows = stored(old)
    old.rename(tmp_path / "aside")
    old.mkdir()
    (tmp_path / "aside").rename(old / "k2")
    assert relocated(old / "k2") == 2
    assert stored(old / "k2") == rows


def test_a_copy_never_touches_the_original(old: Path, tmp_path: Path) -> None:
    rows, copy = stored(old), tmp_path / "copy"
    shutil.copytree(old, copy)
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    for create in (False, True):
        with (
            pytest.raises(BadData, match="was moved or copied") as caught,
            open_lake(settings_at(copy), create=create),
        ):
            pass
        assert caught.value.hint == f"k2 table relocate --home {copy}"
    assert relocated(copy) == 2
    with open_lake(settings_at(copy)) as lake:
        for exchange in "EFGHIJKLMNOPQRSTUVWXYZ"[:12]:
            lake.open(TRADES).append(batch(exchange))
    assert before == {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    assert stored(old) == rows
    shutil.rmtree(old)
    assert len(stored(copy)) == len(rows) + 12 * 40


def test_a_symlink_to_the_home_is_no_move(old: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(old)
    assert relocated(link) == 0
    assert len(stored(link)) == 120


class Killed(BaseException):
    """Ends a run in the middle."""


@pytest.mark.parametrize("step", [0, 3, 7, 9, 11])  # of the 12 times that it syncs
def test_a_relocation_that_is_killed_can_be_repeated(
    old: Path, tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, new = stored(old), tmp_path / "new"
    old.rename(new)
    left, sync = [step], os.fsync

    def sync_or_die(descriptor: int) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync_or_die)
        with pytest.raises(Killed):
            relocated(new)
    new.rename(old)
    assert stored(old) == rows  # the old state is as it was
    old.rename(new)
    assert relocated(new) == 2
    assert stored(new) == rows


def test_a_relocation_that_is_killed_while_it_cleans_up_is_done(
    old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, new = stored(old), tmp_path / "new"
    old.rename(new)

    def die(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", die)
        with pytest.raises(Killed):
            relocated(new)
    assert stored(new) == rows
    assert relocated(new) == 0


@pytest.mark.parametrize("pattern", ["0*.metadata.json", "snap-*.avro", "*-m0.avro"])
@pytest.mark.parametrize("content", [None, b"", b"Obj\x01 and so on"])
def test_a_damaged_file_is_named_and_nothing_changed(
    old: Path, tmp_path: Path, pattern: str, content: bytes | None
) -> None:
    new = tmp_path / "new"
    old.rename(new)
    path = max((new / "warehouse/market_data/trades_v2/metadata").glob(pattern))
    path.unlink() if content is None else path.write_bytes(content)
    catalog = (new / "catalog.db").read_bytes()
    with pytest.raises(BadData, match=path.name):
        relocated(new)
    assert (new / "catalog.db").read_bytes() == catalog


def test_only_embedded_catalogs_are_relocated(run: Run, tmp_path: Path) -> None:
    env = {
        "K2_CATALOG_TYPE": "sql",
        "K2_CATALOG_URI": f"sqlite:///{tmp_path}/c.db",
        "K2_CATALOG_WAREHOUSE": str(tmp_path),
    }
    result = run(["table", "relocate"], env=env)
    assert result.exit_code == ConfigError.exit_code
    assert "only the embedded catalog" in result.stderr


def test_the_load_history_moves_with_the_home(run: Run, old: Path, tmp_path: Path) -> None:
    lines = [f"{n},61800.01,0.5,30900,{1723160000000 + n},true,true\n" for n in range(5)]
    csv = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    csv.write_text("id,price,qty,quote_qty,time,is_buyer_maker,is_best_match\n" + "".join(lines))
    assert run([*LOAD, str(csv)]).exit_code == 0
    new = tmp_path / "new"
    old.rename(new)
    env = {"K2_HOME": str(new)}
    status = run(["status", "--format", "json"], env=env)
    assert status.exit_code == BadData.exit_code
    catalog = json.loads(status.stdout)["checks"][0]
    assert (catalog["state"], catalog["hint"]) == ("red", f"k2 table relocate --home {new}")
    dry = run(["table", "relocate", "--dry-run"], env=env)
    assert set(dry.stdout.splitlines()) == {
        f"market_data.{name}_v2: {old} -> {new}" for name in ("quotes", "trades")
    }
    assert run(["query", "sql", "select 1 from trades"], env=env).exit_code == BadData.exit_code
    assert run(["table", "relocate"], env=env).exit_code == 0
    again = json.loads(run([*LOAD, str(csv), "--summary", "json"], env=env).stdout)
    assert (again["skipped"], again["rows"]) == (1, 0)
    assert run(["load", "undo", str(csv)], env=env).exit_code == 0
    assert len(stored(new)) == 120
