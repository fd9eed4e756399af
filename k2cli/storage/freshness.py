"""Determine the newest row of a table from its statistics, without reading rows."""

from datetime import UTC, datetime, timedelta
from typing import Final

from pyiceberg.manifest import ManifestContent, ManifestFile
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot
from pyiceberg.transforms import DayTransform

from k2cli.storage.append import has_moved_on

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def newest_time(table: Table, column: str) -> datetime | None:
    """Return the largest time in the column that the table is partitioned by day of.

    None if the table is empty, or its files have no statistics of the column.
    """
    while True:
        snapshot = table.current_snapshot()
        if snapshot is None:
            return None
        try:
            return _newest_time(table, snapshot, column)
        except FileNotFoundError:  # expired meanwhile, by a writer
            if not has_moved_on(table):
                raise


def _newest_time(table: Table, snapshot: Snapshot, column: str) -> datetime | None:
    manifests = [
        manifest
        for manifest in snapshot.manifests(table.io)
        if manifest.content == ManifestContent.DATA
    ]
    field_id = table.schema().find_field(column).field_id
    days = [_newest_day(table, manifest, field_id) for manifest in manifests]
    newest_day = max((day for day in days if day is not None), default=None)
    times_us = [
        _number(entry.data_file.upper_bounds[field_id])
        for manifest, day in zip(manifests, days, strict=True)
        if day in (None, newest_day)
        for entry in manifest.fetch_manifest_entry(table.io)
        if field_id in (entry.data_file.upper_bounds or {})
    ]
    return _EPOCH + timedelta(microseconds=max(times_us)) if times_us else None


def _newest_day(table: Table, manifest: ManifestFile, field_id: int) -> int | None:
    """Return the last day of a manifest's files; None if unknown."""
    fields = table.specs()[manifest.partition_spec_id].fields
    for field, summary in zip(fields, manifest.partitions or (), strict=False):
        if field.source_id == field_id and isinstance(field.transform, DayTransform):
            return None if summary.upper_bound is None else _number(summary.upper_bound)
    return None


def _number(value: bytes) -> int:
    """Decode a date or a time (https://iceberg.apache.org/spec/#binary-single-value-serialization)."""
    return int.from_bytes(value, "little", signed=True)
