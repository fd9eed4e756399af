"""What files came to is known, also when their group cannot be committed to its end."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import load_settings
from k2cli.errors import Unavailable
from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.load import tables
from k2cli.pipelines.load.job import FileToLoad, LoadPolicy, Outcome
from k2cli.pipelines.load.tables import load_into_tables
from k2cli.pipelines.pump import Allowance
from k2cli.records import TRADES
from k2cli.rejects import RejectLog
from k2cli.storage.lake import open_lake
from k2cli.storage.laketable import LakeTable

OF_FILE = CsvOptions(symbol="ABC", exchange="X", asset_class="equities", currency="EUR")


def file_of(folder: Path, name: str, *lines: str) -> FileToLoad:
    path = folder / name
    path.write_text("\n".join(["timestamp,price,size", *lines]))
    reader = read_csv(path, load_layout("generic-trades"), OF_FILE)
    return FileToLoad(path=str(path), layout="generic-trades", kind=TRADES, reader=reader)


def test_outcomes_that_are_settled_are_yielded_before_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, calls = LakeTable.load_group, 0

    def commit_once(table: LakeTable, *args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 1:
            raise Unavailable("the catalog does not answer")
        return commit(table, *args)

    monkeypatch.setattr(LakeTable, "load_group", commit_once)
    monkeypatch.setattr(tables, "_GROUP_ROWS", 1)
    files = [
        file_of(tmp_path, "stored.csv", "2024-01-01,1,2", "2024-01-01,1,3"),
        file_of(tmp_path, "refused.csv", "2024-01-01,-1,2"),
        file_of(tmp_path, "open.csv", "2024-01-01,1,2"),
    ]
    settings = load_settings({}, home=tmp_path / "home")
    outcomes: list[Outcome] = []
    with (
        open_lake(settings, create=True) as lake,
        RejectLog(tmp_path / "rejects", run="") as rejects,
    ):
        policy = LoadPolicy(
            rejects=rejects,
            conflicts=ConflictReport(lambda *_, **__: None),
            allowance=Allowance(),
        )
        loads = load_into_tables(files, lake, policy, lambda _: nullcontext(lambda _: None))
        with pytest.raises(Unavailable, match="the catalog does not answer"):
            outcomes.extend(loads)
        assert lake.open(TRADES).describe().rows == 2
    assert [(Path(each.file.path).name, each.sums.rows) for each in outcomes] == [
        ("stored.csv", 2),
        ("refused.csv", 0),
    ]
    assert outcomes[1].fault is not None
