"""Record raw frames into files, beside the stream.

The connections put frames into a queue; a thread encodes, compresses and writes them twice a
second, so a crash of the process loses less than a second, and a crash of the machine little more.
A disk that is full or too slow never delays the stream: frames that do not fit into the queue are
counted and reported. See `recordings` for the format.
"""

import errno
import os
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

from k2cli.background import begin
from k2cli.errors import ConfigError, K2Error, Unavailable
from k2cli.events import Observer
from k2cli.files import make_folder, opener, sync_folder
from k2cli.ingestion.bursts import FRAME_MIN_BYTES
from k2cli.ingestion.recordings import encode_frames, zstd_packer

Record = Callable[[Sequence[bytes], int], None]  # frames, and when they were received (UTC ns)

_TICK_S: Final = 0.1
_WRITE_AFTER_S: Final = 0.4  # frames wait this long for more of their zstd frame
_SYNC_AFTER_S: Final = 1.0
_RETRY_S: Final = (1.0, 2.0, 5.0, 10.0, 30.0)
_CLOSE_S: Final = 10.0  # for the last frames
_ZSTD_FRAME_BYTES: Final = 1 << 20  # of text
_HOUR_NS: Final = 3_600_000_000_000
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecorderOptions:
    """Where to record, under which names, and how much a file and the queue may hold."""

    folder: Path
    source: str  # the start of the names: binance-spot
    run: str
    max_file_bytes: int = 256 << 20
    max_queued_bytes: int = 128 << 20  # as `BurstQueue` counts them


class _Burst(NamedTuple):
    frames: Sequence[bytes]
    received_ns: int
    size_bytes: int


class Recorder:
    """Records frames until closed. `put` is called by one thread. Created by `open_recorder`."""

    def __init__(
        self,
        *,
        options: RecorderOptions,
        observe: Observer,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.recorded = 0  # frames written
        self._options = options
        self._observe = observe
        self._clock = clock
        self._bursts: deque[_Burst] = deque()
        self._queued_bytes = 0  # written by the thread that puts ...
        self._taken_bytes = 0  # ... and by the one that writes; both only grow
        self._dropped = 0  # frames, because the queue was full
        self._reported = 0  # frames that `frames_not_recorded` reported
        self._number = 0  # of the newest file
        self._pack = zstd_packer()
        self._text: list[bytes] = []  # of the next zstd frame
        self._text_bytes = 0
        self._text_frames = 0
        self._text_ns = 0  # when the first of them was received
        self._text_since_s = 0.0
        self._failures = 0  # in a row
        self._retry_at_s = 0.0
        self._closing = threading.Event()
        self._ended: Future[None] = Future()
        self._file: _File | None = None

    @property
    def unrecorded(self) -> int:
        """How many frames are not in the recording: dropped, or still waiting to be written."""
        waiting = sum(len(burst.frames) for burst in tuple(self._bursts))
        return self._dropped + self._text_frames + waiting

    def put(self, frames: Sequence[bytes], received_ns: int) -> None:
        """Record frames that were received together; never waits."""
        size_bytes = max(sum(map(len, frames)), FRAME_MIN_BYTES * len(frames))
        waiting_bytes = self._queued_bytes - self._taken_bytes
        if waiting_bytes + size_bytes > self._options.max_queued_bytes:
            self._dropped += len(frames)
            return
        self._queued_bytes += size_bytes
        self._bursts.append(_Burst(frames, received_ns, size_bytes))

    def start(self) -> None:
        """Create the first file, and write from now on.

        Raises:
            ConfigError: the folder cannot be written.
            Unavailable: the disk is full.
        """
        try:
            self._file = self._open(time.time_ns())
        except OSError as exc:
            raise _unwritable(self._options.folder, exc) from exc
        self._ended = begin(self._run)

    def close(self) -> None:
        """Write what was put before, and report frames that could not be written."""
        self._closing.set()
        is_ended = not wait([self._ended], timeout=_CLOSE_S).not_done
        if is_ended:
            self._ended.result()
        self._report_missing(self.unrecorded)

    def _run(self) -> None:
        while not self._closing.wait(_TICK_S):
            self._write_waiting()
        self._retry_at_s = 0.0  # one last attempt
        self._write_waiting(is_last=True)
        if self._file is not None:
            with self._retried(self._file.path):
                self._file.close()

    def _write_waiting(self, *, is_last: bool = False) -> None:
        """Write what waits, in zstd frames of about the same size; the last one after a while."""
        if self._clock() < self._retry_at_s:
            return
        while self._bursts:
            burst = self._bursts[0]
            is_other_hour = burst.received_ns // _HOUR_NS != self._text_ns // _HOUR_NS
            if (self._text_bytes >= _ZSTD_FRAME_BYTES or is_other_hour) and not self._write():
                return
            self._add(self._bursts.popleft())
        is_old = self._clock() - self._text_since_s >= _WRITE_AFTER_S
        if is_last or is_old or self._text_bytes >= _ZSTD_FRAME_BYTES:
            self._write()
        if self._file is not None:
            with self._retried(self._file.path):
                self._file.sync(self._clock())

    def _add(self, burst: _Burst) -> None:
        text = encode_frames(burst.frames, burst.received_ns)
        if not self._text:
            self._text_ns, self._text_since_s = burst.received_ns, self._clock()
        self._text.append(text)
        self._text_bytes += len(text)
        self._text_frames += len(burst.frames)
        self._taken_bytes += burst.size_bytes

    def _write(self) -> bool:
        """Write the text as a zstd frame; return whether that worked, or keep it for later."""
        if not self._text:
            return True
        data = self._pack(b"".join(self._text))
        with self._retried(self._file.path if self._file else self._options.folder):
            hour = self._text_ns // _HOUR_NS
            if self._file is not None and self._file.is_over(hour, self._options.max_file_bytes):
                file, self._file = self._file, None
                file.close()
            if self._file is None:
                self._file = self._open(self._text_ns)
            self._file.write(data)
            self.recorded += self._text_frames
            self._text, self._text_bytes, self._text_frames = [], 0, 0
            self._failures = 0
            self._report_missing(self._dropped)
        return not self._text

    @contextmanager
    def _retried(self, path: Path) -> Iterator[None]:
        """Report an error of the disk; later frames go into a new file."""
        try:
            yield
        except OSError as exc:
            if self._file is not None:
                self._file.abandon()
                self._file = None
            wait_s = _RETRY_S[min(self._failures, len(_RETRY_S) - 1)]
            self._failures += 1
            self._retry_at_s = self._clock() + wait_s
            reason = exc.strerror or str(exc)
            self._observe("recording_failed", path=str(path), reason=reason, retry_in_s=wait_s)
            self._report_missing(self._dropped)

    def _open(self, received_ns: int) -> "_File":
        """Create the next file: another recorder may have taken its name."""
        make_folder(self._options.folder)
        start = datetime.fromtimestamp(received_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
        run = re.sub(r"[^A-Za-z0-9_.]", "_", self._options.run)
        while True:
            self._number += 1
            name = f"{self._options.source}-{start}-{run}-{self._number:04}.frames.zst"
            path = self._options.folder / name
            with suppress(FileExistsError):
                file = _File(path, received_ns // _HOUR_NS)
                break
        self._observe("recording", path=str(path))
        return file

    def _report_missing(self, count: int) -> None:
        if count > self._reported:
            missing, self._reported = count - self._reported, count
            folder = str(self._options.folder)
            self._observe("frames_not_recorded", count=missing, folder=folder)


class _File:
    """A file of a recording: append only, and synchronized in the background.

    Raises:
        OSError: it exists, cannot be written (from any method), or was deleted.
    """

    def __init__(self, path: Path, hour: int) -> None:
        self.path: Final = path
        self._hour = hour
        self._size_bytes = 0
        self._file = open(path, "xb", buffering=0, opener=opener)  # noqa: SIM115
        self._synced_bytes = 0
        self._synced_s = 0.0
        self._syncing: Future[None] | None = None
        with suppress(OSError):  # of a file system that cannot
            sync_folder(path.parent)

    def is_over(self, hour: int, max_bytes: int) -> bool:
        """Return whether the frames of this hour go into another file."""
        return hour != self._hour or self._size_bytes >= max_bytes

    def write(self, data: bytes) -> None:
        """Append all of it, or nothing."""
        if not os.fstat(self._file.fileno()).st_nlink:
            raise FileNotFoundError(errno.ENOENT, "the file was deleted")
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file.fileno(), rest) :]
        except OSError:
            with suppress(OSError):
                self._file.truncate(self._size_bytes)
            raise
        self._size_bytes += len(data)

    def sync(self, now_s: float) -> None:
        """Synchronize it in a thread, after a while: a slow disk does not delay writing."""
        if self._syncing is not None:
            if not self._syncing.done():
                return
            self._syncing.result()
            self._syncing = None
        if self._size_bytes > self._synced_bytes and now_s - self._synced_s >= _SYNC_AFTER_S:
            self._synced_bytes, self._synced_s = self._size_bytes, now_s
            descriptor = self._file.fileno()
            self._syncing = begin(lambda: os.fsync(descriptor))

    def close(self) -> None:
        """Synchronize and close it; remove it if it is empty."""
        try:
            if self._syncing is not None:
                self._syncing.result()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if not self._size_bytes:
            self.path.unlink(missing_ok=True)

    def abandon(self) -> None:
        """Close it after an error; an empty file is removed."""
        if self._syncing is not None:
            wait([self._syncing])  # its descriptor must not be reused before
        with suppress(OSError):
            self._file.close()
        if not self._size_bytes:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


@contextmanager
def open_recorder(options: RecorderOptions, observe: Observer) -> Iterator[Recorder]:
    """Record into a folder, which is created if needed, until the end of the context.

    Raises:
        ConfigError: the folder cannot be written.
        Unavailable: the disk is full.
    """
    recorder = Recorder(options=options, observe=observe)
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.close()


def _unwritable(folder: Path, exc: OSError) -> K2Error:
    message = f"cannot record to {folder}: {exc.strerror or exc}"
    if exc.errno in _NO_SPACE:
        return Unavailable(message)
    return ConfigError(message, hint="choose another folder with --record")
