"""Who may read what k2 creates, and links that it does not follow."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.running import K2, k2_at

ROWS = "symbol,timestamp,price,quantity,side,trade_id\n"
GOOD, BAD = (f"{ROWS}BTCUSDT,{time},1,2,BUY,1\n" for time in ("2024-01-01T00:00:00Z", "never"))
OPTIONS = ("--layout", "generic-trades", "--exchange", "X", "--currency", "USDT")
LOAD = ("load", "csv", *OPTIONS, "--asset-class", "crypto")


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o026)
    yield
    os.umask(before)


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Return the permissions of all folders and of all files."""
    folders: set[int] = set()
    files: set[int] = set()
    for path in (folder, *folder.rglob("*")):
        (folders if path.is_dir() else files).add(stat.S_IMODE(path.stat().st_mode))
    return folders, files


def fill(k2: K2, folder: Path) -> None:
    """Store a row, and rejects in the home folder and in a file of its own."""
    for name, text in (("good.csv", GOOD), ("bad.csv", BAD)):
        (folder / name).write_text(text)
    k2(*LOAD, folder / "good.csv")
    k2(*LOAD, folder / "bad.csv", code=6)
    k2(*LOAD, folder / "bad.csv", "--rejects", folder / "mine" / "rejects.ndjson", code=6)
    k2("query", "trades", "-o", folder / "mine" / "answer.csv")
    k2("config", "init")


def test_home_is_for_its_owner_and_other_files_follow_the_umask(tmp_path: Path) -> None:
    home = tmp_path / "a" / "home"
    fill(k2_at(home), tmp_path)
    assert modes(home) == ({0o700}, {0o600})
    assert {path.name for path in home.iterdir()} >= {"catalog.db", "warehouse", "rejects"}
    assert modes(tmp_path / "mine") == ({0o751}, {0o640})
    assert stat.S_IMODE(home.parent.stat().st_mode) == 0o751


def test_shared_home_follows_the_umask(home: Path, tmp_path: Path) -> None:
    fill(k2_at(home, {"K2_HOME_SHARED": "true"}), tmp_path)
    (home / "k2.toml").unlink()  # always its owner's: it may hold secrets
    assert modes(home) == ({0o751}, {0o640})


def test_existing_home_keeps_its_permissions(home: Path, tmp_path: Path) -> None:
    home.mkdir(0o751)
    (home / "k2.toml").write_text("[home]\nshared = false\n")
    (tmp_path / "good.csv").write_text(GOOD)
    k2_at(home)(*LOAD, tmp_path / "good.csv")
    assert stat.S_IMODE(home.stat().st_mode) == 0o751
    assert stat.S_IMODE((home / "k2.toml").stat().st_mode) == 0o640
    assert stat.S_IMODE((home / "catalog.db").stat().st_mode) == 0o600


def test_tables_elsewhere_follow_the_umask(home: Path, tmp_path: Path) -> None:
    warehouse = tmp_path / "warehouse"
    fill(k2_at(home, {"K2_CATALOG_WAREHOUSE": str(warehouse)}), tmp_path)
    assert modes(warehouse) == ({0o751}, {0o640})
    assert modes(home) == ({0o700}, {0o600})


@pytest.fixture
def dangling(tmp_path: Path) -> Path:
    """A link to a file that does not exist, in a folder that does."""
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "target.csv")
    return link


Words = Callable[[Path, Path], list[object]]


@pytest.mark.parametrize(
    "words",
    [
        lambda link, _: ["query", "symbols", "-o", link],
        lambda link, _: ["query", "trades", "-o", link, "--force"],
        lambda link, _: ["export", "trades", "-l", "generic-trades", "-o", link],
        lambda link, _: ["config", "init", "-o", link, "--force"],
        lambda link, file: [*LOAD, file, "--rejects", link],
        lambda link, file: ["produce", "trades", file, "--rejects", link],
        lambda link, _: ["stream", "binance", "-s", "BTCUSDT", "--rejects", link],
        lambda link, _: ["stream", "binance", "-s", "BTCUSDT", "--log-file", link],
    ],
)
def test_link_that_leads_nowhere_is_refused(
    home: Path, dangling: Path, tmp_path: Path, words: Words
) -> None:
    file = tmp_path / "bad.csv"
    file.write_text(BAD)
    registry = {"K2_SCHEMA_REGISTRY_URL": "http://127.0.0.1:1"}
    run = k2_at(home, {**registry, "K2_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"})
    shown = run(*words(dangling, file), code=2).stderr
    assert f"error: {dangling} is a link to a file that does not exist\n" in shown
    assert dangling.is_symlink()
    assert not dangling.exists()


def test_link_to_a_file_is_followed(home: Path, tmp_path: Path) -> None:
    fill(k2_at(home), tmp_path)
    target, link = tmp_path / "target.csv", tmp_path / "link.csv"
    target.write_text("old")
    link.symlink_to(target)
    k2_at(home)("query", "trades", "-o", link, code=2)
    assert target.read_text() == "old"
    k2_at(home)("query", "trades", "-o", link, "--force")
    assert link.is_symlink()
    assert "BTCUSDT" in target.read_text()
    k2_at(home)(*LOAD, tmp_path / "bad.csv", "--rejects", link, code=6)
    assert target.read_text().count("BTCUSDT") == 2
