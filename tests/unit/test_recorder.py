"""The recorder: files, rotation, and disks that fail, without a stream."""

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from k2cli.errors import ConfigError
from k2cli.ingestion import recorder as module
from k2cli.ingestion.recorder import Recorder, RecorderOptions, open_recorder
from k2cli.ingestion.recordings import Recorded, market_of
from support.recordings import frames_in
from support.waiting import wait_for

NOON_NS = 1_768_305_600_000_000_000  # 2026-01-13T12:00:00Z
HOUR_NS = 3_600_000_000_000
RUN = "6b1f0c9d52ae7e34"


class Events:
    """Keeps events; an `Observer`."""

    def __init__(self) -> None:
        self.all: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, event: str, /, **fields: object) -> None:
        self.all.append((event, fields))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.all if name == event]


@pytest.fixture
def events() -> Events:
    return Events()


def options(folder: Path, **over: Any) -> RecorderOptions:
    return RecorderOptions(**{"folder": folder, "source": "binance-spot", "run": RUN, **over})


def frames(first: int, last: int) -> list[bytes]:
    return [b'{"n":%d}' % number for number in range(first, last)]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_frames_are_read_back_with_their_times(tmp_path: Path, events: Events) -> None:
    hostile = [b"", b"a\nb", b"\xff", b"=", b"{}\r"]
    with open_recorder(options(tmp_path / "new" / "folder"), events) as recorder:
        recorder.put(hostile, NOON_NS + 1)
        recorder.put(frames(0, 3), NOON_NS + 2)
    expected = [Recorded(NOON_NS + 1, frame) for frame in hostile]
    expected += [Recorded(NOON_NS + 2, frame) for frame in frames(0, 3)]
    folder = tmp_path / "new" / "folder"
    assert frames_in(folder) == expected
    assert (recorder.recorded, recorder.unrecorded) == (8, 0)
    (name,) = names(folder)
    assert market_of(Path(name)) == ("binance", "spot")
    assert events.all[-1] == ("recording", {"path": str(folder / name)})


def test_frames_are_on_disk_within_a_second(tmp_path: Path, events: Events) -> None:
    with open_recorder(options(tmp_path), events) as recorder:
        recorder.put(frames(0, 3), NOON_NS)
        wait_for(lambda: len(frames_in(tmp_path)) == 3)


def test_a_recorder_without_frames_leaves_no_file(tmp_path: Path, events: Events) -> None:
    with open_recorder(options(tmp_path), events):
        assert len(names(tmp_path)) == 1
    assert names(tmp_path) == []


def test_every_hour_has_its_file(tmp_path: Path, events: Events) -> None:
    with open_recorder(options(tmp_path), events) as recorder:
        for hour in range(3):
            recorder.put(frames(hour, hour + 1), NOON_NS + hour * HOUR_NS)
    starts = [name.split("-")[2] for name in names(tmp_path)]
    assert starts == ["20260113T120000Z", "20260113T130000Z", "20260113T140000Z"]
    assert [recorded.frame for recorded in frames_in(tmp_path)] == frames(0, 3)


def test_files_have_a_limited_size(tmp_path: Path, events: Events) -> None:
    blocks = [[os.urandom(400_000).hex().encode()] for _ in range(12)]
    with open_recorder(options(tmp_path, max_file_bytes=1 << 20), events) as recorder:
        for block in blocks:
            recorder.put(block, NOON_NS)
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) >= 3
    assert max(sizes) < 4 << 20
    assert [recorded.frame for recorded in frames_in(tmp_path)] == [each for (each,) in blocks]


def test_a_clock_that_goes_backwards_loses_nothing(tmp_path: Path, events: Events) -> None:
    times = [NOON_NS, NOON_NS - 1, NOON_NS + 5, NOON_NS - HOUR_NS, 7, NOON_NS]
    with open_recorder(options(tmp_path), events) as recorder:
        for time_ns in times:
            recorder.put([b"x"], time_ns)
    assert sorted(recorded.received_ns or 0 for recorded in frames_in(tmp_path)) == sorted(times)


def test_recorders_share_a_folder(tmp_path: Path, events: Events) -> None:
    """Even with the same run, as `K2_RUN` may set it."""
    with (
        open_recorder(options(tmp_path), events) as first,
        open_recorder(options(tmp_path), events) as second,
        open_recorder(options(tmp_path, run="a/b ../c"), events) as third,
    ):
        for number, recorder in enumerate((first, second, third)):
            recorder.put(frames(number, number + 1), NOON_NS)
    assert sorted(recorded.frame for recorded in frames_in(tmp_path)) == frames(0, 3)
    assert len(names(tmp_path)) == 3


def wait_for_recorded(recorder: Recorder, count: int) -> None:
    wait_for(lambda: recorder.recorded == count)


# --- what fails


def test_an_unwritable_folder_is_an_error(tmp_path: Path, events: Events) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    recorder = Recorder(options=options(tmp_path / "file"), observe=events)
    with pytest.raises(ConfigError, match="cannot record to"):
        recorder.start()
    assert not events.all


class Disk:
    """Makes `os.write` of the recorder fail, in part or as a whole."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.is_full = False
        self._write = os.write
        monkeypatch.setattr(os, "write", self.write)

    def write(self, descriptor: int, data: memoryview) -> int:
        if self.is_full and threading.current_thread() is not threading.main_thread():
            self._write(descriptor, bytes(data[:3]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self._write(descriptor, data)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(module, "_RETRY_S", (0.05,))
    return Disk(monkeypatch)


def test_frames_wait_while_the_disk_is_full(tmp_path: Path, events: Events, disk: Disk) -> None:
    with open_recorder(options(tmp_path), events) as recorder:
        recorder.put(frames(0, 5), NOON_NS)
        wait_for_recorded(recorder, 5)
        disk.is_full = True
        recorder.put(frames(5, 9), NOON_NS)
        wait_for(lambda: len(events.of("recording_failed")) > 2)
        disk.is_full = False
        wait_for_recorded(recorder, 9)
    assert [recorded.frame for recorded in frames_in(tmp_path)] == frames(0, 9)
    failed = events.of("recording_failed")[0]
    assert failed["reason"] == os.strerror(errno.ENOSPC)
    assert failed["retry_in_s"] == 0.05
    assert not events.of("frames_not_recorded")
    assert len(names(tmp_path)) == 2  # a new file after the failure


def test_frames_that_cannot_wait_are_counted(tmp_path: Path, events: Events, disk: Disk) -> None:
    with open_recorder(options(tmp_path, max_queued_bytes=10 * 512), events) as recorder:
        disk.is_full = True
        for number in range(20):
            recorder.put(frames(number, number + 1), NOON_NS)
        wait_for(lambda: bool(events.of("recording_failed")))
        disk.is_full = False
        wait_for(lambda: recorder.recorded + recorder.unrecorded == 20)
        wait_for(lambda: bool(events.of("frames_not_recorded")))
    assert recorder.unrecorded == sum(each["count"] for each in events.of("frames_not_recorded"))
    assert recorder.unrecorded > 0
    assert [recorded.frame for recorded in frames_in(tmp_path)] == frames(0, recorder.recorded)


def test_frames_that_cannot_be_written_at_the_end_are_counted(
    tmp_path: Path, events: Events, disk: Disk
) -> None:
    with open_recorder(options(tmp_path), events) as recorder:
        disk.is_full = True
        recorder.put(frames(0, 7), NOON_NS)
    assert (recorder.recorded, recorder.unrecorded) == (0, 7)
    assert events.of("frames_not_recorded") == [{"count": 7, "folder": str(tmp_path)}]
    assert names(tmp_path) == []


def test_a_deleted_file_is_noticed(tmp_path: Path, events: Events, disk: Disk) -> None:
    assert not disk.is_full
    folder = tmp_path / "folder"
    with open_recorder(options(folder), events) as recorder:
        recorder.put(frames(0, 1), NOON_NS)
        wait_for_recorded(recorder, 1)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        recorder.put(frames(1, 3), NOON_NS)
        wait_for_recorded(recorder, 3)
    assert [recorded.frame for recorded in frames_in(folder)] == frames(1, 3)
    assert [each["reason"] for each in events.of("recording_failed")] == ["the file was deleted"]


def test_a_disk_that_cannot_synchronize_is_reported(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_recorder(options(tmp_path), events) as recorder:
        monkeypatch.setattr(os, "fsync", fail)
        recorder.put(frames(0, 1), NOON_NS)
        wait_for(lambda: bool(events.of("recording_failed")))
    assert [recorded.frame for recorded in frames_in(tmp_path)] == frames(0, 1)


def test_a_slow_disk_does_not_delay_writing(
    tmp_path: Path, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    hang = threading.Event()

    def stall(_: int) -> None:
        hang.wait()

    with open_recorder(options(tmp_path), events) as recorder:
        recorder.put(frames(0, 1), NOON_NS)
        wait_for_recorded(recorder, 1)
        monkeypatch.setattr(os, "fsync", stall)
        for number in range(1, 4):
            recorder.put(frames(number, number + 1), NOON_NS)
            wait_for_recorded(recorder, number + 1)
        hang.set()
