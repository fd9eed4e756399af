"""Describe tables and their snapshots."""

from dataclasses import dataclass
from datetime import datetime

from pyiceberg.table import Table

from k2cli.records import RecordKind
from k2cli.storage.snapshots import summary_of, utc_time
from k2cli.storage.state import RUN_KEY


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotInfo:
    """One snapshot of a table."""

    snapshot_id: int
    committed_at: datetime
    operation: str
    added_rows: int
    total_rows: int
    total_files: int
    run: str  # id of the run that created it, as in its log lines
    refs: tuple[str, ...]  # branches and tags on it


@dataclass(frozen=True, slots=True, kw_only=True)
class TableInfo:
    """A table's columns, properties and size."""

    name: str
    kind: str
    location: str
    rows: int
    files: int
    size_bytes: int
    snapshots: int
    last_commit: datetime | None
    partition: str
    sort_order: str
    columns: tuple[tuple[int, str, str, bool, str], ...]  # id, name, type, required, doc
    properties: dict[str, str]


def describe_table(table: Table, kind: RecordKind) -> TableInfo:
    """Describe a table, as of the metadata that was loaded."""
    current = table.current_snapshot()
    summary = summary_of(current)
    schema = table.schema()
    return TableInfo(
        name=".".join(table.name()),
        kind=kind.name,
        location=table.location(),
        rows=int(summary.get("total-records", 0)),
        files=int(summary.get("total-data-files", 0)),
        size_bytes=int(summary.get("total-files-size", 0)),
        snapshots=len(table.metadata.snapshots),
        last_commit=utc_time(current.timestamp_ms) if current else None,
        partition=", ".join(
            f"{field.transform}({schema.find_column_name(field.source_id)})"
            for field in table.spec().fields
        ),
        sort_order=", ".join(
            str(schema.find_column_name(field.source_id)) for field in table.sort_order().fields
        ),
        columns=tuple(
            (field.field_id, field.name, str(field.field_type), field.required, field.doc or "")
            for field in schema.fields
        ),
        properties=dict(table.properties),
    )


def list_snapshots(table: Table) -> list[SnapshotInfo]:
    """List the snapshots that a table keeps, newest first."""
    refs = table.metadata.refs
    infos = []
    for snapshot in table.metadata.snapshots:
        summary = summary_of(snapshot)
        infos.append(
            SnapshotInfo(
                snapshot_id=snapshot.snapshot_id,
                committed_at=utc_time(snapshot.timestamp_ms),
                operation=snapshot.summary.operation.value if snapshot.summary else "",
                added_rows=int(summary.get("added-records", 0)),
                total_rows=int(summary.get("total-records", 0)),
                total_files=int(summary.get("total-data-files", 0)),
                run=summary.get(RUN_KEY, ""),
                refs=tuple(
                    name for name, ref in refs.items() if ref.snapshot_id == snapshot.snapshot_id
                ),
            )
        )
    return sorted(infos, key=lambda info: info.committed_at, reverse=True)
