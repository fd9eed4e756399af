"""Read any file as one stream of plain bytes, counted and hashed on the way."""

import codecs
import hashlib
import io
import lzma
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO, Final, cast

import pyarrow as pa

from k2cli.errors import BadData
from k2cli.files import reading
from k2cli.ingestion.spooling import spool

_CHUNK: Final = 1 << 20
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_BY_SUFFIX: Final = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_BROKEN: Final = (  # errors of the decoders; zipfile also fails on odd names, flags and offsets
    OSError,
    EOFError,
    IndexError,
    RuntimeError,
    ValueError,
    struct.error,
    lzma.LZMAError,
    zlib.error,
    zipfile.BadZipFile,
)


class RawFile(io.RawIOBase):
    """A file that counts and hashes its bytes as they are read, until someone seeks.

    It is read from start to end, unless `cut` moves the end or `skip` the start.
    """

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name = name
        self.bytes_read = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._is_in_order = True
        self._is_cut = False
        self._before = _state(file)
        self.size_bytes = self._before[0]
        self.member = ""  # the name of the file in a zip archive, once that is open
        self._hashed = (0, hashlib.sha256())  # number of bytes hashed so far, to continue from

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        most = len(buffer)
        if self._is_cut:
            most = min(most, self.size_bytes - self.bytes_read)
        data = self._file.read(most)
        buffer[: len(data)] = data
        self.bytes_read = min(self.bytes_read + len(data), self.size_bytes)
        if self._is_in_order:
            self._hash.update(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._is_in_order = False
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Return bytes before the end without moving the read position."""
        return os.pread(self._file.fileno(), max(min(size, self.size_bytes - offset), 0), offset)

    def beside(self) -> BinaryIO:
        """Open the same bytes again, from the start, independent of this read position."""
        return cast("BinaryIO", _Beside(self))

    def cut(self, size: int) -> None:
        """Fix the end of a file that may be growing at this offset."""
        self.size_bytes, self._is_cut = size, True

    def skip(self, size: int) -> int:
        """Skip the first bytes; return how many line feeds they contain."""
        self._hash = self._hash_of_first(size).copy()
        self._file.seek(size)
        self.bytes_read = size
        return sum(data.count(b"\n") for data in self._chunks(0, size))

    def hash(self, size: int | None = None) -> str:
        """Hash the first N bytes, or all, independent of the read position."""
        return self._hash_of_first(self.size_bytes if size is None else size).hexdigest()

    def _hash_of_first(self, size: int) -> "hashlib._Hash":
        """Continue hashing where the last call ended, unless that is too far."""
        start, digest = self._hashed if self._hashed[0] <= size else (0, hashlib.sha256())
        digest = digest.copy()
        for data in self._chunks(start, size):
            digest.update(data)
        self._hashed = (size, digest)
        return digest

    def finish(self, expected: str | None) -> str:
        """Return the digest of the whole file after reading all of it.

        Raises:
            BadData: the file was modified meanwhile.
        """
        if self._is_in_order:
            while self.read(_CHUNK):
                pass
        digest = self._hash.hexdigest() if self._is_in_order else self._hash_again()
        self.bytes_read = self.size_bytes
        is_changed = not self._is_cut and _state(self._file) != self._before
        if is_changed or (expected and digest != expected):
            raise BadData(f"{self.name} changed while it was read", hint="load it again")
        return digest

    def _hash_again(self) -> str:
        self._hashed = (0, hashlib.sha256())
        return self.hash()

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        while start < end and (data := self.bytes_at(start, min(_CHUNK, end - start))):
            start += len(data)
            yield data


class _Beside(io.RawIOBase):
    """The bytes of a raw file, with a separate read position."""

    def __init__(self, raw: RawFile) -> None:
        self._raw = raw
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._raw.bytes_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._raw.size_bytes}[whence]
        self._at = max(base + offset, 0)
        return self._at

    def tell(self) -> int:
        return self._at


def open_raw(source: Path | IO[bytes]) -> RawFile:
    """Open a file; stdin, pipes and the like are copied to a temporary file first.

    Raises:
        NotFound, ConfigError (no permission), UsageError (a directory), Unavailable (disk full).
    """
    if not isinstance(source, Path):
        return RawFile(spool(source), "stdin")
    with reading(source):
        file = source.open("rb")
    if source.is_file():
        return RawFile(file, str(source))
    with file:
        return RawFile(spool(file), str(source))


def compression(raw: RawFile, suffix: str) -> str | None:
    """Infer a file's compression from its suffix or first bytes."""
    first = raw.bytes_at(0, 4)
    by_magic = (how for magic, how in _MAGIC.items() if first.startswith(magic))
    return _BY_SUFFIX.get(suffix.lower()) or next(by_magic, None)


def open_plain(raw: RawFile, suffix: str, *, is_beside: bool = False) -> IO[bytes]:
    """Open the content of a file, decompressed according to its suffix or first bytes.

    With `is_beside` this does not count as reading the file or move its position.

    Raises:
        BadData: a zip archive is corrupt, or does not hold exactly one file.
    """
    source: Any = raw.beside() if is_beside else raw
    match compression(raw, suffix):
        case None:
            return io.BufferedReader(source, _CHUNK)
        case "zip":
            return _member(raw, source)
        case how if not raw.size_bytes:
            raise BadData(f"{raw.name} is empty, not a {how} file")
        case how:
            stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(source, mode="r"), how)
            return stream


def open_text(stream: IO[bytes], encoding: str, name: str) -> IO[bytes]:
    """Open text in any encoding as UTF-8; UTF-8 is passed through unchecked."""
    if encoding == "utf-8":
        return stream
    return cast("IO[bytes]", _Recoded(stream, encoding, name))


class _Recoded:
    """Text of another encoding, as UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str, name: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._encoding = encoding
        self._name = name
        self._before = 0  # bytes decoded so far
        self._is_done = False

    def read(self, size: int) -> bytes:
        """Read some text; empty only at the end."""
        while not self._is_done:
            data = self._stream.read(size)
            self._is_done = not data
            waiting = len(self._decoder.getstate()[0])
            try:
                text = self._decoder.decode(data, final=self._is_done)
            except UnicodeDecodeError as exc:
                at = self._before - waiting + exc.start + 1
                raise BadData(
                    f"{self._name} is not {self._encoding} at byte {at}",
                    hint="choose another encoding with --encoding",
                ) from exc
            except UnicodeError as exc:
                raise BadData(f"{self._name} is not {self._encoding}: {exc}") from exc
            self._before += len(data)
            if text:
                return text.encode()
        return b""


def hash_plain(raw: RawFile, suffix: str) -> str:
    """Return the SHA-256 of a file's decompressed content, in hex.

    Raises:
        BadData: the compressed data is cut off or broken.
    """
    if compression(raw, suffix) is None:
        return raw.hash()
    digest = hashlib.sha256()
    with open_plain(raw, suffix, is_beside=True) as stream:
        while data := read_plain(stream, _CHUNK, raw.name):
            digest.update(data)
    return digest.hexdigest()


def read_plain(stream: IO[bytes], size: int, name: str) -> bytes:
    """Read from a stream opened by `open_plain`.

    Raises:
        BadData: the compressed data is cut off or broken.
    """
    try:
        return stream.read(size)
    except _BROKEN as exc:
        raise BadData(f"{name} cannot be read to its end: {exc}") from exc


def _member(raw: RawFile, source: IO[bytes]) -> IO[bytes]:
    name = raw.name
    try:
        archive = zipfile.ZipFile(source)
        members = [each for each in archive.infolist() if not (each.is_dir() or _is_by_macos(each))]
    except _BROKEN as exc:
        raise BadData(f"{name} is not a zip archive: {exc}") from exc
    if len(members) != 1:  # some vendors add a report in a .txt file
        members = [each for each in members if not each.filename.lower().endswith(".txt")]
    if len(members) != 1:
        raise BadData(
            f"{name} holds {len(members)} files", hint="unpack it and load the files one by one"
        )
    (member,) = members
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise BadData(f"{name} holds a file with the unsafe name {member.filename!r}")
    raw.member = member.filename
    if member.flag_bits & 1:
        raise BadData(f"{name} is encrypted", hint="unpack it first")
    try:
        return archive.open(member)
    except _BROKEN as exc:
        raise BadData(f"{name} cannot be unpacked: {exc}") from exc


def _is_by_macos(member: zipfile.ZipInfo) -> bool:
    """Return whether macOS Finder added this file to an archive."""
    path = PurePosixPath(member.filename)
    return path.parts[:1] == ("__MACOSX",) or path.name == ".DS_Store"


def _state(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
