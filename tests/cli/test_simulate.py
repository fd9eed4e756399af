"""`k2 simulate binance` as a process of its own."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from websockets.sync.client import connect

from support.running import Process, Run, start_k2
from support.waiting import PATIENCE_S

SIMULATE = ("simulate", "binance")


@contextmanager
def simulating(*args: str) -> Iterator[tuple[str, Process]]:
    with start_k2(*SIMULATE, "--port", "0", *args, env=os.environ, stdout=None) as process:
        try:
            assert process.stderr is not None
            listening = process.stderr.readline()
            assert listening.startswith("listening on ws://127.0.0.1:"), listening
            yield listening.split()[-1], process
        finally:
            process.kill()


def test_the_command_plays_until_it_is_told_to_stop() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        args = ["--symbols", "btcusdt,ETHUSDT", "--first-id", "7", "--rate", "100"]
        with simulating(*args) as (url, process):
            assert process.stderr is not None
            hint = process.stderr.readline()
            assert f"k2 stream binance --url {url} --symbols BTCUSDT,ETHUSDT" in hint
            with connect(f"{url}/ws/btcusdt@trade", compression=None) as raw:
                assert json.loads(raw.recv())["t"] == 7
                process.send_signal(number)
                assert process.wait(PATIENCE_S) == 0
            assert process.stderr.read() == ""


def test_the_options_reach_the_simulator(tmp_path: Path) -> None:
    frames = [b'{"e":"trade","s":"BTCUSDT","t":%d}' % number for number in range(10)]
    (tmp_path / "frames").write_bytes(b"\n".join(frames))
    args = ["--frames", str(tmp_path / "frames"), "--close-at-end", "--skip-every", "5"]
    with (
        simulating(*args, "--garbage-every", "4", "--rate", "1000") as (url, _),
        connect(f"{url}/ws/btcusdt@trade", compression=None) as raw,
    ):
        received = [raw.recv(decode=False) for _ in range(10)]
    assert received[4] == b"not json at all"
    assert [json.loads(frame)["t"] for frame in received[:4]] == [0, 1, 2, 3]
    assert json.loads(received[5])["t"] == 5


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--frames", "/nonexistent"], 4, "/nonexistent"),
        (["--symbols", "BTC/USDT"], 2, "BTC/USDT"),
        (["--channels", "kline_1m"], 2, "kline_1m"),
        (["--ping-interval", "20"], 2, "--ping-interval"),
        (["--drop-after", "0"], 2, "--drop-after"),
        (["--market", "nasdaq"], 2, "nasdaq"),
        (["--live", "5", "--rate", "5"], 2, "--rate"),
        (["--unlisted-every", "1"], 2, "--unlisted-every"),
    ],
)
def test_wrong_options_say_so(run: Run, args: list[str], code: int, words: str) -> None:
    ended = run([*SIMULATE, "--port", "0", *args])
    assert (ended.exit_code, ended.stdout) == (code, "")
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_port_in_use_is_unavailable_with_a_hint(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended = run([*SIMULATE, "--port", port])
    assert ended.exit_code == 5
    assert "in use" in ended.stderr
    assert "hint: --port" in ended.stderr


def test_every_fault_is_in_the_help(run: Run) -> None:
    ended = run([*SIMULATE, "--help"])
    for fault in (
        *("drop-after", "silent-after", "shutdown-after", "garbage-every", "skip-every", "life"),
        *("silent-stream-after", "silent-symbols", "silent-routes", "half-open-every"),
        *("unlisted-every", "weight-limit", "rest-fault-every"),
    ):
        assert re.search(rf"--{fault}\b", ended.stdout)


def test_a_live_market_writes_the_truth_at_its_end(tmp_path: Path) -> None:
    args = ["--symbols", "BTCUSDT,ETHUSDT", "--first-id", "100", "--live", "1000"]
    args += ["--history", "5s", "--speed", "1000000000", "--silent-symbols", "ethusdt"]
    args += ["--unlisted-every", "50", "--weight-limit", "100", "--rest-fault-every", "2"]
    truth = tmp_path / "truth.json"
    with simulating(*args, "--truth", str(truth)) as (url, process):
        with connect(f"{url}/ws/btcusdt@trade/ethusdt@trade", compression=None) as raw:
            assert {json.loads(raw.recv())["s"] for _ in range(50)} == {"BTCUSDT"}
        page = f"{url.replace('ws', 'http')}/api/v3/historicalTrades?symbol=BTCUSDT&fromId=0"
        with urlopen(page, timeout=PATIENCE_S) as answer:
            assert [row["id"] for row in json.load(answer)][:50] == [*range(101, 150), 151]
            assert answer.headers["X-MBX-USED-WEIGHT-1M"] == "25"
        with pytest.raises(HTTPError, match="500"):
            urlopen(page, timeout=PATIENCE_S)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 0
    written = json.loads(truth.read_text())
    assert written["unlisted_every"] == 50
    assert set(written["symbols"]) == {"BTCUSDT", "ETHUSDT"}
    first, last = written["symbols"]["ETHUSDT"]
    assert first == 100
    assert 5099 <= last < 1_000_000


def test_a_truth_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with simulating("--truth", str(tmp_path / "file" / "truth.json")) as (_, process):
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_S) == 5
        assert process.stderr is not None
        assert "truth.json" in process.stderr.read()


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = (
        "import sys, k2cli.commands.simulate;"
        "print([m for m in ('websockets', 'numpy', 'pyarrow', 'msgspec') if m in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = ended.stdout.strip()
    assert loaded in ("[]", "['msgspec']")
