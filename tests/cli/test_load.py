"""`k2 load`: what it loads, what it refuses, and that it does so once."""

import gzip
import hashlib
import json
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path

import pytest

from k2cli.commands.terminal.signals import Interrupts, Terminated
from k2cli.config import Settings
from k2cli.errors import BadData, Unavailable
from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.storage.lake import open_lake
from support.running import K2_COMMAND, Result, Run, kill_while_writing, run_k2, start_k2
from support.terminal import Terminal
from support.waiting import PATIENCE_S, wait_for

BINANCE = ["--layout", "binance-trades"]
GENERIC = ["--layout", "generic-trades", "--exchange", "X", "--asset-class", "crypto"]
HEADER = "symbol,timestamp,price,quantity,side,currency\n"


def binance_lines(first: int, count: int) -> str:
    return "".join(
        f"{n},61800.10000000,0.00010000,6.18001000,{1_723_161_348_055 + n},True,True\n"
        for n in range(first, first + count)
    )


def rows_of(settings: Settings, kind: RecordKind = TRADES) -> int:
    with open_lake(settings) as lake:
        return lake.open(kind).describe().rows


def sums(result: Result) -> dict[str, int]:
    return {**json.loads(result.stdout.splitlines()[-1])}


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    """A day's file as the exchange publishes it."""
    path = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    path.write_text(binance_lines(100, 1_000))
    return path


def test_file_is_loaded_once(run: Run, dump: Path, settings: Settings) -> None:
    first = run(["load", "csv", str(dump), *BINANCE, "--summary", "json"])
    second = run(["load", "csv", str(dump), *BINANCE, "--summary", "json"])
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert (sums(first)["loaded"], sums(first)["rows"]) == (1, 1_000)
    assert (sums(second)["skipped"], sums(second)["rows"]) == (1, 0)
    assert "loaded before" in second.stderr
    assert rows_of(settings) == 1_000


def test_log_on_a_full_disk_stops_no_load(
    dump: Path, k2_env: dict[str, str], settings: Settings
) -> None:
    with Path("/dev/full").open("w") as full:
        process = start_k2("load", "csv", dump, *BINANCE, env=k2_env, stderr=full)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert rows_of(settings) == 1_000


def test_force_loads_again_what_is_not_stored(run: Run, dump: Path, settings: Settings) -> None:
    run(["load", "csv", str(dump), *BINANCE])
    again = run(["load", "csv", str(dump), *BINANCE, "--force", "--summary", "json"])
    assert again.exit_code == 0
    assert (sums(again)["loaded"], sums(again)["rows"], sums(again)["duplicates"]) == (1, 0, 1_000)
    assert rows_of(settings) == 1_000


def test_two_runs_at_once_load_a_file_once(run: Run, dump: Path, settings: Settings) -> None:
    args = ["load", "csv", str(dump), *BINANCE, "--summary", "json"]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run(args), range(3)))
    assert [result.exit_code for result in results] == [0, 0, 0]
    assert sorted(sums(result)["loaded"] for result in results) == [0, 0, 1]
    assert rows_of(settings) == 1_000


def test_history_tells_what_was_loaded(run: Run, dump: Path) -> None:
    run(["load", "csv", str(dump), *BINANCE])
    (entry,) = json.loads(run(["load", "history", "--format", "json"]).stdout)
    assert entry["path"] == str(dump)
    assert entry["digest"] == hashlib.sha256(dump.read_bytes()).hexdigest()
    assert (entry["rows"], entry["rejects"], entry["layout"]) == (1_000, 0, "binance-trades")
    assert (entry["exchange"], entry["symbol"]) == ("BINANCE", "BTCUSDT")
    assert (entry["duplicates"], entry["conflicts"]) == (0, 0)
    assert len(entry["load"]) == 12


def test_history_fits_a_narrow_terminal(
    run: Run, dump: Path, k2_env: dict[str, str], home: Path
) -> None:
    run(["load", "csv", str(dump), *BINANCE])
    history = [*K2_COMMAND, "load", "history", "--home", str(home)]
    with Terminal(history, k2_env, columns=70, has_stdout=True) as terminal:
        assert terminal.end() == 0
        names, rule, row, *notes = terminal.text.splitlines()
    assert names.split() == ["load", "loaded_at", "path", "rows"]
    assert [len(part) for part in rule.split()] == [len(part) for part in row.split()]
    assert "…" in row
    assert "omitted: digest, offset_bytes" in " ".join(notes)
    assert "shortened: path; --format csv shows everything" in "".join(notes)
    piped = run(["load", "history", "--format", "table"]).stdout
    assert str(dump) in piped
    assert "digest" in piped


def test_quiet_without_a_terminal(run: Run, dump: Path) -> None:
    result = run(["load", "csv", str(dump), *BINANCE])
    assert result.stdout == ""
    assert result.stderr.startswith("summary files=1 loaded=1")


def test_bad_line_keeps_the_whole_file_out(
    run: Run, dump: Path, home: Path, settings: Settings
) -> None:
    dump.write_text(binance_lines(1, 3) + "4,minus one,1,1,1723161348055,True,True\n")
    result = run(["load", "csv", str(dump), *BINANCE])
    assert result.exit_code == 6
    assert "line 4" in result.stderr
    assert "Traceback" not in result.stderr
    assert rows_of(settings) == 0
    assert list(home.rglob("data/**/*.parquet")) == []
    (reject,) = (home / "rejects" / "load-csv.ndjson").read_text().splitlines()
    assert json.loads(reject)["position"] == 4
    assert json.loads(reject)["raw"].startswith("4,minus one")


@pytest.mark.parametrize(("allowed", "code"), [("1", 0), ("25%", 0), ("24%", 6), ("0", 6)])
def test_max_rejects_is_a_number_or_a_share(
    run: Run, dump: Path, settings: Settings, allowed: str, code: int
) -> None:
    dump.write_text(binance_lines(1, 3) + "bad\n")
    result = run(["load", "csv", str(dump), *BINANCE, "--max-rejects", allowed])
    assert result.exit_code == code
    assert rows_of(settings) == (3 if code == 0 else 0)


@pytest.mark.usefixtures("dump")
def test_other_files_are_loaded_beside_a_bad_one(
    run: Run, tmp_path: Path, settings: Settings
) -> None:
    bad = tmp_path / "ETHUSDT-trades-2024-08-08.csv"
    bad.write_text("bad\n")
    result = run(["load", "csv", str(tmp_path / "*.csv"), *BINANCE, "--summary", "json"])
    assert result.exit_code == 6
    assert (sums(result)["loaded"], sums(result)["failed"]) == (1, 1)
    assert rows_of(settings) == 1_000


def test_dry_run_writes_nothing(run: Run, dump: Path, home: Path) -> None:
    result = run(["load", "csv", str(dump), *BINANCE, "--dry-run"])
    assert result.exit_code == 0
    assert [json.loads(line)["source_sequence"] for line in result.stdout.splitlines()] == [
        *range(100, 105)
    ]
    assert "rows=1000" in result.stderr
    assert not home.exists()


def test_stdout_prints_every_row(run: Run, dump: Path) -> None:
    result = run(["load", "csv", str(dump), *BINANCE, "--to", "stdout"])
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 1_000
    assert lines[0]["price"] == "61800.10000000"
    assert lines[0]["message_id"] == "4a9ae213-a5ed-8ce5-8000-000000000064"  # as streamed


def test_stdin_is_loaded_once(run: Run, settings: Settings) -> None:
    text = HEADER + "BTC/USD,2024-08-08T10:00:00Z,1.5,2,buy,USD\n"
    for _ in range(2):
        assert run(["load", "csv", "-", *GENERIC], stdin=text).exit_code == 0
    assert rows_of(settings) == 1


def test_map_takes_fields_from_other_columns(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("symbol,timestamp,Px,Qty,currency\nA,2024-08-08T10:00:00Z,1.5,2,USD\n")
    args = ["load", "csv", str(path), *GENERIC, "--map", "price=Px,quantity=Qty", "--dry-run"]
    (line,) = run(args).stdout.splitlines()
    assert (json.loads(line)["price"], json.loads(line)["quantity"]) == ("1.50000000", "2.00000000")


def test_identical_lines_stay_distinct_trades(run: Run, tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / "x.csv"
    path.write_text(HEADER + "A,2024-08-08T10:00:00Z,1.5,2,buy,USD\n" * 3)
    run(["load", "csv", str(path), *GENERIC])
    with open_lake(settings) as lake:
        rows = lake.open(TRADES).iceberg.scan().to_arrow()
    assert len(set(rows["message_id"].to_pylist())) == 3
    assert set(rows["price"].to_pylist()) == {Decimal("1.50000000")}


@pytest.mark.parametrize("is_right", [True, False])
def test_checksum_is_verified(run: Run, dump: Path, is_right: bool) -> None:
    digest = hashlib.sha256(dump.read_bytes() if is_right else b"").hexdigest()
    dump.with_name(f"{dump.name}.CHECKSUM").write_text(f"{digest}  {dump.name}\n")
    result = run(["load", "csv", str(dump), *BINANCE, "--checksum"])
    assert result.exit_code == (0 if is_right else 6)


@pytest.mark.parametrize("is_there", [True, False])
def test_file_without_its_checksum_is_left_out_and_the_others_are_loaded(
    run: Run, dump: Path, tmp_path: Path, settings: Settings, is_there: bool
) -> None:
    other = tmp_path / "ETHUSDT-trades-2024-08-08.csv"
    other.write_text(binance_lines(5, 7))
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    other.with_name(f"{other.name}.CHECKSUM").write_text(f"{digest}  {other.name}\n")
    if is_there:
        dump.with_name(f"{dump.name}.CHECKSUM").write_text(f"{digest}  {dump.name}\n")
    args = ["load", "csv", str(dump), str(other), *BINANCE, "--checksum", "--summary", "json"]
    result = run(args)
    assert result.exit_code == 6
    said = "does not match BTCUSDT-trades-2024-08-08.csv.CHECKSUM" if is_there else "has no"
    assert f"error: {dump} {said}" in result.stderr
    assert "1 of 2 files not loaded" in result.stderr
    assert (sums(result)["loaded"], sums(result)["failed"], sums(result)["rows"]) == (1, 1, 7)
    assert rows_of(settings) == 7


def test_compressed_file_is_read(run: Run, dump: Path, tmp_path: Path, settings: Settings) -> None:
    packed = tmp_path / "BTCUSDT-trades-2024-08-08.csv.gz"
    packed.write_bytes(gzip.compress(dump.read_bytes()))
    assert run(["load", "csv", str(packed), *BINANCE]).exit_code == 0
    assert rows_of(settings) == 1_000


def test_truncated_gzip_is_not_loaded(
    run: Run, dump: Path, tmp_path: Path, settings: Settings
) -> None:
    packed = tmp_path / "BTCUSDT-trades-2024-08-08.csv.gz"
    packed.write_bytes(gzip.compress(dump.read_bytes())[:-20])
    assert run(["load", "csv", str(packed), *BINANCE]).exit_code == 6
    assert rows_of(settings) == 0


def test_file_without_rows_is_known(run: Run, dump: Path) -> None:
    dump.write_text("id,price,qty,quote_qty,time,is_buyer_maker\n")
    codes = [run(["load", "csv", str(dump), *BINANCE]).exit_code for _ in range(2)]
    assert codes == [0, 0]
    assert len(json.loads(run(["load", "history", "-f", "json"]).stdout)) == 1


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["nope.csv", *BINANCE], 4, "nope.csv"),
        (["nope-*.csv", *BINANCE], 4, "matches no file"),
        (["x.csv", "--layout", "nope"], 4, "binance-trades"),
        (["x.csv", *BINANCE, "--max-rejects", "few"], 2, "--max-rejects"),
        (["x.csv", *BINANCE, "--map", "price"], 2, "--map"),
        (["x.csv", *BINANCE, "--map", "prise=Px"], 2, "price"),
        ([], 2, "paths"),
    ],
)
def test_failures_say_what_to_do(run: Run, args: list[str], code: int, stderr: str) -> None:
    result = run(["load", "csv", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr
    assert "Traceback" not in result.stderr


def test_layout_of_ones_own_with_an_unknown_key_is_refused(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(run(["load", "layouts", "generic-trades"]).stdout + "\n[tmie]\nhow = 'iso'\n")
    result = run(["load", "csv", "x.csv", "--layout", str(path)])
    assert result.exit_code == 3
    assert "tmie" in result.stderr
    assert "time" in result.stderr


def test_layouts_are_listed_and_shown(run: Run) -> None:
    names = run(["load", "layouts"]).stdout.split()
    assert "asx-quotes" in names
    for name in names:
        assert "[fields]" in run(["load", "layouts", name]).stdout


def test_samples_load_whole(run: Run, recordings: Path, settings: Settings) -> None:
    asx = recordings / "asx"
    reference = ["--reference", str(asx / "reference-data" / "company_info.csv")]
    derived = recordings / "binance-derived"
    for args in (
        [str(derived / "spot-*.csv"), *BINANCE],
        [str(derived / "usdm-*.csv"), *BINANCE, "--market", "usdm"],
        [str(asx / "trades"), "--layout", "asx-trades", *reference],
        [str(asx / "quotes"), "--layout", "asx-quotes", *reference],
    ):
        assert run(["load", "csv", *args]).exit_code == 0
    assert rows_of(settings, TRADES) == 7_981 + 19 + 1_640 + 11 + 17_000 + 232
    assert rows_of(settings, QUOTES) == 60 + 14_312 + 549


@pytest.mark.parametrize("options", [[], ["--follow-appends"]])
def test_killed_load_leaves_all_or_nothing(
    k2_env: dict[str, str], run: Run, dump: Path, settings: Settings, options: list[str]
) -> None:
    before = 0
    if options:
        before = 1_000
        assert run(["load", "csv", str(dump), *BINANCE, *options]).exit_code == 0
    dump.write_text(binance_lines(100, 100_000))
    args = ("load", "csv", dump, *BINANCE, *options)
    with open_lake(settings, create=True):
        pass
    for more in range(1, 4):  # files of the table: killed before, between and after them
        kill_while_writing(*args, env=k2_env, folder=settings.home / "warehouse", files=more)
        assert rows_of(settings) in (before, 100_000)
    assert run(["load", "csv", str(dump), *BINANCE, *options]).exit_code == 0
    assert rows_of(settings) == 100_000


def data_files(warehouse: Path) -> list[Path]:
    return list(warehouse.glob("**/timestamp_day=*/*.parquet"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_interrupted_load_says_what_was_loaded_and_goes_on(
    k2_env: dict[str, str], tmp_path: Path, settings: Settings, number: signal.Signals, code: int
) -> None:
    days = [f"2024-{month:02}-{day:02}" for month in range(1, 7) for day in range(1, 29)]
    files = [tmp_path / f"BTCUSDT-trades-{day}.csv" for day in days]
    for at, file in enumerate(files):
        file.write_text(binance_lines(1 + at * 10, 10))
    args = ("load", "csv", *files, *BINANCE)
    warehouse = settings.home / "warehouse"
    forced = (*args, "--force", "--summary", "json")  # so that each file is a commit
    with start_k2(*forced, env=k2_env) as process:
        # With a third data file the first one is committed, and many more are to come.
        wait_for(lambda: process.poll() is not None or len(data_files(warehouse)) > 2)
        process.send_signal(number)
        said, talk = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == code, talk
    loaded = rows_of(settings) // 10
    assert 0 < loaded < len(files), talk
    assert json.loads(said)["loaded"] == loaded
    (line,) = (line for line in talk.splitlines() if line.startswith("interrupted: "))
    assert line.startswith(f"interrupted: loaded {loaded} ({files[0]}")
    assert line.endswith(
        f"; not loaded {files[loaded]}, which was in progress;"
        f" {len(files) - loaded - 1} more remain; run the same command to continue"
    )
    again = run_k2(args, env=k2_env)
    assert again.exit_code == 0
    assert f"skipped={loaded} " in again.stderr
    assert rows_of(settings) == 10 * len(files)


def test_interruption_waits_for_a_commit_and_its_report() -> None:
    interrupts, steps = Interrupts(), []

    def commit() -> None:
        with interrupts.raised():
            with interrupts.uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                steps.append("committed")
            steps.append("not reached")

    with pytest.raises(Terminated):
        commit()
    assert steps == ["committed"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [
        (BadData("the other files are not tried"), KeyboardInterrupt),
        (Unavailable("the outcome of a commit is unknown"), Unavailable),
    ],
)
def test_interruption_hides_no_failed_commit(
    failure: Exception, raised: type[BaseException]
) -> None:
    interrupts = Interrupts()

    def commit() -> None:
        with interrupts.raised(), interrupts.uninterrupted():
            os.kill(os.getpid(), signal.SIGINT)
            raise failure

    with pytest.raises(raised):
        commit()


def test_files_loaded_before_a_failure_are_summed_up(run: Run, dump: Path, tmp_path: Path) -> None:
    log = tmp_path / "log" / "k2.log"
    options = [*BINANCE, "--summary", "json", "--log-file", str(log)]
    result = run(["load", "csv", str(dump), str(tmp_path / "none.csv"), *options])
    assert result.exit_code == 4
    assert (sums(result)["loaded"], sums(result)["rows"]) == (1, 1_000)
    events = [line.split()[2] for line in log.read_text().splitlines()]
    assert events == ["loaded", "summary", "error"]
    nothing = run(["load", "csv", str(tmp_path / "none.csv"), *BINANCE, "--summary", "json"])
    assert (nothing.exit_code, nothing.stdout) == (4, "")


def test_log_file_is_rotated_and_names_what_failed(run: Run, dump: Path, tmp_path: Path) -> None:
    log = tmp_path / "k2.log"
    dump.write_text("1,2\n" + dump.read_text())
    options = ["--log-file", str(log), "--log-file-size", "300B", "--log-file-keep", "1"]
    for _ in range(3):
        assert run(["load", "csv", str(dump), *BINANCE, *options]).exit_code == 6
    text = log.with_name("k2.log.1").read_text() + log.read_text()
    assert "failed path=" in text
    assert sorted(path.name for path in tmp_path.glob("k2.log*")) == ["k2.log", "k2.log.1"]


@pytest.mark.parametrize("home", ["/proc/x", "/dev/null", "/dev/null/x"])
def test_home_that_cannot_be_created_is_a_wrong_setting(run: Run, dump: Path, home: str) -> None:
    result = run(["load", "csv", str(dump), *BINANCE, "--home", home])
    assert result.exit_code == 3
    assert "--home" in result.stderr
