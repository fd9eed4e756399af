"""Streams that fall silent while their connection is alive; no I/O.

Every stream has its own rhythm: bookTickers of a busy symbol come every millisecond, trades of a
quiet one once a day. A stream is suspicious if it is silent for much longer than it usually is.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from k2cli.flow import Batch

MIN_S: Final = 60.0  # shorter silences are never suspicious
PATIENT_MIN_S: Final = 300.0  # if only the time counts
_FACTOR: Final = 3.0  # times the usual silence
_PATIENT_FACTOR: Final = 10.0
_HALF_LIFE_S: Final = 3600.0  # of the usual silence
_MAX_PAUSE_S: Final = 3600.0  # between checks of one stream
_NOTE_S: Final = 1.0
_NOTE_BATCHES: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A stream that is silent for longer than usual."""

    name: str
    silent_s: float
    has_spoken: bool  # during this run
    actions: int  # so far, for this silence


@dataclass(slots=True)
class Rhythm:
    """How often a stream delivers. Times are those of one clock, in seconds."""

    heard_s: float | None = None  # or when its connection was opened; None: not connected
    usual_s: float = 0.0  # longest usual silence; decays
    has_spoken: bool = False
    check_s: float = 0.0  # not checked before
    checks: int = 0  # since it was heard
    actions: int = 0  # since it was heard

    def hear(self, now: float) -> None:
        """Record a delivery."""
        if self.has_spoken and self.heard_s is not None:
            self.learn(now - self.heard_s)
        self.heard_s, self.has_spoken = now, True
        self.check_s, self.checks, self.actions = 0.0, 0, 0

    def learn(self, silent_s: float) -> None:
        """Consider a silence usual."""
        self.usual_s = max(silent_s, self.usual_s * 0.5 ** (silent_s / _HALF_LIFE_S))

    def limit_s(self, least_s: float, *, is_patient: bool) -> float:
        """Return which silence is suspicious. A stream that never spoke gets the least one."""
        if not self.has_spoken:
            return least_s
        if is_patient:
            return max(least_s * PATIENT_MIN_S / MIN_S, _PATIENT_FACTOR * self.usual_s)
        return max(least_s, _FACTOR * self.usual_s)

    def wait(self, now: float, least_s: float) -> None:
        """Check again later: after a pause that grows."""
        self.checks += 1
        pause_s = least_s * 2.0 ** min(self.checks, 10)
        self.check_s = now + min(pause_s, max(least_s, _MAX_PAUSE_S))


class StreamWatch:
    """Knows the rhythm of every stream of a run. Safe from any thread.

    `streams` maps record kind and symbol to the name of the stream that delivers them. If there
    is nothing to check a suspect with, only the time counts, and the watch is more patient.
    """

    def __init__(
        self,
        streams: Mapping[tuple[str, str], str],
        *,
        clock: Callable[[], float],
        has_check: bool,
        least_s: float = MIN_S,
    ) -> None:
        self._names = dict(streams)
        self._rhythms = {name: Rhythm() for name in streams.values()}
        self._clock = clock
        self._has_check = has_check
        self._least_s = least_s
        self._read_s = clock()  # when this process last read
        self._noted: list[tuple[str, pa.Array]] = []  # record kinds and their symbols
        self._lock = threading.Lock()

    def change(
        self, added: Mapping[tuple[str, str], str], removed: Iterable[tuple[str, str]]
    ) -> None:
        """Watch more streams, which may be silent from now on, and forget others."""
        with self._lock:
            for key in removed:
                self._rhythms.pop(self._names.pop(key, ""), None)
            self._names |= added
            now = self._clock()
            self._rhythms |= {name: Rhythm(heard_s=now) for name in added.values()}

    def note(self, batch: Batch) -> None:
        """Record which streams delivered a batch; called several times a second."""
        with self._lock:
            self._noted += [(kind.name, rows["symbol"]) for kind, rows in batch.rows]
            self._noted += [(kind.name, rows["symbol"]) for kind, rows in batch.seen]
            now = self._clock()
            if now - self._read_s >= _NOTE_S or len(self._noted) >= _NOTE_BATCHES:
                self._pause(now - self._read_s)
                self._read_s = now
                self._hear()

    def _pause(self, passed_s: float) -> None:
        """Discount the time in which this process did not read: it was stopped, or waited."""
        excess_s = passed_s - self._least_s / 2
        if excess_s > 0:
            for rhythm in self._rhythms.values():
                if rhythm.heard_s is not None:
                    rhythm.heard_s += excess_s

    def _hear(self) -> None:
        """Evaluate what was noted."""
        now = self._clock()
        noted, self._noted = self._noted, []
        for kind in {name for name, _ in noted}:
            symbols = pa.chunked_array([array for name, array in noted if name == kind])
            for symbol in symbols.unique().to_pylist():
                name = self._names.get((kind, symbol))
                if name is not None:
                    self._rhythms[name].hear(now)

    def opened(self, names: Iterable[str]) -> None:
        """Record that a connection with these streams was opened: they may be silent from now."""
        self._set_heard(names, self._clock())

    def closed(self, names: Iterable[str]) -> None:
        """Record that the connection of these streams was lost: their silence has a reason."""
        self._set_heard(names, None)

    def _set_heard(self, names: Iterable[str], heard_s: float | None) -> None:
        with self._lock:
            for name in names:
                if name in self._rhythms:
                    self._rhythms[name].heard_s = heard_s

    def delivered(self, names: Iterable[str]) -> frozenset[str]:
        """Return which of these streams have delivered during this run."""
        with self._lock:
            self._hear()
            return frozenset(
                name for name in names if name in self._rhythms and self._rhythms[name].has_spoken
            )

    @property
    def silent(self) -> list[str]:
        """Names of the streams that have not delivered anything during this run."""
        with self._lock:
            self._hear()
            return [name for name, rhythm in self._rhythms.items() if not rhythm.has_spoken]

    def suspects(self) -> list[Suspect]:
        """Return the streams to check now."""
        with self._lock:
            self._hear()
            now = self._clock()
            return [
                Suspect(
                    name=name,
                    silent_s=now - rhythm.heard_s,
                    has_spoken=rhythm.has_spoken,
                    actions=rhythm.actions,
                )
                for name, rhythm in self._rhythms.items()
                if rhythm.heard_s is not None and self._is_due(rhythm, now - rhythm.heard_s, now)
            ]

    def _is_due(self, rhythm: Rhythm, silent_s: float, now: float) -> bool:
        limit_s = rhythm.limit_s(self._least_s, is_patient=not self._has_check)
        return silent_s >= limit_s and now >= rhythm.check_s

    def is_silent(self, suspect: Suspect) -> bool:
        """Return whether a suspect has not delivered since."""
        now = self._clock()
        with self._lock:
            rhythm = self._of(suspect)
            return rhythm.heard_s is not None and now - rhythm.heard_s >= suspect.silent_s

    def excuse(self, suspect: Suspect) -> None:
        """Record that a suspect is only quiet: there was nothing to deliver."""
        with self._lock:
            self._of(suspect).learn(suspect.silent_s)
        self.wait(suspect)

    def act(self, suspect: Suspect) -> None:
        """Record that something is done about a suspect."""
        with self._lock:
            self._of(suspect).actions += 1
        self.wait(suspect)

    def wait(self, suspect: Suspect) -> None:
        """Check a suspect again later, after a pause that grows."""
        with self._lock:
            self._of(suspect).wait(self._clock(), self._least_s)

    def _of(self, suspect: Suspect) -> Rhythm:
        """Return the rhythm of a suspect; of one that is not watched any more, an empty one."""
        return self._rhythms.get(suspect.name, Rhythm())
