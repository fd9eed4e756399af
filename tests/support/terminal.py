"""A terminal of a chosen size with a program on it, and what it shows."""

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import pyte

from support.waiting import PATIENCE_S

_SLICE_S = 0.05


class Terminal:
    """Runs a program with stderr, and stdout where asked for, on a terminal.

    The screen is as people see it; lines that scrolled off its top are gone.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        columns: int = 80,
        lines: int = 24,
        has_stdout: bool = False,
    ) -> None:
        self._master, slave = pty.openpty()
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._set_size(columns, lines)
        own = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            command,
            env={**own, "TERM": "xterm"},
            stdin=subprocess.DEVNULL,
            stdout=slave if has_stdout else subprocess.DEVNULL,
            stderr=slave,
        )
        os.close(slave)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, columns: int, lines: int) -> None:
        """Give the terminal another size, as a window that is dragged does."""
        self.screen.resize(lines, columns)
        self._set_size(columns, lines)
        self.process.send_signal(signal.SIGWINCH)

    def wait_for(self, is_shown: Callable[[str], bool]) -> str:
        """Read until the screen shows this; return the screen."""
        until = time.monotonic() + PATIENCE_S
        while time.monotonic() < until:
            if is_shown(self.text):
                return self.text
            if not self._read():
                break
        assert is_shown(self.text), self.text
        return self.text

    def end(self) -> int:
        """Read until the program has ended; return its exit code."""
        until = time.monotonic() + PATIENCE_S
        while self._read() and time.monotonic() < until:
            pass
        return self.process.wait(PATIENCE_S)

    @property
    def text(self) -> str:
        """What the screen shows, without the blanks at the ends of lines."""
        return "\n".join(line.rstrip() for line in self.screen.display).rstrip()

    def _read(self) -> bool:
        if not select.select([self._master], [], [], _SLICE_S)[0]:
            return True
        try:
            self._stream.feed(os.read(self._master, 65536))
        except OSError:  # the program closed it, as Linux reports
            return False
        return True

    def _set_size(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
