"""Find where to read partitions from: the tables' positions, or the user's choice."""

import itertools
from collections.abc import Mapping, Sequence

from k2cli.errors import NotFound
from k2cli.ingestion.kafka.consumer import EARLIEST
from k2cli.ingestion.kafka.topics import PartitionId, TopicIdentity
from k2cli.pipelines.consume.committer import Committer
from k2cli.pipelines.consume.identities import Identities
from k2cli.pipelines.consume.progress import Start
from k2cli.pipelines.consume.run import Run
from k2cli.pipelines.consume.topics import TopicWatch
from k2cli.storage.offsets import Partition, Span


class Starts:
    """Finds the start offsets of partitions when they are assigned or rewound."""

    def __init__(
        self, run: Run, *, committer: Committer, topics: TopicWatch, identities: Identities
    ) -> None:
        self._run = run
        self._committer = committer
        self._topics = topics
        self._identities = identities

    def assign(self, partitions: Sequence[PartitionId]) -> Mapping[PartitionId, int]:
        """Take over partitions; return the offsets to read them from.

        Partitions that do not exist are omitted until `TopicWatch` finds them.

        Raises:
            BadData: the brokers lost records that were read before.
        """
        found = self._identities.find({topic for topic, _ in partitions})
        self._topics.identify(found)
        stored = self._commit_begins(partitions, found)
        self._run.progress.suspend(partitions)
        starts: dict[PartitionId, Start] = {}
        for topic in found:
            numbers = _numbers(partitions, topic, _size(found[topic]))
            starts |= self._topic_starts(topic, numbers, stored)
        offsets = self._run.progress.assign(starts)
        for partition, start in starts.items():
            if start.missing:
                self._report_gap(partition, start)
        self._run.observe("assigned", partitions=partition_names(list(offsets)))
        return offsets

    def _topic_starts(
        self, topic: str, numbers: Sequence[int], stored: Mapping[Partition, int]
    ) -> dict[PartitionId, Start]:
        if self._topics.is_missing(topic):
            return {}
        try:
            bounds = self._bounds(topic, numbers)
        except NotFound as exc:
            self._topics.note_missing(topic, str(exc))
            return {}
        return {
            partition: Start(
                stored=stored.get(self._run.progress.identify(partition)), first=first, end=end
            )
            for partition, (first, end) in bounds.items()
        }

    def _report_gap(self, partition: PartitionId, start: Start) -> None:
        self._run.totals.missing += start.missing
        self._run.observe(
            "gap",
            topic=partition[0],
            partition=partition[1],
            first=start.offset - start.missing,
            last=start.offset - 1,
            missing=start.missing,
        )

    def _commit_begins(
        self, partitions: Sequence[PartitionId], found: Mapping[str, TopicIdentity | None]
    ) -> dict[Partition, int]:
        """Commit start positions for partitions without one; return all positions.

        Otherwise, after a run without a commit, the next run would start elsewhere.
        """
        while True:
            stored = self._committer.positions(found)
            begins: dict[Partition, int] = {}
            for topic, identity in found.items():
                if not self._topics.is_missing(topic):
                    size = _size(identity)
                    begins |= self._begins(topic, _numbers(partitions, topic, size), size, stored)
            spans = {each: Span(expected=None, reached=begin) for each, begin in begins.items()}
            if self._committer.begin(spans):
                return stored | begins
            # Another consumer was first: start where it did.

    def _begins(
        self, topic: str, numbers: Sequence[int], size: int, stored: Mapping[Partition, int]
    ) -> dict[Partition, int]:
        """Return the start positions to commit for partitions without one.

        The user's choice applies to a topic that the table has never read, and to all of its
        partitions at the same time. A partition added later, or a recreated topic, starts at its
        first record. That is offset 0, so no position is needed.
        """
        ids = {partition.topic_id for partition in stored if partition.topic == topic}
        self._topics.note_other_ids(topic, ids)
        is_chosen = not ids and self._run.policy.start != EARLIEST
        lacking = [
            number
            for number in (range(size) if is_chosen else numbers)
            if self._run.progress.identify((topic, number)) not in stored
        ]
        try:
            begins = self._chosen(topic, lacking) if is_chosen else self._oldest(topic, lacking)
        except NotFound as exc:
            self._topics.note_missing(topic, str(exc))
            return {}
        return {
            self._run.progress.identify(partition): offset
            for partition, offset in begins.items()
            if offset or is_chosen
        }

    def _chosen(self, topic: str, numbers: Sequence[int]) -> Mapping[PartitionId, int]:
        """Return the start offsets of the user's choice.

        Raises:
            NotFound: the topic was deleted.
        """
        time_ms = self._run.policy.start if isinstance(self._run.policy.start, int) else None
        partitions = [(topic, number) for number in numbers]
        return self._run.patience.call(
            "kafka_unavailable", lambda: self._run.reader.offsets_at(partitions, time_ms)
        )

    def _oldest(self, topic: str, numbers: Sequence[int]) -> Mapping[PartitionId, int]:
        return {partition: first for partition, (first, _) in self._bounds(topic, numbers).items()}

    def _bounds(self, topic: str, numbers: Sequence[int]) -> Mapping[PartitionId, tuple[int, int]]:
        """Return the oldest and the next offset of partitions.

        Raises:
            NotFound: the topic was deleted, and perhaps recreated.
        """
        partitions = [(topic, number) for number in numbers]
        bounds = self._run.patience.call(
            "kafka_unavailable", lambda: self._run.reader.bounds(partitions)
        )
        if (topic, self._run.progress.topic_id(topic)) not in self._identities.ids([topic]):
            raise NotFound(f"topic {topic} was deleted or recreated")
        return bounds


def partition_names(partitions: Sequence[PartitionId]) -> str:
    """Format partitions: `market.crypto.trades/0,1,2,3`."""
    by_topic = itertools.groupby(sorted(partitions), key=lambda partition: partition[0])
    return " ".join(
        f"{topic}/{','.join(str(number) for _, number in group)}" for topic, group in by_topic
    )


def _numbers(partitions: Sequence[PartitionId], topic: str, size: int) -> list[int]:
    """Return the numbers of a topic's existing partitions."""
    return [number for name, number in partitions if name == topic and number < size]


def _size(identity: TopicIdentity | None) -> int:
    return identity.partitions if identity else 0
