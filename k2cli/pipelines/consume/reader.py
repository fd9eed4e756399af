"""What the loop asks of a member of a consumer group."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from k2cli.ingestion.kafka.consumer import Message
from k2cli.ingestion.kafka.topics import Place, TopicIdentity


class IdentityAnswer(Protocol):
    """The answer to which topics have some names, once it has arrived."""

    def wait(self, timeout_s: float) -> bool:
        """Wait for the answer, but not longer than this; return whether it has arrived."""

    def identities(self) -> Mapping[str, TopicIdentity | None]:
        """Wait for the answer, and return it by name; None: the topic does not exist.

        Raises:
            Unavailable: the brokers did not answer in time.
        """


class Reader(Protocol):
    """A member of a consumer group; `TopicReader` describes each method."""

    def subscribe(self, topics: Sequence[str]) -> None:
        """Join the group; partitions come with one of the next reads."""

    def read(self, at_most: int, timeout_s: float) -> list[Message]:
        """Return the messages that have arrived, in the order of each partition."""

    def seek(self, offsets: Mapping[Place, int]) -> None:
        """Read these of the assigned partitions from these offsets, and none of the others."""

    def assigned(self) -> list[Place]:
        """Return the partitions that the group assigned, sorted."""

    def is_at_end(self, *, patience_s: float) -> bool:
        """Return whether all partitions were read to their ends.

        A member without partitions says so only this long after the group last assigned any.
        """

    def take_ends(self, waiting: Collection[Place]) -> dict[Place, int]:
        """Return the ends reached since the last call, except those of `waiting` partitions."""

    def has_lost_records(self) -> bool:
        """Return whether a partition's next record was deleted; `seek` resets it."""

    def take_topic_gone(self) -> bool:
        """Return whether a topic seems to have been deleted since the last call."""

    def ends(self) -> dict[Place, int]:
        """Return the next offset of every partition that is read, as of the last fetch."""

    def bounds(self, places: Sequence[Place]) -> dict[Place, tuple[int, int]]:
        """Return the oldest offset of each partition, and the next one."""

    def offsets_at(self, places: Sequence[Place], time_ms: int | None) -> dict[Place, int]:
        """Find the first offset with a message of this time or later; None is the end."""

    def ask_identities(self, names: Iterable[str]) -> IdentityAnswer:
        """Ask which topics have these names now, and do not wait for the answer. Any thread."""

    def refresh(self, timeout_s: float) -> None:
        """Make the group notice immediately that topics or partitions have changed."""

    def commit_group_offsets(self, offsets: Mapping[Place, int]) -> None:
        """Write the group's offsets, for tools that show lag. A failure is an event."""
