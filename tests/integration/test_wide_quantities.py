"""Quantities of 20 digits, and tables, files, topics and schemas that still have 18."""

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.conversions import from_bytes
from pyiceberg.types import DecimalType

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData
from k2cli.flow import Batch
from k2cli.ingestion.kafka.registry import open_registry, subject_of
from k2cli.pipelines.sinks import TableSink
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.records import KINDS, QUOTES, TRADES
from k2cli.rejects import RejectLog
from k2cli.storage.lake import Lake, open_lake
from support.builders import batch_of, narrow, quote_row, table_of, trade_row
from support.cluster import READ_TIMEOUT_S, Cluster, numbered_trades
from support.faults import by_row
from support.older import make_narrow
from support.running import k2_at
from support.waiting import PATIENCE_S, wait_for

LARGE = Decimal("35962838485.00000001")
PRICE = Decimal("61800.00000000")
WIDEN = "widen {} decimal128(18, 8) to decimal128(20, 8)"
HINT = "k2 table evolve trades"


def trade(n: int, **over: Any) -> dict[str, Any]:
    ids = {"message_id": f"{n:04}", "trade_id": f"BINANCE-{n}", "source_sequence": n}
    return trade_row(**{**ids, **over})


@pytest.fixture
def older(settings: Settings) -> Iterator[Lake]:
    """A lakehouse whose tables have not evolved."""
    with open_lake(settings, create=True) as lake:
        make_narrow(lake)
        yield lake


def stored_types(lake: Lake) -> list[pa.DataType]:
    """The types of quantities in the data files of trades, oldest first."""
    paths = sorted(lake.open(TRADES).plan().paths, key=lambda path: Path(path).stat().st_mtime_ns)
    return [pq.read_schema(path).field("quantity").type for path in paths]


def quantities(lake: Lake) -> list[Decimal]:
    rows = lake.open(TRADES).iceberg.scan().to_arrow().sort_by("message_id")
    return list(rows["quantity"].to_pylist())


def test_new_tables_have_wide_quantities(lake: Lake) -> None:
    large = table_of(TRADES, [trade_row(quantity=LARGE)])
    lake.open(TRADES).append(large)
    quotes = [quote_row(bid_quantity=LARGE, ask_quantity=LARGE)]
    lake.open(QUOTES).append(table_of(QUOTES, quotes))
    assert stored_types(lake) == [pa.decimal128(20, 8)]
    read = lake.open(TRADES).iceberg.scan().to_arrow()
    assert read["quantity"].type == pa.decimal128(20, 8)
    assert read["quantity"].to_pylist() == [LARGE]
    assert lake.open(TRADES).evolve(TRADES.avro) == []


def test_a_table_that_has_not_evolved_takes_what_fits(older: Lake) -> None:
    most = Decimal("9999999999.99999999")
    older.open(TRADES).append(table_of(TRADES, [trade(1, quantity=most)]))
    assert (quantities(older), stored_types(older)) == ([most], [pa.decimal128(18, 8)])
    rows = table_of(TRADES, [trade(2), trade(3, quantity=LARGE)])
    with pytest.raises(BadData) as caught:
        older.open(TRADES).append(rows)
    reason = f"quantity {LARGE} does not fit decimal128(18, 8), its type in trades_v2"
    assert (str(caught.value), caught.value.hint) == (reason, HINT)
    assert by_row(older.open(TRADES).unfit_rows(rows)) == {1: reason}
    assert quantities(older) == [most]


def test_queries_see_wide_quantities_before_a_table_has_evolved(older: Lake, home: Path) -> None:
    older.open(TRADES).append(table_of(TRADES, [trade(1, quantity=Decimal("2.5"))]))
    sql = "select typeof(quantity) as of, sum(price * quantity) as turnover from trades group by 1"
    answer = k2_at(home)("query", "sql", sql, "-f", "csv").stdout
    assert answer == 'of,turnover\n"DECIMAL(20,8)",154500.0000000000000000\n'


def test_old_and_new_files_are_one_table(older: Lake, home: Path, tmp_path: Path) -> None:
    k2 = k2_at(home)
    older.open(TRADES).append(table_of(TRADES, [trade(1, quantity=Decimal("0.00000001"))]))
    evolved = k2("table", "evolve", "trades", "--dry-run")
    assert evolved.stdout == WIDEN.format("quantity") + "\n"
    assert k2("table", "evolve", "trades").stdout == evolved.stdout
    assert k2("table", "evolve", "trades").stdout == ""
    assert k2("table", "evolve", "quotes").stdout.splitlines() == [
        "make bid_price optional",
        f"{WIDEN.format('bid_quantity')}, make bid_quantity optional",
        "make ask_price optional",
        f"{WIDEN.format('ask_quantity')}, make ask_quantity optional",
    ]
    older.open(TRADES).append(table_of(TRADES, [trade(2, quantity=LARGE)]))
    assert stored_types(older) == [pa.decimal128(18, 8), pa.decimal128(20, 8)]
    both = [Decimal("0.00000001"), LARGE]
    assert quantities(older) == both
    texts = ["0.00000001", "35962838485.00000001"]
    ordered = ("--columns", "quantity", "--format", "csv")
    assert k2("query", "trades", *ordered).stdout.splitlines()[1:] == texts
    k2("query", "trades", "-o", tmp_path / "all.parquet")
    found = pq.read_table(tmp_path / "all.parquet")["quantity"]
    assert (found.type, found.to_pylist()) == (pa.decimal128(20, 8), both)
    sql = "select sum(price * quantity) as t, max(price * quantity) as most from trades"
    answer = k2("query", "sql", sql, "-f", "ndjson").stdout
    turnover = {name: Decimal(text) for name, text in json.loads(answer).items()}
    assert turnover == {"t": PRICE * (both[0] + LARGE), "most": PRICE * LARGE}
    exported = k2("export", "trades", "--layout", "generic-trades").stdout
    assert all(text in exported for text in texts)


def test_quotes_with_one_side_need_a_table_that_has_evolved(older: Lake, home: Path) -> None:
    one_sided = {"message_id": "2", "source_sequence": 2, "ask_price": None, "ask_quantity": None}
    rows = table_of(QUOTES, [quote_row(), quote_row(**one_sided)])
    reason = "ask_price is null, and every row of quotes_v2 needs one"
    assert by_row(older.open(QUOTES).unfit_rows(rows)) == {1: reason}
    with pytest.raises(BadData, match=reason):
        older.open(QUOTES).append(rows)
    older.open(QUOTES).append(rows.slice(0, 1))
    older.open(QUOTES).evolve(QUOTES.avro)
    assert older.open(QUOTES).evolve(QUOTES.avro) == []
    older.open(QUOTES).append(rows.slice(1))
    k2 = k2_at(home)
    columns = ("--columns", "bid_price,ask_price,ask_quantity")
    answer = k2("query", "quotes", *columns, "-f", "csv").stdout
    assert sum(line.endswith(",,") for line in answer.splitlines()) == 1
    sql = "select count(*) as n, count(ask_price) as asks from quotes"
    assert k2("query", "sql", sql, "-f", "csv").stdout == "n,asks\n2,1\n"


def test_statistics_of_wide_quantities_are_exact(older: Lake) -> None:
    name = "write.metadata.metrics.column.quantity"
    with older.open(TRADES).iceberg.transaction() as transaction:
        transaction.set_properties({name: "full"})
    older.open(TRADES).append(table_of(TRADES, [trade(1), trade(2, quantity=Decimal(7))]))
    older.open(TRADES).evolve(TRADES.avro)
    older.open(TRADES).append(table_of(TRADES, [trade(3, quantity=LARGE), trade(4, quantity=1)]))
    table = older.open(TRADES).iceberg
    files = [task.file for task in table.scan().plan_files()]
    column, of = table.schema().find_field("quantity").field_id, DecimalType(20, 8)
    bounds: list[tuple[Any, Any]] = sorted(
        (from_bytes(of, file.lower_bounds[column]), from_bytes(of, file.upper_bounds[column]))
        for file in files
    )
    assert bounds == [(Decimal("0.00000001"), Decimal(7)), (Decimal(1), LARGE)]
    (found,) = table.scan(row_filter=f"quantity > {LARGE - 1}").to_arrow().to_pylist()
    assert found["quantity"] == LARGE


def test_status_names_the_tables_to_evolve(older: Lake, home: Path) -> None:
    k2 = k2_at(home)
    (check,) = (
        each
        for each in json.loads(k2("status", "-f", "json").stdout)["checks"]
        if each["name"] == "tables"
    )
    assert check["state"] == "yellow"
    assert check["hint"] == "k2 table evolve trades; k2 table evolve quotes"
    assert f"market_data.trades_v2: {WIDEN.format('quantity')}" in check["detail"]
    assert "yellow  tables" in k2("status").stdout
    older.open(TRADES).evolve(TRADES.avro)
    lines = k2("status").stdout.splitlines()
    (line,) = (line for line in lines if line.startswith("yellow  tables"))
    assert line.endswith("hint: k2 table evolve quotes")
    older.open(QUOTES).evolve(QUOTES.avro)
    assert "yellow" not in k2("status").stdout


def test_a_file_that_does_not_fit_is_loaded_once_the_table_has_evolved(
    older: Lake, home: Path, tmp_path: Path
) -> None:
    file = tmp_path / "PEPEUSDT-trades-2024-08-08.csv"
    lines = [f"{n},0.00000401,{q},0.1,1723161348055,True,True\n" for n, q in ((1, 5), (2, LARGE))]
    file.write_text("".join(lines))
    k2 = k2_at(home)
    load = ("load", "csv", file, "--layout", "binance-trades")
    failed = k2(*load, code=6)
    assert f"quantity {LARGE} does not fit" in failed.stderr
    assert f"hint: {HINT}" in failed.stderr
    assert quantities(older) == []
    assert (
        list(Path(older.open(TRADES).iceberg.location().removeprefix("file://")).rglob("*.parquet"))
        == []
    )
    k2("table", "evolve", "trades")
    k2(*load)
    assert sorted(quantities(older)) == [5, LARGE]
    assert (
        k2("query", "sql", "select sum(price * quantity) as t from trades", "-f", "csv").stdout
        == f"t\n{Decimal('0.00000401') * (5 + LARGE):.16f}\n"
    )


def test_a_stream_sets_aside_what_does_not_fit_and_goes_on(older: Lake, tmp_path: Path) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    given = [
        Batch(rows=[(TRADES, batch_of(TRADES, [trade(n) for n in (1, 2)]))], messages=2),
        Batch(rows=[(TRADES, batch_of(TRADES, [trade(3, quantity=LARGE)]))], messages=1),
        Batch(rows=[(QUOTES, batch_of(QUOTES, [quote_row(ask_quantity=LARGE)]))], messages=1),
        Batch(rows=[(TRADES, batch_of(TRADES, [trade(4)]))], messages=1),
    ]

    class Source:
        def batches(self) -> Iterator[Batch]:
            yield from given

        def stop(self) -> None:
            raise AssertionError

    def stream(rejects: RejectLog) -> Pump:
        def observe(event: str, /, **fields: Any) -> None:
            events.append((event, fields))

        return Pump(
            source=Source(),
            sink=TableSink(lake=older, exchange="BINANCE", observe=observe),
            rejects=rejects,
            policy=PumpPolicy(flush_rows=1_000, flush_interval_s=1_000),
            observe=observe,
        )

    with RejectLog(tmp_path / "rejects.ndjson", run="") as rejects:
        totals = stream(rejects).run()
    assert (totals.messages, totals.rows, totals.rejects) == (5, 3, 2)
    assert quantities(older) == [trade(1)["quantity"]] * 3
    trade_reject, quote_reject = map(json.loads, rejects.path.read_text().splitlines())
    assert trade_reject["reason"] == (
        f"quantity {LARGE} does not fit decimal128(18, 8), its type in trades_v2: {HINT}"
    )
    assert (trade_reject["source"], trade_reject["position"]) == ("trades_v2", 3)
    row = json.loads(trade_reject["raw"])
    assert (row["trade_id"], row["quantity"]) == ("BINANCE-3", str(LARGE))
    assert row["timestamp"] == "2024-08-08T23:55:00.055000Z"
    assert "k2 table evolve quotes" in quote_reject["reason"]
    assert [fields["reason"] for event, fields in events if event == "reject"]

    for kind in KINDS.values():
        older.open(kind).evolve(kind.avro)
    with RejectLog(tmp_path / "more.ndjson", run="") as rejects:  # the exchange sends it again
        totals = stream(rejects).run()
    assert (totals.rows, totals.rejects, totals.duplicates) == (2, 0, 3)
    assert sorted(quantities(older))[-1] == LARGE


def test_a_stream_ends_where_more_is_set_aside_than_allowed(older: Lake, tmp_path: Path) -> None:
    class Source:
        def batches(self) -> Iterator[Batch]:
            rows = batch_of(TRADES, [trade(1), trade(2, quantity=LARGE)])
            yield Batch(rows=[(TRADES, rows)], messages=2)

        def stop(self) -> None:
            pass

    with (
        RejectLog(tmp_path / "rejects.ndjson", run="") as rejects,
        pytest.raises(BadData, match="1 rejects"),
    ):
        Pump(
            source=Source(),
            sink=TableSink(lake=older, exchange="BINANCE", observe=lambda *_, **__: None),
            rejects=rejects,
            policy=PumpPolicy(flush_rows=1, flush_interval_s=1_000, max_rejects=0),
            observe=lambda *_, **__: None,
        ).run()
    assert quantities(older) == [trade(1)["quantity"]]


def widened(rows: pa.RecordBatch, quantity: Decimal) -> pa.RecordBatch:
    """Give all rows this quantity."""
    place = TRADES.arrow.get_field_index("quantity")
    values = pa.array([quantity] * rows.num_rows, TRADES.type_of("quantity"))
    return rows.set_column(place, TRADES.arrow.field(place), values)


@pytest.fixture
def topic(cluster: Cluster, topic_name: str) -> str:
    """A topic with messages of the older schema, which a table that has not evolved has read."""
    topic = f"{topic_name}.trades"
    with open_lake(load_settings(cluster.env), create=True) as lake:
        make_narrow(lake)
    cluster.create(topic)
    older = narrow(TRADES)
    cluster.produce(topic, numbered_trades(100).cast(older.arrow), older)
    assert cluster.consume("--topic", topic)["rows"] == 100
    return topic


def count_of(cluster: Cluster, quantity: Decimal) -> int:
    return sum(each == quantity for each in cluster.rows()["quantity"].to_pylist())


def test_old_and_new_messages_feed_one_table(cluster: Cluster, topic: str) -> None:
    # Writers of both schemas, into a table that has not evolved: what fits is taken.
    older = narrow(TRADES)
    cluster.produce(topic, numbered_trades(100, begin=100))
    cluster.produce(topic, numbered_trades(100, begin=200).cast(older.arrow), older)
    assert cluster.consume("--topic", topic)["rows"] == 200
    # What does not fit ends the run before its offset is passed, each time.
    cluster.produce(topic, widened(numbered_trades(100, begin=300), LARGE))
    for _ in range(2):
        failed = cluster.run("consume", "--topic", topic, "--until-end")
        assert failed.exit_code == 6, failed.stderr
        assert f"quantity {LARGE} does not fit" in failed.stderr
        assert f"hint: {HINT}" in failed.stderr
        assert "conflict " not in failed.stderr
    assert len(cluster.ids()) == 300
    assert cluster.run("table", "evolve", "trades").stdout == WIDEN.format("quantity") + "\n"
    cluster.produce(topic, numbered_trades(100, begin=400).cast(older.arrow), older)
    assert cluster.consume("--topic", topic)["rows"] == 200
    assert cluster.ids() == sorted(numbered_trades(500)["message_id"].to_pylist())
    assert count_of(cluster, LARGE) == 100


def test_a_running_consumer_goes_on_when_the_table_evolves(cluster: Cluster, topic: str) -> None:
    running = cluster.start("consume", "--topic", topic, "--commit-interval", "200ms")
    try:
        cluster.produce(topic, numbered_trades(100, begin=100))
        wait_for(lambda: len(cluster.ids()) == 200)
        assert cluster.run("table", "evolve", "trades").exit_code == 0
        cluster.produce(topic, widened(numbered_trades(100, begin=200), LARGE))
        wait_for(lambda: len(cluster.ids()) == 300)
    finally:
        running.terminate()
        _, talk = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0, talk
    assert count_of(cluster, LARGE) == 100


def test_the_new_schema_is_the_next_version_of_a_subject(cluster: Cluster, topic: str) -> None:
    subject = subject_of(topic)
    fits = cluster.run("schema", "check", "trade_v2", "--against", "registry", "--subject", subject)
    assert fits.exit_code == 0, fits.stdout
    assert cluster.run("schema", "register", subject).exit_code == 0
    difference = cluster.run("schema", "diff", f"{subject}@1", f"{subject}@2")
    assert difference.stdout == "~ quantity  type: decimal(18,8) -> decimal(20,8)\n"
    with open_registry({"url": cluster.registry_url}, timeout_s=READ_TIMEOUT_S) as registry:
        assert registry.versions(subject)[-1].id == registry.find(subject, TRADES.avro)
    # Readers that are not upgraded cannot hold all of it, which registries do not see.
    full = cluster.run("schema", "check", f"{subject}@1", "trade_v2", "--compatibility", "FULL")
    assert full.exit_code == 6
    assert (
        "decimal(20,8) has values that do not fit decimal(18,8) (the registry would" in full.stdout
    )
    lacks = cluster.run("schema", "check", "trade_v2", "--against", "table")
    assert lacks.exit_code == 6
    assert WIDEN.format("quantity") in lacks.stdout
    assert "hint: k2 table evolve trades --schema trade_v2" in lacks.stderr
