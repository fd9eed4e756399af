"""Format times, the same everywhere in k2."""

from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def iso_utc(moment: datetime, timespec: str = "auto") -> str:
    """Format an aware time in UTC: `2024-08-08T23:55:48.055000Z`."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def iso_utc_ms(time_ms: int) -> str:
    """Format UTC milliseconds; outside the years 1 to 9999 the number itself.

    Producers may set any 64 bits as the time of a message.
    """
    moment = moment_of(time_ms * 1000)
    return str(time_ms) if moment is None else iso_utc(moment, "milliseconds")


def iso_utc_us(time_us: int) -> str:
    """Format UTC microseconds; outside the years 1 to 9999 the number itself."""
    moment = moment_of(time_us)
    return str(time_us) if moment is None else iso_utc(moment, "microseconds")


def moment_of(time_us: int) -> datetime | None:
    """Return UTC microseconds since 1970 as a time; None outside the years 1 to 9999."""
    try:
        return _EPOCH + timedelta(microseconds=time_us)
    except OverflowError:
        return None
