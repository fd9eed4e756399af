"""Health checks: the findings and verdicts that `k2 status` shows.

All servers are queried in parallel, each in a thread that is abandoned if its answer is late, so
any number of dead servers costs one timeout.

The module is long because the findings and the verdict of a check are kept together.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Final, Generic, TypeVar

from msgspec import structs

from k2cli.background import begin
from k2cli.config import BOOTSTRAP, Settings
from k2cli.errors import BadData, ConfigError, K2Error, NotFound, Unavailable
from k2cli.ingestion.kafka.consumer import count_messages
from k2cli.ingestion.kafka.registry import Registry, open_registry, subject_of
from k2cli.ingestion.kafka.topics import PartitionId, TopicInfo, Topics
from k2cli.records import KINDS, TOPIC_PREFIX, RecordKind, kind_of_topic
from k2cli.redaction import redact_url
from k2cli.storage.catalog import is_embedded
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.offsets import KEY, Offsets, Partition, decode_offsets

T = TypeVar("T")
_SHOW: Final = "k2 config show --origin shows what is set, and where"
_ANOTHER: Final = "choose another folder with --home"
_IDLE_S: Final = 60.0  # an active consumer commits more often
_COUNTED: Final = 10_000  # up to this lag messages are counted: not all offsets are messages
_MIN_FREE_BYTES: Final = 1_000_000_000
_MIN_FREE_SHARE: Final = 0.05


# The pages of docs/runbooks about checks that need an operator.
_RUNBOOKS: Final = {
    "catalog": "catalog-unavailable",
    "store": "catalog-unavailable",
    "disk": "catalog-unavailable",
    "kafka": "kafka-unavailable",
    "registry": "kafka-unavailable",
    "consumers": "consumer-lag",
}


class State(StrEnum):
    """The result of a check."""

    GREEN = "green"
    YELLOW = "yellow"  # it works, but needs attention
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check and its result; `hint` names the command that fixes a problem."""

    name: str
    state: State
    detail: str
    hint: str | None = None
    latency_ms: float | None = None
    exit_code: int = 0  # exit code of the error that made it red

    @property
    def runbook(self) -> str | None:
        """The documentation page on what to do, if something is broken or late."""
        is_bad = self.state is State.RED or (self.name == "consumers" and self.state != State.GREEN)
        page = _RUNBOOKS.get(self.name)
        return f"docs/runbooks/{page}.md" if page and is_bad else None


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """The size and freshness of a table."""

    kind: str
    name: str
    rows: int
    newest_record: datetime | None
    last_commit: datetime | None
    age_s: float | None  # of the last commit


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """The lag of a table behind one partition of a topic."""

    table: str
    topic: str
    partition: int
    end: int  # the end for consumers: the next offset, or that of an open transaction
    table_offset: int | None  # the table's next offset; None: it never read the partition
    group_offset: int | None  # the group's committed offset, for other tools
    lag: int  # messages not consumed yet; large values are upper bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """The result of all checks."""

    checks: Sequence[Check]
    tables: Sequence[TableStatus] = ()
    lag: Sequence[PartitionLag] = ()

    @property
    def exit_code(self) -> int:
        """0, or the exit code of a red check; unavailable servers have priority."""
        codes = [check.exit_code for check in self.checks]
        return Unavailable.exit_code if Unavailable.exit_code in codes else max(codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Catalog:
    tables: Sequence[str]  # of k2
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    status: TableStatus
    offsets: Offsets
    metadata: str  # its newest metadata file
    latency_ms: float  # of reading that
    changes: Sequence[str]  # changes that would evolve it to k2's schema, or why that is impossible


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kafka:
    client: Topics
    brokers: int
    topics: Sequence[str]
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registry:
    subjects: Sequence[str]
    unlike: Sequence[str]  # subjects without k2's schema
    latency_ms: float


class _Request(Generic[T]):
    """A pending request to `whom`, in a separate thread."""

    def __init__(self, ask: Callable[[], T], *, whom: str, timeout_s: float) -> None:
        self._whom = whom
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._result = begin(ask)

    def answer(self) -> T:
        """Wait for the answer.

        Raises:
            Unavailable: the answer is late.
        """
        try:
            return self._result.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError as exc:
            raise Unavailable(f"no answer from {self._whom} within {self._timeout_s:g} s") from exc

    def answer_or_none(self) -> T | None:
        """Wait for the answer; None if another check reports the problem."""
        with suppress(K2Error):
            return self.answer()
        return None

    def check(self, name: str, judge: Callable[[T], Check]) -> Check:
        """Evaluate the answer. An error is red, unless nothing was configured yet."""
        try:
            return judge(self.answer())
        except NotFound as exc:
            return Check(name=name, state=State.YELLOW, detail=str(exc), hint=exc.hint)
        except K2Error as exc:
            is_up = "is it running? " if isinstance(exc, Unavailable) else ""
            return _red(name, exc, is_up + _SHOW)


def check_health(settings: Settings, *, group: str, timeout_s: float) -> HealthReport:
    """Check everything in the settings for up to `timeout_s`, then lags, again for that long.

    Problems are reported by the checks, not raised.
    """

    def asked_of(ask: Callable[[], T], whom: str) -> _Request[T]:
        return _Request(ask, whom=whom, timeout_s=timeout_s)

    settings = _impatient(settings, timeout_s)
    where = _catalog_name(settings)
    catalog = asked_of(partial(_inspect_catalog, settings), where)
    tables = asked_of(partial(_inspect_tables, settings, catalog), f"the store of {where}")
    brokers = settings.kafka.get(BOOTSTRAP, "")
    kafka = asked_of(partial(_inspect_kafka, settings, timeout_s), brokers) if brokers else None
    url = redact_url(settings.schema_registry.get("url", ""))
    registry = asked_of(partial(_inspect_registry, settings, timeout_s), url) if url else None

    checks = [catalog.check("catalog", partial(_judge_catalog, settings))]
    found = tables.answer_or_none()
    statuses = [table.status for table in found or ()]
    if catalog.answer_or_none() and found != []:
        checks.append(tables.check("store", _judge_store))
    checks += _judge_schemas(found or ())
    if kafka:
        checks.append(kafka.check("kafka", partial(_judge_kafka, brokers)))
    if registry:
        checks.append(registry.check("registry", partial(_judge_registry, url)))
    lag: Sequence[PartitionLag] = ()
    if kafka and (topics := kafka.answer_or_none()) and found is not None:
        behind = asked_of(partial(_inspect_lag, settings, topics, found, group, timeout_s), brokers)
        checks.append(behind.check("consumers", partial(judge_lag, statuses)))
        lag = behind.answer_or_none() or ()
    if is_embedded(settings):
        checks.append(_check_disk(settings.home))
    return HealthReport(checks=checks, tables=statuses, lag=lag)


def _impatient(settings: Settings, timeout_s: float) -> Settings:
    """Limit the waits for an object store: the process cannot exit while Arrow's threads wait."""
    waits = ("s3.connect-timeout", "s3.request-timeout")
    catalog = {**settings.catalog, **dict.fromkeys(waits, f"{timeout_s:g}")}
    return structs.replace(settings, catalog=catalog)


def _inspect_catalog(settings: Settings) -> _Catalog:
    with open_lake(settings) as lake:
        tables, latency_ms = _timed(lake.list_tables)
    known = [kind.table for kind in KINDS.values() if kind.table in tables]
    return _Catalog(tables=known, latency_ms=latency_ms)


def _inspect_tables(settings: Settings, catalog: _Request[_Catalog]) -> list[_Table]:
    try:
        catalog.answer()  # opened twice in parallel, a new catalog would be created twice
        with open_lake(settings) as lake:
            return [_inspect_table(lake, kind) for kind in lake.kinds()]
    except NotFound:
        return []  # the catalog's check reports it


def _inspect_table(lake: Lake, kind: RecordKind) -> _Table:
    (table, metadata), latency_ms = _timed(partial(_open_table, lake, kind))
    info = table.describe()
    age_s = (datetime.now(tz=UTC) - info.last_commit).total_seconds() if info.last_commit else None
    status = TableStatus(
        kind=kind.name,
        name=info.name,
        rows=info.rows,
        newest_record=table.newest(),
        last_commit=info.last_commit,
        age_s=age_s,
    )
    return _Table(
        status=status,
        offsets=decode_offsets(table.stored_position(KEY)),
        metadata=metadata,
        latency_ms=latency_ms,
        changes=_pending_changes(table),
    )


def _open_table(lake: Lake, kind: RecordKind) -> tuple[LakeTable, str]:
    """Open a table, and read its metadata file from where it is stored."""
    table = lake.open(kind)
    return table, table.read_metadata()


def _pending_changes(table: LakeTable) -> Sequence[str]:
    try:
        return table.evolve(table.kind.avro, is_dry_run=True)
    except BadData as exc:
        return [str(exc)]


def _inspect_kafka(settings: Settings, timeout_s: float) -> _Kafka:
    client = Topics(settings.kafka, timeout_s=timeout_s)
    brokers, latency_ms = _timed(client.brokers)
    return _Kafka(client=client, brokers=brokers, topics=client.names(), latency_ms=latency_ms)


def _inspect_registry(settings: Settings, timeout_s: float) -> _Registry:
    once = {"max.retries": "0", **settings.schema_registry}
    with open_registry(once, timeout_s=timeout_s) as registry:
        subjects, latency_ms = _timed(registry.subjects)
        market = [name for name in subjects if name.startswith(TOPIC_PREFIX)]
        unlike = [name for name in market if not _has_our_schema(registry, name)]
    return _Registry(subjects=market, unlike=unlike, latency_ms=latency_ms)


def _has_our_schema(registry: Registry, subject: str) -> bool:
    """Return whether a subject has the schema of its kind; subjects without a kind pass."""
    kind = kind_of_topic(subject.removesuffix(subject_of("")))
    if kind is None:
        return True
    try:
        registry.find(subject, kind.avro)
    except NotFound:
        return False
    return True


def _inspect_lag(
    settings: Settings, kafka: _Kafka, tables: Sequence[_Table], group: str, timeout_s: float
) -> list[PartitionLag]:
    fed = {partition.topic for table in tables for partition in table.offsets}
    names = [name for name in kafka.topics if name in fed or _is_market(name)]
    committed: Mapping[PartitionId, int] = {}
    with suppress(K2Error):  # optional: without permission to read it, the rest is still shown
        committed = kafka.client.group_offsets(group)
    topics = kafka.client.describe(names)
    partitions = [(topic.name, each.number) for topic in topics for each in topic.partitions]
    ends = kafka.client.offsets_at(partitions, None)
    lags = [lag for topic in topics for lag in _topic_lag(topic, tables, committed, ends)]
    begins = {
        (lag.topic, lag.partition): lag.end - lag.lag for lag in lags if 0 < lag.lag <= _COUNTED
    }
    counts = count_messages(settings.kafka, begins, timeout_s=timeout_s / 2) if begins else {}
    return [replace(lag, lag=counts.get((lag.topic, lag.partition), lag.lag)) for lag in lags]


def _topic_lag(
    topic: TopicInfo,
    tables: Sequence[_Table],
    committed: Mapping[PartitionId, int],
    ends: Mapping[PartitionId, int],
) -> Iterator[PartitionLag]:
    for each in topic.partitions:
        partition = Partition(topic.name, topic.id, each.number)
        holder = next((table for table in tables if partition in table.offsets), None)
        kind = kind_of_topic(topic.name)
        offset = holder.offsets[partition] if holder else None
        end = ends[(topic.name, each.number)]
        yield PartitionLag(
            table=holder.status.kind if holder else kind.name if kind else "",
            topic=topic.name,
            partition=each.number,
            end=end,
            table_offset=offset,
            group_offset=committed.get((topic.name, each.number)),
            lag=max(0, end - max(each.first, offset or 0)),
        )


def _judge_catalog(settings: Settings, catalog: _Catalog) -> Check:
    if catalog.tables:
        state, text, hint = State.GREEN, f"{len(catalog.tables)} tables", None
    else:
        hint = "k2 demo" if is_embedded(settings) else "k2 init"
        state, text = State.YELLOW, "no tables yet"
    return Check(
        name="catalog",
        state=state,
        detail=f"{text} in {_catalog_name(settings)}",
        hint=hint,
        latency_ms=catalog.latency_ms,
    )


def _catalog_name(settings: Settings) -> str:
    """Describe the catalog: its type and location, without secrets."""
    if is_embedded(settings):
        return f"embedded catalog {settings.home}"
    kind, uri = (settings.catalog.get(key, "") for key in ("type", "uri"))
    return f"{kind} catalog {redact_url(uri)}".strip()


def _judge_store(tables: Sequence[_Table]) -> Check:
    first = tables[0]
    return Check(
        name="store",
        state=State.GREEN,
        detail=f"{first.metadata} can be read",
        latency_ms=first.latency_ms,
    )


def _judge_schemas(tables: Sequence[_Table]) -> list[Check]:
    """Report tables that are behind k2's schemas in one check; none if all are current."""
    behind = [table for table in tables if table.changes]
    if not behind:
        return []
    changes = (f"{table.status.name}: {', '.join(table.changes)}" for table in behind)
    return [
        Check(
            name="tables",
            state=State.YELLOW,
            detail=f"older than k2's schema: {'; '.join(changes)}",
            hint="; ".join(f"k2 table evolve {table.status.kind}" for table in behind),
        )
    ]


def _judge_kafka(bootstrap: str, kafka: _Kafka) -> Check:
    topics = [name for name in kafka.topics if name.startswith(TOPIC_PREFIX)]
    brokers = f"{kafka.brokers} broker{'s' if kafka.brokers != 1 else ''}"
    return Check(
        name="kafka",
        state=State.GREEN if topics else State.YELLOW,
        detail=f"{bootstrap}: {brokers}, {_count(topics, 'topic')}",
        hint=None if topics else "k2 init",
        latency_ms=kafka.latency_ms,
    )


def _judge_registry(url: str, registry: _Registry) -> Check:
    state, hint = State.GREEN, None
    detail = f"{url}: {_count(registry.subjects, 'subject')}"
    if registry.unlike:
        state, hint = State.YELLOW, f"k2 schema register {registry.unlike[0]}"
        detail += f", without k2's schema: {', '.join(registry.unlike)}"
    elif not registry.subjects:
        state, hint = State.YELLOW, "k2 init"
    return Check(
        name="registry", state=state, detail=detail, hint=hint, latency_ms=registry.latency_ms
    )


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names) or 'no'} {what}{'s' if len(names) != 1 else ''} {TOPIC_PREFIX}*"


def judge_lag(tables: Sequence[TableStatus], lags: Sequence[PartitionLag]) -> Check:
    """Yellow if messages wait without an active consumer, which is always a little behind."""
    total = sum(lag.lag for lag in lags)
    waiting = {lag.table for lag in lags if lag.lag}
    ages = [table.age_s for table in tables if table.kind in waiting]
    is_idle = bool(waiting) and all(age is None or age > _IDLE_S for age in ages)
    return Check(
        name="consumers",
        state=State.YELLOW if is_idle else State.GREEN,
        detail=f"{total:,} messages behind" + ("; no active consumer" if is_idle else ""),
        hint="k2 consume" if is_idle else None,
    )


def _check_disk(home: Path) -> Check:
    try:
        folder = next(each for each in (home, *home.parents) if each.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"{folder} is not a writable directory")
        usage = shutil.disk_usage(folder)
        if not usage.total:
            raise ConfigError(f"{folder} is not on a disk that stores files")
    except OSError as exc:
        return _red("disk", ConfigError(f"{home}: {exc}"), _ANOTHER)
    except ConfigError as exc:
        return _red("disk", exc, _ANOTHER)
    return judge_disk(home, free=usage.free, total=usage.total)


def judge_disk(home: Path, *, free: int, total: int) -> Check:
    """Check the free disk space, in bytes."""
    share = free / total if total else 0.0
    detail = f"{free / 1e9:,.1f} GB free ({share:.0%}) for {home}"
    if free < _MIN_FREE_BYTES or share < _MIN_FREE_SHARE:
        return _red("disk", Unavailable(detail), f"free some space, or {_ANOTHER}")
    return Check(name="disk", state=State.GREEN, detail=detail)


def _red(name: str, exc: K2Error, hint: str) -> Check:
    return Check(
        name=name,
        state=State.RED,
        detail=str(exc),
        hint=exc.hint or hint,
        exit_code=exc.exit_code,
    )


def _is_market(topic: str) -> bool:
    return topic.startswith(TOPIC_PREFIX) and kind_of_topic(topic) is not None


def _timed(ask: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    answer = ask()
    return answer, round((time.perf_counter() - started) * 1000, 1)
