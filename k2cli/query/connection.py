"""A connection to DuckDB that answers are read from."""

from collections.abc import Sequence
from typing import BinaryIO

import duckdb

from k2cli.query.pipes import Pump, open_pipe
from k2cli.query.render import literal


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

    def copy(self, sql: str, values: Sequence[object], options: str, sink: BinaryIO) -> int:
        """Let DuckDB write a query's rows, copy the bytes to `sink`, and return the row count."""
        with open_pipe() as pipe:
            pump = Pump(pipe.reader, sink)
            pump.start()
            counted = None
            try:
                copy = f"COPY ({sql}) TO {literal(pipe.path)} ({options})"
                counted = self.connection.execute(copy, list(values)).fetchone()
            except duckdb.IOException as exc:
                raise pump.failure or exc from exc
            finally:
                if counted is None:
                    pump.stop(pipe.writer)
                pipe.writer.close()
                pump.join()
        if pump.failure:
            raise pump.failure
        return int(counted[0]) if counted else 0
