"""`k2 stream` against an exchange that misbehaves: short rounds; `nox -s soak` has long ones."""

from dataclasses import replace
from pathlib import Path

import pytest

from soak.faults import SHORT
from soak.rounds import differences, gap_differences, play
from support.cluster import Cluster
from support.running import environment

SEED = 3


def unlisted(ids: range) -> list[int]:
    return [number for number in ids if number % 5 == 0]


PUBLISHED = {symbol: range(20) for symbol in ("BTCUSDT", "ETHUSDT", "BNBUSDT")}
STORED = {symbol: [n for n in range(3, 20) if n % 5] for symbol in PUBLISHED}
GAPS = {symbol: [(5, 5, 1), (9, 16, 2)] for symbol in PUBLISHED}


def test_the_comparison_finds_what_is_lost_double_or_odd() -> None:
    assert differences(STORED, PUBLISHED, unlisted) == []
    for change, word in (([7], "lost"), ([], "twice"), ([], "never published")):
        ids = [number for number in STORED["ETHUSDT"] if number not in change]
        ids += {"lost": [], "twice": [8], "never published": [10]}[word]
        (problem,) = differences({**STORED, "ETHUSDT": sorted(ids)}, PUBLISHED, unlisted)
        assert problem.startswith("ETHUSDT: 1 ids are")
        assert word in problem


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ([(5, 5, 1)], "in no open gap"),
        ([(5, 5, 1), (10, 10, 1), (15, 15, 1), (17, 17, 1)], "lacks 0 ids, not 1"),
        ([(5, 16, 4)], "lacks 3 ids, not 4"),
    ],
)
def test_the_comparison_finds_gaps_that_are_missing_or_too_many(
    gaps: list[tuple[int, int, int]], word: str
) -> None:
    assert gap_differences(GAPS, STORED, unlisted) == []
    (problem,) = gap_differences({**GAPS, "BNBUSDT": gaps}, STORED, unlisted)
    assert word in problem


def test_a_stream_to_the_table_loses_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    cluster = Cluster(bootstrap="", registry_url="", home=home, env=environment(home))
    played = play(cluster, SHORT, seconds=0.0, seed=SEED)
    assert set(played.faults) == set(SHORT.faults)
    assert {"SIGKILL", "SIGSTOP"} <= set(played.ends)
    assert played.unlisted > 0
    assert min(played.events[name] for name in ("gap_filled", "gap_open", "disconnected")) > 0


def test_a_stream_to_kafka_loses_nothing(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=2)
    plan = replace(SHORT, faults=("drops", "skipped ids", "shutdowns"))
    played = play(cluster, plan, seconds=0.0, seed=SEED, topic=topic)
    assert "SIGKILL" in played.ends
    assert played.unlisted > 0
