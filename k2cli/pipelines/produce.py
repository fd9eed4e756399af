"""Produce rows to their topics, with the registered schema."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from k2cli.codec.encode import wire_header
from k2cli.errors import NotFound
from k2cli.events import Observer
from k2cli.files import open_input
from k2cli.flow import Batch
from k2cli.ingestion.kafka.producer import TopicWriter, open_writer
from k2cli.ingestion.kafka.registry import Registry, open_registry, subject_of
from k2cli.ingestion.kafka.topics import Topics
from k2cli.ingestion.ndjson import read_ndjson
from k2cli.pipelines.pump import Allowance, LineSums, RejectPolicy, pump
from k2cli.records import RecordKind, topic_of
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceOptions:
    """Where to produce, and how."""

    kafka: Mapping[str, str]
    registry: Mapping[str, str]
    timeout_s: float
    run: str  # a header of every message
    topic: str | None = None  # for all rows; None: market.{asset_class}.{kind}
    is_registering: bool = True  # k2's schema, if the registry does not have it yet
    transaction: str | None = None  # its id; then all rows appear or none
    patience_s: float | None = None  # for brokers that do not answer; None: no limit


class TopicRows:
    """Produces rows to their topics. Created by `open_topics`."""

    def __init__(
        self, *, writer: TopicWriter, topics: Topics, registry: Registry, options: ProduceOptions
    ) -> None:
        self._writer = writer
        self._topics = topics
        self._registry = registry
        self._options = options
        self._headers: dict[tuple[str, str], bytes] = {}

    def prepare(self, kind: RecordKind, asset_class: str) -> str:
        """Prepare the topic of such rows in advance; return its name.

        Raises:
            NotFound: the topic does not exist, or the registry lacks the schema and it must not be
            registered.
        """
        topic = self._options.topic or topic_of(kind, asset_class)
        self._header(topic, kind)
        return topic

    def write(self, kind: RecordKind, rows: pa.RecordBatch) -> None:
        """Queue rows. See `TopicWriter.write`."""
        if self._options.topic is not None:
            self._write(self._options.topic, kind, rows)
            return
        for asset_class in pc.unique(rows["asset_class"]).to_pylist():
            some = rows.filter(pc.equal(rows["asset_class"], asset_class))
            self._write(topic_of(kind, asset_class), kind, some)

    def flush(self) -> None:
        """Wait until the brokers have everything. See `TopicWriter.flush`."""
        self._writer.flush()

    def commit(self) -> None:
        """Make everything written since `begin` visible atomically."""
        self._writer.commit()

    def begin(self) -> None:
        """Begin a transaction: later rows appear atomically or not at all."""
        self._writer.begin()

    def abort(self) -> None:
        """Discard everything written since `begin`."""
        self._writer.abort()

    def _write(self, topic: str, kind: RecordKind, rows: pa.RecordBatch) -> None:
        self._writer.write(topic, kind, rows, header=self._header(topic, kind))

    def _header(self, topic: str, kind: RecordKind) -> bytes:
        known = self._headers.get((topic, kind.name))
        if known is not None:
            return known
        try:
            self._topics.describe([topic])
        except NotFound as exc:
            raise NotFound(str(exc), hint=f"run k2 init, or k2 topic create {topic}") from exc
        subject = subject_of(topic)
        ask = self._registry.register if self._options.is_registering else self._registry.find
        header = self._headers[(topic, kind.name)] = wire_header(ask(subject, kind.avro))
        return header


@contextmanager
def open_topics(options: ProduceOptions, *, observe: Observer) -> Iterator[TopicRows]:
    """Open a producer and its schema registry.

    Raises:
        ConfigError: Kafka or the registry is not configured, or a setting is wrong.
    """
    with ExitStack() as stack:
        registry = open_registry(options.registry, timeout_s=options.timeout_s)
        writer = open_writer(
            options.kafka,
            observe=observe,
            patience_s=options.patience_s,
            transaction=options.transaction,
            run=options.run,
        )
        yield TopicRows(
            registry=stack.enter_context(registry),
            writer=stack.enter_context(writer),
            topics=Topics(options.kafka, timeout_s=options.timeout_s),
            options=options,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ProduceJob:
    """An input with rows in ndjson, and where its rows and rejects go."""

    file: str  # - is stdin
    kind: RecordKind
    options: ProduceOptions
    rejects: Path
    max_rejects: int
    max_reject_bytes: int = MAX_REJECT_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class Production:
    """Produces one input. Created by `open_production`."""

    batches: Iterable[Batch]
    topics: TopicRows
    file: str
    policy: RejectPolicy
    sums: LineSums = field(default_factory=LineSums)  # of what was read so far

    def run(self) -> None:
        """Produce the rows as they arrive, and wait until the brokers have them.

        Raises:
            BadData: more rejects than allowed; the rows before are produced.
        """
        try:
            pump(
                self.batches,
                self.topics.write,
                path=self.file,
                policy=self.policy,
                sums=self.sums,
            )
        finally:  # also what was read before an interruption
            self.topics.flush()
            self.policy.rejects.sync()


@contextmanager
def open_production(job: ProduceJob, *, run: str, observe: Observer) -> Iterator[Production]:
    """Open an input, its rejects file and its topic; nothing is produced yet.

    Raises:
        ConfigError: Kafka or the registry is not configured, or a setting is wrong.
        NotFound: the input or the topic does not exist, or the registry lacks the schema.
    """
    with ExitStack() as stack:
        stream = stack.enter_context(open_input(job.file))
        policy = RejectPolicy(
            rejects=stack.enter_context(RejectLog(job.rejects, run=run)),
            allowance=Allowance(job.max_rejects),
            max_reject_bytes=job.max_reject_bytes,
        )
        topics = stack.enter_context(open_topics(job.options, observe=observe))
        topics.prepare(job.kind, "")
        batches = read_ndjson(stream, job.kind)
        yield Production(batches=batches, topics=topics, file=job.file, policy=policy)
