"""A connection to DuckDB that answers are read from."""

from collections.abc import Sequence
from concurrent.futures import Future
from typing import BinaryIO, TypeVar

import duckdb

from k2cli.background import begin, wait_for_end
from k2cli.errors import Unavailable
from k2cli.query.pipes import Pump, open_pipe
from k2cli.query.render import literal

T = TypeVar("T")


class Connection:
    """A DuckDB connection: its time zone, cancellation, and copies into any binary stream."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, zone: str) -> None:
        self.connection = connection
        self.zone = zone
        self.is_cancelled = False

    def cancel(self) -> None:
        """Cancel the running question and all later ones: they raise Unavailable. Any thread."""
        self.is_cancelled = True
        self.connection.interrupt()

    def check_cancelled(self) -> None:
        """Raise Unavailable if the session was cancelled, perhaps between two questions."""
        if self.is_cancelled:
            raise Unavailable("the query was cancelled")

    def wait(self, future: Future[T]) -> T:
        """Return the result of DuckDB's work in another thread; an interrupt ends that work.

        Waiting for a thread can be interrupted. DuckDB cannot while it writes to a full pipe.
        """
        try:
            return wait_for_end(future).result()
        except KeyboardInterrupt:
            self.connection.interrupt()
            raise

    def copy(self, sql: str, values: Sequence[object], options: str, sink: BinaryIO) -> int:
        """Let DuckDB write a query's rows, copy the bytes to `sink`, and return the row count."""
        with open_pipe() as pipe:
            copy = f"COPY ({sql}) TO {literal(pipe.path)} ({options})"
            pump = Pump(pipe.reader, sink)
            copying = begin(lambda: self.connection.execute(copy, list(values)).fetchone())
            counted = None
            try:
                counted = self.wait(copying)
            except duckdb.IOException as exc:
                raise pump.failure or exc from exc
            finally:
                if counted is None:
                    pump.stop(pipe.writer)
                else:
                    pipe.writer.close()
                wait_for_end(pump.ended).result()
                wait_for_end(copying)  # the pipe has no reader anymore
        if pump.failure:
            raise pump.failure
        return int(counted[0]) if counted else 0
