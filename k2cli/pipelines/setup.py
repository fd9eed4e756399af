"""Set up a cluster: create the topics, schemas and tables that do not exist yet."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from k2cli.config import Settings
from k2cli.ingestion.kafka.deadletters import dead_letter_config, dead_letter_topic
from k2cli.ingestion.kafka.registry import Registry, open_registry, subject_of
from k2cli.ingestion.kafka.topics import Topics
from k2cli.records import KINDS, RecordKind, topic_of
from k2cli.storage.lake import open_lake


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupOptions:
    """Which topics to create, and with which settings; None means the brokers' default."""

    kafka: Mapping[str, str]
    registry: Mapping[str, str]
    timeout_s: float
    asset_classes: Sequence[str]
    partitions: int | None  # per topic; dead-letter topics have one
    replication: int | None
    retention_s: float | None  # of topics, not of dead-letter topics

    def topics(self) -> list[tuple[str, RecordKind]]:
        """Return the topics, without dead-letter topics, and the kinds of their records."""
        return [
            (topic_of(kind, name), kind) for kind in KINDS.values() for name in self.asset_classes
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SetupStep:
    """A topic or schema that was created, or that already existed."""

    what: str  # topic market.crypto.trades
    is_new: bool


def create_topics(options: SetupOptions) -> Iterator[SetupStep]:
    """Create missing topics, dead-letter topics and schemas; yield each as soon as it exists.

    Schemas are registered with BACKWARD compatibility.

    Raises:
        ConfigError: Kafka or the registry is not configured.
        Unavailable: the brokers or the registry do not answer.
        BadData: the brokers reject a setting, or the registry a schema.
    """
    topics = Topics(options.kafka, timeout_s=options.timeout_s)
    with open_registry(options.registry, timeout_s=options.timeout_s) as registry:
        registry.check()
        for topic, kind in options.topics():
            yield _create_topic(topics, topic, options)
            yield _create_dead_letter_topic(topics, topic, options)
            yield _register(registry, topic, kind)


def create_tables(config: Settings) -> Iterator[str]:
    """Create missing tables; yield the full name of each table, new or not."""
    with open_lake(config, create=True) as lake:
        for kind in KINDS.values():
            yield lake.open(kind).describe().name


def _create_topic(topics: Topics, topic: str, options: SetupOptions) -> SetupStep:
    retention_s = options.retention_s
    config = {} if retention_s is None else {"retention.ms": str(round(retention_s * 1000))}
    is_new = topics.create(
        topic, partitions=options.partitions, replication=options.replication, config=config
    )
    return SetupStep(what=f"topic {topic}", is_new=is_new)


def _create_dead_letter_topic(topics: Topics, source: str, options: SetupOptions) -> SetupStep:
    topic, config = dead_letter_topic(source), dead_letter_config(topics, source)
    is_new = topics.create(topic, partitions=1, replication=options.replication, config=config)
    return SetupStep(what=f"topic {topic}", is_new=is_new)


def _register(registry: Registry, topic: str, kind: RecordKind) -> SetupStep:
    subject = subject_of(topic)
    schema_id, is_new = registry.ensure(subject, kind.avro)
    return SetupStep(what=f"schema {schema_id} of {subject}", is_new=is_new)
