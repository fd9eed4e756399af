"""What happens during a run, as log lines on stderr: one event a line, text or JSON."""

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Final

Observer = Callable[..., None]  # observe("commit", rows=...): an event and its fields

_WARNINGS: Final = frozenset(
    {"disconnected", "stale", "gap", "reject", "conflict", "group_offsets"}
    | {"kafka_away", "registry_away", "catalog_away", "dead_letters_away"}
)


class LogFormat(StrEnum):
    """How events are written."""

    TEXT = "text"
    JSON = "json"


def level_of(event: str) -> str:
    """Tell how much an event matters: `warning` for what an operator should look at."""
    return "warning" if event in _WARNINGS else "info"


def log_event(fmt: LogFormat) -> Observer:
    """Return an observer that writes every event to stderr. Safe from any thread."""

    def observe(event: str, **fields: object) -> None:
        time = datetime.now(tz=UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if fmt is LogFormat.JSON:
            head = {"time": time, "level": level_of(event), "event": event}
            line = json.dumps({**head, **fields}, default=str)
        else:
            line = f"{time} {level_of(event):7} {event_text(event, fields)}"
        sys.stderr.write(line + "\n")
        sys.stderr.flush()

    return observe


def event_text(event: str, fields: dict[str, object]) -> str:
    """Write an event as people read it: its name, then `key=value` for every field."""
    return " ".join([event, *(f"{key}={_quoted(value)}" for key, value in fields.items())])


def _quoted(value: object) -> str:
    text = str(value)
    return json.dumps(text) if " " in text or not text else text
