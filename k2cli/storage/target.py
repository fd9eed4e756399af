"""A table to write to."""

from dataclasses import dataclass

from pyiceberg.table import Table

from k2cli.config import Settings
from k2cli.events import Observer
from k2cli.records import RecordKind
from k2cli.storage.lookup import StoredIds
from k2cli.storage.stored import FileIndex


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A table loaded for writing, and state shared by writers."""

    table: Table
    kind: RecordKind
    settings: Settings
    index: FileIndex  # of the table's data files; kept from one write to the next
    ids: StoredIds  # of its rows; kept as well
    observe: Observer  # receives the progress of long operations
