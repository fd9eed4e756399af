"""`k2 table compact`: fewer, sorted files."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from typing import TYPE_CHECKING, Annotated, Final

import typer

from k2cli.commands.options import DURATION, SIZE, HomeOpt, SummaryOpt, dry_run_option, settings
from k2cli.commands.table_kind import kind_of_table
from k2cli.commands.terminal import output
from k2cli.commands.terminal.streams import error, note
from k2cli.commands.verify import parse_day
from k2cli.errors import UsageError
from k2cli.kinds import KindName

if TYPE_CHECKING:
    from k2cli.records import RecordKind
    from k2cli.storage.compactplan import DayPlan

_MB: Final = 1_000_000


def compact(
    table: Annotated[
        str | None,
        typer.Argument(
            help=f"{' or '.join(KindName)}, or a table's full name.", show_default="all tables"
        ),
    ] = None,
    day: Annotated[
        date | None,
        typer.Option(
            "--day",
            help="Only this day, UTC: 2026-01-13, yesterday or today.",
            parser=parse_day,
            metavar="DAY",
            show_default="all days",
        ),
    ] = None,
    older_than: Annotated[
        float | None,
        typer.Option(
            "--older-than",
            help="Only days that have been over for this long.",
            show_default="all days",
            **DURATION,
        ),
    ] = None,
    target_size: Annotated[
        int | None,
        typer.Option(
            "--target-size", help="Size of the files written.", show_default="128MB", **SIZE
        ),
    ] = None,
    dry_run: Annotated[
        bool, dry_run_option("what would be done without changing anything")
    ] = False,
    summary: SummaryOpt = output.Summary.TEXT,
    home: HomeOpt = None,
) -> None:
    """Replace many small files by fewer, sorted ones with the same rows, one commit per day.

    A day that has been over for an hour is sorted as a whole, once. Of the running day, and of rows
    that arrived late, at least 8 files below 32 MB are packed into larger ones. Streams, loads and
    queries go on meanwhile. Old files remain until their snapshots expire.

    A day with a damaged or missing file is left unchanged, with exit code 6 after the others. Only
    one compaction of a table runs at a time.

    Example: k2 table compact trades --older-than 1h --dry-run
    """
    from k2cli.pipelines.compact import CompactRun
    from k2cli.storage.compaction import TARGET_BYTES
    from k2cli.storage.compactplan import Choice

    if day is not None and older_than is not None:
        raise UsageError("--day and --older-than exclude each other", hint="omit one of them")
    choice = Choice(day=day, older_than_s=older_than, target_bytes=target_size or TARGET_BYTES)
    kinds = [] if table is None else [kind_of_table(table)]
    started = time.monotonic()
    run = CompactRun(
        config=settings(home), on_plan=_show_plan, progress=None if dry_run else _progress
    )
    try:
        run.compact(kinds, choice)
    finally:
        duration_s = round(time.monotonic() - started, 3)
        sums = {**asdict(run.totals), "duration_s": duration_s}
        output.summary(sums, summary, is_data_on_stdout=False)
    if not run.totals.days and not run.faults:
        note("nothing to do: no day has files to compact")
    elif dry_run:
        note("dry run: nothing was changed")
    for fault in run.faults[1:]:
        error(fault)
    if run.faults:
        raise run.faults[0]


def _show_plan(kind: "RecordKind", plan: "DayPlan") -> None:
    saved = f"; at least {plan.saved_bytes / _MB:,.1f} MB less" if plan.saved_bytes else ""
    after = f"{plan.files_after:,} file{'' if plan.files_after == 1 else 's'}"
    note(
        f"{kind.table} {plan.day}: {len(plan.stored):,} files, {plan.rows:,} rows,"
        f" {plan.size_bytes / _MB:,.1f} MB -> about {after}{saved}"
    )


@contextmanager
def _progress(kind: "RecordKind", plan: "DayPlan") -> Iterator[Callable[[int], None]]:
    """Show the progress of a day on a terminal: each row is read once and written once."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeRemainingColumn as Left

    from k2cli.commands.terminal.streams import view_console

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), Left())
    with Progress(*columns, console=view_console(), transient=True) as progress:
        task = progress.add_task(f"{kind.table} {plan.day}", total=2 * plan.rows)
        yield lambda rows: progress.update(task, advance=rows)
