"""`k2 load csv` of what it should not be given: exit code, message, and each reject."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from within import K2, k2_at

from k2cli.config import Settings
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake

LINE = "3735685016,61800.12000000,0.00010000,6.18001200,1723161348055,True,True"
HEADER = "id,price,qty,quote_qty,time,is_buyer_maker,is_best_match"
YEARS = f"1990 to {datetime.now(UTC).year + 1}"
NAME = "BTCUSDT-trades-2024-08-08.csv"
BINANCE = ("--layout", "binance-trades")
ASX = ("--layout", "asx-trades", "--symbol", "BHP")
ASX_LINE = "03/10/2014,13:50:38.849,1.11,3667,0,,"
GENERIC = (
    *("--layout", "generic-trades", "--symbol", "A", "--exchange", "X"),
    *("--asset-class", "crypto", "--currency", "USD"),
)
Rejects = list[tuple[int, str]]


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


def rejects_in(home: Path) -> Rejects:
    path = home / "rejects" / "load-csv.ndjson"
    lines = path.read_text().splitlines() if path.exists() else []
    return [(line["position"], line["reason"]) for line in map(json.loads, lines)]


def rows_in(settings: Settings) -> int:
    with open_lake(settings) as lake:
        return lake.describe(TRADES).rows


def binance(place: int, text: str) -> str:
    cells = LINE.split(",")
    cells[place] = text
    return ",".join(cells)


def asx(date: str, clock: str) -> str:
    return ",".join([date, clock, *ASX_LINE.split(",")[2:]])


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, f"{LINE}\n")
    return buffer.getvalue()


@pytest.mark.parametrize("data", [HEADER, f"{HEADER}\r\n"], ids=["header", "line-end"])
def test_file_without_rows_is_counted_as_empty(
    k2: K2, home: Path, tmp_path: Path, data: str
) -> None:
    path = tmp_path / NAME
    path.write_text(data, newline="")
    notice, summary = k2("load", "csv", path, *BINANCE).stderr.splitlines()
    assert notice == f"{path}: has no rows"
    assert "files=1 loaded=0 skipped=0 failed=0 rows=0" in summary
    assert "rejects=0 empty=1" in summary
    assert rejects_in(home) == []


@pytest.mark.parametrize("to", [(), ("--dry-run",), ("--to", "stdout")])
@pytest.mark.parametrize("data", ["", "\ufeff", "\n\n"], ids=["empty", "bom", "newlines"])
def test_empty_file_is_not_loaded(
    k2: K2, home: Path, tmp_path: Path, data: str, to: tuple[str, ...]
) -> None:
    path = tmp_path / NAME
    path.write_text(data, newline="")
    result = k2("load", "csv", path, *BINANCE, *to, code=6)
    assert result.stderr.startswith(f"error: {path} is empty")
    assert "loaded=0 skipped=0 failed=1 rows=0" in result.stderr
    assert rejects_in(home) == []


def test_rejects_name_file_run_column_and_code(k2: K2, home: Path, tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text(f"{LINE}\n{binance(1, 'abc')}\n1,2\n")
    summary = k2("load", "csv", path, *BINANCE, code=6).stderr.splitlines()[2]
    assert "failed=1 rows=0 duplicates=0 conflicts=0 rejects=2" in summary
    lines = (home / "rejects" / "load-csv.ndjson").read_text().splitlines()
    first, second = map(json.loads, lines)
    assert (first["file"], first["column"], first["code"]) == (str(path), "price", "bad_price")
    assert (second["file"], second["code"]) == (str(path), "bad_column_count")
    assert first["run"] == second["run"] != ""


def test_notes_are_printed_once_for_files_alike(k2: K2, tmp_path: Path) -> None:
    for day in (1, 2):
        line = f"2024-01-0{day}T00:00:00.123456789,1,2\n"
        (tmp_path / f"{day}.csv").write_text(f"timestamp,price,quantity\n{line}")
    result = k2("load", "csv", tmp_path / "*.csv", *GENERIC)
    assert result.stderr.count("finer than microseconds") == 1


def test_only_regular_files_of_folders_and_globs_are_read(k2: K2, tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "in", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (elsewhere / "x.csv").write_text("timestamp,price,quantity\n2024-01-01,1,2\n")
    (folder / "own.csv").write_text("timestamp,price,quantity\n2024-01-02,1,2\n")
    os.mkfifo(folder / "pipe.csv")
    (folder / "link.csv").symlink_to(elsewhere / "x.csv")
    (folder / "loop").symlink_to(folder)
    (folder / "broken.csv").symlink_to(folder / "nothing")
    result = k2("load", "csv", folder, *GENERIC, "--dry-run")
    assert "files=1 loaded=1" in result.stderr
    for name in ("pipe.csv", "link.csv", "loop", "broken.csv"):
        assert f"{folder / name} skipped: " in result.stderr
    result = k2("load", "csv", folder, *GENERIC, "--dry-run", "--follow-symlinks")
    assert "files=2 loaded=2" in result.stderr
    result = k2("load", "csv", folder / "*", *GENERIC, "--dry-run")
    assert "files=2 loaded=2" in result.stderr
    assert f"{folder / 'pipe.csv'} skipped: not a regular file" in result.stderr


def test_parquet_is_loaded_once_by_the_same_layouts(
    k2: K2, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.parquet"
    table = pa.table({"timestamp": ["2024-01-01"] * 2, "Px": [1.5, 2.5], "quantity": [1, 2]})
    pq.write_table(table, path)
    options = (*GENERIC, "--map", "price=Px")
    assert "loaded=1 skipped=0 failed=0 rows=2" in k2("load", "parquet", path, *options).stderr
    assert "loaded=0 skipped=1" in k2("load", "parquet", path, *options).stderr
    assert rows_in(settings) == 2


def test_bom_is_no_part_of_the_first_value(k2: K2, tmp_path: Path, settings: Settings) -> None:
    path = tmp_path / NAME
    path.write_text(f"\ufeff{LINE}\n")
    k2("load", "csv", path, *BINANCE)
    assert rows_in(settings) == 1


@pytest.mark.parametrize(
    ("options", "bad", "reason"),
    [
        pytest.param(BINANCE, f"{LINE},1", "has 8 columns, not 7", id="column-too-many"),
        pytest.param(BINANCE, "1,2,3", "has 3 columns, not 7", id="columns-too-few"),
        pytest.param(
            BINANCE, binance(0, "1.5"), "id '1.5' is not a whole number", id="id-with-a-point"
        ),
        pytest.param(
            BINANCE, binance(1, "abc"), "price 'abc' is not a plain number", id="price-in-letters"
        ),
        pytest.param(BINANCE, binance(1, ""), "price '' is empty", id="price-empty"),
        pytest.param(
            BINANCE,
            binance(1, "0.123456789"),
            "price '0.123456789' has more than 8 decimals",
            id="price-too-exact",
        ),
        pytest.param(
            BINANCE,
            binance(1, "12345678901"),
            "price '12345678901' has more than 10 digits before the point",
            id="price-too-high",
        ),
        pytest.param(BINANCE, binance(2, "-0.5"), "qty '-0.5' is negative", id="quantity-negative"),
        pytest.param(
            BINANCE,
            binance(4, "yesterday"),
            "time 'yesterday' is not a whole number",
            id="time-in-letters",
        ),
        pytest.param(
            BINANCE,
            binance(4, "-11676096000000"),
            "time '-11676096000000' is not a whole number",
            id="time-negative",
        ),
        pytest.param(
            BINANCE,
            binance(4, "253402300800000"),
            f"time '253402300800000' is out of the years {YEARS}",
            id="time-too-late",
        ),
        pytest.param(BINANCE, binance(1, "1\0"), "holds a NUL byte", id="nul-byte"),
        pytest.param(BINANCE, binance(1, "\udcff"), "is not UTF-8 at byte 12", id="not-utf8"),
        pytest.param(
            BINANCE, binance(1, '"1'), "is not CSV: a quote is not closed", id="quote-not-closed"
        ),
        pytest.param(
            BINANCE, binance(1, '"1"x'), "price '1x' is not a plain number", id="quote-closed-early"
        ),
        pytest.param(
            ASX,
            asx("02/30/2014", "10:00:00.000"),
            "date and time '02/30/2014 10:00:00.000': is not a date or time like %m/%d/%Y",
            id="asx-no-such-date",
        ),
        pytest.param(
            ASX,
            asx("03/10/1600", "10:00:00.000"),
            "date and time '03/10/1600 10:00:00.000': is out of the years 1970 to 9999",
            id="asx-too-early",
        ),
        pytest.param(
            ASX,
            asx("10/05/2014", "02:30:00.000"),
            "date and time '10/05/2014 02:30:00.000': does not exist in Australia/Sydney: "
            "clocks went forward",
            id="asx-hour-skipped-by-the-clock",
        ),
        pytest.param(
            GENERIC,
            "1600-01-01,1,2",
            f"timestamp '1600-01-01' is out of the years {YEARS}",
            id="generic-too-early",
        ),
        pytest.param(
            GENERIC,
            "2024-02-30,1,2",
            "timestamp '2024-02-30' is not a time like 2024-08-08T23:55:48.056",
            id="generic-no-such-date",
        ),
    ],
)
def test_bad_line_in_the_middle_is_told_and_the_file_left_out(
    k2: K2, tmp_path: Path, options: tuple[str, ...], bad: str, reason: str
) -> None:
    good = {BINANCE: LINE, ASX: ASX_LINE, GENERIC: "1723161348055,1,2"}[options]
    header = "timestamp,price,quantity\n" if options is GENERIC else ""
    line = 4 if header else 3
    path = tmp_path / (NAME if options is BINANCE else "7078.csv")
    text = f"{header}{good}\n{good}\n{bad}\n{good}\n"
    path.write_bytes(text.encode(errors="surrogateescape"))
    result = k2("load", "csv", path, *options, code=6)
    told, hint, summary, end = result.stderr.splitlines()
    first = f"first: line {line}: {reason}"
    assert told == f"error: {path}: 1 line rejected (limit 0); {first}"
    log = tmp_path / "home" / "rejects" / "load-csv.ndjson"
    assert hint == f"hint: see {log}, or increase --max-rejects"
    assert summary.startswith("summary files=1 loaded=0 skipped=0 failed=1 rows=0")
    assert end == "error: 1 of 1 files not loaded"
    assert rejects_in(tmp_path / "home") == [(line, reason)]
    result = k2("load", "csv", path, *options, "--max-rejects", "1")
    rows = 1 if options is BINANCE else 3  # its good lines have the same id
    said = f"rows={rows} duplicates={3 - rows} conflicts=0 rejects=1"
    assert f"loaded=1 skipped=0 failed=0 {said}" in result.stderr


def test_line_feed_in_quotes_makes_two_rejects(
    k2: K2, home: Path, tmp_path: Path, settings: Settings
) -> None:
    path = tmp_path / "x.csv"
    good = '2024-08-08,1,2,"a, ""b"""\n'
    path.write_text(f'timestamp,price,quantity,note\n{good}2024-08-08,1,2,"a\nb"\n{good}')
    k2("load", "csv", path, *GENERIC, "--max-rejects", 2)
    assert rejects_in(home) == [
        (3, "is not CSV: a quote is not closed"),
        (4, "has 1 columns, not 4 (delimiter ',')"),
    ]
    assert rows_in(settings) == 2


def test_last_moment_of_the_year_9999_is_stored(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / NAME
    path.write_text("timestamp,price,quantity\n9999-12-31T23:59:59.999Z,1,2\n")
    k2("load", "csv", path, *GENERIC, "--any-time")
    answer = k2("query", "trades", "--columns", "timestamp", "--format", "csv")
    assert answer.stdout == "timestamp\n9999-12-31T23:59:59.999000Z\n"


def test_local_time_that_comes_twice_is_the_first_one(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / "7078.csv"
    path.write_text(f"{asx('04/06/2014', '02:30:00.000')}\n")
    k2("load", "csv", path, *ASX)
    answer = k2("query", "trades", "--columns", "timestamp", "--format", "csv")
    assert answer.stdout == "timestamp\n2014-04-05T15:30:00.000000Z\n"


@pytest.mark.parametrize(
    ("suffix", "data", "said"),
    [
        pytest.param(
            ".gz",
            gzip.compress(os.urandom(9_000))[:5_000],
            "cannot be read to its end",
            id="gzip-cut-off",
        ),
        pytest.param(
            ".gz",
            gzip.compress(f"{LINE}\n".encode() * 9)[:-6],
            "cannot be read to its end",
            id="gzip-without-its-end",
        ),
        pytest.param(
            ".gz", f"{LINE}\n".encode(), "cannot be read to its end", id="gzip-of-plain-text"
        ),
        pytest.param(".gz", b"", "is empty, not a gzip file", id="gzip-empty"),
        pytest.param(".zip", zipped("a.csv", "b.csv"), "holds 2 files", id="zip-of-two-files"),
        pytest.param(
            ".zip",
            zipped("../a.csv"),
            "holds a file with the unsafe name '../a.csv'",
            id="zip-of-an-unsafe-name",
        ),
        pytest.param(".zip", zipped("a.csv")[:40], "is not a zip archive", id="zip-cut-off"),
    ],
)
def test_damaged_archive_is_left_out_and_the_next_file_loaded(
    k2: K2, tmp_path: Path, suffix: str, data: bytes, said: str
) -> None:
    bad, good = tmp_path / f"{NAME}{suffix}", tmp_path / NAME.replace("BTC", "ETH")
    bad.write_bytes(data)
    good.write_text(f"{LINE}\n")
    result = k2("load", "csv", bad, good, *BINANCE, code=6)
    assert result.stderr.startswith(f"error: {bad} {said}")
    assert "files=2 loaded=1 skipped=0 failed=1 rows=1" in result.stderr


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("no.csv", BINANCE, (4, "error: {path} does not exist\n")),
        (
            "",
            BINANCE,
            (4, "error: {path} matches no file\nhint: files in a folder must end in .csv"),
        ),
        ("*.csv", BINANCE, (4, "error: {path} matches no file\n")),
        ("x.csv/no.csv", BINANCE, (4, "error: {path} does not exist\n")),
        ("FOOBARX-trades-2024-08-08.csv", BINANCE, (2, "error: cannot infer the quote asset")),
        ("7078.csv", ASX[:2], (2, "error: no symbol given\nhint: use --symbol")),
        ("x.txt", (*GENERIC, "--timezone", "Mars/Olympus"), (2, "error: unknown time zone")),
        ("x.txt", GENERIC, (6, "error: {path}: the header names 'True' twice (delimiter ',')\n")),
        ("h.txt", GENERIC, (6, "error: {path}: no column for timestamp in the header 'Px,Qty")),
    ],
)
def test_what_cannot_be_begun_says_why(
    k2: K2, tmp_path: Path, name: str, options: tuple[str, ...], said: tuple[int, str]
) -> None:
    path = tmp_path / "in" / name
    (tmp_path / "in").mkdir()
    if name and not re.search(r"\*|/|no", name):
        path.write_text("Px,Qty,When\n" if name == "h.txt" else f"{LINE}\n")
    code, text = said
    result = k2("load", "csv", path, *options, code=code)
    assert result.stderr.startswith(text.format(path=path))


def test_company_that_the_reference_does_not_know(k2: K2, tmp_path: Path) -> None:
    reference, path = tmp_path / "company_info.csv", tmp_path / "7078.csv"
    reference.write_text("company_id,symbol\n1,ONE\n")
    path.write_text(f"{ASX_LINE}\n")
    options = ("--layout", "asx-trades", "--reference", reference)
    result = k2("load", "csv", path, *options, code=2)
    assert result.stderr.startswith(f"error: {reference} has no symbol for 7078\nhint: use")


def test_layout_file_with_an_unknown_key(k2: K2, tmp_path: Path) -> None:
    layout = tmp_path / "my.toml"
    text = k2("load", "layouts", "binance-trades").stdout
    layout.write_text(text.replace("header =", "headers ="))
    result = k2("load", "csv", "x.csv", "--layout", layout, code=3)
    assert result.stderr == (
        f"error: unknown key headers in {layout}\nhint: did you mean header?\n"
    )


@pytest.mark.parametrize(
    ("closed", "named", "source"),
    [
        (f"in/{NAME}", f"in/{NAME}", f"in/{NAME}"),
        ("in", f"in/{NAME}", f"in/{NAME}"),
        ("in", "in", "."),
    ],
)
def test_no_permission_is_told(
    tmp_path: Path, k2_env: dict[str, str], closed: str, named: str, source: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / NAME).write_text(f"{LINE}\n")
    command = [sys.executable, "-m", "k2cli", "load", "csv", str(tmp_path / source), *BINANCE]
    if os.geteuid() == 0:  # root reads what it likes, but for these capabilities
        if not shutil.which("setpriv"):
            pytest.skip("root, and no setpriv")
        command = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", *command]
    (tmp_path / closed).chmod(0)
    done = subprocess.run(command, env=k2_env, capture_output=True, text=True, check=False)
    (tmp_path / closed).chmod(0o755)
    said = f"error: {tmp_path / named} cannot be read: Permission denied\n"
    assert (done.returncode, done.stderr) == (3, said)
