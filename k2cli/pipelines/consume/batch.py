"""What was read and waits for its commit: rows, dead letters, and the offsets that they span."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from k2cli.ingestion.kafka.deadletters import DeadLetter
from k2cli.ingestion.kafka.topics import Place
from k2cli.storage.offsets import Partition, Span

_FULL_BYTES: Final = 128 << 20  # of rows, however few messages they came in


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Messages of one topic, decoded: what they hold, and the offsets after them."""

    kind: str  # name of the record kind
    rows: pa.RecordBatch
    messages: int  # how many they were
    reached: Mapping[Place, "Reached"]
    letters: Sequence[DeadLetter] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a partition was read: the next offset, and the time of the last message."""

    offset: int
    time_ms: int | None  # None: no message, only its end


@dataclass(slots=True)
class Batch:
    """Rows and the spans of offsets that they came from; committed together, or not at all."""

    rows: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)  # by kind
    spans: dict[Partition, Span] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    newest_ms: dict[Place, int] = field(default_factory=dict)  # of the last message
    messages: int = 0
    size_bytes: int = 0
    began_s: float = 0.0  # monotonic; when the first message was read
    # The part that certainly was read from the topics whose ids `spans` has.
    confirmed: "Batch | None" = None
    is_cut: bool = False  # down to that part

    def copy(self) -> "Batch":
        """Copy the batch as it is so far."""
        return replace(
            self,
            rows={name: list(batches) for name, batches in self.rows.items()},
            spans=dict(self.spans),
            letters=list(self.letters),
            newest_ms=dict(self.newest_ms),
            confirmed=None,
        )

    def cut(self) -> "Batch":
        """Return the confirmed part, which may be empty."""
        return replace(self.confirmed or Batch(), is_cut=True)

    def topic_ids(self) -> set[tuple[str, str]]:
        """Return the names and ids of the topics that the batch is to be committed under."""
        return {(partition.topic, partition.topic_id) for partition in self.spans}

    def reached(self) -> dict[Place, int]:
        """Return the offsets that a commit of the batch reaches."""
        return {(each.topic, each.number): span.reached for each, span in self.spans.items()}

    def fill(self, batch_rows: int) -> float:
        """Return how full the batch is: 1 if it has that many messages, or too many bytes."""
        return max(self.messages / batch_rows, self.size_bytes / _FULL_BYTES)
