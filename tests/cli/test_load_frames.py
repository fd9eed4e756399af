"""`k2 load frames`: recordings into rows, damaged and foreign ones, and what is reported."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.config import Settings
from k2cli.ingestion.recordings import encode_frames, zstd_packer
from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.simulator import GARBAGE
from k2cli.storage.lake import open_lake
from support.running import Run, k2_at, start_k2
from support.waiting import PATIENCE_S

LOAD = ("load", "frames")
NOW_NS = 1_768_312_800_123_456_789
NAME = "binance-spot-20260113T140000Z-6b1f0c9d52ae7e34-0001.frames.zst"


def trade(number: int, **over: Any) -> bytes:
    data = {"e": "trade", "E": 1768312800120, "s": "BTCUSDT", "t": number, "p": "1.50", "q": "2"}
    data |= {"T": 1768312800119, "m": True, "M": True}
    return json.dumps({"stream": "btcusdt@trade", "data": {**data, **over}}).encode()


def quote(number: int) -> bytes:
    data = {"u": number, "s": "BTCUSDT", "b": "1.5", "B": "1", "a": "1.6", "A": "2"}
    return json.dumps({"stream": "btcusdt@bookTicker", "data": data}).encode()


def text_of(*frames: bytes, received_ns: int = NOW_NS) -> bytes:
    return b"".join(encode_frames([frame], received_ns) for frame in frames)


def part(*frames: bytes) -> bytes:
    """Return frames as the recorder writes them."""
    return zstd_packer()(text_of(*frames))


def rows_of(settings: Settings, kind: RecordKind = TRADES) -> pa.Table:
    with open_lake(settings) as lake:
        return lake.open(kind).iceberg.scan().to_arrow()


def ids(settings: Settings, kind: RecordKind = TRADES) -> list[int]:
    return sorted(rows_of(settings, kind)["source_sequence"].to_pylist())


def summary_of(text: str) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(text)
    return summary


def test_recordings_become_rows(run: Run, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(part(trade(1), quote(7), trade(2)))
    result = run([*LOAD, tmp_path / NAME, "--summary", "json"])
    assert result.exit_code == 0, result.stderr
    summary = summary_of(result.stdout)
    assert (summary["files"], summary["messages"], summary["rows"]) == (1, 3, 3)
    assert ids(settings) == [1, 2]
    trades, quotes = rows_of(settings), rows_of(settings, QUOTES)
    received = [NOW_NS // 1000] * 2
    assert trades["ingestion_timestamp"].cast(pa.int64()).to_pylist() == received
    assert quotes["timestamp"].cast(pa.int64()).to_pylist() == received[:1]
    assert set(trades["exchange"].to_pylist()) == {"BINANCE"}


def test_recordings_are_loaded_once(run: Run, settings: Settings, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(part(trade(1), quote(7), trade(2)))
    assert run([*LOAD, tmp_path]).exit_code == 0
    (tmp_path / NAME).write_bytes(part(trade(1), quote(7), trade(2)) + part(trade(3), trade(3)))
    result = run([*LOAD, tmp_path, "--summary", "json"])
    summary = summary_of(result.stdout)
    assert (summary["rows"], summary["duplicates"], summary["conflicts"]) == (1, 4, 0)
    assert ids(settings) == [1, 2, 3]


@pytest.mark.parametrize(
    "pack", [bytes, gzip.compress, zstd_packer()], ids=["text", "gzip", "zstd"]
)
def test_stdin_is_a_recording(settings: Settings, pack: Callable[[bytes], bytes]) -> None:
    data = pack(text_of(trade(1), trade(2), b"garbage"))
    args = (*LOAD, "-", "--market", "us", "--max-rejects", "1", "--rejects", settings.home / "r")
    k2_at(settings.home)(*args, stdin=data)
    assert ids(settings) == [1, 2]
    assert set(rows_of(settings)["exchange"].to_pylist()) == {"BINANCE_US"}
    assert json.loads((settings.home / "r").read_text())["file"] == "-"


def test_stdin_without_a_market_is_an_error(run: Run) -> None:
    result = run([*LOAD, "-"], stdin=text_of(trade(1)).decode())
    assert result.exit_code == 2
    assert "the market of stdin is unknown" in result.stderr
    assert "hint: choose it with --market" in result.stderr


def test_a_pipe_is_a_recording(k2_env: dict[str, str], settings: Settings, tmp_path: Path) -> None:
    pipe = tmp_path / NAME
    os.mkfifo(pipe)
    process = start_k2(*LOAD, str(pipe), env=k2_env)
    try:
        pipe.write_bytes(part(trade(1)) + part(trade(2)))
        _, stderr = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, stderr
    assert ids(settings) == [1, 2]


def test_every_market_has_its_exchange(run: Run, settings: Settings, tmp_path: Path) -> None:
    futures = trade(5, X="MARKET").replace(b', "M": true', b"")
    for market in ("spot", "usdm", "us"):
        path = tmp_path / NAME.replace("spot", market)
        path.write_bytes(part(futures if market == "usdm" else trade(5)))
    assert run([*LOAD, tmp_path]).exit_code == 0
    exchanges = rows_of(settings)["exchange"].to_pylist()
    assert sorted(exchanges) == ["BINANCE", "BINANCE_US", "BINANCE_USDM"]


def test_shutdown_notices_are_not_rejects(run: Run, tmp_path: Path) -> None:
    notice = b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}'
    (tmp_path / NAME).write_bytes(part(trade(1), notice))
    result = run([*LOAD, tmp_path, "--summary", "json"])
    assert result.exit_code == 0
    assert summary_of(result.stdout)["messages"] == 1


# --- rejects


def test_garbage_is_rejected_and_the_rest_is_loaded(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    hostile = [*GARBAGE, b"a\nb", b"=", b"\r"]
    (tmp_path / NAME).write_bytes(part(trade(1), *hostile, trade(2)))
    rejects = tmp_path / "rejects.ndjson"
    result = run([*LOAD, tmp_path / NAME, "--rejects", rejects])
    assert result.exit_code == 6
    assert f"{len(hostile)} frames rejected (limit 0); all others were loaded" in result.stderr
    assert ids(settings) == [1, 2]
    lines = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert [line["position"] for line in lines] == list(range(2, 2 + len(hostile)))
    assert {line["file"] for line in lines} == {str(tmp_path / NAME)}
    assert lines[0]["raw"] == "not json at all"
    assert lines[len(GARBAGE)]["raw"] == "a\nb"


def test_some_rejects_may_be_allowed(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(part(trade(1), b"garbage", trade(2)))
    assert run([*LOAD, tmp_path, "--max-rejects", "1"]).exit_code == 0
    assert run([*LOAD, tmp_path, "--max-rejects", "50%"]).exit_code == 0
    assert run([*LOAD, tmp_path, "--max-rejects", "20%"]).exit_code == 6


def test_frames_without_a_receive_time_are_rejected(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "mine.ndjson"
    path.write_bytes(trade(1) + b"\n" + text_of(trade(2)) + b"\n\n")
    result = run([*LOAD, path, "--market", "spot", "--rejects", tmp_path / "r", "--to", "table"])
    assert result.exit_code == 6
    assert ids(settings) == [2]
    (line,) = [json.loads(line) for line in (tmp_path / "r").read_text().splitlines()]
    assert (line["position"], line["cause"]) == (1, "missing")


# --- damage


def test_a_bad_zstd_frame_costs_only_itself(run: Run, settings: Settings, tmp_path: Path) -> None:
    parts = [part(trade(number), trade(number + 1)) for number in (1, 3, 5)]
    bad = bytearray(parts[1])
    bad[-6] ^= 0xFF
    (tmp_path / NAME).write_bytes(parts[0] + bad + parts[2])
    other = tmp_path / NAME.replace("0001", "0002")
    other.write_bytes(part(trade(7)))
    result = run([*LOAD, tmp_path])
    assert result.exit_code == 6
    assert f"{tmp_path / NAME} is damaged at byte {len(parts[0])}: " in result.stderr
    assert "1 of 2 recordings have errors" in result.stderr
    assert ids(settings) == [1, 2, 5, 6, 7]


@pytest.mark.parametrize("cut", [1, 9, 30])
def test_a_recording_that_is_cut_off_is_loaded_up_to_there(
    run: Run, settings: Settings, tmp_path: Path, cut: int
) -> None:
    first = part(trade(1), trade(2))
    (tmp_path / NAME).write_bytes(first + part(trade(3), trade(4))[:-cut])
    result = run([*LOAD, tmp_path])
    assert result.exit_code == 6
    assert f"is damaged at byte {len(first)}: it is cut off" in result.stderr
    assert ids(settings)[:2] == [1, 2]


def test_a_line_that_is_cut_off_is_rejected(run: Run, settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "binance-spot-mine.frames"
    path.write_bytes(text_of(trade(1), trade(2))[:-40])
    result = run([*LOAD, path])
    assert result.exit_code == 6
    assert "1 frame rejected" in result.stderr
    assert ids(settings) == [1]


def test_a_gzip_file_that_is_cut_off_is_loaded_up_to_there(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "binance-spot-mine.frames.gz"
    data = gzip.compress(text_of(*map(trade, range(20_000))), 1)
    path.write_bytes(data[: len(data) // 2])
    result = run([*LOAD, path])
    assert result.exit_code == 6
    assert "it is cut off" in result.stderr
    found = ids(settings)
    assert found == list(range(len(found)))
    assert 5_000 < len(found) < 20_000


def test_clocks_may_go_backwards(run: Run, settings: Settings, tmp_path: Path) -> None:
    times = [NOW_NS, NOW_NS - 3_600_000_000_000, 5, NOW_NS + 1]
    text = b"".join(text_of(trade(n), received_ns=time) for n, time in enumerate(times))
    (tmp_path / "binance-spot-mine.frames").write_bytes(text)
    assert run([*LOAD, tmp_path]).exit_code == 0
    table = rows_of(settings).sort_by("source_sequence")
    assert table["ingestion_timestamp"].cast(pa.int64()).to_pylist() == [t // 1000 for t in times]


# --- which files


def test_foreign_files_in_a_folder_are_ignored(
    run: Run, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / NAME).write_bytes(part(trade(1)))
    (folder / "notes.txt").write_text("hello")
    (folder / "rejects.ndjson").write_text('{"reason":"x"}\n')
    (folder / NAME.replace("spot", "usdm")).write_bytes(b"damaged")
    result = run([*LOAD, folder, "--market", "spot"])
    assert "usdm" in result.stderr
    assert ids(settings) == [1]
    # With the market given, frames of unknown files are tried, too.
    assert result.exit_code == 6
    assert run([*LOAD, folder / NAME]).exit_code == 0


def test_without_a_market_unknown_files_of_a_folder_are_skipped(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(part(trade(1)))
    (tmp_path / "rejects.ndjson").write_text('{"reason":"x"}\n')
    result = run([*LOAD, tmp_path])
    assert result.exit_code == 0
    assert "rejects.ndjson skipped: the market of" in result.stderr


def test_an_unknown_market_is_an_error(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mine.frames"
    path.write_bytes(text_of(trade(1)))
    result = run([*LOAD, path])
    assert result.exit_code == 2
    assert "hint: choose it with --market" in result.stderr


def test_a_named_file_of_another_market_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(part(trade(1)))
    result = run([*LOAD, tmp_path / NAME, "--market", "usdm"])
    assert result.exit_code == 2
    assert "is a recording of market spot, not usdm" in result.stderr


@pytest.mark.parametrize(
    ("market", "frame"),
    [
        ("usdm", trade(1)),
        ("coinm", trade(1)),
        ("usdm", quote(1)),
        ("spot", trade(1, X="MARKET")),
        ("us", quote(1).replace(b'"u"', b'"e": "bookTicker", "E": 1, "T": 1, "u"')),
        ("coinm", trade(1, X="MARKET")),
        ("usdm", trade(1, X="MARKET", s="BTCUSD_PERP")),
    ],
)
def test_frames_of_another_market_are_refused(
    run: Run, tmp_path: Path, market: str, frame: bytes
) -> None:
    path = tmp_path / "mine.frames"
    path.write_bytes(text_of(b"garbage", frame))
    result = run([*LOAD, path, "--market", market, "--to", "stdout"])
    assert result.exit_code == 6
    assert result.stdout == ""
    assert "has frames of another market than BINANCE" in result.stderr


def test_an_empty_folder_is_an_error(run: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert run([*LOAD, tmp_path / "empty"]).exit_code == 4
    assert run([*LOAD, tmp_path / "missing"]).exit_code == 4


# --- other targets


def test_rows_can_be_printed(run: Run, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(part(*map(trade, range(9)), trade(3)))
    result = run([*LOAD, tmp_path, "--to", "stdout"])
    assert result.exit_code == 0
    assert [json.loads(line)["source_sequence"] for line in result.stdout.splitlines()] == [
        *range(9)
    ]


def test_a_dry_run_shows_some_rows_and_stores_nothing(run: Run, tmp_path: Path, home: Path) -> None:
    (tmp_path / NAME).write_bytes(part(*map(trade, range(9))))
    result = run([*LOAD, tmp_path, "--dry-run"])
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 5
    assert "rows=9" in result.stderr
    assert not (home / "catalog.db").exists()
