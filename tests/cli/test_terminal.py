"""k2 with any stdin, stdout and stderr, and with any bytes: one sentence, never a traceback."""

import json
import os
import pty
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from k2cli.commands.terminal.plain import for_people
from k2cli.simulator import Simulator, SimulatorOptions, running_simulator
from support.running import K2_COMMAND, Run, environment, k2_at, start_k2
from support.waiting import PATIENCE_S

K2 = shlex.join(K2_COMMAND)
ROW = "symbol,timestamp,price,quantity,side,trade_id\nBTCUSDT,2024-01-01T00:00:00Z,1,2,BUY,1\n"
LOAD = "load csv {0} --layout generic-trades --exchange X --currency USDT --asset-class crypto"
EVIL = "\x1b]0;x\x07\x9b31m[bold]"  # sets a window's title, colours, and is markup of Rich


@dataclass(frozen=True)
class Done:
    """How a shell's k2 ended."""

    code: int
    stdout: bytes
    stderr: str


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with a trade, which tests only read."""
    folder = tmp_path_factory.mktemp("filled")
    (folder / "a.csv").write_text(ROW)
    k2_at(folder / "home")(*shlex.split(LOAD.format(folder / "a.csv")))
    return folder / "home"


def shell(home: Path, command: str, **variables: str) -> Done:
    """Run a line of bash, which ends with the exit code of its first k2."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
    done = subprocess.run(
        ["bash", "-c", f"{command}\nexit ${{PIPESTATUS[0]}}"],
        env={**env, "K2_HOME": str(home), **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode(errors="replace"))


# One of every way to write stdout: print, Rich, typer, JSON, bytes of Python, Arrow and DuckDB.
WRITING = [
    "--help",
    "--version",
    "query --help",
    "load csv -h",
    "config show",
    "status",
    "status --format json",
    "table list",
    "table describe trades",
    "query trades --format csv",
    "query trades --format json",
    "query trades --format arrow",
    "query trades --format markdown",
    "query sql 'select 1' --format parquet",
    "load layouts",
    "schema show trade_v2",
    "schema list --ours",
]


@pytest.mark.parametrize("command", WRITING)
def test_stdout_that_cannot_be_written_is_one_line_and_5(filled: Path, command: str) -> None:
    done = shell(filled, f"{K2} {command} >/dev/full")
    assert done.stderr == "error: cannot write to stdout: No space left on device\n"
    assert done.code == 5


@pytest.mark.parametrize("command", WRITING[::6])
def test_closed_stdout_is_like_a_full_one(filled: Path, command: str) -> None:
    done = shell(filled, f"{K2} {command} >&-")
    assert done.stderr == "error: cannot write to stdout: Bad file descriptor\n"
    assert done.code == 5


@pytest.mark.parametrize("command", WRITING[::6])
def test_reader_that_went_away_is_no_error(filled: Path, command: str) -> None:
    done = shell(filled, f"{K2} {command} | true")
    assert (done.code, done.stderr) == (0, "")


@pytest.mark.parametrize("command", ["query nonsense", "query trades --order x", "dlq show t 1"])
def test_error_keeps_its_exit_code_without_any_stream(filled: Path, command: str) -> None:
    code = shell(filled, f"{K2} {command}").code
    assert code in {2, 3}
    assert shell(filled, f"{K2} {command} <&- >&- 2>&-").code == code
    assert shell(filled, f"{K2} {command} >/dev/full 2>/dev/full").code == code


def test_command_without_output_needs_no_stream(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROW)
    load = LOAD.format(tmp_path / "a.csv")
    assert shell(home, f"{K2} {load} <&- >&- 2>&-").code == 0
    assert "BTCUSDT" in shell(home, f"{K2} query trades 2>&-").stdout.decode()


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running_simulator(SimulatorOptions()) as running:
        yield running


@pytest.mark.parametrize("options", ["--to stdout", "--summary json", "--to stdout --summary json"])
def test_stream_onto_a_full_disk_is_one_error_and_5(
    home: Path, simulator: Simulator, options: str
) -> None:
    stream = f"stream binance -s BTCUSDT --max-messages 20 --url {simulator.url} {options}"
    done = shell(home, f"{K2} {stream} >/dev/full")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors == ["error: cannot write to stdout: No space left on device"]
    assert "Traceback" not in done.stderr
    assert done.code == 5


def test_load_onto_a_full_disk_is_one_line_and_5(home: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(ROW)
    for option in ("--to stdout", "--summary json"):
        done = shell(home, f"{K2} {LOAD.format(tmp_path / 'a.csv')} {option} >/dev/full")
        assert "error: cannot write to stdout: No space left on device\n" in done.stderr
        assert "Traceback" not in done.stderr
        assert done.code == 5


@pytest.mark.parametrize(
    "command",
    ["query sql -", "schema show -", "schema validate -", LOAD.format("-"), "schema check trade -"],
)
def test_closed_stdin_is_an_empty_one(filled: Path, command: str) -> None:
    done = shell(filled, f"{K2} {command} <&-")
    assert done.code in {2, 4, 6}
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("query sql $'select \\xff'", 2),
        ("query trades --symbol $'\\xff'", 2),
        ("--profile $'\\xff' config show", 2),
        (LOAD.format("$'\\xff.csv'"), 2),
        ("query sql - < <(printf 'select \\xff')", 2),
        ("config show --home $'\\xff'", 2),
    ],
)
def test_arguments_and_sql_that_are_not_utf8_are_refused(
    filled: Path, command: str, code: int
) -> None:
    done = shell(filled, f"{K2} {command}")
    assert done.code == code
    assert "not UTF-8" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["K2_HOME", "K2_TABLE_KEEP_FOR", "K2_CATALOG_URI", "K2_CONFIG"])
def test_variables_that_are_not_utf8_are_wrong_settings(filled: Path, name: str) -> None:
    done = shell(filled, f"export {name}=$'/tmp/\\xff'; {K2} config show")
    assert (done.code, done.stdout) == (3, b"")
    assert f"error: variable {name} is not UTF-8\n" in done.stderr


def test_file_in_a_folder_whose_name_is_not_utf8_is_refused(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / os.fsdecode(b"b\xff.csv")).write_text(ROW)
    done = shell(home, f"{K2} {LOAD.format(folder)}")
    assert done.code == 2
    assert "b\\udcff.csv' is not UTF-8" in done.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_text_that_the_encoding_lacks_is_escaped(tmp_path: Path, encoding: str) -> None:
    home = tmp_path / "币安-é-😀"
    shown = shell(home, f"{K2} config show --format json", PYTHONIOENCODING=encoding, LC_ALL="C")
    assert json.loads(shown.stdout.decode(encoding))["home"] == str(home)
    missing = shell(home, f"{K2} query 币安é", PYTHONIOENCODING=encoding, LC_ALL="C")
    assert missing.code == 2
    assert "\\u5e01" in missing.stderr
    assert shell(home, f"{K2} --help", PYTHONIOENCODING=encoding, LC_ALL="C").code == 0


def on_a_terminal(home: Path, *args: str, **variables: str) -> bytes:
    """Run k2 with stdout and stderr on a terminal; return all that it gets."""
    env = environment(home, {"TERM": "xterm", **variables})
    ours, theirs = pty.openpty()
    with start_k2(*args, env=env, stdin=theirs, stdout=theirs, stderr=theirs):
        os.close(theirs)
        shown = b""
        with suppress(OSError):  # of a terminal whose other end was closed
            while part := os.read(ours, 65536):
                shown += part
    os.close(ours)
    return shown


def assert_tame(shown: bytes) -> None:
    assert b"\x1b]" not in shown
    assert b"\x07" not in shown
    assert "\x9b" not in shown.decode()


@pytest.mark.parametrize("args", ["load csv {0}", "load csv {0} --dry-run", "load csv {0}.no"])
def test_file_name_never_steers_the_terminal(home: Path, tmp_path: Path, args: str) -> None:
    file = tmp_path / f"{EVIL}.csv"
    file.write_text(ROW.replace("BUY", EVIL))
    options = shlex.split(LOAD.format("x"))[3:]
    shown = on_a_terminal(home, *args.format(file).split(" "), *options)
    assert_tame(shown)
    text = re.sub(r"\s|\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())
    assert r"\x1b]0;x\x07\x9b31m[bold]" in text


@pytest.mark.parametrize(
    "args",
    [
        ["config", "show"],
        ["config", "show", "--format", "json"],
        ["status"],
        ["query", "trades", f"--{EVIL}"],
        ["query", "trades", "--order", EVIL],
        ["query", "sql", f"select '{EVIL}' as \"{EVIL}\""],
        ["query", "sql", f"select {EVIL}"],
        ["query", "trades", "-o", f"/nowhere{EVIL}/x.csv"],
        ["load", "layouts", EVIL],
        ["schema", "show", EVIL],
    ],
)
def test_names_never_steer_the_terminal(tmp_path: Path, args: list[str]) -> None:
    home = tmp_path / EVIL
    assert_tame(on_a_terminal(home, *args, K2_KAFKA_CLIENT_ID=EVIL))


def test_wrong_values_are_explained_in_one_sentence(home: Path) -> None:
    done = shell(home, f"{K2} table compact --day nope")
    assert done.code == 2
    assert "Error: Invalid value for '--day': 'nope' is not a day such as" in done.stderr


def test_events_and_log_files_hide_secrets(run: Run, tmp_path: Path) -> None:
    log = tmp_path / "k2.log"
    stream = ["stream", "binance", "-s", "BTCUSDT", "--connect-timeout", "100ms"]
    url = "ws://me:p%40ss%2Fword@127.0.0.1:1"
    done = run([*stream, "--url", url, "--log-format", "json", "--log-file", str(log)])
    assert done.exit_code == 5
    for text in (done.stderr, log.read_text()):
        assert "ws://me:********@127.0.0.1:1" in text
        assert "p%40ss" not in text


REFUSED_URL = "ws://me:p@ss/word@127.0.0.1:1"


@pytest.mark.parametrize(
    ("args", "env", "code"),
    [
        (["stream", "binance", "-s", "BTCUSDT", "--url", REFUSED_URL], {}, 2),
        (["stream", "binance", "-s", "BTCUSDT"], {"HTTPS_PROXY": "http://me:p@ss/word@h:1"}, 3),
        (["stream", "binance", "-s", "BTCUSDT", REFUSED_URL], {}, 2),
        (["topic", "list", "--kafka-option", "sasl.password:p@ss/word"], {}, 2),
        (["schema", "list", "--registry-option", "url=http://me:p@ss/word@h"], {}, 3),
        (["query", "symbols"], {"K2_CATALOG_URI": "postgresql://me:p/word@ss@h/db"}, 3),
        (["query", "symbols"], {"K2_CATALOG_URI": "http://me:p@ss/word@h/db"}, 3),
    ],
)
def test_errors_hide_awkward_passwords(
    home: Path, args: list[str], env: dict[str, str], code: int
) -> None:
    result = k2_at(home, {"COLUMNS": "200", **env})(*args, code=code)
    shown = for_people(result.output)  # as stderr shows it
    assert "word" not in shown.replace("password", "")


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [
        ("K2_SCHEMA_REGISTRY_URL", "http://me:hush/hush@127.0.0.1:1", 3),
        ("K2_SCHEMA_REGISTRY_URL", "http://me:hush@127.0.0.1:1", 5),
        ("K2_CATALOG_URI", "postgresql://me:hush/hush@hush@h/db", 3),
        ("K2_CATALOG_URI", "http://me:hush?hush@127.0.0.1:1", 3),
        ("K2_CATALOG_URI", "nope://me:hush@h", 3),
        ("K2_CATALOG_S3__SECRET_ACCESS_KEY", "hush", 0),
    ],
)
def test_settings_and_status_hide_secrets(
    home: Path, variable: str, value: str, status: int
) -> None:
    run = k2_at(home, {variable: value})
    for args in (["config", "show"], ["config", "show", "-f", "json", "--origin"]):
        shown = run(*args).output
        assert "hush" not in shown
        assert "********" in shown
    for fmt in ("text", "json"):
        shown = run("status", "--timeout", "1s", "--format", fmt, code=status).output
        assert "hush" not in shown
