"""`k2 load`: history out of files into the tables, safe in cron jobs."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated

import typer

from k2cli.commands import output
from k2cli.commands.events import LogLevel, RunLog
from k2cli.commands.kafka import produce_options
from k2cli.commands.known import remember_series, remember_tables
from k2cli.commands.options import (
    LOG_FILE_KEEP,
    AutoRegisterOpt,
    ForceOpt,
    FormatOpt,
    HomeOpt,
    KafkaOpt,
    LinesOpt,
    LogFileKeepOpt,
    LogFileOpt,
    LogFileSizeOpt,
    LogLevelOpt,
    MaxRejectBytesOpt,
    OutputOpt,
    RegistryOpt,
    SummaryOpt,
    TimeoutOpt,
    TopicOpt,
    checked_file,
    open_log,
    settings,
    split_commas,
)
from k2cli.commands.plain import printable
from k2cli.commands.signals import Interrupts, Terminated
from k2cli.commands.streams import view_console
from k2cli.config import Settings
from k2cli.errors import BadData, K2Error
from k2cli.ingestion.binance.symbols import Market

if TYPE_CHECKING:
    import pyarrow as pa

    from k2cli.flow import Batch
    from k2cli.ingestion.csv.layout import Layout
    from k2cli.ingestion.csv.source import CsvOptions, CsvSource
    from k2cli.pipelines.load import (
        Allowance,
        FileSums,
        FileToLoad,
        LoadPolicy,
        LoadTotals,
        Outcome,
    )
    from k2cli.pipelines.produce import ProduceOptions
    from k2cli.query.render import NdjsonRenderer

load_app = typer.Typer(help="Load files into the tables.", no_args_is_help=True)
_PREVIEW_ROWS = 5
_MOST_NAMED = 20  # files in a line
_HISTORY = [
    *("load", "loaded_at", "path", "layout", "exchange", "symbol", "rows", "duplicates"),
    *("conflicts", "rejects", "size_bytes", "offset_bytes", "digest"),
]
# What a narrow terminal leaves out of it, the first one first.
_HISTORY_DETAILS = [
    *("digest", "offset_bytes", "size_bytes", "layout", "conflicts", "table", "exchange"),
    *("symbol", "duplicates", "rejects"),
]


class LoadTo(StrEnum):
    """Where the rows of files go."""

    TABLE = "table"
    KAFKA = "kafka"
    STDOUT = "stdout"


# After an interruption.
_GO_ON: dict[LoadTo | None, str] = {
    LoadTo.TABLE: "the same command goes on from there",
    LoadTo.KAFKA: "name only the files that were not loaded to go on",
}

LayoutOpt = Annotated[
    str,
    typer.Option(
        "--layout",
        "-l",
        help="A name that `k2 load layouts` lists, or a TOML file.",
        show_default=False,
    ),
]
SymbolOpt = Annotated[
    str | None, typer.Option("--symbol", "-s", help="The symbol, where no column has it.")
]
ExchangeOpt = Annotated[
    str | None, typer.Option("--exchange", help="The exchange, where the layout has none.")
]
AssetClassOpt = Annotated[
    str | None, typer.Option("--asset-class", help="equities, crypto, futures or options.")
]
CurrencyOpt = Annotated[
    str | None,
    typer.Option(
        "--currency",
        help="The currency, where no column has it.",
        show_default="for crypto: the symbol's",
    ),
]
MarketOpt = Annotated[
    Market | None,
    typer.Option(
        "--market",
        help="Market of the exchange's own files.",
        show_default="from path, name, symbol and columns, else spot",
    ),
]
TimezoneOpt = Annotated[
    str | None, typer.Option("--timezone", help="Of local times.", show_default="the layout's")
]
ReferenceOpt = Annotated[
    Path | None,
    typer.Option(
        "--reference", help="company_info.csv: the symbol of the number a file is named after."
    ),
]
MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        help="Take fields from other columns: price=Px,quantity=Qty; "
        "map their values: side:bid=SELL.",
        show_default=False,
    ),
]
AnyTimeOpt = Annotated[
    bool,
    typer.Option("--any-time", help="Accept times before 1990 and after the end of next year."),
]
FollowSymlinksOpt = Annotated[
    bool, typer.Option("--follow-symlinks", help="Follow symbolic links in folders.")
]
ToOpt = Annotated[
    LoadTo,
    typer.Option("--to", help="Into the table, onto a Kafka topic, or as ndjson onto stdout."),
]
ForceLoadOpt = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Load a file again that was loaded before; rows that are stored stay single.",
    ),
]
AllowDuplicatesOpt = Annotated[
    bool,
    typer.Option(
        "--allow-duplicates",
        help="Store the rows of a file without ids once more, also if it was loaded before.",
    ),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Parse the files and show counts, sample rows and rejects; write nothing.",
    ),
]
MaxRejectsOpt = Annotated[
    str, typer.Option("--max-rejects", help="Rejects that a file may have: N, or P% of its lines.")
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
            help="Names of the columns, for files without a header.",
            show_default=False,
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            "--delimiter",
            help="Between columns: one character, or tab.",
            show_default="the layout's",
        ),
    ] = None,
    decimal: Annotated[
        str | None,
        typer.Option("--decimal", help="Decimal mark: . or a comma.", show_default="the layout's"),
    ] = None,
    encoding: Annotated[
        str | None,
        typer.Option(
            "--encoding", help="Like utf-16, gbk, latin-1.", show_default="the layout's, or UTF-8"
        ),
    ] = None,
    skip_lines: Annotated[
        int | None,
        typer.Option(
            "--skip-lines",
            min=0,
            help="Lines before the header or first row.",
            show_default="the layout's",
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
            help="Load what was appended to a file since it was loaded: its new complete lines.",
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
    log_level: LogLevelOpt = LogLevel.INFO,
    log_file: LogFileOpt = None,
    log_file_size: LogFileSizeOpt = None,
    log_file_keep: LogFileKeepOpt = LOG_FILE_KEEP,
    summary: SummaryOpt = output.Summary.TEXT,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Load CSV files, each all or nothing, and each only once.

    A file's digest is recorded in the commit that holds its rows: a second run loads nothing,
    says so and exits 0. A file with more rejects than allowed is not loaded (exit code 6); the
    other files are. A file that has grown since then is only loaded with --follow-appends or
    --force. With --to kafka a file is one transaction, and is sent as often as asked.

    Example: k2 load csv BTCUSDT-trades-2026-01-12.zip --layout binance-trades
    """
    from k2cli.ingestion.csv.layout import load_layout
    from k2cli.ingestion.csv.source import CsvOptions, read_csv
    from k2cli.pipelines.load import SUFFIXES

    if follow_appends and (to is not LoadTo.TABLE or dry_run):
        raise typer.BadParameter("only into the table", param_hint="--follow-appends")
    if allow_duplicates and (follow_appends or to is not LoadTo.TABLE or dry_run):
        raise typer.BadParameter(
            "only for whole files, into the table", param_hint="--allow-duplicates"
        )
    if (checksum or follow_appends) and "-" in paths:
        raise typer.BadParameter("stdin is no file", param_hint="--checksum or --follow-appends")
    config = settings(home)
    form = load_layout(layout).formatted(
        columns=[name.strip() for word in columns or () for name in word.split(",")],
        delimiter=delimiter,
        decimal=decimal,
        encoding=encoding,
        skip_lines=skip_lines,
    )
    source = _Source(
        layout_name=layout,
        layout=form.mapped(*_mappings(mappings)),
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
        is_following_symlinks=follow_symlinks,
    )
    run = _Run(
        config=config,
        open_log=lambda stack: open_log(
            stack, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ),
        is_logging=log_format is not None,
        to=None if dry_run else to,
        rejects=rejects or config.home / "rejects" / "load-csv.ndjson",
        max_rejects=max_rejects,
        max_reject_bytes=max_reject_bytes,
        summary=summary,
        is_checking=checksum,
        is_following=follow_appends,
        is_forced=force,
        is_repeating=allow_duplicates,
    )
    run.load(
        source,
        paths,
        lambda: produce_options(
            config,
            kafka=kafka,
            registry=registry,
            timeout=timeout,
            topic=topic,
            auto_register=auto_register,
        ),
    )


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
    log_level: LogLevelOpt = LogLevel.INFO,
    log_file: LogFileOpt = None,
    log_file_size: LogFileSizeOpt = None,
    log_file_keep: LogFileKeepOpt = LOG_FILE_KEEP,
    summary: SummaryOpt = output.Summary.TEXT,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Load Parquet files by the layouts of CSV files, whose columns are found by name.

    As with `k2 load csv`, each file is loaded all or nothing, and only once.

    Example: k2 load parquet mine.parquet -l generic-trades --exchange X --asset-class crypto
    """
    from k2cli.ingestion.csv.layout import load_layout
    from k2cli.ingestion.csv.parquet import read_parquet
    from k2cli.ingestion.csv.source import CsvOptions

    if allow_duplicates and (to is not LoadTo.TABLE or dry_run):
        raise typer.BadParameter("only into the table", param_hint="--allow-duplicates")
    config = settings(home)
    source = _Source(
        layout_name=layout,
        layout=load_layout(layout).mapped(*_mappings(mappings)),
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
        suffixes=(".parquet", ".pq"),
        is_following_symlinks=follow_symlinks,
    )
    run = _Run(
        config=config,
        open_log=lambda stack: open_log(
            stack, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ),
        is_logging=log_format is not None,
        to=None if dry_run else to,
        rejects=rejects or config.home / "rejects" / "load-parquet.ndjson",
        max_rejects=max_rejects,
        max_reject_bytes=max_reject_bytes,
        summary=summary,
        is_forced=force,
        is_repeating=allow_duplicates,
    )
    run.load(
        source,
        paths,
        lambda: produce_options(
            config,
            kafka=kafka,
            registry=registry,
            timeout=timeout,
            topic=topic,
            auto_register=auto_register,
        ),
    )


@load_app.command()
def layouts(
    name: Annotated[
        str | None, typer.Argument(help="Show this one, as TOML.", show_default=False)
    ] = None,
) -> None:
    """List the layouts, or show one: the start of a layout of your own.

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
    """List the loads, newest first: id, time, file, and how many rows were stored or left out.

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
    output.write_table(chosen, newest_first, details=_HISTORY_DETAILS)


@load_app.command()
def undo(
    load: Annotated[
        str,
        typer.Argument(
            help="A file that was loaded (its newest load), or an id that `k2 load history` shows.",
            show_default=False,
            metavar="FILE|LOAD",
        ),
    ],
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only count the rows that would be removed.")
    ] = False,
    summary: SummaryOpt = output.Summary.TEXT,
    home: HomeOpt = None,
) -> None:
    """Undo a load: remove the rows that it stored, so that the file can be loaded again.

    The rows and the entry in the history go in one commit. Rows that other loads or streams stored
    stay. Rows that a later load left out as duplicates of these go, too: load that file again with
    --force.

    Example: k2 load undo BTCUSDT-trades-2026-01-12.zip
    """
    from k2cli.pipelines.load import find_load
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
        output.note("dry run: nothing was changed")
    elif undone.rows and found.has_later_duplicates:
        output.note(
            "later loads left out rows as duplicates: if of these, load their files with --force"
        )
    if found.others:
        output.note(
            f"other loads of this path remain: {', '.join(found.others)};"
            " --force loads the lines of all of them that are not stored"
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of a command: where rows go, and what may go wrong on the way."""

    config: Settings
    open_log: Callable[[ExitStack], RunLog]
    is_logging: bool  # events on stderr as log lines, not in words
    to: LoadTo | None  # None: a dry run
    rejects: Path
    max_rejects: str
    max_reject_bytes: int | None
    summary: output.Summary
    is_checking: bool = False
    is_following: bool = False
    is_forced: bool = False
    is_repeating: bool = False

    def load(
        self, source: "_Source", paths: list[str], produce: "Callable[[], ProduceOptions]"
    ) -> None:
        """Load the files, and print the sums.

        Raises:
            BadData: some of the files were not loaded.
        """
        from k2cli.pipelines.load import LoadPolicy
        from k2cli.pipelines.sinks import ConflictReport
        from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

        started = time.monotonic()
        interrupts = Interrupts()
        with (
            ExitStack() as files,
            self.open_log(files).ending() as log,
            interrupts.raised(),
            ExitStack() as stack,
        ):
            report = _Report(log=log, is_logging=self.is_logging)
            rejected = RejectLog(self.rejects, run=self.config.run)
            policy = LoadPolicy(
                rejects=stack.enter_context(rejected),
                conflicts=ConflictReport(log.on_event),
                allowance=_allowance(self.max_rejects),
                max_reject_bytes=self.max_reject_bytes or MAX_REJECT_BYTES,
                is_forced=self.is_forced,
                is_repeating=self.is_repeating,
                is_following=self.is_following,
                is_checked=self.is_checking,
                held=interrupts.held,
            )
            if self.to is LoadTo.TABLE:
                handle = _loading(stack, policy, self.config, report)
            elif self.to is LoadTo.KAFKA:
                handle = _sending(stack, policy, produce(), paths, report)
            else:
                handle = _printing(stack, policy, limit=_PREVIEW_ROWS if self.to is None else None)
            try:
                report.take(handle(source.files(paths)))
            except KeyboardInterrupt as exc:
                self._sum_up(report, started, log)
                report.interrupted(source.names(paths), hint=_GO_ON.get(self.to))
                if isinstance(exc, Terminated):
                    raise typer.Exit(exc.exit_code) from exc
                raise
            except Exception:
                if report.totals.files:  # those before were handled
                    self._sum_up(report, started, log)
                raise
            self._sum_up(report, started, log)
            totals = report.totals
            if totals.failed:
                raise BadData(f"{totals.failed} of {totals.files} files not loaded")

    def _sum_up(self, report: "_Report", started: float, log: RunLog) -> None:
        report.totals.duration_s = round(time.monotonic() - started, 3)
        is_data_on_stdout = self.to in (None, LoadTo.STDOUT)
        output.summary(
            asdict(report.totals), self.summary, is_data_on_stdout=is_data_on_stdout, log=log
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """Which files are read, and how."""

    layout_name: str
    layout: "Layout"
    options: "CsvOptions"
    read: "Callable[[Path | IO[bytes], Layout, CsvOptions], CsvSource]"
    suffixes: tuple[str, ...]
    is_following_symlinks: bool

    def files(self, words: list[str]) -> "Iterator[FileToLoad]":
        """Open the files, each when it is asked for; whoever takes them closes them."""
        for path in self._paths(words, on_skip=_note_skipped):
            if path is None:
                yield from self._opened(sys.stdin.buffer, "-")
            else:
                yield from self._opened(path, str(path.absolute()))

    def names(self, words: list[str]) -> list[str]:
        """Return the files as `files` names them, up to the first that does not exist."""
        names: list[str] = []
        paths = self._paths(words, on_skip=lambda _path, _reason: None)
        with suppress(K2Error):
            names.extend("-" if path is None else str(path.absolute()) for path in paths)
        return names

    def _paths(
        self, words: list[str], *, on_skip: Callable[[Path, str], None]
    ) -> "Iterator[Path | None]":
        """Find the files; None is stdin."""
        from k2cli.pipelines.load import find_files

        for word in words:
            if word == "-":
                yield None
                continue
            yield from find_files(
                [word],
                suffixes=self.suffixes,
                is_following=self.is_following_symlinks,
                on_skip=on_skip,
            )

    def _opened(self, source: "Path | IO[bytes]", name: str) -> "Iterator[FileToLoad]":
        from k2cli.pipelines.load import FileToLoad

        yield FileToLoad(
            path=name,
            layout=self.layout_name,
            kind=self.layout.record,
            reader=self.read(source, self.layout, self.options),
        )


def _note_skipped(path: Path, reason: str) -> None:
    output.note(f"{path} skipped: {reason}")


def _mappings(words: list[str] | None) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """Return which columns fields come from, and what texts of fields mean."""
    columns: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    for word in split_commas(words):
        is_value = ":" in word.partition("=")[0]
        field, equals, given = word.rpartition("=") if is_value else word.partition("=")
        name, colon, text = field.partition(":")
        if not (name and equals and given):
            raise typer.BadParameter(
                "write it like price=Px,quantity=Qty or side:bid=SELL", param_hint="--map"
            )
        if colon:
            values.setdefault(name, {})[text] = given
        else:
            columns[field] = given
    return columns, values


def _allowance(text: str) -> "Allowance":
    from k2cli.pipelines.load import Allowance

    try:
        if text.endswith("%"):
            allowance = Allowance(percent=float(text[:-1]))
        else:
            allowance = Allowance(count=int(text))
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is neither a number nor like 0.1%", param_hint="--max-rejects"
        ) from exc
    if (allowance.percent or 0) < 0 or allowance.count < 0:
        raise typer.BadParameter("it cannot be negative", param_hint="--max-rejects")
    return allowance


def _no_totals() -> "LoadTotals":
    from k2cli.pipelines.load import LoadTotals

    return LoadTotals()


# Takes files, closes them, and yields what each came to.
Handle = Callable[["Iterable[FileToLoad]"], "Iterator[Outcome]"]


def _one_by_one(
    policy: "LoadPolicy", handle: "Callable[[FileToLoad, FileSums, ExitStack], None]"
) -> Handle:
    """Handle each file by itself.

    What `handle` adds to its last argument holds until the outcome was taken.
    """
    from k2cli.pipelines.load import FileSums, Outcome, check_digest

    def handle_each(files: "Iterable[FileToLoad]") -> "Iterator[Outcome]":
        for file in files:
            sums = FileSums()
            fault: BadData | None = None
            with ExitStack() as hold:
                with closing(file.reader):
                    try:
                        if policy.is_checked:
                            check_digest(file)
                        handle(file, sums, hold)
                    except BadData as exc:
                        fault, sums = exc, FileSums(rejects=sums.rejects)
                yield Outcome(file=file, sums=sums, fault=fault)

    return handle_each


def _printing(stack: ExitStack, policy: "LoadPolicy", *, limit: int | None) -> Handle:
    """Print the rows of every file, or the first ones; nothing is recorded."""
    from k2cli.pipelines.load import pump_file
    from k2cli.query.render import NdjsonRenderer

    renderer = stack.enter_context(NdjsonRenderer())

    def handle(file: "FileToLoad", sums: "FileSums", _hold: ExitStack) -> None:
        pump_file(file, _Printer(renderer, limit=limit), policy, sums)

    return _one_by_one(policy, handle)


def _loading(stack: ExitStack, policy: "LoadPolicy", config: Settings, report: "_Report") -> Handle:
    """Load every file into its table."""
    from functools import partial

    from k2cli.pipelines.tableload import load_into_tables
    from k2cli.storage.lake import open_lake

    lake = stack.enter_context(open_lake(config, create=True, observe=report.log.on_event))
    stack.callback(lambda: remember_tables(config, lake, lake.kinds()))
    seen: set[tuple[str, str]] = set()
    stack.callback(remember_series, config, seen)
    progress = partial(_progress, report=report, seen=seen)
    return partial(load_into_tables, lake=lake, policy=policy, progress=progress)


def _sending(
    stack: ExitStack,
    policy: "LoadPolicy",
    produce: "ProduceOptions",
    paths: list[str],
    report: "_Report",
) -> Handle:
    """Send every file to its topics."""
    import hashlib
    from dataclasses import replace

    from k2cli.pipelines.load import load_into_topics, pump_file
    from k2cli.pipelines.produce import open_topics

    # The same command twice at once: the second one ends the first one's transaction.
    said = hashlib.sha256("\0".join([produce.topic or "", *paths]).encode()).hexdigest()
    options = replace(produce, transaction=f"k2-load-{said[:32]}", patience_s=produce.timeout_s)
    topics = stack.enter_context(open_topics(options, observe=report.log.on_event))

    def handle(file: "FileToLoad", sums: "FileSums", hold: ExitStack) -> None:
        with _progress(file, report) as on_batch:
            load_into_topics(
                file.kind,
                topics,
                lambda target: pump_file(file, target, policy, sums, on_batch),
                before_commit=lambda: hold.enter_context(policy.held()),
            )

    return _one_by_one(policy, handle)


class _Printer:
    """Rows as ndjson onto stdout, all of them or the first ones."""

    def __init__(self, renderer: "NdjsonRenderer", *, limit: int | None) -> None:
        self._renderer = renderer
        self._left = limit

    def write(self, rows: "pa.RecordBatch") -> None:
        """Print rows."""
        shown = rows if self._left is None else rows.slice(0, self._left)
        if self._left is not None:
            self._left -= shown.num_rows
        sys.stdout.buffer.write(self._renderer.render(shown))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """Reports file after file, one that failed too, and adds up the sums.

    Files are events of the log, or words on stderr and events in the log file.
    """

    log: RunLog
    is_logging: bool
    totals: "LoadTotals" = field(default_factory=_no_totals)
    loaded: list[str] = field(default_factory=list)  # paths
    done: set[str] = field(default_factory=set)  # paths of all files with an outcome

    def take(self, outcomes: "Iterable[Outcome]") -> None:
        """Report the outcomes as they come."""
        noted: set[str] = set()
        for outcome in outcomes:
            self._add(outcome)
            if outcome.fault is not None:
                self._fault(outcome.file, outcome.fault)
                continue
            for notice in outcome.file.reader.notices() if outcome.is_new else ():
                if notice not in noted:  # of many files alike, the first one stands for all
                    noted.add(notice)
                    self._notice(outcome.file, notice)
            self._outcome(outcome)

    def _outcome(self, outcome: "Outcome") -> None:
        file, sums = outcome.file, outcome.sums
        if outcome.is_empty:
            self._notice(file, "has no rows")
            return
        what = f"{sums.rows:,} rows" if outcome.is_new else "loaded before, skipped"
        is_worth_words = sys.stderr.isatty() or not outcome.is_new
        self._event(
            "loaded" if outcome.is_new else "skipped",
            {"path": file.path, "rows": sums.rows, "rejects": sums.rejects},
            f"{file.path}: {what}" if is_worth_words else None,
        )

    def _fault(self, file: "FileToLoad", fault: BadData) -> None:
        self._event("failed", {"path": file.path, "message": str(fault), "hint": fault.hint}, None)
        if not self.is_logging:
            output.error(fault)

    def _notice(self, file: "FileToLoad", text: str) -> None:
        self._event("notice", {"path": file.path, "message": text}, f"{file.path}: {text}")

    def _event(self, event: str, fields: Mapping[str, object], words: str | None) -> None:
        if self.is_logging:
            self.log.on_event(event, **fields)
            return
        self.log.record(event, **fields)
        if words is not None:
            output.note(words)

    def _add(self, outcome: "Outcome") -> None:
        file, sums, totals = outcome.file, outcome.sums, self.totals
        self.done.add(file.path)
        totals.files += 1
        totals.size_bytes += file.reader.size_bytes
        totals.rejects += sums.rejects
        if outcome.fault is not None:
            totals.failed += 1
            return
        if outcome.is_new and not outcome.is_empty:
            totals.loaded += 1
            self.loaded.append(file.path)
        totals.empty += outcome.is_empty
        totals.skipped += not outcome.is_new
        totals.rows += sums.rows
        totals.duplicates += sums.duplicates
        totals.conflicts += sums.conflicts

    def interrupted(self, names: list[str], *, hint: str | None) -> None:
        """Say which files of all were loaded, which one was in work, and how many remain."""
        left = [name for name in names if name not in self.done]
        in_work, remaining = left[0] if left else "", max(0, len(left) - 1)
        named = self.loaded[:_MOST_NAMED]
        more = len(self.loaded) - len(named)
        files = ", ".join(named) + (f" and {more:,} more" if more else "")
        parts = [f"loaded {len(self.loaded):,}" + (f" ({files})" if named else "")]
        if in_work:
            parts += [f"not loaded {in_work}, which was in work", f"{remaining:,} more remain"]
        self._event(
            "interrupted",
            {"loaded": len(self.loaded), "in_work": in_work, "remaining": remaining},
            f"interrupted: {'; '.join(parts)}" + (f"; {hint}" if hint and left else ""),
        )


@contextmanager
def _progress(
    file: "FileToLoad", report: _Report, seen: set[tuple[str, str]] | None = None
) -> "Iterator[Callable[[Batch], None]]":
    """Show lines and rate of a file on a terminal; elsewhere, and beside a log, nothing.

    Where a file has several symbols, `seen` takes them.
    """
    with _progress_bar(file, report) as show:
        if seen is None or "symbol" in file.reader.file_values:
            yield show
            return

        def on_batch(batch: "Batch") -> None:
            for _, rows in batch.rows:
                seen.update(_series(rows))
            show(batch)

        yield on_batch


def _series(rows: "pa.RecordBatch") -> "Iterator[tuple[str, str]]":
    import pyarrow as pa

    pairs = pa.Table.from_batches([rows]).group_by(["exchange", "symbol"]).aggregate([])
    return zip(pairs["exchange"].to_pylist(), pairs["symbol"].to_pylist(), strict=True)


@contextmanager
def _progress_bar(file: "FileToLoad", report: _Report) -> "Iterator[Callable[[Batch], None]]":
    if report.is_logging or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn(
            "{task.percentage:>3.0f}% {task.fields[rows]:,} rows {task.fields[rate]:,.0f}/s"
        ),
        TimeRemainingColumn(),
    )
    started = time.monotonic()
    rows = 0
    with Progress(*columns, console=view_console(), transient=True) as progress:
        task = progress.add_task(
            printable(Path(file.path).name), total=file.reader.size_bytes, rows=0, rate=0.0
        )

        def on_batch(batch: "Batch") -> None:
            nonlocal rows
            rows += batch.messages
            rate = rows / max(time.monotonic() - started, 0.001)
            progress.update(task, completed=file.reader.bytes_read, rows=rows, rate=rate)

        yield on_batch
