import io
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from k2cli.config import QuerySettings
from k2cli.errors import BadData, ConfigError, K2Error, Unavailable, UsageError
from k2cli.query.answer import Answer
from k2cli.query.bars import one_minute_bars
from k2cli.query.engine import (
    Session,
    StatementSession,
    open_engine,
    open_locked,
    open_session,
    open_sql,
)
from k2cli.query.protocol import Request
from k2cli.query.questions import Question, list_symbols, select_rows
from k2cli.query.render import NdjsonRenderer
from k2cli.query.selection import Selection
from k2cli.query.timespan import Timespan
from k2cli.query.views import arrow_to_duckdb_type
from k2cli.records import KINDS, QUOTES, TRADES, RecordKind, TableFiles
from support.builders import (
    START,
    Row,
    batch_of,
    narrow,
    quotes_batch,
    table_of,
    trade_row,
    trades_batch,
)
from support.tablefiles import write_files

S = TypeVar("S", bound=Session)
Open = Callable[..., AbstractContextManager[Session]]
OpenLocked = Callable[..., AbstractContextManager[StatementSession]]


def plan_of(folder: Path, trades: Sequence[pa.RecordBatch | pa.Table | list[Row]]) -> TableFiles:
    """Write trades that are given as batches, tables or rows."""
    tables = [
        table_of(TRADES, each)
        if isinstance(each, list)
        else pa.table(each)
        if isinstance(each, pa.RecordBatch)
        else each
        for each in trades
    ]
    return write_files(folder, TRADES, *tables)


Opening = Callable[[QuerySettings, list[TableFiles]], AbstractContextManager[S]]


def opener(folder: Path, opening: Opening[S]) -> Callable[..., AbstractContextManager[S]]:
    """Return what opens a session over trades."""

    @contextmanager
    def opened(*trades: pa.RecordBatch | pa.Table | list[Row]) -> Iterator[S]:
        settings = QuerySettings(memory_limit="200MB", threads=2)
        with opening(settings, [plan_of(folder, trades)]) as session:
            yield session

    return opened


@pytest.fixture
def over(tmp_path: Path) -> Open:
    """Open a session over trades."""
    return opener(tmp_path, open_session)


@pytest.fixture
def sql_over(tmp_path: Path) -> OpenLocked:
    """Open a session for the SQL of users over trades."""
    return opener(tmp_path, open_locked)


NOTHING = [TableFiles(kind=kind, paths=(), columns={}, rows=0) for kind in KINDS.values()]


@contextmanager
def bare() -> Iterator[Session]:
    with open_session(QuerySettings(), NOTHING) as session:
        yield session


@contextmanager
def locked() -> Iterator[StatementSession]:
    with open_locked(QuerySettings(), NOTHING) as session:
        yield session


@contextmanager
def answered(sql: str, **settings: Any) -> Iterator[Answer]:
    """Ask as a worker does: one engine reads, another one writes."""
    limits = QuerySettings(**settings)
    request = Request(settings=limits, files=NOTHING, text=sql, form="csv", zone="UTC")
    with open_sql(request) as answer:
        yield answer


def read(answer: Answer, *, is_streamed: bool) -> None:
    if is_streamed:
        answer.table()
    else:
        answer.copy("csv", io.BytesIO())


def test_types_of_every_kind_have_a_duckdb_type() -> None:
    types = {field.name: arrow_to_duckdb_type(field.type) for field in TRADES.arrow}
    assert (types["price"], types["quantity"]) == ("DECIMAL(18, 8)", "DECIMAL(20, 8)")
    assert types["timestamp"] == "TIMESTAMPTZ"
    assert types["trade_conditions"] == "VARCHAR[]"
    assert types["vendor_data"] == "MAP(VARCHAR, VARCHAR)"


def test_rows_come_back_as_they_were_stored(over: Open) -> None:
    rows = [
        trade_row(trade_conditions=["a", "b"], vendor_data=None, source_sequence=None),
        trade_row(message_id="1", timestamp=START + timedelta(days=1), platform_sequence=7),
    ]
    with over(rows) as session:
        table = session.ask(select_rows(TRADES, Selection())).table()
    assert table.to_pylist() == table_of(TRADES, rows).to_pylist()
    assert table.schema.field("price").type == pa.decimal128(18, 8)
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_no_files_are_an_empty_relation_of_the_right_types(kind: RecordKind) -> None:
    with bare() as session:
        table = session.ask(select_rows(kind, Selection())).table()
    assert table.num_rows == 0
    for field in kind.arrow:
        found = table.schema.field(field.name).type
        assert arrow_to_duckdb_type(found) == arrow_to_duckdb_type(field.type)


def test_columns_are_found_by_field_id_and_absent_ones_are_null(tmp_path: Path) -> None:
    stored = pa.table(trades_batch(2)).drop_columns(["platform_sequence", "vendor_data"])
    plan = write_files(tmp_path, TRADES, stored, old_names={"price": "px"})
    with open_session(QuerySettings(), [plan]) as session:
        table = session.ask(select_rows(TRADES, Selection())).table()
    assert table.column_names == TRADES.arrow.names
    assert table["price"].to_pylist() == stored["price"].to_pylist()
    assert table["vendor_data"].null_count == 2


def test_paths_with_quotes_and_patterns_are_taken_literally(tmp_path: Path) -> None:
    folder = tmp_path / "it's [a] *folder?" / "timestamp_day=2024-08-08"
    folder.mkdir(parents=True)
    plan = write_files(folder, TRADES, pa.table(trades_batch(3)))
    with open_session(QuerySettings(), [plan]) as session:
        table = session.ask(select_rows(TRADES, Selection())).table()
    assert (table.num_rows, table.column_names) == (3, TRADES.arrow.names)


def test_selection_filters_orders_and_cuts(over: Open) -> None:
    selection = Selection(
        symbols=["BTCUSDT", "NONE"],
        exchanges=["BINANCE"],
        span=Timespan(START, START + timedelta(seconds=8, microseconds=55_000)),
        columns=["price", "trade_id"],
        is_descending=True,
        limit=2,
    )
    with over(trades_batch(20)) as session:
        table = session.ask(select_rows(TRADES, selection)).table()
    assert table.column_names == ["price", "trade_id"]
    assert table["trade_id"].to_pylist() == ["BINANCE-1006", "BINANCE-1004"]


def test_order_is_total_and_descending_its_reverse(over: Open) -> None:
    keys = [(None, "BTCUSDT", "b"), (None, "BTCUSDT", "a"), (2, "X", "c"), (2, "B", "d")]
    rows = [
        trade_row(source_sequence=number, symbol=symbol, message_id=message_id)
        for number, symbol, message_id in keys
    ]
    found = {}
    for is_descending in (False, True):
        with over(rows[:2], rows[2:]) as session:
            selection = Selection(columns=["message_id"], is_descending=is_descending)
            found[is_descending] = (
                session.ask(select_rows(TRADES, selection)).table()[0].to_pylist()
            )
    assert found[False] == ["d", "c", "a", "b"]
    assert found[True] == found[False][::-1]


def test_values_are_never_sql(over: Open) -> None:
    with over(trades_batch(4)) as session:
        answer = session.ask(select_rows(TRADES, Selection(symbols=["X' OR 1=1 --"])))
        assert answer.table().num_rows == 0


def test_unknown_column_names_the_nearest() -> None:
    with bare() as session, pytest.raises(UsageError) as caught:
        session.ask(select_rows(TRADES, Selection(columns=["prise"])))
    assert caught.value.hint == "did you mean price?"
    with bare() as session, pytest.raises(UsageError) as caught:
        session.ask(select_rows(TRADES, Selection(columns=["foo"])))
    assert str(caught.value.hint).startswith("known: message_id, trade_id, symbol")


def test_symbols_are_counted_over_all_kinds(tmp_path: Path) -> None:
    plans = [
        write_files(tmp_path, TRADES, pa.table(trades_batch(3))),
        write_files(tmp_path, QUOTES, pa.table(quotes_batch(1))),
    ]
    with open_session(QuerySettings(), plans) as session:
        table = session.ask(list_symbols([TRADES, QUOTES])).table()
    assert [tuple(row.values())[1:4] for row in table.to_pylist()] == [
        ("BTCUSDT", "quotes", 1),
        ("BTCUSDT", "trades", 2),
        ("ETHUSDT", "trades", 1),
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "select 1",
        "select 1; -- done",
        "-- first\nfrom trades order by price",
        "with t as (select 1 as a) select a, a from t",
        "values (1, 'x')",
        "(select 1) union (select 2)",
        "explain select * from trades",
        "EXPLAIN ANALYZE select count(*) from trades",
        "describe trades",
        "summarize select price from trades",
        "show tables",
        "pivot (select symbol, side, price from trades) on side using max(price)",
    ],
    ids=[
        "select",
        "trailing-comment",
        "leading-comment",
        "with",
        "values",
        "union",
        "explain",
        "explain-analyze",
        "describe",
        "summarize",
        "show",
        "pivot",
    ],
)
def test_sql_that_reads_is_answered(sql: str) -> None:
    with locked() as session:
        assert session.ask_sql(sql).table().num_columns > 0


def test_show_tables_shows_the_two_views_only() -> None:
    with locked() as session:
        assert session.ask_sql("show tables").table()["name"].to_pylist() == ["quotes", "trades"]


@pytest.mark.parametrize(
    "sql",
    [
        "",
        "-- nothing",
        "selec 1",
        "select 1; select 2",
        "select nope from trades",
        "from nosuch",
        "select nosuch(1)",
        "select $1",
        "insert into trades values (1)",
        "delete from trades",
        "create table t as select 1",
        "drop view trades",
        "copy trades to '{folder}/new.csv'",
        "explain copy trades to '{folder}/new.csv'",
        "explain analyze copy (select 1) to '{folder}/new.csv'",
        "export database '{folder}/new'",
        "attach '{folder}/new.db'",
        "install httpfs",
        "load httpfs",
        "pragma version",
        "pragma database_list",
        "call pragma_version()",
        "set enable_external_access = true",
        "reset lock_configuration",
        "select * from read_csv('/etc/passwd')",
        "select * from read_text('/etc/passwd')",
        "select * from read_blob('/etc/passwd')",
        "select * from read_parquet('{folder}/*.parquet')",
        "select * from '{folder}/secret.csv'",
        "select * from glob('/etc/*')",
        "select * from 'https://example.com/x.csv'",
        "select 1) to '{folder}/new.csv' (format csv) --",
        "from outside",
    ],
)
def test_sql_that_does_more_than_read_is_refused(sql: str, tmp_path: Path) -> None:
    outside = pa.table({"a": [1]})
    assert outside.num_rows == 1  # a variable of Python is no table either
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with locked() as session, pytest.raises(UsageError) as caught:
        session.ask_sql(sql.format(folder=tmp_path)).table()
    assert "\n" not in str(caught.value).partition("\nLINE ")[0]
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


@pytest.mark.parametrize(
    "sql",
    [
        "select cast(s as int) from (values ('1'), ('x')) t(s)",
        "select error('boom')",
        "select cast(t.s as int) from range(1000000) r(i), (select 'x' as s) t",
    ],
)
@pytest.mark.parametrize("is_streamed", [True, False])
def test_sql_that_fails_while_it_runs_is_bad_data(sql: str, is_streamed: bool) -> None:
    with pytest.raises(BadData), answered(sql) as answer:
        read(answer, is_streamed=is_streamed)


@pytest.mark.parametrize("is_streamed", [True, False])
def test_arithmetic_that_overflows_is_a_mistake_in_the_sql(is_streamed: bool) -> None:
    sql = "select i * 9223372036854775807 from range(3) t(i)"
    with pytest.raises(UsageError, match="Overflow"), answered(sql) as answer:
        read(answer, is_streamed=is_streamed)


@pytest.mark.parametrize(
    ("sql", "hint", "caret"),
    [
        ("select * from trads", 'Did you mean "trades"?', "from trads"),
        ("select 1,\n  symbl from trades", "Candidate bindings", "LINE 2:   symbl"),
        ("-- a note\nselec 1", "None", "LINE 2: selec 1\n        ^"),
    ],
)
def test_mistakes_keep_caret_and_suggestion(sql: str, hint: str, caret: str) -> None:
    with locked() as session, pytest.raises(UsageError) as caught:
        session.ask_sql(sql)
    assert hint in str(caught.value.hint)
    assert caret in str(caught.value)
    assert str(caught.value).endswith("^")


def test_memory_that_does_not_suffice_is_unavailable() -> None:
    sql = "select list(i) from range(50000000) t(i)"
    with pytest.raises(Unavailable) as caught, answered(sql, memory_limit="20MB") as answer:
        answer.copy("csv", io.BytesIO())
    assert "memory_limit" in str(caught.value.hint)


def test_memory_limit_that_is_not_one_is_a_config_error() -> None:
    with (
        pytest.raises(ConfigError, match="memory_limit"),
        open_session(QuerySettings(memory_limit="lots"), []),
    ):
        pass


def test_file_that_is_gone_or_damaged_is_an_expected_error(tmp_path: Path) -> None:
    plan = write_files(tmp_path, TRADES, pa.table(trades_batch(3)))
    Path(plan.paths[0]).write_bytes(b"PAR1 not really PAR1")
    with pytest.raises(K2Error), open_session(QuerySettings(), [plan]) as session:
        session.ask(select_rows(TRADES, Selection())).table()
    Path(plan.paths[0]).unlink()
    with pytest.raises(Unavailable), open_session(QuerySettings(), [plan]) as session:
        session.ask(select_rows(TRADES, Selection())).table()


def test_copy_ends_when_nobody_reads_any_more() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with (
        open(write_fd, "wb", buffering=0) as sink,  # noqa: PTH123
        bare() as session,
        pytest.raises(BrokenPipeError),
    ):
        # The whole answer would take months.
        session.ask(Question("FROM range(100000000000000)")).copy("csv", sink)


def test_nothing_is_left_of_an_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    descriptors = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with bare() as session:
        session.ask(Question("SELECT 1")).copy("csv", io.BytesIO())
    assert len(os.listdir("/dev/fd")) == descriptors  # noqa: PTH208
    assert list(tmp_path.iterdir()) == []


def test_ndjson_of_a_batch_is_what_a_query_prints(over: Open) -> None:
    batch = trades_batch(50)
    sink = io.BytesIO()
    with over(batch) as session:
        rows = session.ask(select_rows(TRADES, Selection())).copy("ndjson", sink)
    with NdjsonRenderer() as renderer:
        text = renderer.render(batch)
        assert renderer.render(batch.slice(0, 0)) == b""
        assert renderer.render(quotes_batch(1)).count(b"\n") == 1
    assert (rows, text) == (50, sink.getvalue())
    assert json.loads(text.splitlines()[3])["trade_id"] == "BINANCE-1003"


def bar_rows() -> list[Row]:
    """One minute whose first and last trades are told apart by sequence, and one other trade."""
    places = [
        (59, 5, "3", "1"), (1, 2, "2", "0.5"), (1, 1, "10", "0.00000001"), (59, 4, "9", "2"),
        (60, 6, "7", "0"),
    ]  # fmt: skip
    return [
        trade_row(
            message_id=str(number),
            timestamp=START + timedelta(seconds=second),
            source_sequence=number,
            price=Decimal(price),
            quantity=Decimal(quantity),
        )
        for second, number, price, quantity in places
    ]


def test_bars_are_exact(over: Open) -> None:
    with over(bar_rows()) as session:
        bar, empty = session.ask(one_minute_bars(Selection())).table().to_pylist()
    volume = Decimal("3.50000001")
    turnover = Decimal("22.0000001")
    assert bar["minute"] == START
    assert [bar[name] for name in ("open", "high", "low", "close")] == [10, 10, 2, 3]
    assert (bar["volume"], bar["turnover"], bar["trades"]) == (volume, turnover, 4)
    assert bar["vwap"] == (turnover / volume).quantize(Decimal("0.00000001"))
    assert (empty["volume"], empty["vwap"], empty["trades"]) == (0, None, 1)


def test_bars_of_the_largest_numbers_do_not_overflow(over: Open) -> None:
    price, quantity = Decimal("9999999999.99999999"), Decimal("999999999999.99999999")
    with over([trade_row(price=price, quantity=quantity)]) as session:
        (bar,) = session.ask(one_minute_bars(Selection())).table().to_pylist()
    assert (bar["turnover"], bar["vwap"]) == (
        Decimal("9999999999999999989900.0000000000000001"),
        price,
    )


def test_turnover_in_sql_is_exact_without_a_cast(sql_over: OpenLocked) -> None:
    large = Decimal("35962838485.00000001")
    rows = [trade_row(price=Decimal("42314.01"), quantity=each) for each in (large, Decimal(1))]
    turnover = sum(Decimal("42314.01") * each for each in (large, Decimal(1)))
    with sql_over(rows) as session:
        sql = "select sum(price * quantity) as turnover, max(quantity * price) as most from trades"
        (found,) = session.ask_sql(sql).table().to_pylist()
    assert (found["turnover"], found["most"]) == (turnover, Decimal("42314.01") * large)


def test_files_with_narrower_quantities_give_the_same_types(tmp_path: Path) -> None:
    older, newer = (pa.table(batch_of(kind, [trade_row()])) for kind in (narrow(TRADES), TRADES))
    plan = write_files(tmp_path, TRADES, older, newer)
    with open_session(QuerySettings(), [plan]) as session:
        table = session.ask(select_rows(TRADES, Selection())).table()
    with open_locked(QuerySettings(), [plan]) as session:
        sql = "select typeof(quantity) as q, sum(price * quantity) as t from trades group by all"
        found = session.ask_sql(sql).table().to_pylist()
    assert table["quantity"].type == pa.decimal128(20, 8)
    assert table["quantity"].to_pylist() == [trade_row()["quantity"]] * 2
    turnover = 2 * trade_row()["price"] * trade_row()["quantity"]
    assert found == [{"q": "DECIMAL(20,8)", "t": turnover}]


def test_a_product_of_prices_that_overflows_says_how_to_widen_it(sql_over: OpenLocked) -> None:
    answers = ("price * price", "price * 1.00000001", "(price - 1) * price")
    for expression in answers:
        with (
            sql_over([trade_row()]) as session,
            pytest.raises(UsageError, match="Overflow in multiplication") as caught,
        ):
            session.ask_sql(f"select {expression} as x from trades").table()
        assert "CAST(price AS DECIMAL(28, 8))" in (caught.value.hint or "")


def test_bars_take_symbols_and_times(over: Open) -> None:
    selection = Selection(
        symbols=["ETHUSDT"], span=Timespan(START + timedelta(minutes=1), START + timedelta(hours=1))
    )
    with over(trades_batch(180)) as session:
        bars = session.ask(one_minute_bars(selection)).table()
    assert bars["symbol"].unique().to_pylist() == ["ETHUSDT"]
    assert bars["trades"].to_pylist() == [30, 30]


FAILS_LATE = (
    "select case when i = 900000 then error('boom') else i end as x from range(1000000) t(i)"
)


def test_failure_that_only_says_it_was_interrupted_is_told_by_its_reason(
    sql_over: OpenLocked,
) -> None:
    with sql_over() as session:
        batches = session.ask_sql(FAILS_LATE).batches()
        next(batches)
        next(batches)
        session.connection.interrupt()  # as a thread of DuckDB does to the others when it fails
        with pytest.raises(BadData, match="boom"):
            list(batches)


def test_interrupt_without_a_failure_is_worth_a_retry(sql_over: OpenLocked) -> None:
    with sql_over() as session:
        batches = session.ask_sql("from range(3000000)").batches()
        next(batches)
        next(batches)
        session.connection.interrupt()
        with pytest.raises(Unavailable, match="INTERRUPT"):
            list(batches)


def test_sessions_of_an_engine_see_their_own_files_and_zone(tmp_path: Path) -> None:
    """Several are open at a time, as in a server."""
    plans = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        plans.append(plan_of(tmp_path / str(number), [trades_batch(10 * number)]))
    count = Question("SELECT count(*) AS n, max(timestamp) AS t FROM trades")
    with (
        open_engine(QuerySettings()) as engine,
        engine.session([plans[0]]) as utc,
        engine.session([plans[1]], zone="Asia/Tokyo") as tokyo,
    ):
        answers = [utc.ask(count), tokyo.ask(count)]
        found = [answer.table() for answer in answers]
    assert [table["n"].to_pylist() for table in found] == [[10], [20]]
    assert [table.schema.field("t").type.tz for table in found] == ["UTC", "Asia/Tokyo"]


def test_a_session_is_cancelled_without_the_others() -> None:
    forever = Question("SELECT max(sqrt(i)) AS x FROM range(100000000000000) t(i)")
    with (
        open_engine(QuerySettings(threads=2)) as engine,
        engine.session([]) as cancelled,
        engine.session([]) as other,
        ThreadPoolExecutor(1) as worker,
    ):
        asked = worker.submit(cancelled.ask(forever).table)
        assert other.ask(Question("SELECT 7 AS x")).table()["x"].to_pylist() == [7]
        while not asked.done():  # again: the first time, it may not have begun
            cancelled.cancel()
            time.sleep(0.01)
        with pytest.raises(Unavailable, match="cancelled"):
            asked.result()
        assert other.ask(Question("SELECT 8 AS x")).table()["x"].to_pylist() == [8]
