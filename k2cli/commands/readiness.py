"""Whether a run does its work, for the probe `/readyz`."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, get_args

from k2cli.events import Outage

_GRACE_S: Final = 10.0  # after the time at which a server that did not answer is tried again
_STUCK_S: Final = 60.0  # without a step of the run
_OUTAGES: Final = frozenset(get_args(Outage))


class Readiness:
    """Follows the events and the steps of a run: it must go on, and its servers must answer.

    `unready` adds what only the run itself knows. Any thread may call any method.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stepped_s: float | None = None
        self._outages: dict[str, tuple[float, str]] = {}  # until when, and why
        self._unready: Callable[[], Sequence[str]] = tuple

    def watch(self, unready: Callable[[], Sequence[str]]) -> None:
        """Ask the run itself, too."""
        self._unready = unready

    def on_step(self) -> None:
        """Note that the run goes on."""
        self._stepped_s = self._clock()

    def on_event(self, event: str, fields: Mapping[str, object]) -> None:
        """Note an outage: it lasts until the server is tried again, and longer if it is repeated.

        A commit ends the outages.
        """
        if event in _OUTAGES:
            wait_s = float(str(fields.get("retry_in_s", 0.0)))
            self._outages[event] = (
                self._clock() + wait_s + _GRACE_S,
                str(fields.get("reason", "")),
            )
        elif event == "commit":
            self._outages.clear()

    def reasons(self) -> Sequence[str]:
        """Return why the run is not ready; nothing if it is."""
        if self._stepped_s is None:
            return ["starting"]
        now = self._clock()
        found = [
            f"{event}: {reason}".rstrip(": ")
            for event, (until, reason) in self._outages.copy().items()
            if now < until
        ]
        if now - self._stepped_s > _STUCK_S:
            found.append(f"no progress for {now - self._stepped_s:.0f} s")
        return [*found, *self._unready()]
