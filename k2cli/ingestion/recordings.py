"""Recordings of raw frames: the names of files, the format of lines, and reading both.

A recording is text with one frame per line: the receive time in nanoseconds since 1970 with 19
digits, a space, and the frame as it was received:

    1768312800123456789 {"stream":"btcusdt@trade","data":{"e":"trade","s":"BTCUSDT",...}}

A frame that contains a line break or starts with `=` is written as `=` and its base64, so every
byte survives. `k2 stream --record` writes independent zstd frames of whole lines, with checksums:
damage to one costs only its own lines.

Recordings of other programs are read as well: plain, .gz or .zst, with a receive time in s, ms, us
or ns (10, 13, 16 or 19 digits) or without one, and with empty lines.
"""

import base64
import binascii
import gzip
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from k2cli.errors import NotFound
from k2cli.files import reading
from k2cli.ingestion.spooling import open_seekable

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Of recordings in folders.
SUFFIXES: Final = tuple(
    f".{text}{packed}" for text in ("frames", "ndjson") for packed in ("", ".gz", ".zst")
)
_NAME: Final = re.compile(r"(?P<exchange>[a-z\d]+)-(?P<market>[a-z\d]+)-")
_UNITS_NS: Final = {10: 1_000_000_000, 13: 1_000_000, 16: 1_000, 19: 1}  # by number of digits
_LEVEL: Final = 1  # of compression
_ESCAPE: Final = b"="
_HEAD_BYTES: Final = 20  # of a line: the time and the space
_BLOCK_BYTES: Final = 1 << 20
_READ_BYTES: Final = 1 << 16  # of compressed data
_VERIFIED_BYTES: Final = 32 << 20  # larger zstd frames are passed on before their checksum
_MAX_LINE_BYTES: Final = 32 << 20  # more than any frame in base64
_ZSTD_MAGIC: Final = b"\x28\xb5\x2f\xfd"
_GZIP_MAGIC: Final = b"\x1f\x8b"
_CUT_OFF: Final = "it is cut off"


class Recorded(NamedTuple):
    """A frame, and when it was received: UTC nanoseconds, or None."""

    received_ns: int | None
    frame: bytes


class Damage(NamedTuple):
    """A part of a file that cannot be read; the lines around it can."""

    path: Path
    position: int  # in bytes, of the file
    reason: str


OnDamage = Callable[[Damage], None]


def encode_frames(frames: Sequence[bytes], received_ns: int) -> bytes:
    """Encode frames that were received together, as lines."""
    prefix = b"\n%019d " % received_ns
    text = prefix.join((b"", *frames))
    if text.count(b"\n") != len(frames) or b"\r" in text or prefix + _ESCAPE in text:
        text = prefix.join((b"", *map(_escape, frames)))
    return text[1:] + b"\n"


def _escape(frame: bytes) -> bytes:
    if b"\n" in frame or b"\r" in frame or frame.startswith(_ESCAPE):
        return _ESCAPE + base64.b64encode(frame)
    return frame


def decode_line(line: bytes) -> Recorded:
    """Decode a line without its line feed."""
    digits, space, frame = line.partition(b" ")
    unit_ns = _UNITS_NS.get(len(digits))
    if not space or unit_ns is None or not digits.isdigit():
        return Recorded(None, line.removesuffix(b"\r"))
    received_ns = int(digits) * unit_ns
    if frame[-1:] == b"\r":
        frame = frame[:-1]
    if frame[:1] == _ESCAPE:
        with suppress(binascii.Error):  # another program wrote it
            frame = base64.b64decode(frame[1:], validate=True)
    return Recorded(received_ns, frame)


def decode_lines(lines: Sequence[bytes]) -> tuple[list[int], list[bytes]] | None:
    """Decode usual lines together: receive times in UTC ns, and frames.

    Returns None if a line is unusual, such as one that is escaped; see `decode_line`.
    """
    text = b"\n".join(lines)
    if b"\r" in text or b" " + _ESCAPE in text:
        return None
    heads = [line[:_HEAD_BYTES] for line in lines]
    times = {
        head: int(head)
        for head in set(heads)
        if len(head) == _HEAD_BYTES and head[-1:] == b" " and head[:-1].isdigit()
    }
    try:
        return [times[head] for head in heads], [line[_HEAD_BYTES:] for line in lines]
    except KeyError:
        return None


def zstd_packer() -> Callable[[bytes], bytes]:
    """Return a function that compresses lines to a zstd frame with a checksum, in one thread."""
    compressor = zstd.ZstdCompressor(
        options={
            zstd.CompressionParameter.compression_level: _LEVEL,
            zstd.CompressionParameter.checksum_flag: 1,
        }
    )
    return lambda text: compressor.compress(text, compressor.FLUSH_FRAME)


def market_of(path: Path) -> tuple[str, str] | None:
    """Return the exchange and market in the name of a recording: binance-spot-....frames.zst."""
    match = _NAME.match(path.name)
    return None if match is None else (match["exchange"], match["market"])


def find_recordings(path: Path) -> list[Path]:
    """Return the recordings in a folder, sorted by path, or the file itself.

    Raises:
        NotFound: it does not exist, or the folder has no recordings.
        ConfigError: the folder cannot be read.
    """
    with reading(path):
        if not path.is_dir():
            path.stat()
            return [path]
        found = [each for each in path.rglob("*") if each.name.lower().endswith(SUFFIXES)]
        files = sorted(each for each in found if each.is_file())
    if not files:
        raise NotFound(
            f"{path} has no recordings", hint=f"their names end in {' or '.join(SUFFIXES)}"
        )
    return files


class RecordingReader:
    """Reads the lines of a recording, once. Damage is reported, and what follows it is read.

    Raises:
        OSError: the file cannot be opened.
        K2Error: it is stdin or a pipe, and cannot be copied; see `open_seekable`.
    """

    def __init__(self, path: Path, on_damage: OnDamage) -> None:
        self._path = path
        self._on_damage = on_damage
        self._file = open_seekable(path)
        self.size_bytes: Final = os.fstat(self._file.fileno()).st_size
        self.bytes_read = 0

    def __iter__(self) -> Iterator[list[bytes]]:
        """Yield lines without their line feeds, some at a time.

        A line that is cut off by damage is part of the damage; one at the end of the file is not.

        Raises:
            OSError: the disk failed.
        """
        rest, is_too_long = b"", False
        with self._file:
            for block in self._blocks():
                if block is None:
                    rest = b""
                    continue
                *lines, rest = (rest + block).split(b"\n")
                if is_too_long and lines:
                    del lines[0]
                    is_too_long = False
                if len(rest) > _MAX_LINE_BYTES:
                    if not is_too_long:
                        self._damaged(self.bytes_read, f"a line of more than {_MAX_LINE_BYTES} B")
                    rest, is_too_long = b"", True
                yield lines
        if rest and not is_too_long:
            yield [rest]

    def _blocks(self) -> Iterator[bytes | None]:
        """Yield the text block by block, and None after damage."""
        start = self._file.read(len(_ZSTD_MAGIC))
        self._file.seek(0)
        if self._path.suffix == ".zst" or start == _ZSTD_MAGIC:
            return self._zstd_blocks()
        if self._path.suffix == ".gz" or start.startswith(_GZIP_MAGIC):
            return self._gzip_blocks()
        return iter(lambda: self._read(_BLOCK_BYTES), b"")

    def _gzip_blocks(self) -> Iterator[bytes | None]:
        with gzip.GzipFile(fileobj=self._file) as file:
            try:
                while block := file.read1(_READ_BYTES):
                    self.bytes_read = self._file.tell()
                    yield block
            except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
                reason = _CUT_OFF if isinstance(exc, EOFError) else str(exc)
                self._damaged(self._file.tell(), reason)
                yield None

    def _zstd_blocks(self) -> Iterator[bytes | None]:
        position, data = 0, b""
        while data or (data := self._read(_READ_BYTES)):
            decompressor = zstd.ZstdDecompressor()
            try:
                yield from self._zstd_frame(decompressor, data)
            except (zstd.ZstdError, EOFError) as exc:
                is_cut_off = isinstance(exc, EOFError)
                self._damaged(position, _CUT_OFF if is_cut_off else str(exc))
                yield None
                position, data = self._next_zstd_frame(position + 1), b""
            else:
                data = decompressor.unused_data
                position = self._file.tell() - len(data)

    def _zstd_frame(self, decompressor: zstd.ZstdDecompressor, data: bytes) -> Iterator[bytes]:
        """Yield the text of one zstd frame, once it is verified unless it is very long.

        Raises:
            ZstdError: it is damaged.
            EOFError: it is cut off; what can be read of it was yielded.
        """
        blocks: list[bytes] = []
        size = 0
        while not decompressor.eof:
            if decompressor.needs_input and not data:
                data = self._read(_READ_BYTES)
                if not data:
                    yield from blocks
                    raise EOFError
            block = decompressor.decompress(data, max_length=_BLOCK_BYTES)
            data = b""
            blocks.append(block)
            size += len(block)
            if size > _VERIFIED_BYTES:
                yield from blocks
                blocks.clear()
        yield from blocks

    def _next_zstd_frame(self, position: int) -> int:
        """Continue at the next zstd frame after a position, or at the end; return where."""
        self._file.seek(position)
        tail = b""
        while block := self._file.read(_BLOCK_BYTES):
            found = (tail + block).find(_ZSTD_MAGIC)
            if found >= 0:
                return self._file.seek(position - len(tail) + found)
            position += len(block)
            tail = (tail + block)[1 - len(_ZSTD_MAGIC) :]
        return position

    def _read(self, most: int) -> bytes:
        block = self._file.read(most)
        self.bytes_read = self._file.tell()
        return block

    def _damaged(self, position: int, reason: str) -> None:
        self._on_damage(Damage(self._path, position, reason))


def read_recordings(path: Path, on_damage: OnDamage) -> Iterator[Recorded]:
    """Yield the frames of a recording, or of all recordings in a folder in order.

    Empty lines without a receive time are not frames.

    Raises:
        NotFound: there are no recordings.
        OSError: a file cannot be read.
    """
    for file in find_recordings(path):
        for lines in RecordingReader(file, on_damage):
            for recorded in map(decode_line, lines):
                if recorded.frame or recorded.received_ns is not None:
                    yield recorded
