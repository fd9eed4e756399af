"""Which files are loaded, and what ends the loading of one."""

from contextlib import closing
from pathlib import Path

import pytest

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, UsageError
from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.load.files import find_files
from k2cli.pipelines.load.job import (
    FileSums,
    FileToLoad,
    LoadPolicy,
    check_digest,
    pump_file,
)
from k2cli.pipelines.pump import Allowance
from k2cli.records import TRADES
from k2cli.rejects import RejectLog

OF_FILE = CsvOptions(symbol="ABC", exchange="X", asset_class="equities", currency="EUR")


def nowhere(kind: object, rows: object) -> None:
    """Drop the rows."""


def file_of(path: Path) -> FileToLoad:
    reader = read_csv(path, load_layout("generic-trades"), OF_FILE)
    return FileToLoad(path=str(path), layout="generic-trades", kind=TRADES, reader=reader)


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("~nosuchuser/x.csv", NotFound),
        ("~nosuchuser/*.csv", NotFound),
        ("a**b/x.csv", (UsageError, NotFound)),  # a pattern from Python 3.13 on
        ("x[z-a].csv", (UsageError, NotFound)),
        ("x" * 300, ConfigError),
    ],
)
def test_paths_that_cannot_be_are_errors_of_k2(
    word: str, error: type[K2Error], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error):
        find_files([word])


def test_the_path_of_a_layout_may_name_no_user_that_is_not_there() -> None:
    with pytest.raises(NotFound, match="no such home directory"):
        load_layout("~nosuchuser/own.toml")


def test_a_checksum_file_that_cannot_be_read_is_an_error_of_the_configuration(
    tmp_path: Path,
) -> None:
    path = tmp_path / f"{'x' * 246}.csv"  # with .CHECKSUM the name is too long
    path.write_text("timestamp,price,size\n")
    file = file_of(path)
    with pytest.raises(ConfigError, match="CHECKSUM cannot be read"):
        check_digest(file)
    file.reader.close()


def test_a_full_file_of_rejects_ends_each_file_early(tmp_path: Path) -> None:
    path, clean = tmp_path / "bad.csv", tmp_path / "good.csv"
    path.write_text("timestamp,price,size\n" + "not a row\n" * 2_000_000)
    clean.write_text("timestamp,price,size\n2024-01-01,1,2\n")
    with RejectLog(tmp_path / "rejects.ndjson", run="") as rejects:
        policy = LoadPolicy(
            rejects=rejects,
            conflicts=ConflictReport(lambda *_, **__: None),
            allowance=Allowance(percent=100),
            max_reject_bytes=100_000,
        )
        for _ in range(2):
            file = file_of(path)
            with closing(file.reader), pytest.raises(BadData, match="limit 100,000") as caught:
                pump_file(file, nowhere, policy, FileSums())
            assert "--max-reject-bytes" in (caught.value.hint or "")
        sums = FileSums()
        file = file_of(clean)
        with closing(file.reader):
            pump_file(file, nowhere, policy, sums)
        assert sums.rows == 1
    assert (tmp_path / "rejects.ndjson").stat().st_size < 5_000_000
