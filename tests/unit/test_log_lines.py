"""Log lines that cannot be written are counted, and never stop a run; log files are rotated."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from k2cli.commands.terminal.events import LogFormat, RunLog
from k2cli.commands.terminal.logfile import LogFile, Rotation
from k2cli.commands.terminal.lossy import LossyWriter
from k2cli.errors import ConfigError, Unavailable

KEEP_TWO = Rotation(max_bytes=30, keep=2)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        with suppress(OSError):
            os.close(fd)


def stderr_at(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(LossyWriter(fd), encoding="utf-8", write_through=True)


def run_log(monkeypatch: pytest.MonkeyPatch, fd: int, file: LogFile | None = None) -> RunLog:
    monkeypatch.setattr(sys, "stderr", stderr_at(fd))
    return RunLog(LogFormat.JSON, run="r", file=file)


# --- stderr


def lost() -> int:
    """How many lines of the log were lost."""
    file: Any = sys.stderr.buffer
    count: int = file.lost
    return count


def test_full_device_loses_lines_without_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open("/dev/full", os.O_WRONLY)
    log = run_log(monkeypatch, fd)
    for number in range(3):
        log.on_event("commit", rows=number)
    assert lost() == 3
    os.close(fd)


def test_pipe_without_a_reader_loses_lines_without_an_error(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    os.close(pipe[0])
    log = run_log(monkeypatch, pipe[1])
    log.on_event("commit", rows=1)
    assert lost() == 1


def test_reader_that_stops_reading_blocks_nothing_and_gets_the_count_later(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    log = run_log(monkeypatch, pipe[1])
    writer = sys.stderr.buffer
    assert isinstance(writer, LossyWriter)
    while not writer.lost:
        log.on_event("commit", text="x" * 5_000)
    for _ in range(1_000):  # without a wait for each of them
        log.on_event("commit", text="x" * 5_000)
    lost = writer.lost
    assert lost == 1_001
    os.read(pipe[0], 1 << 20)
    log.on_event("commit", rows=2)
    events = [json.loads(line) for line in os.read(pipe[0], 1 << 20).splitlines() if line]
    assert [(each["event"], each.get("rows"), each.get("count")) for each in events] == [
        ("commit", 2, None),
        ("log_lines_lost", None, lost),
    ]


def test_lines_longer_than_a_pipe_takes_at_once_arrive_whole(pipe: tuple[int, int]) -> None:
    text = "€" * 10_000 + "\n"
    stderr_at(pipe[1]).write(text)
    assert os.read(pipe[0], 1 << 20).decode() == text


# --- files


def test_file_is_rotated_by_size_and_old_ones_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "k2.log"
    with LogFile(path, KEEP_TWO) as file:
        for number in range(10):
            file.write(f"line {number} 567890")  # two of them fit
    texts = {each.name: each.read_text().split("\n")[:-1] for each in path.parent.iterdir()}
    assert texts == {
        "k2.log": ["line 8 567890", "line 9 567890"],
        "k2.log.1": ["line 6 567890", "line 7 567890"],
        "k2.log.2": ["line 4 567890", "line 5 567890"],
    }


def test_file_is_appended_to_and_counts_what_it_held(tmp_path: Path) -> None:
    path = tmp_path / "k2.log"
    for number in range(3):
        with LogFile(path, KEEP_TWO) as file:
            file.write(f"line {number} 567890")
    assert path.read_text() == "line 2 567890\n"
    assert (tmp_path / "k2.log.1").read_text() == "line 0 567890\nline 1 567890\n"


def test_line_longer_than_the_size_is_written_whole(tmp_path: Path) -> None:
    with LogFile(tmp_path / "k2.log", KEEP_TWO) as file:
        file.write("x" * 100)
        file.write("y")
    assert (tmp_path / "k2.log").read_text() == "y\n"
    assert (tmp_path / "k2.log.1").read_text() == "x" * 100 + "\n"


@pytest.mark.parametrize("is_moved", [True, False])
def test_file_that_another_program_took_away_is_created_again(
    tmp_path: Path, is_moved: bool
) -> None:
    path = tmp_path / "k2.log"
    with LogFile(path, KEEP_TWO) as file:
        file.write("one")
        if is_moved:
            path.rename(tmp_path / "moved")
        else:
            path.unlink()
        file.write("two")
    assert path.read_text() == "two\n"


def test_file_on_a_full_disk_loses_lines_without_an_error() -> None:
    with LogFile(Path("/dev/full"), KEEP_TWO) as file:
        file.write("one")
        file.write("two")
        assert file.lost >= 2


def test_file_that_cannot_be_opened_is_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="log file") as caught:
        LogFile(tmp_path / "file" / "k2.log", KEEP_TWO)
    assert "--log-file" in str(caught.value.hint)


def test_losses_of_a_file_are_reported_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pipe: tuple[int, int]
) -> None:
    folder = tmp_path / "logs"
    path = folder / "k2.log"
    with LogFile(path, Rotation(max_bytes=10_000, keep=1)) as file:
        log = run_log(monkeypatch, pipe[1], file)
        log.on_event("commit", rows=1)
        folder.rename(tmp_path / "away")
        for _ in range(3):
            log.on_event("commit", rows=2)
        folder.mkdir()
        log.on_event("commit", rows=3)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(each["event"], each.get("count")) for each in events] == [
        ("commit", None),
        ("log_lines_lost", 3),
    ]


def test_losses_are_reported_at_the_end_at_the_latest(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    with LogFile(Path("/dev/full"), KEEP_TWO) as file:
        log = run_log(monkeypatch, pipe[1], file)
        with log.ending():
            for _ in range(3):
                log.on_event("commit", rows=1)
    events = [json.loads(line) for line in os.read(pipe[0], 1 << 20).splitlines()]
    assert events[-1]["event"] == "log_lines_lost"
    assert events[-1]["count"] == 3


def test_file_has_what_a_live_view_hides_and_the_error_that_ends_the_run(tmp_path: Path) -> None:
    shown: list[str] = []
    path = tmp_path / "k2.log"
    with LogFile(path, Rotation(max_bytes=10_000, keep=1)) as file:
        log = RunLog(run="r", file=file)
        log.view = lambda event, /, **_: shown.append(event)
        log.on_event("commit", rows=1)
        with pytest.raises(Unavailable), log.ending():
            raise Unavailable("gone", hint="wait")
    assert shown == ["commit"]
    first, last = path.read_text().splitlines()
    assert " info    commit rows=1 run=r" in first
    assert " error   error message=gone hint=wait exit_code=5 run=r" in last
