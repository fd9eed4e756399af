"""A log file that is rotated by size."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from k2cli.errors import ConfigError
from k2cli.files import make_folder, opener


@dataclass(frozen=True, slots=True, kw_only=True)
class Rotation:
    """A file is rotated before it exceeds `max_bytes`; `keep` older ones are kept."""

    max_bytes: int
    keep: int


class LogFile:
    """Appends lines to PATH; older ones are in PATH.1 (the newest of them) to PATH.N.

    A file that another program moved or removed is created again. Safe from any thread.

    Raises:
        ConfigError: the file cannot be opened at the start. Later failures only count in `lost`.
    """

    def __init__(self, path: Path, rotation: Rotation) -> None:
        self.lost = 0
        self._path = path
        self._rotation = rotation
        self._lock = threading.Lock()
        try:
            make_folder(path.parent)
            self._file: TextIO | None = self._open()
        except OSError as exc:
            raise ConfigError(
                f"cannot write the log file {path}: {exc.strerror}",
                hint="choose another file with --log-file",
            ) from exc

    def __enter__(self) -> "LogFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, line: str) -> None:
        """Append a line, or count it as lost."""
        text = line + "\n"
        with self._lock:
            try:
                file = self._ready(len(text.encode(errors="backslashreplace")))
                file.write(text)
                file.flush()
            except OSError:
                before = self.lost
                self._close()  # which fails for the same line
                self.lost = before + 1

    def _ready(self, size_bytes: int) -> TextIO:
        """Return the open file, with enough space left in it."""
        if self._file is None or not self._is_same(self._file):
            self._close()
            self._file = self._open()
        used = os.fstat(self._file.fileno()).st_size
        if used and used + size_bytes > self._rotation.max_bytes and self._path.is_file():
            self._close()
            self._rotate()
            self._file = self._open()
        return self._file

    def _is_same(self, file: TextIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except FileNotFoundError:
            return False

    def _rotate(self) -> None:
        for number in range(self._rotation.keep, 0, -1):
            newer = self._path if number == 1 else self._numbered(number - 1)
            if newer.exists():
                newer.replace(self._numbered(number))

    def _numbered(self, number: int) -> Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _open(self) -> TextIO:
        return open(self._path, "a", encoding="utf-8", errors="backslashreplace", opener=opener)

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError:  # the rest is lost
                self.lost += 1
