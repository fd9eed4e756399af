"""`k2 table` and `k2 config`: looking around."""

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest

from k2cli.config import Settings
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from support.builders import START, table_of, trade_row, trades_batch
from support.foreign import append_as_another_engine
from support.running import Run


@pytest.fixture
def filled(settings: Settings) -> None:
    """Trades in two commits, and an empty table of quotes."""
    with open_lake(settings, create=True) as lake:
        for exchange in ("BINANCE", "BINANCE_US"):
            lake.open(TRADES).append(pa.Table.from_batches([trades_batch(10, exchange=exchange)]))


@pytest.mark.usefixtures("filled")
def test_list_tells_size_and_age_of_every_table(run: Run) -> None:
    listed = json.loads(run(["table", "list", "--format", "json"]).stdout)
    assert [(each["kind"], each["rows"], each["snapshots"]) for each in listed] == [
        ("trades", 20, 2),
        ("quotes", 0, 0),
    ]


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize("name", ["trades", "trades_v2", "market_data.trades_v2"])
def test_describe_shows_columns_with_their_meaning(run: Run, name: str) -> None:
    text = run(["table", "describe", name]).stdout
    assert "day(timestamp)" in text
    assert "decimal(18, 8)" in text
    assert "The aggressor side" in text
    assert json.loads(run(["table", "describe", name, "-f", "json"]).stdout)["rows"] == 20


@pytest.mark.usefixtures("filled")
def test_snapshots_are_listed_newest_first(run: Run) -> None:
    listed = json.loads(run(["table", "snapshots", "trades", "-f", "json"]).stdout)
    assert [each["total_rows"] for each in listed] == [20, 10]
    assert listed[0]["refs"] == "main,k2"


@pytest.mark.usefixtures("filled")
def test_snapshots_of_an_empty_table_are_none(run: Run) -> None:
    result = run(["table", "snapshots", "quotes", "-f", "json"])
    assert (result.exit_code, result.stdout) == (0, "[]\n")


@pytest.mark.parametrize("command", [["list"], ["describe", "trades"], ["snapshots", "trades"]])
def test_no_tables_is_not_found(run: Run, command: list[str], home: Path) -> None:
    result = run(["table", *command])
    assert (result.exit_code, result.stdout) == (4, "")
    assert "hint: k2 demo" in result.stderr
    assert not home.exists()


def test_unknown_table_is_not_found(run: Run) -> None:
    result = run(["table", "describe", "bars"])
    assert result.exit_code == 4
    assert "tables: trades, quotes" in result.stderr


def test_config_shows_what_is_in_force_without_secrets(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "k2.toml").write_text('[table]\nkeep_for = "6h"\n')
    env = {"K2_CATALOG_S3__SECRET_ACCESS_KEY": "hush", "K2_STREAM_FLUSH_ROWS": "5"}
    text = run(["config", "show"], env=env).stdout
    assert "hush" not in text
    assert '"s3.secret-access-key" = "********"' in text
    assert "flush_rows = 5" in text
    assert 'keep_for = "21600s"' in text
    assert json.loads(run(["config", "show", "-f", "json"], env=env).stdout)["home"] == str(home)


def test_config_path_is_printed_before_the_file_exists(run: Run, home: Path) -> None:
    result = run(["config", "path"])
    assert result.stdout == f"{home / 'k2.toml'}\n"
    assert "does not exist" in result.stderr


def test_wrong_setting_is_exit_3(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "k2.toml").write_text("[table]\nkeep_fro = 1\n")
    result = run(["config", "show"])
    assert result.exit_code == 3
    assert "hint: did you mean keep_for?" in result.stderr


def test_dedupe_counts_and_removes_what_is_stored_twice(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    rows = pa.Table.from_batches([trades_batch(10)])
    late = START + timedelta(days=1)
    price = Decimal("1.00000000")
    row = trade_row(price=price, source_sequence=1_002, ingestion_timestamp=late)
    other = table_of(TRADES, [row, row])
    with open_lake(settings, create=True) as lake:
        lake.open(TRADES).append(rows)
        for added in (rows, other):
            append_as_another_engine(lake.open(TRADES).iceberg, added)
    rejects = tmp_path / "conflicts.ndjson"
    words = ["table", "dedupe", "trades", "--summary", "json", "--rejects", str(rejects)]
    unnamed = run([*words[:5], "--dry-run"])
    assert "use --rejects FILE to list them" in unnamed.stderr
    assert not (settings.home / "rejects").exists()
    dry = run([*words, "--dry-run"])
    assert json.loads(dry.stdout) == {"days": 1, "removed": 11, "conflicts": 1}
    assert "dry run: nothing was changed" in dry.stderr
    assert json.loads(run(words).stdout) == {"days": 1, "removed": 11, "conflicts": 1}
    kept = run([*words, "--keep", "newest"])
    assert json.loads(kept.stdout)["removed"] == 1
    assert json.loads(run(words).stdout) == {"days": 0, "removed": 0, "conflicts": 0}
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert len(lines) == 3
    assert "price 1.00000000 (stored 61800.02000000)" in lines[0]["reason"]
    assert all(line["run"] for line in lines)


def test_dedupe_of_a_table_that_is_not_there_exits_with_4(run: Run) -> None:
    result = run(["table", "dedupe", "trades"])
    assert (result.exit_code, result.stdout) == (4, "")


@pytest.mark.usefixtures("filled")
def test_compact_shows_the_plan_and_then_does_it_once(run: Run) -> None:
    planned = run(["table", "compact", "--dry-run", "--summary", "json"])
    assert planned.exit_code == 0
    assert "2 files, 20 rows" in planned.stderr
    assert "dry run: nothing was changed" in planned.stderr
    sums = json.loads(planned.stdout)
    assert (sums["days"], sums["files_before"], sums["files_after"]) == (1, 2, 1)
    assert json.loads(run(["table", "describe", "trades", "-f", "json"]).stdout)["files"] == 2
    done = json.loads(run(["table", "compact", "trades", "--summary", "json"]).stdout)
    assert (done["days"], done["rows"], done["files_after"], done["failed"]) == (1, 20, 1, 0)
    assert json.loads(run(["table", "describe", "trades", "-f", "json"]).stdout)["files"] == 1
    again = run(["table", "compact", "trades"])
    assert again.exit_code == 0
    assert "nothing to do" in again.stderr


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["trades", "--target-size", "0"], 2, "not a size"),
        (["trades", "--day", "yesterday", "--older-than", "1h"], 2, "exclude each other"),
        (["nothing"], 4, "does not exist"),
        (["trades", "--day", "2001-01-01"], 0, "nothing to do"),
        (["quotes"], 0, "nothing to do"),
    ],
    ids=["no-size", "both", "unknown-table", "empty-day", "empty-table"],
)
def test_compact_says_why_it_does_nothing(
    run: Run, words: list[str], code: int, message: str
) -> None:
    result = run(["table", "compact", *words])
    assert result.exit_code == code
    assert message in " ".join(result.stderr.split())


def test_compact_names_a_missing_file_and_goes_on(run: Run, settings: Settings, home: Path) -> None:
    with open_lake(settings, create=True) as lake:
        for day in (0, 1):
            for number in (1, 2):
                moment = START + timedelta(days=day, seconds=number)
                rows = [trade_row(source_sequence=10 * day + number, timestamp=moment)]
                lake.open(TRADES).append(table_of(TRADES, rows))
    gone = sorted(home.rglob(f"*{START.date()}*/*.parquet"))[0]
    gone.unlink()
    result = run(["table", "compact", "trades", "--summary", "json"])
    assert result.exit_code == 6
    assert gone.name in result.stderr
    sums = json.loads(result.stdout)
    assert (sums["days"], sums["failed"]) == (1, 1)
