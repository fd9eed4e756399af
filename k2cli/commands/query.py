"""`k2 query`: query the tables."""

import re
import sys
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer.core import TyperCommand

from k2cli.commands.groups import AnswerOptions, SelectionOptions, SeriesOptions, takes_groups
from k2cli.commands.known import remember_series, remember_tables
from k2cli.commands.options import (
    DURATION,
    ColumnsOpt,
    HomeOpt,
    Order,
    OrderOpt,
    TzOpt,
    each_kind,
    output_zone,
    settings,
)
from k2cli.commands.terminal.output import Output
from k2cli.commands.terminal.streams import note
from k2cli.errors import BadData, NotFound, UsageError
from k2cli.symbols import join_symbol

if TYPE_CHECKING:
    from k2cli.answers import LakeReader
    from k2cli.query.selection import Selection
    from k2cli.records import RecordKind

# No option has a space before its value, or anything but a letter after the dashes.
_COMMENT: Final = re.compile(r"\A--(?=[^\s=]*\s|[^A-Za-z]).*", re.DOTALL)

query_app = typer.Typer(name="query", help="Query the tables.", no_args_is_help=True)


@each_kind(
    query_app,
    "Print {kind} by time.\n\n"
    "Example: k2 query {kind} --symbol BTCUSDT --start -2h --order desc --limit 20",
)
@takes_groups
def rows(
    context: typer.Context,
    *,
    selecting: SelectionOptions,
    columns: ColumnsOpt = None,
    order: OrderOpt = Order.ASC,
    tz: TzOpt = None,
    output: AnswerOptions,
    home: HomeOpt = None,
) -> None:
    """Print the rows of the record kind in the command's name."""
    from k2cli.answers import LakeReader
    from k2cli.records import KINDS

    kind = KINDS[str(context.info_name)]
    out = output.choose()
    selection = selecting.select(columns=columns, order=order.value)
    config = settings(home)
    zone = output_zone(tz, config)
    with LakeReader(config) as reader:
        print_rows(reader, kind, selection, out, zone=zone)


@query_app.command()
@takes_groups
def symbols(
    *,
    tz: TzOpt = None,
    output: AnswerOptions,
    home: HomeOpt = None,
) -> None:
    """Print every symbol with its number of trades and quotes, first and last time.

    Example: k2 query symbols --format json
    """
    from k2cli.answers import LakeReader

    out = output.choose()
    config = settings(home)
    zone = output_zone(tz, config)
    with LakeReader(config) as reader:
        rows = reader.symbols().arrow()
        pairs = zip(rows["exchange"].to_pylist(), rows["symbol"].to_pylist(), strict=True)
        remember_series(config, pairs, is_complete=True)
        out.write(reader.ask([], lambda session: session.ask_rows(rows), zone))


@query_app.command()
@takes_groups
def gaps(
    *,
    selecting: SeriesOptions,
    is_failing: Annotated[
        bool, typer.Option("--fail-on-gaps", help="End with exit code 6 if there are gaps.")
    ] = False,
    tz: TzOpt = None,
    output: AnswerOptions,
    home: HomeOpt = None,
) -> None:
    """Print the gaps in the trade ids: missing ids between stored ones, per symbol.

    With the times of the trades around each gap, and, if k2 stream found it, why it is open and
    when k2 last asked the exchange for it.

    Example: k2 query gaps --symbol BTCUSDT --fail-on-gaps
    """
    from k2cli.answers import LakeReader
    from k2cli.query.selection import selection_of

    out = output.choose()
    selection = selection_of(symbol=selecting.symbol, exchange=selecting.exchange, prefix="--")
    config = settings(home)
    zone = output_zone(tz, config)
    searched: set[tuple[str, str]] = set()
    with LakeReader(config) as reader:
        found = out.write(reader.gaps_of(selection, zone=zone, searched=searched))
    if unknown := _not_searched(selection, searched):
        error = NotFound(
            f"no trades with ids of {', '.join(unknown)}: gaps cannot be found",
            hint="k2 query symbols lists what is stored",
        )
        if is_failing and not found:
            raise error
        note(str(error))
    if found and is_failing:
        raise BadData(
            f"{found:,} gaps in the trade ids" if found > 1 else "1 gap in the trade ids",
            hint="k2 stream fills gaps; or load the exchange's dumps with k2 load csv",
        )


def _not_searched(selection: "Selection", searched: set[tuple[str, str]]) -> list[str]:
    """Return the selected symbols, or else exchanges, of which nothing was searched for gaps."""
    stored = {join_symbol(symbol) for _, symbol in searched}
    unknown = {join_symbol(symbol): symbol for symbol in selection.symbols}
    if unknown:
        return [symbol for joined, symbol in unknown.items() if joined not in stored]
    return sorted({*selection.exchanges} - {exchange for exchange, _ in searched})


class _SqlCommand(TyperCommand):
    """Parses SQL that starts with a comment as SQL, not as an option."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the command line."""
        return super().parse_args(ctx, [_COMMENT.sub(r" \g<0>", arg) for arg in args])


@query_app.command(cls=_SqlCommand)
@takes_groups
def sql(
    *,
    statement: Annotated[
        str, typer.Argument(help="DuckDB SQL over `trades` and `quotes`; - reads it from stdin.")
    ],
    tz: TzOpt = None,
    output: AnswerOptions,
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            help="Stop after this time, not counting output (0s: no limit).",
            show_default="5m, or query.timeout",
            **DURATION,
        ),
    ] = None,
    home: HomeOpt = None,
) -> None:
    """Run a SELECT over the tables. It cannot change anything or read other files.

    It runs in a separate process, within the limits of the query settings.

    Example: k2 query sql "select symbol, max(price) from trades group by all"
    """
    from k2cli.query.sandbox import open_sandbox

    out = output.choose()
    config = settings(home)
    zone = output_zone(tz, config)
    with open_sandbox() as sandbox:  # first, because it starts while the rest is imported
        text = _sql_from_stdin() if statement == "-" else statement
        from k2cli.answers import LakeReader

        with LakeReader(config, sandbox=sandbox) as reader:
            out.write(reader.sql(text, timeout_s=timeout, tz=zone))


def _sql_from_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as exc:
        raise UsageError(f"the SQL on stdin is not UTF-8: {exc}") from exc


def print_rows(
    reader: "LakeReader", kind: "RecordKind", selection: "Selection", out: Output, *, zone: str
) -> None:
    """Print the rows of a selection, or why there are none."""
    plan = reader.plan(kind, selection)
    rows = out.write(
        reader.rows_of(plan, selection, zone=zone),
        is_limited=selection.limit is not None,
        expected=selection.count_of(plan.rows),
        complete="choose with --columns",
    )
    if not rows:
        note_nothing(reader, plan.kind, selection)
    remember_tables(reader.settings, reader.lake, [kind])


def note_nothing(reader: "LakeReader", kind: "RecordKind", selection: "Selection") -> None:
    """Explain why a selection of symbols has no rows."""
    for line in reader.explain_nothing(kind, selection):
        note(line)
