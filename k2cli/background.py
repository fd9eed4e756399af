"""Run calls in threads that do not delay the exit of the process.

A `ThreadPoolExecutor` joins its threads at exit; here, a thread blocked by a server is abandoned.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Final, TypeVar

T = TypeVar("T")

_TICK_S: Final = 0.2


def begin(call: Callable[[], T]) -> Future[T]:
    """Run a call in a new daemon thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001  raised again by `result`
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future


def wait_for_end(future: Future[T]) -> Future[T]:
    """Wait for a future to end, and return it. Signals interrupt the wait.

    A lock alone misses a signal that arrives after Python last looked for one, but before the lock
    waits. It also misses one that the system delivers to another thread.
    """
    while wait([future], timeout=_TICK_S).not_done:
        pass
    return future
