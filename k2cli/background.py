"""Calls in threads that the end of the process does not wait for.

A `ThreadPoolExecutor` joins its threads at the end; here, one that a server keeps for ever is left
behind.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def begin(call: Callable[[], T]) -> Future[T]:
    """Call in a daemon thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as exc:  # noqa: BLE001  whoever asks for the result gets it
            future.set_exception(exc)

    threading.Thread(target=run, daemon=True).start()
    return future
