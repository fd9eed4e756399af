"""DuckDB, locked down to the data files of one plan, and the answers that it streams out.

An engine lives for one command. It reads the files it was opened with and nothing else: no other
file or object, no other place on the network, no extension but httpfs where those files lie in S3,
no change to its own configuration. What it writes goes through a pipe that it was opened with, so
that DuckDB's own parallel writers serve every destination, a terminal, `>>` and a half-written file
included.

SQL that a user wrote gets two engines: one that reads the tables and can write nothing, and one
that only formats the rows which the first one streams to it. So no query reads its own answer.
"""

import base64
import fcntl
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from typing import BinaryIO, Final

import duckdb
import pyarrow as pa
from msgspec.structs import replace

from k2cli.config import QuerySettings
from k2cli.errors import BadData, ConfigError, K2Error, Unavailable, UsageError
from k2cli.query.protocol import MEMORY_HINT, Request, modest_limit_bytes
from k2cli.query.render import (
    COPIES,
    RENDERINGS,
    UTC,
    Column,
    Expression,
    as_transferred,
    literal,
    projection,
    quoted,
)
from k2cli.query.s3 import KEYS_HINT, check_paths, open_s3
from k2cli.query.statements import check_statement
from k2cli.records import TableFiles

_CHUNK_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 10_000
_ANSWER: Final = "k2_answer"
_RUNS_TO_LEARN_WHY: Final = 5
_OVERFLOW: Final = "an explicit cast to a bigger decimal"
_WIDER: Final = "cast one side to a wider type first, as in CAST(price AS DECIMAL(28, 8)) * price"
# What a failed cast says of a constant (LIMIT 1e30, price = 'abc'); of stored values it names the
# column.
_OUT_OF_RANGE: Final = "the value is out of range"
_OF_COLUMN: Final = "when casting from source column"
_OUTSIDE: Final = ("Out of Memory Error", "IO Error", "HTTP Error", "INTERRUPT Error")
# Syntax and unknown names, what DuckDB cannot do, files that are not the table's.
_MISTAKES: Final = (
    duckdb.ProgrammingError,
    duckdb.NotSupportedError,
    duckdb.DependencyException,
    duckdb.PermissionException,
)


class _Interrupted(Unavailable):
    """A query was stopped, and nobody asked for it: one of its threads failed.

    That thread's error says why, but now and then DuckDB hands out what another thread, stopped
    because of it, had to say.
    """


@contextmanager
def translated(*, is_from_user: bool = False) -> Iterator[None]:
    """Turn what DuckDB raises into errors of k2.

    Mistakes in SQL that the user wrote are usage errors. In k2's own SQL they are bugs, like
    DuckDB's internal errors: they pass, and end in a traceback.
    """
    try:
        yield
    except RuntimeError as exc:
        if isinstance(exc.__cause__, KeyboardInterrupt):  # what DuckDB makes of Ctrl-C
            raise KeyboardInterrupt from exc
        raise
    except duckdb.Error as exc:
        error = _expected(exc, is_from_user=is_from_user)
        if error is None:
            raise
        raise error from exc


def _expected(exc: duckdb.Error, *, is_from_user: bool) -> K2Error | None:
    reason = str(exc).partition("\n")[0]
    if isinstance(exc, duckdb.OutOfMemoryException):
        return Unavailable(reason, hint=MEMORY_HINT)
    if isinstance(exc, duckdb.IOException | duckdb.InterruptException):
        return _outside(reason)
    if isinstance(exc, duckdb.DataError | duckdb.InvalidInputException):
        is_cast = isinstance(exc, duckdb.ConversionException) or _OUT_OF_RANGE in reason
        return _misfit(reason, is_mistake=is_from_user and is_cast and _OF_COLUMN not in reason)
    if is_from_user and isinstance(exc, _MISTAKES):
        return _mistake(str(exc))
    if isinstance(exc, duckdb.PermissionException):  # DuckDB looks for a folder of that name
        return Unavailable(f"a data file is gone: {reason}", hint="run it again")
    return None


def _mistake(text: str) -> UsageError:
    """Keep what DuckDB says of wrong SQL: the caret under it, and the suggestion as the hint."""
    lines = [line for line in text.splitlines() if line.strip()]
    hints = [line for line in lines if line.startswith(("Did you mean", "Candidate "))]
    caret = next((at for at, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    message = [*lines[:1], *lines[caret : caret + 2]]
    return UsageError("\n".join(message), hint=hints[0] if hints else None)


@contextmanager
def open_engine(
    settings: QuerySettings, files: Iterable[TableFiles], *, zone: str = UTC
) -> Iterator["Engine"]:
    """Open a DuckDB with one view for each kind of record over its files, and lock it down.

    Answers show instants in `zone`, an IANA name.

    Raises:
        ConfigError: a memory limit that is not a size, or files that DuckDB has no way to.
    """
    modest = replace(settings, memory_limit=f"{modest_limit_bytes(settings)}B")
    with open_pipe() as pipe, _open_engine(modest, files, pipe=pipe, zone=zone) as engine:
        yield engine


@contextmanager
def open_sql(
    request: Request, *, when_ready: Callable[[], None] = lambda: None
) -> Iterator["Answer"]:
    """Run a statement that a user wrote in engines of its own.

    The statement runs in UTC; only its answer is shown in the zone that was asked for.
    `when_ready` is called when both engines are open, before the statement is parsed.

    Raises:
        UsageError: it is not one statement that only reads, or names what does not exist.
        K2Error: also while the answer is read; always what the statement failed with.
    """
    with (
        _open_engine(request.settings, request.files, pipe=None) as reading,
        open_engine(request.settings, [], zone=request.zone) as writing,
    ):
        when_ready()
        answer = reading.ask_sql(request.text)
        rows = _Handover(answer if request.limit is None else answer.first(request.limit))
        try:
            yield writing.ask_stream(rows.reader())
        except BaseException as exc:
            if rows.failure is not None:
                raise rows.failure from exc
            raise


class _Handover:
    """Streams rows from one engine to another, and keeps the error that the first one raised."""

    def __init__(self, answer: "Answer") -> None:
        self._answer = answer
        self.failure: K2Error | None = None

    def reader(self) -> pa.RecordBatchReader:
        """Start the query."""
        schema, batches = self._answer.stream(as_transferred)
        return pa.RecordBatchReader.from_batches(schema, self._watched(batches))

    def _watched(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        try:
            yield from batches
        except K2Error as exc:
            self.failure = exc
            raise


@dataclass(frozen=True, slots=True)
class Pipe:
    """Both ends of a pipe that DuckDB writes to, under its path."""

    reader: BinaryIO
    writer: BinaryIO

    @property
    def path(self) -> str:
        """Return the path that opens the writing end."""
        return f"/dev/fd/{self.writer.fileno()}"


@contextmanager
def open_pipe() -> Iterator[Pipe]:
    """Open a pipe with a large buffer."""
    read_fd, write_fd = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux: fewer and larger hand-overs
        with suppress(OSError):  # more than the system grants
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
    with (
        os.fdopen(read_fd, "rb", buffering=0) as reader,
        os.fdopen(write_fd, "wb", buffering=0) as writer,
    ):
        yield Pipe(reader, writer)


@contextmanager
def _open_engine(
    settings: QuerySettings, files: Iterable[TableFiles], *, pipe: Pipe | None, zone: str = UTC
) -> Iterator["Engine"]:
    plans = list(files)
    check_paths(plans)
    with (
        tempfile.TemporaryDirectory(prefix="k2-query-") as spill,
        closing(_connect(settings, spill)) as connection,
    ):
        engine = Engine(connection=connection, pipe=pipe, zone=zone)
        allowed = [] if pipe is None else [pipe.path]
        for path in (path for plan in plans for path in plan.paths):
            allowed += {path, _pattern(path)}
        with translated():
            connection.execute(f"SET TimeZone = {literal(zone)}")
            if pipe is None:  # types that other readers do not know go to an engine only
                connection.execute("SET arrow_lossless_conversion = true")
            open_s3(connection, plans)
            connection.execute(f"SET allowed_paths = [{', '.join(map(literal, allowed))}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            for plan in plans:
                connection.execute(f"CREATE VIEW {quoted(plan.kind.name)} AS {_source(plan)}")
        try:
            yield engine
        except KeyboardInterrupt:
            connection.interrupt()  # otherwise closing it waits for the query's end
            raise


def _connect(settings: QuerySettings, spill: str) -> duckdb.DuckDBPyConnection:
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": settings.memory_limit,
        "temp_directory": spill,
        "max_temp_directory_size": f"{settings.spill_limit:d}B",
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_persistent_secrets": "false",
    }
    if settings.threads is not None:
        config["threads"] = settings.threads
    return duckdb.connect(":memory:", config=config)


def arrow_to_duckdb_type(of: pa.DataType) -> str:
    """Name the DuckDB type of a column of a record kind."""
    if pa.types.is_decimal(of):
        return f"DECIMAL({of.precision}, {of.scale})"
    if pa.types.is_timestamp(of):
        return "TIMESTAMPTZ"
    if pa.types.is_list(of):
        return f"{arrow_to_duckdb_type(of.value_type)}[]"
    if pa.types.is_map(of):
        return f"MAP({arrow_to_duckdb_type(of.key_type)}, {arrow_to_duckdb_type(of.item_type)})"
    names = {pa.string(): "VARCHAR", pa.int64(): "BIGINT", pa.int32(): "INTEGER"}
    return names.get(of) or {pa.bool_(): "BOOLEAN"}[of]


def _source(plan: TableFiles) -> str:
    """Make the SELECT over a plan's files, columns found by field id, absent ones null."""
    types = {field.name: arrow_to_duckdb_type(field.type) for field in plan.kind.arrow}
    stored = {name: field_id for field_id, name in plan.columns.items() if name in types}
    if not plan.paths or not stored:
        nulls = ", ".join(f"CAST(NULL AS {of}) AS {quoted(name)}" for name, of in types.items())
        return f"SELECT {nulls} WHERE false"
    columns = ", ".join(
        quoted(name) if name in stored else f"CAST(NULL AS {of}) AS {quoted(name)}"
        for name, of in types.items()
    )
    by_id = ", ".join(
        f"{field_id}: {{name: {literal(name)}, type: {literal(types[name])}, default_value: NULL}}"
        for name, field_id in stored.items()
    )
    paths = ", ".join(literal(_pattern(path)) for path in plan.paths)
    return f"SELECT {columns} FROM read_parquet([{paths}], schema = MAP {{{by_id}}})"


def _pattern(path: str) -> str:
    """Write a path as the pattern that matches only it: DuckDB takes every path for a pattern."""
    return re.sub(r"[\[*?]", r"[\g<0>]", path)


def _misfit(reason: str, *, is_mistake: bool = False) -> K2Error:
    hint = _WIDER if _OVERFLOW in reason else None
    if is_mistake or reason.startswith("Out of Range Error"):  # of the statement, not the data
        return UsageError(reason, hint=hint)
    return BadData(reason, hint=hint)


def _outside(reason: str) -> K2Error:
    if reason.startswith("INTERRUPT Error"):
        return _Interrupted(f"the query failed: {reason}", hint="run it again")
    if "(HTTP 401" in reason or "(HTTP 403" in reason:
        return ConfigError(f"the object store refuses us: {reason}", hint=KEYS_HINT)
    if "(HTTP 404" in reason:
        return Unavailable(f"a data file is gone: {reason}", hint="run it again")
    return Unavailable(reason)


def _next_batch(reader: pa.RecordBatchReader) -> pa.RecordBatch | None:
    try:
        return reader.read_next_batch()
    except StopIteration:
        return None
    except (OSError, pa.ArrowException) as exc:
        # On the way through Arrow's C interface an error of DuckDB loses its type, not its text.
        reason = str(exc).partition("\n")[0]
        is_outside = reason.startswith(_OUTSIDE)
        raise (_outside(reason) if is_outside else _misfit(reason)) from exc


class Engine:
    """An open DuckDB. Made by `open_engine`; gives one answer."""

    def __init__(
        self, *, connection: duckdb.DuckDBPyConnection, pipe: Pipe | None, zone: str
    ) -> None:
        self.connection = connection
        self.pipe = pipe
        self.zone = zone

    def ask(self, sql: str, values: Sequence[object] = ()) -> "Answer":
        """Check one of k2's own queries; `values` are its parameters."""
        with translated():
            return Answer(engine=self, sql=sql, values=values, is_from_user=False)

    def ask_table(self, rows: pa.Table) -> "Answer":
        """Make an answer of rows that are there already, to be written like any other."""
        with translated():
            self.connection.register(_ANSWER, rows)
            return Answer(engine=self, sql=f"FROM {_ANSWER}", values=(), is_from_user=False)

    def ask_stream(self, rows: pa.RecordBatchReader) -> "Answer":
        """Make an answer of rows that are read once, while it is written."""
        with translated():
            self.connection.register(_ANSWER, rows)
            return Answer(engine=self, sql=f"FROM {_ANSWER}", values=(), is_from_user=False)

    def ask_sql(self, text: str) -> "Answer":
        """Check a statement that the user wrote.

        Raises:
            UsageError: it is not one statement that only reads, or names what is not there.
        """
        with translated(is_from_user=True):
            checked = check_statement(self.connection, text)
            for each in checked.preparations:
                self.connection.execute(each)
            if checked.preparations or checked.is_about_tables:
                rows = self.connection.execute(checked.statement).to_arrow_table()
                self.connection.register(_ANSWER, rows)
            else:
                self._create_view(checked.statement)
            return Answer(engine=self, sql=f"FROM {_ANSWER}", values=(), is_from_user=True)

    def _create_view(self, statement: duckdb.Statement) -> None:
        try:
            relation = self.connection.sql(statement)
        except _MISTAKES:
            self.connection.execute(statement)  # fails alike, and shows where
            raise
        relation.create_view(_ANSWER)

    def copy(self, sql: str, values: Sequence[object], options: str, sink: BinaryIO) -> int:
        """Let DuckDB write a query's rows, and move the bytes into `sink`; return the rows."""
        if self.pipe is None:
            raise ValueError("this engine only reads")
        pump = _Pump(self.pipe.reader, sink)
        pump.start()
        counted = None
        try:
            copy = f"COPY ({sql}) TO {literal(self.pipe.path)} ({options})"
            counted = self.connection.execute(copy, list(values)).fetchone()
        except duckdb.IOException as exc:
            raise pump.failure or exc from exc
        finally:
            if counted is None:
                pump.stop(self.pipe.writer)
            self.pipe.writer.close()
            pump.join()
        if pump.failure:
            raise pump.failure
        return int(counted[0]) if counted else 0


class _Pump(threading.Thread):
    """Moves bytes from a pipe to where they belong, until either end closes."""

    def __init__(self, source: BinaryIO, sink: BinaryIO) -> None:
        super().__init__(name="k2-output", daemon=True)
        self._source = source
        self._sink = sink
        self.failure: OSError | K2Error | None = None
        self._is_stopped = False

    def stop(self, writer: BinaryIO) -> None:
        """End it without an end of the data: an interrupted COPY keeps its end of the pipe."""
        self._is_stopped = True
        os.set_blocking(writer.fileno(), False)
        with suppress(OSError):  # full: then there is something to wake up for; or closed
            os.write(writer.fileno(), b"\0")

    def run(self) -> None:
        buffer = bytearray(_CHUNK_BYTES)
        view = memoryview(buffer)
        with self._source as source:  # closing it makes DuckDB's next write fail
            try:
                while size := source.readinto(buffer):  # type: ignore[attr-defined]
                    if self._is_stopped:
                        return
                    self._sink.write(view[:size])
                self._sink.flush()
            except (OSError, K2Error) as exc:  # of a file, or of stdout
                self.failure = exc


class Answer:
    """A query that was checked but has not run: its columns are known, its rows stream.

    It runs once, by `copy` or `batches`, while its engine is open.
    """

    def __init__(
        self, *, engine: Engine, sql: str, values: Sequence[object], is_from_user: bool
    ) -> None:
        self._engine = engine
        self._sql = sql
        self._values = list(values)
        self._is_from_user = is_from_user
        shape = engine.connection.execute(f"FROM ({sql}) LIMIT 0", self._values).description
        self.columns: list[Column] = [(name, of) for name, of, *_ in shape or ()]

    @property
    def named_types(self) -> list[tuple[str, str]]:
        """Return the columns: name, and id of the DuckDB type."""
        return [(name, of.id) for name, of in self.columns]

    def first(self, rows: int) -> "Answer":
        """The same answer, cut after its first rows."""
        return Answer(
            engine=self._engine,
            sql=f"FROM ({self._sql}) LIMIT {rows:d}",
            values=self._values,
            is_from_user=self._is_from_user,
        )

    def copy(self, form: str, sink: BinaryIO) -> int:
        """Write all rows into `sink` in a form of `render.COPIES`; return how many."""
        copy = COPIES[form]
        sql = self._rendered(copy.render)
        try:
            with self._translated():
                options = copy.options + (self._zones_option(sql) if form == "parquet" else "")
                return self._engine.copy(sql, self._values, options, sink)
        except _Interrupted as exc:
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
        except _Interrupted as exc:
            raise self._failure(sql, exc) from exc

    def _started(self, sql: str) -> pa.RecordBatchReader:
        with self._translated():
            return self._engine.connection.execute(sql, self._values).to_arrow_reader(_BATCH_ROWS)

    def _streamed(self, reader: pa.RecordBatchReader) -> Iterator[pa.RecordBatch]:
        # In a thread, because a wait for it can be interrupted, and DuckDB's own work cannot.
        with reader, ThreadPoolExecutor(1) as worker:
            while (batch := self._wait(worker.submit(_next_batch, reader))) is not None:
                yield batch

    def _failure(self, sql: str, interrupted: _Interrupted) -> K2Error:
        """Learn why a query failed that only says it was interrupted: by running it again."""
        for _ in range(_RUNS_TO_LEARN_WHY):
            try:
                for _ in self._streamed(self._started(sql)):
                    pass
            except _Interrupted:
                continue
            except K2Error as exc:
                return exc
            break
        return interrupted

    def _wait(self, next_batch: Future[pa.RecordBatch | None]) -> pa.RecordBatch | None:
        try:
            return next_batch.result()
        except KeyboardInterrupt:
            self._engine.connection.interrupt()
            raise

    def table(self) -> pa.Table:
        """Take all rows at once, for answers that are small."""
        return pa.Table.from_batches(self.batches())

    def _rendered(self, render: Expression) -> str:
        return f"SELECT {projection(self.columns, render, self._engine.zone)} FROM ({self._sql})"

    def _zones_option(self, sql: str) -> str:
        """Make the option that keeps the zone of times in Parquet, which itself knows only UTC.

        Readers based on Arrow find it in the schema that Arrow's own writer would add.
        """
        if self._engine.zone == UTC:
            return ""
        empty = self._engine.connection.execute(f"FROM ({sql}) LIMIT 0", self._values)
        schema = base64.b64encode(empty.to_arrow_table().schema.serialize()).decode()
        return f", KV_METADATA {{'ARROW:schema': {literal(schema)}}}"

    def _translated(self) -> AbstractContextManager[None]:
        return translated(is_from_user=self._is_from_user)
