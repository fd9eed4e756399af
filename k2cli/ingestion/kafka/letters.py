"""Read dead letters back from their topic.

A letter is identified by its partition and offset there. The topic also holds receipts: a record
with the header k2.replayed lists the offsets of its partition that were replayed, as ranges such as
0-16,18. Receipts are newer than their letters, so retention keeps them at least as long.

The module is long because letters and receipts can only be read together.
"""

import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from confluent_kafka import Consumer, TopicPartition

from k2cli.errors import NotFound
from k2cli.ingestion.kafka.consumer import Message
from k2cli.ingestion.kafka.deadletters import (
    PREFIX,
    SUFFIX,
    dead_letter_topic,
    is_added,
    take_headers,
)
from k2cli.ingestion.kafka.producer import Header
from k2cli.ingestion.kafka.topics import PartitionInfo, Topics
from k2cli.ingestion.kafka.vendor import (
    AT_END,
    RETRIED,
    client_config,
    translate,
    translated,
    unreachable,
)
from k2cli.iso import moment_of

RECEIPT: Final = f"{PREFIX}replayed"
_GROUP: Final = "k2-dlq"  # of the client; it never joins or commits
_FIXED: Final = {
    "group.id": _GROUP,
    "group.protocol": "classic",
    "partition.assignment.strategy": "cooperative-sticky",  # unused, but an invalid one fails
    "enable.auto.commit": False,
    "auto.offset.reset": "earliest",  # skip what was deleted meanwhile
    "enable.partition.eof": True,
}
_PREFETCH_KBYTES: Final = 16 << 10
_SPAN_FACTOR: Final = 4
_LARGEST: Final = (1 << 63) - 1  # Kafka's integers have 64 bits
_BATCH_ROWS: Final = 10_000


class OffsetSet:
    """Offsets of one partition, stored as ranges."""

    def __init__(self, text: str = "") -> None:
        """Parse ranges such as 0-16,18.

        Raises:
            ValueError: the text is invalid, or a number exceeds 64 bits.
        """
        self.ranges: Final[list[tuple[int, int]]] = []  # ascending and disjoint
        for part in text.split(",") if text else ():
            begin, _, end = part.partition("-")
            first, last = _offset(begin), _offset(end or begin)
            if first > last:
                raise ValueError(f"invalid range: {first}-{last}")
            self.add(first, last)

    def __str__(self) -> str:
        """Format the ranges."""
        return ",".join(
            f"{first}-{last}" if last > first else str(first) for first, last in self.ranges
        )

    def __contains__(self, offset: int) -> bool:
        """Return whether an offset is one of them."""
        index = bisect_right(self.ranges, offset, key=itemgetter(0)) - 1
        return index >= 0 and offset <= self.ranges[index][1]

    def add(self, first: int, last: int) -> None:
        """Add all offsets from `first` to `last`."""
        begin = bisect_left(self.ranges, first - 1, key=itemgetter(1))
        end = bisect_right(self.ranges, last + 1, key=itemgetter(0))
        if begin < end:
            first = min(first, self.ranges[begin][0])
            last = max(last, self.ranges[end - 1][1])
        self.ranges[begin:end] = [(first, last)]

    def update(self, other: "OffsetSet") -> None:
        """Add the offsets of another set."""
        for first, last in other.ranges:
            self.add(first, last)

    def mask(self, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Return for each offset whether it is one of them."""
        if not self.ranges:
            return np.zeros(len(offsets), dtype=np.bool_)
        firsts, lasts = np.array(self.ranges, dtype=np.int64).T
        indexes = np.searchsorted(firsts, offsets, side="right") - 1
        is_in: npt.NDArray[np.bool_] = (indexes >= 0) & (offsets <= lasts[indexes])
        return is_in


def _offset(text: str) -> int:
    """Parse an offset, or another integer of Kafka.

    Raises:
        ValueError: it is not an integer, or exceeds 64 bits.
    """
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"invalid number: {text!r}")
    number = int(text)
    if number > _LARGEST:
        raise ValueError(f"invalid number, more than 64 bits: {text}")
    return number


class LetterId(NamedTuple):
    """Partition and offset of a letter on its dead-letter topic."""

    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> "LetterId":
        """Parse the form of `str`: 0/17.

        Raises:
            ValueError: it has another form.
        """
        partition, _, offset = text.partition("/")
        return cls(_offset(partition), _offset(offset))

    def __str__(self) -> str:
        """Format it as users write it."""
        return f"{self.partition}/{self.offset}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A dead letter; key, value and headers are those of the original message."""

    id: LetterId
    time_ms: int  # UTC, when it became a dead letter
    reason: str
    code: str  # stable codes, empty if not written by k2; see rejects.py
    cause: str
    field: str  # the field that does not fit, if any
    topic: str  # where the message came from
    partition: int | None
    offset: int | None
    sent_at: str  # the message's time
    key: bytes | None
    value: bytes | None
    headers: Sequence[Header]


class LetterReader:
    """The dead letters of a topic at the time of creation. Created by `open_letters`."""

    def __init__(self, *, kafka: Mapping[str, str], topic: str, timeout_s: float) -> None:
        self.topic: Final = topic if topic.endswith(SUFFIX) else dead_letter_topic(topic)
        self._source = self.topic.removesuffix(SUFFIX)
        self._kafka = kafka
        self._timeout_s = timeout_s
        self._topics = Topics(kafka, timeout_s=timeout_s)
        self._partitions: tuple[PartitionInfo, ...] = ()
        self._replayed: dict[int, OffsetSet] = {}
        self.refresh()
        with translated("cannot start a Kafka consumer", kafka):
            self._consumer = Consumer(
                client_config(
                    kafka,
                    _FIXED,
                    queued_max_messages_kbytes=_PREFETCH_KBYTES,
                )
            )

    @property
    def is_missing(self) -> bool:
        """Whether the dead-letter topic does not exist: there never was a letter."""
        return not self._partitions

    def refresh(self) -> None:
        """Refresh the ends of the topic's partitions.

        Raises:
            NotFound: neither the dead-letter topic nor its source topic exists.
        """
        try:
            (info,) = self._topics.describe([self.topic])
        except NotFound:
            self._topics.describe([self._source])
            return
        self._partitions = info.partitions

    def letters(self, *, newest: int | None = None) -> Iterator[Letter]:
        """Read the letters, partition by partition; optionally only the newest of each.

        Receipts are read along with them; `is_replayed` is complete at the end.
        """
        for info in self._partitions:
            yield from self._read(info, self._start(info, newest))

    def letter(self, letter_id: LetterId) -> Letter:
        """Read one letter.

        Raises:
            NotFound: it does not exist or was deleted.
        """
        info = next((each for each in self._partitions if each.number == letter_id.partition), None)
        if info is not None and info.first <= letter_id.offset < info.next:
            for letter in self._read(info, letter_id.offset):
                if letter.id == letter_id:
                    return letter
                break
        raise NotFound(
            f"dead letter {letter_id} does not exist on {self.topic}",
            hint=f"k2 dlq list --topic {self._source}",
        )

    def read_receipts(self, letter_ids: Sequence[LetterId] | None = None) -> None:
        """Read which letters were replayed: these, or all."""
        for info in self._partitions:
            offsets = [
                letter_id.offset
                for letter_id in letter_ids or ()
                if letter_id.partition == info.number
            ]
            if letter_ids is None or offsets:
                for _ in self._read(info, min(offsets, default=info.first)):
                    pass

    def is_replayed(self, letter_id: LetterId) -> bool:
        """Return whether a receipt read so far covers the letter."""
        return (
            letter_id.partition in self._replayed
            and letter_id.offset in self._replayed[letter_id.partition]
        )

    def replayed(self, partition: int) -> OffsetSet:
        """Return the replayed offsets of a partition from the receipts read so far."""
        return self._replayed.get(partition, OffsetSet())

    def close(self) -> None:
        """Close the connections."""
        self._consumer.close()

    def _start(self, info: PartitionInfo, newest: int | None) -> int:
        """Return an offset with at least N letters from there on, or the first offset."""
        if newest is None:
            return info.first
        span = newest
        while info.next - span > info.first:
            begin = info.next - span
            if sum(1 for _ in self._read(info, begin)) >= newest:
                return begin
            span *= _SPAN_FACTOR  # receipts and transactions use offsets, too
        return info.first

    def _read(self, info: PartitionInfo, begin: int) -> Iterator[Letter]:
        """Read one partition from an offset to its end; record its receipts."""
        for message in self._messages(info, begin):
            headers = take_headers(message) or []
            ours = _ours(headers)
            receipt = _receipt(ours)
            if receipt is not None:
                self._replayed.setdefault(info.number, OffsetSet()).update(receipt)
            else:
                yield self._letter(message, headers, ours)

    def _messages(self, info: PartitionInfo, begin: int) -> Iterator[Message]:
        if begin >= info.next:
            return
        what = f"cannot read {self.topic}/{info.number}"
        with translated(what, self._kafka):
            self._consumer.assign([TopicPartition(self.topic, info.number, begin)])
        deadline = time.monotonic() + self._timeout_s
        while (wait_s := deadline - time.monotonic()) > 0:
            with translated(what, self._kafka):
                message = self._consumer.poll(wait_s)
            if message is None:
                break
            error = message.error()
            if error is None:
                deadline = time.monotonic() + self._timeout_s
                offset = cast("int", message.offset())
                if offset < info.next:
                    yield message
                if offset + 1 >= info.next:
                    return
            elif error.code() == AT_END:
                return
            elif error.code() not in RETRIED and not error.retriable():
                raise translate(what, error, self._kafka)
        raise unreachable(f"{what}: no data arrives", self._kafka)

    def _letter(
        self, message: Message, headers: Sequence[Header], ours: Mapping[str, str]
    ) -> Letter:
        letter_id = LetterId(cast("int", message.partition()), cast("int", message.offset()))
        return Letter(
            id=letter_id,
            time_ms=message.timestamp()[1],
            reason=ours.get("reason", ""),
            code=ours.get("code", ""),
            cause=ours.get("cause", ""),
            field=ours.get("field", ""),
            topic=ours.get("topic") or self._source,
            partition=_number(ours.get("partition")),
            offset=_number(ours.get("offset")),
            sent_at=ours.get("time", ""),
            key=message.key(),
            value=message.value(),
            headers=[(key, value) for key, value in headers if not is_added(key)],
        )


@contextmanager
def open_letters(
    kafka: Mapping[str, str], topic: str, *, timeout_s: float
) -> Iterator[LetterReader]:
    """Open the dead letters of a topic.

    Raises:
        NotFound: neither the topic nor its dead-letter topic exists.
    """
    with closing(LetterReader(kafka=kafka, topic=topic, timeout_s=timeout_s)) as reader:
        yield reader


_LISTED: Final = pa.schema(
    [
        ("letter", pa.string()),
        ("time", pa.timestamp("ms", tz="UTC")),
        ("reason", pa.string()),
        ("topic", pa.string()),
        ("partition", pa.int64()),
        ("offset", pa.int64()),
        ("key", pa.string()),
        ("size_bytes", pa.int64()),
        ("at_partition", pa.int64()),
        ("at_offset", pa.int64()),
    ]
)


def list_letters(reader: LetterReader, spool: Path, *, newest: int | None) -> pa.Table:
    """List letters, the newest last, without their values.

    The rows are stored in the file `spool`, not in memory, and exist only as long as it does. The
    last column is whether the letter was replayed. Times outside the years 1 to 9999 are null.
    """
    rows: list[tuple[object, ...]] = []
    with pa.OSFile(str(spool), "wb") as sink, pa.ipc.new_file(sink, _LISTED) as writer:
        for letter in reader.letters(newest=newest):
            rows.append(_row(letter))
            if len(rows) >= _BATCH_ROWS:
                writer.write_batch(_batch(rows))
                rows.clear()
        writer.write_batch(_batch(rows))
    table = pa.ipc.open_file(pa.memory_map(str(spool))).read_all()
    numbers = np.asarray(table["at_partition"])
    offsets = np.asarray(table["at_offset"])
    partitions = np.unique(numbers).tolist()
    is_replayed = np.zeros(len(offsets), dtype=np.bool_)
    for number in partitions:
        is_replayed |= (numbers == number) & reader.replayed(number).mask(offsets)
    table = table.append_column("is_replayed", pa.array(is_replayed))
    if len(partitions) > 1:
        keys = ("time", "at_partition", "at_offset")
        table = table.sort_by([(key, "ascending") for key in keys])
    if newest is not None:
        table = table.slice(max(0, table.num_rows - newest))
    return table.drop_columns(["at_partition", "at_offset"])


def _row(letter: Letter) -> tuple[object, ...]:
    return (
        str(letter.id),
        None if moment_of(letter.time_ms * 1000) is None else letter.time_ms,
        letter.reason or None,
        letter.topic,
        letter.partition,
        letter.offset,
        as_text(letter.key),
        None if letter.value is None else len(letter.value),
        *letter.id,
    )


def _batch(rows: Sequence[tuple[object, ...]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True) if rows else ([] for _ in _LISTED)
    arrays = [
        pa.array(list(values), field.type) for values, field in zip(columns, _LISTED, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=_LISTED)


def as_text(raw: bytes | None) -> str | None:
    """Show bytes as text if they are UTF-8, else in hexadecimal."""
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return f"0x{raw.hex()}"


def _ours(headers: Sequence[Header]) -> dict[str, str]:
    """Return the headers that k2 added, as text, without the prefix of their names."""
    return {
        key.removeprefix(PREFIX): value.decode(errors="replace")
        for key, value in headers
        if is_added(key) and value is not None
    }


def _receipt(ours: Mapping[str, str]) -> OffsetSet | None:
    text = ours.get(RECEIPT.removeprefix(PREFIX))
    if not text:
        return None
    try:
        return OffsetSet(text)
    except ValueError:
        return None


def _number(text: str | None) -> int | None:
    """Parse a number of a record; None if it is invalid or exceeds 64 bits."""
    try:
        return _offset(text or "")
    except ValueError:
        return None
