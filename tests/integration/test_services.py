"""The real servers of the tests do what other tests rely on."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError
from pyiceberg.catalog import load_catalog

from services import ServiceMissing
from services.fixtures import OwnBroker, OwnRegistry
from services.java import find_java
from services.kafka import KafkaAddress
from services.packages import made_once
from services.processes import ServerFailed, free_port
from services.registry import RegistryAddress
from services.seaweedfs import SeaweedFs
from support.paths import TESTS
from support.waiting import PATIENCE_S, wait_for

VALUES = [b"1", b"2", b"3"]


def create_topic(bootstrap: str, name: str) -> None:
    admin = AdminClient({"bootstrap.servers": bootstrap})
    for answer in admin.create_topics([NewTopic(name, 1, 1)]).values():
        answer.result(PATIENCE_S)


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(PATIENCE_S) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[bytes | None]:
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic, "log_level": 0})
    consumer.assign([TopicPartition(topic, 0, 0)])
    try:
        return [message.value() for message in consumer.consume(count, PATIENCE_S)]
    finally:
        consumer.close()


def record_schema(*fields: dict[str, Any]) -> Schema:
    return Schema(json.dumps({"type": "record", "name": "R", "fields": fields}), "AVRO")


ID = {"name": "id", "type": "long"}


def test_kafka_gives_back_what_was_produced(kafka: KafkaAddress, topic_name: str) -> None:
    create_topic(kafka.bootstrap, topic_name)
    produce(kafka.bootstrap, topic_name, VALUES)
    assert consume(kafka.bootstrap, topic_name, 3) == VALUES


def test_kafka_does_not_make_topics_unasked(kafka: KafkaAddress, topic_name: str) -> None:
    failed: list[KafkaError | None] = []
    patience = {"topic.metadata.propagation.max.ms": 100}
    producer = Producer({"bootstrap.servers": kafka.bootstrap, **patience})
    producer.produce(topic_name, b"1", on_delivery=lambda error, _: failed.append(error))
    producer.flush(PATIENCE_S)
    assert [error.code() for error in failed if error] == [KafkaError.UNKNOWN_TOPIC_OR_PART]


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_broker_started_again_has_its_data(
    own_broker: OwnBroker, topic_name: str, end: Literal["stop", "kill"]
) -> None:
    broker = own_broker()
    create_topic(broker.bootstrap, topic_name)
    produce(broker.bootstrap, topic_name, VALUES)
    address = broker.bootstrap
    getattr(broker, end)()
    assert not broker.is_running()
    broker.start()
    assert broker.is_running()
    assert broker.bootstrap == address
    assert consume(broker.bootstrap, topic_name, 3) == VALUES


def test_broker_obeys_its_config(own_broker: OwnBroker, topic_name: str) -> None:
    broker = own_broker({"message.max.bytes": "2000"})
    create_topic(broker.bootstrap, topic_name)
    failed: list[KafkaError | None] = []
    producer = Producer({"bootstrap.servers": broker.bootstrap})
    producer.produce(topic_name, bytes(3000), on_delivery=lambda error, _: failed.append(error))
    producer.flush(PATIENCE_S)
    assert [error.code() for error in failed if error] == [KafkaError.MSG_SIZE_TOO_LARGE]


def test_brokers_share_nothing(own_broker: OwnBroker, topic_name: str) -> None:
    first, second = own_broker(), own_broker()
    create_topic(first.bootstrap, topic_name)
    admin = AdminClient({"bootstrap.servers": second.bootstrap})
    assert topic_name not in admin.list_topics(timeout=PATIENCE_S).topics


def test_broker_with_bad_config_shows_its_log(own_broker: OwnBroker) -> None:
    with pytest.raises(ServerFailed, match=r"(?s)ended at its start.*num\.io\.threads"):
        own_broker({"num.io.threads": "many"})


def test_registry_finds_what_was_registered(registry: RegistryAddress, topic_name: str) -> None:
    with SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S}) as client:
        schema = record_schema(ID)
        schema_id = client.register_schema(topic_name, schema)
        assert client.lookup_schema(topic_name, schema).schema_id == schema_id
        assert client.get_latest_version(topic_name).version == 1


def test_registry_demands_backward_compatible_schemas(
    registry: RegistryAddress, topic_name: str
) -> None:
    with SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S}) as client:
        client.register_schema(topic_name, record_schema(ID))
        price = {"name": "price", "type": "double"}
        assert not client.test_compatibility(topic_name, record_schema(ID, price))
        assert client.test_compatibility(topic_name, record_schema(ID, {**price, "default": 0.0}))
        with pytest.raises(SchemaRegistryError) as refused:
            client.register_schema(topic_name, record_schema(ID, price))
        assert refused.value.http_status_code == 409


def test_registry_does_not_know_other_subjects(registry: RegistryAddress, topic_name: str) -> None:
    with (
        SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S}) as client,
        pytest.raises(SchemaRegistryError) as refused,
    ):
        client.get_latest_version(topic_name)
    assert (refused.value.http_status_code, refused.value.error_code) == (404, 40401)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_registry_started_again_has_its_schemas(
    own_registry: OwnRegistry, topic_name: str, end: Literal["stop", "kill"]
) -> None:
    registry = own_registry()
    with SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S}) as client:
        schema_id = client.register_schema(topic_name, record_schema(ID))
    getattr(registry, end)()
    registry.start()
    with SchemaRegistryClient({"url": registry.url, "timeout": PATIENCE_S}) as client:
        assert client.lookup_schema(topic_name, record_schema(ID)).schema_id == schema_id


@pytest.mark.parametrize("kind", ["rest", "sql"])
def test_catalog_gives_back_what_was_appended(
    seaweedfs: SeaweedFs, tmp_path: Path, kind: Literal["rest", "sql"]
) -> None:
    catalog = load_catalog("any", **seaweedfs.catalog_properties(kind, folder=tmp_path))
    rows = pa.table({"id": pa.array([1, 2, 3], pa.int64())})
    try:
        assert catalog.list_namespaces() == []
        catalog.create_namespace("market")
        catalog.create_table("market.trades", schema=rows.schema).append(rows)
        table = catalog.load_table("market.trades")
        assert table.location().startswith("s3://")
        assert table.scan().to_arrow().equals(rows)
    finally:
        catalog.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of it")
def test_server_ends_when_the_tests_are_killed(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-u", "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    script = f"""
import os, signal
from pathlib import Path
from services.processes import ServerProcess
server = ServerProcess(name="web", folder=Path({str(tmp_path)!r}))
server.start({command!r}, is_ready=lambda: "Serving" in server.log_text(), timeout_s=60)
os.kill(os.getpid(), signal.SIGKILL)
"""
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    command = [sys.executable, "-c", script]
    killed = subprocess.run(command, env=env, check=False, timeout=PATIENCE_S)
    assert killed.returncode == -signal.SIGKILL
    wait_for(lambda: not is_open(port))


def is_open(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_cached_folder_appears_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise ServiceMissing("no more disk")

    with pytest.raises(ServiceMissing):
        made_once("x", fail)
    folder = made_once("x", lambda folder: (folder / "whole").touch())
    assert made_once("x", fail) == folder
    assert [path.name for path in folder.iterdir()] == ["whole"]


def test_java_that_is_nowhere_is_missing() -> None:
    with pytest.raises(ServiceMissing, match="no Java 999"):
        find_java(999)
