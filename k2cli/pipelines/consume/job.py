"""A consumer job: which topics, into which target, and the resources it needs."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO, Final

from k2cli.codec.upgrade import V1Defaults
from k2cli.config import Settings
from k2cli.errors import NotFound, UsageError
from k2cli.events import Observer
from k2cli.ingestion.kafka.deadletters import (
    DeadLetterFile,
    DeadLetters,
    open_dead_letter_topics,
)
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.registry import Registry, open_registry
from k2cli.ingestion.kafka.topics import TopicInfo, Topics
from k2cli.pipelines.consume.loop import Consumption
from k2cli.pipelines.consume.policy import ConsumePolicy, Feed, Outlets, Tables
from k2cli.pipelines.printing import ArrowPrinter, NdjsonPrinter, StdoutTables
from k2cli.records import TOPIC_PREFIX, RecordKind, kind_of_topic, require_kind
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog
from k2cli.storage.lake import open_lake

_REGISTRY_PATIENCE_S: Final = 5.0  # with a registry that has just started


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumeJob:
    """Which topics to consume, and what happens to their messages."""

    kafka: Mapping[str, str]  # with librdkafka's names
    registry: Mapping[str, str]  # with confluent_kafka's names
    topics: Sequence[str]  # empty: every market.*.trades and market.*.quotes
    kind: RecordKind | None  # of all topics; None: by their names
    currency: str  # of records of the v1 schemas
    group: str  # its members share the partitions
    is_printed: bool = False  # to stdout, not to the tables
    is_arrow: bool = False  # print Arrow, not ndjson
    rejects: Path | None = None  # a file for dead letters, instead of their topics
    max_reject_bytes: int | None = None
    policy: ConsumePolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """The topics of a job with their record kinds, and the registry."""

    topics: Sequence[tuple[TopicInfo, RecordKind]]
    registry: Registry

    def kinds(self) -> list[RecordKind]:
        """Return the kinds, one per topic."""
        return [kind for _, kind in self.topics]


@contextmanager
def open_sources(job: ConsumeJob) -> Iterator[Sources]:
    """Find the topics of a job, and check that the registry answers.

    Raises:
        NotFound: a topic does not exist.
        UsageError: the kind of a topic's records cannot be inferred from its name.
    """
    timeout_s = job.policy.timeout_s
    with open_registry(
        job.registry, timeout_s=timeout_s, patience_s=_REGISTRY_PATIENCE_S
    ) as registry:
        sources = Sources(topics=_find_topics(job), registry=registry)
        registry.check()
        yield sources


@contextmanager
def open_tables(
    config: Settings, job: ConsumeJob, sources: Sources, *, out: BinaryIO, observe: Observer
) -> Iterator[Tables]:
    """Open the tables, or a printer to `out` for a printing job.

    Raises:
        UsageError: rows of several kinds cannot share one Arrow stream.
    """
    if not job.is_printed:
        with open_lake(config, create=True, observe=observe) as lake:
            yield lake
        return
    if not job.is_arrow:
        yield StdoutTables(NdjsonPrinter(out))
        return
    distinct = {kind.name: kind for kind in sources.kinds()}
    if len(distinct) > 1:
        raise UsageError(
            "an Arrow stream can only have rows of one kind",
            hint="choose topics of one kind with -t",
        )
    (kind,) = distinct.values()
    with closing(ArrowPrinter(out, kind)) as printer:
        yield StdoutTables(printer)


@contextmanager
def open_consumption(
    config: Settings, job: ConsumeJob, sources: Sources, tables: Tables, *, observe: Observer
) -> Iterator[Consumption]:
    """Open what a job needs besides its tables and its reader."""
    with ExitStack() as stack:
        yield Consumption(
            feeds=_feeds(job, sources, tables, observe),
            outlets=_open_outlets(stack, config, job, tables, observe),
            policy=job.policy,
            observe=observe,
        )


def _find_topics(job: ConsumeJob) -> list[tuple[TopicInfo, RecordKind]]:
    client = Topics(job.kafka, timeout_s=job.policy.timeout_s)
    names = job.topics or [
        name
        for name in client.names()
        if name.startswith(TOPIC_PREFIX) and (job.kind or kind_of_topic(name))
    ]
    if not names:
        raise NotFound(
            "no topic market.*.trades or market.*.quotes exists",
            hint="run k2 topic create market.crypto.trades, or choose a topic with --topic",
        )
    return [(info, job.kind or require_kind(info.name)) for info in client.describe(names)]


def _feeds(job: ConsumeJob, sources: Sources, tables: Tables, observe: Observer) -> list[Feed]:
    return [
        Feed(
            topic=info.name,
            topic_id=info.id,
            kind=kind,
            messages=MessageReader(
                registry=sources.registry,
                topic=info.name,
                kind=partial(_evolved_kind, tables, kind),
                defaults=V1Defaults(currency=job.currency),
                observe=observe,
            ),
        )
        for info, kind in sources.topics
    ]


def _evolved_kind(tables: Tables, kind: RecordKind) -> RecordKind:
    """Return a kind with the columns that its table has now; opens the table, for any thread."""
    return tables.open(kind).evolved_kind()


def _open_outlets(
    stack: ExitStack, config: Settings, job: ConsumeJob, tables: Tables, observe: Observer
) -> Outlets:
    """Open the rejects file; it also receives dead letters that no topic accepts."""
    path = job.rejects or config.home / "rejects" / "consume.ndjson"
    rejects = stack.enter_context(RejectLog(path, run=config.run))
    letters: DeadLetters = DeadLetterFile(rejects)
    if job.rejects is None:
        letters = stack.enter_context(
            open_dead_letter_topics(
                job.kafka, refuge=letters, timeout_s=job.policy.timeout_s, observe=observe
            )
        )
    return Outlets(
        tables=tables,
        letters=letters,
        rejects=rejects,
        max_reject_bytes=job.max_reject_bytes or MAX_REJECT_BYTES,
    )
