"""Signals: the first stops a run cleanly, the second immediately.

Streams are asked to stop. Finite work is interrupted, but never in the middle of a commit.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Final

import typer

from k2cli.errors import BadData

_BASE: Final = 128  # a shell's exit code for a signal is this plus its number
_MAX_CLOSING_S: Final = 5.0
_REPEATED_ENDS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end a command like Ctrl-C: open resources are closed first.

    The exit code is that of a shell, 143 or 129. Closing takes at most 5 seconds, so a stalled
    reader of stdout does not keep the process alive. A second signal ends it immediately. A signal
    that is ignored, as under nohup, stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives signals
        return
    received: list[int] = []

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        _discard_arrived(handled)
        for each in handled:
            signal.signal(each, signal.SIG_DFL)
        deadline = threading.Timer(_MAX_CLOSING_S, os._exit, [_BASE + number])
        deadline.daemon = True
        deadline.start()
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    handled = [each for each in numbers if signal.getsignal(each) is signal.SIG_DFL]
    for each in handled:
        signal.signal(each, handle)
    try:
        yield
    except (KeyboardInterrupt, RuntimeError, SystemError) as exc:
        interrupt = _interrupt_of(exc)
        if interrupt is None:
            raise
        if not received:  # SIGINT
            raise interrupt from None
        raise typer.Exit(_BASE + received[0]) from exc
    finally:
        for each in handled:
            if signal.getsignal(each) is handle:
                signal.signal(each, signal.SIG_DFL)


def _interrupt_of(exc: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that an error is, or arrived as; None if it is another one.

    Within a class statement, as during imports, an interrupt may arrive as a RuntimeError; from a C
    library that does not pass on errors, as a SystemError. An exit that a command chose after an
    interrupt, also a RuntimeError, stays as it is.
    """
    if isinstance(exc, typer.Exit):
        return None
    found = exc if isinstance(exc, KeyboardInterrupt) else exc.__cause__
    return found if isinstance(found, KeyboardInterrupt) else None


def forget_interrupts() -> None:
    """Make the process end with an exit code, not by SIGINT, after a handled interrupt.

    CPython records a KeyboardInterrupt that leaves code run by `exec`, as in dataclasses during
    imports, and at exit kills itself with SIGINT even if it was caught. Running other code clears
    the record (`run_eval_code_obj` in Python/pythonrun.c).
    """
    exec("")


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Make the first SIGINT, SIGTERM or SIGHUP end the run cleanly.

    A second SIGINT or SIGTERM ends it immediately; a second SIGHUP does not, because a closing
    session sends several. SIGHUP stays ignored if it was, as under nohup.
    """
    numbers = _ends()

    def handle(_number: int, _frame: FrameType | None) -> None:
        _discard_arrived(numbers)
        for number in numbers:
            is_final = number in _REPEATED_ENDS
            signal.signal(number, signal.SIG_DFL if is_final else signal.SIG_IGN)
        stop()

    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            if signal.getsignal(number) is not signal.SIG_IGN:  # hung up: until the process ends
                signal.signal(number, handler)


def _discard_arrived(numbers: Sequence[signal.Signals]) -> None:
    """Ignore what arrived together with the signal that is handled: SIGTERM and SIGHUP often do.

    CPython calls the handlers of all signals that have arrived in one pass, and reports an error
    for one whose handler is no longer a function by then. Raising a signal begins another pass.
    """
    for number in numbers:
        signal.signal(number, lambda _number, _frame: None)
    signal.raise_signal(numbers[0])


def _ends() -> list[signal.Signals]:
    """Return the signals that end a run: SIGHUP stays ignored if it was, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [*_REPEATED_ENDS] if is_ignored else [*_REPEATED_ENDS, signal.SIGHUP]


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP ended the run."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code: Final = _BASE + number


class Interrupts:
    """Where the first signal raises KeyboardInterrupt, and where it has to wait."""

    def __init__(self) -> None:
        self._holds = 0
        self._waiting: KeyboardInterrupt | None = None

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise KeyboardInterrupt or Terminated at the first signal; end at the second."""

        def handle(number: int, _frame: FrameType | None) -> None:
            _discard_arrived(numbers)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if signal.SIGHUP in numbers:
                signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closing session sends several
            found = KeyboardInterrupt() if number == signal.SIGINT else Terminated(number)
            if not self._holds:
                raise found
            self._waiting = found

        numbers = _ends()
        before = [(number, signal.signal(number, handle)) for number in numbers]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Delay signals until this block ends: it commits and reports.

        An error other than BadData takes precedence over the signal: the outcome of the commit may
        be unknown.
        """
        self._holds += 1
        try:
            yield
        except BadData as exc:
            self._holds -= 1
            self._raise_waiting(exc)
            raise
        except BaseException:
            self._holds -= 1
            raise
        self._holds -= 1
        self._raise_waiting(None)

    def _raise_waiting(self, cause: BadData | None) -> None:
        if self._waiting is not None and not self._holds:
            found, self._waiting = self._waiting, None
            raise found from cause
