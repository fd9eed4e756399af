"""Trades onto a topic, and `k2 consume` of them, against clients that do nothing else."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from confluent_kafka import Producer
from data import trades
from processes import K2, Failed, Watched, check_equal, helper, output_of, watched
from report import Aim, Line, Setup

sys.path.append(str(Path(__file__).parents[1]))
from k2cli.codec.encode import encode_messages, wire_header
from k2cli.config import load_settings
from k2cli.ingestion.kafka.producer import open_writer
from k2cli.ingestion.kafka.registry import open_registry, subject_of
from k2cli.ingestion.kafka.topics import Topics
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from services import ServiceMissing
from services.kafka import KafkaBroker, kafka_software
from services.processes import ServerFailed
from services.registry import SchemaRegistry, registry_software

_TURNS: Final = 3
_PARTITIONS: Final = 4
_PIECE_ROWS: Final = 50_000
_TIMES: Final = 3  # as many messages in the large backlog
_TIMEOUT_S: Final = 30.0


def run(setup: Setup) -> Iterator[Line]:
    """Produce, then consume a backlog in turns with a bare client, then a larger one."""
    try:
        servers = _servers(setup.folder)
    except ServiceMissing as missing:
        print(f"kafka: skipped: {missing}", file=sys.stderr)
        return
    messages = 200_000 if setup.is_quick else 1_000_000
    rows = _rows(0, messages)
    with _started(*servers) as cluster:
        yield _produced(cluster, rows)
        topic = cluster.topic("backlog.trades")
        _produce(cluster, topic, rows)
        peak_mb, lines = _consumed(cluster, topic, messages)
        yield from lines
        topic = cluster.topic("large.trades")
        for turn in range(_TIMES):
            _produce(cluster, topic, _rows(turn * messages, messages))
        large = _consume(cluster, topic, _TIMES * messages, "large").seen
    yield Line(
        what=f"peak memory with a backlog {_TIMES} times as large",
        value=large.peak_mb,
        unit="MB",
        reference=peak_mb,
        against="the peak before",
        aim=Aim("ratio", "<=", 1.15),
        samples=[round(sample, 1) for sample in large.samples_mb],
    )


def _rows(first: int, count: int) -> list[pa.RecordBatch]:
    rows: list[pa.RecordBatch] = trades(first, count, step_us=1_000).to_batches(_PIECE_ROWS)
    return rows


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cluster:
    """Servers that run, and a folder for homes."""

    brokers: str
    registry_url: str
    folder: Path

    @property
    def kafka(self) -> dict[str, str]:
        return {"bootstrap.servers": self.brokers}

    def topic(self, name: str) -> str:
        topics = Topics(self.kafka, timeout_s=_TIMEOUT_S)
        topics.create(name, partitions=_PARTITIONS, replication=1, config={})
        return name

    def header(self, topic: str) -> bytes:
        with open_registry({"url": self.registry_url}, timeout_s=_TIMEOUT_S) as registry:
            return wire_header(registry.register(subject_of(topic), TRADES.avro))

    def home(self, name: str) -> Path:
        """Make a home whose config file names the servers."""
        home = self.folder / name
        home.mkdir()
        text = (
            f'[kafka]\n"bootstrap.servers" = "{self.brokers}"\n'
            f'[schema_registry]\nurl = "{self.registry_url}"\n'
        )
        (home / "k2.toml").write_text(text, encoding="utf-8")
        return home


def _servers(folder: Path) -> tuple[KafkaBroker, SchemaRegistry, Path]:
    for name in ("broker", "registry"):
        (folder / name).mkdir()
    return (
        KafkaBroker(folder / "broker", software=kafka_software()),
        SchemaRegistry(folder / "registry", software=registry_software()),
        folder,
    )


@contextmanager
def _started(broker: KafkaBroker, registry: SchemaRegistry, folder: Path) -> Iterator[_Cluster]:
    with ExitStack() as stack:
        for server in (broker, registry):
            stack.callback(server.kill)
            try:
                server.start()
            except ServerFailed as exc:
                raise Failed(str(exc)) from exc
        yield _Cluster(brokers=broker.bootstrap, registry_url=registry.url, folder=folder)


def _produced(cluster: _Cluster, rows: Sequence[pa.RecordBatch]) -> Line:
    """Produce rows as k2 does, and their bytes with a bare producer, in turns."""
    count = sum(batch.num_rows for batch in rows)
    ours, bare = [], []
    for turn in range(_TURNS):
        ours.append(count / _produce(cluster, cluster.topic(f"ours{turn}.trades"), rows))
        bare.append(count / _produce_bare(cluster, cluster.topic(f"bare{turn}.trades"), rows))
    return Line(
        what=f"{count:,} trades onto {_PARTITIONS} partitions",
        value=max(ours),
        unit="messages/s",
        reference=max(bare),
        against="a bare producer of their bytes, all queued at once",
        samples=ours,
        reference_samples=bare,
    )


def _produce(cluster: _Cluster, topic: str, rows: Sequence[pa.RecordBatch]) -> float:
    header = cluster.header(topic)
    started = time.perf_counter()
    with open_writer(cluster.kafka, observe=_unexpected) as writer:
        for batch in rows:
            writer.write(topic, TRADES, batch, header=header)
        writer.flush()
        return time.perf_counter() - started


def _produce_bare(cluster: _Cluster, topic: str, rows: Sequence[pa.RecordBatch]) -> float:
    header = cluster.header(topic)
    values = [encode_messages(batch, TRADES.avro, header=header).to_pylist() for batch in rows]
    keys = [batch["symbol"].to_pylist() for batch in rows]
    started = time.perf_counter()
    settings = {
        "enable.idempotence": True,
        "compression.type": "zstd",
        "linger.ms": 20,
        "batch.size": 1_000_000,
        "queue.buffering.max.messages": 0,  # no limit: all at once
        "queue.buffering.max.kbytes": 2**31 - 1,
        "partitioner": "murmur2_random",
    }
    producer = Producer({**cluster.kafka, **settings})
    for some_keys, some_values in zip(keys, values, strict=True):
        for key, value in zip(some_keys, some_values, strict=True):
            producer.produce(topic, value, key)
        producer.poll(0)
    left = producer.flush(_TIMEOUT_S)
    took_s = time.perf_counter() - started
    check_equal(left, 0)
    return took_s


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """One run of `k2 consume`."""

    seen: Watched
    duration_s: float  # by its own clock


def _consume(cluster: _Cluster, topic: str, messages: int, name: str) -> _Run:
    """Consume a topic to its end into the tables of a new home."""
    home = cluster.home(name)
    command = ("consume", "--topic", topic, "--group", name, "--until-end", "--summary", "json")
    seen = watched([*K2, *command], home=home)
    sums = json.loads(seen.stdout)
    check_equal([sums[key] for key in ("messages", "rows", "rejects")], [messages, messages, 0])
    with open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        check_equal(lake.open(TRADES).plan().rows, messages)
    return _Run(seen=seen, duration_s=sums["duration_s"])


def _consumed(cluster: _Cluster, topic: str, messages: int) -> tuple[float, list[Line]]:
    """Consume in turns with a bare client; return the peak memory, and what was measured."""
    runs, bare = [], []
    for turn in range(_TURNS):
        runs.append(_consume(cluster, topic, messages, f"home{turn}"))
        command = helper("bare_consumer.py", cluster.brokers, topic, str(messages))
        bare.append(messages / float(output_of(command, home=cluster.folder)))
    own = [messages / run.duration_s for run in runs]
    wall = [messages / run.seen.took_s for run in runs]
    common: dict[str, Any] = {
        "unit": "messages/s",
        "reference": max(bare),
        "against": "a bare consumer that only counts",
        "reference_samples": bare,
    }
    what = f"{messages:,} messages into the table"
    peak_mb = max(run.seen.peak_mb for run in runs)
    return peak_mb, [
        Line(what=what, value=max(own), aim=Aim("ratio", ">=", 0.3), samples=own, **common),
        Line(
            what=f"{what}, as such",
            value=max(own),
            aim=Aim("value", ">=", 150_000),
            samples=own,
            **common,
        ),
        Line(what=f"{what}, start and end of the process too", value=max(wall), **common),
        Line(what="its peak memory", value=peak_mb, unit="MB", aim=Aim("value", "<=", 600)),
    ]


def _unexpected(event: str, /, **fields: object) -> None:
    raise Failed(f"{event} {fields}")
