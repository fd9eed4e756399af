"""Waiting in tests, on a machine of any speed: for a condition, or on a clock that a test moves."""

import threading
import time
from collections.abc import Callable

# Ends a test that hangs; nothing that works takes this long, on a busy machine either.
PATIENCE_S = 240.0
_POLL_S = 0.05


def wait_for(condition: Callable[[], object], timeout_s: float = PATIENCE_S) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(_POLL_S)


class ManualClock:
    """A clock that stands still until a test moves it.

    `readings` counts how often a thread of connections read it, which shows that their watchdogs
    have looked at it.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self.readings = 0

    def __call__(self) -> float:
        """Return the time in seconds."""
        self.readings += threading.current_thread().name.startswith("exchange")
        return self.now_s

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now_s += seconds
