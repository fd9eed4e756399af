"""The Python API: `k2cli.open_lake()`, and what its answers can do."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import k2cli
from k2cli.answers import LakeReader
from k2cli.config import load_settings
from k2cli.errors import NotFound, Unavailable, UsageError
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import open_lake
from support.builders import START, quotes_batch, trades_batch
from support.paths import REPOSITORY


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of 60 trades and 20 quotes."""
    path = tmp_path_factory.mktemp("home")
    with open_lake(load_settings({"K2_HOME": str(path)}), create=True) as lake:
        lake.open(TRADES).append(pa.table(trades_batch(60)))
        lake.open(QUOTES).append(pa.table(quotes_batch(20)))
    return path


@pytest.fixture(scope="module", autouse=True)
def no_settings() -> Iterator[None]:
    """Unset this machine's K2_*."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("K2_")]:
            patch.delenv(name)
        yield


@pytest.fixture
def settings_of(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("K2_HOME", str(home))


@pytest.fixture(scope="module")
def lake(home: Path) -> Iterator[LakeReader]:
    with k2cli.open_lake(home) as reader:
        yield reader


def test_importing_k2cli_loads_nothing_heavy() -> None:
    code = (
        "import sys, k2cli; "
        "print({'pyarrow', 'duckdb', 'polars', 'pyiceberg', 'numpy'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_rows_come_as_arrow_polars_and_pandas(lake: LakeReader) -> None:
    answer = lake.trades(symbol="btc/usdt", columns="timestamp,price,source_sequence")
    table, frame, pandas = answer.arrow(), answer.polars(), answer.pandas()
    assert table.schema.field("price").type == pa.decimal128(18, 8)
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")
    assert frame.schema["price"] == pl.Decimal(18, 8)
    assert isinstance(pandas, pd.DataFrame)
    assert isinstance(pandas["price"][0], Decimal)
    assert len(table) == len(frame) == len(pandas) > 0
    assert frame["price"].to_list() == table["price"].to_pylist() == pandas["price"].to_list()


def test_parameters_select_as_the_command_does(lake: LakeReader) -> None:
    everything = lake.trades().arrow()
    assert everything["timestamp"].to_pylist() == sorted(everything["timestamp"].to_pylist())
    newest = lake.trades(order="desc", limit=3).arrow()
    assert newest.to_pylist() == everything.to_pylist()[:-4:-1]
    end = START + timedelta(minutes=1)
    some = lake.trades(symbol=["BTCUSDT", "ETHUSDT"], start=START, end=end).arrow()
    assert some.to_pylist() == [
        row
        for row in everything.to_pylist()
        if row["symbol"] in ("BTCUSDT", "ETHUSDT") and START <= row["timestamp"] < end
    ]
    assert lake.trades(start="2000-01", end="2001-01").arrow().num_rows == 0
    assert lake.quotes(exchange="binance").arrow().num_rows == 20


def test_times_are_shown_in_a_zone(lake: LakeReader) -> None:
    table = lake.trades(limit=1, tz="asia/tokyo").arrow()
    assert table.schema.field("timestamp").type.tz == "Asia/Tokyo"
    assert table["timestamp"].to_pylist()[0] == lake.trades(limit=1).arrow()["timestamp"][0].as_py()


def test_batches_begin_with_the_schema(lake: LakeReader) -> None:
    first, *others = lake.trades().batches()
    assert (first.num_rows, first.schema.names) == (0, TRADES.arrow.names)
    assert sum(batch.num_rows for batch in others) == 60


def test_symbols_are_listed(lake: LakeReader) -> None:
    rows = lake.symbols().arrow().to_pylist()
    assert {row["kind"] for row in rows} == {"trades", "quotes"}
    assert sum(row["rows"] for row in rows) == 80


def test_sql_is_answered_more_than_once(lake: LakeReader) -> None:
    answer = lake.sql("select count(*) as n, max(price) as p from trades")
    assert answer.arrow().to_pylist() == answer.polars().to_dicts()
    assert answer.arrow()["n"].to_pylist() == [60]
    with pytest.raises(UsageError, match="not allowed"):
        lake.sql("delete from trades").arrow()
    with pytest.raises(Unavailable, match=r"longer than 0\.5s"):
        lake.sql("select max(i) from range(1e15::bigint) t(i)", timeout_s=0.5).arrow()


@pytest.mark.parametrize(
    "name", ["a.csv", "a.csv.gz", "a.tsv.zst", "a.json", "a.ndjson", "a.md", "a.parquet", "a.arrow"]
)
def test_answers_are_written_in_the_format_of_the_name(
    lake: LakeReader, tmp_path: Path, name: str
) -> None:
    answer = lake.trades(columns=["price", "symbol"])
    assert answer.write(tmp_path / name) == 60
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(UsageError, match="exists"):
        answer.write(tmp_path / name)
    assert answer.write(tmp_path / name, force=True) == 60
    if name == "a.parquet":
        assert pq.read_table(tmp_path / name).to_pylist() == answer.arrow().to_pylist()
    if name == "a.arrow":
        with pa.ipc.open_file(tmp_path / name) as reader:
            assert reader.read_all().to_pylist() == answer.arrow().to_pylist()


def test_a_format_can_be_chosen(lake: LakeReader, tmp_path: Path) -> None:
    lake.symbols().write(tmp_path / "symbols", format="ndjson")
    assert (tmp_path / "symbols").read_text(encoding="utf-8").startswith('{"exchange":')
    for wrong in ("excel", "table"):
        with pytest.raises(UsageError) as caught:
            lake.symbols().write(tmp_path / "more", format=wrong)
        assert "csv" in str(caught.value.hint)
    with pytest.raises(UsageError, match="no format"):
        lake.symbols().write(tmp_path / "more")
    assert not (tmp_path / "more").exists()


def test_an_answer_is_pinned_to_the_snapshot_it_was_asked_of(tmp_path: Path) -> None:
    settings = load_settings({"K2_HOME": str(tmp_path)})
    with open_lake(settings, create=True) as writer, k2cli.open_lake(tmp_path) as lake:
        writer.open(TRADES).append(pa.table(trades_batch(5)))
        asked = lake.trades()
        writer.open(TRADES).append(pa.table(trades_batch(14)))  # 5 of them are stored
        assert [asked.arrow().num_rows, lake.trades().arrow().num_rows] == [5, 14]


def test_several_threads_ask_one_lake(lake: LakeReader) -> None:
    found: list[int] = []

    def ask(symbol: str) -> None:
        found.append(lake.trades(symbol=symbol).arrow().num_rows)
        found.append(lake.sql("select * from quotes").arrow().num_rows)

    names = lake.symbols().arrow()["symbol"].unique().to_pylist()
    threads = [threading.Thread(target=ask, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 60 + 20 * len(names)


@pytest.mark.parametrize(
    ("selected", "message"),
    [
        ({"symbol": ""}, "symbol '' contains an empty name"),
        ({"symbol": []}, "symbol '' contains an empty name"),
        ({"columns": "prise"}, "trades have no column 'prise'"),
        ({"start": "soon"}, "start 'soon' is not a time"),
        ({"start": "now", "end": "-1d"}, "start .* is not before end"),
        ({"symbols": "BTCUSDT"}, "unknown parameter symbols"),
        ({"symbol": 3}, "symbol: 3 is not a name"),
        ({"exchange": b"BINANCE"}, "exchange: 66 is not a name"),
        ({"columns": ["price", None]}, "columns: None is not a name"),
        ({"start": START.date()}, r"start datetime.date\(.*\) is not a time"),
        ({"end": 1_723_113_000}, "end 1723113000 is not a time"),
        (
            {"start": datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))},
            "start 0001-01-01 00:00:00.* is out of range",
        ),
        ({"limit": "3"}, "limit '3' is not a whole number"),
        ({"limit": 2.0}, r"limit 2\.0 is not a whole number"),
        ({"limit": 2**63}, f"limit {2**63} is greater than {2**63 - 1}"),
        ({"tz": None}, "tz None is not a time zone"),
        ({"start": datetime(2026, 1, 1)}, "start 2026-01-01 00:00:00 has no time zone"),  # noqa: DTZ001
        ({"order": "up"}, "order 'up' is unknown"),
        ({"limit": -1}, "limit -1 is negative"),
        ({"tz": "Mars/Olympus"}, "tz 'Mars/Olympus' is not a time zone"),
    ],
    ids=[
        "symbol",
        "symbols",
        "column",
        "time",
        "span",
        "name",
        "symbol-type",
        "exchange-type",
        "column-type",
        "date",
        "epoch",
        "range",
        "limit-text",
        "limit-fraction",
        "limit-size",
        "zone-type",
        "naive",
        "order",
        "limit",
        "zone",
    ],
)
def test_wrong_parameters_are_usage_errors(
    lake: LakeReader, selected: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lake.trades(**selected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("statement", "timeout_s", "message"),
    [
        (3, None, "the statement 3 is not a str"),
        ("select '\udc80'", None, "cannot be encoded in UTF-8"),
        ("select 1", "3", "timeout_s '3' is not a number of seconds"),
        ("select 1", -1, "timeout_s -1 is not"),
        ("select 1", float("nan"), "timeout_s nan is not"),
        ("select 1", float("inf"), "timeout_s inf is not"),
        ("select 1", 1e12, "timeout_s 1000000000000.0 is not"),
    ],
    ids=["type", "surrogate", "text", "negative", "nan", "infinite", "long"],
)
def test_wrong_parameters_of_sql_are_usage_errors(
    lake: LakeReader, statement: str, timeout_s: float, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lake.sql(statement, timeout_s=timeout_s)


def test_a_closed_lake_answers_nothing(home: Path) -> None:
    with k2cli.open_lake(home) as lake:
        rows, result = lake.trades(), lake.sql("select * from trades")
        assert rows.arrow().num_rows == 60
        begun = lake.sql("select * from trades").batches()
        assert next(begun).num_rows == 0
    lake.close()
    for late in (begun, rows.batches(), result.batches()):
        with pytest.raises(UsageError, match="the lake is closed"):
            list(late)
    for ask in (lake.trades, lake.symbols):
        with pytest.raises(UsageError, match="the lake is closed"):
            ask()


@pytest.mark.usefixtures("settings_of")
def test_the_guide_works(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    guide = REPOSITORY / "docs" / "guides" / "python.md"
    blocks = re.findall(
        r"^```python\n(.*?)^```$", guide.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(guide), "exec"), names)
    assert pq.read_metadata("btc.parquet").num_rows == 30
    assert names["rows"] == 20


def test_a_home_without_tables_says_so(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no tables"):
        k2cli.open_lake(tmp_path)


@pytest.mark.usefixtures("settings_of")
def test_settings_are_those_of_the_environment() -> None:
    with k2cli.open_lake() as lake:
        assert lake.trades(end=datetime.now(UTC)).arrow().num_rows == 60


def test_without_pandas_it_says_what_to_install(
    lake: LakeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("k2cli.answers.find_spec", lambda _: None)
    with pytest.raises(UsageError) as caught:
        lake.trades().pandas()
    assert caught.value.hint == "pip install pandas"
