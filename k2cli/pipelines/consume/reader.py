"""The interface of a consumer group member, for the loop."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from k2cli.ingestion.kafka.consumer import Message
from k2cli.ingestion.kafka.topics import PartitionId, TopicIdentity


class IdentityAnswer(Protocol):
    """A pending answer with the identities of topics."""

    def wait(self, timeout_s: float) -> bool:
        """Wait at most this long for the answer; return whether it has arrived."""

    def identities(self) -> Mapping[str, TopicIdentity | None]:
        """Wait for the answer and return it by name; None if the topic does not exist.

        Raises:
            Unavailable: the brokers did not answer in time.
        """


class Reader(Protocol):
    """A member of a consumer group; `TopicReader` describes each method."""

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group; a later read delivers the partitions."""

    def read(self, at_most: int, timeout_s: float) -> list[Message]:
        """Return the messages that have arrived, in the order of each partition."""

    def seek(self, offsets: Mapping[PartitionId, int]) -> None:
        """Read these assigned partitions from these offsets, and no others."""

    def assigned(self) -> list[PartitionId]:
        """Return the partitions that the group assigned, sorted."""

    def is_at_end(self, *, patience_s: float) -> bool:
        """Return whether all partitions were read to their ends.

        A member without partitions returns True only this long after the last assignment.
        """

    def take_ends(self, waiting: Collection[PartitionId]) -> dict[PartitionId, int]:
        """Return the ends reached since the last call, except in `waiting` partitions."""

    def has_lost_records(self) -> bool:
        """Return whether a partition's next record was deleted; `seek` resets it."""

    def take_topic_gone(self) -> bool:
        """Return whether a topic seems to have been deleted since the last call."""

    def ends(self) -> dict[PartitionId, int]:
        """Return the next offset of every partition being read, as of the last fetch."""

    def bounds(self, partitions: Sequence[PartitionId]) -> dict[PartitionId, tuple[int, int]]:
        """Return the oldest and the next offset of each partition."""

    def offsets_at(
        self, partitions: Sequence[PartitionId], time_ms: int | None
    ) -> dict[PartitionId, int]:
        """Find the first offset with a message of this time or later; None means the end."""

    def ask_identities(self, names: Iterable[str]) -> IdentityAnswer:
        """Request the identities of topics without waiting for the answer. Any thread."""

    def refresh(self, timeout_s: float) -> None:
        """Make the group notice immediately that topics or partitions have changed."""

    def commit_group_offsets(self, offsets: Mapping[PartitionId, int]) -> None:
        """Commit the group's offsets, for tools that show lag. A failure is an event."""
