"""Plan which data files to read for a question."""

from collections.abc import Sequence
from datetime import datetime

from pyiceberg.expressions import (
    AlwaysTrue,
    And,
    BooleanExpression,
    GreaterThanOrEqual,
    In,
    LessThan,
    LessThanOrEqual,
)
from pyiceberg.table import Table

from k2cli.records import RecordKind, TableFiles, evolve_kind
from k2cli.storage.evolve import arrow_columns
from k2cli.storage.s3 import s3_access
from k2cli.storage.stored import row_level_deletes
from k2cli.storage.vendor import predicate, reading_manifests


def plan_files(  # noqa: PLR0913  one parameter per filter
    table: Table,
    kind: RecordKind,
    *,
    symbols: Sequence[str] = (),
    exchanges: Sequence[str] = (),
    start: datetime | None = None,
    end: datetime | None = None,
    numbers: tuple[int, int] | None = None,
) -> TableFiles:
    """Find the data files that can hold rows of these symbols and times, newest day first.

    `numbers` are the first and last exchange sequence of the rows.

    Raises:
        BadData: another engine left row-level deletes, which k2 does not apply.
        FileNotFoundError: a manifest does not exist; another writer may have expired it.
    """
    row_filter = _row_filter(kind, symbols, exchanges, start, end)
    if numbers is not None:
        row_filter = And(row_filter, _in_range("source_sequence", *numbers))
    with reading_manifests():
        tasks = list(table.scan(row_filter=row_filter).plan_files())
    if any(task.delete_files for task in tasks):
        raise row_level_deletes(kind.table)
    tasks.sort(key=lambda task: task.file.partition[0], reverse=True)
    return TableFiles(
        kind=evolved_kind(table, kind),
        paths=tuple(task.file.file_path.removeprefix("file://") for task in tasks),
        columns={field.field_id: field.name for field in table.schema().fields},
        rows=sum(task.file.record_count for task in tasks),
        s3=s3_access(table),
    )


def evolved_kind(table: Table, kind: RecordKind) -> RecordKind:
    """Return a kind with the columns of its table. See `records.evolve_kind`."""
    return evolve_kind(kind, arrow_columns(table.schema()))


def _row_filter(
    kind: RecordKind,
    symbols: Sequence[str],
    exchanges: Sequence[str],
    start: datetime | None,
    end: datetime | None,
) -> BooleanExpression:
    row_filter: BooleanExpression = AlwaysTrue()
    if symbols:
        row_filter = And(row_filter, predicate(In, "symbol", set(symbols)))
    if exchanges:
        row_filter = And(row_filter, predicate(In, "exchange", set(exchanges)))
    if start is not None:
        row_filter = And(
            row_filter, predicate(GreaterThanOrEqual, kind.partition_by, start.isoformat())
        )
    if end is not None:
        row_filter = And(row_filter, predicate(LessThan, kind.partition_by, end.isoformat()))
    return row_filter


def _in_range(column: str, first: int, last: int) -> BooleanExpression:
    return And(
        predicate(GreaterThanOrEqual, column, first), predicate(LessThanOrEqual, column, last)
    )
