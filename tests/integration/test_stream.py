"""`k2 stream` as a process: killed, signalled, out of disk, two at once, behind TLS."""

import json
import os
import pty
import random
import re
import resource
import signal
import sqlite3
import ssl
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from k2cli.config import Settings
from k2cli.records import TRADES, RecordKind
from k2cli.simulator import SimulatorOptions, running_simulator
from k2cli.storage.lake import open_lake
from support.running import K2_COMMAND, Process, Run, run_k2, start_k2
from support.scraping import scraped_until
from support.terminal import Terminal
from support.waiting import PATIENCE_S, wait_for

SYMBOLS = ("--symbols", "BTCUSDT")
UNCOMMITTED = ("--flush-interval", "1h", "--metrics", "127.0.0.1:0")  # until the end
Json = dict[str, Any]


def streamed(url: str, *args: str) -> list[str]:
    base = ["stream", "binance", "--url", url]
    return [*base, *(() if "--symbols" in args else SYMBOLS), *args]


class Streamer:
    """A running `k2 stream` with its log as JSON, read line by line as it comes."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.events: list[Json] = []
        self.talk: list[str] = []  # other lines of stderr
        self._has_news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._has_news:
                if line.startswith("{"):
                    self.events.append(json.loads(line))
                else:
                    self.talk.append(line)
                self._has_news.notify_all()

    def wait_for(self, event: str, count: int = 1) -> None:
        with self._has_news:
            assert self._has_news.wait_for(
                lambda: len(self.named(event)) >= count, timeout=PATIENCE_S
            ), (event, self.events[-3:], self.talk)

    def wait_for_messages(self) -> None:
        """Wait until it has taken some, which its metrics show."""
        self.wait_for("metrics")
        url = self.named("metrics")[0]["url"]
        scraped_until(url, lambda samples: samples.get(("k2_messages_total", ()), 0) > 0)

    def named(self, event: str) -> list[Json]:
        return [found for found in self.events if found["event"] == event]

    def end(self, *signals: int) -> tuple[int, str]:
        """Send signals, wait for the end, and return the exit code and stdout."""
        for number in signals:
            self.process.send_signal(number)
        assert self.process.stdout is not None
        out = self.process.stdout.read()
        code = self.process.wait(PATIENCE_S)
        self._reader.join()
        return code, out

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


@contextmanager
def streaming(env: Mapping[str, str], url: str, *args: str, **popen: Any) -> Iterator[Streamer]:
    streamer = Streamer(start_k2(*streamed(url, "--log-format", "json", *args), env=env, **popen))
    try:
        yield streamer
    finally:
        streamer.close()


def numbers(settings: Settings, kind: RecordKind = TRADES) -> list[int]:
    with open_lake(settings) as lake:
        found = lake.open(kind).iceberg.scan(selected_fields=("source_sequence",)).to_arrow()
    return sorted(found["source_sequence"].to_pylist())


def assert_is_one_run(held: list[int], first: int) -> None:
    """From `first` on, none missing and none twice."""
    assert held == list(range(first, first + len(held)))


# --- signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_with_a_last_commit_and_the_summary(
    k2_env: dict[str, str], settings: Settings, number: int
) -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=2_000)) as simulator,
        streaming(k2_env, simulator.url, *UNCOMMITTED, "--summary", "json") as streamer,
    ):
        streamer.wait_for("connected")
        connected_s = time.monotonic()
        streamer.wait_for_messages()
        assert streamer.named("commit") == []
        streamed_s = time.monotonic() - connected_s
        code, out = streamer.end(number)
    assert code == 0
    summary = json.loads(out)
    assert {"messages", "rows", "rejects", "commits", "reconnects", "duration_s"} <= summary.keys()
    assert summary["rows"] == summary["messages"] > 0
    assert (summary["commits"], summary["rejects"], summary["reconnects"]) == (1, 0, 0)
    assert summary["duration_s"] > streamed_s - 0.01
    assert streamer.talk == []
    held = numbers(settings)
    assert_is_one_run(held, 100)
    assert len(held) == summary["rows"]


def test_second_signal_ends_a_commit_that_waits(k2_env: dict[str, str], settings: Settings) -> None:
    """Another process holds the catalog's lock, so that the last commit cannot go on."""
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=2_000)) as simulator,
        streaming(k2_env, simulator.url, *UNCOMMITTED) as streamer,
    ):
        streamer.wait_for_messages()
        with sqlite3.connect(settings.home / "catalog.db", isolation_level=None) as lock:
            lock.execute("BEGIN EXCLUSIVE")
            streamer.process.send_signal(signal.SIGINT)
            wait_for(lambda: simulator.open_connections == 0)  # it has taken the signal
            with pytest.raises(subprocess.TimeoutExpired):
                streamer.process.wait(1)
            code, _ = streamer.end(signal.SIGINT)  # otherwise the lock ends it with an error
            lock.execute("ROLLBACK")
        lock.close()
    assert code == -signal.SIGINT
    assert numbers(settings) == []
    assert streamer.named("commit") == []


def test_hangups_of_a_closed_session_end_with_one_commit(
    k2_env: dict[str, str], settings: Settings
) -> None:
    """A terminal that goes away signals more than once, and takes the log with it."""
    master, slave = pty.openpty()
    with running_simulator(SimulatorOptions(first_id=100, rate=2_000)) as simulator:
        args = streamed(simulator.url, *UNCOMMITTED, "--log-format", "json")
        process = start_k2(*args, env=k2_env, stdout=subprocess.DEVNULL, stderr=slave)
        os.close(slave)
        wait_for(lambda: simulator.frames_sent > 200)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        wait_for(lambda: simulator.open_connections == 0)  # it has taken the signal
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_S) == 0
    held = numbers(settings)
    assert held
    assert_is_one_run(held, 100)


def test_hangup_is_ignored_under_nohup(k2_env: dict[str, str]) -> None:
    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with (
        running_simulator(SimulatorOptions(first_id=100, rate=2_000)) as simulator,
        streaming(k2_env, simulator.url, "--flush-rows", "100", preexec_fn=ignore) as streamer,
    ):
        streamer.wait_for("commit")
        streamer.process.send_signal(signal.SIGHUP)
        streamer.wait_for("commit", len(streamer.named("commit")) + 3)
        code, _ = streamer.end(signal.SIGTERM)
    assert code == 0


def test_lock_that_is_freed_lets_the_commit_go_on(
    k2_env: dict[str, str], settings: Settings
) -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=2_000)) as simulator,
        streaming(k2_env, simulator.url, *UNCOMMITTED) as streamer,
    ):
        streamer.wait_for_messages()
        lock = sqlite3.connect(settings.home / "catalog.db", isolation_level=None)
        lock.execute("BEGIN EXCLUSIVE")
        streamer.process.send_signal(signal.SIGTERM)
        wait_for(lambda: simulator.open_connections == 0)  # it has taken the signal
        time.sleep(0.7)  # so that it waits for the lock, most likely
        lock.execute("ROLLBACK")
        lock.close()
        code, _ = streamer.end()
    assert code == 0
    assert_is_one_run(numbers(settings), 100)
    assert len(numbers(settings)) == streamer.named("commit")[0]["rows"]


# --- outages of the catalog


@contextmanager
def locked_catalog(settings: Settings) -> Iterator[None]:
    """Make the embedded catalog unavailable to other processes."""
    lock = sqlite3.connect(settings.home / "catalog.db", isolation_level=None)
    try:
        lock.execute("BEGIN EXCLUSIVE")
        yield
        lock.execute("ROLLBACK")
    finally:
        lock.close()


def test_outage_of_the_catalog_is_waited_out(k2_env: dict[str, str], settings: Settings) -> None:
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=500)) as simulator,
        streaming(k2_env, simulator.url, "--flush-interval", "200ms") as streamer,
    ):
        streamer.wait_for("commit")
        with locked_catalog(settings):
            streamer.wait_for("catalog_unavailable")
        commits = len(streamer.named("commit"))
        streamer.wait_for("commit", commits + 2)
        code, _ = streamer.end(signal.SIGTERM)
    assert (code, streamer.talk) == (0, [])
    assert_is_one_run(numbers(settings), 100)


def test_run_that_is_stopped_in_an_outage_keeps_its_rows_for_the_next_one(
    k2_env: dict[str, str], settings: Settings
) -> None:
    with running_simulator(SimulatorOptions(first_id=100, rate=500)) as simulator:
        with streaming(k2_env, simulator.url, "--flush-interval", "200ms") as streamer:
            streamer.wait_for("commit")
            with locked_catalog(settings):
                streamer.wait_for("catalog_unavailable")
                code, _ = streamer.end(signal.SIGTERM)
        (kept,) = streamer.named("uncommitted_kept")
        (error,) = streamer.named("error")
        (ended,) = streamer.named("summary")
        assert code == error["exit_code"] == 5
        assert ended["messages"] == ended["rows"] + ended["uncommitted"]
        assert ended["uncommitted"] == kept["rows"]
        assert error["message"].startswith(f"{kept['rows']} rows were not committed")
        before = numbers(settings)
        with streaming(k2_env, simulator.url, "--max-messages", "10") as streamer:
            code, _ = streamer.end()
    assert code == 0
    (ended,) = streamer.named("summary")
    assert ended["recovered"] == kept["rows"]
    assert ended["messages"] + ended["recovered"] == ended["rows"]
    assert sum(event["rows"] for event in streamer.named("recovered")) == kept["rows"] > 0
    after = numbers(settings)
    assert len(after) >= len(before) + kept["rows"]
    assert_is_one_run(after[: len(before) + kept["rows"]], 100)
    assert not list((settings.home / "uncommitted").rglob("*.arrow"))


def test_a_catalog_that_cannot_be_written_for_a_while_is_waited_out(
    k2_env: dict[str, str], settings: Settings
) -> None:
    file, away = settings.home / "catalog.db", settings.home / "catalog.db.away"
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=500)) as simulator,
        streaming(k2_env, simulator.url, "--flush-interval", "200ms") as streamer,
    ):
        streamer.wait_for("commit")
        file.rename(away)
        file.mkdir()
        streamer.wait_for("catalog_unavailable")
        file.rmdir()
        away.rename(file)
        commits = len(streamer.named("commit"))
        streamer.wait_for("commit", commits + 2)
        code, _ = streamer.end(signal.SIGTERM)
    assert (code, streamer.talk) == (0, [])
    assert_is_one_run(numbers(settings), 100)


# --- kills


def test_killed_streams_keep_every_reported_row_and_double_none(
    k2_env: dict[str, str], settings: Settings
) -> None:
    """The exchange goes on from where each connection was cut, and sometimes from before that."""
    chance = random.Random(8)
    reported = 0
    first = 100
    for number in range(6):
        with (
            running_simulator(SimulatorOptions(first_id=first, rate=20_000)) as simulator,
            streaming(k2_env, simulator.url, "--flush-rows", "400") as streamer,
        ):
            streamer.wait_for("connected" if number % 3 else "commit")
            time.sleep(chance.uniform(0, 0.35))
            streamer.end(signal.SIGKILL)
        reported += sum(event["rows"] for event in streamer.named("commit"))
        held = numbers(settings)
        assert len(held) >= reported
        assert_is_one_run(held, 100)
        # A killed run can have committed more than it lived to report.
        reported = len(held)
        first = max(100, 100 + len(held) - chance.choice([0, 0, 300, 5_000]))
    assert reported > 0
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        limit = ("--max-messages", str(reported + 50))
        done = run_k2(streamed(simulator.url, *limit, "--summary", "json"), env=k2_env)
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    # The exchange of this run says the same ids, with times of its own.
    assert (summary["rows"], summary["duplicates"] + summary["conflicts"]) == (50, reported)
    assert_is_one_run(numbers(settings), 100)


# --- two at once


def trade_line(number: int, symbol: str) -> str:
    payload = f'"s":"{symbol}","t":{number},"p":"1.5","q":"2","T":1723161348055,"m":true'
    return (
        f'{{"stream":"{symbol.lower()}@trade",'
        f'"data":{{"e":"trade","E":1723161348055,{payload}}}}}\n'
    )


def test_two_streams_into_one_home_keep_each_trade_once(
    k2_env: dict[str, str], settings: Settings, tmp_path: Path
) -> None:
    symbols = ("--symbols", "BTCUSDT,ETHUSDT", "--flush-rows", "500")
    with open_lake(settings, create=True):
        pass
    frames = tmp_path / "frames.ndjson"
    frames.write_text(
        "".join(trade_line(100 + n // 2, ("BTCUSDT", "ETHUSDT")[n % 2]) for n in range(6_000))
    )
    with (
        running_simulator(SimulatorOptions(frames=frames, rate=4_000)) as simulator,
        streaming(k2_env, simulator.url, *symbols, "--max-messages", "6000") as one,
        streaming(k2_env, simulator.url, *symbols, "--max-messages", "6000") as other,
    ):
        codes = [one.end()[0], other.end()[0]]
    assert codes == [0, 0], (one.talk, other.talk)
    commits = [*one.named("commit"), *other.named("commit")]
    with open_lake(settings) as lake:
        rows = lake.open(TRADES).iceberg.scan(selected_fields=("trade_id", "symbol")).to_arrow()
    seen = Counter(zip(rows["symbol"].to_pylist(), rows["trade_id"].to_pylist(), strict=True))
    assert set(seen.values()) == {1}
    assert len(seen) == 6_000 == sum(event["rows"] for event in commits)


def test_streams_that_make_a_new_home_at_once_do_not_disturb_each_other(
    k2_env: dict[str, str], settings: Settings
) -> None:
    args = ("--max-messages", "10")
    with (
        running_simulator(SimulatorOptions(first_id=100)) as simulator,
        ExitStack() as stack,
    ):
        streamers = [stack.enter_context(streaming(k2_env, simulator.url, *args)) for _ in range(4)]
        codes = [streamer.end()[0] for streamer in streamers]
    assert codes == [0] * 4, [streamer.talk[-2:] for streamer in streamers]
    held = numbers(settings)
    assert len(held) == len(set(held)) >= 10


# --- logs, stdout, the live view


def test_log_lines_are_json_and_commits_add_up_to_the_summary(k2_env: dict[str, str]) -> None:
    options = SimulatorOptions(first_id=100, rate=10_000, drop_after=900, garbage_every=100)
    args = ("--flush-rows", "300", "--max-messages", "3000", "--summary", "json")
    with (
        running_simulator(options) as simulator,
        streaming(k2_env, simulator.url, *args) as streamer,
    ):
        code, out = streamer.end()
    assert (code, streamer.talk) == (0, [])
    summary = json.loads(out)
    for event in streamer.events:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
        assert event["level"] in ("info", "warning")
    commits = streamer.named("commit")
    assert sum(event["rows"] for event in commits) == summary["rows"]
    assert len(commits) == summary["commits"] > 2
    assert len({event["snapshot_id"] for event in commits}) == len(commits)
    assert all(event["took_ms"] > 0 for event in commits)
    assert sum(event["count"] for event in streamer.named("reject")) == summary["rejects"] > 0
    assert len(streamer.named("connected")) == summary["reconnects"] + 1
    kept = summary["rows"] + summary["rejects"] + summary["duplicates"]
    assert kept == summary["messages"] == 3000


@pytest.mark.parametrize("stderr", ["/dev/full", None, "closed"])
def test_log_that_cannot_be_written_stops_no_data(
    k2_env: dict[str, str], settings: Settings, tmp_path: Path, stderr: str | None
) -> None:
    """On a full disk, in a pipe without a reader, or where stderr is closed."""
    log = tmp_path / "k2.log"
    reader, writer = os.pipe()
    os.close(reader)
    options = SimulatorOptions(first_id=100, garbage_every=100)
    with running_simulator(options) as simulator:
        words = streamed(simulator.url, "--max-messages", "3000", "--flush-rows", "500")
        closing = ("sh", "-c", 'exec "$@" 2>&-', "sh", *K2_COMMAND)
        process = start_k2(
            *(*words, "--log-file", log),
            env=k2_env,
            program=closing if stderr == "closed" else K2_COMMAND,
            stderr=os.open(stderr, os.O_WRONLY) if stderr == "/dev/full" else writer,
        )
        stdout, _ = process.communicate(timeout=PATIENCE_S)
    os.close(writer)
    assert (process.returncode, stdout) == (0, "")
    assert len(numbers(settings)) >= 2_900
    text = log.read_text()
    assert " connected " in text
    assert " commit " in text
    assert " summary messages=3000 " in text


def test_skipped_trades_are_gaps(k2_env: dict[str, str], settings: Settings) -> None:
    options = SimulatorOptions(first_id=100, skip_every=100)
    args = ("--max-messages", "990", "--summary", "json")
    with (
        running_simulator(options) as simulator,
        streaming(k2_env, simulator.url, *args) as streamer,
    ):
        code, out = streamer.end()
    assert code == 0
    held = numbers(settings)
    missing = held[-1] - held[0] + 1 - len(held)
    assert missing == json.loads(out)["missing"] == 9
    gaps = streamer.named("gap")
    assert sum(event["missing"] for event in gaps) == missing
    assert {(event["symbol"], event["table"], event["level"]) for event in gaps} == {
        ("BTCUSDT", "trades_v2", "warning")
    }


def test_stdout_gets_exact_ndjson(run: Run, home: Path) -> None:
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        url = ("--url", simulator.url, *SYMBOLS, "--channels", "trade,bookTicker")
        limit = ("--max-messages", "500", "--summary", "json")
        result = run(["stream", "binance", *url, "--to", "stdout", *limit])
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(rows) == 500 == json.loads(result.stderr.splitlines()[-1])["rows"]
    trades = [row for row in rows if "trade_id" in row]
    assert sorted(row["source_sequence"] for row in trades) == [100 + n for n in range(len(trades))]
    for row in rows:
        prices = [row["price"]] if "price" in row else [row["bid_price"], row["ask_price"]]
        assert all(re.fullmatch(r"\d+\.\d{8}", price) for price in prices)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", row["timestamp"])
    assert not (home / "catalog.db").exists()


def test_stdout_that_is_closed_early_ends_quietly(k2_env: dict[str, str]) -> None:
    with running_simulator(SimulatorOptions(first_id=100, rate=5_000)) as simulator:
        process = start_k2(*streamed(simulator.url, "--to", "stdout"), env=k2_env)
        assert process.stdout is not None
        assert process.stderr is not None
        with process, process.stdout, process.stderr:
            assert json.loads(process.stdout.readline())["trade_id"] == "BINANCE-100"
            process.stdout.close()
            code = process.wait(PATIENCE_S)
            talk = process.stderr.read()
    assert code == 0
    assert "Traceback" not in talk
    assert "error" not in talk


def test_live_view_shows_states_and_fits_the_terminal(k2_env: dict[str, str]) -> None:
    """On a terminal that is narrow, then resized, while the exchange goes away."""
    symbols = ("--symbols", "BTCUSDT,ETHUSDT,SOLUSDT")
    with ExitStack() as stack:
        exchange = stack.enter_context(ExitStack())
        simulator = running_simulator(SimulatorOptions(first_id=100, rate=500))
        url = exchange.enter_context(simulator).url
        run = (*K2_COMMAND, *streamed(url, *symbols))
        view = stack.enter_context(Terminal(run, k2_env, columns=40, lines=12))
        shown = view.wait_for(lambda text: "connected" in text and "SOLUSDT" in text)
        assert "rows/s" in shown
        assert re.search(r"\d+\.\d{8}", shown)
        assert "last id" not in shown
        assert "{" not in shown
        view.resize(100, 30)
        view.wait_for(lambda text: "last id" in text)
        exchange.close()
        view.wait_for(lambda text: re.search(r"reconnecting in \d+ s", text) is not None)
        view.process.send_signal(signal.SIGINT)
        assert view.end() == 0
        assert "ended" in view.text


# --- TLS


def test_private_authority_is_trusted_when_named(
    run: Run, tmp_path: Path, settings: Settings
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with running_simulator(SimulatorOptions(first_id=1, ssl=context)) as simulator:
        args = ["stream", "binance", "--url", simulator.url, *SYMBOLS, "--max-messages", "10"]
        refused = run(args)
        accepted = run(args, env={"SSL_CERT_FILE": str(tmp_path / "ca.pem")})
    assert refused.exit_code == 5
    assert "certificate" in refused.stderr
    assert "hint: " in refused.stderr
    assert "Traceback" not in refused.stderr
    assert accepted.exit_code == 0
    assert_is_one_run(numbers(settings), 1)


# --- a full disk


@pytest.mark.parametrize(("limit_bytes", "least_commits"), [(2_000, 0), (10_000, 1)])
def test_file_size_limit_is_waited_out_and_what_was_reported_is_stored(
    run: Run, k2_env: dict[str, str], settings: Settings, limit_bytes: int, least_commits: int
) -> None:
    """A small limit is hit by the first data file, a larger one by the table's metadata."""
    with open_lake(settings, create=True):
        pass

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    args = ("--flush-interval", "50ms")
    with (
        running_simulator(SimulatorOptions(first_id=100, rate=200)) as simulator,
        streaming(k2_env, simulator.url, *args, preexec_fn=limit) as streamer,
    ):
        streamer.wait_for("catalog_unavailable", 2)
        code, _ = streamer.end(signal.SIGTERM)
    assert code == 5, streamer.talk
    (error,) = streamer.named("error")
    assert "rows were not committed" in error["message"]
    assert streamer.named("uncommitted_kept") or "are lost" in error["message"]
    assert f"cannot write to table trades_v2 in {settings.home}" in error["message"]
    assert "File too large" in error["message"]
    assert streamer.talk == []
    commits = streamer.named("commit")
    assert len(commits) >= least_commits
    held = numbers(settings)
    assert_is_one_run(held, 100)
    assert len(held) == sum(event["rows"] for event in commits)
    with open_lake(settings) as lake:
        planned = set(lake.open(TRADES).plan().paths)
    assert {str(path) for path in (settings.home / "warehouse").rglob("*.parquet")} == planned
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        again = run(streamed(simulator.url, "--max-messages", str(len(held) + 10)))
    assert again.exit_code == 0
    kept = sum(event["rows"] for event in streamer.named("uncommitted_kept"))
    after = numbers(settings)
    assert_is_one_run(after, 100)
    assert len(after) == len(held) + max(kept, 10)


def test_full_disk_under_the_rejects_is_waited_out(
    k2_env: dict[str, str], settings: Settings
) -> None:
    # The garbage comes behind more frames than are parsed at once, so after a commit.
    options = SimulatorOptions(first_id=100, rate=20_000, garbage_every=10_000)
    args = ("--flush-rows", "100", "--rejects", "/dev/full")
    with (
        running_simulator(options) as simulator,
        streaming(k2_env, simulator.url, *args) as streamer,
    ):
        streamer.wait_for("catalog_unavailable", 2)
        code, _ = streamer.end(signal.SIGTERM)
    assert code == 5
    (error,) = streamer.named("error")
    (kept,) = streamer.named("uncommitted_kept")
    assert error["message"].startswith(f"{kept['rows']} rows were not committed")
    assert "cannot write rejects to /dev/full: No space left on device" in error["message"]
    assert streamer.talk == []
    held = numbers(settings)
    assert_is_one_run(held, 100)
    assert len(held) == sum(event["rows"] for event in streamer.named("commit")) > 0
