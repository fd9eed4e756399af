"""Run calls in threads that do not delay the exit of the process.

A `ThreadPoolExecutor` joins its threads at exit; here, a thread blocked by a server is abandoned.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


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
