"""DuckDB: one engine that answers many questions, several at a time.

Each question runs in a separate session, which sees the data files of one plan, has its own time
zone, and can be cancelled without the others. k2's own questions share an engine and its memory.
User SQL runs in a separate engine that is locked down: no access to other files, objects or hosts,
no extension except httpfs if the files are in S3, no configuration changes, and no writes. Its rows
are streamed to another engine that formats them, so no query reads its own answer.
"""

import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Final

import duckdb
import pyarrow as pa
from msgspec.structs import replace

from k2cli.config import QuerySettings
from k2cli.errors import K2Error
from k2cli.query.answer import Answer
from k2cli.query.connection import Connection
from k2cli.query.pieces import PIECE_ROWS, LargeAnswer
from k2cli.query.protocol import Request, modest_limit_bytes
from k2cli.query.questions import Question
from k2cli.query.render import UTC, as_transferred, literal, quoted
from k2cli.query.s3 import check_paths, open_s3
from k2cli.query.selection import Selection
from k2cli.query.statements import check_statement
from k2cli.query.vendor import MISTAKES, translated
from k2cli.query.views import files_query, path_pattern
from k2cli.records import RecordKind, TableFiles

_ANSWER: Final = "k2_answer"


@contextmanager
def open_engine(settings: QuerySettings) -> Iterator["Engine"]:
    """Open a DuckDB for k2's own questions.

    Raises:
        ConfigError: a memory limit that is not a size.
    """
    modest = replace(settings, memory_limit=f"{modest_limit_bytes(settings)}B")
    with _connected(modest) as connection:
        yield Engine(connection)


@contextmanager
def open_session(
    settings: QuerySettings, files: Iterable[TableFiles], *, zone: str = UTC
) -> Iterator["Session"]:
    """Open an engine for one session. See `Engine.session`."""
    with open_engine(settings) as engine, engine.session(files, zone=zone) as session:
        yield session


@contextmanager
def open_locked(
    settings: QuerySettings, files: Iterable[TableFiles]
) -> Iterator["StatementSession"]:
    """Open a DuckDB for one statement of a user, locked down to these files, in UTC.

    Raises:
        ConfigError: files that DuckDB cannot access.
    """
    plans = list(files)
    check_paths(plans)
    with _connected(settings) as connection:
        allowed = [
            each for plan in plans for path in plan.paths for each in {path, path_pattern(path)}
        ]
        with translated():
            connection.execute(f"SET TimeZone = {literal(UTC)}")
            # Keeps types that other readers lack: the rows go to another engine.
            connection.execute("SET arrow_lossless_conversion = true")
            open_s3(connection, plans)
            connection.execute(f"SET allowed_paths = [{', '.join(map(literal, allowed))}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            for plan in plans:
                connection.execute(f"CREATE VIEW {quoted(plan.kind.name)} AS {files_query(plan)}")
        with _interruptible(connection):
            yield StatementSession(connection, UTC)


@contextmanager
def open_sql(
    request: Request, *, when_ready: Callable[[], None] = lambda: None
) -> Iterator[Answer]:
    """Run a user's statement in separate engines.

    The statement runs in UTC; only its answer is shown in the requested zone.
    `when_ready` is called when both engines are open, before the statement is parsed.

    Raises:
        UsageError: it is not one statement that only reads, or uses an unknown name.
        K2Error: the statement failed, possibly while the answer is read.
    """
    with (
        open_locked(request.settings, request.files) as reading,
        open_session(request.settings, [], zone=request.zone) as writing,
    ):
        when_ready()
        answer = reading.ask_sql(request.text)
        rows = _Handover(answer if request.limit is None else answer.first(request.limit))
        try:
            yield writing.ask_rows(rows.reader())
        except BaseException as exc:
            if rows.failure is not None:
                raise rows.failure from exc
            raise


class _Handover:
    """Streams rows from one engine to another, and keeps the error of the first."""

    def __init__(self, answer: Answer) -> None:
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


@contextmanager
def _connected(settings: QuerySettings) -> Iterator[duckdb.DuckDBPyConnection]:
    """Connect to a new DuckDB; on exit close it and remove its spilled data."""
    with tempfile.TemporaryDirectory(prefix="k2-query-") as spill:
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
        with closing(duckdb.connect(":memory:", config=config)) as connection:
            yield connection


@contextmanager
def _interruptible(connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        connection.interrupt()  # otherwise closing it waits for the query to end
        raise


class Engine:
    """An open DuckDB. Created by `open_engine`; any thread may open a session."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection = connection

    @contextmanager
    def session(self, files: Iterable[TableFiles], *, zone: str = UTC) -> Iterator["Session"]:
        """Open a session with one view per record kind over its files.

        Answers show instants in `zone`, an IANA name.

        Raises:
            ConfigError: files that DuckDB cannot access.
        """
        plans = list(files)
        check_paths(plans)
        with ExitStack() as stack:
            connection = stack.enter_context(closing(self._connection.cursor()))
            with translated():
                connection.execute(f"SET TimeZone = {literal(zone)}")
                for name in open_s3(connection, plans):
                    stack.callback(connection.execute, f"DROP SECRET {name}")
                for plan in plans:
                    view = f"{quoted(plan.kind.name)} AS {files_query(plan)}"
                    connection.execute(f"CREATE TEMP VIEW {view}")
            stack.enter_context(_interruptible(connection))
            yield Session(connection, zone)


class Session(Connection):
    """A connection that sees the files of one plan; gives one answer at a time."""

    def ask(self, question: Question) -> Answer:
        """Check one of k2's own questions."""
        with translated():
            return Answer(session=self, question=question, is_from_user=False)

    def ask_rows_of(
        self, kind: RecordKind, selection: Selection, *, piece_rows: int = PIECE_ROWS
    ) -> LargeAnswer:
        """Check a selection of many rows, which are sorted and written in pieces."""
        with translated():
            return LargeAnswer(self, kind, selection, piece_rows=piece_rows)

    def ask_with(self, question: Question, name: str, rows: pa.Table) -> Answer:
        """Check one of k2's own questions about existing rows, which are a view of this name."""
        with translated():
            self.connection.register(name, rows)
        return self.ask(question)

    def ask_rows(self, rows: pa.Table | pa.RecordBatchReader) -> Answer:
        """Build an answer from existing rows; those of a reader are read while it is written."""
        with translated():
            self.connection.register(_ANSWER, rows)
        return self.ask(Question(f"FROM {_ANSWER}"))


class StatementSession(Session):
    """A session of a locked engine, for user SQL. Created by `open_locked`."""

    def ask_sql(self, text: str) -> Answer:
        """Check a user's statement.

        Raises:
            UsageError: it is not one statement that only reads, or uses an unknown name.
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
            return Answer(session=self, question=Question(f"FROM {_ANSWER}"), is_from_user=True)

    def _create_view(self, statement: duckdb.Statement) -> None:
        try:
            relation = self.connection.sql(statement)
        except MISTAKES:
            self.connection.execute(statement)  # fails in the same way, and shows where
            raise
        relation.create_view(_ANSWER)
