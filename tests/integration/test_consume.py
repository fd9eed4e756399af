"""`k2 consume` between a real broker, a real registry and real tables."""

import base64
import json
import random
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from crashes.members import Member
from k2cli.codec.encode import wire_header
from k2cli.config import load_settings
from k2cli.ingestion.kafka.consumer import Rebalance, TopicReader
from k2cli.ingestion.kafka.producer import open_writer
from k2cli.ingestion.kafka.registry import open_registry
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import open_lake
from support.builders import quotes_batch, trades_batch
from support.cluster import Cluster, headers_of, ids_of, numbered_trades, unexpected, values_of
from support.running import start_k2
from support.scraping import scraped_until
from support.waiting import PATIENCE_S, wait_for

SMALL_FETCHES = (
    *("--kafka-option", "queued.max.messages.kbytes=64"),
    *("--kafka-option", "fetch.message.max.bytes=65536"),
)
AWAY = ("--timeout", "1s", "--until-end")


@pytest.fixture
def topic(cluster: Cluster, topic_name: str) -> str:
    cluster.create(f"{topic_name}.trades")
    return f"{topic_name}.trades"


@pytest.fixture
def group(topic_name: str) -> tuple[str, str]:
    return ("--group", topic_name)


def test_rows_arrive_once_with_their_offsets(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    rows = numbered_trades(5_000)
    cluster.produce(topic, rows)
    first = cluster.consume("--topic", topic, *group, "--batch-rows", 1_000)
    assert (first["messages"], first["rows"], first["rejects"], first["lost_commits"]) == (
        5_000,
        5_000,
        0,
        0,
    )
    read = cluster.rows()
    sent = pa.Table.from_batches([rows]).sort_by("message_id")
    assert read.drop_columns("platform_sequence").equals(sent.drop_columns("platform_sequence"))
    offsets = read["platform_sequence"].to_pylist()
    assert min(offsets) == 0
    assert max(offsets) < 5_000
    again = cluster.consume("--topic", topic, *group)
    assert (again["messages"], again["commits"]) == (0, 0)
    cluster.produce(topic, numbered_trades(10, begin=5_000))
    assert cluster.consume("--topic", topic, *group)["rows"] == 10
    assert cluster.ids() == ids_of(numbered_trades(5_010))


def test_trades_and_quotes_go_to_their_tables(
    cluster: Cluster, topic: str, topic_name: str, group: tuple[str, str]
) -> None:
    quotes = f"{topic_name}.quotes"
    cluster.create(quotes)
    cluster.produce(topic, trades_batch(100))
    cluster.produce(quotes, quotes_batch(100), QUOTES)
    summary = cluster.consume("--topic", f"{topic},{quotes}", *group)
    assert (summary["rows"], summary["commits"]) == (200, 2)
    assert cluster.ids() == ids_of(trades_batch(100))
    assert cluster.ids(QUOTES) == ids_of(quotes_batch(100))


def test_a_group_that_cannot_be_left_does_not_hold_up_the_end(
    cluster: Cluster, topic: str, topic_name: str
) -> None:
    is_over = threading.Event()
    told: list[str] = []
    reader = TopicReader(
        kafka=cluster.kafka,
        group=topic_name,
        rebalance=Rebalance(
            assigned=lambda places: dict.fromkeys(places, 0),
            revoked=lambda _: cast("None", is_over.wait(PATIENCE_S)),
            lost=lambda _: None,
        ),
        observe=lambda event, /, **_: told.append(event),
    )
    reader.subscribe([topic])
    wait_for(lambda: not reader.read(1, 0.2) and reader.assigned())
    reader.close(patience_s=0.5)
    is_over.set()
    assert told == ["group_not_left"]


def test_another_group_does_not_write_twice(cluster: Cluster, topic: str, topic_name: str) -> None:
    cluster.produce(topic, numbered_trades(100))
    assert cluster.consume("--topic", topic, "--group", f"{topic_name}-a")["rows"] == 100
    assert cluster.consume("--topic", topic, "--group", f"{topic_name}-b")["messages"] == 0
    assert cluster.ids() == ids_of(numbered_trades(100))


def test_a_topic_made_again_is_read_from_its_beginning(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    cluster.produce(topic, numbered_trades(100))
    cluster.consume("--topic", topic, *group)
    cluster.delete(topic)
    cluster.create(topic)
    cluster.produce(topic, numbered_trades(50, begin=100))
    assert cluster.consume("--topic", topic, *group)["rows"] == 50
    assert cluster.ids() == ids_of(numbered_trades(150))


def test_records_that_the_broker_deleted_are_a_gap(
    cluster: Cluster, topic_name: str, group: tuple[str, str]
) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    cluster.produce(topic, numbered_trades(10))
    cluster.consume("--topic", topic, *group)
    cluster.produce(topic, numbered_trades(20, begin=10))
    cluster.delete_records(topic, 25)
    result = cluster.run("consume", "--until-end", "--topic", topic, *group)
    assert f"gap topic={topic} partition=0 first=10 last=24 missing=15" in result.stderr
    assert "missing=15" in result.stderr.splitlines()[-1]
    assert len(cluster.ids()) == 15


def test_what_is_no_row_goes_to_the_dead_letters_before_the_position_moves(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    good = values_of(numbered_trades(3), cluster.header(topic))
    values = [good[0], b"nonsense", good[1], None, good[2] + b"x", wire_header(2**30) + b"1"]
    cluster.send(topic, values)
    summary = cluster.consume("--topic", topic, *group)
    assert (summary["messages"], summary["rows"], summary["rejects"]) == (6, 2, 4)
    letters = cluster.read(f"{topic}.dlq", 4)
    assert [letter.value() for letter in letters] == [values[1], values[3], values[4], values[5]]
    assert {letter.key() for letter in letters} == {b"key"}
    headers = [headers_of(letter) for letter in letters]
    assert [header["k2.offset"] for header in headers] == [b"1", b"3", b"4", b"5"]
    assert {(h["k2.topic"], h["k2.partition"], h["theirs"]) for h in headers} == {
        (topic.encode(), b"0", b"1")
    }
    assert headers[1]["k2.reason"] == b"a null value (tombstone)"
    assert headers[3]["k2.reason"].startswith(f"schema id {2**30}: ".encode())
    assert cluster.consume("--topic", topic, *group)["messages"] == 0


def produce_transaction(
    cluster: Cluster, topic: str, rows: pa.RecordBatch, *, is_aborted: bool = False
) -> None:
    """Produce rows as one transaction; its end takes an offset, too."""
    header = cluster.header(topic)
    with open_writer(cluster.kafka, observe=unexpected, transaction=topic) as writer:
        writer.begin()
        writer.write(topic, TRADES, rows, header=header)
        writer.flush()
        (writer.abort if is_aborted else writer.commit)()


def lags_of(cluster: Cluster, topic: str) -> list[int]:
    """Return the lags that status shows for a topic."""
    result = cluster.run("status", "--format", "json", "--timeout", "30s")
    return [each["lag"] for each in json.loads(result.stdout)["lag"] if each["topic"] == topic]


@pytest.fixture
def market_topic(cluster: Cluster, topic_name: str) -> Iterator[str]:
    """A topic that status shows before anything was consumed."""
    topic = f"market.{topic_name}.trades"
    cluster.create(topic, partitions=1)
    yield topic
    cluster.delete(topic)


def test_ends_of_transactions_are_not_messages(
    cluster: Cluster, market_topic: str, group: tuple[str, str]
) -> None:
    """Nor are aborted ones; before k2 reads them, and after retention has removed all."""
    topic = market_topic
    produce_transaction(cluster, topic, numbered_trades(3))
    assert lags_of(cluster, topic) == [3]
    first = cluster.consume("--topic", topic, *group)
    assert (first["messages"], first["rows"], first["commits"]) == (3, 3, 1)
    assert lags_of(cluster, topic) == [0]
    assert set(cluster.positions().values()) == {4}
    produce_transaction(cluster, topic, numbered_trades(5, begin=100), is_aborted=True)
    assert lags_of(cluster, topic) == [0]
    second = cluster.consume("--topic", topic, *group)
    assert (second["messages"], second["rows"], second["missing"]) == (0, 0, 0)
    assert set(cluster.positions().values()) == {10}
    cluster.delete_records(topic, 10)
    produce_transaction(cluster, topic, numbered_trades(2, begin=3))
    third = cluster.consume("--topic", topic, *group)
    assert (third["messages"], third["rows"], third["missing"]) == (2, 2, 0)
    assert cluster.ids() == ids_of(numbered_trades(5))


def test_lag_is_counted_from_what_was_committed(
    cluster: Cluster, market_topic: str, group: tuple[str, str]
) -> None:
    """Of hundreds of messages, too, without the ends of the transactions among them."""
    topic = market_topic
    for begin in range(0, 600, 150):
        produce_transaction(cluster, topic, numbered_trades(150, begin=begin))
    produce_transaction(cluster, topic, numbered_trades(150, begin=600), is_aborted=True)
    assert lags_of(cluster, topic) == [600]
    cluster.consume("--topic", topic, *group, "--max-messages", 200)
    assert set(cluster.positions().values()) == {201}
    assert lags_of(cluster, topic) == [400]
    cluster.consume("--topic", topic, *group)
    assert lags_of(cluster, topic) == [0]


def test_an_open_transaction_is_not_lag(
    cluster: Cluster, market_topic: str, group: tuple[str, str]
) -> None:
    topic = market_topic
    cluster.produce(topic, numbered_trades(2))
    header = cluster.header(topic)
    with open_writer(cluster.kafka, observe=unexpected, transaction=topic) as writer:
        writer.begin()
        writer.write(topic, TRADES, numbered_trades(200, begin=2), header=header)
        writer.flush()
        assert lags_of(cluster, topic) == [2]
        assert cluster.consume("--topic", topic, *group)["rows"] == 2
        assert lags_of(cluster, topic) == [0]
        writer.commit()
    assert cluster.consume("--topic", topic, *group)["rows"] == 200


def test_ends_of_transactions_do_not_show_on_stdout(cluster: Cluster, topic: str) -> None:
    produce_transaction(cluster, topic, numbered_trades(2))
    result = cluster.run("consume", "--topic", topic, "--to", "stdout", "--until-end")
    assert result.exit_code == 0, result.stderr
    assert len(result.stdout.splitlines()) == 2


def test_messages_of_strange_schemas_stop_nothing(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    """One with an invalid logical type is read; one of a recursive record is a dead letter."""
    node = {
        "type": "record",
        "name": "Node",
        "fields": [{"name": "next", "type": ["null", "Node"], "default": None}],
    }
    fee = {"type": "bytes", "logicalType": "decimal", "precision": 4, "scale": 10}
    good = values_of(numbered_trades(4), cluster.header(topic))
    strange: list[bytes] = []
    with open_registry({"url": cluster.registry_url}, timeout_s=60) as registry:
        for avro, body in ((fee, b"\x02\x02!"), (node, b"\x02" * 10_000 + b"\x00")):
            extra = {"name": "extra", "type": ["null", avro], "default": None}
            schema = {**TRADES.avro, "fields": [*TRADES.avro["fields"], extra]}
            header = wire_header(registry.register(f"{topic}-{len(body)}", schema))
            strange.append(header + good[len(strange)][len(header) :] + body)
    cluster.send(topic, [strange[0], good[2], strange[1], good[3]])
    summary = cluster.consume("--topic", topic, *group)
    assert (summary["rows"], summary["rejects"]) == (3, 1)
    (letter,) = cluster.read(f"{topic}.dlq", 1)
    assert b"record Node is recursive" in headers_of(letter)["k2.reason"]
    shown = cluster.run("dlq", "show", "--topic", topic, "0/0")
    assert shown.exit_code == 0, shown.stderr
    assert "record Node is recursive" in shown.stdout


def test_a_topic_of_nothing_but_dead_letters_moves_on(
    cluster: Cluster, topic: str, group: tuple[str, str], tmp_path: Path
) -> None:
    cluster.send(topic, [b"bad", b"\xff\x00"])
    producer = Producer(cluster.kafka)
    producer.produce(topic, None, b"\xfe", 0, headers=[("a", b"\xff"), ("a", None)])
    assert producer.flush(60) == 0
    file = tmp_path / "rejects.ndjson"
    summary = cluster.consume("--topic", topic, *group, "--rejects", file)
    assert (summary["rows"], summary["rejects"], summary["commits"]) == (0, 3, 1)
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["source"], line["position"]) for line in lines] == [
        (f"{topic}/0", 0),
        (f"{topic}/0", 1),
        (f"{topic}/0", 2),
    ]
    assert (lines[0]["raw"], lines[1]["raw_base64"]) == ("bad", "/wA=")
    assert (lines[0]["key"], lines[0]["headers"]) == ("key", [{"name": "theirs", "value": "1"}])
    assert (lines[2]["raw"], lines[2]["key_base64"]) == (None, "/g==")
    assert lines[2]["headers"] == [
        {"name": "a", "value_base64": "/w=="},
        {"name": "a", "value": None},
    ]
    assert cluster.consume("--topic", topic, *group)["messages"] == 0


def test_on_bad_stop_commits_what_came_before(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    good = values_of(numbered_trades(3), cluster.header(topic))
    cluster.send(topic, [good[0]])
    cluster.consume("--topic", topic, *group)
    cluster.send(topic, [good[1], b"bad", good[2]])
    for _ in range(2):
        result = cluster.run("consume", "--topic", topic, *group, "--on-bad", "stop")
        assert result.exit_code == 6
        assert f"error: {topic}/0 at offset 2: " in result.stderr
        assert len(cluster.ids()) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_after_a_last_commit(
    cluster: Cluster, topic: str, group: tuple[str, str], number: signal.Signals
) -> None:
    cluster.produce(topic, numbered_trades(100))
    running = cluster.start(
        *("consume", "--topic", topic, *group, "--commit-interval", "1h"),
        *("--log-format", "json", "--metrics", "127.0.0.1:0"),
    )
    assert running.stderr is not None
    told = json.loads(next(running.stderr))
    assert told["event"] == "metrics"
    scraped_until(told["url"], lambda samples: samples.get(("k2_messages_total", ())) == 100)
    running.send_signal(number)
    _, stderr = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, stderr
    assert cluster.ids() == ids_of(numbered_trades(100))


def test_where_to_begin_matters_only_without_a_position(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    cluster.produce(topic, numbered_trades(100))
    now = cluster.consume("--topic", topic, *group, "--from", "now")
    assert (now["messages"], now["commits"]) == (0, 1)
    again = cluster.consume("--topic", topic, *group, "--from", "-1h")
    assert (again["messages"], again["commits"]) == (0, 0)
    cluster.produce(topic, numbered_trades(10, begin=100))
    assert cluster.consume("--topic", topic, *group, "--from", "latest")["messages"] == 10
    assert cluster.ids() == ids_of(numbered_trades(10, begin=100))


def test_a_time_to_begin_at_is_before_its_messages(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    cluster.produce(topic, numbered_trades(100))
    assert cluster.consume("--topic", topic, *group, "--from", "-1h")["messages"] == 100


def test_max_messages_is_exact(cluster: Cluster, topic: str, group: tuple[str, str]) -> None:
    cluster.produce(topic, numbered_trades(1_000))
    result = cluster.run("consume", "--topic", topic, *group, "--max-messages", 333)
    assert result.exit_code == 0
    assert len(cluster.ids()) == 333
    assert cluster.consume("--topic", topic, *group)["messages"] == 667
    assert cluster.ids() == ids_of(numbered_trades(1_000))


def test_rows_on_stdout_leave_the_tables_alone(cluster: Cluster, topic: str) -> None:
    cluster.produce(topic, numbered_trades(20))
    result = cluster.run("consume", "--topic", topic, "--to", "stdout", "--until-end")
    assert result.exit_code == 0
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert sorted(row["message_id"] for row in rows) == ids_of(numbered_trades(20))
    assert not cluster.home.exists()


def test_rows_on_stdout_as_arrow(cluster: Cluster, topic: str, tmp_path: Path) -> None:
    cluster.produce(topic, numbered_trades(20))
    args = ("consume", "--topic", topic, "--to", "stdout", "--format", "arrow", "--until-end")
    with (tmp_path / "out").open("wb") as out:
        assert start_k2(*args, env=cluster.env, stdout=out, stderr=None).wait(PATIENCE_S) == 0
    with pa.ipc.open_stream(tmp_path / "out") as stream:
        rows = stream.read_all()
    assert rows.schema.equals(TRADES.arrow)
    assert sorted(rows["message_id"].to_pylist()) == ids_of(numbered_trades(20))


def test_two_topics_into_one_table_at_once(cluster: Cluster, topic: str, topic_name: str) -> None:
    other = f"{topic_name}.b.trades"
    cluster.create(other)
    cluster.produce(topic, numbered_trades(20_000))
    cluster.produce(other, numbered_trades(20_000, begin=20_000))
    runs = [
        cluster.start(
            "consume", "--topic", name, "--group", f"{name}-g", "--until-end", "--batch-rows", 500
        )
        for name in (topic, other)
    ]
    for run in runs:
        _, stderr = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, stderr
    assert cluster.ids() == ids_of(numbered_trades(40_000))


def wait_for_members(cluster: Cluster, group: str, count: int) -> None:
    admin = AdminClient({**cluster.kafka})

    def have_all_joined() -> bool:
        described = admin.describe_consumer_groups([group])[group].result()
        return len(described.members) == count

    wait_for(have_all_joined)


def test_a_group_in_use_shares_the_work(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    cluster.produce(topic, numbered_trades(20_000))
    args = ("consume", "--topic", topic, *group, "--batch-rows", 500)
    with open_lake(load_settings(cluster.env), create=True):
        pass
    runs = [cluster.start(*args) for _ in range(3)]
    wait_for_members(cluster, group[1], len(runs))
    wait_for(lambda: len(cluster.ids()) >= 20_000)
    for run in runs:
        run.terminate()
    for run in runs:
        _, stderr = run.communicate(timeout=PATIENCE_S)
        assert run.returncode == 0, stderr
    assert cluster.consume("--topic", topic, *group)["messages"] == 0
    assert cluster.ids() == ids_of(numbered_trades(20_000))


def test_members_share_a_backlog_and_end_one_by_one(
    cluster: Cluster, topic: str, group: tuple[str, str], tmp_path: Path
) -> None:
    count = 100_000
    cluster.produce(topic, numbered_trades(count))
    args = ("--topic", topic, *group, "--until-end", "--batch-rows", "5000", *SMALL_FETCHES)

    def start(number: int, stop_at: str | None = None) -> Member:
        log = tmp_path / f"consume{number}.log"
        return Member(*args, env=cluster.env, log=log, stop_at=stop_at)

    first = start(0, stop_at="committed")  # so that the others are in time on a busy machine
    first.wait_until_stopped()
    runs = [first, start(1), start(2)]
    wait_for_members(cluster, group[1], len(runs))
    first.go_on()
    for run in runs:
        assert run.process.wait(PATIENCE_S) == 0, run.tail()
    sums = [next(event for event in run.events() if event["event"] == "summary") for run in runs]
    assert all(each["rows"] > 0 for each in sums), sums
    assert sum(each["rows"] for each in sums) == count
    assert cluster.ids() == ids_of(numbered_trades(count))
    assert cluster.consume("--topic", topic, *group)["messages"] == 0


def test_a_topic_with_the_wrong_schema_is_all_dead_letters(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    cluster.produce(topic, quotes_batch(3), QUOTES)
    summary = cluster.consume("--topic", topic, *group)
    assert (summary["rows"], summary["rejects"]) == (0, 3)
    (letter, *_) = cluster.read(f"{topic}.dlq", 3)
    assert b"the schema is QuoteV2, not TradeV2" in headers_of(letter)["k2.reason"]


def test_large_messages_arrive(cluster: Cluster, topic_name: str, group: tuple[str, str]) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, max_message_bytes="20000000")
    rows = trades_batch(3, trade_conditions=["x" * 10_000_000])
    header = cluster.header(topic)
    producer = Producer(
        {**cluster.kafka, "message.max.bytes": "20000000", "compression.type": "none"}
    )
    for value in values_of(rows, header):
        producer.produce(topic, value, b"BTCUSDT")
    assert producer.flush(60) == 0
    assert cluster.consume("--topic", topic, *group)["rows"] == 3
    assert cluster.rows()["trade_conditions"].to_pylist() == [["x" * 10_000_000]] * 3


def large_values(sizes: Sequence[int]) -> list[bytes]:
    """Make messages that cannot be decoded, nor compressed."""
    return [b"\x01" + random.Random(size).randbytes(size) for size in sizes]


def test_a_large_message_that_cannot_be_decoded_goes_to_the_dead_letters(
    cluster: Cluster, topic_name: str, group: tuple[str, str]
) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1, max_message_bytes=str(8 << 20))
    values = large_values([5_000_000, 10, 2_000_000])
    producer = Producer({**cluster.kafka, "message.max.bytes": "20000000"})
    for value in values:
        producer.produce(topic, value)
    assert producer.flush(60) == 0
    summary = cluster.consume("--topic", topic, *group)
    assert (summary["messages"], summary["rejects"]) == (3, 3)
    assert [each.value() for each in cluster.read(f"{topic}.dlq", 3)] == values


@pytest.mark.parametrize("is_refused_by_broker", [True, False])
def test_a_dead_letter_that_its_topic_refuses_goes_to_a_file(
    cluster: Cluster, topic: str, group: tuple[str, str], is_refused_by_broker: bool
) -> None:
    """The others reach the topic, in their order, also those in one batch with it."""
    cluster.create(f"{topic}.dlq", partitions=1, max_message_bytes="50000")
    good = values_of(numbered_trades(2), cluster.header(topic))
    values = large_values([100, 40_000, 60_000, 40_001, 200, 70_000])
    cluster.send(topic, [good[0], *values, good[1]])
    option = () if is_refused_by_broker else ("--kafka-option", "message.max.bytes=55000")
    result = cluster.run("consume", "--until-end", "--topic", topic, *group, *option)
    assert result.exit_code == 0, result.stderr
    assert "rows=2 rejects=6" in result.stderr
    assert result.stderr.count("dead_letter_refused") == 2
    file = cluster.home / "rejects" / "consume.ndjson"
    assert f"kept_in={file}" in result.stderr
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["source"], line["position"]) for line in lines] == [
        (f"{topic}/0", 3),
        (f"{topic}/0", 6),
    ]
    assert base64.b64decode(lines[0]["raw_base64"]) == values[2]
    assert (lines[0]["key"], lines[0]["headers"]) == ("key", [{"name": "theirs", "value": "1"}])
    small = [value for value in values if len(value) < 50_000]
    assert sorted(each.value() or b"" for each in cluster.read(f"{topic}.dlq", 4)) == sorted(small)
    assert cluster.consume("--topic", topic, *group)["messages"] == 0


def test_a_topic_whose_dead_letters_can_have_no_topic(
    cluster: Cluster, topic_name: str, group: tuple[str, str]
) -> None:
    """Names of topics have at most 249 characters; its time is in nanoseconds."""
    topic = f"{topic_name.ljust(240, 'x')}.trades"
    cluster.create(topic, message_timestamp_after_max_ms=str((1 << 63) - 1))
    producer = Producer(cluster.kafka)
    producer.produce(topic, b"bad", partition=0, timestamp=1_700_000_000_000_000_000)
    assert producer.flush(PATIENCE_S) == 0
    result = cluster.run("consume", "--until-end", "--topic", topic, *group)
    assert result.exit_code == 0, result.stderr
    assert "rows=0 rejects=1" in result.stderr
    assert result.stderr.count("dead_letter_refused") == 1
    (line,) = (cluster.home / "rejects" / "consume.ndjson").read_text().splitlines()
    assert json.loads(line)["source"] == f"{topic}/0"
    assert json.loads(line)["received"] == "1700000000000000000000"
    assert cluster.consume("--topic", topic, *group)["messages"] == 0


@pytest.mark.parametrize(
    ("args", "env", "code", "stderr"),
    [
        (["--topic", "no.trades"], {}, 4, "hint: k2 topic create no.trades"),
        (["--topic", "no"], {}, 4, "hint: k2 topic create no"),
        (
            [*AWAY],
            {"K2_KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1"},
            5,
            "is Kafka running at 127.0.0.1:1?",
        ),
        ([], {"K2_KAFKA_BOOTSTRAP_SERVERS": ""}, 3, "export K2_KAFKA_BOOTSTRAP_SERVERS"),
        ([], {"K2_SCHEMA_REGISTRY_URL": ""}, 3, "export K2_SCHEMA_REGISTRY_URL"),
        (["--from", "soon"], {}, 2, "--from"),
        (["--format", "ndjson"], {}, 2, "only with --to stdout"),
        (["--batch-rows", "0"], {}, 2, "--batch-rows"),
        (["--on-bad", "stop", "--rejects", "x"], {}, 2, "mutually exclusive"),
        (["--kafka-option", "no.such=1"], {}, 3, 'No such configuration property: "no.such"'),
    ],
)
def test_failures_say_what_to_do(
    cluster: Cluster, args: list[str], env: dict[str, str], code: int, stderr: str
) -> None:
    away = Cluster(cluster.bootstrap, cluster.registry_url, cluster.home, {**cluster.env, **env})
    result = away.run("consume", *args)
    assert (result.exit_code, result.stdout) == (code, "")
    assert stderr in result.stderr
    assert not cluster.home.exists()


def test_a_registry_that_is_away_is_told_at_once(cluster: Cluster, topic: str) -> None:
    env = {**cluster.env, "K2_SCHEMA_REGISTRY_URL": "http://127.0.0.1:1"}
    away = Cluster(cluster.bootstrap, cluster.registry_url, cluster.home, env)
    result = away.run("consume", "--topic", topic, "--timeout", "30s", "--until-end")
    assert result.exit_code == 5
    assert "hint: is the schema registry running at http://127.0.0.1:1?" in result.stderr


def test_a_topic_whose_name_tells_nothing_needs_a_kind(
    cluster: Cluster, topic_name: str, group: tuple[str, str]
) -> None:
    cluster.create(topic_name)
    cluster.produce(topic_name, numbered_trades(5), TRADES)
    result = cluster.run("consume", "--topic", topic_name, *group)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "hint: use --kind trades or --kind quotes" in result.stderr
    assert cluster.consume("--topic", topic_name, *group, "--kind", "trades")["rows"] == 5


def test_records_that_are_deleted_under_a_reader_are_a_gap(
    cluster: Cluster, topic_name: str, group: tuple[str, str], tmp_path: Path
) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic, partitions=1)
    count = 200_000
    cluster.produce(topic, numbered_trades(count))
    running = Member(
        *("--topic", topic, *group, "--until-end", "--batch-rows", "1000", *SMALL_FETCHES),
        env=cluster.env,
        log=tmp_path / "consume.log",
        stop_at="committed",
    )
    running.wait_until_stopped()
    cluster.delete_records(topic, count - 10)
    running.go_on()
    assert running.process.wait(PATIENCE_S) == 0, running.tail()
    gaps = [event for event in running.events() if event["event"] == "gap"]
    assert gaps, running.tail()
    assert gaps[-1]["last"] == count - 11
    ids = cluster.ids()
    assert len(ids) == len(set(ids)) == count - sum(gap["missing"] for gap in gaps)
    assert cluster.consume("--topic", topic, *group)["messages"] == 0


def test_a_member_that_gets_nothing_at_first_waits_for_its_share(
    cluster: Cluster, topic: str, group: tuple[str, str]
) -> None:
    cluster.produce(topic, numbered_trades(100))
    first = cluster.start("consume", "--topic", topic, *group, "--log-format", "json")
    assert first.stderr is not None
    while json.loads(next(first.stderr))["event"] != "assigned":
        pass
    second = cluster.run("consume", "--topic", topic, *group, "--until-end", "--log-format", "json")
    assert second.exit_code == 0
    events = [json.loads(line)["event"] for line in second.stderr.splitlines() if line[0] == "{"]
    assert "assigned" in events
    first.terminate()
    first.communicate(timeout=PATIENCE_S)
    assert first.returncode == 0
    assert cluster.consume("--topic", topic, *group)["messages"] == 0
    assert cluster.ids() == ids_of(numbered_trades(100))
