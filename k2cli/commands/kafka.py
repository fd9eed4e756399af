"""Shared code of the commands that produce to Kafka."""

from typing import TYPE_CHECKING

from k2cli.commands.options import TIMEOUT_S, key_values
from k2cli.config import Settings

if TYPE_CHECKING:
    from k2cli.pipelines.produce import ProduceOptions


def kafka_settings(config: Settings, options: list[str] | None) -> dict[str, str]:
    """Merge --kafka-option into [kafka]."""
    return {**config.kafka, **key_values(options, "--kafka-option")}


def registry_settings(config: Settings, options: list[str] | None) -> dict[str, str]:
    """Merge --registry-option into [schema_registry]."""
    return {**config.schema_registry, **key_values(options, "--registry-option")}


def produce_options(
    config: Settings,
    *,
    kafka: list[str] | None,
    registry: list[str] | None,
    timeout: float | None,
    topic: str | None,
    auto_register: bool,
) -> "ProduceOptions":
    """Build the produce options from settings and options."""
    from k2cli.pipelines.produce import ProduceOptions

    return ProduceOptions(
        kafka=kafka_settings(config, kafka),
        registry=registry_settings(config, registry),
        timeout_s=timeout or TIMEOUT_S,
        run=config.run,
        topic=topic,
        is_registering=auto_register,
    )
