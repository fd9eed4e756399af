"""A power cut: files that are not on disk are gone, but no commit that was reported."""

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from k2cli.config import load_settings
from k2cli.errors import K2Error
from k2cli.records import TRADES
from k2cli.simulator.options import SimulatorOptions
from k2cli.simulator.server import running_simulator
from k2cli.storage.lake import open_lake
from support.running import K2, k2_at

CATALOG = "catalog.db"  # SQLite puts it on disk, without Python's os.fsync
HEADER = "timestamp,symbol,price,quantity,side,id\n"
LOAD = (
    *("load", "csv", "--layout", "generic-trades", "--exchange", "X"),
    *("--asset-class", "equities", "--currency", "USD"),
)


class Disk:
    """What the disk holds of the files of this process: it watches every fsync."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._sizes: dict[int, int] = {}  # by inode
        self._names: dict[int, set[str]] = {}
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._watch)

    def _watch(self, descriptor: int) -> None:
        self._fsync(descriptor)
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._names[status.st_ino] = set(os.listdir(descriptor))
        else:
            self._sizes[status.st_ino] = status.st_size

    def cut_power(self, folder: Path) -> int:
        """Remove what is not on disk; return how many files and folders that were."""
        lost = 0
        names = self._names.get(folder.stat().st_ino, set())
        for path in folder.iterdir():
            if path.name.startswith(CATALOG):
                continue
            status = path.stat()
            if path.name not in names:
                lost += 1
                if path.is_dir():
                    shutil.rmtree(path)
                else:
                    path.unlink()
            elif path.is_dir():
                lost += self.cut_power(path)
            elif self._sizes.get(status.st_ino, 0) != status.st_size:
                lost += 1
                os.truncate(path, self._sizes.get(status.st_ino, 0))
        return lost


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def write(folder: Path, name: str, *, ids: range, day: int = 1) -> Path:
    path = folder / f"{name}.csv"
    lines = (f"2024-08-0{day}T00:00:{i % 60:02d}Z,ABC,1.5,2,BUY,{i}\n" for i in ids)
    path.write_text(HEADER + "".join(lines))
    return path


def load_files(k2: K2, folder: Path) -> int:
    k2(*LOAD, write(folder, "a", ids=range(10)))
    k2(*LOAD, write(folder, "b", ids=range(10, 30), day=2))
    return 30


def load_a_group(k2: K2, folder: Path) -> int:
    for day in range(1, 6):
        write(folder, f"day{day}", ids=range(day * 10, day * 10 + 10), day=day)
    k2(*LOAD, folder)
    return 50


def undo_a_load(k2: K2, folder: Path) -> int:
    load_files(k2, folder)
    k2("load", "undo", folder / "a.csv")
    return 20


def stream(k2: K2, folder: Path) -> int:
    assert folder
    with running_simulator(SimulatorOptions(first_id=0)) as simulator:
        k2(
            *("stream", "binance", "--symbols", "BTCUSDT", "--url", simulator.url),
            *("--to", "table", "--max-messages", "100", "--flush-rows", "20"),
        )
    return 100


WAYS = [load_files, load_a_group, undo_a_load, stream]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_was_reported_survives_a_power_cut(
    home: Path, tmp_path: Path, disk: Disk, way: Callable[[K2, Path], int]
) -> None:
    (tmp_path / "in").mkdir()
    k2 = k2_at(home, {"K2_TABLE_FSYNC": "true"})
    rows = way(k2, tmp_path / "in")
    disk.cut_power(home)
    answer = k2("query", "sql", "SELECT count(*) FROM trades", "--format", "csv").stdout
    assert answer.split() == ["count_star()", str(rows)]
    k2("table", "check", "trades")
    # The table is in order: it takes new rows.
    k2(*LOAD, write(tmp_path, "later", ids=range(900, 905), day=4))


def test_without_fsync_it_may_not(home: Path, tmp_path: Path, disk: Disk) -> None:
    k2 = k2_at(home, {"K2_TABLE_FSYNC": "false"})
    k2(*LOAD, write(tmp_path, "a", ids=range(10)))
    assert disk.cut_power(home) > 0
    with pytest.raises(K2Error), open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        lake.open(TRADES)


def test_a_failed_fsync_fails_the_commit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k2 = k2_at(home, {"K2_TABLE_FSYNC": "true"})
    k2(*LOAD, write(tmp_path, "a", ids=range(10)))
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if path.endswith(".parquet"):
            raise OSError(5, "Input/output error", path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
    result = k2(*LOAD, write(tmp_path, "b", ids=range(10, 20)), code=5)
    assert "Input/output error" in result.stderr
    monkeypatch.setattr(os, "fsync", fsync)
    k2(*LOAD, tmp_path / "b.csv")
    answer = k2("query", "sql", "SELECT count(*) FROM trades", "--format", "csv").stdout
    assert answer.split() == ["count_star()", "20"]
