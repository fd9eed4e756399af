"""Tables in memory: as strict about positions as those in Iceberg, and as fast as a test wants."""

import threading

import pyarrow as pa

from k2cli.records import KINDS, RecordKind
from k2cli.storage.append import Commit, SourcePosition
from k2cli.storage.offsets import Partition, decode_offsets, encode_offsets


class MemoryTables:
    """Rows and positions by kind. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[str, list[pa.Table]] = {name: [] for name in KINDS}
        self._held: dict[str, str] = {}

    def open(self, kind: RecordKind) -> "MemoryTable":
        """Open the table of a kind."""
        return MemoryTable(self, kind)

    def position(self, kind: RecordKind) -> str | None:
        """Return the position of a table."""
        return self._held.get(kind.name)

    def append(self, kind: RecordKind, rows: pa.Table, *, source: SourcePosition) -> Commit:
        """Store rows and the position they reach, or raise PositionMoved."""
        with self._lock:
            self._held[kind.name] = source.advance(self._held.get(kind.name))
            self._rows[kind.name].append(rows)
            number = len(self._rows[kind.name])
        return Commit(snapshot_id=number, rows=rows.num_rows, duplicates=0, took_ms=0.0)

    def positions(self, kind: RecordKind) -> dict[Partition, int]:
        """Return how far a table is."""
        return dict(decode_offsets(self._held.get(kind.name)))

    def move(self, kind: RecordKind, partition: Partition, offset: int) -> None:
        """Move a position, as another consumer does that commits rows."""
        with self._lock:
            offsets = decode_offsets(self._held.get(kind.name))
            self._held[kind.name] = encode_offsets({**offsets, partition: offset})

    def ids(self, kind: RecordKind) -> list[str]:
        """Return the ids of all rows, sorted, doubles and all."""
        with self._lock:
            return sorted(
                each for rows in self._rows[kind.name] for each in rows["message_id"].to_pylist()
            )


class MemoryTable:
    """One of the tables. As with those in Iceberg, reading needs a refresh to see what is new."""

    def __init__(self, tables: MemoryTables, kind: RecordKind) -> None:
        self._tables = tables
        self._kind = kind
        self.refresh()

    def refresh(self) -> None:
        """Look the position up."""
        self._position = self._tables.position(self._kind)

    def evolved_kind(self) -> RecordKind:
        """Return the kind as it is."""
        return self._kind

    def stored_position(self, key: str) -> str | None:
        """Return the position at the last refresh."""
        assert key
        return self._position

    def append(self, rows: pa.Table, *, source: SourcePosition) -> Commit:
        """Store rows and the position they reach, or raise PositionMoved."""
        return self._tables.append(self._kind, rows, source=source)
