"""Tables that are brought along with newer schemas, while old and new writers go on."""

import json
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from itertools import chain, count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2cli.config import Settings
from k2cli.errors import BadData
from k2cli.records import TRADES, RecordKind, avro_to_arrow_schema, evolve_kind
from k2cli.storage.lake import Lake, open_lake
from support.builders import table_of, trade_row, trades_batch
from support.cluster import Cluster, ids_of, numbered_trades
from support.running import k2_at
from support.waiting import PATIENCE_S, wait_for

WIDE = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 8}
TEXT = {"name": "venue", "type": ["null", "string"], "default": None, "doc": "Where it traded."}


def newer(*more: Mapping[str, Any], **types: Any) -> dict[str, Any]:
    """Our schema of trades with more fields, and with other types of some."""
    fields = [
        {**field, "type": types.get(field["name"], field["type"])}
        for field in TRADES.avro["fields"]
    ]
    return {**TRADES.avro, "fields": [*fields, *more]}


def kind_of(avro: Mapping[str, Any]) -> RecordKind:
    """What writes such records."""
    return replace(TRADES, avro=avro, arrow=avro_to_arrow_schema(avro))


def with_column(rows: pa.RecordBatch, name: str, values: list[Any], of: pa.DataType) -> Any:
    return rows.append_column(pa.field(name, of), pa.array(values, of))


def test_a_table_that_has_all_of_it_does_not_change(lake: Lake) -> None:
    before = lake.open(TRADES).iceberg.metadata_location
    assert lake.open(TRADES).evolve(TRADES.avro) == []
    assert lake.open(TRADES).iceberg.metadata_location == before
    assert lake.open(TRADES).evolved_kind() is TRADES


def test_new_columns_are_null_in_rows_of_before(lake: Lake, home: Path) -> None:
    lake.open(TRADES).append(table_of(TRADES, [trade_row(trade_id="BINANCE-1", source_sequence=1)]))
    fee = {"name": "fee", "type": ["null", WIDE], "default": None}
    at = {"name": "at", "type": ["null", {"type": "long", "logicalType": "timestamp-millis"}]}
    tags = {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []}
    schema = newer(TEXT, fee, {**at, "default": None}, tags)
    assert lake.open(TRADES).evolve(schema, is_dry_run=True) == [
        "add venue string",
        "add fee decimal128(38, 8)",
        "add at timestamp[us, tz=UTC]",
        "add tags list<element: string not null>",
    ]
    assert lake.open(TRADES).evolved_kind() is TRADES
    assert len(lake.open(TRADES).evolve(schema)) == 4
    assert lake.open(TRADES).evolve(schema) == []
    names = lake.open(TRADES).evolved_kind().arrow.names
    assert names == [*TRADES.arrow.names, "venue", "fee", "at", "tags"]
    assert lake.open(TRADES).iceberg.schema().find_field("venue").doc == "Where it traded."

    rows = with_column(trades_batch(1), "fee", [Decimal("-0.00000001")], pa.decimal128(38, 8))
    rows = with_column(
        rows, "tags", [["a", "b"]], pa.list_(pa.field("element", pa.string(), False))
    )
    lake.open(TRADES).append(pa.Table.from_batches([rows]))
    k2 = k2_at(home)
    answer = k2("query", "trades", "--columns", "venue,fee,at,tags", "--format", "ndjson").stdout
    assert sorted(map(str, map(json.loads, answer.splitlines()))) == sorted(
        map(
            str,
            [
                {"venue": None, "fee": None, "at": None, "tags": None},
                {"venue": None, "fee": "-0.00000001", "at": None, "tags": ["a", "b"]},
            ],
        )
    )
    assert k2("query", "sql", "select count(fee) from trades", "-f", "csv").stdout.endswith("\n1\n")


def test_wider_columns_read_narrow_rows(lake: Lake, home: Path) -> None:
    number = {"name": "level", "type": ["null", "int"], "default": None}
    lake.open(TRADES).evolve(newer(number))
    rows = with_column(trades_batch(1), "level", [7], pa.int32())
    lake.open(TRADES).append(pa.Table.from_batches([rows]))
    wide = newer({**number, "type": ["null", "long"]}, price=WIDE, quantity=WIDE)
    assert lake.open(TRADES).evolve(wide) == [
        "widen price decimal128(18, 8) to decimal128(38, 8)",
        "widen quantity decimal128(20, 8) to decimal128(38, 8)",
        "widen level int32 to int64",
    ]
    assert lake.open(TRADES).evolve(newer(number)) == []  # a narrower one fits

    price = Decimal("123456789012345.12345678")
    row = trade_row(source_sequence=1, price=price, quantity=Decimal(2))
    rows = pa.RecordBatch.from_pylist([row], schema=kind_of(wide).arrow.remove(15))
    rows = with_column(rows, "level", [2**40], pa.int64())
    lake.open(TRADES).append(pa.Table.from_batches([rows]))
    unaware = table_of(TRADES, [trade_row(source_sequence=2)])
    lake.open(TRADES).append(unaware)  # by a writer that knows nothing of it
    k2 = k2_at(home)
    answer = k2("query", "trades", "--columns", "price,level", "--format", "csv").stdout
    first = f"{trade_row()['price']:.8f}"
    assert sorted(answer.splitlines()[1:]) == sorted(
        [f"{first},7", "123456789012345.12345678,1099511627776", f"{first},"]
    )
    # Files are as the table has it, so that other engines read them with its statistics.
    (*_, last) = sorted(
        lake.open(TRADES).plan().paths, key=lambda path: Path(path).stat().st_mtime_ns
    )
    assert pq.read_schema(last).field("price").type == pa.decimal128(38, 8)
    sums = "select sum(price) as p, sum(CAST(quantity AS DECIMAL(38,8))) as q from trades"
    total = 2 * trade_row()["price"] + row["price"]
    assert k2("query", "sql", sums, "-f", "csv").stdout.splitlines()[1].startswith(f"{total:.8f},")


def test_writers_and_several_who_evolve_at_once_are_not_in_each_others_way(
    lake: Lake, settings: Settings
) -> None:
    names = [f"column_{number}" for number in range(4)]
    is_over = threading.Event()

    def write() -> int:
        count = 0
        with open_lake(settings) as mine:
            while not is_over.is_set() or count < 10:
                mine.open(TRADES).append(table_of(TRADES, [trade_row(source_sequence=count)]))
                count += 1
        return count

    def evolve(name: str) -> list[str]:
        with open_lake(settings) as mine:
            return mine.open(TRADES).evolve(newer({**TEXT, "name": name}))

    with ThreadPoolExecutor() as pool:
        writer = pool.submit(write)
        said = list(pool.map(evolve, names))
        is_over.set()
        count = writer.result()
    assert said == [[f"add {name} string"] for name in names]
    assert set(lake.open(TRADES).evolved_kind().arrow.names) == {*TRADES.arrow.names, *names}
    numbers = lake.open(TRADES).iceberg.scan().to_arrow()["source_sequence"].to_pylist()
    assert sorted(numbers) == list(range(count))


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (newer({"name": "venue", "type": "string"}), "field venue is not optional"),
        (newer(price={**WIDE, "scale": 6}), "price is decimal128(38, 6), and column price"),
        (newer(source_sequence=["null", "string"]), "that is another type, not a wider one"),
        (newer(price=["null", WIDE]), "field price is optional, but every row"),
        (newer({**TEXT, "type": ["null", "double"]}), "no Arrow type for the Avro type 'double'"),
        (newer({**TEXT, "type": ["null", "int", "string"]}), "no Arrow type"),
        (newer({**TEXT, "name": "Price"}), "the same name except for upper and lower case"),
        (newer({**TEXT, "aliases": ["side"]}), "columns are not renamed"),
        (
            {**TRADES.avro, "fields": [f for f in TRADES.avro["fields"] if f["name"] != "price"]},
            "the schema lacks field price",
        ),
        ({**TRADES.avro, "name": "QuoteV2"}, "the schema is QuoteV2, not TradeV2"),
        (["null", "string"], "the schema is another type, not TradeV2"),
        ({"type": "string"}, "the schema is another type, not TradeV2"),
    ],
)
def test_what_would_change_rows_is_refused(lake: Lake, schema: dict[str, Any], reason: str) -> None:
    before = lake.open(TRADES).iceberg.metadata_location
    with pytest.raises(BadData) as caught:
        lake.open(TRADES).evolve(schema)
    assert reason in str(caught.value)
    assert lake.open(TRADES).iceberg.metadata_location == before


def test_columns_of_another_engine_are_left_alone(lake: Lake) -> None:
    with lake.open(TRADES).iceberg.update_schema() as update:
        update.union_by_name(pa.schema([pa.field("score", pa.float64()), ("note", pa.string())]))
    kind = lake.open(TRADES).evolved_kind()
    assert kind.arrow.names == [*TRADES.arrow.names, "note"]  # no exact type holds a double
    assert kind == evolve_kind(TRADES, pa.schema([("note", pa.string())]))
    lake.open(TRADES).append(table_of(TRADES, [trade_row()]))
    assert lake.open(TRADES).iceberg.scan().to_arrow()["score"].to_pylist() == [None]


@pytest.mark.usefixtures("lake")
def test_the_command_says_what_changes(home: Path, tmp_path: Path) -> None:
    k2 = k2_at(home)
    file = tmp_path / "newer.avsc"
    file.write_text(json.dumps(newer(TEXT)))
    dry = k2("table", "evolve", "trades", "--schema", file, "--dry-run")
    assert (dry.stdout, dry.stderr) == ("add venue string\n", "dry run: nothing was changed\n")
    assert k2("table", "evolve", "trades", "--schema", file).stdout == "add venue string\n"
    again = k2("table", "evolve", "trades", "--schema", file)
    assert (again.stdout, again.stderr) == ("", "table trades_v2 is already up to date\n")
    assert "venue" in k2("table", "describe", "trades").stdout
    assert "is already up to date" in k2("table", "evolve", "trades").stderr
    file.write_text("{")
    assert "is not JSON" in k2("table", "evolve", "trades", "--schema", file, code=6).stderr
    missing = tmp_path / "none.avsc"
    assert "does not exist" in k2("table", "evolve", "trades", "--schema", missing, code=4).stderr
    assert "k2 demo" in k2_at(tmp_path / "no")("table", "evolve", "trades", code=4).stderr


@pytest.fixture
def topic(cluster: Cluster, topic_name: str) -> str:
    """A topic with a hundred trades of our own schema, which are in the table."""
    topic = f"{topic_name}.trades"
    cluster.create(topic)
    cluster.produce(topic, numbered_trades(100))
    assert cluster.consume("--topic", topic)["rows"] == 100
    return topic


@contextmanager
def consuming(cluster: Cluster, topic: str) -> Iterator[list[str]]:
    """Run a consumer meanwhile; afterwards the list has what it left out, a line each time."""
    left_out: list[str] = []
    running = cluster.start("consume", "--topic", topic, "--commit-interval", "200ms")
    try:
        yield left_out
    finally:
        running.send_signal(signal.SIGTERM)
        _, talk = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, talk
    left_out += [line for line in talk.splitlines() if "fields_left_out" in line]


def venues(cluster: Cluster) -> dict[str, str | None]:
    """What the table's rows have as venue, by message id."""
    answer = cluster.run("query", "trades", "--columns", "message_id,venue", "-f", "ndjson")
    assert answer.exit_code == 0, answer.stderr
    rows = map(json.loads, answer.stdout.splitlines())
    return {row["message_id"]: row["venue"] for row in rows}


def test_old_and_new_writers_feed_one_table(cluster: Cluster, topic: str) -> None:
    newest = newer(TEXT)
    more = {**newest, "fields": [*newest["fields"], {**TEXT, "name": "desk"}]}
    names = [f"V{number}" for number in range(100)]
    some = [numbered_trades(100, begin=begin) for begin in (0, 100, 200, 300)]
    with consuming(cluster, topic) as left_out:
        # A writer that is ahead of the table: its rows come, and what is left out is told.
        cluster.produce(topic, with_column(some[1], "venue", names, pa.string()), kind_of(newest))
        wait_for(lambda: len(cluster.ids()) == 200)
        evolve = ("table", "evolve", "trades", "--schema", f"{topic}-value")
        assert cluster.run(*evolve).stdout == "add venue string\n"
        # Both writers go on. One more schema is met, and the table is looked at again.
        cluster.produce(topic, some[2])
        further = with_column(some[3], "venue", names, pa.string())
        cluster.produce(topic, with_column(further, "desk", names, pa.string()), kind_of(more))
        wait_for(lambda: len(cluster.ids()) == 400)
    # Rows of before the table had the column stay without it, and are not there twice.
    expected = dict.fromkeys(chain.from_iterable(map(ids_of, some[:3])))
    expected |= dict(zip(some[3]["message_id"].to_pylist(), names, strict=True))
    assert venues(cluster) == expected
    assert cluster.ids() == sorted(expected)
    assert len(left_out) == 2
    assert f'fields=venue hint="k2 table evolve trades --schema {topic}-value"' in left_out[0]
    assert "fields=desk" in left_out[1]


def test_a_running_consumer_finds_that_the_table_has_evolved(cluster: Cluster, topic: str) -> None:
    ahead = kind_of(newer(TEXT))
    numbers = count(100)

    def has_venues() -> bool:
        row = numbered_trades(1, begin=next(numbers))
        cluster.produce(topic, with_column(row, "venue", ["X"], pa.string()), ahead)
        time.sleep(0.5)
        return "X" in venues(cluster).values()

    with consuming(cluster, topic) as left_out:
        row = numbered_trades(1, begin=next(numbers))
        cluster.produce(topic, with_column(row, "venue", ["X"], pa.string()), ahead)
        wait_for(lambda: len(cluster.ids()) == 101)
        evolve = ("table", "evolve", "trades", "--schema", f"{topic}-value")
        assert cluster.run(*evolve).stdout == "add venue string\n"
        wait_for(has_venues)
    assert cluster.ids() == ids_of(numbered_trades(next(numbers)))
    assert len(left_out) == 1
