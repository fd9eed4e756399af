"""A stderr that never fails or blocks for long: failed writes are counted as lost.

Log lines on a full disk, a closed terminal or an unread pipe must not stop data.
"""

import io
import os
import select
import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing_extensions import Buffer

_CHUNK_BYTES: Final = select.PIPE_BUF  # a pipe that polls as writable accepts this much
_PATIENCE_MS: Final = 1_000  # for a slow reader; none after it was exceeded


class LossyWriter(io.RawIOBase):
    """Writes to a file descriptor; drops what it does not accept. `lost` counts dropped writes."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.lost = 0
        self.name: Final = fd
        self._fd = fd
        self._lock = threading.Lock()
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._is_stuck = False
        self._is_cut = False  # the last write ended within a line

    def write(self, data: "Buffer", /) -> int:
        """Write all data or drop the rest; return the size either way."""
        view = memoryview(data).cast("B")
        with self._lock:
            done = self._write(b"\n") if self._is_cut and len(view) else 0
            self._is_cut = self._is_cut and not done
            done = self._write(view)
            if done < len(view):
                self.lost += 1
                self._is_cut = self._is_cut or done > 0
        return len(view)

    def writable(self) -> bool:
        """Return True: it is writable."""
        return True

    def fileno(self) -> int:
        """Return the file descriptor."""
        return self._fd

    def isatty(self) -> bool:
        """Return whether it is a terminal."""
        return os.isatty(self._fd)

    def _write(self, data: bytes | memoryview) -> int:
        """Return how many bytes were written before the first failure."""
        done = 0
        while done < len(data):
            try:
                if not self._is_ready():
                    break
                done += os.write(self._fd, data[done : done + _CHUNK_BYTES])
            except OSError:
                break
        return done

    def _is_ready(self) -> bool:
        self._is_stuck = not self._poll.poll(0 if self._is_stuck else _PATIENCE_MS)
        return not self._is_stuck


def lost_writes() -> int:
    """Return how many writes to stderr were dropped so far."""
    writer = getattr(sys.stderr, "buffer", None)
    return writer.lost if isinstance(writer, LossyWriter) else 0
