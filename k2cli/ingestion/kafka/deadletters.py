"""Send messages that cannot be decoded to a dead-letter topic, with location and cause.

A dead letter has the key, value and headers of the original message, plus text headers: k2.reason,
k2.code and k2.cause (see k2cli/rejects.py), k2.field and k2.value if a field caused it, k2.topic,
k2.partition, k2.offset and k2.time (UTC, ISO 8601; milliseconds since 1970 outside the years 1 to
9999). Its k2.run is that of the message.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol, cast

from k2cli.errors import BadData, ConfigError, NotFound
from k2cli.events import Observer
from k2cli.ingestion.kafka.consumer import Message
from k2cli.ingestion.kafka.producer import RUN_HEADER, Header, TopicWriter, open_writer
from k2cli.ingestion.kafka.topics import Topics
from k2cli.iso import iso_utc_ms
from k2cli.rejects import Fault, Reject, RejectLog

SUFFIX: Final = ".dlq"
_LARGEST: Final = "1000000000"  # bytes: librdkafka's maximum
_SIZE_LIMIT: Final = "max.message.bytes"
PREFIX: Final = "k2."
_MAX_SENDS: Final = 2_000  # per commit, a few seconds; the run cannot end meanwhile


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that cannot be decoded, and why. Created by `dead_letter`."""

    message: Message
    fault: Fault
    given: Sequence[Header]  # the original headers

    def as_reject(self) -> Reject:
        """Return it as a line of a rejects file."""
        message = self.message
        return Reject(
            fault=self.fault,
            raw=message.value() or b"",
            is_null=message.value() is None,
            key=message.key(),
            headers=self.given,
            position=message.offset() or 0,
            received_us=message.timestamp()[1] * 1000,
            source=f"{message.topic()}/{message.partition()}",
        )

    def headers(self) -> list[Header]:
        """Return the headers of the dead letter: the original ones, then k2's."""
        message = self.message
        fault = self.fault
        ours = {
            "reason": fault.reason,
            "code": fault.code,
            "cause": fault.cause,
            "field": fault.field or None,
            "value": fault.value,
            "topic": message.topic(),
            "partition": message.partition(),
            "offset": message.offset(),
            "time": iso_utc_ms(message.timestamp()[1]),
        }
        theirs = [(key, value) for key, value in self.given if not is_added(key)]
        added = [(PREFIX + key, str(value)) for key, value in ours.items() if value is not None]
        return [*theirs, *((key, text.encode(errors="backslashreplace")) for key, text in added)]

    @property
    def size_bytes(self) -> int:
        """The size of the message's key and value."""
        return len(self.message.key() or b"") + len(self.message.value() or b"")

    @property
    def reason(self) -> str:
        """The sentence that describes the fault."""
        return self.fault.reason


class DeadLetters(Protocol):
    """Stores messages that cannot be decoded."""

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Store them; they are durable when this returns."""


class DeadLetterFile:
    """Writes dead letters as lines of a rejects file."""

    def __init__(self, log: RejectLog) -> None:
        self._log = log

    def __str__(self) -> str:
        """Return the path of the file."""
        return str(self._log.path)

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Append them, and sync."""
        self._log.write([letter.as_reject() for letter in letters])
        self._log.sync()


def dead_letter(message: Message, fault: Fault) -> DeadLetter:
    """Build a dead letter from a message; the reason also reports unreadable headers."""
    given = take_headers(message)
    if given is None:
        reason = f"{fault.reason}; its headers are lost: a name is not UTF-8"
        fault, given = replace(fault, reason=reason), []
    return DeadLetter(message=message, fault=fault, given=given)


def take_headers(message: Message) -> list[Header] | None:
    """Return the headers of a message; None if they are unreadable: a name is not UTF-8.

    Call it once per message: on a second call for such headers the client returns invalid pointers.
    """
    try:
        return cast("list[Header]", message.headers() or [])  # a dict only when producing
    except (SystemError, UnicodeDecodeError):  # the client raises both
        return None


def is_added(header: str) -> bool:
    """Return whether k2 added this header of a dead letter, judging by its key."""
    return header.startswith(PREFIX) and header != RUN_HEADER


def dead_letter_topic(topic: str) -> str:
    """Return the name of the dead-letter topic of a topic."""
    return topic + SUFFIX


def dead_letter_config(topics: Topics, source: str) -> dict[str, str]:
    """Return the settings of a new dead-letter topic: the message size limit of its source."""
    try:
        size = topics.setting(source, _SIZE_LIMIT)
    except (ConfigError, NotFound):  # no permission to read it, or deleted meanwhile
        size = None
    return {} if size is None else {_SIZE_LIMIT: size}


class DeadLetterTopics:
    """Sends dead letters to the dead-letter topics, each created with its first letter.

    Letters that the topic refuses, such as messages that are too large, go to `refuge`, and so do
    all letters if the topic cannot be created or written.
    """

    def __init__(
        self, *, writer: TopicWriter, topics: Topics, refuge: DeadLetters, observe: Observer
    ) -> None:
        self._writer = writer
        self._topics = topics
        self._refuge = refuge
        self._observe = observe
        self._made: set[str] = set()

    def write(self, letters: Sequence[DeadLetter]) -> None:
        """Send dead letters, or store them in the refuge; they are durable when this returns."""
        sources = {letter.message.topic() or "" for letter in letters}
        unusable = {source: why for source in sources if (why := self._prepare(source))}
        refused: dict[int, str] = {}
        sent: list[int] = []
        for index, letter in enumerate(letters):
            why = unusable.get(letter.message.topic() or "")
            if why is None:
                sent.append(index)
            else:
                refused[index] = why
        refused |= self._send_all(letters, sent)
        if refused:
            self._refuge.write([letters[index] for index in sorted(refused)])
        for index, reason in sorted(refused.items()):
            message = letters[index].message
            self._observe(
                "dead_letter_refused",
                topic=dead_letter_topic(message.topic() or ""),
                source=f"{message.topic()}/{message.partition()}",
                offset=message.offset(),
                size_bytes=len(message.value() or b""),
                reason=reason,
                kept_in=str(self._refuge),
            )

    def _send_all(self, letters: Sequence[DeadLetter], indexes: Sequence[int]) -> dict[int, str]:
        """Send some of the letters; return which were refused, and why.

        A batch is refused as a whole, so what was refused is sent again in halves, down to single
        letters, a limited number of times.
        """
        refused: dict[int, str] = {}
        todo, sends = [indexes] if indexes else [], 0
        while todo:
            part = todo.pop()
            found = self._send(letters, part)
            sends += 1
            if len(part) == 1 or sends > _MAX_SENDS:
                refused |= found
            else:
                again = sorted(found)
                half = (len(again) + 1) // 2
                todo += [each for each in (again[half:], again[:half]) if each]
        return refused

    def _send(self, letters: Sequence[DeadLetter], indexes: Sequence[int]) -> dict[int, str]:
        refused: dict[int, str] = {}
        try:
            for index in indexes:
                message = letters[index].message
                self._writer.offer(
                    dead_letter_topic(message.topic() or ""),
                    message.key(),
                    message.value(),
                    letters[index].headers(),
                    partial(refused.__setitem__, index),
                )
            self._writer.flush()
        except (BadData, ConfigError) as exc:  # the producer has failed for good
            return dict.fromkeys(indexes, str(exc))
        return refused

    def _prepare(self, source: str) -> str | None:
        """Create a topic's dead-letter topic unless it exists; return why that failed.

        It is tried again with the next dead letters: permissions may be granted meanwhile.
        """
        topic = dead_letter_topic(source)
        if topic in self._made:
            return None
        try:
            config = dead_letter_config(self._topics, source)
            self._topics.create(topic, partitions=1, replication=None, config=config)
        except (BadData, ConfigError) as exc:
            if not self._exists(topic):
                return str(exc)
        self._made.add(topic)
        return None

    def _exists(self, topic: str) -> bool:
        """Return whether a topic that k2 may not create already exists."""
        try:
            self._topics.describe([topic])
        except (BadData, ConfigError, NotFound):
            return False
        return True


@contextmanager
def open_dead_letter_topics(
    kafka: Mapping[str, str], *, refuge: DeadLetters, timeout_s: float, observe: Observer
) -> Iterator[DeadLetterTopics]:
    """Open a sender of dead letters; letters that the topics refuse go to `refuge`."""
    # Messages that the brokers accepted once, they accept again.
    limits = {"message.max.bytes": _LARGEST, **kafka}
    with open_writer(limits, observe=observe) as writer:
        topics = Topics(kafka, timeout_s=timeout_s)
        yield DeadLetterTopics(writer=writer, topics=topics, refuge=refuge, observe=observe)
