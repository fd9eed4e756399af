"""Parse times as people write them to aware UTC datetimes. The clock is an argument."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Final

from k2cli.errors import UsageError

_HINT: Final = (
    "write 2024-08, 2024-08-08, 2024-08-08T10:30:00Z, 1723113000000 (since 1970, in s, ms, us or"
    " ns), -15m, -2h, -7d, now, today or yesterday"
)
_MONTH: Final = re.compile(r"(\d{4})-(\d{2})")
# Seconds since 1970 have 9 to 11 digits from 1973 to 5138; each finer unit has 3 more.
_EPOCH: Final = re.compile(r"(\d{9,19})(\.\d{1,9})?")
_EPOCH_UNITS: Final = ((11, 1_000_000, 1), (14, 1_000, 1), (17, 1, 1), (19, 1, 1_000))
_START: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AGO: Final = re.compile(r"-(\d+)([smhdw])")
_MONTHS_AGO: Final = re.compile(r"-\d+M")
_UNIT: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True, slots=True)
class Timespan:
    """From `start` (inclusive) to `end` (exclusive); None is open."""

    start: datetime | None = None
    end: datetime | None = None


def parse_time(text: str, *, now: datetime) -> datetime:
    """Parse `2024-08-08T10:30+02:00`, `2024-08`, `-15m`, `now` or an epoch to a UTC time.

    Without an offset a time is UTC; a date is its midnight, a month the midnight of its first day.
    The unit of an epoch (s, ms, us, ns) follows from its number of digits; it may have a fraction,
    which is truncated to microseconds. Units of `-15m` ignore case, except for `-1M`, which could
    be minutes or months and is refused.

    Raises:
        ValueError: it has another form, or is not in the years 1 to 9999.
    """
    if _MONTHS_AGO.fullmatch(text.strip()):
        raise ValueError(f"{text!r} could be minutes or months")
    word = text.strip().lower()
    midnight = datetime.combine(now.astimezone(UTC).date(), time(tzinfo=UTC))
    named = {"now": now, "today": midnight, "yesterday": midnight - timedelta(days=1)}
    if word in named:
        return named[word]
    try:
        if ago := _AGO.fullmatch(word):
            return now - timedelta(**{_UNIT[ago[2]]: int(ago[1])})
        if epoch := _EPOCH.fullmatch(word):
            return _epoch(epoch[1], epoch[2] or "")
        if month := _MONTH.fullmatch(word):
            return datetime(int(month[1]), int(month[2]), 1, tzinfo=UTC)
        moment = datetime.fromisoformat(text.strip().upper())
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except OverflowError as exc:
        raise ValueError(f"{text!r} is out of range") from exc


def _epoch(digits: str, fraction: str) -> datetime:
    factor, divisor = next(rest for most, *rest in _EPOCH_UNITS if len(digits) <= most)
    return _START + timedelta(microseconds=int(Decimal(digits + fraction) * factor / divisor))


def parse_timespan(
    start: str | datetime | None, end: str | datetime | None, *, now: datetime, prefix: str = "--"
) -> Timespan:
    """Parse a start and an end, as text or aware datetimes, to a timespan.

    `prefix` precedes `start` and `end` in messages.

    Raises:
        UsageError: an invalid time, or a start that is not before the end.
    """
    span = Timespan(_moment(f"{prefix}start", start, now), _moment(f"{prefix}end", end, now))
    if span.start and span.end and span.start >= span.end:
        raise UsageError(
            f"{prefix}start {span.start.isoformat()} is not before"
            f" {prefix}end {span.end.isoformat()}",
            hint="the start is inclusive, the end exclusive; a date is its midnight in UTC",
        )
    return span


def _moment(name: str, value: str | datetime | None, now: datetime) -> datetime | None:
    if value is None:
        return None
    if isinstance(value, datetime):
        if value.tzinfo is None:
            raise UsageError(f"{name} {value} has no time zone", hint="datetime(..., tzinfo=UTC)")
        try:
            return value.astimezone(UTC)
        except OverflowError as exc:
            raise UsageError(f"{name} {value} is out of range in UTC") from exc
    if not isinstance(value, str):
        raise UsageError(
            f"{name} {value!r} is not a time",
            hint="write a str such as '2026-01-13' or '-1d', or datetime(..., tzinfo=UTC)",
        )
    try:
        return parse_time(value, now=now)
    except ValueError as exc:
        is_month = _MONTHS_AGO.fullmatch(value.strip())
        hint = "write minutes as -1m, and months as days (-30d) or a date" if is_month else _HINT
        raise UsageError(f"{name} {value!r} is not a time", hint=hint) from exc
