"""`k2 consume`: Kafka topics into the tables, or onto stdout."""

import sys
import uuid
from contextlib import ExitStack, closing
from dataclasses import asdict
from datetime import datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from k2cli.commands import output
from k2cli.commands.events import LogFormat, LogLevel, Observer
from k2cli.commands.kafka import registry_settings
from k2cli.commands.known import remember_tables
from k2cli.commands.options import (
    DURATION,
    GROUP,
    LOG_FILE_KEEP,
    TIMEOUT_S,
    HomeOpt,
    KafkaOpt,
    LogFileKeepOpt,
    LogFileOpt,
    LogFileSizeOpt,
    LogFormatOpt,
    LogLevelOpt,
    MaxRejectBytesOpt,
    MetricsOpt,
    RegistryOpt,
    SummaryOpt,
    TimeoutOpt,
    checked_file,
    key_values,
    open_log,
    settings,
    split_commas,
)
from k2cli.commands.signals import stopped_by_signals
from k2cli.commands.stream import open_metrics
from k2cli.errors import NotFound, UsageError
from k2cli.memory import freeze_loaded_objects, return_freed_memory

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from k2cli.commands.lag import LagView
    from k2cli.commands.metrics import RunMetrics
    from k2cli.config import Settings
    from k2cli.ingestion.kafka.deadletters import DeadLetters
    from k2cli.ingestion.kafka.registry import Registry
    from k2cli.ingestion.kafka.topics import TopicInfo
    from k2cli.pipelines.consume.loop import Consumption
    from k2cli.pipelines.consume.policy import Feed, Outlets, Tables
    from k2cli.pipelines.consume.reader import Reader
    from k2cli.records import RecordKind

_BATCH_ROWS: Final = 100_000
_INTERVAL_S: Final = 10.0
_CURRENCY: Final = "AUD"
_PATIENCE_S: Final = 5.0  # with a registry that has only just come up
_PRINT_INTERVAL_S: Final = 0.2  # rows on stdout should come at once


class Destination(StrEnum):
    """Where rows go."""

    TABLE = "table"
    STDOUT = "stdout"


class StreamFormat(StrEnum):
    """How rows are written while they come."""

    NDJSON = "ndjson"
    ARROW = "arrow"


class OnBad(StrEnum):
    """What becomes of a message that is no row."""

    DLQ = "dlq"
    STOP = "stop"


class KindName(StrEnum):
    """What the messages of a topic are."""

    TRADES = "trades"
    QUOTES = "quotes"


def consume(
    topic: Annotated[
        list[str] | None,
        typer.Option(
            "--topic",
            "-t",
            help="Topics to read: repeat it, or separate by commas.",
            show_default="every market.*.trades and market.*.quotes",
        ),
    ] = None,
    kind: Annotated[
        KindName | None,
        typer.Option(
            "--kind", help="What the topics hold.", show_default="by the end of a topic's name"
        ),
    ] = None,
    to: Annotated[
        Destination, typer.Option("--to", help="Into the tables, or onto stdout.")
    ] = Destination.TABLE,
    fmt: Annotated[
        StreamFormat | None,
        typer.Option(
            "--format", "-f", help="How rows are written on stdout.", show_default="ndjson"
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(
            "--group",
            help="Consumer group: its members share the partitions.",
            show_default=f"{GROUP}; with --to stdout one of its own",
        ),
    ] = None,
    start: Annotated[
        str,
        typer.Option(
            "--from",
            help="Where to begin where the table has no position yet: earliest, latest or a time "
            "such as 2024-08-08T10:30Z or -15m.",
        ),
    ] = "earliest",
    batch_rows: Annotated[
        int, typer.Option("--batch-rows", min=1, help="Commit after this many messages.")
    ] = _BATCH_ROWS,
    commit_interval: Annotated[
        float | None,
        typer.Option(
            "--commit-interval",
            help="Commit this often.",
            show_default="10s; with --to stdout 200ms",
            **DURATION,
        ),
    ] = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="End when every partition was read to its end.")
    ] = False,
    max_messages: Annotated[
        int | None, typer.Option("--max-messages", min=1, help="End after this many messages.")
    ] = None,
    duration: Annotated[
        float | None,
        typer.Option("--duration", help="End after this time, such as 5m.", **DURATION),
    ] = None,
    on_bad: Annotated[
        OnBad,
        typer.Option(
            "--on-bad",
            help="Set a message that is no row aside on TOPIC.dlq, or end with exit code 6.",
        ),
    ] = OnBad.DLQ,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="Set them aside in this file instead of the topic.",
            show_default=False,
            callback=checked_file,
        ),
    ] = None,
    max_reject_bytes: MaxRejectBytesOpt = None,
    currency: Annotated[
        str, typer.Option("--currency", help="For records of the v1 schemas, which have none.")
    ] = _CURRENCY,
    timeout: TimeoutOpt = None,
    log_format: LogFormatOpt = None,
    log_level: LogLevelOpt = LogLevel.INFO,
    log_file: LogFileOpt = None,
    log_file_size: LogFileSizeOpt = None,
    log_file_keep: LogFileKeepOpt = LOG_FILE_KEEP,
    metrics_address: MetricsOpt = None,
    summary: SummaryOpt = output.Summary.TEXT,
    kafka: KafkaOpt = None,
    registry_option: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Consume Kafka topics into the tables, exactly once, by any number of processes.

    The offsets are committed with the rows: the table tells where to read on, the group's own
    offsets are written for lag tools only. SIGINT, SIGTERM and SIGHUP end it cleanly after a last
    commit.

    Example: k2 consume --topic market.crypto.trades --until-end
    """
    config = settings(home)
    options = {**config.kafka, **key_values(kafka, "--kafka-option")}
    timeout_s = timeout or TIMEOUT_S
    begin = _start(start)
    _check_currency(currency)
    _check_together(fmt, to, rejects, on_bad)

    return_freed_memory()
    from k2cli.ingestion.kafka.consumer import open_reader
    from k2cli.ingestion.kafka.registry import open_registry
    from k2cli.pipelines.consume.loop import Consumption
    from k2cli.pipelines.consume.policy import ConsumePolicy
    from k2cli.storage.lake import Lake, open_lake

    is_printed = to is Destination.STDOUT
    policy = ConsumePolicy(
        batch_rows=batch_rows,
        commit_interval_s=commit_interval or (_PRINT_INTERVAL_S if is_printed else _INTERVAL_S),
        timeout_s=timeout_s,
        start=begin,
        is_until_end=until_end,
        max_messages=max_messages,
        duration_s=duration,
        is_bad_fatal=on_bad is OnBad.STOP,
        has_group_offsets=not is_printed,
    )
    with (
        ExitStack() as files,
        open_log(
            files, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ).ending() as log,
        ExitStack() as stack,
    ):
        registry = stack.enter_context(
            open_registry(
                registry_settings(config, registry_option),
                timeout_s=timeout_s,
                patience_s=_PATIENCE_S,
            )
        )
        sources = _sources(options, split_commas(topic), kind, timeout_s=timeout_s)
        registry.check()
        view = _open_view(stack, log_format, is_printed=is_printed)
        log.view = view.on_event if view else None
        observe = log.on_event
        metrics = open_metrics(stack, metrics_address, observe)
        observe = metrics.on_event if metrics else observe
        kinds = [held for _, held in sources]
        tables = (
            _open_printed(stack, kinds, fmt)
            if is_printed
            else stack.enter_context(open_lake(config, create=True, observe=observe))
        )
        if isinstance(tables, Lake):
            stack.callback(remember_tables, config, tables, kinds)
        consumption = Consumption(
            feeds=_feeds(sources, registry, tables, currency, observe),
            outlets=_open_outlets(
                stack,
                tables,
                rejects or _rejects_file(config),
                None if rejects else options,
                run=config.run,
                timeout_s=timeout_s,
                max_reject_bytes=max_reject_bytes,
                observe=observe,
            ),
            policy=policy,
            observe=observe,
        )
        own_group = f"k2-stdout-{uuid.uuid4()}" if is_printed else GROUP
        stack.enter_context(stopped_by_signals(consumption.stop))
        try:
            with open_reader(
                kafka=options,
                group=group or own_group,
                rebalance=consumption.rebalance,
                observe=observe,
            ) as reader:
                freeze_loaded_objects()
                consumption.run(reader, _followed(consumption, view, metrics))
        finally:
            stack.close()
            sums = asdict(consumption.totals)
            sums["duration_s"] = round(consumption.totals.duration_s, 3)
            output.summary(sums, summary, is_data_on_stdout=is_printed, log=log)


def _check_together(
    fmt: StreamFormat | None, to: Destination, rejects: Path | None, on_bad: OnBad
) -> None:
    if fmt is not None and to is not Destination.STDOUT:
        raise typer.BadParameter("only with --to stdout", param_hint="--format")
    if rejects is not None and on_bad is OnBad.STOP:
        raise UsageError("--rejects and --on-bad stop exclude each other")


def _check_currency(currency: str) -> None:
    if not currency.isalnum():
        raise typer.BadParameter(f"{currency!r} is no currency", param_hint="--currency")


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


def _sources(
    kafka: "Mapping[str, str]", topics: "Sequence[str]", kind: KindName | None, *, timeout_s: float
) -> "list[tuple[TopicInfo, RecordKind]]":
    """Find the topics to read, and what each holds."""
    from k2cli.ingestion.kafka.topics import Topics

    client = Topics(kafka, timeout_s=timeout_s)
    names = topics or [
        name for name in client.names() if name.startswith("market.") and kind_of(name, kind)
    ]
    if not names:
        raise NotFound(
            "there is no topic market.*.trades or market.*.quotes",
            hint="k2 topic create market.crypto.trades, or name one with --topic",
        )
    sources = []
    for info in client.describe(names):
        held = kind_of(info.name, kind)
        if held is None:
            raise UsageError(
                f"the name of topic {info.name} does not tell what it holds",
                hint="--kind trades, or --kind quotes",
            )
        sources.append((info, held))
    return sources


def _feeds(
    sources: "list[tuple[TopicInfo, RecordKind]]",
    registry: "Registry",
    tables: "Tables",
    currency: str,
    observe: Observer,
) -> "list[Feed]":
    from k2cli.codec.upgrade import Facts
    from k2cli.ingestion.kafka.messages import MessageReader
    from k2cli.pipelines.consume.policy import Feed

    return [
        Feed(
            topic=info.name,
            topic_id=info.id,
            kind=held,
            messages=MessageReader(
                registry=registry,
                topic=info.name,
                kind=partial(tables.kind, held),
                facts=Facts(currency=currency),
                observe=observe,
            ),
        )
        for info, held in sources
    ]


def kind_of(topic: str, kind: KindName | None) -> "RecordKind | None":
    """Tell what a topic holds: as said, else by the end of its name."""
    from k2cli.records import KINDS, kind_of_topic

    return KINDS[kind] if kind else kind_of_topic(topic)


def _open_view(
    stack: ExitStack, log_format: LogFormat | None, *, is_printed: bool
) -> "LagView | None":
    if is_printed or log_format is not None or not sys.stderr.isatty():
        return None
    from k2cli.commands.lag import LagView

    return stack.enter_context(LagView())


def _followed(
    consumption: "Consumption", view: "LagView | None", metrics: "RunMetrics | None"
) -> "Callable[[Reader], None]":
    """Let the view and the metrics follow a run; return what is to be called as it reads."""
    looks = []
    if view:
        view.watch(consumption)
        looks.append(view.on_read)
    if metrics:
        metrics.watch_consumption(consumption)
        looks.append(metrics.on_read)

    def on_read(reader: "Reader") -> None:
        for look in looks:
            look(reader)

    return on_read


def _open_printed(
    stack: ExitStack, kinds: "Sequence[RecordKind]", fmt: StreamFormat | None
) -> "Tables":
    from k2cli.pipelines.sinks import ArrowPrinter, NdjsonPrinter, PrintedTables

    out = sys.stdout.buffer
    if fmt is not StreamFormat.ARROW:
        return PrintedTables(NdjsonPrinter(out))
    distinct = {kind.name: kind for kind in kinds}
    if len(distinct) > 1:
        raise UsageError("an Arrow stream has one kind of row", hint="name topics of one with -t")
    (kind,) = distinct.values()
    return PrintedTables(stack.enter_context(closing(ArrowPrinter(out, kind))))


def _rejects_file(config: "Settings") -> Path:
    return config.home / "rejects" / "consume.ndjson"


def _open_outlets(
    stack: ExitStack,
    tables: "Tables",
    rejects: Path,
    kafka: "Mapping[str, str] | None",
    *,
    run: str,
    timeout_s: float,
    max_reject_bytes: int | None,
    observe: Observer,
) -> "Outlets":
    """Open the file for rejects, which takes the dead letters too that no topic takes.

    Without `kafka` that is all of them.
    """
    from k2cli.ingestion.kafka.deadletters import DeadLetterFile, open_dead_letter_topics
    from k2cli.pipelines.consume.policy import Outlets
    from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

    log = stack.enter_context(RejectLog(rejects, run=run))
    letters: DeadLetters = DeadLetterFile(log)
    if kafka is not None:
        letters = stack.enter_context(
            open_dead_letter_topics(kafka, refuge=letters, timeout_s=timeout_s, observe=observe)
        )
    return Outlets(
        tables=tables,
        letters=letters,
        rejects=log,
        max_reject_bytes=max_reject_bytes or MAX_REJECT_BYTES,
    )
