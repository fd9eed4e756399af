"""Decode the messages of each read, by columns."""

import time
from collections.abc import Mapping, Sequence
from typing import Final, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from k2cli.errors import BadData
from k2cli.ingestion.kafka.consumer import Message
from k2cli.ingestion.kafka.deadletters import DeadLetter, dead_letter
from k2cli.ingestion.kafka.topics import PartitionId
from k2cli.pipelines.consume.batch import Decoded, Reached
from k2cli.pipelines.consume.policy import Feed
from k2cli.pipelines.consume.run import Run

_READ: Final = 10_000  # messages
_WAIT_S: Final = 0.2


class Intake:
    """Reads and decodes messages; those with a schema not yet in the registry wait here."""

    def __init__(self, run: Run, feeds: Mapping[str, Feed]) -> None:
        """Prepare to read the topics of feeds, by name."""
        self._run = run
        self._feeds = feeds
        self._waiting: list[Message] = []
        self._wait_s = _WAIT_S  # for messages

    def read(self) -> list[Message]:
        """Return the messages to decode next: first those waiting for their schemas."""
        at_most = _READ
        if self._run.policy.max_messages is not None:
            at_most = min(_READ, self._run.policy.max_messages - self._run.totals.messages)
        fresh = self._run.reader.read(max(1, at_most - len(self._waiting)), self._wait_s)
        messages = self._waiting + fresh  # a rebalance during the read may have dropped some
        self._waiting = messages[at_most:]
        return messages[:at_most]

    def take(self, messages: list[Message]) -> None:
        """Decode messages and keep their rows for the next commit, until the run must stop.

        Raises:
            BadData: a message cannot be decoded and must stop the run; messages before it in its
            partition are kept for the last commit.
        """
        unread: list[Message] = []
        for topic, group in self._by_topic(messages).items():
            unread += group if self._run.is_stopping() else self._take(self._feeds[topic], group)
        has_progress = len(unread) < len(messages)
        self._waiting = unread + self._waiting
        self._wait_s = 0.0 if self._waiting and has_progress else _WAIT_S

    def waiting(self) -> set[PartitionId]:
        """Return the partitions of waiting messages."""
        return {_partition_of(message) for message in self._waiting}

    def drop(self) -> None:
        """Drop the waiting messages."""
        self._waiting = []

    def release(self, partitions: Sequence[PartitionId]) -> None:
        """Drop the waiting messages of these partitions."""
        released = set(partitions)
        self._waiting = [each for each in self._waiting if _partition_of(each) not in released]

    def _by_topic(self, messages: list[Message]) -> Mapping[str, list[Message]]:
        if len(self._feeds) == 1:
            return dict.fromkeys(self._feeds, messages)
        by_topic: dict[str, list[Message]] = {}
        for message in messages:
            by_topic.setdefault(message.topic() or "", []).append(message)
        return by_topic

    def _take(self, feed: Feed, messages: list[Message]) -> list[Message]:
        """Decode messages of one topic; return the last ones, which wait for their schemas."""
        numbers = np.fromiter(map(Message.partition, messages), np.int64, len(messages))
        offsets = np.fromiter(map(Message.offset, messages), np.int64, len(messages))
        is_owned = self._run.progress.owned(feed.topic, numbers, offsets)
        if not is_owned.all():
            messages = [messages[index] for index in np.flatnonzero(is_owned).tolist()]
            numbers, offsets = numbers[is_owned], offsets[is_owned]
        if not messages:
            return []
        values = list(map(Message.value, messages))
        read = self._run.patience.call(
            "registry_unavailable", lambda: feed.messages.read(values, numbers, offsets)
        )
        unread = messages[read.count :]
        messages, numbers, rows = messages[: read.count], numbers[: read.count], read.rows
        letters = [dead_letter(messages[index], reason) for index, reason in read.rejects]
        if letters and self._run.policy.is_bad_fatal:
            is_before = _before_rejects(numbers, [index for index, _ in read.rejects])
            rows = rows.filter(pa.array(is_before[read.indexes]))
            messages = [messages[index] for index in np.flatnonzero(is_before).tolist()]
            self._keep(feed, messages, numbers[is_before], rows, [])
            raise _bad(letters[0])
        self._keep(feed, messages, numbers, rows, letters)
        return unread

    def _keep(
        self,
        feed: Feed,
        messages: Sequence[Message],
        numbers: npt.NDArray[np.int64],
        rows: pa.RecordBatch,
        letters: Sequence[DeadLetter],
    ) -> None:
        """Keep decoded messages for the next commit; `numbers` are partition numbers."""
        if not messages:
            return
        reached = {}
        for number in np.unique(numbers).tolist():
            last = messages[int(np.flatnonzero(numbers == number)[-1])]
            offset = cast("int", last.offset()) + 1
            reached[(feed.topic, number)] = Reached(offset, last.timestamp()[1])
        decoded = Decoded(
            kind=feed.kind.name,
            rows=rows,
            messages=len(messages),
            reached=reached,
            letters=letters,
        )
        self._run.progress.keep(decoded, now_s=time.monotonic())
        self._run.totals.messages += len(messages)


def _partition_of(message: Message) -> PartitionId:
    return message.topic() or "", cast("int", message.partition())


def _before_rejects(
    numbers: npt.NDArray[np.int64], rejects: Sequence[int]
) -> npt.NDArray[np.bool_]:
    """Return which messages precede the first reject of their partition."""
    is_before = np.ones(len(numbers), dtype=np.bool_)
    for index in rejects:
        if is_before[index]:
            is_before[index:] &= numbers[index:] != numbers[index]
    return is_before


def _bad(letter: DeadLetter) -> BadData:
    message = letter.message
    where = f"{message.topic()}/{message.partition()} at offset {message.offset()}"
    return BadData(
        f"{where}: {letter.reason}", hint="omit --on-bad stop to send it to the dead-letter topic"
    )
