"""Settings of Kafka and the registry, merged with command-line options."""

from k2cli.commands.options import key_values
from k2cli.config import Settings


def kafka_settings(config: Settings, options: list[str] | None) -> dict[str, str]:
    """Merge --kafka-option into [kafka]."""
    return {**config.kafka, **key_values(options, "--kafka-option")}


def registry_settings(config: Settings, options: list[str] | None) -> dict[str, str]:
    """Merge --registry-option into [schema_registry]."""
    return {**config.schema_registry, **key_values(options, "--registry-option")}
