"""`k2 table`: inspect, evolve, check and repair the tables.

The module is long because it has a command group as a whole.
"""

import json
from dataclasses import asdict, fields
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.groups import AnswerOptions, takes_groups
from k2cli.commands.options import (
    HomeOpt,
    RegistryOpt,
    SummaryOpt,
    TextOrJson,
    TextOrJsonOpt,
    TimeoutOpt,
    YesOpt,
    checked_file,
    dry_run_option,
    settings,
)
from k2cli.commands.schema.names import Finder
from k2cli.commands.table_compact import compact
from k2cli.commands.table_history import SnapshotCommand, diff, rollback, tag, untag
from k2cli.commands.table_kind import TableArg, kind_of_table
from k2cli.commands.terminal import output
from k2cli.commands.terminal.confirmation import confirm
from k2cli.commands.terminal.fitting import fit_rows
from k2cli.commands.terminal.streams import note, screen_width
from k2cli.errors import BadData, UsageError
from k2cli.iso import iso_utc

if TYPE_CHECKING:
    from k2cli.storage.describe import TableInfo
    from k2cli.storage.repair import Repair

table_app = typer.Typer(help="Inspect, evolve, check and repair the tables.", no_args_is_help=True)


@table_app.command("list")
@takes_groups
def list_tables(*, out: AnswerOptions, home: HomeOpt = None) -> None:
    """List the tables with rows, files, size, snapshots and the last commit.

    Example: k2 table list --format json
    """
    import pyarrow as pa

    from k2cli.storage.lake import open_lake

    chosen = out.choose()
    with open_lake(settings(home)) as lake:
        infos = [lake.open(kind).describe() for kind in lake.kinds()]
    names = ("kind", "name", "rows", "files", "size_bytes", "snapshots", "last_commit", "location")
    rows = [{name: getattr(info, name) for name in names} for info in infos]
    details = ("location", "name", "size_bytes", "files", "snapshots")
    output.print_rows(chosen, pa.Table.from_pylist(rows), details=details)


@table_app.command()
def describe(
    table: TableArg,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    python: Annotated[
        bool,
        typer.Option(
            "--python",
            help="Print Python code that reads the table without k2: pyiceberg, DuckDB, polars, "
            "pandas.",
        ),
    ] = False,
    home: HomeOpt = None,
) -> None:
    """Describe a table: columns with their meaning, partitions, order, size, properties.

    Example: k2 table describe trades --python
    """
    from k2cli.storage.lake import open_lake

    kind = kind_of_table(table)
    if python and fmt is TextOrJson.JSON:
        raise UsageError("--python prints code, not JSON", hint="omit --format")
    with open_lake(settings(home)) as lake:
        if python:
            output.data(lake.open(kind).reading_code())
            return
        info = lake.open(kind).describe()
    if fmt is TextOrJson.JSON:
        output.data(json.dumps(asdict(info), default=str))
    else:
        _print_description(info)


@table_app.command()
@takes_groups
def snapshots(
    *,
    table: TableArg,
    out: AnswerOptions,
    home: HomeOpt = None,
) -> None:
    """List the snapshots that a table keeps, newest first, with the branches and tags on them.

    Example: k2 table snapshots trades
    """
    import pyarrow as pa

    from k2cli.storage.describe import SnapshotInfo
    from k2cli.storage.lake import open_lake

    chosen = out.choose()
    kind = kind_of_table(table)
    with open_lake(settings(home)) as lake:
        infos = lake.open(kind).snapshots()
    rows = [{**asdict(info), "refs": ",".join(info.refs)} for info in infos]
    none = {field.name: pa.array([], pa.string()) for field in fields(SnapshotInfo)}
    shown = pa.Table.from_pylist(rows) if rows else pa.table(none)
    details = ("run", "total_files", "operation", "refs", "total_rows")
    output.print_rows(chosen, shown, details=details)


table_app.command(cls=SnapshotCommand)(diff)
table_app.command(cls=SnapshotCommand)(tag)
table_app.command()(untag)
table_app.command(cls=SnapshotCommand)(rollback)


@table_app.command()
def evolve(
    table: TableArg,
    schema: Annotated[
        str | None,
        typer.Option(
            "--schema",
            help="The newer schema: FILE.avsc, - or SUBJECT@VERSION.",
            show_default="the built-in schema",
        ),
    ] = None,
    dry_run: Annotated[bool, dry_run_option("what would change without changing it")] = False,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Evolve a table to a newer schema: add optional columns and widen numbers.

    Prints the changes, one line per column. No data file is rewritten: existing rows have null in
    new columns. `k2 consume` fills them from then on, even if it is already running.

    Example: k2 table evolve trades --schema market.crypto.trades-value --dry-run
    """
    from k2cli.storage.lake import open_lake

    kind = kind_of_table(table)
    finder = Finder(home=home, registry=registry, timeout_s=timeout)
    avro = kind.avro if schema is None else finder.find(schema).avro
    with open_lake(settings(home)) as lake:
        changes = lake.open(kind).evolve(avro, is_dry_run=dry_run)
    for change in changes:
        output.data(change)
    if not changes:
        note(f"table {kind.table} is already up to date")
    elif dry_run:
        note("dry run: nothing was changed")


class KeepName(StrEnum):
    """Which row of an id to keep if values differ."""

    FIRST = "first"
    NEWEST = "newest"


@table_app.command()
def dedupe(
    table: TableArg,
    dry_run: Annotated[bool, dry_run_option("what would be removed without removing it")] = False,
    keep: Annotated[
        KeepName | None,
        typer.Option(
            "--keep",
            help="Keep only the first or newest received row of an id with different values.",
            show_default="keep all",
        ),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="File for ids with different values.",
            show_default="rejects/table-dedupe.ndjson in the home folder; none with --dry-run",
            callback=checked_file,
        ),
    ] = None,
    summary: SummaryOpt = output.Summary.TEXT,
    home: HomeOpt = None,
) -> None:
    """Remove records that a table stores more than once, one commit per day.

    Of identical rows, only the one received first is kept. Rows of one id with different values are
    counted as conflicts, and the first 100 are written to the rejects file; all of them are kept
    unless --keep is given. With --dry-run the rejects file is only written if --rejects is given.

    Example: k2 table dedupe trades --dry-run
    """
    from k2cli.pipelines.dedupe import dedupe_table
    from k2cli.storage.duplicates import Keep

    kind, config = kind_of_table(table), settings(home)
    chosen = Keep(keep) if keep else None
    done = dedupe_table(config, kind, chosen, rejects=rejects, is_dry_run=dry_run)
    if done.examples:
        see = f"see {done.rejects}" if done.rejects else "use --rejects FILE to list them"
        note(f"{done.examples[0]}; {see}{'' if keep else ', and --keep first or --keep newest'}")
    output.summary(asdict(done.totals), summary, is_data_on_stdout=False)
    if dry_run:
        note("dry run: nothing was changed")


table_app.command()(compact)


@table_app.command()
@takes_groups
def check(
    *,
    table: TableArg,
    out: AnswerOptions,
    home: HomeOpt = None,
) -> None:
    """Read all files of a table and list damaged or missing ones.

    Reads the metadata and the data files of every snapshot that the table keeps, a row group at a
    time, and verifies page checksums, sizes and row counts. Exit code 6 if anything is damaged.
    Queries do not verify checksums.

    Example: k2 table check trades
    """
    import pyarrow as pa

    from k2cli.storage.damage import Damage
    from k2cli.storage.lake import open_lake

    chosen = out.choose()
    kind = kind_of_table(table)
    with open_lake(settings(home)) as lake:
        found = lake.check(kind)
    rows = [asdict(each) for each in found.damage]
    none = {field.name: pa.array([], pa.string()) for field in fields(Damage)}
    shown = pa.Table.from_pylist(rows) if rows else pa.table(none)
    output.print_rows(chosen, shown, details=("kind", "is_current", "snapshots"))
    note(f"intact: {found.files:,} data files, {found.rows:,} rows")
    if rows:
        raise BadData(
            f"damaged files in table {kind.table}: {len(rows):,}",
            hint=f"k2 table repair {kind.name} --dry-run",
        )


@table_app.command()
def repair(
    table: TableArg,
    dry_run: Annotated[
        bool, dry_run_option("what would be lost without changing anything")
    ] = False,
    yes: YesOpt = False,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    home: HomeOpt = None,
) -> None:
    """Restore the newest intact state of a table with damaged files.

    Finds the newest metadata file that is intact with all files it refers to, shows which commits
    would be lost, and makes it the current one. Positions of streams and consumers are restored
    with it, so lost data is read again if the source still has it. No file is deleted. Damaged
    older snapshots that are not needed are dropped.

    Only for the embedded catalog and other SQL catalogs.

    Example: k2 table repair trades --dry-run
    """
    from k2cli.storage.lake import open_lake

    kind = kind_of_table(table)
    with open_lake(settings(home)) as lake:
        plan = lake.plan_repair(kind)
        output.data(
            json.dumps(asdict(plan), default=str)
            if fmt is TextOrJson.JSON
            else "\n".join(_repair_lines(plan))
        )
        if not plan.damaged and not plan.expired:
            note(f"table {kind.table} is intact: nothing to repair")
        elif dry_run:
            note("dry run: nothing was changed")
        else:
            confirm(f"repair table {kind.table}?", is_confirmed=yes)
            lake.repair(kind, plan)
            note(f"table {kind.table} has {plan.rows:,} rows")


@table_app.command()
def relocate(
    dry_run: Annotated[
        bool, dry_run_option("what would be done without changing anything")
    ] = False,
    home: HomeOpt = None,
) -> None:
    """Update the tables of a moved or copied home folder to its new path.

    Only metadata is written, in all tables or in none; if it is interrupted, run it again. A copy
    is then independent of the original.

    Example: k2 table relocate --home /data/k2
    """
    from k2cli.storage.lake import open_lake

    with open_lake(settings(home), is_relocating=True) as lake:
        moved = lake.relocate(is_dry_run=dry_run)
    for each in moved:
        output.data(f"{each.name}: {each.old_home} -> {each.new_home}")
    if not moved:
        note("the tables are where the catalog expects them: nothing to relocate")
    elif dry_run:
        note("dry run: nothing was changed")


def _repair_lines(plan: "Repair") -> list[str]:
    lines = [
        f"damaged  {fault.kind} {fault.path}: {fault.reason}"
        for fault in dict.fromkeys(fault for each in plan.damaged for fault in each.faults)
    ]
    lines.append(f"intact   {plan.chosen}: {iso_utc(plan.written_at)}, {plan.rows:,} rows")
    lines += [
        f"lost     commit {each.snapshot_id}: {iso_utc(each.committed_at)}, "
        f"{each.added_rows:,} rows added"
        for each in plan.lost
    ]
    if plan.left_files:
        lines.append(
            f"unused   {plan.left_files:,} data files, {plan.left_rows:,} rows: not in that state,"
            " and not deleted"
        )
    lines += [
        f"dropped  older snapshots with {fault.kind} {fault.path}: {fault.reason}"
        for fault in plan.history
    ]
    return lines


def _print_description(info: "TableInfo") -> None:
    shown = [field.name for field in fields(info) if field.name not in ("columns", "properties")]
    width = max(len(name) for name in shown)
    lines = [f"{name:{width}}  {_text(getattr(info, name))}" for name in shown]
    columns = [
        [str(number), name, of, "required" if is_required else "optional", doc]
        for number, name, of, is_required, doc in info.columns
    ]
    names = ["id", "name", "type", "need", "doc"]
    screen = screen_width()
    rows, fit = fit_rows(names, columns, screen and screen - 2, texts=names[1:], details=["need"])
    lines += ["", "columns", *(f"  {row}" for row in rows[1:])]
    lines += ["", "properties"]
    lines += [f"  {key} = {value}" for key, value in sorted(info.properties.items())]
    output.data("\n".join(lines))
    if missing := fit.note("--format json shows everything"):
        note(missing)


def _text(value: object) -> str:
    match value:
        case int():
            return f"{value:,}"
        case datetime():
            return iso_utc(value)
        case _:
            return str(value)
