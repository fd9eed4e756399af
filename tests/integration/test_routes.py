"""The recorded trades of one day by every route, in every order: each is stored once."""

import itertools
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from k2cli.records import TRADES
from k2cli.simulator import Simulator, SimulatorOptions, running_simulator
from support.cluster import Cluster
from support.paths import RECORDINGS
from support.running import Process
from support.waiting import PATIENCE_S, wait_for

RECORDED = "binance/spot-BTCUSDT-20240808.trade.ndjson"
DUMPS = (
    "binance-derived/spot-BTCUSDT-trades-2024-08-08.csv",
    "binance-derived/spot-BTCUSDT-trades-2024-08-09.csv",
)
TRADES_COUNT = 8_000
LAYOUT = ("--layout", "binance-trades", "--summary", "json")
ROUTES = ("stream", "dumps", "consume")


@pytest.fixture(scope="module")
def exchange() -> Iterator[Simulator]:
    path = RECORDINGS / RECORDED
    if not path.is_file():
        pytest.skip(f"no recorded data in {path.parent}")
    with running_simulator(SimulatorOptions(frames=path)) as simulator:
        yield simulator


def summary_of(cluster: Cluster, *args: object) -> dict[str, Any]:
    result = cluster.run(*args)
    assert result.exit_code == 0, result.stderr
    summary: dict[str, Any] = json.loads(result.stdout)
    return summary


def stream(cluster: Cluster, exchange: Simulator, *to: str) -> dict[str, Any]:
    words = ("stream", "binance", "--symbols", "BTCUSDT", "--url", exchange.url)
    return summary_of(
        cluster, *words, "--max-messages", TRADES_COUNT, "--summary", "json", "--to", *to
    )


def ids(cluster: Cluster) -> list[int]:
    return sorted(cluster.rows()["source_sequence"].to_pylist())


_fed: list[str] = []  # the topic that the tests of this process share


@pytest.fixture
def fed_topic(cluster: Cluster, exchange: Simulator, topic_name: str) -> str:
    """A topic with each trade twice; tests share it, each with a table of its own."""
    if not _fed:
        topic = f"{topic_name}.trades"
        cluster.create(topic, partitions=2)
        stream(cluster, exchange, "kafka", "--topic", topic)
        again = stream(cluster, exchange, "kafka", "--topic", topic)
        assert (again["rows"], again["duplicates"]) == (0, TRADES_COUNT)  # it goes on at the tail
        dumps = [RECORDINGS / dump for dump in DUMPS]
        summary_of(cluster, "load", "csv", *dumps, "--to", "kafka", "--topic", topic, *LAYOUT)
        _fed.append(topic)
    return _fed[0]


@pytest.mark.parametrize("order", list(itertools.permutations(ROUTES)), ids="-".join)
def test_every_order_of_every_route_stores_each_trade_once(
    cluster: Cluster,
    exchange: Simulator,
    recordings: Path,
    fed_topic: str,
    order: tuple[str, ...],
) -> None:
    stored = 0
    for route in order:
        match route:
            case "stream":
                sums = stream(cluster, exchange, "table")
                repeated = TRADES_COUNT if stored else 0
            case "dumps":
                paths = [recordings / dump for dump in DUMPS]
                sums = summary_of(cluster, "load", "csv", *paths, *LAYOUT)
                repeated = TRADES_COUNT if stored else 0
            case _:
                sums = cluster.consume("--topic", fed_topic)
                repeated = TRADES_COUNT * (2 if stored else 1)
        assert (sums["rows"], sums["duplicates"], sums["conflicts"]) == (
            TRADES_COUNT - stored,
            repeated,
            0,
        )
        stored = TRADES_COUNT
    lines = b"".join((recordings / dump).read_bytes() for dump in DUMPS)
    month = cluster.home.parent / "BTCUSDT-trades-2024-08.csv"
    month.write_bytes(lines)
    sums = summary_of(cluster, "load", "csv", month, *LAYOUT)
    assert (sums["rows"], sums["duplicates"]) == (0, TRADES_COUNT)
    numbers = ids(cluster)
    assert len(numbers) == TRADES_COUNT
    assert numbers == list(range(numbers[0], numbers[0] + TRADES_COUNT))


def test_a_dump_fills_exactly_the_holes(cluster: Cluster, recordings: Path, tmp_path: Path) -> None:
    whole = recordings / DUMPS[0]
    lines = whole.read_text().splitlines(keepends=True)
    holes = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    holes.write_text("".join(line for at, line in enumerate(lines) if at % 10 and at < 5_000))
    first = summary_of(cluster, "load", "csv", holes, *LAYOUT)
    sums = summary_of(cluster, "load", "csv", whole, *LAYOUT)
    assert (sums["rows"], sums["duplicates"]) == (len(lines) - first["rows"], first["rows"])
    assert len(ids(cluster)) == len(set(ids(cluster))) == len(lines)


def test_repeated_lines_of_a_file_are_duplicates(
    cluster: Cluster, recordings: Path, tmp_path: Path
) -> None:
    lines = (recordings / DUMPS[1]).read_text().splitlines(keepends=True)
    twice = tmp_path / "BTCUSDT-trades-2024-08-09.csv"
    twice.write_text("".join([*lines, *lines, lines[0]]))
    sums = summary_of(cluster, "load", "csv", twice, *LAYOUT)
    assert (sums["rows"], sums["duplicates"]) == (len(lines), len(lines) + 1)


def test_other_values_of_a_dump_are_conflicts(
    cluster: Cluster, recordings: Path, tmp_path: Path
) -> None:
    lines = (recordings / DUMPS[1]).read_text().splitlines()
    summary_of(cluster, "load", "csv", recordings / DUMPS[1], *LAYOUT)
    cells = lines[3].split(",")
    cells[1] = "1.5"
    other = tmp_path / "BTCUSDT-trades-2024-08-09.csv"
    other.write_text("\n".join([*lines[:3], ",".join(cells), *lines[4:], ""]))
    rejects = tmp_path / "rejects.ndjson"
    sums = summary_of(cluster, "load", "csv", other, *LAYOUT, "--rejects", rejects)
    assert (sums["rows"], sums["duplicates"], sums["conflicts"]) == (0, len(lines) - 1, 1)
    (line,) = map(json.loads, rejects.read_text().splitlines())
    values = json.loads(line["raw"])
    assert values["received"]["price"] == "1.50000000"
    assert values["stored"]["price"] == f"{float(lines[3].split(',')[1]):.8f}"


def has_ended(process: Process) -> bool:
    return process.poll() is not None


def test_all_routes_at_once_with_kills_store_each_trade_once(
    cluster: Cluster, exchange: Simulator, recordings: Path, topic_name: str, tmp_path: Path
) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=2)
    stream(cluster, exchange, "kafka", "--topic", topic)
    assert cluster.run("init").exit_code == 0
    copy = tmp_path / "BTCUSDT-trades-2024-08-08.csv"
    shutil.copy(recordings / DUMPS[0], copy)
    words: list[tuple[object, ...]] = [
        ("consume", "--topic", topic, "--until-end", "--batch-rows", 500),
        ("load", "csv", copy, *LAYOUT),
        (
            *("stream", "binance", "--symbols", "BTCUSDT", "--url", exchange.url, "--to", "table"),
            *("--max-messages", TRADES_COUNT, "--flush-rows", 700),
        ),
    ]
    for _ in range(2):
        before = len(ids(cluster))
        running = [cluster.start(*each) for each in words]
        wait_for(lambda: len(ids(cluster)) > before or all(map(has_ended, running)))  # noqa: B023
        for process in running:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    running = [cluster.start(*each) for each in words]
    for process in running:
        _, stderr = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, stderr
    numbers = ids(cluster)
    assert numbers == list(range(numbers[0], numbers[0] + TRADES_COUNT))
    assert cluster.positions(TRADES)
