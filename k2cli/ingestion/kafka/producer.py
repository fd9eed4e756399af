"""Produce rows to topics: idempotent, acknowledged by all replicas, in order per key."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import pyarrow as pa
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from k2cli.codec.encode import encode_messages
from k2cli.errors import BadData, ConfigError, K2Error
from k2cli.events import Observer
from k2cli.ingestion.kafka.vendor import (
    FATAL,
    PURGED,
    client_config,
    is_refusal,
    translate,
    translated,
    unreachable,
)
from k2cli.records import RecordKind

Header = tuple[str, bytes | None]
RUN_HEADER: Final = "k2.run"  # of every message: the id of its run, as in log lines
_ROWS: Final = 16_384  # encoded together; bounds memory outside librdkafka
_QUEUE_BYTES: Final = 64 << 20  # waiting for the brokers; a full queue blocks the reader
_WAIT_S: Final = 0.2
_BY_KEY: Final = -1  # librdkafka's value for a partition chosen by the partitioner
_WARN_AFTER_S: Final = 5.0
_REPORT: Final = "delivery.report.only.error"
_TRANSACTION_MS: Final = 900_000  # the brokers' default maximum
_TRANSACTION_WAIT_S: Final = 60.0


class TopicWriter:
    """Produces rows. Created by `open_writer`.

    Records are durable once `flush` has returned. A record that the brokers permanently refuse
    raises in the next `write` or `flush`; it is never lost silently.
    """

    def __init__(
        self,
        *,
        kafka: Mapping[str, str],
        patience_s: float,
        transaction: str | None,
        run: str,
        observe: Observer,
    ) -> None:
        self._kafka = kafka
        self._row_headers: list[tuple[str, str | bytes | None]] = [(RUN_HEADER, run)]
        self._patience_s = patience_s
        self._observe = observe
        self._failure: K2Error | None = None
        self._is_ready = False  # for transactions
        self._is_open = False  # a transaction
        # Outages are handled here, not record by record in the queue.
        limits: dict[str, object] = {"message_timeout_ms": 0}
        if transaction is not None:
            limits = {
                "transactional_id": transaction,
                "transaction_timeout_ms": _TRANSACTION_MS,
                "message_timeout_ms": _TRANSACTION_MS,
            }
        with translated("cannot start a Kafka producer", kafka):
            self._producer = Producer(
                client_config(
                    kafka,
                    enable_idempotence=True,
                    acks="all",
                    compression_type="zstd",
                    linger_ms=20,
                    batch_size=1_000_000,
                    queue_buffering_max_messages=500_000,
                    queue_buffering_max_kbytes=_QUEUE_BYTES >> 10,
                    # As in the Java clients, so that all clients map a key to the same partition.
                    partitioner="murmur2_random",
                    **limits,
                )
                | {
                    "on_delivery": self._on_delivery,
                    # Deliveries are counted by the queue length, without a callback per record.
                    _REPORT: True,  # the client does not take it as text
                }
            )

    def write(self, topic: str, kind: RecordKind, rows: pa.RecordBatch, *, header: bytes) -> None:
        """Queue rows, each as one message keyed by its symbol; wait while the queue is full.

        Raises:
            K2Error: the brokers refused a record, or were unreachable for too long.
        """
        produce = partial(self._producer.produce, headers=self._row_headers)
        for start in range(0, rows.num_rows, _ROWS):
            part = rows.slice(start, _ROWS)
            values = encode_messages(part, kind.avro, header=header).to_pylist()
            with self._translated(f"cannot write to {topic}"):
                for key, value in zip(part["symbol"].to_pylist(), values, strict=True):
                    try:
                        produce(topic, value, key)
                    except BufferError:
                        self._wait_for_room()
                        produce(topic, value, key)
            self._producer.poll(0)
            self._check()

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header],
        partition: int | None = None,
    ) -> None:
        """Queue one message unchanged; wait while the queue is full.

        Without a `partition` the key determines it.
        """
        number = _BY_KEY if partition is None else partition
        self._queue(
            topic, partial(self._producer.produce, topic, value, key, number, headers=list(headers))
        )

    def offer(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[Header],
        on_refused: Callable[[str], None],
    ) -> None:
        """Queue one message that may be refused: too large, or no permission.

        A refusal is not an error: `on_refused` is called with the reason, now or before `flush`
        returns.
        """
        produce = partial(
            self._producer.produce,
            topic,
            value,
            key,
            headers=list(headers),
            on_delivery=partial(self._on_refusal, on_refused),
        )
        try:
            self._queue(topic, produce)
        except (BadData, ConfigError) as exc:
            cause = exc.__cause__
            if not isinstance(cause, KafkaException) or not is_refusal(cause.args[0]):
                raise
            on_refused(str(exc))

    def _queue(self, topic: str, produce: Callable[[], None]) -> None:
        with self._translated(f"cannot write to {topic}"):
            try:
                produce()
            except BufferError:
                self._wait_for_room()
                produce()
        self._producer.poll(0)
        self._check()

    def flush(self) -> None:
        """Wait until the brokers have everything that was written.

        Raises:
            K2Error: the brokers refused a record, or were unreachable for too long.
        """
        with self._translated("cannot write"):
            self._wait(lambda: self._producer.flush(_WAIT_S))
        self._check()

    def begin(self) -> None:
        """Begin a transaction: everything written until `commit` appears atomically or not at all.

        Raises:
            Conflict: another producer has taken over this transaction's id.
            Unavailable: the brokers do not answer.
        """
        with translated("cannot begin a transaction", self._kafka):
            if not self._is_ready:
                self._producer.init_transactions(_TRANSACTION_WAIT_S)
                self._is_ready = True
            self._producer.begin_transaction()
        self._is_open = True

    def commit(self) -> None:
        """Flush and commit the transaction.

        Raises:
            Conflict: another producer has taken over this transaction's id.
        """
        self.flush()
        with translated("cannot commit a transaction", self._kafka):
            self._producer.commit_transaction(_TRANSACTION_WAIT_S)
        self._is_open = False

    def abort(self) -> None:
        """Abort the transaction, if one is open."""
        if self._is_open:
            self._is_open = False
            self._failure = None
            with translated("cannot abort a transaction", self._kafka):
                self._producer.abort_transaction(_TRANSACTION_WAIT_S)

    def close(self) -> None:
        """Discard messages that the brokers have not accepted; none after `flush`."""
        with suppress(KafkaException):  # of a producer that has failed permanently
            self._producer.purge()
            self._producer.flush(_WAIT_S)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """Translate errors of the block; for a failed producer, raise the cause of the failure."""
        with translated(what, self._kafka):
            try:
                yield
            except KafkaException as exc:
                if exc.args[0].code() == FATAL:
                    self._producer.flush(0)  # raises it
                raise

    def _wait_for_room(self) -> None:
        full = len(self._producer)

        def step() -> int:
            self._producer.poll(_WAIT_S)
            return max(0, len(self._producer) - full + 1)

        self._wait(step)

    def _wait(self, step: Callable[[], int]) -> None:
        """Repeat `step`, which returns how many records are left, until it returns 0."""
        left = step()
        moved_at = warned_at = time.monotonic()
        while left:
            before, left = left, step()
            now = time.monotonic()
            if left < before:
                moved_at = now
            self._check()
            stuck_s = now - moved_at
            if stuck_s > self._patience_s:
                raise unreachable(
                    f"{len(self._producer)} records are waiting to be sent", self._kafka
                )
            if stuck_s > _WARN_AFTER_S and now - warned_at > _WARN_AFTER_S:
                warned_at = now
                self._observe(
                    "kafka_unavailable", waiting=len(self._producer), seconds=round(stuck_s, 1)
                )

    def _on_refusal(
        self, on_refused: Callable[[str], None], error: KafkaError | None, message: Message
    ) -> None:
        if error is not None and is_refusal(error):
            on_refused(error.str())
        else:
            self._on_delivery(error, message)

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        is_purged = error is not None and error.code() == PURGED
        if error is not None and not is_purged and self._failure is None:
            what = f"topic {message.topic()} refused a record"
            self._failure = translate(what, error, self._kafka)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure


@contextmanager
def open_writer(
    kafka: Mapping[str, str],
    *,
    observe: Observer,
    patience_s: float | None = None,
    transaction: str | None = None,
    run: str = "",
) -> Iterator[TopicWriter]:
    """Open a producer; give up after `patience_s` without an answer.

    `run` becomes a header of every row. With `transaction`, a transactional id, it can `begin`
    transactions; another producer with the same id fences this one.

    Raises:
        ConfigError: Kafka is not set up, or a setting is wrong.
    """
    writer = TopicWriter(
        kafka=kafka,
        patience_s=math.inf if patience_s is None else patience_s,
        transaction=transaction,
        run=run,
        observe=observe,
    )
    try:
        yield writer
    finally:
        writer.close()
