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
    ReplicationOpt,
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
    replication: ReplicationOpt = None,
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
    from k2cli.pipelines.setup import SetupOptions, create_tables, create_topics

    config = settings(home)
    options = SetupOptions(
        kafka=kafka_settings(config, kafka),
        registry=registry_settings(config, registry),
        timeout_s=timeout or TIMEOUT_S,
        asset_classes=_asset_classes(asset_class),
        partitions=partitions,
        replication=replication,
        retention_s=retention,
    )
    for step in create_topics(options):
        note(f"{'created' if step.is_new else 'found'} {step.what}")
    for table in create_tables(config):
        note(f"table {table} exists")
    remember_topics(config, (topic for topic, _ in options.topics()))


def _asset_classes(names: list[str] | None) -> list[str]:
    from k2cli.records import asset_classes

    wanted = split_commas(names or [])
    unknown = [name for name in wanted if name not in asset_classes()]
    if unknown or not wanted:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'an empty list'} is not one of {', '.join(asset_classes())}",
            param_hint="--asset-class",
        )
    return wanted
