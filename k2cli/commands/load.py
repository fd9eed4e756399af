"""`k2 load`: load historical files into the tables, safe in cron jobs."""

from pathlib import Path
from typing import Annotated

import typer

from k2cli.commands.groups import AnswerOptions, LogOptions, ServerOptions, takes_groups
from k2cli.commands.load_options import (
    LoadTo,
    ReadingOptions,
    RowTargetOptions,
    ShapeOptions,
    TargetOptions,
)
from k2cli.commands.options import (
    HomeOpt,
    SummaryOpt,
    dry_run_option,
    rejects_option,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.output import Summary
from k2cli.commands.terminal.streams import note
from k2cli.files import STDIN
from k2cli.ingestion.symbols import Market

load_app = typer.Typer(help="Load files into the tables.", no_args_is_help=True)
_HISTORY = [
    *("load", "loaded_at", "path", "layout", "exchange", "symbol", "rows", "duplicates"),
    *("conflicts", "rejects", "size_bytes", "offset_bytes", "digest"),
]
# Columns that a narrow terminal omits, in order.
_HISTORY_DETAILS = [
    *("digest", "offset_bytes", "size_bytes", "layout", "conflicts", "table", "exchange"),
    *("symbol", "duplicates", "rejects"),
]


@load_app.command("csv")
@takes_groups
def load_csv(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, globs or folders: .csv, .csv.gz, .csv.zst, .zip; - is stdin.",
            show_default=False,
        ),
    ],
    reading: ReadingOptions,
    shape: ShapeOptions,
    checksum: Annotated[
        bool, typer.Option("--checksum", help="Verify the .CHECKSUM file beside each file.")
    ] = False,
    follow_appends: Annotated[
        bool,
        typer.Option(
            "--follow-appends",
            help="Load the complete lines that were appended to a file since it was last loaded.",
        ),
    ] = False,
    target: TargetOptions,
    rejects: Annotated[Path | None, rejects_option("rejected lines", "load-csv")] = None,
    log: LogOptions,
    summary: SummaryOpt = Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Load CSV files, each completely or not at all, and only once.

    A file's digest is recorded in the commit with its rows: a second run loads nothing, reports
    this and exits 0. A file with more rejects than allowed is not loaded (exit code 6); the other
    files are. A file that has grown since it was loaded requires --follow-appends or --force. With
    --to kafka a file is one transaction, and every run sends it again.

    Example: k2 load csv BTCUSDT-trades-2026-01-12.zip --layout binance-trades
    """
    from k2cli.commands.load_run import LoadRun
    from k2cli.ingestion.csv.source import read_csv
    from k2cli.pipelines.load.files import SUFFIXES

    is_whole = not follow_appends and target.destination is LoadTo.TABLE
    if follow_appends and target.destination is not LoadTo.TABLE:
        raise typer.BadParameter("only into the table", param_hint="--follow-appends")
    if target.allow_duplicates and not is_whole:
        raise typer.BadParameter(
            "only for whole files, into the table", param_hint="--allow-duplicates"
        )
    if (checksum or follow_appends) and STDIN in paths:
        raise typer.BadParameter("stdin is not a file", param_hint="--checksum or --follow-appends")
    config = settings(home)
    LoadRun(
        config=config,
        files=reading.files(paths, read_csv, SUFFIXES, shape, config.home),
        target=target,
        servers=servers,
        log=log,
        rejects=rejects or config.home / "rejects" / "load-csv.ndjson",
        summary=summary,
        is_checking=checksum,
        is_following=follow_appends,
    ).load()


@load_app.command("parquet")
@takes_groups
def load_parquet(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, globs or folders: .parquet; - is stdin.", show_default=False),
    ],
    reading: ReadingOptions,
    target: TargetOptions,
    rejects: Annotated[Path | None, rejects_option("rejected rows", "load-parquet")] = None,
    log: LogOptions,
    summary: SummaryOpt = Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Load Parquet files with the layouts of CSV files; columns are found by name.

    As with `k2 load csv`, each file is loaded completely or not at all, and only once.

    Example: k2 load parquet mine.parquet -l generic-trades --exchange X --asset-class crypto
    """
    from k2cli.commands.load_run import LoadRun
    from k2cli.ingestion.csv.parquet import read_parquet
    from k2cli.pipelines.load.files import PARQUET_SUFFIXES

    if target.allow_duplicates and target.destination is not LoadTo.TABLE:
        raise typer.BadParameter("only into the table", param_hint="--allow-duplicates")
    config = settings(home)
    LoadRun(
        config=config,
        files=reading.files(paths, read_parquet, PARQUET_SUFFIXES, ShapeOptions(), config.home),
        target=target,
        servers=servers,
        log=log,
        rejects=rejects or config.home / "rejects" / "load-parquet.ndjson",
        summary=summary,
    ).load()


@load_app.command("frames")
@takes_groups
def load_frames(
    *,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Recordings of `k2 stream --record`: files, globs, folders, or - for stdin.",
            show_default=False,
        ),
    ],
    market: Annotated[
        Market | None,
        typer.Option(
            "--market", help="Market of the frames.", show_default="from the names of the files"
        ),
    ] = None,
    target: RowTargetOptions,
    rejects: Annotated[Path | None, rejects_option("rejected frames", "load-frames")] = None,
    log: LogOptions,
    summary: SummaryOpt = Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Load recorded frames as `k2 stream` would, each trade and quote once.

    Rows that are already stored are duplicates, so recordings may be loaded again, or after the
    stream that recorded them. All valid frames are loaded; a damaged recording, or one with more
    rejects than allowed, ends with exit code 6 after that.

    Example: k2 load frames recordings/
    """
    from k2cli.commands.load_frames import FramesRun, choose_recordings

    config = settings(home)
    FramesRun(
        config=config,
        recordings=choose_recordings(paths, market),
        target=target,
        servers=servers,
        log=log,
        rejects=rejects or config.home / "rejects" / "load-frames.ndjson",
        summary=summary,
    ).load()


@load_app.command()
def layouts(
    name: Annotated[
        str | None, typer.Argument(help="Layout to show as TOML.", show_default=False)
    ] = None,
) -> None:
    """List the layouts, or show one as a template for your own.

    Example: k2 load layouts binance-trades > my.toml
    """
    from k2cli.ingestion.csv.layout import layout_names, layout_text

    if name is None:
        output.data("\n".join(layout_names()))
    else:
        output.data(layout_text(name).rstrip())


@load_app.command()
@takes_groups
def history(*, out: AnswerOptions, home: HomeOpt = None) -> None:
    """List the loads, newest first, with id, time, file, and rows stored or skipped.

    Example: k2 load history --format csv
    """
    import pyarrow as pa

    from k2cli.storage.lake import open_lake

    chosen = out.choose()
    with open_lake(settings(home)) as lake:
        logs = [(kind.table, lake.open(kind).loads().select(_HISTORY)) for kind in lake.kinds()]
    loads = [
        log.add_column(0, "table", pa.array([table] * log.num_rows, pa.string()))
        for table, log in logs
    ]
    newest_first = pa.concat_tables(loads).sort_by([("loaded_at", "descending")])
    output.print_rows(chosen, newest_first, details=_HISTORY_DETAILS)


@load_app.command()
def undo(
    load: Annotated[
        str,
        typer.Argument(
            help="A loaded file (its newest load), or an id from `k2 load history`.",
            show_default=False,
            metavar="FILE|LOAD",
        ),
    ],
    dry_run: Annotated[bool, dry_run_option("what would be removed without removing it")] = False,
    summary: SummaryOpt = output.Summary.TEXT,
    home: HomeOpt = None,
) -> None:
    """Undo a load: remove the rows that it stored, so that the file can be loaded again.

    One commit removes the rows and the entry in the history. Rows stored by other loads or streams
    are kept. Rows that a later load skipped as duplicates of these are removed, too: load that file
    again with --force.

    Example: k2 load undo BTCUSDT-trades-2026-01-12.zip
    """
    from k2cli.pipelines.load.history import find_load
    from k2cli.storage.lake import open_lake

    with open_lake(settings(home)) as lake:
        found = find_load(lake, load)
        undone = lake.open(found.kind).undo_load(found.load, is_dry_run=dry_run)
    sums = {
        "table": found.kind.table,
        "load": undone.load,
        "path": undone.path,
        "exchange": found.exchange or "",
        "symbol": found.symbol or "",
        "rows": undone.rows,
        "files": undone.files,
    }
    output.summary(sums, summary, is_data_on_stdout=False)
    if dry_run:
        note("dry run: nothing was changed")
    elif undone.rows and found.has_later_duplicates:
        note("later loads skipped duplicates; if of these rows, load those files with --force")
    if found.others:
        note(
            f"other loads of this path remain: {', '.join(found.others)};"
            " --force loads the lines of all of them that are not stored"
        )
