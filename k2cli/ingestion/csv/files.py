"""Files of any kind as one stream of plain bytes, counted and hashed as they are read."""

import errno
import hashlib
import io
import os
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import IO, Any, Final

import pyarrow as pa

from k2cli.errors import BadData, ConfigError, NotFound, Unavailable, UsageError

_CHUNK: Final = 1 << 20
_MAGIC: Final = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip"}
_BY_SUFFIX: Final = {".gz": "gzip", ".zst": "zstd", ".zip": "zip"}
_BROKEN: Final = (OSError, EOFError, zlib.error, zipfile.BadZipFile, NotImplementedError)
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


class RawFile(io.RawIOBase):
    """A file that counts and hashes its bytes as they are read, for as long as nobody seeks."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self.name = name
        self.bytes_read = 0
        self._file = file
        self._hash = hashlib.sha256()
        self._is_in_order = True
        self._before = _state(file)
        self.size_bytes = self._before[0]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(len(buffer))
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

    def first_bytes(self) -> bytes:
        """Look at the first bytes, without reading them."""
        return os.pread(self._file.fileno(), 4, 0)

    def hash_whole(self) -> str:
        """Hash the whole file, wherever reading stands."""
        whole, offset = hashlib.sha256(), 0
        while data := os.pread(self._file.fileno(), _CHUNK, offset):
            whole.update(data)
            offset += len(data)
        return whole.hexdigest()

    def finish(self, expected: str | None) -> str:
        """Return the digest of the whole file, all of which was read.

        Raises:
            BadData: the file was written to in the meantime.
        """
        if self._is_in_order:
            while self.read(_CHUNK):
                pass
        digest = self._hash.hexdigest() if self._is_in_order else self.hash_whole()
        self.bytes_read = self.size_bytes
        if _state(self._file) != self._before or (expected and digest != expected):
            raise BadData(f"{self.name} changed while it was read", hint="load it again")
        return digest


def open_raw(source: Path | IO[bytes]) -> RawFile:
    """Open a file; what is no regular file (stdin, a pipe) is copied to a temporary one first.

    Raises:
        NotFound, ConfigError (no permission), UsageError (a folder), Unavailable (disk full).
    """
    if not isinstance(source, Path):
        return RawFile(_spooled(source), "stdin")
    try:
        if source.is_dir():
            raise UsageError(f"{source} is a folder", hint="name the files in it")
        file = source.open("rb")
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"{source} does not exist") from exc
    except OSError as exc:
        raise ConfigError(f"{source} cannot be read: {exc.strerror}") from exc
    if source.is_file():
        return RawFile(file, str(source))
    with file:
        return RawFile(_spooled(file), str(source))


def open_plain(raw: RawFile, suffix: str) -> IO[bytes]:
    """Open what a file holds: decompressed as its suffix or its first bytes tell.

    Raises:
        BadData: a zip archive that is broken, or does not hold exactly one file.
    """
    first = raw.first_bytes()
    by_magic = (how for magic, how in _MAGIC.items() if first.startswith(magic))
    how = _BY_SUFFIX.get(suffix.lower()) or next(by_magic, None)
    match how:
        case None:
            return io.BufferedReader(raw, _CHUNK)
        case "zip":
            return _member(raw)
        case _ if not raw.size_bytes:
            raise BadData(f"{raw.name} is empty, not a {how} file")
        case _:
            stream: IO[bytes] = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), how)
            return stream


def read_plain(stream: IO[bytes], size: int, name: str) -> bytes:
    """Read from what `open_plain` opened.

    Raises:
        BadData: the compressed data is cut off or broken.
    """
    try:
        return stream.read(size)
    except _BROKEN as exc:
        raise BadData(f"{name} cannot be read to its end: {exc}") from exc


def _member(raw: RawFile) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(raw)
    except _BROKEN as exc:
        raise BadData(f"{raw.name} is not a zip archive: {exc}") from exc
    members = [member for member in archive.infolist() if not member.is_dir()]
    if len(members) != 1:
        raise BadData(f"{raw.name} holds {len(members)} files", hint="unpack it, load one by one")
    (member,) = members
    path = PurePosixPath(member.filename.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise BadData(f"{raw.name} holds a file of the unsafe name {member.filename!r}")
    if member.flag_bits & 1:
        raise BadData(f"{raw.name} is encrypted", hint="unpack it first")
    try:
        return archive.open(member)
    except _BROKEN as exc:
        raise BadData(f"{raw.name} cannot be unpacked: {exc}") from exc


def _spooled(source: IO[bytes]) -> IO[bytes]:
    spool = tempfile.TemporaryFile()  # noqa: SIM115  closed with the RawFile
    try:
        while data := source.read(_CHUNK):
            spool.write(data)
        spool.seek(0)  # writes what is left in its buffer
    except OSError as exc:
        spool.close()
        if exc.errno in _NO_SPACE:
            raise Unavailable(
                f"no space for a copy of the input in {tempfile.gettempdir()}",
                hint="set TMPDIR to a folder with more space",
            ) from exc
        raise BadData(f"the input cannot be read: {exc.strerror}") from exc
    return spool


def _state(file: IO[bytes]) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
