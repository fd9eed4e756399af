"""`k2 topic`: create, list and describe the topics of records."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.groups import AnswerOptions, takes_groups
from k2cli.commands.kafka import kafka_settings
from k2cli.commands.known import remember_topics
from k2cli.commands.options import (
    DURATION,
    TIMEOUT_S,
    HomeOpt,
    KafkaOpt,
    ReplicationOpt,
    TextOrJson,
    TextOrJsonOpt,
    TimeoutOpt,
    key_values,
    settings,
)
from k2cli.commands.terminal import output
from k2cli.commands.terminal.fitting import fit_rows
from k2cli.commands.terminal.streams import note, screen_width

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from k2cli.ingestion.kafka.topics import PartitionInfo, TopicInfo, Topics

topic_app = typer.Typer(help="Create, list and describe Kafka topics.", no_args_is_help=True)

TopicsArg = Annotated[
    list[str], typer.Argument(help="Topics, such as market.crypto.trades.", show_default=False)
]


@topic_app.command()
def create(
    topics: TopicsArg,
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions", min=1, help="Number of partitions.", show_default="the brokers' default"
        ),
    ] = None,
    replication: ReplicationOpt = None,
    retention: Annotated[
        float | None,
        typer.Option(
            "--retention",
            help="How long to keep records, such as 7d.",
            show_default="the brokers' default",
            **DURATION,
        ),
    ] = None,
    config: Annotated[
        list[str] | None,
        typer.Option("--config", help="Any topic setting: cleanup.policy=compact. Repeatable."),
    ] = None,
    if_not_exists: Annotated[
        bool, typer.Option("--if-not-exists", help="Succeed if the topic already exists.")
    ] = False,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    home: HomeOpt = None,
) -> None:
    """Create topics.

    Example: k2 topic create market.crypto.trades --partitions 4 --retention 7d
    """
    from k2cli.errors import Exists

    wanted = key_values(config, "--config")
    if retention is not None:
        wanted["retention.ms"] = str(round(retention * 1000))
    client = _open(home, kafka, timeout)
    existing = []
    for topic in topics:
        if client.create(topic, partitions=partitions, replication=replication, config=wanted):
            note(f"created topic {topic}")
        else:
            existing.append(topic)
            note(f"topic {topic} already exists")
    remember_topics(settings(home), topics)
    if existing and not if_not_exists:
        raise Exists(
            f"{len(existing)} of {len(topics)} topics already exist: {', '.join(existing)}",
            hint=f"k2 topic describe {' '.join(existing)}; use --if-not-exists to accept them",
        )


@topic_app.command("list")
@takes_groups
def list_topics(
    *,
    out: AnswerOptions,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    home: HomeOpt = None,
) -> None:
    """List the topics with partitions, replicas and number of records.

    Example: k2 topic list --format json
    """
    import pyarrow as pa

    chosen = out.choose()
    client = _open(home, kafka, timeout)
    infos = client.describe(client.names())
    remember_topics(settings(home), (info.name for info in infos), is_complete=True)
    columns = {
        "topic": pa.array([info.name for info in infos], pa.string()),
        "partitions": pa.array([len(info.partitions) for info in infos], pa.int64()),
        "replicas": pa.array([_replicas(info) for info in infos], pa.int64()),
        "offsets": pa.array([_offsets(info) for info in infos], pa.int64()),
    }
    output.print_rows(chosen, pa.table(columns), details=("replicas", "partitions"))


@topic_app.command()
def describe(
    topics: TopicsArg,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    home: HomeOpt = None,
) -> None:
    """Describe topics: id, partitions, leaders, in-sync replicas and offsets.

    Example: k2 topic describe market.crypto.trades
    """
    infos = _open(home, kafka, timeout).describe(topics)
    if fmt is TextOrJson.JSON:
        output.data(json.dumps([asdict(info) for info in infos]))
    else:
        _print_descriptions(infos)


def _open(home: "Path | None", kafka: list[str] | None, timeout_s: float | None) -> "Topics":
    from k2cli.ingestion.kafka.topics import Topics

    options = kafka_settings(settings(home), kafka)
    return Topics(options, timeout_s=timeout_s or TIMEOUT_S)


def _replicas(info: "TopicInfo") -> int:
    return min((len(partition.replicas) for partition in info.partitions), default=0)


def _offsets(info: "TopicInfo") -> int:
    return sum(partition.next - partition.first for partition in info.partitions)


def _print_descriptions(infos: "Sequence[TopicInfo]") -> None:
    names = ["partition", "leader", "replicas", "in sync", "first offset", "next offset"]
    parts: list[str] = []
    notes: dict[str, None] = {}
    for info in infos:
        rows, fit = fit_rows(
            names,
            [_partition_row(each) for each in info.partitions],
            screen_width(),
            texts=("replicas", "in sync"),
            details=("leader", "replicas", "in sync"),
        )
        facts = [
            f"topic       {info.name}",
            f"id          {info.id}",
            f"partitions  {len(info.partitions)}",
            f"offsets     {_offsets(info):,}",
        ]
        parts.append("\n".join([*facts, "", *rows]))
        notes[fit.note("--format json shows everything")] = None
    output.data("\n\n".join(parts))
    for missing in filter(None, notes):
        note(missing)


def _partition_row(partition: "PartitionInfo") -> list[str]:
    replicas, in_sync = (",".join(map(str, ids)) for ids in (partition.replicas, partition.in_sync))
    leader = "none" if partition.leader is None else str(partition.leader)
    offsets = (f"{partition.first:,}", f"{partition.next:,}")
    return [str(partition.number), leader, replicas, in_sync, *offsets]
