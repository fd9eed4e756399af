"""What people write as a time, as aware UTC datetimes. The clock is an argument."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Final

from k2cli.errors import UsageError

_HINT: Final = "write 2024-08-08, 2024-08-08T10:30:00Z, -15m, -2h, -7d, now, today or yesterday"
_AGO: Final = re.compile(r"-(\d+)([smhdw])")
_UNIT: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Timespan:
    """From `start` (inclusive) to `end` (exclusive); None is open."""

    start: datetime | None = None
    end: datetime | None = None


def parse_time(text: str, *, now: datetime) -> datetime:
    """Turn `2024-08-08`, `2024-08-08T10:30+02:00`, `-15m`, `now` or `today` into a UTC time.

    Without an offset a time is UTC; a date is its midnight.

    Raises:
        ValueError: it is none of these, or not in the years 1 to 9999.
    """
    word = text.strip().lower()
    midnight = datetime.combine(now.astimezone(UTC).date(), time(tzinfo=UTC))
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if word in named:
        return named[word]
    try:
        if ago := _AGO.fullmatch(word):
            return now - timedelta(**{_UNIT[ago[2]]: int(ago[1])})
        moment = datetime.fromisoformat(text.strip().upper())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError(f"{text!r} is out of range") from exc


def parse_timespan(start: str | None, end: str | None, *, now: datetime) -> Timespan:
    """Turn the options --start and --end into a timespan.

    Raises:
        UsageError: a time that cannot be read, or a start that is not before the end.
    """
    span = Timespan(_option("--start", start, now), _option("--end", end, now))
    if span.start and span.end and span.start >= span.end:
        raise UsageError(
            f"--start {span.start.isoformat()} is not before --end {span.end.isoformat()}",
            hint="the start is inclusive, the end exclusive; a date is its midnight in UTC",
        )
    return span


def _option(name: str, text: str | None, now: datetime) -> datetime | None:
    if text is None:
        return None
    try:
        return parse_time(text, now=now)
    except ValueError as exc:
        raise UsageError(f"{name} {text!r} is not a time", hint=_HINT) from exc
