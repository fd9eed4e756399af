"""Wait for servers that do not answer."""

import itertools
import time
from collections.abc import Callable
from typing import Final, TypeVar

from k2cli.errors import ConfigError, Unavailable
from k2cli.events import Observer, Outage
from k2cli.pipelines.sinks import is_outage

T = TypeVar("T")
_RETRY_S: Final = (0.5, 1.0, 2.0, 5.0)
_POLL_S: Final = 0.2


class Patience:
    """Retries calls until the server answers or the run must stop. Any thread."""

    def __init__(
        self,
        *,
        is_stopping: Callable[[], bool],
        has_committed: Callable[[], bool],
        observe: Observer,
    ) -> None:
        """Prepare. A wrong setting counts as an outage once the run `has_committed` with it."""
        self._is_stopping = is_stopping
        self._has_committed = has_committed
        self._observe = observe

    def call(self, event: Outage, call: Callable[[], T]) -> T:
        """Call until it succeeds; report each failure with this event.

        Raises:
            Unavailable: the server does not answer, and the run must stop.
            ConfigError: a setting is wrong, so waiting would not help.
        """
        waits = itertools.chain(_RETRY_S, itertools.repeat(_RETRY_S[-1]))
        while True:
            try:
                return call()
            except (Unavailable, ConfigError) as exc:
                has_committed = self._has_committed()
                if self._is_stopping() or not is_outage(exc, has_committed=has_committed):
                    raise
                wait_s = next(waits)
                self._observe(event, reason=str(exc), retry_in_s=wait_s)
            until = time.monotonic() + wait_s
            while time.monotonic() < until and not self._is_stopping():
                time.sleep(_POLL_S)
