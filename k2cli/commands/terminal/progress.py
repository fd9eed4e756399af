"""Show the progress of writing a file on a terminal line, which is erased at the end."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, Final, cast

from k2cli.commands.terminal.fitting import GAP
from k2cli.commands.terminal.streams import view_stream

_QUIET_S: Final = 1.0  # faster writes show nothing
_EVERY_S: Final = 0.25
_WIPE: Final = "\r\x1b[K"
_MB: Final = 1_000_000


class _Counted:
    """A sink that counts bytes and lines and forwards them to another one."""

    def __init__(self, sink: BinaryIO, *, has_lines: bool) -> None:
        self.size_bytes = 0
        self.lines = 0
        self.has_lines: Final = has_lines
        self._sink = sink

    def write(self, chunk: Any) -> int:
        """Write a chunk."""
        self.size_bytes += len(chunk)
        if self.has_lines:
            self.lines += bytes(chunk).count(b"\n")
        return self._sink.write(chunk)

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the sink."""
        return getattr(self._sink, name)


@contextmanager
def shown_progress(
    sink: BinaryIO, *, has_lines: bool, total: int | None = None
) -> Iterator[BinaryIO]:
    """Yield a sink whose progress is shown on stderr if that is a terminal.

    If the format `has_lines`, a line is a row; `total` is the number of rows, if known.
    """
    if not sys.stderr.isatty():
        yield sink
        return
    counted = _Counted(sink, has_lines=has_lines)
    is_done = threading.Event()
    line = threading.Thread(target=_show, args=(counted, total, is_done), daemon=True)
    line.start()
    try:
        yield cast("BinaryIO", counted)
    finally:
        is_done.set()
        line.join()


def _show(counted: _Counted, total: int | None, is_done: threading.Event) -> None:
    started, first_at, screen = time.monotonic(), None, view_stream()
    if is_done.wait(_QUIET_S):
        return
    while not is_done.wait(_EVERY_S):
        now = time.monotonic()
        if first_at is None and counted.size_bytes:
            first_at = now
        writing_s = 0.0 if first_at is None else now - first_at
        text = progress_text(counted, total, elapsed_s=now - started, writing_s=writing_s)
        width = os.get_terminal_size(sys.stderr.fileno()).columns - 1
        screen.write(_WIPE + text[:width])
        screen.flush()
    screen.write(_WIPE)
    screen.flush()


def progress_text(
    counted: _Counted, total: int | None, *, elapsed_s: float, writing_s: float
) -> str:
    """Describe what was written so far; the rate is measured since the first byte."""
    elapsed = f"{elapsed_s:.0f} s"
    if not counted.size_bytes:
        return GAP.join(["running the query", elapsed])
    over_s = max(writing_s, _QUIET_S)
    if not counted.has_lines:
        size, rate = counted.size_bytes / _MB, counted.size_bytes / _MB / over_s
        return GAP.join([f"{size:,.1f} MB", f"{rate:,.1f} MB/s", elapsed])
    share = f"{min(counted.lines / total, 1):.0%}" if total else ""
    rows = f"{counted.lines:,} rows", f"{counted.lines / over_s:,.0f}/s"
    return GAP.join(filter(None, [share, *rows, elapsed]))
