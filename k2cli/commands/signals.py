"""A first signal ends a run cleanly, a second one at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

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
