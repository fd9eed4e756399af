"""`k2 dlq` with a real broker and a real registry: dead letters, looked at and sent back once."""

import json
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
from confluent_kafka import KafkaError, Message, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

from k2cli.codec.encode import wire_header
from k2cli.ingestion.kafka.topics import Topics
from support import rawkafka
from support.cluster import (
    READ_TIMEOUT_S,
    Cluster,
    consumer,
    headers_of,
    ids_of,
    numbered_trades,
    values_of,
)
from support.waiting import PATIENCE_S, wait_for

HEADER = "letter,time,reason,topic,partition,offset,key,size_bytes,is_replayed"
AWAY = ("--kafka-option", "bootstrap.servers=127.0.0.1:1", "--timeout", "500ms")


@pytest.fixture
def topic(cluster: Cluster, topic_name: str) -> str:
    """A topic, and beside it one for its dead letters."""
    cluster.create(f"{topic_name}.trades", partitions=2)
    cluster.create(f"{topic_name}.trades.dlq", partitions=1)
    return f"{topic_name}.trades"


def set_aside(
    cluster: Cluster, topic: str, values: Sequence[bytes | None], *, at: int = 0, source: str = ""
) -> None:
    """Put letters on partition `at` of the dead letters, as if from partition 1 of the topic."""
    producer = Producer(cluster.kafka)
    for number, value in enumerate(values):
        headers = {
            "theirs": "1",
            "k2.reason": f"reason {number}",
            "k2.topic": source or topic,
            "k2.partition": "1",
            "k2.offset": str(number),
            "k2.time": "2024-08-08T10:00:00.000Z",
        }
        producer.produce(f"{topic}.dlq", value, b"key", at, headers=list(headers.items()))
        producer.poll(0)
    assert producer.flush(READ_TIMEOUT_S) == 0


def messages_on(cluster: Cluster, topic: str) -> list[Message]:
    """Read all that a topic has, and that was committed."""
    (info,) = Topics(cluster.kafka, timeout_s=READ_TIMEOUT_S).describe([topic])
    messages: list[Message] = []
    with consumer({**cluster.kafka, "enable.partition.eof": "true"}) as reader:
        for partition in info.partitions:
            reader.assign([TopicPartition(topic, partition.number, 0)])
            while True:
                message = reader.poll(READ_TIMEOUT_S)
                assert message is not None
                error = message.error()
                if error is not None:
                    assert error.code() == KafkaError._PARTITION_EOF
                    break
                messages.append(message)
    return messages


def sent_to(cluster: Cluster, topic: str) -> int:
    """Count all that was ever sent to a topic, committed or not."""
    (info,) = Topics(cluster.kafka, timeout_s=READ_TIMEOUT_S).describe([topic])
    return sum(partition.next for partition in info.partitions)


def summary_of(stdout: str) -> tuple[int, int, int]:
    sums = json.loads(stdout)
    return sums["letters"], sums["replayed"], sums["skipped"]


def replay(cluster: Cluster, topic: str, *args: str) -> tuple[int, int, int]:
    result = cluster.run("dlq", "replay", "--topic", topic, "--summary", "json", *args)
    assert result.exit_code == 0, result.stderr
    return summary_of(result.stdout)


def letters_of(cluster: Cluster, topic: str, *args: object) -> list[str]:
    result = cluster.run("dlq", "list", "--topic", topic, "--format", "ndjson", *args)
    assert result.exit_code == 0, result.stderr
    return [json.loads(line)["letter"] for line in result.stdout.splitlines()]


def test_what_consume_sets_aside_is_listed_repaired_and_consumed(
    cluster: Cluster, topic_name: str
) -> None:
    topic, group = f"{topic_name}.trades", ("--group", topic_name)
    cluster.create(topic, partitions=2)
    good = values_of(numbered_trades(3), cluster.header(topic))
    cluster.send(topic, [good[0], good[1] + b"xy", b"nonsense"], partition=1)
    cluster.consume("--topic", topic, *group)

    listed = cluster.run("dlq", "list", "--topic", topic)
    header, first, second = listed.stdout.splitlines()
    assert header == HEADER
    assert first.startswith("0/0,20")
    reason = "2 extra bytes after the record"
    assert first.endswith(f"Z,{reason},{topic},1,1,key,{len(good[1]) + 2},false")
    assert second.endswith(f",{topic},1,2,key,8,false")

    raw = cluster.run("dlq", "show", "--topic", topic, "0/1", "--raw")
    assert (raw.exit_code, raw.stdout) == (0, "nonsense")
    repaired = cluster.home.parent / "repaired"
    repaired.write_bytes(good[1])
    assert replay(cluster, topic, "0/0", "--value", str(repaired)) == (1, 1, 0)
    assert cluster.consume("--topic", topic, *group)["rows"] == 1
    assert cluster.ids() == ids_of(numbered_trades(2))

    # The other one was not repaired: it comes back as a new letter.
    assert replay(cluster, topic, "--all") == (2, 1, 1)
    assert cluster.consume("--topic", topic, *group)["rejects"] == 1
    rows = cluster.run("dlq", "list", "--topic", topic).stdout.splitlines()[1:]
    assert [row.rpartition(",")[2] for row in rows] == ["true", "true", "false"]
    assert replay(cluster, topic, "--all") == (3, 1, 2)


def test_a_message_goes_back_as_it_was(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"a", None, b""])
    assert replay(cluster, topic, "--all") == (3, 3, 0)
    messages = messages_on(cluster, topic)
    assert [message.value() for message in messages] == [b"a", None, b""]
    assert {(message.key(), message.partition()) for message in messages} == {(b"key", 1)}
    assert {tuple(message.headers() or []) for message in messages} == {(("theirs", b"1"),)}


def test_each_letter_is_replayed_once_unless_told(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"0", b"1", b"2", b"3"])
    assert replay(cluster, topic, "0/2", "0/0", "0/2") == (2, 2, 0)
    twice = cluster.run("dlq", "replay", "--topic", topic, "0/2")
    assert twice.exit_code == 0
    assert "0/2 was replayed before; use --again to replay it again" in twice.stderr
    assert "summary letters=1 replayed=0 skipped=1" in twice.stderr
    assert replay(cluster, topic, "--all") == (4, 2, 2)
    assert replay(cluster, topic, "--all") == (4, 0, 4)
    assert [m.value() for m in messages_on(cluster, topic)] == [b"2", b"0", b"1", b"3"]
    assert replay(cluster, topic, "0/3", "--again") == (1, 1, 0)
    assert replay(cluster, topic, "--all", "--again") == (4, 4, 0)
    assert len(messages_on(cluster, topic)) == 9


def test_a_dry_run_sends_nothing(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"0", b"1"])
    result = cluster.run("dlq", "replay", "--topic", topic, "--all", "--dry-run")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr.splitlines() == [
        "dry run: nothing was sent",
        "summary letters=2 replayed=2 skipped=0",
    ]
    assert messages_on(cluster, topic) == []
    assert replay(cluster, topic, "0/0") == (1, 1, 0)
    assert replay(cluster, topic, "--all", "--dry-run") == (2, 1, 1)


def test_all_letters_that_are_named_go_or_none(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"0", b"1"])
    result = cluster.run("dlq", "replay", "--topic", topic, "0/0", "0/1", "0/2")
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"error: dead letter 0/2 does not exist on {topic}.dlq" in result.stderr
    assert messages_on(cluster, topic) == []
    assert replay(cluster, topic, "--all") == (2, 2, 0)


def test_a_letter_of_a_topic_that_is_gone_stays(
    cluster: Cluster, topic: str, topic_name: str
) -> None:
    set_aside(cluster, topic, [b"0"])
    set_aside(cluster, topic, [b"1"], source=f"{topic_name}.gone")
    result = cluster.run("dlq", "replay", "--topic", topic, "--all")
    assert (result.exit_code, result.stdout) == (4, "")
    assert f"hint: k2 topic create {topic_name}.gone" in result.stderr
    assert messages_on(cluster, topic) == []
    assert replay(cluster, topic, "0/0") == (1, 1, 0)


def test_a_topic_with_fewer_partitions_takes_letters_by_key(
    cluster: Cluster, topic_name: str
) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    cluster.create(f"{topic}.dlq", partitions=1)
    set_aside(cluster, topic, [b"0"])
    assert replay(cluster, topic, "--all") == (1, 1, 0)
    assert [m.partition() for m in messages_on(cluster, topic)] == [0]


def test_dead_letters_may_have_many_partitions(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=2)
    cluster.create(f"{topic}.dlq", partitions=3)
    set_aside(cluster, topic, [b"0", b"1"], at=2)
    set_aside(cluster, topic, [b"2", b"3"], at=0)
    assert letters_of(cluster, topic) == ["2/0", "2/1", "0/0", "0/1"]
    assert letters_of(cluster, topic, "--limit", 3) == ["2/1", "0/0", "0/1"]
    assert replay(cluster, topic, "2/1", "0/0") == (2, 2, 0)
    assert replay(cluster, topic, "--all") == (4, 2, 2)
    assert Counter(m.value() for m in messages_on(cluster, topic)) == Counter(
        [b"0", b"1", b"2", b"3"]
    )


def test_the_newest_letters_are_found_behind_receipts(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"x"] * 3)
    for number in range(3):
        replay(cluster, topic, f"0/{number}")
    assert letters_of(cluster, topic, "--limit", 2) == ["0/1", "0/2"]
    assert letters_of(cluster, topic, "--limit", 20) == ["0/0", "0/1", "0/2"]


def test_a_table_shows_the_newest_and_says_so(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"x"] * 1_200)
    table = cluster.run("dlq", "list", "--topic", topic, "--format", "table")
    assert len(table.stdout.splitlines()) == 1_002
    assert table.stdout.splitlines()[-1].startswith("0/1199 ")
    assert "showing the newest 1000; use --limit for more, or --format csv for all" in table.stderr
    assert len(letters_of(cluster, topic)) == 1_200


def test_no_dead_letters_are_no_error(cluster: Cluster, topic_name: str, topic: str) -> None:
    empty = cluster.run("dlq", "list", "--topic", topic)
    assert (empty.exit_code, empty.stdout) == (0, f"{HEADER}\n")
    assert empty.stderr == "no rows matched\n"
    assert replay(cluster, topic, "--all") == (0, 0, 0)

    other = f"{topic_name}.quotes"
    cluster.create(other)
    missing = cluster.run("dlq", "list", "--topic", other, "--format", "json")
    assert (missing.exit_code, missing.stdout) == (0, "[]\n")
    assert f"no dead letters: topic {other}.dlq does not exist" in missing.stderr
    assert replay(cluster, other, "--all") == (0, 0, 0)
    assert f"{other}.dlq" not in Topics(cluster.kafka, timeout_s=60).names()


def test_dead_letters_outlive_their_topic(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"x"])
    admin = AdminClient({**cluster.kafka})
    admin.delete_topics([topic])[topic].result()
    assert letters_of(cluster, topic) == ["0/0"]
    assert letters_of(cluster, f"{topic}.dlq") == ["0/0"]


def test_a_value_is_shown_as_far_as_it_decodes(cluster: Cluster, topic: str) -> None:
    header = cluster.header(topic)
    (good,) = values_of(numbered_trades(1), header)
    values = [good, good + b"xy", good[:60], wire_header(2**30) + b"1", b"text", b"\xff\xfe", None]
    set_aside(cluster, topic, values)
    places = [f"0/{number}" for number in range(len(values))]
    result = cluster.run("dlq", "show", "--topic", topic, *places, "--format", "json")
    assert result.exit_code == 0, result.stderr
    letters = json.loads(result.stdout)
    assert letters[0]["letter"] == "0/0"
    assert letters[0]["headers"] == [["theirs", "1"]]
    assert (letters[2]["topic"], letters[2]["partition"], letters[2]["offset"]) == (topic, 1, 2)
    assert (letters[2]["reason"], letters[2]["sent_at"]) == ("reason 2", "2024-08-08T10:00:00.000Z")

    shown = [letter["value"] for letter in letters]
    assert shown[0]["schema"] == "TradeV2"
    assert shown[0]["schema_id"] == int.from_bytes(header[1:])
    assert shown[0]["fields"]["price"] == "61800.00000000"
    assert shown[0]["fields"]["timestamp"].endswith("Z")
    assert {"problem", "hex"}.isdisjoint(shown[0])
    assert shown[1]["fields"] == shown[0]["fields"]
    assert shown[1]["problem"] == "2 extra bytes after the record"
    assert list(shown[2]["fields"]) == ["message_id", "trade_id", "symbol"]
    assert shown[2]["problem"] == "field exchange: the value ends in it"
    assert shown[2]["hex"] == good[:60].hex()
    assert shown[3]["problem"].startswith(f"cannot read schema {2**30}")
    assert shown[4] == {"size_bytes": 4, "text": "text"}
    assert (shown[5]["hex"], shown[5]["size_bytes"]) == ("fffe", 2)
    assert shown[6] == {"problem": "a null value (tombstone)"}


def test_a_letter_is_shown_for_people(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"a\x1b[2Jb", wire_header(7) + b"x"])
    text = cluster.run("dlq", "show", "--topic", topic, "0/0").stdout
    assert f"letter  0/0 of {topic}.dlq\n" in text
    assert "reason  reason 0\n" in text
    assert f"from    {topic}/1 at offset 0, sent 2024-08-08T10:00:00.000Z\n" in text
    assert "key     key\n" in text
    assert "headers\n  theirs = 1\n" in text
    assert text.endswith("\n\na\\x1b[2Jb\n")
    for registry in ("", "http://127.0.0.1:1"):
        away = Cluster(
            cluster.bootstrap,
            registry,
            cluster.home,
            {**cluster.env, "K2_SCHEMA_REGISTRY_URL": registry},
        )
        result = away.run("dlq", "show", "--topic", topic, "0/1", "--timeout", "30s")
        assert result.exit_code == 0, result.stderr
        assert "schema  id 7\nproblem " in result.stdout
        assert "00000000  00 00 00 00 07 78 " in result.stdout


def test_what_others_put_there_is_a_letter_too(cluster: Cluster, topic: str) -> None:
    cluster.send(f"{topic}.dlq", [b"x"])
    rows = cluster.run("dlq", "list", "--topic", topic).stdout.splitlines()
    assert rows[1].endswith(f"Z,,{topic},,,key,1,false")
    shown = cluster.run("dlq", "show", "--topic", topic, "0/0").stdout
    assert "reason  unknown: it was not written by k2" in shown
    assert f"from    {topic}\n" in shown
    assert replay(cluster, topic, "--all") == (1, 1, 0)
    assert [m.value() for m in messages_on(cluster, topic)] == [b"x"]


def test_a_repaired_value_comes_from_stdin(cluster: Cluster, topic: str) -> None:
    set_aside(cluster, topic, [b"x"])
    result = cluster.run("dlq", "replay", "--topic", topic, "0/0", "--value", "-", stdin="better")
    assert result.exit_code == 0, result.stderr
    assert [m.value() for m in messages_on(cluster, topic)] == [b"better"]


def test_a_large_message_goes_back(cluster: Cluster, topic_name: str) -> None:
    topic, size = f"{topic_name}.trades", "20000000"
    cluster.create(topic, partitions=2, max_message_bytes=size)
    cluster.create(f"{topic}.dlq", partitions=1, max_message_bytes=size)
    producer = Producer({**cluster.kafka, "message.max.bytes": size})
    producer.produce(f"{topic}.dlq", b"x" * 10_000_000, headers=[("k2.topic", topic)])
    assert producer.flush(READ_TIMEOUT_S) == 0
    assert replay(cluster, topic, "--all") == (1, 1, 0)
    assert len(messages_on(cluster, topic)[0].value() or b"") == 10_000_000


def test_a_message_that_the_topic_refuses_stays(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=2, max_message_bytes="1000")
    cluster.create(f"{topic}.dlq", partitions=1)
    set_aside(cluster, topic, [b"fine", bytes(range(256)) * 100])
    options = ("--kafka-option", "compression.type=none")
    result = cluster.run("dlq", "replay", "--topic", topic, "--all", *options)
    assert (result.exit_code, result.stdout) == (6, "")
    assert f"topic {topic} refused a record" in result.stderr
    assert messages_on(cluster, topic) == []
    assert replay(cluster, topic, "0/0") == (1, 1, 0)


def test_two_replays_at_once_send_each_letter_once(cluster: Cluster, topic: str) -> None:
    values = [f"{number}".encode() for number in range(30_000)]
    set_aside(cluster, topic, values)
    args = ("dlq", "replay", "--topic", topic, "--all")
    runs = []
    for _ in range(3):
        runs.append(cluster.start(*args))
        time.sleep(0.3)
    for run in runs:
        _, stderr = run.communicate(timeout=PATIENCE_S)
        assert run.returncode in (0, 7), stderr
        if run.returncode:
            assert f"error: another replay of {topic}.dlq started and replaced this one" in stderr
    replay(cluster, topic, "--all")
    assert Counter(m.value() for m in messages_on(cluster, topic)) == Counter(values)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_replay_that_is_ended_anywhere_goes_on_where_it_was(
    cluster: Cluster, topic: str, how: signal.Signals
) -> None:
    values = [f"{number}".encode() for number in range(30_000)]
    set_aside(cluster, topic, values)
    for after_s in (0, 0.1, 0.3):
        sent = sent_to(cluster, topic)
        run = cluster.start("dlq", "replay", "--topic", topic, "--all")
        wait_for(lambda: sent_to(cluster, topic) > sent or run.poll() is not None)  # noqa: B023
        time.sleep(after_s)
        run.send_signal(how)
        _, stderr = run.communicate(timeout=PATIENCE_S)
        assert run.returncode in (0, 130, -how), stderr
        assert "Traceback" not in stderr
    letters, _, _ = replay(cluster, topic, "--all")
    assert letters == len(values)
    assert replay(cluster, topic, "--all") == (len(values), 0, len(values))
    assert Counter(m.value() for m in messages_on(cluster, topic)) == Counter(values)


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["list", "--topic", "no.such"], 4, "hint: k2 topic create no.such"),
        (["show", "--topic", "no.such", "0/0"], 4, "hint: k2 topic create no.such"),
        (["replay", "--topic", "no.such", "--all"], 4, "hint: k2 topic create no.such"),
        (["list"], 2, "--topic"),
        (["show", "--topic", "x"], 2, "hint: k2 dlq list --topic x"),
        (["show", "--topic", "x", "17"], 2, "'17' is not PARTITION/OFFSET"),
        (["show", "--topic", "x", "0/-1"], 2, "'0/-1' is not PARTITION/OFFSET"),
        (
            ["show", "--topic", "x", "0/1", "0/2", "--raw"],
            2,
            "--raw requires exactly one dead letter",
        ),
        (["replay", "--topic", "x"], 2, "or use --all"),
        (["replay", "--topic", "x", "0/1", "--all"], 2, "or use --all"),
        (
            ["replay", "--topic", "x", "--all", "--value", "-"],
            2,
            "requires exactly one dead letter",
        ),
        (["replay", "--topic", "x", "0/1", "--value", "no.bin"], 4, "no.bin does not exist"),
        (["replay", "--topic", "x", "0/1", "--value", "/"], 2, "/ is a directory"),
        (["list", "--topic", "x", *AWAY], 5, "hint: is Kafka running at 127.0.0.1:1?"),
        (["show", "--topic", "x", "0/1", *AWAY], 5, "hint: is Kafka running at 127.0.0.1:1?"),
        (["replay", "--topic", "x", "--all", *AWAY], 5, "hint: is Kafka running at 127.0.0.1:1?"),
        (
            ["list", "--topic", "x", "--kafka-option", "bootstrap.servers="],
            3,
            "hint: export K2_KAFKA_BOOTSTRAP",
        ),
        (["list", "--topic", "x", "--kafka-option", "no.such=1"], 3, "No such configuration"),
    ],
)
def test_failures_say_what_to_do(cluster: Cluster, args: list[str], code: int, stderr: str) -> None:
    result = cluster.run("dlq", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr


@pytest.mark.parametrize("place", ["0/9", "7/0", "0/2"])
def test_a_letter_that_is_not_there_is_told(cluster: Cluster, topic: str, place: str) -> None:
    set_aside(cluster, topic, [b"x"])
    replay(cluster, topic, "--all")  # 0/1 is a receipt, 0/2 the end of a transaction
    for command in ("show", "replay"):
        result = cluster.run("dlq", command, "--topic", topic, place)
        assert (result.exit_code, result.stdout) == (4, "")
        assert f"hint: k2 dlq list --topic {topic}" in result.stderr


def test_an_answer_goes_to_a_file(cluster: Cluster, topic: str, tmp_path: Path) -> None:
    set_aside(cluster, topic, [b"x"])
    out = tmp_path / "letters.parquet"
    assert cluster.run("dlq", "list", "--topic", topic, "-o", out).exit_code == 0
    assert out.read_bytes()[:4] == b"PAR1"


def test_names_and_keys_that_are_not_utf8_stop_nothing(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    rawkafka.produce(cluster.bootstrap, topic, b"bad value", b"name\xff")
    producer = Producer(cluster.kafka)
    producer.produce(topic, b"\xfe\xff", b"\xff\xfe", headers=[("theirs", b"\xff")])
    assert producer.flush(READ_TIMEOUT_S) == 0
    summary = cluster.consume("--topic", topic, "--group", topic_name)
    assert (summary["messages"], summary["rejects"]) == (2, 2)
    lost, kept = (headers_of(each) for each in cluster.read(f"{topic}.dlq", 2))
    assert lost["k2.reason"].endswith(b"; its headers are lost: a name is not UTF-8")
    assert (kept["theirs"], lost["k2.offset"], kept["k2.offset"]) == (b"\xff", b"0", b"1")
    rawkafka.produce(cluster.bootstrap, f"{topic}.dlq", b"a letter of somebody", b"\xff")
    for args in (("list",), ("show", "0/0", "0/1", "0/2"), ("replay", "--all")):
        result = cluster.run("dlq", *args, "--topic", topic)
        assert result.exit_code == 0, result.stderr
    assert [each.value() for each in cluster.read(topic, 5)][2:] == [
        b"bad value",
        b"\xfe\xff",
        b"a letter of somebody",
    ]


@pytest.mark.parametrize("strategy", ["range", "roundrobin"])
def test_how_the_user_assigns_partitions_does_not_matter(
    cluster: Cluster, topic: str, topic_name: str, strategy: str
) -> None:
    option = ("--kafka-option", f"partition.assignment.strategy={strategy}")
    cluster.send(topic, [b"bad"])
    members = [
        cluster.start("consume", "-t", topic, "--group", topic_name, "--duration", "4s", *option)
        for _ in range(2)
    ]
    for member in members:
        _, stderr = member.communicate(timeout=PATIENCE_S)
        assert member.returncode == 0, stderr
        assert "setting_ignored" in stderr
    for args in (("list",), ("show", "0/0"), ("replay", "0/0")):
        result = cluster.run("dlq", *args, "--topic", topic, *option)
        assert result.exit_code == 0, result.stderr
