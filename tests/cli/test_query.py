"""k2 query, as a user runs it, against a real table."""

import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import time
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2cli.config import load_settings
from k2cli.query.formats import Format
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import open_lake
from support.builders import START, quotes_batch, table_of, trade_row, trades_batch
from support.running import K2, Process, Result, Run, environment, k2_at, start_k2
from support.waiting import PATIENCE_S, wait_for

ODD = trade_row(
    message_id="odd",
    symbol="ODD",
    timestamp=START + timedelta(days=1),
    price=Decimal("0.00000001"),
    quantity=Decimal("999999999999.99999999"),
    trade_conditions=["@", 'F,"I"'],
    source_sequence=None,
    platform_sequence=2**63 - 1,
    vendor_data={"a,b": 'c"\n| é', "empty": ""},
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with 600 trades of two symbols and an odd one, and 3 quotes."""
    home = tmp_path_factory.mktemp("lake") / "home"
    with open_lake(load_settings({"K2_HOME": str(home)}), create=True) as lake:
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(600)]))
        lake.open(TRADES).append(table_of(TRADES, [ODD]))
        lake.open(QUOTES).append(pa.Table.from_batches([quotes_batch(3)]))
    return home


@pytest.fixture
def k2(filled: Path) -> K2:
    """Run `k2 query` in this process, over the filled home."""
    return partial(k2_at(filled), "query")


def expected() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pa.Table.from_batches([trades_batch(600)]).to_pylist()
    return [*rows, *table_of(TRADES, [ODD]).to_pylist()]


def iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def as_written(row: dict[str, Any]) -> dict[str, Any]:
    """Make of a row what a JSON parser reads of it."""
    out = dict(row)
    for name, value in row.items():
        if isinstance(value, datetime):
            out[name] = iso(value)
        elif isinstance(value, Decimal):
            out[name] = f"{value:.8f}"
        elif name == "vendor_data":
            out[name] = dict(value)
    return out


def test_csv_reads_back_exactly(k2: K2) -> None:
    text = k2("trades").stdout_bytes.decode()
    assert "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    for row, stored in zip(rows, map(as_written, expected()), strict=True):
        for name in ("vendor_data", "trade_conditions"):
            assert json.loads(row.pop(name)) == stored.pop(name)
        assert row == {name: "" if value is None else str(value) for name, value in stored.items()}


@pytest.mark.parametrize("fmt", ["json", "ndjson"])
def test_json_reads_back_exactly(k2: K2, fmt: str) -> None:
    text = k2("trades", "--format", fmt).stdout
    rows = json.loads(text) if fmt == "json" else [json.loads(line) for line in text.splitlines()]
    assert rows == [as_written(row) for row in expected()]


@pytest.mark.parametrize("fmt", ["parquet", "arrow"])
def test_binary_formats_keep_values_and_types(k2: K2, fmt: str) -> None:
    source = pa.BufferReader(k2("trades", "-f", fmt).stdout_bytes)
    table = pq.read_table(source) if fmt == "parquet" else pa.ipc.open_stream(source).read_all()
    assert table.to_pylist() == expected()
    assert table.schema.field("price").type == pa.decimal128(18, 8)
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="UTC")
    assert pa.types.is_map(table.schema.field("vendor_data").type)
    assert pa.types.is_list(table.schema.field("trade_conditions").type)


@pytest.mark.parametrize("fmt", ["table", "markdown"])
def test_tables_show_exact_values(k2: K2, fmt: str) -> None:
    text = k2("trades", "--symbol", "odd,ETHUSDT", "--format", fmt).stdout
    assert "0.00000001" in text
    assert "999999999999.99999999" in text
    assert iso(START + timedelta(seconds=1, microseconds=55_000)) in text
    assert len(text.splitlines()) == 2 + 301


@pytest.mark.parametrize(
    ("args", "trade_ids"),
    [
        (["--symbol", "btcusdt", "--limit", "2"], [1000, 1002]),
        (["--symbol", "BTCUSDT,ETHUSDT", "-n", "2", "--order", "desc"], [1599, 1598]),
        (["--symbol", "BTCUSDT", "--symbol", "NONE", "-n", "1"], [1000]),
        (["--symbol", "btc/usdt,ETH-USDT", "-n", "2"], [1000, 1001]),
        (["--start", "1723161302055", "--end", "2024-09", "-n", "1"], [1002]),
        (["--exchange", "binance", "--start", "2024-08-08T23:55:02.055Z", "-n", "1"], [1002]),
        (["--end", "2024-08-08T23:55:01.055", "-n", "5"], [1000]),
        (["--end", "2024-08-09", "--order", "desc", "-n", "1"], [1299]),
        (["--start", "2024-08-09T02:00:00.055+02:00", "-n", "1"], [1300]),
        (["--exchange", "ASX"], []),
        (["--start", "-15m"], []),
        (["--symbol", "X' OR 1=1 --"], []),
        (["--exchange", "X'; DROP VIEW trades; --"], []),
    ],
)
def test_options_choose_rows(k2: K2, args: list[str], trade_ids: list[int]) -> None:
    result = k2("trades", *args, "--columns", "trade_id")
    assert result.stdout.split() == ["trade_id", *(f"BINANCE-{number}" for number in trade_ids)]
    assert result.stderr[:16] == ("" if trade_ids else "no rows matched\n")


def test_columns_keep_their_order(k2: K2) -> None:
    text = k2("quotes", "-c", "ask_price,symbol", "-c", "bid_price", "-n", 1).stdout
    assert text == "ask_price,symbol,bid_price\n61800.01000000,BTCUSDT,61799.99000000\n"


@pytest.mark.parametrize(
    ("fmt", "text"),
    [
        pytest.param("csv", "price\n", id="csv"),
        pytest.param("json", "[]\n", id="json"),
        pytest.param("ndjson", "", id="ndjson"),
        pytest.param("table", "", id="table"),
        pytest.param("markdown", "", id="markdown"),
    ],
)
def test_nothing_matched_is_an_empty_answer_and_a_note(k2: K2, fmt: str, text: str) -> None:
    result = k2("trades", "--symbol", "NONE", "--columns", "price", "--format", fmt)
    assert result.stdout == text
    assert result.stderr == (
        "no rows matched\nno trades of NONE; there are BTCUSDT, ETHUSDT, ODD: k2 query symbols\n"
    )


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--symbol", "BTCUSD"], "no trades of BTCUSD; did you mean BTCUSDT?"),
        (["--symbol", "odd", "--start", "2030-01"], "trades of ODD: BINANCE 2024-08-09T23:55:00"),
        (["--symbol", "ETH/USDT", "--start", "now"], "trades of ETHUSDT: BINANCE 2024-08-08"),
    ],
)
def test_symbols_without_rows_are_explained(k2: K2, args: list[str], said: str) -> None:
    note, explained = k2("trades", *args).stderr.splitlines()
    assert note == "no rows matched"
    assert explained.startswith(said)


@pytest.mark.parametrize("comment", ["-- how many", "--how-many", "--", "--2"])
def test_sql_may_start_with_a_comment(k2: K2, comment: str) -> None:
    assert k2("sql", f"{comment}\nselect 'a--b c' as x").stdout == "x\na--b c\n"


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["trades", "--columns", "prise"], 2, "hint: did you mean price?"),
        (["trades", "--start", "now", "--end", "today"], 2, "not before"),
        (["trades", "--start", "2024-08-08", "--end", "2024-08-08"], 2, "not before"),
        (["trades", "--start=-1M"], 2, "hint: write minutes as -1m"),
        (["trades", "--symbol", ""], 2, "--symbol '' contains an empty name"),
        (["trades", "--exchange", " , "], 2, "hint: omit --exchange"),
        (["trades", "--limit", "9" * 30], 2, "--limit"),
        (["sql", "select 9223372036854775807 + 1"], 2, "Overflow"),
        (["sql", "from trades limit 100000000000000000000000"], 2, "out of range"),
        (["sql", "from trades limit (select 1e30)"], 2, "out of range"),
        (["sql", "from trades where price = 'abc'"], 2, "Could not convert"),
        (["trades", "--start", "soon"], 2, "--start 'soon' is not a time"),
        (["trades", "--limit", "0"], 2, "--limit"),
        (["trades", "--tz", "Sydny"], 2, "hint: did you mean Australia/Sydney?"),
        (["sql", "select 1", "--tz", "Mars/Base"], 2, "--tz 'Mars/Base' is not a time zone"),
        (["trades", "--format", "xml"], 2, "xml"),
        (["trades", "-o", "answer.txt"], 2, "--format"),
        (["trades", "-o", "/"], 2, "directory"),
        (["trades", "-o", "/no/such/folder/x.csv"], 4, "hint: mkdir -p /no/such/folder"),
        (["sql", "selec 1"], 2, 'syntax error at or near "selec"'),
        (["sql", "select cast(symbol as int) from trades"], 6, "Conversion Error"),
        (["sql", "copy trades to 'x.csv'"], 2, "COPY is not allowed"),
        (["sql", "from read_csv('/etc/passwd')"], 2, "function read_csv is not allowed"),
    ],
)
def test_failures_say_what_is_wrong(k2: K2, args: list[str], code: int, said: str) -> None:
    result = k2(*args, code=code)
    assert result.stdout == ""
    assert said in result.stderr


def test_missing_tables_are_not_found_except_for_sql(run: Run, home: Path) -> None:
    assert run(["query", "trades"]).exit_code == 4
    assert run(["query", "symbols"]).exit_code == 4
    result = run(["query", "sql", "select count(*) n from trades, quotes"])
    assert (result.exit_code, result.stdout) == (0, "n\n0\n")
    assert not home.exists()


TEXTS = [each for each in Format if each not in ("parquet", "arrow")]


@pytest.mark.parametrize(
    ("query", "fmt"),
    [
        *((["trades", "-c", "timestamp", "-n", "1"], fmt) for fmt in TEXTS),
        *((["sql", "select min(timestamp) t from trades"], fmt) for fmt in ("csv", "json")),
    ],
)
def test_times_are_written_in_a_zone(k2: K2, query: list[str], fmt: str) -> None:
    text = k2(*query, "--tz", "asia/kolkata", "--format", fmt).stdout
    first = min(row["timestamp"] for row in expected())
    assert first.astimezone(ZoneInfo("Asia/Kolkata")).isoformat(timespec="microseconds") in text
    assert "Z" not in text


@pytest.mark.parametrize("query", [["trades"], ["sql", "from trades"]])
@pytest.mark.parametrize("fmt", ["parquet", "arrow"])
def test_binary_formats_name_the_zone(k2: K2, query: list[str], fmt: str) -> None:
    source = pa.BufferReader(k2(*query, "--tz", "Asia/Kolkata", "-f", fmt).stdout_bytes)
    table = pq.read_table(source) if fmt == "parquet" else pa.ipc.open_stream(source).read_all()
    assert table.schema.field("timestamp").type == pa.timestamp("us", tz="Asia/Kolkata")
    moments = sorted(row["timestamp"] for row in expected())
    assert table.sort_by("timestamp")["timestamp"].to_pylist() == moments


def test_zone_changes_no_rows(k2: K2) -> None:
    """Neither what options nor what SQL takes for a time without an offset."""
    day = (START + timedelta(days=1)).date().isoformat()
    plain = k2("trades", "--start", day, "-c", "trade_id").stdout
    assert k2("trades", "--start", day, "-c", "trade_id", "--tz", "Asia/Tokyo").stdout == plain
    sql = (
        "select count(*) n, date_trunc('day', min(timestamp)) t"
        f" from trades where timestamp < '{day}'"
    )
    rows = [
        json.loads(k2("sql", sql, "-f", "json", *tz).stdout) for tz in ([], ["--tz", "Asia/Tokyo"])
    ]
    assert rows[0][0]["n"] == rows[1][0]["n"] > 0
    first, second = (datetime.fromisoformat(row["t"]) for (row,) in rows)
    assert first == second


def test_zone_of_the_settings_is_used(k2: K2) -> None:
    assert "+09:00" in k2("symbols", K2_QUERY_TIMEZONE="Asia/Tokyo").stdout
    assert "+09:00" not in k2("symbols", "--tz", "UTC", K2_QUERY_TIMEZONE="Asia/Tokyo").stdout
    result = k2("symbols", code=3, K2_QUERY_TIMEZONE="Asia/Tokio")
    assert "query.timezone 'Asia/Tokio' is not a time zone" in result.stderr
    assert "Asia/Tokyo" in result.stderr


def test_symbols_lists_both_kinds(k2: K2) -> None:
    rows = json.loads(k2("symbols", "-f", "json").stdout)
    assert [(row["symbol"], row["kind"], row["rows"]) for row in rows] == [
        ("BTCUSDT", "quotes", 2), ("BTCUSDT", "trades", 300), ("ETHUSDT", "quotes", 1),
        ("ETHUSDT", "trades", 300), ("ODD", "trades", 1),
    ]  # fmt: skip
    assert rows[4]["first_time"] == rows[4]["last_time"] == iso(START + timedelta(days=1))


def test_sql_reads_stdin(k2: K2) -> None:
    sql = "-- how many\nselect count(*) AS n, max(price) AS p from trades;\n"
    assert k2("sql", "-", stdin=sql).stdout == "n,p\n601,61805.99000000\n"


EXTENSIONS = ["csv", "json", "ndjson", "jsonl", "parquet", "arrow", "feather", "md"]


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_output_takes_its_format_from_the_name(k2: K2, tmp_path: Path, extension: str) -> None:
    path = tmp_path / f"quotes.{extension}"
    assert k2("quotes", "-o", path).stdout == ""
    assert list(tmp_path.iterdir()) == [path]
    match extension:
        case "parquet":
            assert pq.read_table(path).num_rows == 3
        case "arrow" | "feather":
            assert pa.ipc.open_file(path).read_all().num_rows == 3
        case _:
            form = {"jsonl": "ndjson", "md": "markdown"}.get(extension, extension)
            assert path.read_text() == k2("quotes", "-f", form).stdout


@pytest.mark.parametrize("name", ["x.csv.gz", "x.tsv.zst", "x.JSON.GZ", "x.md.zst", "x.ndjson.gz"])
def test_output_is_compressed_by_its_name(k2: K2, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    k2("trades", "-o", path)
    codec = "zstd" if name.endswith("zst") else "gzip"
    with pa.input_stream(path, compression=codec) as stream:
        content = stream.read()
    fmt = {"md": "markdown"}.get(name.lower().split(".")[1], name.lower().split(".")[1])
    assert content == k2("trades", "-f", fmt).stdout_bytes
    assert "exists" in k2("trades", "-o", path, code=2).stderr


def test_binary_formats_are_not_compressed_as_a_whole(k2: K2, tmp_path: Path) -> None:
    assert "hint: name it x.parquet" in k2("trades", "-o", tmp_path / "x.parquet.gz", code=2).stderr
    assert "no format" in k2("trades", "-o", tmp_path / "x.gz", code=2).stderr


def test_tsv_is_csv_with_tabs(k2: K2) -> None:
    rows = list(csv.reader(io.StringIO(k2("trades", "-f", "tsv").stdout), delimiter="\t"))
    assert rows == list(csv.reader(io.StringIO(k2("trades", "-f", "csv").stdout)))


def test_output_does_not_overwrite_without_force(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("mine")
    assert "--force" in k2("quotes", "-o", path, code=2).stderr
    assert path.read_text() == "mine"
    k2("quotes", "-o", path, "--format", "json", "--force")
    assert len(json.loads(path.read_text())) == 3


@pytest.mark.parametrize("fmt", list(Format))
def test_output_is_all_or_nothing(k2: K2, tmp_path: Path, fmt: str) -> None:
    path = tmp_path / "x.out"
    path.write_text("mine")
    failing = "select case when i = 900000 then error('boom') else i end from range(1000000) t(i)"
    assert "boom" in k2("sql", failing, "-o", path, "-f", fmt, "--force", code=6).stderr
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("x.out", "mine")]


def test_output_follows_links_and_leaves_devices(k2: K2, tmp_path: Path) -> None:
    (tmp_path / "real.csv").write_text("old")
    (tmp_path / "link.csv").symlink_to("real.csv")
    k2("quotes", "-o", tmp_path / "link.csv", "--force")
    assert (tmp_path / "real.csv").read_text().startswith("message_id,")
    assert (tmp_path / "link.csv").is_symlink()
    k2("quotes", "-o", "/dev/null")
    assert not Path("/dev/null").is_file()


def process(filled: Path, *args: str, **options: Any) -> Process:
    env = environment(filled, {"COLUMNS": "80"})
    return start_k2("query", *args, env=env, text=False, **options)


@pytest.mark.parametrize("fmt", ["csv", "ndjson", "json", "table", "markdown", "arrow"])
def test_reader_that_goes_away_ends_it_quietly(filled: Path, fmt: str) -> None:
    sql = "select i, i * 2 as j from range(5000000) t(i)"
    k2 = process(filled, "sql", sql, "-f", fmt)
    assert k2.stdout is not None
    assert len(k2.stdout.readline()) > 0
    k2.stdout.close()
    _, said = k2.communicate(timeout=PATIENCE_S)
    assert (k2.returncode, said) == (0, b"")


def test_stdout_appended_to_a_file_keeps_what_is_there(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    path.write_text("before\n")
    with path.open("ab") as appended:
        process(filled, "sql", "select 1 as a", stdout=appended).communicate(timeout=PATIENCE_S)
    assert path.read_text() == "before\na\n1\n"


@pytest.mark.parametrize("fmt", ["csv", "table"])
def test_interrupt_leaves_nothing(filled: Path, tmp_path: Path, fmt: str) -> None:
    sql = "select i, random() as r from range(3000000000) t(i) order by r"
    path = tmp_path / "x.out"
    k2 = process(filled, "sql", sql, "-f", fmt, "-o", str(path), cwd=tmp_path)
    wait_for(lambda: list(tmp_path.iterdir()))
    time.sleep(0.5)  # into the query
    k2.send_signal(signal.SIGINT)
    try:
        _, said = k2.communicate(timeout=PATIENCE_S)
    finally:
        k2.kill()
        k2.communicate()
    assert k2.returncode == 130, said
    assert list(tmp_path.iterdir()) == []


def on_terminal(filled: Path, *args: str) -> Result:
    master, slave = pty.openpty()
    k2 = process(filled, *args, stdout=slave)
    os.close(slave)
    shown = b""
    with open(master, "rb", buffering=0) as terminal:  # noqa: PTH123
        while True:
            try:
                shown += terminal.read(65536) or b""
            except OSError:  # the other end is closed
                break
    _, said = k2.communicate(timeout=PATIENCE_S)
    return Result(k2.returncode, shown, said)


def test_terminal_shows_a_table_of_the_first_rows_that_fits(filled: Path) -> None:
    result = on_terminal(filled, "trades")
    lines = result.stdout.splitlines()
    assert (result.exit_code, len(lines)) == (0, 2 + 100)
    assert lines[0].split() == ["symbol", "exchange", "timestamp", "price", "quantity", "side"]
    assert max(map(len, lines)) <= 80
    assert "the first 100 rows" in result.stderr
    assert "vendor_data" in result.stderr


def test_terminal_shows_all_rows_of_a_limit(filled: Path) -> None:
    result = on_terminal(filled, "trades", "--limit", "150", "-c", "trade_id")
    assert (len(result.stdout.splitlines()), result.stderr) == (2 + 150, "")


def test_terminal_gets_no_bytes(filled: Path) -> None:
    result = on_terminal(filled, "trades", "--format", "parquet")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "hint: write it to a file: -o answer.parquet" in result.stderr


def test_terminal_is_safe_from_control_characters(filled: Path) -> None:
    result = on_terminal(filled, "sql", "select 'a' || chr(27) || '[2J' || chr(10) || 'b' as x")
    assert result.stdout == "x\n--------\na\\x1b[2J\nb\n"


def test_help_loads_no_heavy_package() -> None:
    code = (
        "import sys, k2cli.commands.app;"
        "print([m for m in ('duckdb', 'pyarrow', 'numpy', 'pyiceberg') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_signals_end_a_query_whose_reader_stalls_with_the_code_of_a_shell(
    filled: Path, tmp_path: Path, k2_env: dict[str, str], number: signal.Signals, code: int
) -> None:
    args = ("query", "trades", "--home", filled)
    with start_k2(*args, env=k2_env, cwd=tmp_path, text=False) as process:
        assert process.stdout is not None
        assert process.stdout.read(1)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == code
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
