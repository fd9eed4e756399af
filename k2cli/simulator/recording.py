"""Recorded frames: a file, and the position of a connection in it."""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from k2cli.symbols import lower_symbol

_BLOCK_BYTES: Final = 1 << 20
_MOST_LINES: Final = 5000  # searched per call
_COMPRESSION: Final = {".gz": "gzip", ".zst": "zstd"}
_RECEIVED: Final = re.compile(rb"\d+ ")


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


def recorded_lines(path: Path) -> Iterator[bytes]:
    """Read a recording line by line: plain, .gz or .zst; a leading receive time is dropped.

    Raises:
        OSError: the file cannot be read, or its compressed data is corrupt.
    """
    rest = b""
    with pa.input_stream(str(path), compression=_COMPRESSION.get(path.suffix)) as file:
        while block := file.read(_BLOCK_BYTES):
            *lines, rest = (rest + block).split(b"\n")
            yield from _frames_of(lines)
    yield from _frames_of([rest])


def _frames_of(lines: Iterable[bytes]) -> Iterator[bytes]:
    for line in lines:
        received = _RECEIVED.match(line)
        frame = line[received.end() if received else 0 :].rstrip(b"\r")
        if frame:
            yield frame


class Recording:
    """One connection's position in a recorded file."""

    def __init__(
        self, path: Path, *, is_combined: bool, is_looped: bool = False, position: int = 0
    ) -> None:
        self.is_at_end = False
        self.position = position  # lines taken in this pass
        self._path = path
        self._is_combined = is_combined
        self._is_looped = is_looped
        self._streams: frozenset[str] = frozenset()
        self._is_played = position > 0
        self._lines: Iterator[bytes] = islice(recorded_lines(path), position, None)

    @property
    def is_idle(self) -> bool:
        """Return whether no stream is subscribed."""
        return not self._streams

    def follow(self, streams: Collection[str]) -> None:
        """Subscribe to these streams."""
        self._streams = frozenset(streams)

    def take(self, most: int, now_us: int) -> list[bytes]:  # noqa: ARG002
        """Return the next frames of the subscribed streams, after a bounded search.

        Raises:
            OSError: the file cannot be read, or its compressed data is corrupt.
        """
        frames: list[bytes] = []
        if most < 1:
            return frames
        start = self.position
        for line in islice(self._lines, _MOST_LINES):
            self.position += 1
            frame = self._fitted(line)
            if frame is not None:
                frames.append(frame)
                if len(frames) == most:
                    break
        self._is_played = self._is_played or bool(frames)
        if len(frames) < most and self.position - start < _MOST_LINES:
            self._end_pass()
        return frames

    def _end_pass(self) -> None:
        """Start over, unless a whole pass had no matching frames."""
        self.is_at_end = not (self._is_looped and self._is_played)
        self.position = 0 if self._is_looped else self.position
        self._is_played = False
        self._lines = iter(recorded_lines(self._path)) if self._is_looped else iter(())

    def _fitted(self, line: bytes) -> bytes | None:
        stream, frame = stream_and_frame(line)
        if stream is None:
            return line
        if stream not in self._streams:
            return None
        if not self._is_combined:
            return frame
        return line if frame is not line else b'{"stream":"%b","data":%b}' % (stream.encode(), line)
