"""Settings of Kafka and of the registry, with those of the command line."""

from k2cli.commands.options import key_values
from k2cli.config import Settings


def kafka_settings(config: Settings, options: list[str] | None) -> dict[str, str]:
    """Put --kafka-option over [kafka]."""
    return {**config.kafka, **key_values(options, "--kafka-option")}


def registry_settings(config: Settings, options: list[str] | None) -> dict[str, str]:
    """Put --registry-option over [schema_registry]."""
    return {**config.schema_registry, **key_values(options, "--registry-option")}
