"""Create, list and describe topics."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Final

from confluent_kafka import (
    ConsumerGroupTopicPartitions,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (
    AdminClient,
    ConfigResource,
    NewTopic,
    OffsetSpec,
    TopicDescription,
)

from k2cli.errors import NotFound
from k2cli.ingestion.kafka.vendor import (
    NO_LEADERS,
    client_config,
    translate,
    translated,
    until_settled,
)

PartitionId = tuple[str, int]  # topic and partition number

_GROUPS: Final = "__consumer_offsets"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionInfo:
    """One partition: its leader, its replicas and the offsets it holds."""

    number: int
    leader: int | None  # None: no leader
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]
    first: int  # the oldest offset that still exists
    next: int  # the offset of the next record


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicInfo:
    """A topic; `id` distinguishes it from a deleted topic of the same name."""

    name: str
    id: str
    partitions: tuple[PartitionInfo, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicIdentity:
    """The identity of the topic with a name; a recreated topic has another id."""

    id: str
    partitions: int  # number of partitions


class IdentityRequest:
    """A pending request for the identities of topics. Created by `Topics.ask_identities`."""

    def __init__(
        self, futures: Mapping[str, "Future[TopicDescription]"], kafka: Mapping[str, str]
    ) -> None:
        self._futures = futures
        self._kafka = kafka

    def wait(self, timeout_s: float) -> bool:
        """Wait at most this long for the answer; return whether it has arrived."""
        return not wait(self._futures.values(), timeout=timeout_s).not_done

    def identities(self) -> dict[str, TopicIdentity | None]:
        """Wait for the answer and return it by name; None if no topic has this name.

        Raises:
            Unavailable: the brokers did not answer in time.
        """
        return {name: self._identity(name, future) for name, future in self._futures.items()}

    def _identity(self, name: str, future: "Future[TopicDescription]") -> TopicIdentity | None:
        try:
            with translated(f"cannot identify topic {name}", self._kafka):
                topic = future.result()
        except NotFound:
            return None
        return TopicIdentity(id=str(topic.topic_id), partitions=len(topic.partitions))


class Topics:
    """The topics on the brokers. Every call returns or fails within `timeout_s`."""

    def __init__(self, kafka: Mapping[str, str], *, timeout_s: float) -> None:
        self._kafka = kafka
        self._timeout_s = timeout_s
        with translated("cannot start a Kafka client", kafka):
            self._admin = AdminClient(client_config(kafka))

    def names(self) -> list[str]:
        """List the topics by name, without Kafka's internal ones."""
        with translated("cannot list the topics", self._kafka):
            topics = self._admin.list_topics(timeout=self._timeout_s).topics
        return sorted(name for name in topics if not name.startswith("__"))

    def brokers(self) -> int:
        """Count the brokers."""
        with translated("cannot list the brokers", self._kafka):
            return len(self._admin.list_topics(timeout=self._timeout_s).brokers)

    def group_offsets(self, group: str) -> dict[PartitionId, int]:
        """Return the offsets that a group has committed, by topic and partition.

        If no group ever existed it does not ask, because that would make Kafka create its internal
        topic.
        """
        with translated(f"cannot read the offsets of group {group}", self._kafka):
            if _GROUPS not in self._admin.list_topics(timeout=self._timeout_s).topics:
                return {}
            asked = [ConsumerGroupTopicPartitions(group)]
            futures = self._admin.list_consumer_group_offsets(
                asked, request_timeout=self._timeout_s
            )
            offsets = futures[group].result().topic_partitions or []
        return {(each.topic, each.partition): each.offset for each in offsets if each.offset >= 0}

    def create(
        self,
        name: str,
        *,
        partitions: int | None,
        replication: int | None,
        config: Mapping[str, str],
    ) -> bool:
        """Create a topic; return False if it already exists. None means the brokers' default.

        Raises:
            BadData: the brokers reject a name, a number or a setting.
        """
        topic = NewTopic(name, partitions or -1, replication or -1, config=dict(config))
        futures = self._admin.create_topics([topic], request_timeout=self._timeout_s)
        try:
            futures[name].result()
        except KafkaException as exc:
            if exc.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS:
                return False
            raise translate(f"cannot create topic {name}", exc.args[0], self._kafka) from exc
        self._settle(name)
        return True

    def setting(self, topic: str, name: str) -> str | None:
        """Return a setting of a topic, including broker defaults; None if unknown.

        Raises:
            NotFound: the topic does not exist.
        """
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        with translated(f"cannot read the settings of topic {topic}", self._kafka):
            futures = self._admin.describe_configs([resource], request_timeout=self._timeout_s)
            entry = futures[resource].result().get(name)
        return None if entry is None or entry.value is None else str(entry.value)

    def describe(self, names: Sequence[str]) -> list[TopicInfo]:
        """Describe topics in this order.

        Raises:
            NotFound: one of them does not exist.
        """
        return [self._describe(name) for name in names]

    def ask_identities(self, names: Iterable[str]) -> IdentityRequest:
        """Request the identities of topics without waiting for the answer."""
        asked = TopicCollection(sorted(names))
        with translated("cannot identify topics", self._kafka):
            futures = self._admin.describe_topics(asked, request_timeout=self._timeout_s)
        return IdentityRequest(futures, self._kafka)

    def bounds(self, partitions: Collection[PartitionId]) -> dict[PartitionId, tuple[int, int]]:
        """Return the oldest and the next offset of each partition.

        Raises:
            NotFound: one of them does not exist.
        """
        with translated("cannot read the bounds of partitions", self._kafka):
            first = self._offsets(partitions, OffsetSpec.earliest())
            following = self._offsets(partitions, OffsetSpec.latest())
        return {each: (first[each], following[each]) for each in partitions}

    def offsets_at(
        self, partitions: Collection[PartitionId], time_ms: int | None
    ) -> dict[PartitionId, int]:
        """Return the offset of each partition's first record of this UTC time or later.

        If there is none, and for None, it is the end: the next record that consumers see.

        Raises:
            NotFound: one of them does not exist.
        """
        with translated("cannot look up a time in partitions", self._kafka):
            ends = self._offsets(partitions, OffsetSpec.latest(), is_committed=True)
            if time_ms is None:
                return ends
            found = self._offsets(partitions, OffsetSpec.for_timestamp(time_ms))
        return {each: found[each] if found[each] >= 0 else ends[each] for each in partitions}

    def _settle(self, name: str) -> None:
        """Wait until a new topic can be described and written."""

        def ask() -> None:
            self._offsets(_partition_ids(self._description(name)), OffsetSpec.latest())

        with translated(f"cannot describe topic {name}", self._kafka):
            until_settled(ask, timeout_s=self._timeout_s, new=True)

    def _describe(self, name: str) -> TopicInfo:
        try:
            with translated(f"cannot describe topic {name}", self._kafka):
                topic = self._description(name)
                bounds = self.bounds(_partition_ids(topic))
        except NotFound as exc:
            raise NotFound(f"topic {name} does not exist", hint=f"k2 topic create {name}") from exc
        return TopicInfo(
            name=name,
            id=str(topic.topic_id),
            partitions=tuple(
                PartitionInfo(
                    number=partition.id,
                    leader=partition.leader.id if partition.leader else None,
                    replicas=tuple(node.id for node in partition.replicas),
                    in_sync=tuple(node.id for node in partition.isr),
                    first=bounds[(name, partition.id)][0],
                    next=bounds[(name, partition.id)][1],
                )
                for partition in topic.partitions
            ),
        )

    def _description(self, name: str) -> TopicDescription:
        asked = TopicCollection([name])
        futures = self._admin.describe_topics(asked, request_timeout=self._timeout_s)
        found: TopicDescription = futures[name].result()
        return found

    def _offsets(
        self, partitions: Collection[PartitionId], spec: OffsetSpec, *, is_committed: bool = False
    ) -> dict[PartitionId, int]:
        """Return an offset of each partition."""
        asked = {TopicPartition(*each): spec for each in partitions}
        level = IsolationLevel.READ_COMMITTED if is_committed else IsolationLevel.READ_UNCOMMITTED

        def ask() -> dict[PartitionId, int]:
            futures = self._admin.list_offsets(
                asked, isolation_level=level, request_timeout=self._timeout_s
            )
            return {
                (each.topic, each.partition): future.result().offset
                for each, future in futures.items()
            }

        if not asked:
            return {}
        try:
            return until_settled(ask, timeout_s=self._timeout_s)
        except KafkaException as exc:
            if exc.args[0].code() == NO_LEADERS:
                for topic in {topic for topic, _ in partitions}:
                    self._description(topic)  # raises if it does not exist
            raise


def _partition_ids(topic: TopicDescription) -> list[PartitionId]:
    return [(topic.name, partition.id) for partition in topic.partitions]
