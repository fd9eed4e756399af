"""Times as k2 writes them, everywhere."""

from datetime import UTC, datetime


def iso_utc(moment: datetime, timespec: str = "auto") -> str:
    """Write an aware time in UTC: `2024-08-08T23:55:48.055000Z`."""
    return moment.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")
