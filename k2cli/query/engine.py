"""DuckDB, locked down to the data files of one plan, and the answers that it streams out.

An engine lives for one command. It reads the files it was opened with and nothing else: no other
file or object, no other place on the network, no extension but httpfs where those files lie in S3,
no change to its own configuration. What it writes goes through a pipe that it was opened with, so
that DuckDB's own parallel writers serve every destination, a terminal, `>>` and a half-written file
included.
"""

import fcntl
import os
import re
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from typing import BinaryIO, Final

import duckdb
import pyarrow as pa

from k2cli.config import QuerySettings
from k2cli.errors import BadData, ConfigError, K2Error, Unavailable, UsageError
from k2cli.query.render import Column, Copy, Expression, as_exchanged, literal, projection, quoted
from k2cli.query.s3 import KEYS_HINT, check_paths, open_s3
from k2cli.records import TableFiles

_CHUNK_BYTES: Final = 1 << 20
_BATCH_ROWS: Final = 10_000
_EXPLAIN: Final = re.compile(r"\s*EXPLAIN\s+(ANALYZE\s+)?(\([^()]*\)\s*)?(?=\w|\()", re.IGNORECASE)
# Statements about tables have small answers, and must not see the view that an answer lives in.
_ABOUT: Final = re.compile(r"\s*(SHOW|DESCRIBE|DESC|SUMMARIZE)\b", re.IGNORECASE)
_ANSWER: Final = "k2_answer"
_RUNS_TO_LEARN_WHY: Final = 5
_OVERFLOW: Final = "an explicit cast to a bigger decimal"
_WIDER: Final = "cast one side to a wider type first, as in CAST(price AS DECIMAL(28, 8)) * price"
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
        hint = "raise query.memory_limit (K2_QUERY_MEMORY_LIMIT), or free space in $TMPDIR"
        return Unavailable(reason, hint=hint)
    if isinstance(exc, duckdb.IOException | duckdb.InterruptException):
        return _outside(reason)
    if isinstance(exc, duckdb.DataError | duckdb.InvalidInputException):
        return _bad_data(reason)
    if is_from_user and isinstance(exc, _MISTAKES):
        lines = str(exc).splitlines()
        hints = (line for line in lines if line.startswith("Candidate bindings"))
        return UsageError(reason, hint=next(hints, None))
    if isinstance(exc, duckdb.PermissionException):  # DuckDB looks for a folder of that name
        return Unavailable(f"a data file is gone: {reason}", hint="run it again")
    return None


@contextmanager
def open_engine(settings: QuerySettings, files: Iterable[TableFiles]) -> Iterator["Engine"]:
    """Open a DuckDB with one view for each kind of record over its files, and lock it down.

    Raises:
        ConfigError: a memory limit that DuckDB cannot read, or files that it has no way to.
    """
    plans = list(files)
    check_paths(plans)
    read_fd, write_fd = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):  # Linux: fewer and larger hand-overs
        with suppress(OSError):  # more than the system grants
            fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, _CHUNK_BYTES)
    with (
        os.fdopen(read_fd, "rb", buffering=0) as reader,
        os.fdopen(write_fd, "wb", buffering=0) as writer,
        tempfile.TemporaryDirectory(prefix="k2-query-") as spill,
        closing(_connect(settings, spill)) as connection,
    ):
        engine = Engine(connection=connection, reader=reader, writer=writer)
        allowed = [engine.pipe]
        for path in (path for plan in plans for path in plan.paths):
            allowed += {path, _pattern(path)}
        with translated():
            connection.execute("SET TimeZone = 'UTC'")
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
        "python_enable_replacements": "false",
        "autoinstall_known_extensions": "false",
        "autoload_known_extensions": "false",
        "allow_community_extensions": "false",
        "allow_persistent_secrets": "false",
    }
    if settings.threads is not None:
        config["threads"] = settings.threads
    try:
        return duckdb.connect(":memory:", config=config)
    except duckdb.ProgrammingError as exc:
        reason = f"query.memory_limit {settings.memory_limit!r}: {exc!s}"
        raise ConfigError(
            reason, hint="write it as 1GB, in k2.toml or K2_QUERY_MEMORY_LIMIT"
        ) from exc


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


def _bad_data(reason: str) -> BadData:
    return BadData(reason, hint=_WIDER if _OVERFLOW in reason else None)


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
        raise (_outside(reason) if is_outside else _bad_data(reason)) from exc


class Engine:
    """An open DuckDB. Made by `open_engine`; gives one answer."""

    def __init__(
        self, *, connection: duckdb.DuckDBPyConnection, reader: BinaryIO, writer: BinaryIO
    ) -> None:
        self.connection = connection
        self._reader = reader
        self._writer = writer
        self.pipe = f"/dev/fd/{writer.fileno()}"

    def ask(self, sql: str, values: Sequence[object] = ()) -> "Answer":
        """Check one of k2's own queries; `values` are its parameters."""
        with translated():
            return Answer(engine=self, sql=sql, values=values, is_from_user=False)

    def ask_table(self, rows: pa.Table) -> "Answer":
        """Make an answer of rows that are there already, to be written like any other."""
        with translated():
            self.connection.register(_ANSWER, rows)
            return Answer(engine=self, sql=f"FROM {_ANSWER}", values=(), is_from_user=False)

    def ask_sql(self, text: str) -> "Answer":
        """Check a statement that the user wrote.

        Raises:
            UsageError: it is not one statement that only reads, or names what is not there.
        """
        with translated(is_from_user=True):
            *types, statement = self._checked(text)
            for each in types:  # what a PIVOT needs: the type of its columns
                self.connection.execute(each)
            if types or _ABOUT.match(text):
                self.connection.register(
                    _ANSWER, self.connection.execute(statement).to_arrow_table()
                )
            else:
                self.connection.sql(statement).create_view(_ANSWER)
            return Answer(engine=self, sql=f"FROM {_ANSWER}", values=(), is_from_user=True)

    def _checked(self, text: str) -> list[duckdb.Statement]:
        """Parse the user's SQL and refuse everything but one statement that reads."""
        statements: list[duckdb.Statement] = self.connection.extract_statements(text)
        if not statements:
            raise UsageError("there is no SQL statement")
        # Only a PIVOT is parsed into several statements that have no text of their own.
        is_pivot = len(statements) > 1 and not any(each.query for each in statements)
        if len(statements) > 1 and not is_pivot:
            raise UsageError(f"these are {len(statements)} SQL statements; k2 takes one")
        statement = statements[-1]
        is_rewritten = statement.query.strip() not in text  # a PRAGMA, as a SELECT
        if statement.type == duckdb.StatementType.EXPLAIN:
            self._check_explained(text)
        elif statement.type != duckdb.StatementType.SELECT or is_rewritten:
            name = "PRAGMA" if is_rewritten else statement.type.name
            raise UsageError(f"{name} is not allowed: only statements that read, such as SELECT")
        if statement.named_parameters:
            raise UsageError("parameters ($1, ?) have no values here: write the values")
        return statements

    def _check_explained(self, text: str) -> None:
        match = _EXPLAIN.match(text)
        if match is None:
            raise UsageError("this EXPLAIN is not allowed: only EXPLAIN [ANALYZE] of a SELECT")
        self._checked(text[match.end() :])

    def copy(self, sql: str, values: Sequence[object], options: str, sink: BinaryIO) -> int:
        """Let DuckDB write a query's rows, and move the bytes into `sink`; return the rows."""
        pump = _Pump(self._reader, sink)
        pump.start()
        counted = None
        try:
            copy = f"COPY ({sql}) TO {literal(self.pipe)} ({options})"
            counted = self.connection.execute(copy, list(values)).fetchone()
        except duckdb.IOException as exc:
            raise pump.failure or exc from exc
        finally:
            if counted is None:
                pump.stop(self._writer)
            self._writer.close()
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
        self.failure: OSError | None = None
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
            except OSError as exc:
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

    def first(self, rows: int) -> "Answer":
        """The same answer, cut after its first rows."""
        return Answer(
            engine=self._engine,
            sql=f"FROM ({self._sql}) LIMIT {rows:d}",
            values=self._values,
            is_from_user=self._is_from_user,
        )

    def copy(self, form: Copy, sink: BinaryIO) -> int:
        """Write all rows into `sink` in a form of `render.COPIES`; return how many."""
        sql = self._rendered(form.render)
        try:
            with self._translated():
                return self._engine.copy(sql, self._values, form.options, sink)
        except _Interrupted as exc:
            raise self._failure(sql, exc) from exc

    def batches(self, render: Expression = as_exchanged) -> Iterator[pa.RecordBatch]:
        """Stream the rows; the first batch may be empty, later ones are not."""
        sql = self._rendered(render)
        try:
            yield from self._streamed(sql)
        except _Interrupted as exc:
            raise self._failure(sql, exc) from exc

    def _streamed(self, sql: str) -> Iterator[pa.RecordBatch]:
        with self._translated():
            reader = self._engine.connection.execute(sql, self._values).to_arrow_reader(_BATCH_ROWS)
        yield pa.RecordBatch.from_pylist([], schema=reader.schema)
        # In a thread, because a wait for it can be interrupted, and DuckDB's own work cannot.
        with reader, ThreadPoolExecutor(1) as worker:
            while (batch := self._wait(worker.submit(_next_batch, reader))) is not None:
                yield batch

    def _failure(self, sql: str, interrupted: _Interrupted) -> K2Error:
        """Learn why a query failed that only says it was interrupted: by running it again."""
        for _ in range(_RUNS_TO_LEARN_WHY):
            try:
                for _ in self._streamed(sql):
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
        return f"SELECT {projection(self.columns, render)} FROM ({self._sql})"

    def _translated(self) -> AbstractContextManager[None]:
        return translated(is_from_user=self._is_from_user)
