"""`k2 status` without servers: the embedded catalog, and servers that are not there."""

import json
import signal
import socket
from contextlib import ExitStack
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.transforms import HourTransform

from k2cli.health import (
    Check,
    HealthReport,
    PartitionLag,
    State,
    TableStatus,
    judge_disk,
    judge_lag,
)
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import Lake
from support.builders import START, quotes_batch, trades_batch
from support.running import Result, Run, k2_at, start_k2
from support.waiting import PATIENCE_S

PATIENT = ("status", "--timeout", "60s")  # what is up answers no later for it
CLOSED = "127.0.0.1:1"
ADDRESSES = {
    "catalog": ("K2_CATALOG_URI", "http://"),
    "kafka": ("K2_KAFKA_BOOTSTRAP_SERVERS", ""),
    "registry": ("K2_SCHEMA_REGISTRY_URL", "http://"),
}


def servers_at(address: str) -> dict[str, str]:
    return {variable: scheme + address for variable, scheme in ADDRESSES.values()}


def _table(rows: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([rows])


def checks_of(result: Result) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads(result.stdout)["checks"]}


def states_of(result: Result) -> dict[str, str]:
    return {name: check["state"] for name, check in checks_of(result).items()}


def test_a_newcomer_is_told_what_to_do_next(home: Path) -> None:
    shown = k2_at(home)(*PATIENT).stdout
    assert f"home    {home} (variable K2_HOME)\nfile    none\nprofile none\n" in shown
    assert "yellow  catalog  there are no tables" in shown
    assert "hint: k2 demo, or k2 stream binance --symbols BTCUSDT\n" in shown
    assert "GB free" in shown
    assert "red" not in shown
    assert k2_at(home)("doctor").stdout == shown
    assert not home.exists()


def test_tables_are_told_with_their_rows_and_how_new_they_are(lake: Lake, home: Path) -> None:
    lake.open(TRADES).append(_table(trades_batch(5, exchange="BINANCE_US")))
    lake.open(TRADES).append(_table(trades_batch(400)))  # passes midnight
    lake.open(TRADES).append(_table(trades_batch(3, exchange="ASX")))  # late ones
    found = json.loads(k2_at(home)(*PATIENT, "-f", "json").stdout)
    assert {check["name"]: check["state"] for check in found["checks"]} == {
        "catalog": "green",
        "store": "green",
        "disk": "green",
    }
    assert found["checks"][0]["latency_ms"] > 0
    assert found["settings"]["home"] == str(home)
    assert found["settings"]["stream"]["flush_rows"] == 100_000
    trades, quotes = found["tables"]
    assert (trades["name"], trades["rows"]) == ("market_data.trades_v2", 408)
    newest = START + timedelta(seconds=399, microseconds=55_000)
    assert datetime.fromisoformat(trades["newest_record"]) == newest
    committed = datetime.fromisoformat(trades["last_commit"])
    looked = datetime.fromisoformat(found["time"])
    assert trades["age_s"] == pytest.approx((looked - committed).total_seconds(), abs=5)
    assert quotes == {
        "kind": "quotes",
        "name": "market_data.quotes_v2",
        "rows": 0,
        "newest_record": None,
        "last_commit": None,
        "age_s": None,
    }
    assert found["lag"] == []
    text = k2_at(home)(*PATIENT).stdout
    assert "market_data.trades_v2   408  2024-08-09T00:01:39.055000Z" in text


def test_the_newest_row_is_found_whatever_another_engine_partitioned_by(lake: Lake) -> None:
    lake.open(TRADES).append(_table(trades_batch(400)))  # passes midnight
    newest = START + timedelta(seconds=399, microseconds=55_000)
    table = lake.open(TRADES).iceberg
    with table.update_spec() as spec:
        spec.remove_field("timestamp_day")
        spec.add_field("timestamp", HourTransform(), "timestamp_hour")
    table.append(_table(trades_batch(3)))
    assert lake.open(TRADES).newest() == newest
    newer = newest + timedelta(hours=1)
    table.append(_table(trades_batch(1, timestamp=newer)))
    assert lake.open(TRADES).newest() == newer


def test_what_is_damaged_is_red(lake: Lake, home: Path) -> None:
    lake.open(QUOTES).append(_table(quotes_batch(5)))
    metadata = Path(lake.open(QUOTES).read_metadata())
    metadata.write_bytes(metadata.read_bytes()[:100])
    lines = k2_at(home)(*PATIENT, code=6).stdout.splitlines()
    assert any(line.startswith("red     store") and "hint: " in line for line in lines)
    lake.open(TRADES).append(_table(trades_batch(5, exchange="BINANCE_US")))
    snapshot = lake.open(TRADES).iceberg.current_snapshot()
    assert snapshot is not None
    Path(snapshot.manifest_list).write_bytes(b"nonsense")
    assert "a metadata file is damaged" in k2_at(home)(*PATIENT, code=6).stdout
    (home / "catalog.db").write_bytes(b"nonsense" * 1_000)
    lines = k2_at(home)(*PATIENT, code=6).stdout.splitlines()
    assert any(line.startswith("red     catalog") and "hint: " in line for line in lines)


def test_a_file_system_without_a_size_is_full(tmp_path: Path) -> None:
    assert judge_disk(tmp_path, free=0, total=0).state is State.RED


def test_a_home_that_is_a_file_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    failed = k2_at(tmp_path / "file")("table", "list", code=3)
    assert "is not a directory" in failed.stderr
    assert "hint: choose another one with --home" in failed.stderr


def test_a_home_that_cannot_be_used_is_red(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    shown = k2_at(tmp_path / "file" / "home")(*PATIENT, code=3).stdout
    assert "red     disk" in shown
    assert "hint: choose another folder with --home" in shown


@pytest.mark.parametrize(("free", "total"), [(999_999_999, 10**10), (4 * 10**9, 10**11)])
def test_a_full_disk_is_red(tmp_path: Path, free: int, total: int) -> None:
    check = judge_disk(tmp_path, free=free, total=total)
    assert (check.state, check.exit_code) == (State.RED, 5)
    assert "free some space" in str(check.hint)
    assert judge_disk(tmp_path, free=2 * free, total=total).state is State.GREEN


@pytest.mark.parametrize(
    ("lag", "age_s", "state"),
    [
        (0, 3_600.0, State.GREEN),
        (1, 3_600.0, State.YELLOW),
        (2, 3_600.0, State.YELLOW),
        (2, None, State.YELLOW),
        (2_000, 5.0, State.GREEN),  # at work
    ],
)
def test_messages_that_nobody_takes_are_yellow(lag: int, age_s: float | None, state: State) -> None:
    table = TableStatus(
        kind="trades", name="x", rows=0, newest_record=None, last_commit=None, age_s=age_s
    )
    behind = PartitionLag(
        table="trades",
        topic="t",
        partition=0,
        end=lag,
        table_offset=0,
        group_offset=None,
        lag=lag,
    )
    check = judge_lag([table], [behind])
    assert (check.state, check.hint) == (state, "k2 consume" if state is State.YELLOW else None)
    assert f"{lag:,} messages behind" in check.detail


def test_the_exit_code_is_that_of_what_is_away_first() -> None:
    def report(*codes: int) -> HealthReport:
        return HealthReport(
            checks=[
                Check(name="x", state=State.RED if code else State.GREEN, detail="", exit_code=code)
                for code in codes
            ]
        )

    assert report(0, 0).exit_code == 0
    assert report(0, 3).exit_code == 3
    assert report(6, 5, 0).exit_code == 5


@pytest.mark.parametrize("name", ADDRESSES)
@pytest.mark.usefixtures("lake")
def test_what_does_not_listen_is_red_and_the_rest_is_not(run: Run, name: str) -> None:
    variable, scheme = ADDRESSES[name]
    # Long enough for the tables; Kafka takes all of it.
    result = run(["status", "-f", "json", "--timeout", "15s"], env={variable: scheme + CLOSED})
    assert result.exit_code == 5
    checks = checks_of(result)
    assert [each for each, check in checks.items() if check["state"] == "red"] == [name]
    assert CLOSED in checks[name]["detail"] + checks[name]["hint"]
    assert checks[name]["hint"]


def test_servers_that_never_answer_are_red(run: Run, black_hole: str) -> None:
    result = run(["status", "--timeout", "4s", "-f", "json"], env=servers_at(black_hole))
    assert result.exit_code == 5
    assert states_of(result) == {"catalog": "red", "kafka": "red", "registry": "red"}
    for check in checks_of(result).values():
        assert black_hole in check["detail"] + check["hint"]
        assert check["hint"]


def test_servers_that_never_answer_cost_one_timeout(k2_env: dict[str, str]) -> None:
    """All are asked at once: each has a connection long before any is given up."""
    with ExitStack() as stack:
        holes = {
            name: stack.enter_context(socket.create_server(("127.0.0.1", 0))) for name in ADDRESSES
        }
        env = {**k2_env, "K2_CATALOG_REST__CLIENT__SOCKET_TIMEOUT_MS": "3600000"}
        for name, hole in holes.items():
            hole.settimeout(PATIENCE_S)
            variable, scheme = ADDRESSES[name]
            env[variable] = f"{scheme}127.0.0.1:{hole.getsockname()[1]}"
        process = stack.enter_context(start_k2("status", "--timeout", "1h", env=env))
        stack.callback(process.kill)
        for hole in holes.values():
            stack.enter_context(hole.accept()[0])


@pytest.mark.parametrize(
    ("env", "name", "detail", "hint"),
    [
        (
            {"K2_KAFKA_BOOTSTRAP_SERVERS": CLOSED, "K2_KAFKA_NO_SUCH": "1"},
            "kafka",
            'No such configuration property: "no.such"',
            "k2 config show",
        ),
        ({"K2_SCHEMA_REGISTRY_URL": "nonsense"}, "registry", "nonsense", "k2 config show"),
        ({"K2_CATALOG_TYPE": "nope"}, "catalog", "'nope' is not a valid", "k2 config show"),
    ],
)
def test_wrong_settings_of_a_server_are_red(
    run: Run, env: dict[str, str], name: str, detail: str, hint: str
) -> None:
    result = run([*PATIENT, "-f", "json"], env=env)
    assert result.exit_code == 3
    check = checks_of(result)[name]
    assert check["state"] == "red"
    assert detail in check["detail"]
    assert hint in check["hint"]
    assert "is it running" not in check["hint"]


def test_secrets_are_hidden(run: Run) -> None:
    env = {
        "K2_CATALOG_URI": f"http://me:hush@{CLOSED}",
        "K2_CATALOG_TOKEN": "hush",
        "K2_SCHEMA_REGISTRY_URL": f"http://me:hush@{CLOSED}",
        "K2_KAFKA_BOOTSTRAP_SERVERS": CLOSED,
        "K2_KAFKA_SASL_PASSWORD": "hush",
    }
    for fmt in ("text", "json"):
        result = run(["status", "--timeout", "1s", "-f", fmt], env=env)
        assert result.exit_code == 5
        assert f"me:********@{CLOSED}" in result.stdout
        assert "hush" not in result.stdout + result.stderr


@pytest.mark.parametrize(
    ("args", "env", "code", "stderr"),
    [
        (["--every", "1s"], {}, 2, "hint: use k2 status --watch --every 1"),
        (["--watch", "--every", "soon"], {}, 2, "'soon' is not a duration"),
        (["--timeout", "5"], {}, 2, "'5' is not a duration"),
        ([], {"K2_TABEL_KEEP_FOR": "1h"}, 3, "hint: did you mean K2_TABLE_KEEP_FOR?"),
        ([], {"K2_PROFILE": "prod"}, 3, "unknown profile prod"),
    ],
)
def test_failures_say_what_to_do(
    run: Run, args: list[str], env: dict[str, str], code: int, stderr: str
) -> None:
    result = run(["status", *args], env=env)
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_watching_goes_on_until_a_signal(
    lake: Lake, k2_env: dict[str, str], number: signal.Signals
) -> None:
    args = (*PATIENT, "--watch", "--every", "50ms", "-f", "json")
    with start_k2(*args, env=k2_env, stderr=None) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["tables"][0]["rows"] == 0
        lake.open(TRADES).append(_table(trades_batch(5, exchange="BINANCE_US")))
        while json.loads(process.stdout.readline())["tables"][0]["rows"] != 5:
            pass
        process.send_signal(number)
        for line in process.stdout:
            json.loads(line)
        assert process.wait() == 0


def test_watching_in_a_pipe_prints_one_report_after_the_other(k2_env: dict[str, str]) -> None:
    args = (*PATIENT, "--watch", "--every", "50ms")
    with start_k2(*args, env=k2_env, stderr=None) as process:
        assert process.stdout is not None
        reports = 0
        while reports < 2:
            reports += process.stdout.readline().startswith("yellow  catalog")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait() == 0
