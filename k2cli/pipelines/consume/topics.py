"""Detect topics that are deleted, recreated or extended while they are read.

A recreated topic keeps its name, and librdkafka continues in the new topic at the old offset. So
the topics' ids are requested every second and before every commit: only data read before the
request is certain to be from the topic with the returned id.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from k2cli.errors import NotFound, Unavailable
from k2cli.ingestion.kafka.topics import TopicIdentity
from k2cli.pipelines.consume.committer import Committer
from k2cli.pipelines.consume.progress import Mark
from k2cli.pipelines.consume.reader import IdentityAnswer
from k2cli.pipelines.consume.run import Run

_ASK_EVERY_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class _Question:
    """A pending request for topic ids, and what had been read at that time."""

    answer: IdentityAnswer
    mark: Mark


class TopicWatch:
    """Tracks the topics being read, and reacts to changes."""

    def __init__(self, run: Run, committer: Committer, topics: Sequence[str]) -> None:
        self._run = run
        self._committer = committer
        self._topics = topics
        self._question: _Question | None = None
        self._asked_s = -math.inf  # monotonic
        self._sizes: dict[str, int] = {}  # number of partitions of each topic
        self._missing: dict[str, float] = {}  # missing topics, and since when, monotonic
        self._reported: set[str] = set()  # topics that were recreated

    def check(self) -> None:
        """Request the topics' ids every second, and handle the answer once it arrives."""
        question, now_s = self._question, time.monotonic()
        if question is None:
            if self._run.reader.take_topic_gone() or now_s - self._asked_s >= _ASK_EVERY_S:
                self._asked_s = now_s
                answer = self._run.reader.ask_identities(self._topics)
                mark = self._run.progress.mark(self._run.reader.ends())
                self._question = _Question(answer, mark)
        elif question.answer.wait(0):
            self._question = None
            try:
                found = question.answer.identities()
            except Unavailable as exc:
                self._run.observe("kafka_unavailable", reason=str(exc))
            else:
                self._learn(question.mark, found)

    def identify(self, found: Mapping[str, TopicIdentity | None]) -> None:
        """Record the topics of the assigned partitions; discard the pending request."""
        self._question = None
        for topic, identity in found.items():
            if identity is None:
                self.note_missing(topic)
            else:
                self._missing.pop(topic, None)
                if not self._is_same(topic, identity):
                    self._renew(topic, identity)

    def note_missing(self, topic: str, reason: str = "it was deleted") -> None:
        """Wait for a topic to exist again."""
        if topic not in self._missing:
            self._missing[topic] = time.monotonic()
            topic_id = self._run.progress.topic_id(topic)
            self._run.observe("topic_missing", topic=topic, topic_id=topic_id, reason=reason)

    def note_other_ids(self, topic: str, stored_ids: Iterable[str]) -> None:
        """Report a topic that was recreated since it was last stored, under these ids."""
        topic_id, ids = self._run.progress.topic_id(topic), set(stored_ids)
        if ids and topic_id not in ids and topic not in self._reported:
            self._reported.add(topic)
            old_ids = ",".join(sorted(ids))
            self._run.observe("topic_recreated", topic=topic, old_id=old_ids, new_id=topic_id)

    def is_missing(self, topic: str) -> bool:
        """Return whether a topic does not exist."""
        return topic in self._missing

    def has_missing(self) -> bool:
        """Return whether a missing topic is being waited for.

        Raises:
            NotFound: it was deleted and not recreated in time.
        """
        if not self._missing:
            return False
        topic, since_s = min(self._missing.items(), key=lambda each: each[1])
        if time.monotonic() - since_s > self._run.policy.timeout_s:
            raise NotFound(
                f"topic {topic} was deleted before it was read to its end",
                hint=f"k2 topic create {topic}",
            )
        return True

    def _learn(self, mark: Mark, found: Mapping[str, TopicIdentity | None]) -> None:
        """Record the topics' ids at the time of a mark."""
        same = {topic for topic, each in found.items() if each and self._is_same(topic, each)}
        self._run.progress.confirm(mark, same)
        has_changed = False
        for topic, identity in found.items():
            if identity is None:
                self.note_missing(topic)
                continue
            was_missing = self._missing.pop(topic, None) is not None
            if topic not in same:
                self._renew(topic, identity)
            elif was_missing:
                self._committer.flush()
                self._run.progress.require_rewind()
            has_changed |= was_missing or self._sizes.get(topic) not in (None, identity.partitions)
            self._sizes[topic] = identity.partitions
        if has_changed:
            timeout_s = self._run.policy.timeout_s
            self._run.patience.call(
                "kafka_unavailable", lambda: self._run.reader.refresh(timeout_s)
            )

    def _is_same(self, topic: str, identity: TopicIdentity) -> bool:
        return identity.id == self._run.progress.topic_id(topic)

    def _renew(self, topic: str, identity: TopicIdentity) -> None:
        """Switch to a topic that was recreated.

        Data certainly read from the old topic is committed; the rest is lost.
        """
        self._committer.flush()
        old_id = self._run.progress.topic_id(topic)
        stored = self._committer.positions({topic})
        missing = self._run.progress.recreate(topic, identity.id, stored)
        self._run.totals.missing += missing
        self._reported.add(topic)
        self._run.observe(
            "topic_recreated", topic=topic, old_id=old_id, new_id=identity.id, missing=missing
        )
