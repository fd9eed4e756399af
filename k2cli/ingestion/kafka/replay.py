"""Send dead letters back to the topics they came from, each exactly once.

The messages and the receipt for them (`letters.py`) are written in one transaction: both appear or
neither does, even if the run is killed. Only one replay of a topic runs at a time: all replays use
the same transactional id, so a second one fences the first before it reads the receipts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from k2cli.errors import Conflict, K2Error
from k2cli.events import Observer
from k2cli.ingestion.kafka.letters import RECEIPT, Letter, LetterId, LetterReader, OffsetSet
from k2cli.ingestion.kafka.producer import TopicWriter, open_writer
from k2cli.ingestion.kafka.topics import Topics
from k2cli.ingestion.kafka.vendor import translated

_CHUNK_LETTERS: Final = 1_000
_CHUNK_BYTES: Final = 16 << 20
_DEFAULTS: Final = {
    "message.max.bytes": "1000000000",  # the brokers accepted the message once
    # Readers of the topic wait this long behind a replay that was killed.
    "transaction.timeout.ms": "60000",
    "message.timeout.ms": "60000",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayChoice:
    """Which dead letters to replay."""

    letters: Sequence[LetterId] = ()  # empty: all
    value: bytes | None = None  # repaired, of the only letter; None: as in the letter
    is_again: bool = False  # also those replayed before


@dataclass(slots=True, kw_only=True)
class ReplayTotals:
    """The counts of one replay."""

    letters: int = 0
    replayed: int = 0
    skipped: int = 0  # dead letters that were replayed before


class Replay:
    """Sends dead letters back. Created by `open_replay`; without a writer it only counts."""

    def __init__(
        self,
        *,
        reader: LetterReader,
        writer: TopicWriter | None,
        topics: Topics,
        kafka: Mapping[str, str],
    ) -> None:
        self.totals: Final = ReplayTotals()
        self._reader = reader
        self._writer = writer
        self._topics = topics
        self._kafka = kafka
        self._partitions: dict[str, int] = {}  # number of partitions, by topic
        self._sent: dict[int, OffsetSet] = {}  # in the open transaction
        self._letters = self._bytes = 0
        self._is_stopping = False

    def stop(self) -> None:
        """Stop the run before its next letter, as Ctrl-C would. Called from a signal handler.

        (A KeyboardInterrupt raised within confluent_kafka becomes a TypeError.)
        """
        self._is_stopping = True

    def run(self, choice: ReplayChoice, *, on_skipped: Callable[[LetterId], None]) -> ReplayTotals:
        """Send dead letters back; skip those already replayed unless they are to be sent again.

        Chosen letters are sent in one transaction, and `on_skipped` is called for each that is
        skipped. All letters are sent in several transactions, so that memory stays bounded.

        Raises:
            NotFound: the topic of a letter does not exist; uncommitted letters are not sent.
            Conflict: another replay of the topic started; it continues where this one stopped.
            KeyboardInterrupt: `stop` was called.
        """
        if not choice.is_again:
            self._reader.read_receipts(choice.letters or None)
        for letter in self._letters_of(choice):
            if self._is_stopping:
                raise KeyboardInterrupt
            self.totals.letters += 1
            if not choice.is_again and self._reader.is_replayed(letter.id):
                self.totals.skipped += 1
                if choice.letters:
                    on_skipped(letter.id)
                continue
            self._send(letter)
            is_full = self._letters >= _CHUNK_LETTERS or self._bytes >= _CHUNK_BYTES
            if is_full and not choice.letters:
                self._commit()
                self._begin()
        self._commit()
        return self.totals

    def _letters_of(self, choice: ReplayChoice) -> Iterator[Letter]:
        if not choice.letters:
            yield from self._reader.letters()
        for letter in map(self._reader.letter, choice.letters):
            yield letter if choice.value is None else replace(letter, value=choice.value)

    def _send(self, letter: Letter) -> None:
        partition = self._partition(letter)
        self._letters += 1
        self._bytes += len(letter.value or b"")
        self._sent.setdefault(letter.id.partition, OffsetSet()).add(
            letter.id.offset, letter.id.offset
        )
        if self._writer is not None:
            with translated(f"cannot replay {letter.id}", self._kafka):
                self._writer.send(
                    letter.topic, letter.key, letter.value, letter.headers, partition=partition
                )

    def _partition(self, letter: Letter) -> int | None:
        """Return the message's original partition, or None if its topic no longer has it."""
        if letter.topic not in self._partitions:
            (info,) = self._topics.describe([letter.topic])
            self._partitions[letter.topic] = len(info.partitions)
        is_there = (
            letter.partition is not None and letter.partition < self._partitions[letter.topic]
        )
        return letter.partition if is_there else None

    def _begin(self) -> None:
        if self._writer is not None:
            self._writer.begin()

    def _commit(self) -> None:
        if self._writer is not None and self._letters:
            for partition, offsets in self._sent.items():
                key = f"{RECEIPT} {offsets}".encode()
                text = str(offsets).encode()
                self._writer.send(
                    self._reader.topic, key, b"", [(RECEIPT, text)], partition=partition
                )
            self._writer.commit()
        self.totals.replayed += self._letters
        self._sent, self._letters, self._bytes = {}, 0, 0


@contextmanager
def open_replay(
    reader: LetterReader,
    kafka: Mapping[str, str],
    *,
    timeout_s: float,
    is_dry_run: bool,
    observe: Observer,
) -> Iterator[Replay]:
    """Start a replay of the letters in a refreshed reader; abort it if it ends early.

    Raises:
        Conflict: another replay of the topic started.
        Unavailable: the brokers do not answer.
    """
    with ExitStack() as stack:
        writer: TopicWriter | None = None
        if not is_dry_run:
            writer = stack.enter_context(
                open_writer(
                    {**_DEFAULTS, **kafka},
                    observe=observe,
                    patience_s=timeout_s,
                    transaction=f"k2-replay-{reader.topic}",
                )
            )
            stack.enter_context(_aborted(writer, reader.topic))
            writer.begin()
            reader.refresh()
        topics = Topics(kafka, timeout_s=timeout_s)
        yield Replay(reader=reader, writer=writer, topics=topics, kafka=kafka)


@contextmanager
def _aborted(writer: TopicWriter, topic: str) -> Iterator[None]:
    """Abort a transaction that is still open at the end."""
    try:
        yield
    except Conflict as exc:
        raise Conflict(
            f"another replay of {topic} started and replaced this one",
            hint="run it again: letters already replayed are not sent twice",
        ) from exc
    finally:
        with suppress(K2Error):  # another replay has done so
            writer.abort()
