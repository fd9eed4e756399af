"""stdin, stdout and stderr for k2, in whatever state the shell left them.

A closed stream is replaced by /dev/null: stdin is empty, stderr discards, and stdout fails like a
full disk, because data would be lost. Text that cannot be encoded is escaped. stdout raises a k2
error, so that no other handler mistakes it for an error of its file.
"""

import codecs
import io
import json
import os
import select
import shutil
import sys
from typing import TYPE_CHECKING, Final, TextIO, cast

from k2cli.commands.terminal.lossy import LossyWriter
from k2cli.commands.terminal.plain import for_people
from k2cli.errors import K2Error, Unavailable

if TYPE_CHECKING:
    from rich.console import Console
    from typing_extensions import Buffer

_STDIN, _STDOUT, _STDERR = range(3)
_ESCAPE: Final = "k2.escape"


class StdoutWriter(io.FileIO):
    """File descriptor 1. `failure` is the last error, which was also raised.

    Raises:
        Unavailable: it cannot be written; a closed reader is a BrokenPipeError.
    """

    def __init__(self) -> None:
        super().__init__(_STDOUT, "wb", closefd=False)
        self.failure: Exception | None = None

    def write(self, data: "Buffer", /) -> int:
        """Write some of the data; wait if stdout is non-blocking."""
        try:
            while (done := cast(int | None, super().write(data))) is None:
                _wait_for_reader()
        except BrokenPipeError as exc:
            self.failure = exc
            raise
        except OSError as exc:
            self.failure = Unavailable(f"cannot write to stdout: {exc.strerror or exc}")
            raise self.failure from exc
        return done


class PeopleWriter(io.TextIOWrapper):
    """stderr, for people."""

    def write(self, text: str, /) -> int:
        """Write a text without secrets and control characters."""
        super().write(for_people(text))
        return len(text)


def use_standard_streams() -> None:
    """Replace `sys.stdin`, `sys.stdout` and `sys.stderr`."""
    codecs.register_error(_ESCAPE, _escape)
    if sys.stdin is None:
        _open_null(_STDIN, os.O_RDONLY)
        sys.stdin = open(_STDIN, closefd=False)  # noqa: SIM115
    out, err = (stream.encoding if stream else "utf-8" for stream in (sys.stdout, sys.stderr))
    if sys.stdout is None:
        _open_null(_STDOUT, os.O_RDONLY)  # every write fails
    if sys.stderr is None:
        _open_null(_STDERR, os.O_WRONLY)
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(StdoutWriter()),
        encoding=out,
        errors=_ESCAPE,
        line_buffering=os.isatty(_STDOUT),
    )
    sys.stderr = PeopleWriter(
        LossyWriter(_STDERR), encoding=err, errors="backslashreplace", write_through=True
    )


def view_console() -> "Console":
    """Return a console on stderr for a view, which moves the cursor.

    Its content must be `printable`; markup and emoji codes are not interpreted.
    """
    from rich.console import Console

    return Console(file=view_stream(), markup=False, emoji=False, highlight=False)


def view_stream() -> TextIO:
    """Return stderr for cursor movements. Everything else written must be `printable`."""
    if not isinstance(sys.stderr, PeopleWriter):
        return sys.stderr
    out = sys.stderr
    return io.TextIOWrapper(
        out.buffer, encoding=out.encoding, errors="backslashreplace", write_through=True
    )


def stdout_failure() -> Exception | None:
    """Return why the last write to stdout failed, if one did."""
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, StdoutWriter) else None


def give_up_stdout() -> None:
    """Redirect further writes to stdout to /dev/null, so that nothing fails again."""
    _open_null(_STDOUT, os.O_WRONLY)


def _open_null(fd: int, flags: int) -> None:
    """Open /dev/null as this descriptor. No other file may get its number."""
    if (null := os.open(os.devnull, flags)) != fd:
        os.dup2(null, fd)
        os.close(null)


def _wait_for_reader() -> None:
    poll = select.poll()
    poll.register(_STDOUT, select.POLLOUT)
    poll.poll()


def _escape(exc: UnicodeError) -> tuple[str, int]:
    """Escape characters as in JSON, so valid JSON stays valid."""
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    return json.dumps(exc.object[exc.start : exc.end])[1:-1], exc.end


def note(message: str) -> None:
    """Print a message for the user on stderr."""
    sys.stderr.write(f"{for_people(message)}\n")


def error(exc: K2Error) -> None:
    """Print an expected failure and, on a separate line, how to fix it."""
    note(f"error: {exc}")
    if exc.hint:
        note(f"hint: {exc.hint}")


def screen_width() -> int | None:
    """Return the width of the terminal on stdout; None if it is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
