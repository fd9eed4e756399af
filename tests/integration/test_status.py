"""`k2 status` and real servers: figures are those of what was written, and outages are red."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.config import load_settings
from k2cli.ingestion.kafka.registry import open_registry
from k2cli.ingestion.kafka.topics import Topics
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from services.fixtures import OwnBroker, OwnRegistry
from services.seaweedfs import SeaweedFs
from support.builders import START, trades_batch
from support.cluster import READ_TIMEOUT_S, Cluster, numbered_trades
from support.running import Run, start_k2
from support.waiting import PATIENCE_S

TOPIC = "market.crypto.trades"
GROUP = "k2-iceberg-writer"


PATIENT = ("--timeout", "60s")  # with servers that are up, the answer takes no longer for it


def status(cluster: Cluster, *args: str, code: int = 0) -> dict[str, Any]:
    result = cluster.run("status", "--format", "json", *(args or PATIENT))
    assert result.exit_code == code, result.stdout + result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def states_of(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in found["checks"]}


def check_of(found: dict[str, Any], name: str) -> dict[str, Any]:
    (check,) = (check for check in found["checks"] if check["name"] == name)
    return dict(check)


def catalog_env(properties: dict[str, str]) -> dict[str, str]:
    """Write a catalog's properties as variables."""
    return {
        f"K2_CATALOG_{key.replace('.', '__').replace('-', '_').upper()}": value
        for key, value in properties.items()
    }


def write_trades(env: dict[str, str], count: int) -> None:
    with open_lake(load_settings(env), create=True) as lake:
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(count)]))


@pytest.fixture
def own_cluster(
    own_broker: OwnBroker, own_registry: OwnRegistry, home: Path, k2_env: dict[str, str]
) -> Cluster:
    """Servers that nobody else uses."""
    bootstrap, url = own_broker().bootstrap, own_registry().url
    env = {
        **k2_env,
        "K2_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
        "K2_SCHEMA_REGISTRY_URL": url,
    }
    return Cluster(bootstrap, url, home, env)


def test_figures_are_those_of_what_was_written(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic)
    cluster.produce(topic, numbered_trades(100))
    before = datetime.now(tz=UTC)
    cluster.consume("--topic", topic)
    cluster.produce(topic, numbered_trades(7, begin=100))
    found = status(cluster)
    assert "red" not in states_of(found).values()
    (trades,) = (table for table in found["tables"] if table["kind"] == "trades")
    assert trades["rows"] == 100
    newest = START + timedelta(seconds=99, microseconds=55_000)
    assert datetime.fromisoformat(trades["newest_record"]) == newest
    committed = datetime.fromisoformat(trades["last_commit"])
    assert before - timedelta(milliseconds=1) <= committed <= datetime.now(tz=UTC)
    lags = [lag for lag in found["lag"] if lag["topic"] == topic]
    assert [lag["partition"] for lag in lags] == [0, 1, 2, 3]
    assert {lag["table"] for lag in lags} == {"trades"}
    assert sum(lag["end"] for lag in lags) == 107
    assert sum(lag["table_offset"] for lag in lags) == 100
    assert sum(lag["lag"] for lag in lags) == 7
    assert [lag["group_offset"] for lag in lags] == [lag["table_offset"] for lag in lags]
    text = cluster.run("status", *PATIENT).stdout
    assert "  kafka      " in text
    assert f"{topic}  " in text


def test_each_step_of_a_new_cluster_is_named(own_cluster: Cluster) -> None:
    found = status(own_cluster)
    assert states_of(found) == {
        "catalog": "yellow",
        "kafka": "yellow",
        "registry": "yellow",
        "consumers": "green",
        "disk": "green",
    }
    assert check_of(found, "kafka")["hint"] == check_of(found, "registry")["hint"] == "k2 init"
    assert own_cluster.run("init", "--partitions", "2").exit_code == 0
    found = status(own_cluster)
    assert set(states_of(found).values()) == {"green"}
    assert "1 broker, 8 topics market.*" in check_of(found, "kafka")["detail"]
    assert "4 subjects market.*" in check_of(found, "registry")["detail"]
    own_cluster.produce(TOPIC, numbered_trades(50))
    found = status(own_cluster)
    assert check_of(found, "consumers")["state"] == "yellow"
    assert check_of(found, "consumers")["hint"] == "k2 consume"
    assert "50 messages behind" in check_of(found, "consumers")["detail"]
    lags = [lag for lag in found["lag"] if lag["topic"] == TOPIC]
    assert {(lag["table_offset"], lag["group_offset"]) for lag in lags} == {(None, None)}
    assert own_cluster.consume()["rows"] == 50
    found = status(own_cluster)
    assert set(states_of(found).values()) == {"green"}
    assert sum(lag["lag"] for lag in found["lag"]) == 0
    with open_registry({"url": own_cluster.registry_url}, timeout_s=READ_TIMEOUT_S) as registry:
        registry.register("market.equities.trades-value", {"type": "string"})
    check = check_of(status(own_cluster), "registry")
    assert check["state"] == "yellow"
    assert check["hint"] == "k2 schema register market.equities.trades-value"


def test_init_lets_dead_letters_be_as_large_as_their_source(own_cluster: Cluster) -> None:
    own_cluster.create(TOPIC, partitions=1, max_message_bytes="7000000")
    result = own_cluster.run("init")
    assert result.exit_code == 0, result.stderr
    topics = Topics(own_cluster.kafka, timeout_s=READ_TIMEOUT_S)
    assert topics.setting(f"{TOPIC}.dlq", "max.message.bytes") == "7000000"


def test_servers_that_stop_are_red_and_the_rest_is_not(
    own_broker: OwnBroker, own_registry: OwnRegistry, home: Path, k2_env: dict[str, str]
) -> None:
    broker, registry = own_broker(), own_registry()
    env = {
        **k2_env,
        "K2_KAFKA_BOOTSTRAP_SERVERS": broker.bootstrap,
        "K2_SCHEMA_REGISTRY_URL": registry.url,
    }
    cluster = Cluster(broker.bootstrap, registry.url, home, env)
    assert cluster.run("init").exit_code == 0
    broker.stop()
    found = status(cluster, "--timeout", "8s", code=5)
    assert states_of(found) == {
        "catalog": "green",
        "store": "green",
        "kafka": "red",
        "registry": "green",
        "disk": "green",
    }
    registry.kill()
    found = status(cluster, "--timeout", "8s", code=5)
    assert (states_of(found)["kafka"], states_of(found)["registry"]) == ("red", "red")
    text = cluster.run("status", "--timeout", "8s").stdout.splitlines()
    reds = [line for line in text if line.startswith("red")]
    assert [line.split()[1] for line in reds] == ["kafka", "registry"]
    assert all("; hint: " in line for line in reds)


@pytest.mark.parametrize("kind", ["rest", "sql"])
def test_tables_in_an_object_store(
    run: Run, seaweedfs: SeaweedFs, tmp_path: Path, k2_env: dict[str, str], kind: Any
) -> None:
    env = {**k2_env, **catalog_env(seaweedfs.catalog_properties(kind, folder=tmp_path))}
    empty = run(["status", "-f", "json", *PATIENT], env=env)
    assert empty.exit_code == 0
    assert check_of(json.loads(empty.stdout), "catalog")["hint"] == "k2 init"
    write_trades(env, 5)
    found = json.loads(run(["status", "-f", "json", *PATIENT], env=env).stdout)
    assert states_of(found) == {"catalog": "green", "store": "green"}
    assert check_of(found, "store")["detail"].startswith("s3://")
    assert found["tables"][0]["rows"] == 5
    newest = START + timedelta(seconds=4, microseconds=55_000)
    assert datetime.fromisoformat(found["tables"][0]["newest_record"]) == newest


@pytest.fixture
def store_env(seaweedfs: SeaweedFs, tmp_path: Path, k2_env: dict[str, str]) -> dict[str, str]:
    """Tables whose catalog does not need the store that their files are in."""
    env = {**k2_env, **catalog_env(seaweedfs.catalog_properties("sql", folder=tmp_path))}
    write_trades(env, 5)
    return env


def test_a_store_that_is_away_is_red(run: Run, store_env: dict[str, str]) -> None:
    env = {**store_env, "K2_CATALOG_S3__ENDPOINT": "http://127.0.0.1:1"}
    result = run(["status", "-f", "json", *PATIENT], env=env)
    assert result.exit_code == 5
    assert states_of(json.loads(result.stdout)) == {"catalog": "green", "store": "red"}


def test_a_store_that_never_answers_does_not_keep_the_process(
    store_env: dict[str, str], black_hole: str
) -> None:
    env = {
        **store_env,
        "K2_CATALOG_S3__ENDPOINT": f"http://{black_hole}",
        "K2_CATALOG_S3__REQUEST_TIMEOUT": "3600",  # Arrow waits for so long, and is waited for
    }
    args = ("status", "-f", "json", "--timeout", "10s")
    with start_k2(*args, env=env, stderr=None) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.readline())
        assert process.wait(PATIENCE_S) == 5
    assert states_of(found) == {"catalog": "green", "store": "red"}
