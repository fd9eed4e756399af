"""k2 query: answers out of the tables."""

import re
import sys
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from msgspec.structs import replace
from typer.core import TyperCommand

from k2cli.commands.known import remember_series, remember_tables
from k2cli.commands.options import (
    DURATION,
    ColumnsOpt,
    EndOpt,
    ExchangeOpt,
    ForceOpt,
    FormatOpt,
    HomeOpt,
    LimitOpt,
    Order,
    OrderOpt,
    OutputOpt,
    StartOpt,
    SymbolOpt,
    TzOpt,
    each_kind,
    output_zone,
    settings,
    split_names,
    symbol_names,
)
from k2cli.commands.output import Output, choose_output, note
from k2cli.config import Duration, Settings
from k2cli.errors import NotFound, UsageError

if TYPE_CHECKING:
    from k2cli.query.questions import Selection
    from k2cli.records import RecordKind, TableFiles
    from k2cli.storage.lake import Lake

# No option has a space before its value, or anything but a letter after the dashes.
_COMMENT: Final = re.compile(r"\A--(?=[^\s=]*\s|[^A-Za-z]).*", re.DOTALL)

query_app = typer.Typer(name="query", help="Answers out of the tables.", no_args_is_help=True)


@each_kind(
    query_app,
    "Print {kind} by time.\n\n"
    "Example: k2 query {kind} --symbol BTCUSDT --start -2h --order desc --limit 20",
)
def rows(
    context: typer.Context,
    *,
    symbol: SymbolOpt = None,
    exchange: ExchangeOpt = None,
    start: StartOpt = None,
    end: EndOpt = None,
    columns: ColumnsOpt = None,
    order: OrderOpt = Order.ASC,
    limit: LimitOpt = None,
    tz: TzOpt = None,
    fmt: FormatOpt = None,
    output: OutputOpt = None,
    force: ForceOpt = False,
    home: HomeOpt = None,
) -> None:
    """Print the rows of the record kind that the command is named after."""
    from k2cli.query.questions import Selection
    from k2cli.query.timespan import parse_timespan
    from k2cli.records import KINDS

    kind = KINDS[str(context.info_name)]
    out = choose_output(fmt, output, is_forced=force)
    selection = Selection(
        symbols=symbol_names(symbol),
        exchanges=[word.upper() for word in split_names(exchange, "--exchange")],
        span=parse_timespan(start, end, now=datetime.now(UTC)),
        columns=split_names(columns, "--columns"),
        is_descending=order is Order.DESC,
        limit=limit,
    )
    config = settings(home)
    _print_rows(config, kind, selection, out, zone=output_zone(tz, config))


@query_app.command()
def symbols(
    tz: TzOpt = None,
    fmt: FormatOpt = None,
    output: OutputOpt = None,
    force: ForceOpt = False,
    home: HomeOpt = None,
) -> None:
    """Print every symbol, how many trades and quotes there are of it, and from when to when.

    Example: k2 query symbols --format json
    """
    from k2cli.query.engine import open_engine
    from k2cli.query.questions import list_symbols
    from k2cli.storage.lake import open_lake

    out = choose_output(fmt, output, is_forced=force)
    config = settings(home)
    zone = output_zone(tz, config)
    with open_lake(config) as lake:
        plans = [lake.plan(kind) for kind in lake.kinds()]
        if not plans:
            raise NotFound(f"there are no tables in {config.home} yet", hint="k2 demo")
        with open_engine(config.query, plans, zone=zone) as engine:
            rows = list_symbols(engine, [plan.kind for plan in plans]).table()
            pairs = zip(rows["exchange"].to_pylist(), rows["symbol"].to_pylist(), strict=True)
            remember_series(config, pairs, is_complete=True)
            out.write(engine.ask_table(rows))


class _SqlCommand(TyperCommand):
    """Takes SQL that starts with a comment for SQL, not for an option."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the command line."""
        return super().parse_args(ctx, [_COMMENT.sub(r" \g<0>", arg) for arg in args])


@query_app.command(cls=_SqlCommand)
def sql(
    statement: Annotated[
        str, typer.Argument(help="DuckDB SQL over `trades` and `quotes`; - reads it from stdin.")
    ],
    tz: TzOpt = None,
    fmt: FormatOpt = None,
    output: OutputOpt = None,
    force: ForceOpt = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            help="Stop when it takes longer; time spent on output is free. 0s: never.",
            show_default="5m, or query.timeout",
            **DURATION,
        ),
    ] = None,
    home: HomeOpt = None,
) -> None:
    """Run a SELECT over the tables. It cannot change anything or read other files.

    It runs in a process of its own, within the limits of the settings under query.

    Example: k2 query sql "select symbol, max(price) from trades group by all"
    """
    from k2cli.query.sandbox import open_sandbox

    out = choose_output(fmt, output, is_forced=force)
    config = settings(home)
    zone = output_zone(tz, config)
    limits = config.query if timeout is None else replace(config.query, timeout=Duration(timeout))
    with open_sandbox() as sandbox:  # first: it starts while the tables are planned
        text = _sql_from_stdin() if statement == "-" else statement
        with sandbox.ask(limits, _plans(config), text, zone=zone) as answer:
            out.write(answer)


def _sql_from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"the SQL on stdin is not UTF-8: {exc}") from exc


def _print_rows(
    config: Settings, kind: "RecordKind", selection: "Selection", out: Output, *, zone: str
) -> None:
    from k2cli.query.engine import open_engine
    from k2cli.query.questions import select_rows
    from k2cli.storage.lake import open_lake

    with open_lake(config) as lake:
        plan = lake.plan(
            kind,
            symbols=selection.symbols,
            exchanges=selection.exchanges,
            start=selection.span.start,
            end=selection.span.end,
        )
        with open_engine(config.query, [plan], zone=zone) as engine:
            answer = select_rows(engine, plan.kind, selection)
            rows = out.write(
                answer,
                is_limited=selection.limit is not None,
                expected=selection.count_of(plan.rows),
                complete="choose with --columns",
            )
        if not rows:
            note_nothing(config, lake, plan.kind, selection)
        remember_tables(config, lake, [kind])


def note_nothing(
    config: Settings, lake: "Lake", kind: "RecordKind", selection: "Selection"
) -> None:
    """Say why a selection of symbols has no rows: what is stored of them, or is like them."""
    from k2cli.query.engine import open_engine
    from k2cli.query.questions import explain_nothing

    if selection.symbols:
        with open_engine(config.query, [lake.plan(kind)]) as engine:
            for line in explain_nothing(engine, kind, selection):
                note(line)


def _plans(config: Settings) -> "list[TableFiles]":
    """Plan all files of every table; one that does not exist yet is empty."""
    from k2cli.records import KINDS, TableFiles
    from k2cli.storage.lake import open_lake

    plans = {
        kind.name: TableFiles(kind=kind, paths=(), columns={}, rows=0) for kind in KINDS.values()
    }
    with suppress(NotFound), open_lake(config) as lake:
        for kind in lake.kinds():
            plans[kind.name] = lake.plan(kind)
    return list(plans.values())
