"""One run of `k2 load`: its output and exit."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import typer

from k2cli.commands.groups import LogOptions, ServerOptions
from k2cli.commands.known import remember_series, remember_tables
from k2cli.commands.load_options import PREVIEW_ROWS, LoadTo, RowTargetOptions, TargetOptions
from k2cli.commands.terminal import output
from k2cli.commands.terminal.events import RunLog
from k2cli.commands.terminal.plain import printable
from k2cli.commands.terminal.signals import Interrupts, Terminated
from k2cli.commands.terminal.streams import error, note, view_console
from k2cli.config import Settings
from k2cli.errors import BadData
from k2cli.events import Observer
from k2cli.flow import Batch
from k2cli.nearest import first_names
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.load.files import InputFiles
from k2cli.pipelines.load.job import FileToLoad, LoadPolicy, LoadTotals, Outcome
from k2cli.pipelines.pump import Allowance
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

if TYPE_CHECKING:
    from k2cli.pipelines.frames import FrameTotals

_MAX_NAMED = 20  # files per line

# Hints after an interruption.
_CONTINUE_HINT: dict[LoadTo | None, str] = {
    LoadTo.TABLE: "run the same command to continue",
    LoadTo.KAFKA: "to continue, give only the files that were not loaded",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """Which files to load, into which target, with which limits."""

    config: Settings
    files: InputFiles
    target: TargetOptions
    servers: ServerOptions
    log: LogOptions
    rejects: Path
    summary: output.Summary
    is_checking: bool = False
    is_following: bool = False

    def load(self) -> None:
        """Load the files and print the totals.

        Raises:
            BadData: some of the files were not loaded.
        """
        started = time.monotonic()
        with opened_run(self.log, self.config.run) as (log, interrupts, stack):
            report = _Report(log=log, is_logging=self.log.log_format is not None)
            policy = self._policy(stack, log, interrupts)
            try:
                report.take(self._outcomes(stack, policy, report))
            except KeyboardInterrupt as exc:
                self._sum_up(report, started)
                report.interrupted(
                    self.files.names(), hint=_CONTINUE_HINT.get(self.target.destination)
                )
                if isinstance(exc, Terminated):
                    raise typer.Exit(exc.exit_code) from exc
                raise
            except Exception:
                if report.totals.files:  # files before it were handled
                    self._sum_up(report, started)
                raise
            self._sum_up(report, started)
            if failed := report.totals.failed:
                raise BadData(f"{failed} of {report.totals.files} files not loaded")

    def _policy(self, stack: ExitStack, log: RunLog, interrupts: Interrupts) -> LoadPolicy:
        return LoadPolicy(
            rejects=stack.enter_context(RejectLog(self.rejects, run=self.config.run)),
            conflicts=ConflictReport(log.on_event),
            allowance=parse_allowance(self.target.max_rejects),
            max_reject_bytes=self.target.max_reject_bytes or MAX_REJECT_BYTES,
            is_forced=self.target.force,
            is_repeating=self.target.allow_duplicates,
            is_following=self.is_following,
            is_checked=self.is_checking,
            uninterrupted=interrupts.uninterrupted,
        )

    def _outcomes(
        self, stack: ExitStack, policy: LoadPolicy, report: "_Report"
    ) -> Iterator[Outcome]:
        files = self.files.open(on_skip=lambda path, why: note(f"{path} skipped: {why}"))
        if self.target.destination is LoadTo.TABLE:
            return self._into_tables(stack, files, policy, report)
        if self.target.destination is LoadTo.KAFKA:
            return self._into_topics(stack, files, policy, report)
        from k2cli.pipelines.load.stdout import print_files
        from k2cli.pipelines.printing import NdjsonPrinter

        limit = PREVIEW_ROWS if self.target.destination is None else None
        return print_files(files, NdjsonPrinter(sys.stdout.buffer), policy, limit=limit)

    def _into_tables(
        self, stack: ExitStack, files: Iterable[FileToLoad], policy: LoadPolicy, report: "_Report"
    ) -> Iterator[Outcome]:
        from k2cli.pipelines.load.tables import load_into_tables
        from k2cli.storage.lake import open_lake

        config = self.config
        lake = stack.enter_context(open_lake(config, create=True, observe=report.log.on_event))
        stack.callback(lambda: remember_tables(config, lake, lake.kinds()))
        seen: set[tuple[str, str]] = set()
        stack.callback(remember_series, config, seen)
        return load_into_tables(files, lake, policy, partial(_progress, report=report, seen=seen))

    def _into_topics(
        self, stack: ExitStack, files: Iterable[FileToLoad], policy: LoadPolicy, report: "_Report"
    ) -> Iterator[Outcome]:
        from k2cli.pipelines.load.topics import load_into_topics, transaction_of
        from k2cli.pipelines.produce import open_topics

        target = self.target
        options = self.servers.produce_options(
            self.config, target.topic, is_registering=target.auto_register
        )
        transaction = transaction_of(options.topic, self.files.words)
        options = replace(options, transaction=transaction, patience_s=options.timeout_s)
        topics = stack.enter_context(open_topics(options, observe=report.log.on_event))
        return load_into_topics(files, topics, policy, partial(_progress, report=report))

    def _sum_up(self, report: "_Report", started: float) -> None:
        sum_up(report.totals, started, self.target, self.summary, report.log)


@contextmanager
def opened_run(
    options: LogOptions, run: str
) -> Iterator[tuple[RunLog, Interrupts, ExitStack[bool | None]]]:
    """Open the log of a load and a stack for what it uses; raise signals as exceptions."""
    interrupts = Interrupts()
    with (
        ExitStack() as logs,
        options.open(logs, run).ending() as log,
        interrupts.raised(),
        ExitStack() as stack,
    ):
        yield log, interrupts, stack


def sum_up(
    totals: "LoadTotals | FrameTotals",
    started: float,
    target: RowTargetOptions,
    summary: output.Summary,
    log: RunLog,
) -> None:
    """Print the totals of a load that started at this monotonic time."""
    totals.duration_s = round(time.monotonic() - started, 3)
    is_printed = target.destination in (None, LoadTo.STDOUT)
    output.summary(asdict(totals), summary, is_data_on_stdout=is_printed, log=log)


def parse_allowance(text: str) -> Allowance:
    """Parse --max-rejects: a number, or a percentage of the lines.

    Raises:
        BadParameter: it is neither.
    """
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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """Reports each file, including failed ones, and adds up the totals.

    Files are log events, or text on stderr plus events in the log file.
    """

    log: RunLog
    is_logging: bool
    totals: LoadTotals = field(default_factory=LoadTotals)
    loaded: list[str] = field(default_factory=list)  # paths
    done: set[str] = field(default_factory=set)  # paths of all files with an outcome

    def take(self, outcomes: Iterable[Outcome]) -> None:
        """Report the outcomes as they arrive."""
        noted: set[str] = set()
        for outcome in outcomes:
            self._add(outcome)
            if outcome.fault is not None:
                self._fault(outcome.file, outcome.fault)
                continue
            for notice in outcome.file.reader.notices() if outcome.is_new else ():
                if notice not in noted:  # report only the first of many similar files
                    noted.add(notice)
                    self._notice(outcome.file, notice)
            self._outcome(outcome)

    def _outcome(self, outcome: Outcome) -> None:
        file, sums = outcome.file, outcome.sums
        if outcome.is_empty:
            self._notice(file, "has no rows")
            return
        what = f"{sums.rows:,} rows" if outcome.is_new else "loaded before, skipped"
        is_reported = sys.stderr.isatty() or not outcome.is_new
        self._observe(
            "loaded" if outcome.is_new else "skipped",
            path=file.path,
            rows=sums.rows,
            rejects=sums.rejects,
        )
        if is_reported:
            self._say(f"{file.path}: {what}")

    def _fault(self, file: FileToLoad, fault: BadData) -> None:
        self._observe("failed", path=file.path, message=str(fault), hint=fault.hint)
        if not self.is_logging:
            error(fault)

    def _notice(self, file: FileToLoad, text: str) -> None:
        self._observe("notice", path=file.path, message=text)
        self._say(f"{file.path}: {text}")

    @property
    def _observe(self) -> Observer:
        """With text for people on stderr, events only go to the log file."""
        return self.log.on_event if self.is_logging else self.log.record

    def _say(self, text: str) -> None:
        if not self.is_logging:
            note(text)

    def _add(self, outcome: Outcome) -> None:
        self.totals.add(outcome)
        self.done.add(outcome.file.path)
        if outcome.is_loaded:
            self.loaded.append(outcome.file.path)

    def interrupted(self, names: list[str], *, hint: str | None) -> None:
        """Report the loaded files, the one in progress, and how many remain."""
        left = [name for name in names if name not in self.done]
        current, remaining = left[0] if left else "", max(0, len(left) - 1)
        files = first_names(self.loaded, _MAX_NAMED)
        parts = [f"loaded {len(self.loaded):,}" + (f" ({files})" if files else "")]
        if current:
            parts += [
                f"not loaded {current}, which was in progress",
                f"{remaining:,} more remain",
            ]
        self._observe(
            "interrupted", loaded=len(self.loaded), in_progress=current, remaining=remaining
        )
        self._say(f"interrupted: {'; '.join(parts)}" + (f"; {hint}" if hint and left else ""))


@contextmanager
def _progress(
    file: FileToLoad, report: _Report, seen: set[tuple[str, str]] | None = None
) -> Iterator[Callable[[Batch], None]]:
    """Show lines and rate of a file on a terminal; nothing elsewhere or with log lines.

    `seen` collects the symbols of the file.
    """
    reader = file.reader
    is_shown = not report.is_logging
    with progress_bar(
        Path(file.path), reader.size_bytes, lambda: reader.bytes_read, is_shown=is_shown
    ) as show:
        if seen is None or "symbol" in file.reader.file_values:
            yield show
            return

        def on_batch(batch: Batch) -> None:
            for _, rows in batch.rows:
                seen.update(_series(rows))
            show(batch)

        yield on_batch


def _series(rows: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    pairs = pa.Table.from_batches([rows]).group_by(["exchange", "symbol"]).aggregate([])
    return zip(pairs["exchange"].to_pylist(), pairs["symbol"].to_pylist(), strict=True)


@contextmanager
def progress_bar(
    path: Path, size_bytes: int, bytes_read: Callable[[], int], *, is_shown: bool
) -> Iterator[Callable[[Batch], None]]:
    """Show lines and rate of a file on a terminal; `bytes_read` is called with each batch."""
    if not is_shown or not sys.stderr.isatty():
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
        task = progress.add_task(printable(path.name), total=size_bytes, rows=0, rate=0.0)

        def on_batch(batch: Batch) -> None:
            nonlocal rows
            rows += batch.messages
            rate = rows / max(time.monotonic() - started, 0.001)
            progress.update(task, completed=bytes_read(), rows=rows, rate=rate)

        yield on_batch
