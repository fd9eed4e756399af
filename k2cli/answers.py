"""Questions about the tables, and their answers: for commands, notebooks and servers.

A `LakeReader` keeps resources that are costly to open, and is safe to use from several threads: the
catalog, a DuckDB for k2's own questions, and the process that runs user SQL. An `Answer` is pinned
to the files of the snapshot that was newest when the question was asked; the query runs when the
answer is read.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

import pyarrow as pa
from msgspec.structs import replace

from k2cli.config import LONGEST_DAYS, Duration, QuerySettings, Settings, load_settings
from k2cli.errors import NotFound, Unavailable, UsageError
from k2cli.query.bars import one_minute_bars
from k2cli.query.questions import (
    HOLES,
    explain_nothing,
    list_gaps,
    list_symbols,
    select_rows,
)
from k2cli.query.selection import Names, Selected, Selection, selection_of
from k2cli.records import KINDS, QUOTES, TRADES, RecordKind, TableFiles
from k2cli.zones import resolve_zone

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

    from k2cli.query.engine import Engine, Session
    from k2cli.query.protocol import AnyAnswer
    from k2cli.query.sandbox import Sandbox
    from k2cli.storage.lake import Lake

_LARGE_ROWS: Final = 1_000_000  # more are sorted in pieces
T = TypeVar("T")
Opening = Callable[[], AbstractContextManager["AnyAnswer"]]


class Answer:
    """The answer to a question. The query runs each time the answer is read."""

    def __init__(self, opening: Opening, check_open: Callable[[], None] = lambda: None) -> None:
        """Prepare; `check_open` raises once the answer must not be read any further."""
        self._opening = opening
        self._check_open = check_open

    def open(self) -> AbstractContextManager["AnyAnswer"]:
        """Check the question, and open its answer for one run."""
        return self._opening()

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Stream the rows with bounded memory; the first batch is empty and has the schema.

        Raises:
            K2Error: the query failed before all rows were read.
        """
        with self.open() as opened:
            for batch in opened.batches():
                yield batch
                self._check_open()

    def arrow(self) -> pa.Table:
        """Read all rows into memory; prices are decimals, times are in UTC or the given zone."""
        return pa.Table.from_batches(self.batches())

    def polars(self) -> "pl.DataFrame":
        """Read all rows into a polars DataFrame."""
        import polars as pl  # noqa: PLC0415

        frame = pl.from_arrow(self.arrow())
        assert isinstance(frame, pl.DataFrame)
        return frame

    def pandas(self) -> "pd.DataFrame":
        """Read all rows into a pandas DataFrame; decimals become `decimal.Decimal`.

        Raises:
            UsageError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise UsageError("pandas is not installed", hint="pip install pandas")
        frame: pd.DataFrame = self.arrow().to_pandas()
        return frame

    def write(
        self, path: str | os.PathLike[str], *, format: str | None = None, force: bool = False
    ) -> int:
        """Write all rows to a file, completely or not at all; return how many.

        The format follows the suffix (.parquet, .csv, .csv.gz, ...) unless one is given.

        Raises:
            UsageError: the file exists and `force` is off, or its format is unclear.
        """
        from k2cli.query.destination import choose_file  # noqa: PLC0415
        from k2cli.query.formats import Format  # noqa: PLC0415

        try:
            chosen = None if format is None else Format(format)
        except ValueError as exc:
            known = ", ".join(each for each in Format if each is not Format.TABLE)
            raise UsageError(f"format {format!r} is unknown", hint=f"choose {known}") from exc
        file = choose_file(Path(path), chosen, is_forced=force)
        with self.open() as opened:
            return file.write(opened)


class LakeReader:
    """Answers questions about the tables of one lake. Created by `open_reader` and
    `k2cli.open_lake`.

    All methods raise:
        NotFound: no tables exist yet.
        Unavailable: the catalog or the store does not answer.
    """

    def __init__(self, settings: Settings, *, sandbox: "Sandbox | None" = None) -> None:
        self.settings = settings
        self._stack = ExitStack()
        self._lock = RLock()
        self._is_closed = False
        self._open: dict[str, Any] = {} if sandbox is None else {"sandbox": sandbox}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all resources; answers can no longer be read."""
        with self._lock:
            self._is_closed = True
            self._open.clear()
        self._stack.close()

    def trades(self, *, tz: str = "UTC", **selected: Unpack[Selected]) -> Answer:
        """Query trades by time, as `k2 query trades` does.

        Parameters, without which all rows are selected:
            symbol, exchange: names, comma-separated or a list
            start, end: from `start` to before `end`, as a datetime with a time zone, or text such
                as "-1d" and "2026-01-13"
            columns: names, comma-separated or a list
            order: by time, "asc" (the default) or "desc"
            limit: the maximum number of rows
            tz: the time zone in which the answer shows times, an IANA name

        Raises:
            UsageError: an unknown parameter, or an invalid name, time or column.
        """
        return self.rows(TRADES, selection_of(**selected), zone=_zone(tz))

    def quotes(self, *, tz: str = "UTC", **selected: Unpack[Selected]) -> Answer:
        """Query quotes by time; the parameters are those of `trades`."""
        return self.rows(QUOTES, selection_of(**selected), zone=_zone(tz))

    def symbols(self, *, tz: str = "UTC") -> Answer:
        """List the symbols: exchange, symbol, kind, rows, first_time, last_time."""
        plans = [self.lake.open(kind).plan() for kind in self.lake.kinds()]
        if not plans:
            raise NotFound(f"no tables in {self.settings.home} yet", hint="k2 demo")
        question = list_symbols([plan.kind for plan in plans])
        return self.ask(plans, lambda session: session.ask(question), _zone(tz))

    def gaps(
        self, *, symbol: Names | None = None, exchange: Names | None = None, tz: str = "UTC"
    ) -> Answer:
        """List the gaps in the trade ids, as `k2 query gaps` does: exchange, symbol, first_id,
        last_id, missing, time_before, time_after, reason, found, last_attempt, attempts.

        A gap is a range of ids between stored ones. Its reason is null if no stream noted it.
        """
        return self.gaps_of(selection_of(symbol=symbol, exchange=exchange), zone=_zone(tz))

    def gaps_of(
        self,
        selection: Selection,
        *,
        zone: str = "UTC",
        searched: set[tuple[str, str]] | None = None,
    ) -> Answer:
        """List the gaps of the selected symbols.

        The exchanges and symbols that have trades with ids are added to `searched`.
        """

        def is_selected(series: tuple[str, str]) -> bool:
            exchange, symbol = series
            is_chosen = (not selection.symbols or symbol in selection.symbols) and (
                not selection.exchanges or exchange in selection.exchanges
            )
            if is_chosen and searched is not None:
                searched.add((exchange, symbol))
            return is_chosen

        table = self.lake.open(TRADES)
        holes = table.holes(is_selected)
        names = {name: holes[name].unique().to_pylist() for name in ("symbol", "exchange")}
        plan = table.plan(symbols=names["symbol"], exchanges=names["exchange"])
        if not holes.num_rows:
            plan = TableFiles(kind=plan.kind, paths=(), columns={}, rows=0)
        question = list_gaps(plan.kind)
        return self.ask([plan], lambda session: session.ask_with(question, HOLES, holes), zone)

    def bars(self, selection: Selection) -> Answer:
        """Query the one-minute bars of the selected trades. See `one_minute_bars`."""
        question = one_minute_bars(selection)
        plan = self.plan(TRADES, selection)
        return self.ask([plan], lambda session: session.ask(question))

    def sql(self, statement: str, *, timeout_s: float | None = None, tz: str = "UTC") -> Answer:
        """Query with a SELECT over `trades` and `quotes`, which cannot change or read anything
        else.

        It runs in a separate process, within the limits of the `query` settings, in UTC; times of
        the answer are shown in `tz`. A table that does not exist yet is empty.

        Raises:
            UsageError: a parameter has a wrong type; on reading: the statement does not only read,
                or uses an unknown name.
            Unavailable: on reading: it exceeded its time or memory limit.
        """
        _check_text(statement)
        limits = self.settings.query
        if timeout_s is not None:
            limits = replace(limits, timeout=_timeout(timeout_s))
        zone = _zone(tz)

        @contextmanager
        def opening() -> Iterator["AnyAnswer"]:
            sandbox = self._sandbox  # first, because it starts while the tables are planned
            with sandbox.ask(limits, self._all_files(), statement, zone=zone) as answer:
                try:
                    yield answer
                except Unavailable as exc:  # closing ended the process
                    if self._is_closed:
                        raise _closed() from exc
                    raise

        return Answer(opening, self._check_open)

    def rows(self, kind: RecordKind, selection: Selection, *, zone: str = "UTC") -> Answer:
        """Query the rows of a selection, by time."""
        return self.rows_of(self.plan(kind, selection), selection, zone=zone)

    def rows_of(self, plan: TableFiles, selection: Selection, *, zone: str = "UTC") -> Answer:
        """Query the rows of a selection with an existing plan."""
        most = plan.rows if selection.limit is None else min(plan.rows, selection.limit)
        if most > _LARGE_ROWS:
            return self.ask([plan], lambda s: s.ask_rows_of(plan.kind, selection), zone)
        question = select_rows(plan.kind, selection)
        return self.ask([plan], lambda session: session.ask(question), zone)

    def plan(self, kind: RecordKind, selection: Selection) -> TableFiles:
        """Find the files that can hold rows of a selection."""
        return self.lake.open(kind).plan(
            symbols=selection.symbols,
            exchanges=selection.exchanges,
            start=selection.span.start,
            end=selection.span.end,
        )

    def explain_nothing(self, kind: RecordKind, selection: Selection) -> Sequence[str]:
        """Explain why a selection of symbols has no rows: the stored times, or similar names."""
        if not selection.symbols:
            return []
        with self.engine.session([self.lake.open(kind).plan()]) as session:
            symbols = session.ask(list_symbols([kind])).table().to_pylist()
        return explain_nothing(symbols, kind, selection)

    @property
    def lake(self) -> "Lake":
        """The open catalog."""
        from k2cli.storage.lake import open_lake  # noqa: PLC0415  SQL may need no table

        return self._opened("lake", lambda: open_lake(self.settings))

    @property
    def engine(self) -> "Engine":
        """The DuckDB of k2's own questions."""
        from k2cli.query.engine import open_engine  # noqa: PLC0415  27 MB

        return self._opened("engine", lambda: open_engine(self.settings.query))

    @property
    def _sandbox(self) -> "Sandbox":
        from k2cli.query.sandbox import open_sandbox  # noqa: PLC0415

        return self._opened("sandbox", open_sandbox)

    def _check_open(self) -> None:
        if self._is_closed:
            raise _closed()

    def _opened(self, name: str, opening: Callable[[], AbstractContextManager[T]]) -> T:
        with self._lock:
            self._check_open()
            if name not in self._open:
                self._open[name] = self._stack.enter_context(opening())
            opened: T = self._open[name]
            return opened

    def ask(
        self,
        plans: Sequence[TableFiles],
        ask: Callable[["Session"], "AnyAnswer"],
        zone: str = "UTC",
    ) -> Answer:
        """Build the answer to `ask` in a session over the files of plans."""

        @contextmanager
        def opening() -> Iterator["AnyAnswer"]:
            with self.engine.session(plans, zone=zone) as session:
                yield ask(session)

        return Answer(opening, self._check_open)

    def _all_files(self) -> list[TableFiles]:
        """Plan all files of every table; one that does not exist yet is empty."""
        plans = {
            kind.name: TableFiles(kind=kind, paths=(), columns={}, rows=0)
            for kind in KINDS.values()
        }
        with suppress(NotFound):
            for kind in self.lake.kinds():
                plans[kind.name] = self.lake.open(kind).plan()
        return list(plans.values())


def open_reader(
    home: str | os.PathLike[str] | None = None, *, profile: str | None = None
) -> LakeReader:
    """Open the lake of the settings: environment, k2.toml and profile.

    `home` overrides K2_HOME, the folder of the embedded tables.

    Raises:
        NotFound: no tables exist yet.
        ConfigError: a setting is wrong.
    """
    settings = load_settings(os.environ, home=None if home is None else Path(home), profile=profile)
    reader = LakeReader(settings)
    try:
        reader.lake.kinds()
    except BaseException:
        reader.close()
        raise
    return reader


def answer_of(rows: pa.Table) -> Answer:
    """Build an answer from existing rows, to be written like any other."""

    @contextmanager
    def opening() -> Iterator["AnyAnswer"]:
        from k2cli.query.engine import open_session  # noqa: PLC0415  27 MB

        with open_session(QuerySettings(), []) as session:
            yield session.ask_rows(rows)

    return Answer(opening)


def _closed() -> UsageError:
    return UsageError("the lake is closed", hint="read answers before it is closed")


def _check_text(statement: object) -> None:
    if not isinstance(statement, str):
        raise UsageError(f"the statement {statement!r} is not a str")
    try:
        statement.encode()
    except UnicodeEncodeError as exc:
        raise UsageError(f"the statement {statement!r} cannot be encoded in UTF-8") from exc


def _timeout(seconds: object) -> Duration:
    most = LONGEST_DAYS * 86_400
    if not isinstance(seconds, int | float) or not 0 <= seconds <= most:
        raise UsageError(f"timeout_s {seconds!r} is not a number of seconds from 0 to {most}")
    return Duration(seconds)


def _zone(name: str) -> str:
    if not isinstance(name, str):
        raise UsageError(f"tz {name!r} is not a time zone", hint="write its IANA name, a str")
    return resolve_zone(name, env=os.environ, what="tz")
