"""`k2 produce`: send rows in ndjson to a Kafka topic, as Avro with the registry."""

import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from k2cli.commands.groups import LogOptions, ServerOptions, takes_groups
from k2cli.commands.options import (
    AutoRegisterOpt,
    HomeOpt,
    MaxRejectBytesOpt,
    SummaryOpt,
    rejects_option,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.kinds import KindName


@takes_groups
def produce(
    *,
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
    rejects: Annotated[Path | None, rejects_option("rejected lines", "produce")] = None,
    max_rejects: Annotated[
        int,
        typer.Option("--max-rejects", min=0, help="Stop with exit code 6 above this many rejects."),
    ] = 0,
    max_reject_bytes: MaxRejectBytesOpt = None,
    log: LogOptions,
    summary: SummaryOpt = output.Summary.TEXT,
    servers: ServerOptions,
    home: HomeOpt = None,
) -> None:
    """Produce rows to a topic: read ndjson, send Avro with the schema registry.

    The rows have the fields that `k2 query trades --format ndjson` prints. They are sent as they
    arrive, keyed by symbol; rows before a bad line remain sent.

    Example: k2 query trades --format ndjson | k2 produce market.crypto.trades
    """
    config = settings(home)
    options = servers.produce_options(config, topic, is_registering=auto_register)

    from k2cli.pipelines.produce import ProduceJob, open_production
    from k2cli.records import KINDS, require_kind
    from k2cli.rejects import MAX_REJECT_BYTES

    job = ProduceJob(
        file=file,
        kind=KINDS[kind] if kind else require_kind(topic),
        options=options,
        rejects=rejects or config.home / "rejects" / "produce.ndjson",
        max_rejects=max_rejects,
        max_reject_bytes=max_reject_bytes or MAX_REJECT_BYTES,
    )
    started = time.monotonic()
    with (
        ExitStack() as files,
        log.open(files, config.run).ending() as run_log,
        open_production(job, run=config.run, observe=run_log.on_event) as production,
    ):
        try:
            production.run()
        finally:
            sums = production.sums
            counts = {"messages": sums.lines, "rows": sums.rows, "rejects": sums.rejects}
            took = {"duration_s": round(time.monotonic() - started, 3)}
            output.summary({**counts, **took}, summary, is_data_on_stdout=False, log=run_log)
