"""`k2 load csv`: which files are the same, and which rows."""

import gzip
import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.config import Settings, load_settings
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from k2cli.storage.offsets import OffsetPosition, Partition, Span
from support.running import K2, Run, k2_at

ASX = ["--layout", "asx-trades"]
BINANCE = ["--layout", "binance-trades"]
GENERIC = ["--layout", "generic-trades", "--exchange", "X", "--asset-class", "crypto"]
HEADER = "symbol,timestamp,price,quantity,side,currency\n"
JSON = ["--summary", "json"]


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


def load(k2: K2, path: Path | str, *args: str, code: int = 0) -> tuple[int, int, int]:
    """Load files; return how many were skipped, the rows that were stored, and the duplicates."""
    sums = json.loads(k2("load", "csv", path, *args, *JSON, code=code).stdout)
    return sums["skipped"], sums["rows"], sums["duplicates"]


def stored(settings: Settings) -> list[dict[str, Any]]:
    with open_lake(settings) as lake:
        rows = lake.open(TRADES).iceberg.scan().to_arrow().to_pylist()
    assert len({row["message_id"] for row in rows}) == len(rows)
    return sorted(rows, key=lambda row: (row["quantity"], row["symbol"]))


def generic(first: int, count: int, symbol: str = "A") -> str:
    return "".join(
        f"{symbol},{1_723_161_348_000 + n},1.5,{n},buy,USD\n" for n in range(first, first + count)
    )


def asx(count: int) -> str:
    return "".join(f"03/10/2014,13:50:38.849,1.11,{n},0,,\n" for n in range(1, count + 1))


def binance(first: int, count: int) -> str:
    return "".join(
        f"{n},1.5,{n},1,{1_723_161_348_000 + n},True,True\n" for n in range(first, first + count)
    )


def packed(folder: Path, name: str, text: str) -> list[Path]:
    """Write the same content in several ways: plain, under another name, and compressed."""
    plain, other = folder / f"{name}.csv", folder / f"{name.replace('2024', '2025')}.csv"
    paths = [plain, plain.with_suffix(".csv.gz"), other, *map(plain.with_suffix, (".zip", ".zst"))]
    for path in (plain, other):
        path.write_text(text)
    paths[1].write_bytes(gzip.compress(text.encode()))
    with zipfile.ZipFile(paths[3], "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.csv", text)
    with pa.CompressedOutputStream(str(paths[4]), "zstd") as stream:
        stream.write(text.encode())
    return paths


@pytest.mark.parametrize(
    ("name", "text", "args"),
    [
        ("BTCUSDT-trades-2024-08-08", binance(1, 5), BINANCE),
        ("mine-2024", HEADER + generic(1, 5), GENERIC),
        ("7078-2024", asx(5), [*ASX, "--symbol", "BHP"]),
    ],
    ids=["numbers", "generic", "lines"],
)
def test_same_content_is_the_same_file_under_any_name_and_compressed_or_not(
    k2: K2, tmp_path: Path, name: str, text: str, args: list[str]
) -> None:
    paths = packed(tmp_path, name, text)
    assert load(k2, paths[3], *args) == (0, 5, 0)
    for path in paths:
        assert load(k2, path, *args) == (1, 0, 0)
        assert load(k2, path, *args, "--force") == (0, 0, 5)


def test_files_of_the_same_bytes_for_two_symbols_are_two_files(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(asx(3))
    for symbol in ("BHP", "CBA"):
        assert load(k2, path, *ASX, "--symbol", symbol) == (0, 3, 0)
        assert load(k2, path, *ASX, "--symbol", symbol) == (1, 0, 0)
    reference = tmp_path / "companies.csv"
    reference.write_text("company_id,symbol\n7,BHP\n8,NAB\n")
    same, other = (path.with_name(f"{number}.csv") for number in (7, 8))
    for copy in (same, other):
        copy.write_text(asx(3))
    by_reference = ("--reference", str(reference))
    assert load(k2, same, *ASX, *by_reference) == (1, 0, 0)
    assert load(k2, other, *ASX, *by_reference) == (0, 3, 0)
    assert [row["symbol"] for row in stored(settings)] == ["BHP", "CBA", "NAB"] * 3


@pytest.mark.parametrize(
    "other",
    [
        ["--exchange", "Y"],
        ["--currency", "EUR"],
        ["--asset-class", "futures"],
        ["--timezone", "Europe/Berlin"],
        ["--map", "quantity=price"],
        ["--symbol", "B"],
    ],
    ids=lambda words: words[0],
)
def test_file_that_was_loaded_as_something_else_is_another_file(
    k2: K2, tmp_path: Path, settings: Settings, other: list[str]
) -> None:
    path = tmp_path / "x.csv"
    path.write_text("symbol,timestamp,price,quantity\nA,2024-08-08T10:00:00,1.5,2\n")
    usual = ["--exchange", "X", "--asset-class", "crypto", "--currency", "USD"]
    args = ["--layout", "generic-trades", *usual]
    assert load(k2, path, *args) == (0, 1, 0)
    assert load(k2, path, *args, *other) == (0, 1, 0)
    assert load(k2, path, *args, *other) == (1, 0, 0)
    assert len(stored(settings)) == 2


def test_layout_counts_by_what_it_says_not_by_its_name(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(HEADER + generic(1, 2))
    text = k2("load", "layouts", "generic-trades").stdout
    (tmp_path / "mine.toml").write_text(f"# my own\n{text}")
    (tmp_path / "other.toml").write_text(text.replace('buy = "BUY"', 'buy = "SELL"'))
    own, other = ([*GENERIC, "--layout", str(tmp_path / f"{n}.toml")] for n in ("mine", "other"))
    assert load(k2, path, *GENERIC) == (0, 2, 0)
    assert load(k2, path, *own) == (1, 0, 0)
    assert load(k2, path, *GENERIC, "--map", "price=price", "--timezone", "UTC") == (1, 0, 0)
    assert load(k2, path, *other) == (0, 2, 0)
    assert [row["side"] for row in stored(settings)].count("SELL") == 2


def test_symbol_of_a_market_counts_in_any_spelling(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(binance(1, 2))
    assert load(k2, path, *BINANCE, "--symbol", "BTCUSDT") == (0, 2, 0)
    assert load(k2, path, *BINANCE, "--symbol", "btcusdt") == (1, 0, 0)
    assert load(k2, path, *BINANCE, "--symbol", "ETHUSDT") == (0, 2, 0)


def test_lines_of_two_symbols_in_one_file_have_ids_of_their_own(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(HEADER + generic(1, 2, "A") + generic(3, 2, "B"))
    assert load(k2, path, *GENERIC) == (0, 4, 0)
    ids = [row["message_id"] for row in stored(settings)]
    assert [id_[:19] == ids[0][:19] for id_ in ids] == [True, True, False, False]
    assert [id_[19:] for id_ in ids] == [f"8000-{n:012x}" for n in range(1, 5)]


MIXED = "id,symbol,timestamp,price,quantity\n"


def mixed(*lines: tuple[str, int]) -> str:
    """Write lines with ids of any text, numbers, or none; the second value is the quantity."""
    return "".join(f"{name},A,{1_723_161_348_000 + n},1.5,{n}\n" for name, n in lines)


def test_rows_whose_ids_are_texts_are_stored_once(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    args = [*GENERIC, "--currency", "USD"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(MIXED + mixed(("a-1", 1), ("a-2", 2), ("a-1", 1), ("7", 3)))
    two.write_text(MIXED + mixed(("a-2", 2), ("a-3", 4), ("7", 3), ("8", 5)))
    assert load(k2, one, *args) == (0, 3, 1)
    assert load(k2, two, *args) == (0, 2, 2)
    for path in (one, two):
        assert load(k2, path, *args) == (1, 0, 0)
        assert load(k2, path, *args, "--force") == (0, 0, 4)
    assert [row["quantity"] for row in stored(settings)] == [1, 2, 3, 4, 5]


def test_rows_with_and_without_ids_in_one_file_are_told_row_by_row(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    args = [*GENERIC, "--currency", "USD"]
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    one.write_text(MIXED + mixed(("1", 1), ("", 2), ("t", 3), ("", 2)))
    two.write_text(MIXED + mixed(("1", 1), ("", 2), ("t", 3), ("", 4)))
    assert load(k2, one, *args) == (0, 4, 0)
    assert load(k2, one, *args, "--force") == (0, 0, 4)
    assert load(k2, two, *args) == (0, 2, 2)  # lines of another file are other lines
    assert [row["quantity"] for row in stored(settings)] == [1, 2, 2, 2, 3, 4]


def test_text_ids_that_two_processes_load_at_once_are_stored_once(
    run: Run, tmp_path: Path, settings: Settings
) -> None:
    paths = [tmp_path / f"{n}.csv" for n in range(3)]
    for n, path in enumerate(paths):
        path.write_text(MIXED + mixed(*((f"t{i}", i) for i in range(n, n + 500))))
    with open_lake(settings, create=True):
        pass
    args = [*GENERIC, "--currency", "USD", *JSON]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda path: run(["load", "csv", str(path), *args]), paths))
    assert [result.exit_code for result in results] == [0, 0, 0], results
    assert sum(json.loads(result.stdout)["rows"] for result in results) == 502
    assert len(stored(settings)) == 502


def test_lines_can_be_stored_once_more_on_request(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(asx(3))
    args = [*ASX, "--symbol", "BHP"]
    for again in ([], ["--allow-duplicates"], ["--force", "--allow-duplicates"]):
        assert load(k2, path, *args, *again) == (0, 3, 0)
    assert load(k2, path, *args) == (1, 0, 0)
    assert load(k2, path, *args, "--force") == (0, 0, 3)
    assert len(stored(settings)) == 9


@pytest.mark.parametrize(
    ("text", "args", "said"),
    [
        pytest.param(
            binance(1, 3), [*BINANCE, "--symbol", "BTCUSDT"], "stored only once", id="ids"
        ),
        pytest.param(
            MIXED + mixed(("", 1)),
            [*GENERIC, "--currency", "USD"],
            "stored only once",
            id="some-ids",
        ),
        pytest.param(
            asx(3), [*ASX, "--symbol", "A", "--dry-run"], "only for whole files", id="dry-run"
        ),
        pytest.param(
            asx(3),
            [*ASX, "--symbol", "A", "--follow-appends"],
            "only for whole files",
            id="follow-appends",
        ),
        pytest.param(
            asx(3),
            [*ASX, "--symbol", "A", "--to", "stdout"],
            "only for whole files",
            id="to-stdout",
        ),
    ],
)
def test_duplicates_are_for_whole_files_without_ids(
    k2: K2, tmp_path: Path, text: str, args: list[str], said: str
) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    result = k2("load", "csv", path, *args, "--allow-duplicates", code=2)
    assert said in result.stderr


def test_forced_load_of_a_file_that_was_followed_stores_no_line_twice(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    for count in (2, 5, 9):
        path.write_text(HEADER + generic(1, count))
        load(k2, path, *GENERIC, "--follow-appends")
    assert load(k2, path, *GENERIC, "--force") == (0, 0, 9)
    assert load(k2, path, *GENERIC, "--follow-appends") == (1, 0, 0)
    path.write_text(HEADER + generic(1, 11))
    assert load(k2, path, *GENERIC, "--force") == (0, 2, 9)
    assert [row["quantity"] for row in stored(settings)] == list(range(1, 12))


def test_other_values_of_a_text_id_are_conflicts(k2: K2, tmp_path: Path) -> None:
    """In another file, in this one, and in a row that says the same but for its time."""
    header = "symbol,timestamp,price,quantity,side,currency,trade_id\n"
    time = 1_723_161_348_000
    first, second = tmp_path / "first.csv", tmp_path / "second.csv"
    first.write_text(header + f"A,{time},1.5,1,buy,USD,T-1\nA,{time},1.5,1,buy,USD,T-2\n")
    lines = [
        f"A,{time},1.5,1,buy,USD,T-1",
        f"A,{time},1.6,1,buy,USD,T-2",
        f"A,{time},1.5,1,buy,USD,T-3",
        f"A,{time},1.5,2,buy,USD,T-3",
        f"B,{time},1.5,1,buy,USD,T-2",
    ]
    second.write_text(header + "\n".join(lines) + "\n")
    assert load(k2, first, *GENERIC) == (0, 2, 0)
    rejects = tmp_path / "rejects.ndjson"
    result = k2("load", "csv", second, *GENERIC, *JSON, "--rejects", rejects)
    sums = json.loads(result.stdout)
    assert (sums["rows"], sums["duplicates"], sums["conflicts"]) == (2, 1, 2)
    reasons = [json.loads(line)["reason"] for line in rejects.read_text().splitlines()]
    assert [reason.split(" is already stored: ")[1] for reason in reasons] == [
        "price 1.60000000 (stored 1.50000000)",
        "quantity 2.00000000 (stored 1.00000000)",
    ]
    assert reasons[0].startswith("X A X-T-2 ")


@pytest.mark.parametrize("is_small", [True, False], ids=["group", "file"])
def test_lines_that_came_through_kafka_are_not_stored_again_by_a_load(
    k2: K2, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_small: bool
) -> None:
    """Neither those of a file that was sent to a topic, nor text ids."""
    if not is_small:
        monkeypatch.setattr("k2cli.pipelines.load.tables._GROUP_ROWS", 0)
    path = tmp_path / "7078.csv"
    path.write_text(asx(5))
    args = [*ASX, "--symbol", "BHP"]
    assert load(k2, path, *args) == (0, 5, 0)
    with open_lake(settings) as lake:
        sent = lake.open(TRADES).iceberg.scan().to_arrow().slice(0, 3)
        elsewhere = tmp_path / "elsewhere"
    with open_lake(load_settings({"K2_HOME": str(elsewhere)}), create=True) as lake:
        span = Span(expected=None, reached=3)
        source = OffsetPosition({Partition("market.equities.trades", "t", 0): span})
        assert lake.open(TRADES).append(sent.cast(TRADES.arrow), source=source).rows == 3
    assert load(k2_at(elsewhere), path, *args) == (0, 2, 3)
    assert len(stored(load_settings({"K2_HOME": str(elsewhere)}))) == 5
