"""Read what an Iceberg snapshot records: the properties in its summary, and its time."""

from collections.abc import Mapping
from datetime import UTC, datetime

from pyiceberg.table.snapshots import Operation, Snapshot


def summary_of(snapshot: Snapshot | None) -> Mapping[str, str]:
    """Return the properties in a snapshot's summary; empty without a snapshot or a summary."""
    if snapshot is None or snapshot.summary is None:
        return {}
    return snapshot.summary.additional_properties


def number_of(snapshot: Snapshot | None, key: str) -> int | None:
    """Return a number in a snapshot's summary; None if it is missing."""
    value = summary_of(snapshot).get(key)
    return None if value is None else int(value)


def operation_of(snapshot: Snapshot) -> Operation | None:
    """Return what a snapshot did; None without a summary."""
    return snapshot.summary.operation if snapshot.summary else None


def utc_time(timestamp_ms: int) -> datetime:
    """Return the time of a snapshot or metadata file, in UTC milliseconds, as a time."""
    return datetime.fromtimestamp(timestamp_ms / 1000, tz=UTC)


def is_first(snapshot: Snapshot) -> bool:
    """Return whether a snapshot is the first of its table.

    One whose parent has expired has no parent either, but a later sequence number.
    """
    return snapshot.parent_snapshot_id is None and (snapshot.sequence_number or 0) <= 1
