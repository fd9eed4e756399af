"""`k2 consume`: Kafka topics into the tables, or to stdout."""

import sys
import uuid
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from k2cli.commands.groups import OptionGroup, ServerOptions, ViewLogOptions, takes_groups
from k2cli.commands.known import remember_tables
from k2cli.commands.monitor import open_monitor
from k2cli.commands.options import (
    DURATION,
    GROUP,
    Address,
    HomeOpt,
    MaxRejectBytesOpt,
    MetricsOpt,
    SummaryOpt,
    checked_file,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.events import RunLog
from k2cli.commands.terminal.signals import stopped_by_signals
from k2cli.errors import UsageError
from k2cli.kinds import KindName
from k2cli.memory import freeze_loaded_objects, return_freed_memory
from k2cli.symbols import split_commas

if TYPE_CHECKING:
    from k2cli.config import Settings
    from k2cli.pipelines.consume.job import ConsumeJob
    from k2cli.pipelines.consume.policy import ConsumePolicy

_BATCH_ROWS: Final = 100_000
_INTERVAL_S: Final = 10.0
_CURRENCY: Final = "AUD"
_PRINT_INTERVAL_S: Final = 0.2  # rows on stdout should appear immediately


class Destination(StrEnum):
    """The target of rows."""

    TABLE = "table"
    STDOUT = "stdout"


class StreamFormat(StrEnum):
    """The output format of streamed rows."""

    NDJSON = "ndjson"
    ARROW = "arrow"


class OnBad(StrEnum):
    """How to handle a message that cannot be decoded."""

    DLQ = "dlq"
    STOP = "stop"


def _checked_currency(currency: str) -> str:
    if not currency.isalnum():
        raise typer.BadParameter(f"{currency!r} is not a currency code", param_hint="--currency")
    return currency


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions(OptionGroup):
    """Where a run starts, when it commits, and when it ends."""

    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="Where to start if the table has no position yet: earliest, latest or a time "
            "such as 2024-08-08T10:30Z or -15m.",
        ),
    ] = "earliest"
    batch_rows: Annotated[
        int, typer.Option("--batch-rows", min=1, help="Commit after this many messages.")
    ] = _BATCH_ROWS
    commit_interval: Annotated[
        float | None,
        typer.Option(
            "--commit-interval",
            help="Commit this often.",
            show_default="10s; with --to stdout 200ms",
            **DURATION,
        ),
    ] = None
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop when every partition was read to its end.")
    ] = False
    max_messages: Annotated[
        int | None, typer.Option("--max-messages", min=1, help="Stop after this many messages.")
    ] = None
    duration: Annotated[
        float | None,
        typer.Option("--duration", help="Stop after this time, such as 5m.", **DURATION),
    ] = None

    def policy(self, *, timeout_s: float, is_printed: bool, is_bad_fatal: bool) -> "ConsumePolicy":
        """Build the policy of the run.

        Raises:
            BadParameter: --from is invalid.
        """
        from k2cli.pipelines.consume.policy import ConsumePolicy

        return ConsumePolicy(
            batch_rows=self.batch_rows,
            commit_interval_s=self.commit_interval
            or (_PRINT_INTERVAL_S if is_printed else _INTERVAL_S),
            timeout_s=timeout_s,
            start=_start(self.start),
            is_until_end=self.until_end,
            max_messages=self.max_messages,
            duration_s=self.duration,
            is_bad_fatal=is_bad_fatal,
            has_group_offsets=not is_printed,
        )


@takes_groups
def consume(
    *,
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            "-t",
            help="Topics to read, comma-separated or repeated.",
            show_default="every market.*.trades and market.*.quotes",
        ),
    ] = None,
    kind: Annotated[
        KindName | None,
        typer.Option(
            "--kind", help="Record kind of the topics.", show_default="inferred from a topic's name"
        ),
    ] = None,
    to: Annotated[
        Destination, typer.Option("--to", help="Target: the tables, or stdout.")
    ] = Destination.TABLE,
    fmt: Annotated[
        StreamFormat | None,
        typer.Option("--format", "-f", help="Output format on stdout.", show_default="ndjson"),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            help="Consumer group: its members share the partitions.",
            show_default=f"{GROUP}; with --to stdout a unique one",
        ),
    ] = None,
    run: RunOptions,
    on_bad: Annotated[
        OnBad,
        typer.Option(
            "--on-bad",
            help="Send messages that cannot be decoded to TOPIC.dlq, or stop with exit code 6.",
        ),
    ] = OnBad.DLQ,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="Write them to this file instead of the topic.",
            show_default=False,
            callback=checked_file,
        ),
    ] = None,
    max_reject_bytes: MaxRejectBytesOpt = None,
    currency: Annotated[
        str,
        typer.Option(
            "--currency",
            help="Currency of records of the v1 schemas, which have none.",
            callback=_checked_currency,
        ),
    ] = _CURRENCY,
    log: ViewLogOptions,
    metrics_address: MetricsOpt = None,
    summary: SummaryOpt = output.Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Consume Kafka topics into the tables, exactly once, by any number of processes.

    The offsets are committed with the rows: reading resumes at the table's offsets, and the group's
    offsets are only committed for lag tools. SIGINT, SIGTERM and SIGHUP end it cleanly after a last
    commit.

    Example: k2 consume --topic market.crypto.trades --until-end
    """
    config = settings(home)
    _check_together(fmt, to, rejects, on_bad)
    is_printed = to is Destination.STDOUT

    return_freed_memory()
    from k2cli.pipelines.consume.job import ConsumeJob
    from k2cli.records import KINDS

    job = ConsumeJob(
        kafka=servers.kafka_settings(config),
        registry=servers.registry_settings(config),
        topics=split_commas(topic or []),
        kind=KINDS[kind] if kind else None,
        currency=currency,
        group=group or (f"k2-stdout-{uuid.uuid4()}" if is_printed else GROUP),
        is_printed=is_printed,
        is_arrow=fmt is StreamFormat.ARROW,
        rejects=rejects,
        max_reject_bytes=max_reject_bytes,
        policy=run.policy(
            timeout_s=servers.timeout_s, is_printed=is_printed, is_bad_fatal=on_bad is OnBad.STOP
        ),
    )
    is_viewed = not is_printed and log.log_format is None
    with ExitStack() as files, log.open(files, config.run).ending() as run_log:
        _run(config, job, _Shown(run_log, metrics_address, summary, is_viewed=is_viewed))


@dataclass(frozen=True, slots=True)
class _Shown:
    """How a run is shown, during and at its end."""

    log: RunLog
    metrics: Address | None
    summary: output.Summary
    is_viewed: bool  # on a terminal


def _run(config: "Settings", job: "ConsumeJob", shown: _Shown) -> None:
    """Consume until the job is done or a signal ends it."""
    from k2cli.ingestion.kafka.consumer import open_reader
    from k2cli.pipelines.consume.job import open_consumption, open_sources, open_tables
    from k2cli.storage.lake import Lake

    with ExitStack() as stack:
        sources = stack.enter_context(open_sources(job))
        monitor = open_monitor(
            stack, shown.log, has_lag_view=shown.is_viewed, metrics=shown.metrics
        )
        observe = monitor.observe
        out = sys.stdout.buffer
        tables = stack.enter_context(open_tables(config, job, sources, out=out, observe=observe))
        if isinstance(tables, Lake):
            stack.callback(remember_tables, config, tables, sources.kinds())
        consumption = stack.enter_context(
            open_consumption(config, job, sources, tables, observe=observe)
        )
        stack.enter_context(stopped_by_signals(consumption.stop))
        try:
            with open_reader(
                kafka=job.kafka, group=job.group, rebalance=consumption.rebalance, observe=observe
            ) as reader:
                freeze_loaded_objects()
                consumption.run(reader, monitor.follow_consumption(consumption))
        finally:
            stack.close()
            sums = asdict(consumption.totals)
            sums["duration_s"] = round(consumption.totals.duration_s, 3)
            output.summary(sums, shown.summary, is_data_on_stdout=job.is_printed, log=shown.log)


def _check_together(
    fmt: StreamFormat | None, to: Destination, rejects: Path | None, on_bad: OnBad
) -> None:
    if fmt is not None and to is not Destination.STDOUT:
        raise typer.BadParameter("only with --to stdout", param_hint="--format")
    if rejects is not None and on_bad is OnBad.STOP:
        raise UsageError("--rejects and --on-bad stop are mutually exclusive")


def _start(text: str) -> str | int:
    if text in ("earliest", "latest"):
        return text
    from datetime import UTC

    from k2cli.query.timespan import parse_time

    try:
        return round(parse_time(text, now=datetime.now(tz=UTC)).timestamp() * 1000)
    except ValueError as exc:
        raise typer.BadParameter(
            f"{text!r} is not earliest, latest or a time", param_hint="--from"
        ) from exc
