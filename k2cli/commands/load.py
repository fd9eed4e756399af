"""`k2 load`: load historical files into the tables, safe in cron jobs."""

from pathlib import Path
from typing import Annotated

import typer

from k2cli.commands.kafka import produce_options
from k2cli.commands.load_options import (
    AllowDuplicatesOpt,
    AnyTimeOpt,
    AssetClassOpt,
    CurrencyOpt,
    DryRunOpt,
    ExchangeOpt,
    FollowSymlinksOpt,
    ForceLoadOpt,
    LayoutOpt,
    LoadTo,
    MapOpt,
    MarketOpt,
    MaxRejectsOpt,
    ReferenceOpt,
    SymbolOpt,
    TimezoneOpt,
    ToOpt,
    parse_mappings,
)
from k2cli.commands.options import (
    LOG_FILE_KEEP,
    AutoRegisterOpt,
    ForceOpt,
    FormatOpt,
    HomeOpt,
    KafkaOpt,
    LevelOpt,
    LinesOpt,
    LogFileKeepOpt,
    LogFileOpt,
    LogFileSizeOpt,
    MaxRejectBytesOpt,
    OutputOpt,
    RegistryOpt,
    SummaryOpt,
    TimeoutOpt,
    TopicOpt,
    checked_file,
    open_log,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.streams import note
from k2cli.events import Level

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
def load_csv(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files, globs or folders: .csv, .csv.gz, .csv.zst, .zip; - is stdin.",
            show_default=False,
        ),
    ],
    layout: LayoutOpt,
    symbol: SymbolOpt = None,
    exchange: ExchangeOpt = None,
    asset_class: AssetClassOpt = None,
    currency: CurrencyOpt = None,
    market: MarketOpt = None,
    timezone: TimezoneOpt = None,
    reference: ReferenceOpt = None,
    mappings: MapOpt = None,
    columns: Annotated[
        list[str] | None,
        typer.Option(
            "--columns",
            help="Column names, for files without a header.",
            show_default=False,
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            help="Column delimiter: one character, or tab.",
            show_default="from the layout",
        ),
    ] = None,
    decimal: Annotated[
        str | None,
        typer.Option(
            "--decimal", help="Decimal mark: . or a comma.", show_default="from the layout"
        ),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding",
            help="Encoding, such as utf-16, gbk or latin-1.",
            show_default="from the layout, or UTF-8",
        ),
    ] = None,
    skip_lines: Annotated[
        int | None,
        typer.Option(
            "--skip-lines",
            min=0,
            help="Lines to skip before the header or first row.",
            show_default="from the layout",
        ),
    ] = None,
    any_time: AnyTimeOpt = False,
    follow_symlinks: FollowSymlinksOpt = False,
    to: ToOpt = LoadTo.TABLE,
    topic: TopicOpt = None,
    auto_register: AutoRegisterOpt = True,
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
    force: ForceLoadOpt = False,
    allow_duplicates: AllowDuplicatesOpt = False,
    dry_run: DryRunOpt = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="File for rejected lines.",
            show_default="rejects/load-csv.ndjson in the home folder",
            callback=checked_file,
        ),
    ] = None,
    max_rejects: MaxRejectsOpt = "0",
    max_reject_bytes: MaxRejectBytesOpt = None,
    log_format: LinesOpt = None,
    log_level: LevelOpt = Level.INFO,
    log_file: LogFileOpt = None,
    log_file_size: LogFileSizeOpt = None,
    log_file_keep: LogFileKeepOpt = LOG_FILE_KEEP,
    summary: SummaryOpt = output.Summary.TEXT,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
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
    from k2cli.ingestion.csv.layout import load_layout
    from k2cli.ingestion.csv.source import CsvOptions, read_csv
    from k2cli.pipelines.load.files import SUFFIXES, InputFiles

    if follow_appends and (to is not LoadTo.TABLE or dry_run):
        raise typer.BadParameter("only into the table", param_hint="--follow-appends")
    if allow_duplicates and (follow_appends or to is not LoadTo.TABLE or dry_run):
        raise typer.BadParameter(
            "only for whole files, into the table", param_hint="--allow-duplicates"
        )
    if (checksum or follow_appends) and "-" in paths:
        raise typer.BadParameter("stdin is not a file", param_hint="--checksum or --follow-appends")
    config = settings(home)
    form = load_layout(layout).formatted(
        columns=[name.strip() for word in columns or () for name in word.split(",")],
        delimiter=delimiter,
        decimal=decimal,
        encoding=encoding,
        skip_lines=skip_lines,
    )
    files = InputFiles(
        words=paths,
        layout_name=layout,
        layout=form.mapped(*parse_mappings(mappings)),
        options=CsvOptions(
            symbol=symbol,
            exchange=exchange,
            asset_class=asset_class,
            currency=currency,
            market=market,
            timezone=timezone,
            reference=reference,
            is_any_time=any_time,
            home=config.home,
        ),
        read=read_csv,
        suffixes=SUFFIXES,
        is_following=follow_symlinks,
    )
    LoadRun(
        config=config,
        files=files,
        to=None if dry_run else to,
        open_log=lambda stack: open_log(
            stack, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ),
        is_logging=log_format is not None,
        produce=lambda: produce_options(
            config,
            kafka=kafka,
            registry=registry,
            timeout=timeout,
            topic=topic,
            auto_register=auto_register,
        ),
        rejects=rejects or config.home / "rejects" / "load-csv.ndjson",
        max_rejects=max_rejects,
        max_reject_bytes=max_reject_bytes,
        summary=summary,
        is_checking=checksum,
        is_following=follow_appends,
        is_forced=force,
        is_repeating=allow_duplicates,
    ).load()


@load_app.command("parquet")
def load_parquet(
    paths: Annotated[
        list[str],
        typer.Argument(help="Files, globs or folders: .parquet; - is stdin.", show_default=False),
    ],
    layout: LayoutOpt,
    symbol: SymbolOpt = None,
    exchange: ExchangeOpt = None,
    asset_class: AssetClassOpt = None,
    currency: CurrencyOpt = None,
    market: MarketOpt = None,
    timezone: TimezoneOpt = None,
    reference: ReferenceOpt = None,
    mappings: MapOpt = None,
    any_time: AnyTimeOpt = False,
    follow_symlinks: FollowSymlinksOpt = False,
    to: ToOpt = LoadTo.TABLE,
    topic: TopicOpt = None,
    auto_register: AutoRegisterOpt = True,
    force: ForceLoadOpt = False,
    allow_duplicates: AllowDuplicatesOpt = False,
    dry_run: DryRunOpt = False,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="File for rejected rows.",
            show_default="rejects/load-parquet.ndjson in the home folder",
            callback=checked_file,
        ),
    ] = None,
    max_rejects: MaxRejectsOpt = "0",
    max_reject_bytes: MaxRejectBytesOpt = None,
    log_format: LinesOpt = None,
    log_level: LevelOpt = Level.INFO,
    log_file: LogFileOpt = None,
    log_file_size: LogFileSizeOpt = None,
    log_file_keep: LogFileKeepOpt = LOG_FILE_KEEP,
    summary: SummaryOpt = output.Summary.TEXT,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Load Parquet files with the layouts of CSV files; columns are found by name.

    As with `k2 load csv`, each file is loaded completely or not at all, and only once.

    Example: k2 load parquet mine.parquet -l generic-trades --exchange X --asset-class crypto
    """
    from k2cli.commands.load_run import LoadRun
    from k2cli.ingestion.csv.layout import load_layout
    from k2cli.ingestion.csv.parquet import read_parquet
    from k2cli.ingestion.csv.source import CsvOptions
    from k2cli.pipelines.load.files import PARQUET_SUFFIXES, InputFiles

    if allow_duplicates and (to is not LoadTo.TABLE or dry_run):
        raise typer.BadParameter("only into the table", param_hint="--allow-duplicates")
    config = settings(home)
    files = InputFiles(
        words=paths,
        layout_name=layout,
        layout=load_layout(layout).mapped(*parse_mappings(mappings)),
        options=CsvOptions(
            symbol=symbol,
            exchange=exchange,
            asset_class=asset_class,
            currency=currency,
            market=market,
            timezone=timezone,
            reference=reference,
            is_any_time=any_time,
            home=config.home,
        ),
        read=read_parquet,
        suffixes=PARQUET_SUFFIXES,
        is_following=follow_symlinks,
    )
    LoadRun(
        config=config,
        files=files,
        to=None if dry_run else to,
        open_log=lambda stack: open_log(
            stack, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ),
        is_logging=log_format is not None,
        produce=lambda: produce_options(
            config,
            kafka=kafka,
            registry=registry,
            timeout=timeout,
            topic=topic,
            auto_register=auto_register,
        ),
        rejects=rejects or config.home / "rejects" / "load-parquet.ndjson",
        max_rejects=max_rejects,
        max_reject_bytes=max_reject_bytes,
        summary=summary,
        is_forced=force,
        is_repeating=allow_duplicates,
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
def history(
    fmt: FormatOpt = None, out: OutputOpt = None, force: ForceOpt = False, home: HomeOpt = None
) -> None:
    """List the loads, newest first, with id, time, file, and rows stored or skipped.

    Example: k2 load history --format csv
    """
    import pyarrow as pa

    from k2cli.storage.lake import open_lake

    chosen = output.choose_output(fmt, out, is_forced=force)
    with open_lake(settings(home)) as lake:
        loads = [
            table.add_column(0, "table", pa.array([kind.table] * table.num_rows, pa.string()))
            for kind, table in ((kind, lake.loads(kind).select(_HISTORY)) for kind in lake.kinds())
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
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be removed without removing it.")
    ] = False,
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
        undone = lake.undo_load(found.kind, found.load, is_dry_run=dry_run)
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
        note("later loads left out rows as duplicates: if of these, load their files with --force")
    if found.others:
        note(
            f"other loads of this path remain: {', '.join(found.others)};"
            " --force loads the lines of all of them that are not stored"
        )
