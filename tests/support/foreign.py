"""What other engines do to a table: Spark's rewrite and expiry, without Spark."""

import uuid
from typing import Any

import pyarrow as pa
from pyiceberg.io.pyarrow import _dataframe_to_data_files
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update.snapshot import _OverwriteFiles


class _Rewrite(_OverwriteFiles):
    """A snapshot that replaces files by others with the same rows.

    Counted as OVERWRITE, since pyiceberg does not count a REPLACE, and named REPLACE.
    """

    def _summary(self, snapshot_properties: Any = {}) -> Summary:  # noqa: B006
        done = super()._summary(snapshot_properties)
        return Summary(operation=Operation.REPLACE, **done.additional_properties)


def append_as_another_engine(table: Table, rows: pa.Table) -> None:
    """Append rows, with null in columns that they lack."""
    columns = table.schema().as_arrow()
    for field in columns:
        if field.name not in rows.column_names:
            rows = rows.append_column(field.name, pa.nulls(len(rows), field.type))
    table.append(rows.cast(columns))


def rewrite_as_another_engine(table: Table, *, is_expiring: bool) -> None:
    """Rewrite all data files as one a day; with `is_expiring` expire all other snapshots."""
    rows = table.scan().to_arrow()
    transaction = table.transaction()
    rewrite = _Rewrite(operation=Operation.OVERWRITE, transaction=transaction, io=table.io)
    for task in table.scan().plan_files():
        rewrite.delete_data_file(task.file)
    for file in _dataframe_to_data_files(table.metadata, rows, table.io, uuid.uuid4()):
        rewrite.append_data_file(file)
    rewrite.commit()
    transaction.commit_transaction()
    if is_expiring:
        table.refresh()
        protected = {ref.snapshot_id for ref in table.metadata.refs.values()}
        gone = [each.snapshot_id for each in table.snapshots() if each.snapshot_id not in protected]
        if gone:
            table.maintenance.expire_snapshots().by_ids(gone).commit()


def forget_everything(table: Table) -> None:
    """Leave rows of which nobody knows anything: no tag, no snapshot of k2's."""
    rewrite_as_another_engine(table, is_expiring=False)
    table.refresh()
    with table.manage_snapshots() as manage:
        manage.remove_tag("k2")
    current = table.current_snapshot()
    assert current is not None
    gone = [each.snapshot_id for each in table.snapshots() if each is not current]
    gone = [snapshot_id for snapshot_id in gone if snapshot_id != current.snapshot_id]
    table.maintenance.expire_snapshots().by_ids(gone).commit()
