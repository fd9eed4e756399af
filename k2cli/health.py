"""Is everything well? The facts and the verdicts that `k2 status` shows.

All servers are asked at once, each in a thread that is given up on when its answer is late: any
number of dead servers cost one timeout.
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
from k2cli.ingestion.kafka.topics import Place, TopicInfo, Topics
from k2cli.records import KINDS, RecordKind, kind_of_topic
from k2cli.redaction import redact_url
from k2cli.storage.catalog import is_embedded
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.offsets import KEY, Offsets, Partition, decode_offsets

T = TypeVar("T")
_SHOW: Final = "k2 config show --origin tells what is set, and where"
_ANOTHER: Final = "choose another folder with --home"
_PREFIX: Final = "market."  # of the topics that k2 makes, and so of their subjects
_IDLE_S: Final = 60.0  # a consumer that is at work commits more often
_COUNTED: Final = 10_000  # a lag up to this is counted: offsets are not all messages
_LEAST_FREE_BYTES: Final = 1_000_000_000
_LEAST_FREE_SHARE: Final = 0.05


class State(StrEnum):
    """How a check turned out."""

    GREEN = "green"
    YELLOW = "yellow"  # it works, but there is something to do
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that is well, or not; `hint` names the command that mends it."""

    name: str
    state: State
    detail: str
    hint: str | None = None
    latency_ms: float | None = None
    exit_code: int = 0  # of the error that made it red


@dataclass(frozen=True, slots=True, kw_only=True)
class TableStatus:
    """How full a table is, and how new."""

    kind: str
    name: str
    rows: int
    newest_record: datetime | None
    last_commit: datetime | None
    age_s: float | None  # of the last commit


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionLag:
    """How far a table is behind one partition of a topic."""

    table: str
    topic: str
    partition: int
    end: int  # up to here consumers can read: the next offset, or that of an open transaction
    table_offset: int | None  # that of the next message for the table; None: it never took any
    group_offset: int | None  # what the group told the brokers, for other tools
    lag: int  # messages that a consumer would still receive; a large one may be a little less


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found."""

    checks: Sequence[Check]
    tables: Sequence[TableStatus] = ()
    lag: Sequence[PartitionLag] = ()

    @property
    def exit_code(self) -> int:
        """0, or that of what is red; what is away, and worth a retry, goes first."""
        codes = [check.exit_code for check in self.checks]
        return Unavailable.exit_code if Unavailable.exit_code in codes else max(codes)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Catalog:
    tables: Sequence[str]  # ours
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    status: TableStatus
    offsets: Offsets
    metadata: str  # its newest metadata file
    latency_ms: float  # of reading that
    changes: Sequence[str]  # that would make it as wide as k2's own schema, or why none can


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kafka:
    client: Topics
    brokers: int
    topics: Sequence[str]
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Registry:
    subjects: Sequence[str]
    unlike: Sequence[str]  # those without our schema
    latency_ms: float


class _Question(Generic[T]):
    """A question under way, in a thread of its own; `whom` is asked."""

    def __init__(self, ask: Callable[[], T], *, whom: str, timeout_s: float) -> None:
        self._whom = whom
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._result = begin(ask)

    def answer(self) -> T:
        """Wait for the answer.

        Raises:
            Unavailable: it is late.
        """
        try:
            return self._result.result(max(0.0, self._deadline - time.monotonic()))
        except TimeoutError as exc:
            raise Unavailable(f"no answer from {self._whom} within {self._timeout_s:g} s") from exc

    def answer_or_none(self) -> T | None:
        """Wait for the answer; None where another check tells what is wrong."""
        with suppress(K2Error):
            return self.answer()
        return None

    def check(self, name: str, judge: Callable[[T], Check]) -> Check:
        """Judge the answer. An error is red, unless only nothing was set up yet."""
        try:
            return judge(self.answer())
        except NotFound as exc:
            return Check(name=name, state=State.YELLOW, detail=str(exc), hint=exc.hint)
        except K2Error as exc:
            is_up = "is it up? " if isinstance(exc, Unavailable) else ""
            return _red(name, exc, is_up + _SHOW)


def survey(settings: Settings, *, group: str, timeout_s: float) -> Survey:
    """Look at everything that the settings name, for `timeout_s`; then at lags, for as long.

    What is not well is told by the checks, and not raised.
    """

    def asked_of(ask: Callable[[], T], whom: str) -> _Question[T]:
        return _Question(ask, whom=whom, timeout_s=timeout_s)

    settings = _impatient(settings, timeout_s)
    where = _catalog_name(settings)
    catalog = asked_of(partial(_look_at_catalog, settings), where)
    tables = asked_of(partial(_look_at_tables, settings, catalog), f"the store of {where}")
    brokers = settings.kafka.get(BOOTSTRAP, "")
    kafka = asked_of(partial(_look_at_kafka, settings, timeout_s), brokers) if brokers else None
    url = redact_url(settings.schema_registry.get("url", ""))
    registry = asked_of(partial(_look_at_registry, settings, timeout_s), url) if url else None

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
        behind = asked_of(partial(_look_at_lag, settings, topics, found, group, timeout_s), brokers)
        checks.append(behind.check("consumers", partial(judge_lag, statuses)))
        lag = behind.answer_or_none() or ()
    if is_embedded(settings):
        checks.append(_check_disk(settings.home))
    return Survey(checks=checks, tables=statuses, lag=lag)


def _impatient(settings: Settings, timeout_s: float) -> Settings:
    """Bound the waits for an object store: the process cannot end while Arrow's threads wait."""
    waits = ("s3.connect-timeout", "s3.request-timeout")
    catalog = {**settings.catalog, **dict.fromkeys(waits, f"{timeout_s:g}")}
    return structs.replace(settings, catalog=catalog)


def _look_at_catalog(settings: Settings) -> _Catalog:
    with open_lake(settings) as lake:
        tables, latency_ms = _timed(lake.listed)
    ours = [kind.table for kind in KINDS.values() if kind.table in tables]
    return _Catalog(tables=ours, latency_ms=latency_ms)


def _look_at_tables(settings: Settings, catalog: _Question[_Catalog]) -> list[_Table]:
    try:
        catalog.answer()  # opened twice at once, a new catalog would be made twice
        with open_lake(settings) as lake:
            return [_look_at_table(lake, kind) for kind in lake.kinds()]
    except NotFound:
        return []  # the catalog's check tells


def _look_at_table(lake: Lake, kind: RecordKind) -> _Table:
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


def _look_at_kafka(settings: Settings, timeout_s: float) -> _Kafka:
    client = Topics(settings.kafka, timeout_s=timeout_s)
    brokers, latency_ms = _timed(client.brokers)
    return _Kafka(client=client, brokers=brokers, topics=client.names(), latency_ms=latency_ms)


def _look_at_registry(settings: Settings, timeout_s: float) -> _Registry:
    once = {"max.retries": "0", **settings.schema_registry}
    with open_registry(once, timeout_s=timeout_s) as registry:
        subjects, latency_ms = _timed(registry.subjects)
        ours = [name for name in subjects if name.startswith(_PREFIX)]
        unlike = [name for name in ours if not _has_our_schema(registry, name)]
    return _Registry(subjects=ours, unlike=unlike, latency_ms=latency_ms)


def _has_our_schema(registry: Registry, subject: str) -> bool:
    """Tell whether a subject has the schema of its kind; those of no kind are not ours to judge."""
    kind = kind_of_topic(subject.removesuffix(subject_of("")))
    if kind is None:
        return True
    try:
        registry.find(subject, kind.avro)
    except NotFound:
        return False
    return True


def _look_at_lag(
    settings: Settings, kafka: _Kafka, tables: Sequence[_Table], group: str, timeout_s: float
) -> list[PartitionLag]:
    fed = {partition.topic for table in tables for partition in table.offsets}
    names = [name for name in kafka.topics if name in fed or _is_market(name)]
    told: Mapping[tuple[str, int], int] = {}
    with suppress(K2Error):  # only shown; who may not read it still sees the rest
        told = kafka.client.group_offsets(group)
    topics = kafka.client.describe(names)
    places = [(topic.name, each.number) for topic in topics for each in topic.partitions]
    ends = kafka.client.offsets_at(places, None)
    lags = [lag for topic in topics for lag in _topic_lag(topic, tables, told, ends)]
    begins = {
        (lag.topic, lag.partition): lag.end - lag.lag for lag in lags if 0 < lag.lag <= _COUNTED
    }
    counts = count_messages(settings.kafka, begins, timeout_s=timeout_s / 2) if begins else {}
    return [replace(lag, lag=counts.get((lag.topic, lag.partition), lag.lag)) for lag in lags]


def _topic_lag(
    topic: TopicInfo,
    tables: Sequence[_Table],
    told: Mapping[Place, int],
    ends: Mapping[Place, int],
) -> Iterator[PartitionLag]:
    for each in topic.partitions:
        place = Partition(topic.name, topic.id, each.number)
        holder = next((table for table in tables if place in table.offsets), None)
        kind = kind_of_topic(topic.name)
        offset = holder.offsets[place] if holder else None
        end = ends[(topic.name, each.number)]
        yield PartitionLag(
            table=holder.status.kind if holder else kind.name if kind else "",
            topic=topic.name,
            partition=each.number,
            end=end,
            table_offset=offset,
            group_offset=told.get((topic.name, each.number)),
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
    """Name the catalog: its kind and where it is, without secrets."""
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
    """Report the tables that lack what k2's own schemas have, in one check; none if all have it."""
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
    topics = [name for name in kafka.topics if name.startswith(_PREFIX)]
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
        detail += f", without our schema: {', '.join(registry.unlike)}"
    elif not registry.subjects:
        state, hint = State.YELLOW, "k2 init"
    return Check(
        name="registry", state=state, detail=detail, hint=hint, latency_ms=registry.latency_ms
    )


def _count(names: Sequence[str], what: str) -> str:
    return f"{len(names) or 'no'} {what}{'s' if len(names) != 1 else ''} {_PREFIX}*"


def judge_lag(tables: Sequence[TableStatus], lags: Sequence[PartitionLag]) -> Check:
    """Yellow is what waits while nobody commits; a consumer at work is always a little behind."""
    total = sum(lag.lag for lag in lags)
    waiting = {lag.table for lag in lags if lag.lag}
    ages = [table.age_s for table in tables if table.kind in waiting]
    is_idle = bool(waiting) and all(age is None or age > _IDLE_S for age in ages)
    return Check(
        name="consumers",
        state=State.YELLOW if is_idle else State.GREEN,
        detail=f"{total:,} messages to come" + (", and nobody takes them" if is_idle else ""),
        hint="k2 consume" if is_idle else None,
    )


def _check_disk(home: Path) -> Check:
    try:
        folder = next(each for each in (home, *home.parents) if each.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise ConfigError(f"{folder} is no folder that you may write")
        usage = shutil.disk_usage(folder)
        if not usage.total:
            raise ConfigError(f"{folder} is not on a disk that stores files")
    except OSError as exc:
        return _red("disk", ConfigError(f"{home}: {exc}"), _ANOTHER)
    except ConfigError as exc:
        return _red("disk", exc, _ANOTHER)
    return judge_disk(home, free=usage.free, total=usage.total)


def judge_disk(home: Path, *, free: int, total: int) -> Check:
    """Tell whether there is room for more, in bytes."""
    share = free / total if total else 0.0
    detail = f"{free / 1e9:,.1f} GB free ({share:.0%}) for {home}"
    if free < _LEAST_FREE_BYTES or share < _LEAST_FREE_SHARE:
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
    return topic.startswith(_PREFIX) and kind_of_topic(topic) is not None


def _timed(ask: Callable[[], T]) -> tuple[T, float]:
    started = time.perf_counter()
    found = ask()
    return found, round((time.perf_counter() - started) * 1000, 1)
