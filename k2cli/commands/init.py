"""`k2 init`: create missing topics, schemas and tables for Kafka and a registry."""

from typing import Annotated

import typer

from k2cli.commands.kafka import kafka_settings, registry_settings
from k2cli.commands.known import remember_topics
from k2cli.commands.options import (
    DURATION,
    TIMEOUT_S,
    HomeOpt,
    KafkaOpt,
    RegistryOpt,
    TimeoutOpt,
    settings,
)
from k2cli.commands.terminal.streams import note
from k2cli.symbols import split_commas


def init(
    partitions: Annotated[
        int | None,
        typer.Option(
            "--partitions",
            min=1,
            help="Partitions per topic; dead-letter topics have one.",
            show_default="the brokers' default",
        ),
    ] = None,
    replication: Annotated[
        int | None,
        typer.Option(
            "--replication",
            min=1,
            help="Number of brokers that store each record.",
            show_default="the brokers' default",
        ),
    ] = None,
    retention: Annotated[
        float | None,
        typer.Option(
            "--retention",
            help="How long topics keep records, such as 7d; not for dead-letter topics.",
            show_default="the brokers' default",
            **DURATION,
        ),
    ] = None,
    asset_class: Annotated[
        list[str],
        typer.Option(
            "--asset-class", help="Asset classes of the topics, comma-separated or repeated."
        ),
    ] = ["crypto", "futures"],  # noqa: B006
    timeout: TimeoutOpt = None,
    kafka: KafkaOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Create missing topics, schemas and tables for Kafka and a schema registry.

    Schemas are registered with BACKWARD compatibility: a new schema must be able to read what older
    ones wrote. Prints what it created; a second run changes nothing.

    Example: k2 init --partitions 4 --retention 7d
    """
    config = settings(home)

    from k2cli.ingestion.kafka.deadletters import dead_letter_config, dead_letter_topic
    from k2cli.ingestion.kafka.registry import open_registry, subject_of
    from k2cli.ingestion.kafka.topics import Topics
    from k2cli.records import KINDS, asset_classes, topic_of
    from k2cli.storage.lake import open_lake

    wanted = split_commas(asset_class or [])
    unknown = [name for name in wanted if name not in asset_classes()]
    if unknown or not wanted:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'an empty list'} is not one of {', '.join(asset_classes())}",
            param_hint="--asset-class",
        )
    timeout_s = timeout or TIMEOUT_S
    topics = Topics(kafka_settings(config, kafka), timeout_s=timeout_s)
    kept = {} if retention is None else {"retention.ms": str(round(retention * 1000))}
    with open_registry(registry_settings(config, registry), timeout_s=timeout_s) as schemas:
        schemas.check()
        for kind in KINDS.values():
            for topic in (topic_of(kind, name) for name in wanted):
                is_new = topics.create(
                    topic, partitions=partitions, replication=replication, config=kept
                )
                _report(f"topic {topic}", is_new=is_new)
                letters = dead_letter_topic(topic)
                size = dead_letter_config(topics, topic)
                is_new = topics.create(letters, partitions=1, replication=replication, config=size)
                _report(f"topic {letters}", is_new=is_new)
                subject = subject_of(topic)
                schema_id, is_new = schemas.ensure(subject, kind.avro)
                _report(f"schema {schema_id} of {subject}", is_new=is_new)
    with open_lake(config, create=True) as lake:
        names = [topic_of(kind, name) for kind in KINDS.values() for name in wanted]
        remember_topics(config, names)
        for kind in KINDS.values():
            note(f"table {lake.open(kind).describe().name} exists")


def _report(what: str, *, is_new: bool) -> None:
    note(f"{'created' if is_new else 'found'} {what}")
