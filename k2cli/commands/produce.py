"""`k2 produce`: send rows in ndjson to a Kafka topic, as Avro with the registry."""

import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from k2cli.commands.kafka import produce_options
from k2cli.commands.options import (
    LOG_FILE_KEEP,
    AutoRegisterOpt,
    HomeOpt,
    KafkaOpt,
    LevelOpt,
    LinesOpt,
    LogFileKeepOpt,
    LogFileOpt,
    LogFileSizeOpt,
    MaxRejectBytesOpt,
    RegistryOpt,
    SummaryOpt,
    TimeoutOpt,
    checked_file,
    open_log,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.errors import BadData, ConfigError, NotFound, UsageError
from k2cli.events import Level
from k2cli.kinds import KindName


def produce(
    topic: Annotated[
        str, typer.Argument(help="Topic, such as market.crypto.trades.", show_default=False)
    ],
    file: Annotated[str, typer.Argument(help="File with rows in ndjson; - is stdin.")] = "-",
    kind: Annotated[
        KindName | None,
        typer.Option(
            "--kind", help="Record kind of the rows.", show_default="inferred from the topic's name"
        ),
    ] = None,
    auto_register: AutoRegisterOpt = True,
    rejects: Annotated[
        Path | None,
        typer.Option(
            "--rejects",
            help="File for rejected lines.",
            show_default="rejects/produce.ndjson in the home folder",
            callback=checked_file,
        ),
    ] = None,
    max_rejects: Annotated[
        int,
        typer.Option("--max-rejects", min=0, help="Stop with exit code 6 above this many rejects."),
    ] = 0,
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
    """Produce rows to a topic: read ndjson, send Avro with the schema registry.

    The rows have the fields that `k2 query trades --format ndjson` prints. They are sent as they
    arrive, keyed by symbol; rows before a bad line remain sent.

    Example: k2 query trades --format ndjson | k2 produce market.crypto.trades
    """
    config = settings(home)
    options = produce_options(
        config,
        kafka=kafka,
        registry=registry,
        timeout=timeout,
        topic=topic,
        auto_register=auto_register,
    )

    from k2cli.ingestion.ndjson import read_ndjson
    from k2cli.pipelines.produce import open_topics
    from k2cli.records import KINDS, kind_of_topic
    from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

    held = KINDS[kind] if kind else kind_of_topic(topic)
    if held is None:
        raise UsageError(
            f"cannot infer the record kind from topic {topic}",
            hint="use --kind trades or --kind quotes",
        )
    most_bytes = max_reject_bytes or MAX_REJECT_BYTES
    started = time.monotonic()
    sums: dict[str, int] = {"messages": 0, "rows": 0, "rejects": 0}
    with (
        ExitStack() as files,
        open_log(
            files, config.run, log_format, log_level, log_file, log_file_size, log_file_keep
        ).ending() as log,
        ExitStack() as stack,
    ):
        stream = stack.enter_context(_open(file))
        path = rejects or config.home / "rejects" / "produce.ndjson"
        rejected = RejectLog(path, run=config.run)
        stack.enter_context(rejected)
        topics = stack.enter_context(open_topics(options, observe=log.on_event))
        topics.prepare(held, "")
        try:
            for batch in read_ndjson(stream, held):
                for _, rows in batch.rows:
                    topics.write(held, rows)
                    sums["rows"] += rows.num_rows
                sums["messages"] += batch.messages
                sums["rejects"] += len(batch.rejects)
                rejected.write(batch.rejects)
                if sums["rejects"] > max_rejects or rejected.size_bytes > most_bytes:
                    break
        finally:  # also what was read before an interrupt
            topics.flush()
            rejected.sync()
        took = {"duration_s": round(time.monotonic() - started, 3)}
        output.summary({**sums, **took}, summary, is_data_on_stdout=False, log=log)
        if sums["rejects"] > max_rejects:
            raise BadData(
                f"{sums['rejects']} lines rejected (limit {max_rejects})",
                hint=f"see {rejected.path}",
            )
        rejected.check_size(most_bytes)


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except FileNotFoundError as exc:
        raise NotFound(f"{file} does not exist") from exc
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read: {exc.strerror}") from exc
