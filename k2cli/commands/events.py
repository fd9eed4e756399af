"""What happens during a run, as log lines on stderr: one event a line, text or JSON."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import typer

from k2cli.errors import K2Error
from k2cli.iso import iso_utc

Observer = Callable[..., None]  # observe("commit", rows=...): an event and its fields

WARNINGS: Final = frozenset(
    {
        "disconnected",
        "attempts_limited",
        "stale",
        "gap",
        "reject",
        "commit_lost",
        "dead_letter_refused",
        "group_offsets",
        "group_not_left",
        "setting_ignored",
        "topic_missing",
        "topic_recreated",
        "failed",
    }
    | {"kafka_away", "registry_away", "catalog_away", "dead_letters_away", "fields_left_out"}
)

DETAILS: Final = frozenset({"symbols_refreshed", "symbols_not_refreshed"})


class LogFormat(StrEnum):
    """How events are written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """How much an event matters: warnings are what an operator should look at."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


_ERROR: Final = "error"  # the event that ends a run
_ORDER: Final = list(LogLevel)


def level_of(event: str) -> LogLevel:
    """Tell how much an event matters."""
    if event == _ERROR:
        return LogLevel.ERROR
    if event in DETAILS:
        return LogLevel.DEBUG
    return LogLevel.WARNING if event in WARNINGS else LogLevel.INFO


class RunLog:
    """Events of a run as lines on stderr. Safe from any thread.

    `run` stands in every line, as in the headers of messages and in snapshots.
    """

    def __init__(
        self, fmt: LogFormat | None = None, least: LogLevel = LogLevel.INFO, *, run: str
    ) -> None:
        self.is_json: Final = fmt is LogFormat.JSON
        self._least = _ORDER.index(least)
        self._run = run

    def on_event(self, event: str, **fields: object) -> None:
        """Write an event, if it matters enough."""
        level = level_of(event)
        if _ORDER.index(level) < self._least:
            return
        time = iso_utc(datetime.now(tz=UTC), "milliseconds")
        if self.is_json:
            head = {"time": time, "level": level, "event": event, "run": self._run}
            line = json.dumps({**head, **fields}, default=str)
        else:
            line = f"{time} {level:7} {event_text(event, {**fields, 'run': self._run})}"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Make the error that ends the run a line like the others, where those are JSON."""
        try:
            yield
        except K2Error as exc:
            if not self.is_json:
                raise
            self.on_event(_ERROR, message=str(exc), hint=exc.hint, exit_code=exc.exit_code)
            raise typer.Exit(exc.exit_code) from exc


def event_text(event: str, fields: dict[str, object]) -> str:
    """Write an event as people read it: its name, then `key=value` for every field."""
    return " ".join([event, *(f"{key}={_quoted(value)}" for key, value in fields.items())])


def _quoted(value: object) -> str:
    text = str(value)
    is_one_word = text.isprintable() and " " not in text and text
    return text if is_one_word else json.dumps(text, ensure_ascii=False)
