"""A snapshot that replaces data files by others with the same rows."""

from collections.abc import Mapping

from pyiceberg.table import Table, Transaction
from pyiceberg.table.snapshots import Operation, Summary
from pyiceberg.table.update.snapshot import _OverwriteFiles
from pyiceberg.typedef import EMPTY_DICT


class _ReplaceFiles(_OverwriteFiles):
    """A commit that is counted as OVERWRITE, which pyiceberg can count, and named REPLACE.

    Readers of changes, such as streams of Spark and Flink, skip a REPLACE: no row changed.
    """

    def _summary(self, snapshot_properties: dict[str, str] = EMPTY_DICT) -> Summary:
        counted = super()._summary(snapshot_properties)
        return Summary(operation=Operation.REPLACE, **counted.additional_properties)


def replace_files(
    transaction: Transaction, table: Table, properties: Mapping[str, str]
) -> _OverwriteFiles:
    """Begin a REPLACE snapshot. Its commit fails if a file to delete is not live."""
    return _ReplaceFiles(
        operation=Operation.OVERWRITE,
        transaction=transaction,
        io=table.io,
        snapshot_properties=dict(properties),
    )
