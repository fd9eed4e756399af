"""`k2 table rollback`, `tag`, `untag` and `diff`."""

import json
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from support.foreign import rewrite_as_another_engine
from support.running import Run


def dump(folder: Path, first: int, count: int) -> str:
    """Write a file of trades in Binance's form."""
    path = folder / f"BTCUSDT-trades-2024-08-{first:02}.csv"
    lines = (
        f"{n},1.5,{n},1,{1_723_161_348_000 + n},True,True\n" for n in range(first, first + count)
    )
    path.write_text("".join(lines))
    return str(path)


def load(run: Run, path: str) -> dict[str, Any]:
    """Load a file of trades; return the summary."""
    words = ["load", "csv", path, "--layout", "binance-trades", "--summary", "json"]
    return {**json.loads(run(words).stdout)}


def snapshots(run: Run) -> list[dict[str, Any]]:
    """List the snapshots, newest first."""
    return [*json.loads(run(["table", "snapshots", "trades", "-f", "json"]).stdout)]


def diff(run: Run, *words: str) -> list[dict[str, Any]]:
    """Return the difference of two snapshots."""
    return [*json.loads(run(["table", "diff", "trades", *words, "-f", "json"]).stdout)]


@pytest.fixture
def paths(run: Run, tmp_path: Path) -> list[str]:
    """Two files that are loaded."""
    found = [dump(tmp_path, 1, 10), dump(tmp_path, 11, 5)]
    assert [load(run, path)["rows"] for path in found] == [10, 5]
    return found


def test_file_is_loaded_again_after_a_rollback_and_stored_once(run: Run, paths: list[str]) -> None:
    first = str(snapshots(run)[-1]["snapshot_id"])
    done = run(["table", "rollback", "trades", first, "--yes"])
    assert done.exit_code == 0
    assert "lost     5 rows added since then\n" in done.stdout
    assert "symbol   BINANCE BTCUSDT: lost 5\n" in done.stdout
    assert "can be loaded again" in done.stderr
    assert "table trades_v2 has 10 rows" in done.stderr
    assert [load(run, path)["rows"] for path in paths] == [0, 5]
    assert load(run, paths[1])["rows"] == 0
    assert snapshots(run)[0]["total_rows"] == 15


@pytest.mark.usefixtures("paths")
def test_dry_run_of_a_rollback_changes_nothing(run: Run) -> None:
    first = snapshots(run)[-1]
    words = ["table", "rollback", "trades", str(first["snapshot_id"]), "--dry-run", "-f", "json"]
    done = run(words)
    plan = json.loads(done.stdout)
    assert (plan["rows"], plan["newest_rows"], plan["lost_rows"], plan["commits"]) == (10, 15, 5, 1)
    expected = {"exchange": "BINANCE", "symbol": "BTCUSDT", "lost": 5, "restored": 0}
    assert plan["symbols"] == [expected]
    assert "dry run: nothing was changed" in done.stderr
    assert snapshots(run)[0]["refs"] == "main,k2"


@pytest.mark.usefixtures("paths")
def test_rollback_asks_and_does_nothing_without_a_terminal(run: Run) -> None:
    first = str(snapshots(run)[-1]["snapshot_id"])
    done = run(["table", "rollback", "trades", first])
    assert done.exit_code == 2
    assert "hint: confirm with --yes" in done.stderr
    assert snapshots(run)[0]["refs"] == "main,k2"


@pytest.mark.usefixtures("paths")
def test_rollback_to_the_newest_snapshot_is_nothing_to_do(run: Run) -> None:
    done = run(["table", "rollback", "trades", "now"])
    assert done.exit_code == 0
    assert "nothing to do" in done.stderr


@pytest.mark.usefixtures("paths")
def test_diff_between_ids_tags_and_times(run: Run, settings: Settings) -> None:
    first = str(snapshots(run)[-1]["snapshot_id"])
    tagged = run(["table", "tag", "trades", "before-load", first])
    assert (tagged.exit_code, tagged.stdout) == (0, "")
    expected = [{"exchange": "BINANCE", "symbol": "BTCUSDT", "added": 5, "removed": 0}]
    assert diff(run, "before-load", "main") == diff(run, first, "now") == expected
    with open_lake(settings) as lake:
        rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    assert diff(run, "before-load", "main") == expected
    nothing = run(["table", "diff", "trades", "-0s", "main", "-f", "json"])
    assert (nothing.exit_code, nothing.stdout) == (0, "[]\n")
    assert "no difference" in nothing.stderr


@pytest.mark.usefixtures("paths")
def test_diff_counts_the_rows_of_an_undone_load_as_removed(run: Run) -> None:
    run(["table", "tag", "trades", "both"])
    loads = json.loads(run(["load", "history", "-f", "json"]).stdout)
    assert run(["load", "undo", loads[0]["load"]]).exit_code == 0
    (found,) = diff(run, "both", "main")
    assert (found["added"], found["removed"]) == (0, 5)


@pytest.mark.usefixtures("paths")
@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["rollback", "trades", "123", "--yes"], 4, "k2 table snapshots trades_v2"),
        (["rollback", "trades", "9" * 19, "--yes"], 4, "may have expired"),
        (["rollback", "trades", "9" * 5_000, "--yes"], 4, "may have expired"),
        (["rollback", "trades", "2001-01-01", "--yes"], 4, "no snapshot at or before 2001"),
        (["rollback", "trades", "-9h", "--yes"], 4, "no snapshot at or before"),
        (["rollback", "trades", "2999-01-01", "--yes"], 2, "in the future"),
        (["rollback", "trades", "", "--yes"], 2, "the snapshot is empty"),
        (["rollback", "trades", "a\nb", "--yes"], 4, r"'a\nb'"),
        (["rollback", "bars", "now", "--yes"], 4, "tables: trades, quotes"),
        (["rollback", "quotes", "now", "--yes"], 4, "has no snapshots"),
        (["tag", "trades", ""], 2, "cannot be the name of a tag"),
        (["tag", "trades", "k2"], 2, "k2's own"),
        (["tag", "trades", "2026-01-13"], 2, "eod-2026-01-13"),
        (["tag", "trades", "../../x"], 2, "cannot be the name of a tag"),
        (["tag", "trades", "x", "nothing"], 4, "has no snapshot or tag 'nothing'"),
        (["tag", "quotes", "x"], 4, "has no snapshots"),
        (["untag", "trades", "x"], 4, "tags: none"),
        (["untag", "trades", "k2"], 2, "k2's own"),
        (["diff", "trades", "nothing", "main"], 4, "has no snapshot or tag 'nothing'"),
        (["diff", "quotes", "now", "main"], 4, "has no snapshots"),
    ],
    ids=range(20),
)
def test_what_cannot_be_done_says_why(run: Run, words: list[str], code: int, message: str) -> None:
    done = run(["table", *words])
    assert (done.exit_code, done.stdout) == (code, "")
    assert message in " ".join(done.stderr.split())


@pytest.mark.usefixtures("paths")
def test_tag_that_exists_is_left_alone(run: Run) -> None:
    assert run(["table", "tag", "trades", "eod"]).exit_code == 0
    again = run(["table", "tag", "trades", "eod"])
    assert again.exit_code == 4
    assert "hint: choose another name, or k2 table untag trades_v2 eod" in again.stderr
    assert run(["table", "untag", "trades", "eod"]).exit_code == 0
    assert run(["table", "tag", "trades", "eod"]).exit_code == 0
    assert "eod" in snapshots(run)[0]["refs"]


def test_no_tables_is_not_found(run: Run, home: Path) -> None:
    for words in (["rollback", "trades", "now"], ["tag", "trades", "x"], ["untag", "trades", "x"]):
        done = run(["table", *words])
        assert (done.exit_code, done.stdout) == (4, "")
    assert not home.exists()
