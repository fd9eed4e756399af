"""`k2 consume` where topics are deleted and recreated, grow, or have no position yet."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from confluent_kafka.admin import AdminClient, NewPartitions

from crashes.members import STOPPING
from support.cluster import Cluster, ids_of, numbered_trades
from support.running import K2_COMMAND, Process
from support.scraping import scraped_until
from support.waiting import PATIENCE_S, wait_for

SMALL_FETCHES = (
    *("--kafka-option", "queued.max.messages.kbytes=64"),
    *("--kafka-option", "fetch.message.max.bytes=65536"),
)


class Consumer:
    """A `k2 consume` that runs; its events are read as they come."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.events: list[dict[str, Any]] = []

    def wait_any(self) -> None:
        """Read one event more."""
        assert self.process.stderr is not None
        self.events.append(json.loads(next(self.process.stderr)))

    def wait_for(self, event: str, /, **fields: object) -> dict[str, Any]:
        """Read events until one has this name and these fields."""
        while True:
            self.wait_any()
            if {"event": event, **fields}.items() <= self.events[-1].items():
                return self.events[-1]

    def wait_for_rows(self, count: int) -> None:
        """Read events until this many rows are committed."""
        while sum(event["rows"] for event in self.of("commit")) < count:
            self.wait_for("commit")

    def end(self) -> dict[str, Any]:
        """Ask it to end, if it has not; return its summary."""
        self.process.terminate()
        return self.finish()

    def finish(self) -> dict[str, Any]:
        """Wait for its end; return its summary."""
        stdout, stderr = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0, stderr
        self.events += [json.loads(line) for line in stderr.splitlines() if line[:1] == "{"]
        summary: dict[str, Any] = json.loads(stdout)
        return summary

    def of(self, event: str) -> list[dict[str, Any]]:
        """Return the events of a name that were read."""
        return [each for each in self.events if each["event"] == event]

    def wait_for_messages(self, count: int) -> None:
        """Wait until this many messages are read, which its metrics show."""
        url = self.of("metrics")[0]["url"]
        scraped_until(url, lambda samples: samples.get(("k2_messages_total", ())) == count)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the process for a while."""
        self.process.send_signal(signal.SIGSTOP)
        yield
        self.process.send_signal(signal.SIGCONT)

    @contextmanager
    def stopped_by_itself(self) -> Iterator[None]:
        """Wait until the process has stopped itself; let it go on afterwards."""
        options = os.WSTOPPED | os.WNOHANG
        wait_for(lambda: os.waitid(os.P_PID, self.process.pid, options))
        yield
        self.process.send_signal(signal.SIGCONT)


@contextmanager
def consuming(cluster: Cluster, *args: object, stop_after: int = 0) -> Iterator[Consumer]:
    """Run k2 consume; with `stop_after`, so that it stops itself after this many commits."""
    stopping = (sys.executable, str(STOPPING), "committed", str(stop_after))
    process = cluster.start(
        *("consume", "--log-format", "json", "--summary", "json", *args),
        program=stopping if stop_after else K2_COMMAND,
    )
    with process:
        try:
            yield Consumer(process)
        finally:
            process.kill()


def stored(cluster: Cluster, topic: str, topic_id: str) -> int:
    """Sum up how far the table has come in the topic with this id."""
    positions = cluster.positions()
    return sum(
        offset
        for partition, offset in positions.items()
        if (partition.topic, partition.topic_id) == (topic, topic_id)
    )


@pytest.fixture
def topic(topic_name: str) -> str:
    return f"{topic_name}.trades"


@pytest.fixture
def args(topic: str) -> Sequence[str]:
    return ("--topic", topic, "--group", topic)


# How many partitions the new topic has, and how many records: the old one has 4 and 100.
RECREATED = {"smaller": (4, 20), "larger": (4, 400), "fewer": (2, 300), "more": (8, 300)}


@pytest.mark.parametrize("is_paused", [False, True], ids=["running", "paused"])
def test_recreated_topics_are_read_from_their_start(
    cluster: Cluster, topic_name: str, is_paused: bool
) -> None:
    topics = {how: f"{topic_name}.{how}.trades" for how in (*RECREATED, "kept")}
    old_ids = {}
    for number, topic in enumerate(topics.values()):
        old_ids[topic] = cluster.create(topic).id
        cluster.produce(topic, numbered_trades(100, begin=number * 1_000))
    group = ("--topic", ",".join(topics.values()), "--group", topic_name)
    begins = {topic: number * 1_000 + 100 for number, topic in enumerate(topics.values())}
    with consuming(cluster, *group, "--commit-interval", "200ms") as consumer:
        consumer.wait_for_rows(500)

        def recreate() -> None:
            for how, (partitions, count) in RECREATED.items():
                cluster.delete(topics[how])
                cluster.create(topics[how], partitions=partitions)
                cluster.produce(topics[how], numbered_trades(count, begin=begins[topics[how]]))
            cluster.produce(topics["kept"], numbered_trades(50, begin=begins[topics["kept"]]))

        if is_paused:
            with consumer.paused():
                recreate()
        else:
            recreate()
        consumer.wait_for_rows(500 + 20 + 400 + 300 + 300 + 50)
        summary = consumer.end()
    ids = cluster.ids()
    assert len(ids) == len(set(ids)) == 1570
    events = {event["topic"]: event for event in consumer.of("topic_recreated")}
    assert set(events) == set(topics.values()) - {topics["kept"]}
    for how, (_, count) in RECREATED.items():
        topic = topics[how]
        assert events[topic]["old_id"] == old_ids[topic]
        assert events[topic]["missing"] == 0
        assert stored(cluster, topic, old_ids[topic]) == 100
        assert stored(cluster, topic, events[topic]["new_id"]) == count
    assert summary["missing"] == summary["lost_commits"] == 0
    assert cluster.consume(*group)["messages"] == 0


def test_deleted_topic_is_waited_for(cluster: Cluster, topic: str, topic_name: str) -> None:
    other = f"{topic_name}.other.trades"
    old_id = cluster.create(topic).id
    cluster.create(other)
    cluster.produce(topic, numbered_trades(100))
    with consuming(
        *(cluster, "--topic", f"{topic},{other}", "--group", topic_name),
        *("--commit-interval", "200ms"),
        *("--kafka-option", "topic.metadata.refresh.interval.ms=500"),
    ) as consumer:
        consumer.wait_for("commit", rows=100)
        cluster.delete(topic)
        while not consumer.of("topic_missing") or not consumer.of("revoked"):
            consumer.wait_any()
        (missing,) = consumer.of("topic_missing")
        assert (missing["topic"], missing["topic_id"]) == (topic, old_id)
        cluster.produce(other, numbered_trades(10, begin=100))
        consumer.wait_for("commit", rows=10)
        new_id = cluster.create(topic).id
        cluster.produce(topic, numbered_trades(200, begin=200))
        consumer.wait_for("topic_recreated", old_id=old_id, new_id=new_id, missing=0)
        consumer.wait_for_rows(310)
        consumer.end()
    assert len(consumer.of("topic_missing")) == 1
    assert stored(cluster, topic, old_id) == 100
    assert stored(cluster, topic, new_id) == 200


def test_what_was_read_of_the_old_topic_is_stored_under_its_id(
    cluster: Cluster, topic: str, args: Sequence[str]
) -> None:
    old_id = cluster.create(topic, partitions=1).id
    cluster.produce(topic, numbered_trades(100))
    with consuming(cluster, *args, "--commit-interval", "1h", "--metrics", ":0") as consumer:
        consumer.wait_for("assigned")
        consumer.wait_for_messages(100)
        signal.sigtimedwait([], 6)  # it asks for the id every second: also after it has read all
        with consumer.paused():
            cluster.delete(topic)
            cluster.create(topic, partitions=1)
            cluster.produce(topic, numbered_trades(300, begin=100))
        new_id = consumer.wait_for("topic_recreated", missing=0)["new_id"]
        assert consumer.of("commit")[0]["rows"] == 100
        assert stored(cluster, topic, old_id) == 100
        consumer.end()
    cluster.consume(*args)  # what it has not read any more
    assert cluster.ids() == ids_of(numbered_trades(400))
    assert stored(cluster, topic, new_id) == 300


@pytest.mark.parametrize("is_recreated", [True, False])
def test_unread_records_of_a_deleted_topic_are_missing(
    cluster: Cluster, topic: str, args: Sequence[str], is_recreated: bool
) -> None:
    count = 200_000
    cluster.create(topic, partitions=1)
    cluster.produce(topic, numbered_trades(count))
    reading = ("--until-end", "--batch-rows", 1_000, "--timeout", "10s", *SMALL_FETCHES)
    with consuming(cluster, *args, *reading, stop_after=5) as consumer:
        with consumer.stopped_by_itself():
            cluster.delete(topic)
            if is_recreated:
                cluster.create(topic, partitions=1)
                cluster.produce(topic, numbered_trades(count + 10, begin=count))
        if not is_recreated:
            error = consumer.wait_for("error")
            assert error["exit_code"] == 4
            assert error["message"] == f"topic {topic} was deleted before it was read to its end"
            assert len(consumer.of("topic_missing")) == 1
            return
        event = consumer.wait_for("topic_recreated")
        summary = consumer.finish()
    assert summary["missing"] == event["missing"] > 0
    ids = cluster.ids()
    old = stored(cluster, topic, event["old_id"])
    assert old + event["missing"] == count
    assert len(ids) == len(set(ids)) == old + count + 10
    assert stored(cluster, topic, event["new_id"]) == count + 10


def test_topic_recreated_between_runs_is_read_from_its_start(
    cluster: Cluster, topic: str, args: Sequence[str]
) -> None:
    old_id = cluster.create(topic).id
    cluster.produce(topic, numbered_trades(100))
    cluster.consume(*args)
    cluster.delete(topic)
    new_id = cluster.create(topic).id
    cluster.produce(topic, numbered_trades(150, begin=100))
    result = cluster.run("consume", "--until-end", "--from", "latest", *args)
    told = f"topic_recreated topic={topic} old_id={old_id} new_id={new_id}"
    assert told in result.stderr
    assert cluster.ids() == ids_of(numbered_trades(250))
    result = cluster.run("consume", "--until-end", "--from", "latest", *args)
    assert "topic_recreated" not in result.stderr


# --- where partitions without a position begin


def test_what_arrives_after_a_start_at_latest_is_read_whatever_is_killed(
    cluster: Cluster, topic: str
) -> None:
    cluster.create(topic)
    cluster.produce(topic, numbered_trades(100))
    start = ("--topic", topic, "--from", "latest")
    for number in (1, 2):
        group = ("--group", f"{topic}-{number}")  # a killed member holds up those of its own
        with consuming(cluster, *start, *group, "--commit-interval", "1h") as consumer:
            consumer.wait_for("assigned")
            cluster.produce(topic, numbered_trades(100, begin=number * 100))
            consumer.process.kill()
        assert [event["rows"] for event in consumer.of("commit")] == [0] * (number == 1)
    assert cluster.consume(*start, "--group", topic)["messages"] == 200
    assert cluster.ids() == ids_of(numbered_trades(200, begin=100))


def test_members_that_start_at_latest_begin_at_the_same_moment(
    cluster: Cluster, topic: str, args: Sequence[str]
) -> None:
    cluster.create(topic)
    cluster.produce(topic, numbered_trades(100))
    start = (*args, "--from", "latest", "--commit-interval", "1h")
    with consuming(cluster, *start) as one, consuming(cluster, *start) as two:
        one.wait_for("assigned")
        cluster.produce(topic, numbered_trades(100, begin=100))
        two.wait_for("assigned")
        one.process.kill()
        two.process.kill()
    commits = one.of("commit") + two.of("commit")
    assert [event["rows"] for event in commits].count(0) == 1
    admin = AdminClient({**cluster.kafka})
    admin.create_partitions([NewPartitions(topic, 8)])[topic].result()
    cluster.produce(topic, numbered_trades(100, begin=200))
    cluster.consume("--topic", topic, "--from", "latest")
    assert cluster.ids() == ids_of(numbered_trades(200, begin=100))


def test_start_beyond_the_first_record_is_a_position(
    cluster: Cluster, topic: str, args: Sequence[str]
) -> None:
    cluster.create(topic, partitions=1)
    cluster.produce(topic, numbered_trades(30))
    cluster.delete_records(topic, 10)
    killed = ("--topic", topic, "--group", f"{topic}-killed")
    with consuming(cluster, *killed, "--commit-interval", "1h") as consumer:
        consumer.wait_for("assigned")
        consumer.process.kill()
    cluster.delete_records(topic, 25)
    summary = cluster.consume(*args)
    assert (summary["missing"], summary["rows"]) == (15, 5)


def test_offset_reset_of_the_user_hides_no_gap(
    cluster: Cluster, topic: str, args: Sequence[str]
) -> None:
    env = {**cluster.env, "K2_KAFKA_ENABLE_PARTITION_EOF": "false", "K2_KAFKA_GROUP_ID": "other"}
    given = Cluster(cluster.bootstrap, cluster.registry_url, cluster.home, env)
    cluster.create(topic, partitions=1)
    cluster.produce(topic, numbered_trades(100))
    cluster.consume(*args)
    for number, reset in enumerate(("earliest", "latest"), 1):
        cluster.produce(topic, numbered_trades(100, begin=number * 100))
        cluster.delete_records(topic, number * 100 + 40)
        option = f"auto.offset.reset={reset}"
        result = given.run("consume", "--until-end", *args, "--kafka-option", option)
        assert result.exit_code == 0
        ignored = f"setting_ignored setting=kafka.auto.offset.reset value={reset} used=error"
        assert result.stderr.count(ignored) == 1
        assert result.stderr.count("setting_ignored") == 3
        gap = f"first={number}00 last={number}39 missing=40"
        assert f"gap topic={topic} partition=0 {gap}" in result.stderr
        assert "missing=40" in result.stderr.splitlines()[-1]
    assert len(cluster.ids()) == 220
