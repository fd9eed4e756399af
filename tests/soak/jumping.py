"""Run k2 with a wall clock that jumps: `jumping.py ARGUMENT...`.

Every few seconds the clock is set forward or back by ten minutes, as a wrong time server would.
Only `time.time` and `time.time_ns` jump; monotonic clocks do not, on a real machine either.
"""

import time
from collections.abc import Callable
from typing import Final

_PERIOD_S: Final = 3.0
_OFFSETS_S: Final = (0, 600, -600, 0, -600, 600)


def _offset_s() -> int:
    turn = int((time.monotonic() - _STARTED_S) / _PERIOD_S)
    return _OFFSETS_S[turn % len(_OFFSETS_S)]


def _jump(clock: Callable[[], float], clock_ns: Callable[[], int]) -> None:
    time.time = lambda: clock() + _offset_s()
    time.time_ns = lambda: clock_ns() + _offset_s() * 1_000_000_000


_STARTED_S: Final = time.monotonic()

if __name__ == "__main__":
    _jump(time.time, time.time_ns)
    from k2cli.__main__ import main  # after the clock was replaced, so that every import has it

    main()
