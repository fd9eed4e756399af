"""A first signal ends a run cleanly, a second one at once.

Streams are asked to stop. What has an end of its own is interrupted, but never in the middle of a
commit.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

from k2cli.errors import BadData

_REPEATED_ENDS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopped_by_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first SIGINT, SIGTERM or SIGHUP end the run cleanly.

    A second SIGINT or SIGTERM ends it at once; a second SIGHUP does not, because a session that
    closes sends several. SIGHUP stays ignored where it was, as under nohup.
    """
    numbers = [*_REPEATED_ENDS]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)

    def handle(_number: int, _frame: FrameType | None) -> None:
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


class Terminated(KeyboardInterrupt):
    """SIGTERM ended the run."""


class Interrupts:
    """Where the first SIGINT or SIGTERM raises KeyboardInterrupt, and where it has to wait."""

    def __init__(self) -> None:
        self._holds = 0
        self._waiting: KeyboardInterrupt | None = None

    @contextmanager
    def raised(self) -> Iterator[None]:
        """Raise KeyboardInterrupt, or Terminated, at the first signal; a second ends at once."""

        def handle(number: int, _frame: FrameType | None) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            found = Terminated() if number == signal.SIGTERM else KeyboardInterrupt()
            if not self._holds:
                raise found
            self._waiting = found

        before = [(number, signal.signal(number, handle)) for number in _REPEATED_ENDS]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait until this block has ended: it commits, and reports what it did.

        An error other than one of the input goes before the signal: it may say that nobody knows
        whether the commit was made.
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
