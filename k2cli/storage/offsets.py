"""The position of a table on Kafka topics, and whether a batch may continue it; pure.

The position is, for every partition that ever fed the table, the next offset to read. It is one
property of the newest snapshot for all topics, so that rows and offsets become visible, or
vanish, together. A topic is identified by its id and name: a recreated topic starts over.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from k2cli.errors import BadData, Conflict

KEY: Final = "k2.kafka"


@dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One partition of one topic."""

    topic: str
    topic_id: str
    number: int


Offsets = Mapping[Partition, int]  # the next offset to read


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The offsets of one partition in a batch."""

    expected: int | None  # the required offset of the table; None: never written
    reached: int  # the offset afterwards


class PositionMoved(Conflict):
    """Another consumer wrote these partitions, or the table was rolled back: resume there."""


class OffsetPosition:
    """The position of one batch of rows from Kafka, which is never written twice.

    If the table is not at the start of the batch, another consumer has taken over or it was rolled
    back: then the batch is not written at all.
    """

    key: Final = KEY

    def __init__(self, spans: Mapping[Partition, Span]) -> None:
        self._spans = spans

    def advance(self, before: str | None) -> str:
        """Return the offsets after the rows, if the table is at their start.

        Raises:
            PositionMoved: it is not.
        """
        offsets = dict(decode_offsets(before))
        for partition, span in self._spans.items():
            found = offsets.get(partition)
            if found != span.expected:
                raise PositionMoved(
                    f"{partition.topic}/{partition.number} was expected at offset"
                    f" {span.expected}, but the table is at {found}"
                )
            offsets[partition] = span.reached
        return encode_offsets(offsets)


def encode_offsets(offsets: Offsets) -> str:
    """Encode offsets as a property: {topic: {topic id: {partition: next offset}}}, as JSON."""
    document: dict[str, dict[str, dict[str, int]]] = {}
    for partition in sorted(offsets):
        ids = document.setdefault(partition.topic, {})
        ids.setdefault(partition.topic_id, {})[str(partition.number)] = offsets[partition]
    return json.dumps(document, separators=(",", ":"))


def decode_offsets(text: str | None) -> Offsets:
    """Decode what `encode_offsets` wrote; a missing property means no offsets.

    Raises:
        BadData: the property is damaged.
    """
    if text is None:
        return {}
    try:
        return {
            Partition(topic, topic_id, int(number)): int(offset)
            for topic, ids in json.loads(text).items()
            for topic_id, partitions in ids.items()
            for number, offset in partitions.items()
        }
    except (ValueError, TypeError, AttributeError) as exc:
        raise BadData(f"the table's Kafka position cannot be read: {exc}") from exc
