"""`k2 stream --record`, `k2 load frames` and playing recordings: the rows are the same."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.config import Settings, load_settings
from k2cli.ingestion.recordings import encode_frames
from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.simulator import Simulator, SimulatorOptions, running_simulator
from k2cli.storage.lake import open_lake
from support.recordings import frames_in
from support.running import Run, start_k2
from support.streamreading import Read, stream_of
from support.waiting import PATIENCE_S, wait_for

STREAM = ("stream", "binance", "--symbols", "BTCUSDT,ETHUSDT", "--channels", "trade,bookTicker")
ORDER = [("symbol", "ascending"), ("source_sequence", "ascending")]


def rows_of(settings: Settings, kind: RecordKind) -> pa.Table:
    with open_lake(settings) as lake:
        return lake.open(kind).iceberg.scan().to_arrow().sort_by(ORDER)


def at(home: Path) -> Settings:
    return load_settings({"K2_HOME": str(home)})


def record(run: Run, simulator: Simulator, folder: Path, *args: Any) -> dict[str, Any]:
    more = ("--record", str(folder), "--summary", "json", *args)
    result = run([*STREAM, "--url", simulator.url, *more])
    assert result.exit_code == 0, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "recordings"


def test_a_recording_has_the_rows_and_rejects_of_the_stream(
    run: Run, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    options = SimulatorOptions(first_id=100, garbage_every=50)
    with running_simulator(options) as simulator:
        summary = record(run, simulator, folder, "--max-messages", "3000")
    assert (summary["messages"], summary["recorded"], summary["unrecorded"]) == (3000, 3000, 0)
    assert summary["rejects"] > 50
    other = tmp_path / "other"
    result = run(["load", "frames", folder, "--home", other, "--summary", "json"])
    assert result.exit_code == 6  # because of the rejects
    loaded = json.loads(result.stdout)
    assert loaded["messages"] == 3000
    assert (loaded["rows"], loaded["rejects"]) == (summary["rows"], summary["rejects"])
    for kind in (TRADES, QUOTES):
        assert rows_of(at(other), kind).equals(rows_of(settings, kind))
    raws = [
        sorted(line.partition(b'"raw')[2] for line in path.read_bytes().splitlines())
        for path in (
            settings.home / "rejects" / "stream-binance.ndjson",
            other / "rejects" / "load-frames.ndjson",
        )
    ]
    assert raws[0] == raws[1]
    again = run(["load", "frames", folder, "--summary", "json", "--max-rejects", "100%"])
    assert again.exit_code == 0
    counts = json.loads(again.stdout)
    assert (counts["rows"], counts["duplicates"]) == (0, summary["rows"])


def test_a_played_recording_has_the_same_rows(
    run: Run, settings: Settings, folder: Path, tmp_path: Path
) -> None:
    with running_simulator(SimulatorOptions(first_id=100, garbage_every=50)) as simulator:
        record(run, simulator, folder, "--max-messages", "2000")
    other, copy = tmp_path / "other", tmp_path / "copy"
    with running_simulator(SimulatorOptions(frames=folder)) as simulator:
        record(run, simulator, copy, "--max-messages", "2000", "--home", other)
    played = [recorded.frame for recorded in frames_in(copy)]
    assert played == [recorded.frame for recorded in frames_in(folder)]
    trades = [rows_of(each, TRADES).drop(["ingestion_timestamp"]) for each in (settings, at(other))]
    assert trades[0].num_rows > 900
    assert trades[0].equals(trades[1])


def test_after_sigkill_at_most_a_second_is_missing(
    run: Run, k2_env: dict[str, str], settings: Settings, folder: Path
) -> None:
    with running_simulator(SimulatorOptions(first_id=0, rate=2_000)) as simulator:
        more = ("--flush-interval", "1h", "--record", str(folder), "--to", "table")
        args = ("stream", "binance", "--symbols", "BTCUSDT", "--url", simulator.url, *more)
        process = start_k2(*args, env=k2_env)
        try:
            wait_for(lambda: simulator.frames_sent > 3_000)
            process_saw = simulator.frames_sent
            time.sleep(1)
        finally:
            process.kill()
            process.communicate()
    assert run(["load", "frames", folder]).exit_code == 0
    numbers = rows_of(settings, TRADES)["source_sequence"].to_pylist()
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= process_saw - 500  # which may have been in the sockets


def test_an_unwritable_folder_ends_the_run_before_it_connects(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with running_simulator(SimulatorOptions(first_id=100)) as simulator:
        args = ("--url", simulator.url, "--record", tmp_path / "file")
        result = run([*STREAM, *args, "--max-messages", "5"])
        assert simulator.paths == []
    assert result.exit_code == 3
    assert f"cannot record to {tmp_path / 'file'}: " in result.stderr
    assert "hint: choose another folder with --record" in result.stderr


def test_a_recording_with_missing_frames_ends_with_an_error_after_the_last_commit(
    k2_env: dict[str, str], settings: Settings, folder: Path
) -> None:
    with running_simulator(SimulatorOptions(first_id=0, rate=200)) as simulator:
        more = ("--record", str(folder), "--summary", "json", "--log-format", "json")
        process = start_k2(*STREAM, "--url", simulator.url, *more, env=k2_env)
        try:
            wait_for(lambda: folder.is_dir() and bool(frames_in(folder)))
            shutil.rmtree(folder)
            folder.touch()  # so that no new file can be created
            sent = simulator.frames_sent
            wait_for(lambda: simulator.frames_sent > sent + 200)
            process.terminate()
            stdout, stderr = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
            process.communicate()
    assert process.returncode == 5, stderr
    summary = json.loads(stdout)
    assert summary["unrecorded"] > 100
    assert f"{summary['unrecorded']:,} frames are missing in the recording" in stderr
    stored = rows_of(settings, TRADES).num_rows + rows_of(settings, QUOTES).num_rows
    assert stored == summary["rows"] > 200


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_ends_the_run(run: Run, tmp_path: Path) -> None:
    (tmp_path / "read-only").mkdir(0o500)
    args = ("--url", "ws://127.0.0.1:1", "--record", tmp_path / "read-only")
    result = run([*STREAM, *args])
    assert result.exit_code == 3
    assert "Permission denied" in result.stderr


def test_shutdown_notices_are_recorded(run: Run, folder: Path) -> None:
    options = SimulatorOptions(first_id=100, shutdown_after=40, shutdown_grace_s=0.05)
    with running_simulator(options) as simulator:
        record(run, simulator, folder, "--max-messages", "100")
    frames = [recorded.frame for recorded in frames_in(folder)]
    notices = [frame for frame in frames if b"serverShutdown" in frame]
    # Of 40 frames per connection, 100 need three; what they deliver together is recorded of each.
    assert len(notices) >= 2
    assert len(frames) - len(notices) >= 100


def test_recordings_are_played_at_their_pace(tmp_path: Path) -> None:
    frames = [
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":1768312800000,"T":1768312800000,'
        b'"s":"BTCUSDT","t":%d,"p":"1","q":"1","m":true,"M":true}}' % number
        for number in range(4)
    ]
    seconds = [0, 1, -3600, -3598]  # 3 s in all
    text = b"".join(
        encode_frames([frame], 1_768_312_800_000_000_000 + second * 10**9)
        for frame, second in zip(frames, seconds, strict=True)
    )
    (tmp_path / "f.frames").write_bytes(text)
    took_s = {}
    for speed in (4.0, None):
        options = SimulatorOptions(frames=tmp_path, frames_speed=speed, close_at_end=True)
        with running_simulator(options) as simulator:
            read = Read()
            stream = stream_of(simulator.url, read=read, max_messages=4)
            times = []
            for batch in stream.batches():
                if batch.messages:
                    read.batches.append(batch)
                    times.append(time.monotonic())
            took_s[speed] = times[-1] - times[0]
            assert read.numbers == [0, 1, 2, 3]
    assert took_s[4.0] > 0.5
    assert took_s[None] < took_s[4.0]
