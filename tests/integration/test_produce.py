"""The ways onto a topic, with a real broker and a real registry: stream, load, produce, init."""

import json
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient, ConfigResource, ResourceType

from k2cli.ingestion.kafka.registry import open_registry, subject_of
from k2cli.ingestion.kafka.topics import Topics
from k2cli.query.render import NdjsonRenderer
from k2cli.records import TRADES
from k2cli.simulator.options import SimulatorOptions
from k2cli.simulator.server import running_simulator
from services.fixtures import OwnBroker
from services.registry import RegistryAddress
from support.cluster import Cluster, numbered_trades
from support.waiting import PATIENCE_S, wait_for

BOTH = ("--symbols", "BTCUSDT", "--channels", "trade,bookTicker")
NAME = "BTCUSDT-trades-2024-08-08.csv"
LINES = [f"{n},61800.{n:02},0.5,30900.00,1723161{n:06},true,true\n" for n in range(1, 60)]


@pytest.fixture
def topic(cluster: Cluster, topic_name: str) -> str:
    cluster.create(f"{topic_name}.trades")
    return f"{topic_name}.trades"


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    (tmp_path / NAME).write_text("".join(LINES))
    return tmp_path / NAME


def ndjson(count: int) -> str:
    with NdjsonRenderer() as renderer:
        return renderer.render(numbered_trades(count)).decode()


def offsets(cluster: Cluster, topic: str) -> int:
    (info,) = Topics(cluster.kafka, timeout_s=60).describe([topic])
    return sum(partition.next for partition in info.partitions)


def test_a_stream_goes_through_kafka_into_the_table(cluster: Cluster, topic: str) -> None:
    with running_simulator(SimulatorOptions(rate=2_000, seed=1)) as server:
        result = cluster.run(
            *("stream", "binance", "--symbols", "BTCUSDT,ETHUSDT", "--url", server.url),
            *("--topic", topic, "--max-messages", 3_000, "--summary", "json"),
        )
    assert result.exit_code == 0, result.stderr
    sums = json.loads(result.stdout)
    assert (sums["messages"], sums["rows"], sums["missing"]) == (3_000, 3_000, 0)
    assert cluster.consume("--topic", topic)["rows"] == 3_000
    rows = cluster.rows()
    assert len(set(cluster.ids())) == 3_000
    for symbol in ("BTCUSDT", "ETHUSDT"):
        of_symbol = [row for row in rows.to_pylist() if row["symbol"] == symbol]
        in_order = sorted(of_symbol, key=lambda row: row["platform_sequence"])
        numbers = [row["source_sequence"] for row in in_order]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_stream_needs_its_topics_before_it_connects(cluster: Cluster) -> None:
    result = cluster.run(
        "stream", "binance", "-s", "BTCUSDT", "--topic", "no.such", "--url", "ws://x"
    )
    assert (result.exit_code, result.stdout) == (4, "")
    assert "hint: run k2 init, or k2 topic create no.such" in result.stderr


def test_a_stream_waits_out_brokers_that_are_away(
    own_broker: OwnBroker, registry: RegistryAddress, home: Path, k2_env: dict[str, str]
) -> None:
    broker = own_broker()
    env = {
        **k2_env,
        "K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
        "K2_SCHEMA_REGISTRY_URL": registry.url,
    }
    cluster = Cluster(broker.bootstrap, registry.url, home, env)
    cluster.create("away.trades")
    with running_simulator(SimulatorOptions(rate=1_000, seed=2)) as server:
        running = cluster.start(
            *("stream", "binance", "--symbols", "BTCUSDT,ETHUSDT", "--url", server.url),
            *("--topic", "away.trades", "--max-messages", 20_000, "--flush-interval", "1s"),
            *("--summary", "json"),
        )
        wait_for(lambda: offsets(cluster, "away.trades") > 0)
        broker.kill()
        assert running.stderr is not None
        assert any("kafka_unavailable" in line for line in running.stderr)  # waits for that line
        broker.start()
        stdout, stderr = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, stderr
    assert json.loads(stdout)["rows"] == 20_000
    assert cluster.consume("--topic", "away.trades")["rows"] == 20_000
    assert len(set(cluster.ids())) == 20_000


def test_a_file_goes_through_kafka_into_the_table(cluster: Cluster, topic: str, dump: Path) -> None:
    load = ("load", "csv", dump, "--layout", "binance-trades")
    result = cluster.run(*load, "--to", "kafka", "--topic", topic, "--summary", "json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["rows"] == len(LINES)
    assert cluster.consume("--topic", topic)["rows"] == len(LINES)
    through_kafka = cluster.rows()
    straight = Cluster(
        cluster.bootstrap,
        cluster.registry_url,
        dump.parent / "straight",
        {**cluster.env, "K2_HOME": str(dump.parent / "straight")},
    )
    assert straight.run(*load).exit_code == 0
    same = [
        name
        for name in TRADES.arrow.names
        if name not in {"platform_sequence", "ingestion_timestamp"}
    ]
    assert through_kafka.select(same).equals(straight.rows().select(same))


def test_a_file_with_rejects_sends_nothing(cluster: Cluster, topic: str, dump: Path) -> None:
    with dump.open("a") as file:
        file.write("60,not a price,0.5,1,1723161000060,true,true\n")
    args = ("load", "csv", dump, "--layout", "binance-trades", "--to", "kafka", "--topic", topic)
    refused = cluster.run(*args)
    assert refused.exit_code == 6
    assert "line 60: " in refused.stderr
    assert cluster.consume("--topic", topic)["messages"] == 0
    assert cluster.run(*args, "--max-rejects", 1).exit_code == 0
    assert cluster.consume("--topic", topic)["rows"] == len(LINES)


def test_rows_from_a_pipe_arrive_as_they_were(cluster: Cluster, topic: str, tmp_path: Path) -> None:
    log = tmp_path / "k2.log"
    options = ("--summary", "json", "--log-file", log)
    result = cluster.run("produce", topic, *options, stdin=ndjson(100))
    assert result.exit_code == 0, result.stderr
    assert "summary messages=100 rows=100 rejects=0" in log.read_text()
    sums = json.loads(result.stdout)
    assert (sums["messages"], sums["rows"], sums["rejects"]) == (100, 100, 0)
    back = cluster.run("consume", "--topic", topic, "--to", "stdout", "--until-end")
    sent = {row["message_id"]: row for row in map(json.loads, ndjson(100).splitlines())}
    came = {row["message_id"]: row for row in map(json.loads, back.stdout.splitlines())}
    assert came.keys() == sent.keys()
    for message_id, row in came.items():
        assert row | {"platform_sequence": None} == sent[message_id]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ('{"symbol": "X"', "Input data was truncated"),
        ("[1]", "Expected `object`, got `array`"),
        ({"price": "-1"}, "price: negative"),
        ({"price": "1e5"}, "price: not a plain number"),
        ({"price": "0.123456789"}, "price: "),
        ({"price": None}, "price is null"),
        ({"side": "HOLD"}, "side: 'HOLD' is not one of BUY, SELL"),
        ({"timestamp": "yesterday"}, "timestamp: "),
        ({"colour": "red"}, "unknown field colour"),
        ({"source_sequence": 2**70}, "source_sequence: "),
        ({"symbol": 5}, "symbol: "),
    ],
)
def test_a_line_that_is_no_row_ends_it(
    cluster: Cluster, topic: str, change: str | dict[str, object], reason: str
) -> None:
    lines = ndjson(3).splitlines()
    if isinstance(change, str):
        lines[1] = change
    else:
        lines[1] = json.dumps(json.loads(lines[1]) | change)
    result = cluster.run("produce", topic, stdin="\n".join(lines) + "\n")
    assert result.exit_code == 6
    (reject,) = map(
        json.loads, (cluster.home / "rejects" / "produce.ndjson").read_text().splitlines()
    )
    assert (reject["position"], reject["raw"]) == (2, lines[1])
    assert reject["reason"].startswith(reason)
    allowed = cluster.run("produce", topic, "--max-rejects", 1, stdin="\n".join(lines))
    assert allowed.exit_code == 0
    assert offsets(cluster, topic) == 3  # the first line of the first run, two of the second


def test_missing_fields_take_their_defaults_or_are_told(cluster: Cluster, topic: str) -> None:
    row = json.loads(ndjson(1))
    for name in ("vendor_data", "trade_conditions", "source_sequence", "platform_sequence"):
        del row[name]
    assert cluster.run("produce", topic, stdin=json.dumps(row)).exit_code == 0
    cluster.consume("--topic", topic)
    (read,) = cluster.rows().to_pylist()
    assert (read["vendor_data"], read["trade_conditions"]) == (None, [])
    del row["price"]
    assert cluster.run("produce", topic, stdin=json.dumps(row)).exit_code == 6


def test_times_and_numbers_are_taken_exactly(cluster: Cluster, topic: str) -> None:
    row = json.loads(ndjson(1))
    texts = ["2024-08-08T12:00:00.000001+02:00", "2024-08-08T10:00:00.000001", 1723111200000001]
    lines = [json.dumps({**row, "timestamp": text}) for text in texts]
    exact = [line.replace('"61800.00000000"', "123456789.12345678") for line in lines]
    for line in exact:
        assert cluster.run("produce", topic, stdin=line).exit_code == 0
    cluster.consume("--topic", topic)
    read = cluster.rows()
    assert {time.isoformat() for time in read["timestamp"].to_pylist()} == {
        "2024-08-08T10:00:00.000001+00:00"
    }
    assert {str(price) for price in read["price"].to_pylist()} == {"123456789.12345678"}


def test_a_schema_that_is_not_registered_is_told_where_it_must_be(
    cluster: Cluster, topic: str
) -> None:
    result = cluster.run("produce", topic, "--no-auto-register", stdin=ndjson(1))
    assert result.exit_code == 4
    cluster.header(topic)
    assert cluster.run("produce", topic, "--no-auto-register", stdin=ndjson(1)).exit_code == 0


def test_init_makes_what_is_missing_and_says_so(cluster: Cluster) -> None:
    result = cluster.run(
        *("init", "--asset-class", "options", "--partitions", 2, "--retention", "7d"),
    )
    assert (result.exit_code, result.stdout) == (0, "")
    topic = "market.options.trades"
    assert f"created topic {topic}\n" in result.stderr
    assert f"created topic {topic}.dlq\n" in result.stderr
    (info,) = Topics(cluster.kafka, timeout_s=60).describe([topic])
    assert len(info.partitions) == 2
    admin = AdminClient({**cluster.kafka})
    (asked,) = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topic)]).values()
    assert asked.result()["retention.ms"].value == "604800000"
    with open_registry({"url": cluster.registry_url}, timeout_s=60) as registry:
        registry.find(subject_of(topic), TRADES.avro)
    again = cluster.run("init", "--asset-class", "options", "--partitions", 2)
    assert again.exit_code == 0
    assert "created" not in again.stderr
    assert "table market_data.trades_v2 exists" in again.stderr
    assert cluster.run("produce", topic, stdin=ndjson(5)).exit_code == 0
    assert cluster.consume("--topic", topic)["rows"] == 5


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["init", "--asset-class", "bonds"], 2, "bonds is not one of equities, crypto, futures"),
        (["produce", "no.trades"], 4, "hint: run k2 init, or k2 topic create no.trades"),
        (["produce", "no"], 2, "hint: use --kind trades or --kind quotes"),
        (["produce", "no.trades", "no.ndjson"], 4, "no.ndjson does not exist"),
        (
            ["stream", "binance", "-s", "BTCUSDT", "--channels", "trade,bookTicker", "-t", "x"],
            2,
            "-",
        ),
    ],
)
def test_failures_say_what_to_do(cluster: Cluster, args: list[str], code: int, stderr: str) -> None:
    result = cluster.run(*args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr


def test_brokers_and_registries_that_are_away_are_told(cluster: Cluster, topic: str) -> None:
    away = ("--kafka-option", "bootstrap.servers=127.0.0.1:1", "--timeout", "1s")
    result = cluster.run("produce", topic, *away, stdin=ndjson(1))
    assert result.exit_code == 5
    assert "hint: is Kafka running at 127.0.0.1:1?" in result.stderr
    no_registry = ("--registry-option", "url=http://127.0.0.1:1", "--timeout", "30s")
    result = cluster.run("produce", topic, *no_registry, stdin=ndjson(1))
    assert result.exit_code == 5
    assert "hint: is the schema registry running at http://127.0.0.1:1?" in result.stderr
