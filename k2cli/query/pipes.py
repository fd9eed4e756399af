"""The pipe that DuckDB writes to, and the thread that copies its bytes to the destination.

So DuckDB's parallel writers work for every destination, including a terminal, `>>` and a partly
written file.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

from k2cli.background import begin
from k2cli.errors import K2Error

_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Pipe:
    """Both ends of a pipe that DuckDB writes to by its path."""

    reader: BinaryIO
    writer: BinaryIO

    @property
    def path(self) -> str:
        """Return the path that opens the writing end."""
        return f"/dev/fd/{self.writer.fileno()}"


@contextmanager
def open_pipe() -> Iterator[Pipe]:
    """Open a pipe with a large buffer."""
    read_fd, write_fd = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux: fewer and larger transfers
        with suppress(OSError):  # more than the system allows
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
    with (
        os.fdopen(read_fd, "rb", buffering=0) as reader,
        os.fdopen(write_fd, "wb", buffering=0) as writer,
    ):
        yield Pipe(reader, writer)


class Pump:
    """Copies bytes from a pipe to their destination, in a thread, until either end closes."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        self._source = source
        self._sink = sink
        self._is_stopped = False
        self.failure: OSError | K2Error | None = None
        self.ended: Final = begin(self._run)

    def stop(self, writer: BinaryIO) -> None:
        """Stop it before the end of the data: an interrupted COPY keeps its pipe end open."""
        self._is_stopped = True
        os.set_blocking(writer.fileno(), False)
        with suppress(OSError):  # full, so the thread wakes up anyway; or closed
            os.write(writer.fileno(), b"\0")

    def _run(self) -> None:
        buffer = bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        with self._source as source:  # closing it makes DuckDB's next write fail
            try:
                while size := source.readinto(buffer):  # type: ignore[attr-defined]
                    if self._is_stopped:
                        return
                    self._sink.write(view[:size])
                self._sink.flush()
            except (OSError, K2Error) as exc:  # of a file, or of stdout
                self.failure = exc
