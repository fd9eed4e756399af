"""A stream into Kafka continues where the topic ends, and fills what it missed."""

from pathlib import Path
from typing import Any

import pytest

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData
from k2cli.ingestion.kafka.tails import newest_numbers
from k2cli.ingestion.kafka.topics import Topics
from k2cli.pipelines.backfill.gapfile import GapFile
from k2cli.pipelines.backfill.pieces import NOT_LISTED
from k2cli.pipelines.produce import ProduceOptions
from k2cli.records import TRADES
from support.backfilling import BTC, Run, has_rows, is_filled, is_filled_to
from support.cluster import Cluster
from support.tinyhistory import TinyHistory


@pytest.fixture
def topic(cluster: Cluster, topic_name: str) -> str:
    cluster.create(f"{topic_name}.trades")
    return f"{topic_name}.trades"


@pytest.fixture
def config(cluster: Cluster) -> Settings:
    return load_settings(cluster.env)


@pytest.fixture
def produce(cluster: Cluster, topic: str) -> ProduceOptions:
    return ProduceOptions(
        kafka={"bootstrap.servers": cluster.bootstrap},
        registry={"url": cluster.registry_url},
        timeout_s=60,
        run="",
        topic=topic,
    )


def messages(produce: ProduceOptions) -> int:
    (info,) = Topics(produce.kafka, timeout_s=60).describe([str(produce.topic)])
    return sum(partition.next - partition.first for partition in info.partitions)


def open_gaps(config: Settings, produce: ProduceOptions) -> list[tuple[int, int, str]]:
    target = f"{produce.kafka['bootstrap.servers']} {produce.topic}"
    gaps = GapFile(config.home, target=target).load().get(BTC, [])
    return [(each.first, each.last, each.reason) for each in gaps]


def numbers(cluster: Cluster, topic: str) -> list[int]:
    cluster.consume("--topic", topic)
    return sorted(row["source_sequence"] for row in cluster.rows().to_pylist())


def test_a_gap_is_filled_in_the_topic(
    cluster: Cluster, config: Settings, topic: str, produce: ProduceOptions
) -> None:
    run = Run(config, TinyHistory()).stream([3, 4, 9], is_filled, produce=produce)
    assert run.totals["backfilled"] == 4
    assert messages(produce) == 7
    assert open_gaps(config, produce) == []
    assert numbers(cluster, topic) == list(range(3, 10))


def test_a_restart_continues_where_the_topic_ends(
    cluster: Cluster, config: Settings, topic: str, produce: ProduceOptions
) -> None:
    Run(config, TinyHistory()).stream([1, 2, 3], has_rows(3), produce=produce)
    history = TinyHistory(since=6)
    run = Run(config, history).stream([2, 3, 9], is_filled, produce=produce)
    assert run.totals["duplicates"] == 2
    assert messages(produce) == 7
    assert open_gaps(config, produce) == [(4, 5, "before --backfill 1h")]
    assert numbers(cluster, topic) == [1, 2, 3, 6, 7, 8, 9]


def test_open_gaps_are_left_to_later_runs(
    cluster: Cluster, config: Settings, topic: str, produce: ProduceOptions
) -> None:
    stuck = TinyHistory(is_stuck=True)
    Run(config, stuck).stream([1, 4], lambda _: stuck.requests, produce=produce)
    assert [hole[:2] for hole in open_gaps(config, produce)] == [(2, 3)]
    history = TinyHistory(listed={2})
    Run(config, history).stream(
        [5], lambda run: is_filled(run) and run.named("gap_open"), produce=produce
    )
    assert open_gaps(config, produce) == [(3, 3, NOT_LISTED)]
    Run(config, TinyHistory()).stream([6], is_filled_to(1), produce=produce)
    assert open_gaps(config, produce) == []
    assert messages(produce) == 6
    assert numbers(cluster, topic) == [1, 2, 3, 4, 5, 6]


def test_the_end_of_a_topic_is_read_within_bounds(
    config: Settings, topic: str, produce: ProduceOptions
) -> None:
    Run(config, TinyHistory()).stream(range(1, 101), has_rows(100), produce=produce)
    ask: dict[str, Any] = {
        "kafka": produce.kafka,
        "registry": produce.registry,
        "timeout_s": 60.0,
        "observe": lambda *_, **__: None,
    }
    assert newest_numbers(topic, TRADES, **ask) == {("TINY", "BTC/USD"): 100}
    assert newest_numbers(topic, TRADES, messages=1, **ask) == {("TINY", "BTC/USD"): 100}


def test_an_empty_topic_has_no_end(config: Settings, produce: ProduceOptions) -> None:
    run = Run(config, TinyHistory()).stream([5, 7], is_filled, produce=produce)
    assert run.named("restart_gap") == []
    assert messages(produce) == 3


def test_a_damaged_file_of_gaps_ends_the_run(
    config: Settings, produce: ProduceOptions, tmp_path: Path
) -> None:
    target = f"{produce.kafka['bootstrap.servers']} {produce.topic}"
    path = GapFile(config.home, target=target).path
    path.parent.mkdir(parents=True)
    path.write_text("g1:nonsense")
    with pytest.raises(BadData, match=str(tmp_path)):
        Run(config, TinyHistory()).stream([1], has_rows(1), produce=produce)
