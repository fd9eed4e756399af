"""A batch waiting for its commit: rows, dead letters and their offset spans."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from k2cli.ingestion.kafka.deadletters import DeadLetter
from k2cli.ingestion.kafka.topics import PartitionId
from k2cli.storage.offsets import Partition, Span

_FULL_BYTES: Final = 128 << 20  # of rows and dead letters, for any number of messages


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """Decoded messages of one topic: their rows, and the offsets after them."""

    kind: str  # name of the record kind
    rows: pa.RecordBatch
    messages: int  # number of messages
    reached: Mapping[PartitionId, "Reached"]
    letters: Sequence[DeadLetter] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """The read position of a partition: next offset, and time of the last message."""

    offset: int
    time_ms: int | None  # None: no message, only the end


@dataclass(slots=True)
class Batch:
    """Rows and their offset spans, committed together or not at all."""

    rows: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)  # by kind
    spans: dict[Partition, Span] = field(default_factory=dict)
    letters: list[DeadLetter] = field(default_factory=list)
    newest_ms: dict[PartitionId, int] = field(default_factory=dict)  # of the last message
    messages: int = 0
    size_bytes: int = 0
    began_s: float = 0.0  # monotonic; when the first message was read
    # The part known to be read from the topics with the ids in `spans`.
    confirmed: "Batch | None" = None
    is_cut: bool = False  # truncated to that part

    def copy(self) -> "Batch":
        """Copy the current batch."""
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
        """Return the names and ids of the topics to commit the batch under."""
        return {(partition.topic, partition.topic_id) for partition in self.spans}

    def reached(self) -> dict[PartitionId, int]:
        """Return the end offsets of the batch."""
        return {(each.topic, each.number): span.reached for each, span in self.spans.items()}

    def fill(self, batch_rows: int) -> float:
        """Return how full the batch is: 1 at the limit of messages or bytes."""
        return max(self.messages / batch_rows, self.size_bytes / _FULL_BYTES)
