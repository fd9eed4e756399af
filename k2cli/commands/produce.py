"""`k2 produce`: rows as ndjson onto a Kafka topic, as Avro with the registry."""

import sys
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from k2cli.commands.groups import takes_groups
from k2cli.commands.options import (
    AutoRegisterOpt,
    HomeOpt,
    LogOptions,
    MaxRejectBytesOpt,
    ServerOptions,
    SummaryOpt,
    rejects_option,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.errors import BadData, ConfigError, NotFound, UsageError
from k2cli.kinds import KindName


@takes_groups
def produce(
    *,
    topic: Annotated[
        str, typer.Argument(help="Topic, such as market.crypto.trades.", show_default=False)
    ],
    file: Annotated[str, typer.Argument(help="Rows as ndjson; - is stdin.")] = "-",
    kind: Annotated[
        KindName | None,
        typer.Option("--kind", help="What the rows are.", show_default="by the topic's name"),
    ] = None,
    auto_register: AutoRegisterOpt = True,
    rejects: Annotated[Path | None, rejects_option("lines that are not rows", "produce")] = None,
    max_rejects: Annotated[
        int,
        typer.Option("--max-rejects", min=0, help="End with exit code 6 after more than these."),
    ] = 0,
    max_reject_bytes: MaxRejectBytesOpt = None,
    log: LogOptions,
    summary: SummaryOpt = output.Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Produce rows onto a topic: ndjson in, Avro with the schema registry out.

    The rows have the fields that `k2 query trades --format ndjson` prints. They are sent as they
    come, keyed by symbol; what was sent before a bad line stays sent.

    Example: k2 query trades --format ndjson | k2 produce market.crypto.trades
    """
    config = settings(home)
    options = servers.produce_options(config, topic, is_registering=auto_register)

    from k2cli.ingestion.ndjson import read_ndjson
    from k2cli.pipelines.produce import open_topics
    from k2cli.records import KINDS, kind_of_topic
    from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

    held = KINDS[kind] if kind else kind_of_topic(topic)
    if held is None:
        raise UsageError(
            f"the name of topic {topic} does not tell what it holds",
            hint="--kind trades, or --kind quotes",
        )
    most_bytes = max_reject_bytes or MAX_REJECT_BYTES
    started = time.monotonic()
    sums: dict[str, int] = {"messages": 0, "rows": 0, "rejects": 0}
    with (
        ExitStack() as files,
        log.open(files, config.run).ending() as run_log,
        ExitStack() as stack,
    ):
        stream = stack.enter_context(_open(file))
        path = rejects or config.home / "rejects" / "produce.ndjson"
        rejected = RejectLog(path, run=config.run)
        stack.enter_context(rejected)
        topics = stack.enter_context(open_topics(options, observe=run_log.on_event))
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
        output.summary({**sums, **took}, summary, is_data_on_stdout=False, log=run_log)
        if sums["rejects"] > max_rejects:
            raise BadData(
                f"{sums['rejects']} lines are no row; allowed are {max_rejects}",
                hint=f"see {rejected.path}",
            )
        rejected.check_size(most_bytes)


def _open(file: str) -> AbstractContextManager[BinaryIO]:
    if file == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(file).open("rb")
    except FileNotFoundError as exc:
        raise NotFound(f"no file {file}") from exc
    except OSError as exc:
        raise ConfigError(f"{file} cannot be read: {exc.strerror}") from exc
