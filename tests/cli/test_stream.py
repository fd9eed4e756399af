"""`k2 stream` on the command line: exit codes, messages, summaries, rejects."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings, load_settings
from k2cli.records import TRADES
from k2cli.simulator import (
    GARBAGE,
    Simulator,
    SimulatorOptions,
    running_simulator,
)
from k2cli.storage.lake import open_lake
from support.httpserving import respond, serving
from support.running import Run, start_k2
from support.waiting import PATIENCE_S

STREAM = ("stream", "binance")
BTC = ("--symbols", "BTCUSDT")
DEAD = ("--url", "ws://127.0.0.1:1")


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    with running_simulator(SimulatorOptions(first_id=100)) as running:
        yield running


@pytest.fixture
def bad_simulator() -> Iterator[Simulator]:
    """Puts one kind of garbage after the other behind every tenth trade."""
    with running_simulator(SimulatorOptions(first_id=100, garbage_every=10)) as running:
        yield running


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# --- what ends well


def test_summary_is_a_line_on_stderr(run: Run, simulator: Simulator) -> None:
    result = run([*STREAM, *BTC, "--url", simulator.url, "--max-messages", "7"])
    assert (result.exit_code, result.stdout) == (0, "")
    last = result.stderr.splitlines()[-1]
    assert last.startswith(
        "summary messages=7 rows=7 rejects=0 duplicates=0 conflicts=0 missing=0 commits=1"
    )


def test_summary_as_json_is_all_that_stdout_gets(run: Run, simulator: Simulator) -> None:
    args = ("--max-messages", "7", "--summary", "json")
    result = run([*STREAM, *BTC, "--url", simulator.url, *args])
    summary = json.loads(result.stdout)
    assert summary.pop("duration_s") > 0
    assert summary == {
        "messages": 7,
        "rows": 7,
        "rejects": 0,
        "duplicates": 0,
        "conflicts": 0,
        "missing": 0,
        "commits": 1,
        "reconnects": 0,
        "backfilled": 0,
        "recovered": 0,
        "uncommitted": 0,
        "silent_streams": 0,
    }


def test_an_exchange_that_was_never_reached_is_an_error(run: Run) -> None:
    result = run([*STREAM, *BTC, "--url", "ws://127.0.0.1:1", "--duration", "500ms"])
    assert result.exit_code == 5
    assert "error: no connection within 0.5 s" in result.stderr
    assert "hint: check the network" in result.stderr


def test_duration_ends_the_stream(run: Run, simulator: Simulator) -> None:
    """It must be long enough to connect in, which depends on the machine."""
    seconds, result = 0.0, None
    for seconds in (0.5, 2, 8, 32):
        args = ("--duration", f"{round(seconds * 1000)}ms", "--summary", "json")
        result = run([*STREAM, *BTC, "--url", simulator.url, *args])
        if "no connection within" not in result.stderr:
            break
    assert result is not None
    assert result.exit_code == 0
    assert seconds <= json.loads(result.stdout)["duration_s"] < seconds + 30


def test_home_option_wins_over_the_variable(
    run: Run, simulator: Simulator, tmp_path: Path, home: Path
) -> None:
    other = tmp_path / "other"
    args = ("--max-messages", "1", "--home", str(other))
    assert run([*STREAM, *BTC, "--url", simulator.url, *args]).exit_code == 0
    assert (other / "catalog.db").exists()
    assert not home.exists()


@pytest.mark.parametrize(
    "symbols", [["-s", "btcusdt", "-s", "ETH/USDT"], ["-s", "BTC-USDT,ethusdt"]]
)
def test_symbols_repeat_or_come_by_commas(
    run: Run, simulator: Simulator, symbols: list[str]
) -> None:
    args = ("--channels", "trade,bookTicker", "--max-messages", "1")
    assert run([*STREAM, *symbols, "--url", simulator.url, *args]).exit_code == 0
    names = "btcusdt@trade/btcusdt@bookTicker/ethusdt@trade/ethusdt@bookTicker"
    assert simulator.paths == [f"/stream?streams={names}&timeUnit=MICROSECOND"]


LISTED = SimulatorOptions(
    first_id=100, rate=2000, symbols=("BTCUSDT", "ETHUSDT", "ETHBTC", "币安人生USDT")
)


def rest_of(simulator: Simulator) -> str:
    return simulator.url.replace("ws://", "http://")


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["-s", "all:BTC"], "ethbtc@trade"),
        (["-s", "eth*,BTC/USDT", "-s", "*btc"], "btcusdt@trade/ethusdt@trade/ethbtc@trade"),
        (["-s", "*人生*"], "%E5%B8%81%E5%AE%89%E4%BA%BA%E7%94%9Fusdt@trade"),
    ],
)
def test_symbols_are_selected_from_those_that_trade(
    run: Run, values: list[str], names: str
) -> None:
    with running_simulator(LISTED) as simulator:
        urls = ("--url", simulator.url, "--rest-url", rest_of(simulator))
        result = run([*STREAM, *values, *urls, "--max-messages", "20"])
        assert result.exit_code == 0, result.stderr
        assert simulator.paths == [f"/stream?streams={names}&timeUnit=MICROSECOND"]
        assert simulator.info_requests == 1


def test_symbols_come_from_a_file_or_the_settings(run: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.txt").write_text("ETHBTC # one\nall:BTC\n")
    home.mkdir()
    (home / "k2.toml").write_text(f'[stream]\nsymbols = ["@{tmp_path}/pairs.txt", "BTCUSDT"]\n')
    with running_simulator(LISTED) as simulator:
        args = ["--url", simulator.url, "--rest-url", rest_of(simulator), "--max-messages", "9"]
        assert run([*STREAM, *args]).exit_code == 0
        assert run([*STREAM, *args], env={"K2_STREAM_SYMBOLS": "ETHUSDT"}).exit_code == 0
        assert run([*STREAM, *args, "-s", f"@{tmp_path}/pairs.txt"]).exit_code == 0
        found = [path.partition("=")[2].partition("&")[0] for path in simulator.paths]
    assert found == ["ethbtc@trade/btcusdt@trade", "ethusdt@trade", "ethbtc@trade"]


def test_symbols_listed_and_delisted_during_a_run(k2_env: dict[str, str]) -> None:
    with running_simulator(LISTED) as simulator:
        args = [*STREAM, "--url", simulator.url, "--rest-url", rest_of(simulator)]
        env = {**k2_env, "K2_STREAM_SYMBOLS": "all:USDT", "K2_STREAM_SYMBOLS_REFRESH": "1s"}
        with start_k2(*args, env=env, stdout=None) as process:
            assert process.stderr is not None
            assert any(" connected " in line for line in process.stderr)
            simulator.list_symbols("XRPUSDT")
            assert any(" listed symbols=XRPUSDT count=1" in line for line in process.stderr)
            simulator.delist_symbols("ETHUSDT")
            assert any(" delisted symbols=ETHUSDT count=1" in line for line in process.stderr)
            process.send_signal(signal.SIGINT)
            _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, stderr
        assert simulator.connections == 1
    assert "rejects=0" in stderr
    with open_lake(load_settings(k2_env)) as lake:
        symbols = {symbol for _, symbol in lake.open(TRADES).series()}
    assert symbols == {"BTCUSDT", "ETHUSDT", "XRPUSDT", "币安人生USDT"}


def test_selection_restarts_without_the_rest_api(run: Run) -> None:
    with running_simulator(LISTED) as simulator, serving(respond(b"", 503)) as broken:
        args = [*STREAM, "-s", "all:BTC", "--url", simulator.url, "--max-messages", "9"]
        failed = run([*args, "--rest-url", broken])
        assert failed.exit_code == 5
        assert "error: cannot list the symbols of http" in failed.stderr
        assert "hint: try again later" in failed.stderr
        assert run([*args, "--rest-url", rest_of(simulator)]).exit_code == 0
        simulator.exchange_info = b"down for maintenance"
        restarted = run([*args, "--rest-url", rest_of(simulator)])
    assert restarted.exit_code == 0
    assert "warning listing_unavailable reason=" in restarted.stderr


@pytest.mark.parametrize(
    ("symbols", "code", "words"),
    [
        ("all:NOSUCH", 4, "'all:NOSUCH' matches none of the 4 symbols that trade"),
        ("BTCUSDT,*USTD", 4, "hint: did you mean *USDT?"),
        ("all:", 2, "hint: write it like all:USDT or BTC*"),
        ("@/nowhere/symbols", 4, "/nowhere/symbols does not exist"),
        ("@/dev/null", 6, "/dev/null lists no symbols"),
    ],
)
def test_selection_of_nothing_says_so(run: Run, symbols: str, code: int, words: str) -> None:
    with running_simulator(LISTED) as simulator:
        urls = ("--url", simulator.url, "--rest-url", rest_of(simulator))
        result = run([*STREAM, "-s", symbols, *urls])
        assert (result.exit_code, result.stdout, simulator.paths) == (code, "", [])
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_dead_server_is_followed_by_the_next_one(run: Run, simulator: Simulator) -> None:
    result = run([*STREAM, *BTC, *DEAD, "--url", simulator.url, "--max-messages", "5"])
    assert result.exit_code == 0
    assert "disconnected url=ws://127.0.0.1:1" in result.stderr


def test_silent_connection_is_reopened(run: Run) -> None:
    options = SimulatorOptions(first_id=100, silent_after=20, ping_interval_s=60)
    with running_simulator(options) as simulator:
        args = ("--stale-after", "500ms", "--max-messages", "30", "--summary", "json")
        result = run([*STREAM, *BTC, "--url", simulator.url, *args])
    assert result.exit_code == 0
    stale = [line for line in result.stderr.splitlines() if " stale " in line]
    assert json.loads(result.stdout)["reconnects"] == len(stale) >= 1


# --- rejects


def test_rejects_are_kept_in_the_home_folder(
    run: Run, bad_simulator: Simulator, home: Path, settings: Settings
) -> None:
    args = ("--max-messages", "66", "--summary", "json")
    result = run([*STREAM, *BTC, "--url", bad_simulator.url, *args])
    assert result.exit_code == 0
    summary = json.loads(result.stdout)
    assert (summary["messages"], summary["rows"], summary["rejects"]) == (66, 60, 6)
    rejects = lines(home / "rejects" / "stream-binance.ndjson")
    assert [reject["position"] for reject in rejects] == [11, 22, 33, 44, 55, 66]
    assert [reject.get("raw") for reject in rejects] == [
        None if raw == GARBAGE[2] else raw.decode() for raw in GARBAGE
    ]
    assert rejects[2]["raw_base64"] == "//57AIB9"
    assert all(reject["reason"] and reject["received"].endswith("Z") for reject in rejects)
    with open_lake(settings) as lake:
        assert lake.open(TRADES).describe().rows == 60


def test_rejects_go_into_the_named_file(
    run: Run, bad_simulator: Simulator, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.ndjson"
    args = ("--max-messages", "22", "--rejects", str(file))
    result = run([*STREAM, *BTC, "--url", bad_simulator.url, *args])
    assert result.exit_code == 0
    assert len(lines(file)) == 2
    assert f"file={file}" in result.stderr
    assert not (home / "rejects").exists()


def test_no_rejects_make_no_file(run: Run, simulator: Simulator, home: Path) -> None:
    run([*STREAM, *BTC, "--url", simulator.url, "--max-messages", "5"])
    assert not (home / "rejects").exists()


def test_too_many_rejects_exit_with_6_and_all_before_committed(
    run: Run, settings: Settings
) -> None:
    options = SimulatorOptions(first_id=100, garbage_every=10, rate=2_000)
    with running_simulator(options) as simulator:
        args = ("--max-rejects", "3", "--summary", "json")
        result = run([*STREAM, *BTC, "--url", simulator.url, *args])
    assert result.exit_code == 6
    assert "rejects (limit 3)" in result.stderr
    assert "hint: see " in result.stderr
    assert "Traceback" not in result.stderr
    summary = json.loads(result.stdout)
    assert summary["rows"] + summary["rejects"] == summary["messages"]
    with open_lake(settings) as lake:
        assert lake.open(TRADES).describe().rows == summary["rows"] >= 40


def test_rejects_below_a_file_are_a_wrong_setting(
    run: Run, bad_simulator: Simulator, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    args = ("--rejects", str(tmp_path / "file" / "r.ndjson"), "--max-messages", "100")
    result = run([*STREAM, *BTC, "--url", bad_simulator.url, *args])
    assert result.exit_code == 3
    assert "hint: choose another file with --rejects" in result.stderr
    assert "Traceback" not in result.stderr


# --- what ends badly


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--symbols", "BTC USDT"], "'BTC USDT' is not a symbol"),
        (["--symbols", "FOOBAR"], "hint: write the split, for example FOO/BAR"),
        (["--symbols", "BTCUSDT,%%"], "'%%' is not a symbol"),
        (["--symbols", " , "], "no symbol given"),
        ([], "no symbol given; name some, or set stream.symbols"),
        (["--symbols", "all:USDT"], "hint: add --rest-url, or name the symbols"),
        ([*BTC, "--channels", "kline_1m"], "'kline_1m' is not one of trade, bookTicker"),
        ([*BTC, "--market", "nasdaq"], "nasdaq"),
        ([*BTC, "--url", "http://127.0.0.1:1"], "is not a WebSocket URL"),
        ([*BTC, "--max-messages", "0"], "--max-messages"),
        ([*BTC, "--max-messages", "many"], "--max-messages"),
        ([*BTC, "--flush-rows", "0"], "--flush-rows"),
        ([*BTC, "--duration", "60"], "500ms, 60s, 15m"),
        ([*BTC, "--stale-after", "-1s"], "--stale-after"),
        ([*BTC, "--to", "printer"], "printer"),
        ([*BTC, "--log-format", "xml"], "xml"),
    ],
)
def test_wrong_option_says_so(run: Run, home: Path, args: list[str], words: str) -> None:
    result = run([*STREAM, *(() if "--url" in args else DEAD), *args])
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert not home.exists()


def test_channels_without_a_channel_say_so(run: Run) -> None:
    result = run([*STREAM, *BTC, *DEAD, "--channels", ",", "--connect-timeout", "100ms"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--channels" in result.stderr


def test_server_that_is_not_there_exits_with_5_in_time(run: Run) -> None:
    args = ("--connect-timeout", "500ms", "--summary", "json")
    result = run([*STREAM, *BTC, *DEAD, *args])
    assert 0.5 <= json.loads(result.stdout)["duration_s"] < 10  # which is the default
    assert result.exit_code == 5
    assert "error: no connection to ws://127.0.0.1:1" in result.stderr
    assert "hint: " in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("path", "args", "words"),
    [
        ("/nowhere", BTC, "HTTP 404"),
        ("", ("--symbols", ",".join(f"S{n}/USDT" for n in range(11))), "HTTP 400"),
    ],
)
def test_refusal_exits_with_5_at_once(
    run: Run, path: str, args: tuple[str, ...], words: str
) -> None:
    with running_simulator(SimulatorOptions(max_streams=10)) as simulator:
        # A run may not take that long.
        result = run([*STREAM, *args, "--url", simulator.url + path, "--connect-timeout", "1h"])
        assert len(simulator.paths) == 1
    assert result.exit_code == 5
    assert f"error: {simulator.url}{path} refuses the connection: {words}" in result.stderr


def test_home_below_a_file_exits_with_3(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run([*STREAM, *BTC, *DEAD], env={"K2_HOME": str(tmp_path / "file" / "home")})
    assert (result.exit_code, result.stdout) == (3, "")
    assert f"error: cannot use the folder {tmp_path / 'file' / 'home'}" in result.stderr
    assert "Traceback" not in result.stderr


def test_damaged_catalog_exits_with_6(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "catalog.db").write_bytes(b"this is no database" * 100)
    result = run([*STREAM, *BTC, *DEAD])
    assert (result.exit_code, result.stdout) == (6, "")
    assert "error: " in result.stderr
    assert "hint: the catalog file is damaged" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_shows_an_example_and_every_option(run: Run) -> None:
    result = run([*STREAM, "--help"])
    assert result.exit_code == 0
    assert "k2 stream binance --symbols BTCUSDT,ETHUSDT" in " ".join(result.stdout.split())
    for option in ("max-messages", "duration", "rejects", "stale-after", "log-format", "summary"):
        assert f"--{option}" in result.stdout
