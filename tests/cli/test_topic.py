"""`k2 topic` against a real Kafka."""

import json

import pytest

from services.kafka import KafkaAddress
from support.running import Run

AWAY = ("--kafka-option", "bootstrap.servers=127.0.0.1:1", "--timeout", "500ms")


@pytest.fixture
def kafka_env(kafka: KafkaAddress, k2_env: dict[str, str]) -> None:
    """Let every k2 of a test find the broker."""
    k2_env["K2_KAFKA_BOOTSTRAP_SERVERS"] = kafka.bootstrap


pytestmark = pytest.mark.usefixtures("kafka_env")


def test_a_topic_is_created_listed_and_described(run: Run, topic_name: str) -> None:
    made = run(["topic", "create", topic_name, "--partitions", "3", "--retention", "7d"])
    assert (made.exit_code, made.stdout) == (0, "")
    assert f"created topic {topic_name}" in made.stderr
    listed = run(["topic", "list", "--format", "csv"]).stdout.splitlines()
    assert listed[0] == "topic,partitions,replicas,offsets"
    assert f"{topic_name},3,1,0" in listed
    (info,) = json.loads(run(["topic", "describe", topic_name, "--format", "json"]).stdout)
    assert (info["name"], len(info["partitions"])) == (topic_name, 3)
    assert info["partitions"][0] == {
        "number": 0,
        "leader": 1,
        "replicas": [1],
        "in_sync": [1],
        "first": 0,
        "next": 0,
    }
    assert f"id          {info['id']}" in run(["topic", "describe", topic_name]).stdout


def test_a_topic_that_is_there_is_an_error_unless_told(run: Run, topic_name: str) -> None:
    run(["topic", "create", topic_name])
    other = f"{topic_name}-2"
    again = run(["topic", "create", topic_name, other])
    assert again.exit_code == 4
    assert f"1 of 2 topics already exist: {topic_name}" in again.stderr
    assert f"hint: k2 topic describe {topic_name}" in again.stderr
    assert f"created topic {other}" in again.stderr  # the others are created all the same
    told = run(["topic", "create", topic_name, "--if-not-exists"])
    assert (told.exit_code, told.stdout) == (0, "")
    assert f"topic {topic_name} already exists" in told.stderr


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["describe", "nope"], 4, "hint: k2 topic create nope"),
        (["create", "a b"], 6, "Topic name is invalid"),
        (["create", "far", "--replication", "3"], 6, "only 1 broker(s) are registered"),
        (["create", "far", "--config", "nope.x=1"], 6, "Unknown topic config name: nope.x"),
        (["create", "far", "--config", "nope"], 2, "'nope' is not KEY=VALUE"),
        (["create", "far", "--partitions", "0"], 2, "--partitions"),
        (["list", "--kafka-option", "no.such=1"], 3, 'No such configuration property: "no.such"'),
        (["list", *AWAY], 5, "hint: is Kafka running at 127.0.0.1:1?"),
        (["create", "far", *AWAY], 5, "hint: is Kafka running at 127.0.0.1:1?"),
        (["describe", "far", *AWAY], 5, "hint: is Kafka running at 127.0.0.1:1?"),
        (["list", "--kafka-option", "bootstrap.servers="], 3, "hint: export K2_KAFKA_BOOTSTRAP"),
    ],
)
def test_failures_say_what_to_do(run: Run, args: list[str], code: int, stderr: str) -> None:
    result = run(["topic", *args])
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr
