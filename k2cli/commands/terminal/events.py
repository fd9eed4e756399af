"""Write the events of a run as log lines to stderr: one event per line, text or JSON."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

import typer

from k2cli.commands.terminal.logfile import LogFile
from k2cli.commands.terminal.lossy import lost_writes
from k2cli.commands.terminal.plain import printable
from k2cli.errors import K2Error
from k2cli.events import Level, Listener, Observer, level_of
from k2cli.iso import iso_utc
from k2cli.redaction import hide_in_value


class LogFormat(StrEnum):
    """The format of log lines."""

    TEXT = "text"
    JSON = "json"


_ORDER: Final = list(Level)


class RunLog:
    """Writes events of a run as lines to stderr and a log file. Safe from any thread.

    `run` is in every line, as in message headers and snapshots. Lost lines are reported as
    `log_lines_lost` once lines can be written again, or at the end.
    """

    def __init__(
        self,
        fmt: LogFormat | None = None,
        least: Level = Level.INFO,
        *,
        run: str,
        file: LogFile | None = None,
    ) -> None:
        self.is_json: Final = fmt is LogFormat.JSON
        self.view: Listener | None = None  # shows events instead of stderr
        self._least = _ORDER.index(least)
        self._run = run
        self._file = file
        self._reported = 0  # lost lines

    def on_event(self, event: str, /, **fields: object) -> None:
        """Write an event, if its level is high enough."""
        before = self._losses()
        if self.view is not None:
            self.view(event, **fields)
        elif (line := self._line(event, fields)) is not None:
            sys.stderr.write(line + "\n")
            sys.stderr.flush()
        self.record(event, **fields)
        if self._losses() == before:
            self._report_losses()

    def record(self, event: str, /, **fields: object) -> None:
        """Write an event only to the log file, if there is one."""
        if self._file is not None and (line := self._line(event, fields)) is not None:
            self._file.write(line)

    @contextmanager
    def ending(self) -> "Iterator[RunLog]":
        """Write the error that ends the run as a log line, if those are JSON."""
        try:
            yield self
        except K2Error as exc:
            observe: Observer = self.on_event if self.is_json else self.record
            if self.is_json:
                self.view = None
            observe("error", message=str(exc), hint=exc.hint, exit_code=exc.exit_code)
            if not self.is_json:
                raise
            raise typer.Exit(exc.exit_code) from exc
        finally:
            self.view = None
            self._report_losses()

    def _line(self, event: str, fields: dict[str, object]) -> str | None:
        level = level_of(event)
        if _ORDER.index(level) < self._least:
            return None
        fields = {key: hide_in_value(value) for key, value in fields.items()}
        time = iso_utc(datetime.now(tz=UTC), "milliseconds")
        if self.is_json:
            head = {"time": time, "level": level, "event": event, "run": self._run}
            return json.dumps({**head, **fields}, default=str)
        return f"{time} {level:7} {event_text(event, {**fields, 'run': self._run})}"

    def _report_losses(self) -> None:
        before, self._reported = self._reported, self._losses()
        if self._reported > before:
            observe: Observer = self.on_event
            observe("log_lines_lost", count=self._reported - before)

    def _losses(self) -> int:
        return lost_writes() + (self._file.lost if self._file else 0)


def event_text(event: str, fields: dict[str, object]) -> str:
    """Format an event for people: its name, then `key=value` for every field."""
    return " ".join([event, *(f"{key}={_quoted(value)}" for key, value in fields.items())])


def _quoted(value: object) -> str:
    text = str(value)
    is_one_word = text.isprintable() and " " not in text and text
    return text if is_one_word else printable(json.dumps(text, ensure_ascii=False))
