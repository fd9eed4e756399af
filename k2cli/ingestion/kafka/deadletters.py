"""Messages that became no row: onto the topic of dead letters, with where and why."""

from dataclasses import dataclass

from confluent_kafka import Message


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A message that became no row, and why."""

    message: Message
    reason: str
