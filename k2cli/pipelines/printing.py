"""Print rows to stdout, also in place of tables."""

from collections.abc import Callable
from typing import BinaryIO, Protocol

import pyarrow as pa

from k2cli.query.render import NdjsonRenderer
from k2cli.records import RecordKind
from k2cli.storage.append import Commit, SourcePosition


class Printer(Protocol):
    """Writes rows to a stream."""

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Write rows immediately."""


class NdjsonPrinter:
    """Writes rows as lines of JSON."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._renderer = NdjsonRenderer()

    def write(self, _: RecordKind, rows: pa.RecordBatch) -> None:
        """Write one line for each row."""
        self._out.write(self._renderer.render(rows))
        self._out.flush()

    def first(self, limit: int | None) -> Callable[[RecordKind, pa.RecordBatch], None]:
        """Return a function that writes at most `limit` rows and ignores the others."""
        if limit is None:
            return self.write
        left = limit

        def write(kind: RecordKind, rows: pa.RecordBatch) -> None:
            nonlocal left
            if left:
                self.write(kind, rows.slice(0, left))
            left -= min(left, rows.num_rows)

        return write


class ArrowPrinter:
    """Writes rows of one kind as an Arrow IPC stream; `close` ends it."""

    def __init__(self, out: BinaryIO, kind: RecordKind) -> None:
        self._out = out
        self._writer = pa.ipc.new_stream(out, kind.arrow)

    def write(self, _: RecordKind, rows: pa.RecordBatch) -> None:
        """Write a batch."""
        self._writer.write_batch(rows)
        self._out.flush()

    def close(self) -> None:
        """Write the end of the stream."""
        self._writer.close()
        self._out.flush()


class StdoutTables:
    """Opens tables that print their rows instead of storing them."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._tables: dict[str, StdoutTable] = {}

    def open(self, kind: RecordKind) -> "StdoutTable":
        """Return the table that prints the rows of a kind."""
        return self._tables.setdefault(kind.name, StdoutTable(kind, self._printer))


class StdoutTable:
    """Prints rows of one kind instead of storing them."""

    def __init__(self, kind: RecordKind, printer: Printer) -> None:
        self._kind = kind
        self._printer = printer
        self._position: str | None = None

    def refresh(self) -> None:
        """Do nothing: no other writer changes it."""

    def evolved_kind(self) -> RecordKind:
        """Return the kind unchanged: all its columns are printed."""
        return self._kind

    def stored_position(self, key: str) -> str | None:  # noqa: ARG002
        """Return the position that the printed rows reach."""
        return self._position

    def append(self, rows: pa.Table, *, source: SourcePosition) -> Commit:
        """Print rows."""
        reached = source.advance(self._position)
        for batch in rows.to_batches():
            self._printer.write(self._kind, batch)
        self._position = reached
        return Commit(snapshot_id=None, rows=rows.num_rows, duplicates=0, took_ms=0.0)
