"""The answer to a checked query: known columns, streamed rows."""

import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, Final

import pyarrow as pa

from k2cli.errors import K2Error, Unavailable
from k2cli.query.connection import Connection
from k2cli.query.questions import Question
from k2cli.query.render import (
    COPIES,
    RENDERINGS,
    UTC,
    Column,
    Expression,
    literal,
    projection,
)
from k2cli.query.vendor import Interrupted, streaming_error, translated

_BATCH_ROWS: Final = 10_000
_RUNS_TO_LEARN_WHY: Final = 5


class Answer:
    """A checked query that has not run yet: known columns, streamed rows.

    It runs once, by `copy` or `batches`, while its session is open.
    """

    def __init__(self, *, session: Connection, question: Question, is_from_user: bool) -> None:
        self._session = session
        self._question = question
        self._values = list(question.values)
        self._is_from_user = is_from_user
        empty = f"FROM ({question.sql}) LIMIT 0"
        shape = session.connection.execute(empty, self._values).description
        self.columns: list[Column] = [(name, of) for name, of, *_ in shape or ()]

    @property
    def named_types(self) -> list[tuple[str, str]]:
        """Return the columns: name, and id of the DuckDB type."""
        return [(name, of.id) for name, of in self.columns]

    def first(self, rows: int) -> "Answer":
        """Return the same answer, limited to its first rows."""
        return Answer(
            session=self._session,
            question=Question(f"FROM ({self._question.sql}) LIMIT {rows:d}", self._values),
            is_from_user=self._is_from_user,
        )

    def copy(self, form: str, sink: BinaryIO) -> int:
        """Write all rows to `sink` in a format of `render.COPIES`; return how many."""
        copy = COPIES[form]
        sql = self._rendered(copy.render)
        try:
            with self._translated():
                options = copy.options + (self._zones_option(sql) if form == "parquet" else "")
                return self._session.copy(sql, self._values, options, sink)
        except Interrupted as exc:
            raise self._failure(sql, exc) from exc

    def batches(self, rendering: str = "exchanged") -> Iterator[pa.RecordBatch]:
        """Stream the rows in a rendering of `render.RENDERINGS`; the first batch is empty."""
        schema, batches = self.stream(RENDERINGS[rendering])
        yield pa.RecordBatch.from_pylist([], schema=schema)
        yield from batches

    def stream(self, render: Expression) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """Start the query; return the schema, and the rows in batches that are not empty."""
        sql = self._rendered(render)
        reader = self._started(sql)
        return reader.schema, self._explained(sql, reader)

    def _explained(self, sql: str, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._streamed(reader)
        except Interrupted as exc:
            raise self._failure(sql, exc) from exc

    def _started(self, sql: str) -> pa.RecordBatchReader:
        with self._translated():
            return self._session.connection.execute(sql, self._values).to_arrow_reader(_BATCH_ROWS)

    def _streamed(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        wait = self._session.wait
        with reader, ThreadPoolExecutor(1) as worker:
            while (batch := wait(worker.submit(_next_batch, reader))) is not None:
                yield batch

    def _failure(self, sql: str, interrupted: Interrupted) -> K2Error:
        """Find the cause of a query that only reports an interrupt, by running it again."""
        if self._session.is_cancelled:
            return _cancelled()
        for _ in range(_RUNS_TO_LEARN_WHY):
            try:
                for _ in self._streamed(self._started(sql)):
                    pass
            except Interrupted:
                continue
            except K2Error as exc:
                return exc
            break
        return interrupted

    def table(self) -> pa.Table:
        """Return all rows, for small answers."""
        return pa.Table.from_batches(self.batches())

    def _rendered(self, render: Expression) -> str:
        columns = projection(self.columns, render, self._session.zone)
        return f"SELECT {columns} FROM ({self._question.sql})"

    def _zones_option(self, sql: str) -> str:
        """Return the option that stores time zones in Parquet, which itself supports only UTC.

        Readers based on Arrow find them in the schema that Arrow's writer would add.
        """
        if self._session.zone == UTC:
            return ""
        empty = self._session.connection.execute(f"FROM ({sql}) LIMIT 0", self._values)
        schema = base64.b64encode(empty.to_arrow_table().schema.serialize()).decode()
        return f", KV_METADATA {{'ARROW:schema': {literal(schema)}}}"

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            with translated(is_from_user=self._is_from_user):
                yield
        except Interrupted as exc:
            if self._session.is_cancelled:
                raise _cancelled() from exc
            raise


def _cancelled() -> Unavailable:
    return Unavailable("the query was cancelled")


def _next_batch(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except (OSError, pa.ArrowException) as exc:
        raise streaming_error(exc) from exc
