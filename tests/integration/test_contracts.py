"""Kafka keeps the contracts that the reader in memory keeps: see tests/unit for the other half."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from k2cli.ingestion.kafka.consumer import Rebalance, TopicReader, open_reader
from services.kafka import KafkaAddress
from support.cluster import Cluster
from support.consume_contract import ConsumeContract
from support.reader_contract import ReaderContract


class KafkaBrokers:
    """Topics and groups of a real broker."""

    def __init__(self, kafka: KafkaAddress) -> None:
        self._cluster = Cluster(kafka.bootstrap, "", Path(), {})

    def create(self, topic: str, *, partitions: int = 2) -> str:
        """Create a topic; return its id."""
        return self._cluster.create(topic, partitions=partitions).id

    def delete(self, topic: str) -> None:
        """Delete a topic; its name is free when this returns."""
        self._cluster.delete(topic)

    def send(self, topic: str, partition: int, values: Sequence[bytes | None]) -> None:
        """Append records to a partition."""
        self._cluster.send(topic, values, partition=partition)

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete the records of a partition before an offset."""
        assert partition == 0
        self._cluster.delete_records(topic, before)

    def open_reader(
        self, *, group: str, rebalance: Rebalance
    ) -> AbstractContextManager[TopicReader]:
        """Open a member of a group, which leaves it at the end."""
        return open_reader(
            kafka=self._cluster.kafka,
            group=group,
            rebalance=rebalance,
            observe=lambda *_, **__: None,
        )


@pytest.fixture
def brokers(kafka: KafkaAddress) -> KafkaBrokers:
    return KafkaBrokers(kafka)


class TestTopicReader(ReaderContract):
    pass


class TestConsumeFromKafka(ConsumeContract):
    pass
