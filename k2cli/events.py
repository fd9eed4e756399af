"""The events of a run: the single definition of each, with its level and fields.

Code emits an event by calling an `Observer`: `observe("stale", silent_s=61.5)`. Each overload is an
event, so mypy finds misspelt names and fields, and `EVENTS` is read from the overloads. Log lines,
live views, metrics and the reference are derived from it. The module is long because it is a list.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal, Protocol, TypeVar, get_args, get_overloads, overload


class Level(StrEnum):
    """The severity of an event: an operator should check warnings."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_Overload = TypeVar("_Overload", bound=Callable[..., None])
_LEVELS: Final[dict[Callable[..., object], Level]] = {}

# For functions that forward any event; functions that emit events take an `Observer`.
Listener = Callable[..., None]
# The events of servers that do not answer and are retried.
Outage = Literal[
    "catalog_unavailable",
    "dead_letters_unavailable",
    "kafka_unavailable",
    "registry_unavailable",
]
# Why a connection ended or was not opened: the exchange closed it; an error of the network or the
# protocol; an HTTP status instead of a WebSocket; no answer in time; no data, not even a ping; only
# pings; the exchange shut the server down.
Cause = Literal["closed", "error", "refused", "timeout", "stale", "silent", "shutdown"]


def _level(level: Level) -> Callable[[_Overload], _Overload]:
    def note(event: _Overload) -> _Overload:
        _LEVELS[event] = level
        return event

    return note


class Observer(Protocol):
    """Receives events, from any thread. The docstrings here describe the events."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["connected"], /, *, url: str, streams: int) -> None:
        """A connection to the exchange is open."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["disconnected"],
        /,
        *,
        url: str,
        cause: Cause,
        reason: str,
        retry_in_s: float,
    ) -> None:
        """A connection was lost or could not be opened; the next attempt is after this time."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["attempts_limited"], /, *, retry_in_s: float) -> None:
        """The exchange limits how often a client may connect: k2 waits."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["stale"], /, *, silent_s: float) -> None:
        """Nothing, not even a ping, arrived for `stream.stale_after`; k2 reconnects."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["silent"], /, *, silent_s: float) -> None:
        """Only pings arrived on a connection that had market data: it is reopened."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["silent_stream"], /, *, stream: str, silent_s: float, action: str
    ) -> None:
        """Streams of a live connection are silent; the action is what k2 does about them."""

    @overload
    @_level(Level.INFO)
    def __call__(
        self,
        event: Literal["rollover"],
        /,
        *,
        url: str,
        streams: int,
        reason: str,
        overlap_s: float,
    ) -> None:
        """A new connection took over from one that ends; both ran for this long."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["rollover_delayed"], /, *, url: str, reason: str, retry_in_s: float
    ) -> None:
        """The connection that should take over does not work; the current one stays open."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["breaker_opened"], /, *, url: str, failures: int, retry_in_s: float
    ) -> None:
        """A server failed repeatedly; for this time k2 prefers the others."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["breaker_closed"], /, *, url: str) -> None:
        """A server that failed repeatedly works again."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["listed"], /, *, symbols: str, count: int) -> None:
        """Symbols that match the selection were listed during the run, and are streamed."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["delisted"], /, *, symbols: str, count: int) -> None:
        """Symbols are traded no longer; their streams end."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["listing_unavailable"],
        /,
        *,
        reason: str,
        listed_at: str,
        retry_in_s: float,
    ) -> None:
        """The exchange does not list its symbols; k2 uses the list of this time and retries."""

    @overload
    @_level(Level.INFO)
    def __call__(
        self,
        event: Literal["gap_filled"],
        /,
        *,
        table: str,
        symbol: str,
        first: int,
        last: int,
        filled: int,
    ) -> None:
        """Trade ids that were missing have been fetched from the exchange."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["gap_open"],
        /,
        *,
        table: str,
        symbol: str,
        first: int,
        last: int,
        missing: int,
        reason: str,
    ) -> None:
        """Trade ids that cannot be fetched now; `k2 query gaps` lists them."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["backfill_paused"], /, *, reason: str, retry_in_s: float
    ) -> None:
        """The exchange accepts no requests for history now; k2 asks again after this time."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["silent_streams"], /, *, count: int, streams: str) -> None:
        """Streams that delivered nothing during the run; reported at its end."""

    @overload
    @_level(Level.DEBUG)
    def __call__(self, event: Literal["symbols_refreshed"], /, *, url: str, symbols: int) -> None:
        """The list of symbols in the home folder is up to date."""

    @overload
    @_level(Level.DEBUG)
    def __call__(
        self, event: Literal["symbols_not_refreshed"], /, *, url: str, reason: str
    ) -> None:
        """The list of symbols could not be refreshed; the previous list is used."""

    @overload
    @_level(Level.INFO)
    def __call__(
        self,
        event: Literal["commit"],
        /,
        *,
        table: str,
        rows: int,
        duplicates: int,
        snapshot_id: int | None,
        took_ms: float,
    ) -> None:
        """A snapshot was committed."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["commit_lost"], /, *, reason: str) -> None:
        """Another consumer committed these partitions; k2 continues from the table's position."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["conflict"], /, *, table: str, count: int, reason: str
    ) -> None:
        """Rows were skipped because their id is stored with other values."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["gap"],
        /,
        *,
        table: str,
        symbol: str,
        first: int,
        last: int,
        missing: int,
    ) -> None:
        """Trade ids that the stream skipped; `gap_filled` and `gap_open` report what follows."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["gap"],
        /,
        *,
        topic: str,
        partition: int,
        first: int,
        last: int,
        missing: int,
    ) -> None:
        """Offsets that never arrived."""

    @overload
    @_level(Level.INFO)
    def __call__(
        self,
        event: Literal["restart_gap"],
        /,
        *,
        table: str,
        symbol: str,
        first: int,
        last: int,
        missing: int,
    ) -> None:
        """Trade ids that were published while no stream was running."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["reject"], /, *, count: int, position: int, reason: str, file: str
    ) -> None:
        """Frames that could not be decoded; the fields are those of the first one."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["reject"],
        /,
        *,
        count: int,
        topic: str | None,
        partition: int | None,
        offset: int | None,
        reason: str,
    ) -> None:
        """Messages that could not be decoded; the fields are those of the first one."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["rejects_lost"], /, *, count: int, file: str) -> None:
        """Rejects that could not be written to the file by the end of a run."""

    @overload
    @_level(Level.INFO)
    def __call__(
        self, event: Literal["rebuild_position"], /, *, table: str, files: int, of: int
    ) -> None:
        """k2 reads the ids in the table once; progress in files."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["catalog_unavailable"],
        /,
        *,
        reason: str,
        retry_in_s: float,
        rows: int = ...,
    ) -> None:
        """The catalog or the disk is unavailable; k2 retries."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["kafka_unavailable"], /, *, reason: str, retry_in_s: float = ...
    ) -> None:
        """The brokers do not answer; k2 retries."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["kafka_unavailable"], /, *, waiting: int, seconds: float
    ) -> None:
        """The brokers have not acknowledged `waiting` messages."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["registry_unavailable"], /, *, reason: str, retry_in_s: float
    ) -> None:
        """The schema registry does not answer; k2 retries."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["dead_letters_unavailable"], /, *, reason: str, retry_in_s: float
    ) -> None:
        """Dead letters cannot be written; k2 retries."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["dead_letter_refused"],
        /,
        *,
        topic: str,
        source: str,
        offset: int | None,
        size_bytes: int,
        reason: str,
        kept_in: str,
    ) -> None:
        """The topic refused a dead letter, which was written to a file."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["recording"], /, *, path: str) -> None:
        """Frames are recorded in this new file."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["recording_failed"], /, *, path: str, reason: str, retry_in_s: float
    ) -> None:
        """The recording cannot be written; k2 retries with a new file, and the stream continues."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["frames_not_recorded"], /, *, count: int, folder: str
    ) -> None:
        """Frames that are not in the recording, because the disk failed or was too slow."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["recording_damaged"], /, *, path: str, position: int, reason: str
    ) -> None:
        """Part of a recording cannot be read; the position is in bytes."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["uncommitted_kept"], /, *, rows: int, files: str) -> None:
        """Rows that a stopped stream could not commit were saved for the next run."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["uncommitted_lost"], /, *, rows: int, reason: str) -> None:
        """Rows that a stopped stream could not commit could not be saved either."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["uncommitted_unreadable"], /, *, file: str, reason: str
    ) -> None:
        """A file of saved rows cannot be read."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["recovered"], /, *, rows: int, file: str) -> None:
        """Rows saved by an earlier run will be part of the next commit."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["assigned"], /, *, partitions: str) -> None:
        """The group assigned these partitions to this consumer."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["revoked"], /, *, partitions: str) -> None:
        """Partitions were assigned to another consumer."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["topic_missing"], /, *, topic: str, topic_id: str, reason: str
    ) -> None:
        """A topic was deleted; the consumer waits for it."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["topic_recreated"],
        /,
        *,
        topic: str,
        old_id: str,
        new_id: str,
        missing: int = ...,
    ) -> None:
        """A topic was deleted and recreated; it is read from its start."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["fields_left_out"],
        /,
        *,
        topic: str,
        schema_id: int,
        fields: str,
        hint: str,
    ) -> None:
        """Fields of a newer schema that the table has no columns for."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self,
        event: Literal["setting_ignored"],
        /,
        *,
        setting: str,
        value: str,
        used: object,
        reason: str,
    ) -> None:
        """A Kafka setting has no effect, because `k2 consume` sets it."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["group_offsets"], /, *, reason: str) -> None:
        """The group's offsets, for lag tools, could not be committed."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["group_not_left"], /, *, waited_s: float) -> None:
        """The consumer could not leave its group in time."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["loaded"], /, *, path: str, rows: int, rejects: int) -> None:
        """A file was loaded."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["skipped"], /, *, path: str, rows: int, rejects: int) -> None:
        """A file was skipped, because it was loaded before."""

    @overload
    @_level(Level.WARNING)
    def __call__(
        self, event: Literal["failed"], /, *, path: str, message: str, hint: str | None
    ) -> None:
        """A file was not loaded."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["notice"], /, *, path: str, message: str) -> None:
        """A notice about a file."""

    @overload
    @_level(Level.INFO)
    def __call__(
        self, event: Literal["interrupted"], /, *, loaded: int, in_progress: str, remaining: int
    ) -> None:
        """A load was interrupted: files loaded, the one in progress, and how many remain."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["metrics"], /, *, url: str) -> None:
        """Metrics are served at this address."""

    @overload
    @_level(Level.WARNING)
    def __call__(self, event: Literal["log_lines_lost"], /, *, count: int) -> None:
        """Log lines that could not be written to stderr or the log file."""

    @overload
    @_level(Level.INFO)
    def __call__(self, event: Literal["summary"], /, **totals: object) -> None:
        """The end of a run, with its totals."""

    @overload
    @_level(Level.ERROR)
    def __call__(
        self, event: Literal["error"], /, *, message: str, hint: str | None, exit_code: int
    ) -> None:
        """The error that ends a run."""

    def __call__(self, event: str, /, **fields: object) -> None:
        """Receive an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """The definition of an event."""

    name: str
    level: Level
    forms: tuple[tuple[str, ...], ...]  # its fields; some events have alternative sets
    meanings: tuple[str, ...]  # per alternative


def _read_events() -> Mapping[str, Event]:
    events: dict[str, Event] = {}
    for each in get_overloads(Observer.__call__):
        parameters = inspect.signature(each).parameters
        (name,) = get_args(parameters["event"].annotation)
        before = events.get(name)
        fields = tuple(field for field in parameters if field not in ("self", "event"))
        events[name] = Event(
            name=name,
            level=_LEVELS[each],
            forms=(*(before.forms if before else ()), fields),
            meanings=(*(before.meanings if before else ()), inspect.getdoc(each) or ""),
        )
    return events


EVENTS: Final = _read_events()


def level_of(event: str) -> Level:
    """Return the level of an event."""
    return EVENTS[event].level
