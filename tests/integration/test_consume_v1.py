"""`k2 consume` of topics with records of the v1 schemas, through a real broker and registry."""

import json
from decimal import Decimal
from typing import Any

from k2cli.codec.encode import wire_header
from k2cli.codec.upgrade import UPGRADES
from k2cli.ingestion.kafka.registry import open_registry
from k2cli.records import QUOTES, TRADES
from support.builders import quote_v1, trade_v1, written
from support.cluster import READ_TIMEOUT_S, Cluster, headers_of, ids_of, numbered_trades, values_of


def v1_values(cluster: Cluster, schema: str, *records: dict[str, Any]) -> list[bytes]:
    """Return the values of messages of a v1 schema, registered by the name of its record."""
    avro = UPGRADES[schema].avro
    with open_registry({"url": cluster.registry_url}, timeout_s=READ_TIMEOUT_S) as registry:
        header = wire_header(registry.register(f"{avro['namespace']}.{avro['name']}", avro))
    return [header + body for body in written(avro, *records)]


def test_v1_records_stand_in_the_table_beside_v2(cluster: Cluster, topic_name: str) -> None:
    topic = f"{topic_name}.trades"
    cluster.create(topic)
    newer = values_of(numbered_trades(2), cluster.header(topic))
    records = [trade_v1(), trade_v1(1, volume=-5), trade_v1(2, sequence_number=None, buyer_id=None)]
    v1 = v1_values(cluster, "trade_v1", *records)
    cluster.send(topic, [newer[0], v1[0], v1[1], newer[1], v1[2]], partition=2)
    summary = cluster.consume("--topic", topic, "--group", topic_name)
    assert (summary["messages"], summary["rows"], summary["rejects"]) == (5, 4, 1)
    rows = {row["platform_sequence"]: row for row in cluster.rows().to_pylist()}
    assert sorted(rows) == [0, 1, 3, 4]
    assert sorted(rows[n]["message_id"] for n in (0, 3)) == ids_of(numbered_trades(2))
    assert (rows[1]["symbol"], rows[1]["currency"], rows[1]["side"]) == ("BHP", "AUD", "UNKNOWN")
    assert (rows[1]["price"], rows[1]["quantity"]) == (Decimal("45.123456"), Decimal(100))
    assert rows[1]["trade_id"] == "ASX-1000"
    moment_ms = round(rows[4]["timestamp"].timestamp() * 1000)
    assert rows[4]["trade_id"] == f"ASX-{moment_ms}-4"
    assert rows[4]["vendor_data"] == [("company_id", "7078"), ("qualifiers", "3"), ("venue", "X")]
    (letter,) = cluster.read(f"{topic}.dlq", 1)
    assert letter.value() == v1[1]
    reason = headers_of(letter)["k2.reason"].decode()
    assert reason == "volume -5 is negative or does not fit decimal128(20, 8)"


def test_v1_quotes_have_the_same_ids_each_time_and_the_currency_told(
    cluster: Cluster, topic_name: str
) -> None:
    topic = f"{topic_name}.quotes"
    cluster.create(topic)
    records = [quote_v1(i, sequence_number=None if i % 2 else i) for i in range(50)]
    cluster.send(topic, v1_values(cluster, "quote_v1", *records))
    cluster.consume("--topic", topic, "--group", topic_name)
    args = ("consume", "--topic", topic, "--to", "stdout", "--until-end", "--currency", "NZD")
    printed = [json.loads(line) for line in cluster.run(*args).stdout.splitlines()]
    assert {row["currency"] for row in printed} == {"NZD"}
    assert [row["platform_sequence"] for row in printed] == list(range(50))
    assert sorted(row["message_id"] for row in printed) == cluster.ids(QUOTES)
    assert len(set(cluster.ids(QUOTES))) == 50
    assert set(cluster.rows(QUOTES)["currency"].to_pylist()) == {"AUD"}
    assert cluster.ids(TRADES) == []


def test_a_currency_that_is_none_is_refused(cluster: Cluster) -> None:
    result = cluster.run("consume", "--currency", " ")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--currency" in result.stderr
