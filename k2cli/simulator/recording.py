"""Recorded frames: a file or folder, and the position and pace of a connection in it."""

import logging
import time
from collections.abc import Callable, Collection, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from k2cli.ingestion.recordings import Damage, Recorded, read_recordings
from k2cli.symbols import lower_symbol

_log = logging.getLogger(__name__)

_MAX_LINES: Final = 5000  # searched per call
_MAX_PAUSE_S: Final = 60.0
_MAX_BEHIND_S: Final = 1.0
_SECOND_NS: Final = 1_000_000_000


class _Recorded(msgspec.Struct):
    """The fields that identify the stream of a recorded frame, wrapped or raw."""

    stream: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    e: str | None = None
    s: str | None = None
    u: msgspec.Raw = msgspec.Raw()


_decode_recorded = msgspec.json.Decoder(_Recorded).decode


def stream_and_frame(line: bytes) -> tuple[str | None, bytes]:
    """Split a recorded line into its stream and the raw frame, with the bytes unchanged.

    {"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT",...}}
    {"u":499869768,"s":"NKNUSDT","b":"0.3521","B":"672","a":"0.3526","A":"3199"}

    A line that is not a market frame has no stream.
    """
    try:
        found = _decode_recorded(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None, line
    if found.stream is not None and len(found.data):
        return found.stream, bytes(found.data)
    event = found.e or ("bookTicker" if len(found.u) else None)
    if found.s is None or event is None:
        return None, line
    return f"{lower_symbol(found.s)}@{event}", line


class PlayClock:
    """When recorded frames are due: at their own pace, or a multiple of it.

    The pace of a recording is that of the differences between receive times. Where its clock went
    backwards there is no pause, and none when it returns to the time before; longer pauses than a
    minute last a minute.
    """

    def __init__(self, speed: float, clock: Callable[[], float] = time.monotonic) -> None:
        """Prepare; the clock starts with the first frame."""
        self._speed = speed
        self._clock = clock
        self._started_s: float | None = None
        self._last_ns: int | None = None
        self._highest_ns = 0
        self._played_s = 0.0  # of the recording, up to the last frame

    def is_due(self, received_ns: int | None) -> bool:
        """Advance to the next frame; return whether to send it now, else ask again."""
        if received_ns is not None and received_ns != self._last_ns:
            self._played_s += self._pause_s(received_ns)
            self._last_ns = received_ns
            self._highest_ns = max(self._highest_ns, received_ns)
        now_s = self._clock()
        self._started_s = now_s if self._started_s is None else self._started_s
        behind_s = now_s - self._started_s - self._played_s / self._speed
        if behind_s > _MAX_BEHIND_S:  # a slow reader does not catch up on what it missed
            self._started_s += behind_s - _MAX_BEHIND_S
        return behind_s >= 0

    def _pause_s(self, received_ns: int) -> float:
        last_ns = received_ns if self._last_ns is None else self._last_ns
        if last_ns < self._highest_ns <= received_ns:
            last_ns = self._highest_ns
        return min(max(received_ns - last_ns, 0) / _SECOND_NS, _MAX_PAUSE_S)


class Recording:
    """One connection's position in a recording: a file, or the files of a folder in order.

    Without a pace it is played as fast as possible.
    """

    def __init__(
        self,
        path: Path,
        *,
        is_combined: bool,
        is_looped: bool = False,
        position: int = 0,
        pace: PlayClock | None = None,
    ) -> None:
        self.is_at_end = False
        self.position = position  # frames taken in this pass
        self._path = path
        self._is_combined = is_combined
        self._is_looped = is_looped
        self._streams: frozenset[str] = frozenset()
        self._is_played = position > 0
        self._pace = pace
        self._next: Recorded | None = None  # read, but not due before
        self._recorded: Iterator[Recorded] = islice(self._read(), position, None)

    @property
    def is_idle(self) -> bool:
        """Return whether no stream is subscribed."""
        return not self._streams

    def follow(self, streams: Collection[str]) -> None:
        """Subscribe to these streams."""
        self._streams = frozenset(streams)

    def take(self, most: int, now_us: int) -> list[bytes]:  # noqa: ARG002
        """Return the next frames of the subscribed streams that are due, after a bounded search.

        Raises:
            OSError: a file cannot be read.
        """
        frames: list[bytes] = []
        for _ in range(_MAX_LINES if most > 0 else 0):
            recorded = self._next or next(self._recorded, None)
            if recorded is None:
                self._is_played = self._is_played or bool(frames)
                self._end_pass()
                break
            if self._pace is not None and not self._pace.is_due(recorded.received_ns):
                self._next = recorded
                break
            self._next = None
            self.position += 1
            frame = self._fitted(recorded.frame)
            if frame is not None:
                frames.append(frame)
                if len(frames) == most:
                    break
        self._is_played = self._is_played or bool(frames)
        return frames

    def _end_pass(self) -> None:
        """Start over, unless a whole pass had no matching frames."""
        self.is_at_end = not (self._is_looped and self._is_played)
        self.position = 0 if self._is_looped else self.position
        self._is_played = False
        self._recorded = self._read() if self._is_looped else iter(())

    def _read(self) -> Iterator[Recorded]:
        return read_recordings(self._path, _warn)

    def _fitted(self, line: bytes) -> bytes | None:
        stream, frame = stream_and_frame(line)
        if stream is None:
            return line
        if stream not in self._streams:
            return None
        if not self._is_combined:
            return frame
        return line if frame is not line else b'{"stream":"%b","data":%b}' % (stream.encode(), line)


def _warn(damage: Damage) -> None:
    _log.warning("%s is damaged at byte %d: %s", *damage)
