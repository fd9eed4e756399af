"""Files of every kind, good and bad: each line is one row or one reject."""

import gzip
import hashlib
import io
import os
import uuid
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, UsageError
from k2cli.ingestion.csv import blocks as blocks_module
from k2cli.ingestion.csv import source as source_module
from k2cli.ingestion.csv.layout import Layout, load_layout, parse_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.ingestion.symbols import Market
from k2cli.rejects import Reject

LINE = "3735685016,61800.12000000,0.00010000,6.18001200,1723161348055,True,True"
TIME = 1723161348055
NAME = "BTCUSDT-trades-2026-01-12.csv"
ASX_LINE = "03/10/2014,13:50:38.849,1.11,3667,0,,"
GENERIC = CsvOptions(symbol="ABC", exchange="X", asset_class="equities", currency="EUR")
Row = dict[str, Any]


@dataclass(frozen=True)
class Loaded:
    """What came out of a file."""

    rows: list[Row]
    rejects: list[Reject]
    messages: int
    digest: str


def load(path: Path | io.BytesIO, layout: str | Layout, options: CsvOptions) -> Loaded:
    chosen = load_layout(layout) if isinstance(layout, str) else layout
    source = read_csv(path, chosen, options)
    rows: list[Row] = []
    rejects: list[Reject] = []
    messages = 0
    for batch in source:
        rejects += batch.rejects
        messages += batch.messages
        for _, found in batch.rows:
            found.validate(full=True)
            rows += found.to_pylist()
    return Loaded(rows, rejects, messages, source.hash())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def binance(folder: Path, data: bytes | str, name: str = NAME, **options: Any) -> Loaded:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return load(path, "binance-trades", CsvOptions(**options))


def asx(folder: Path, data: str, kind: str = "trades", **options: Any) -> Loaded:
    path = folder / "7078.csv"
    path.write_text(data)
    return load(path, f"asx-{kind}", CsvOptions(symbol="BHP", **options))


def generic(folder: Path, data: str, **options: Any) -> Loaded:
    path = folder / "any.csv"
    path.write_text(data)
    given = {"symbol": "ABC", "exchange": "X", "asset_class": "equities", "currency": "EUR"}
    return load(path, "generic-trades", CsvOptions(**(given | options)))


def changed(place: int, text: str) -> str:
    cells = LINE.split(",")
    cells[place] = text
    return ",".join(cells)


# --- files


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst", ".zip"])
def test_compressed_files_hold_the_same_rows(folder: Path, suffix: str) -> None:
    data = f"{LINE}\n".encode()
    match suffix:
        case ".gz":
            data = gzip.compress(data)
        case ".zst":
            data = pa.compress(data, codec="zstd", asbytes=True)
        case ".zip":
            data = zipped({NAME: data})
        case _:
            assert suffix == ""
    loaded = binance(folder, data, NAME + suffix)
    assert [row["trade_id"] for row in loaded.rows] == ["BINANCE-3735685016"]
    assert loaded.digest == hashlib.sha256(data).hexdigest()
    streamed = load(io.BytesIO(data), "binance-trades", CsvOptions(symbol="BTCUSDT"))
    assert (streamed.rows[0]["message_id"], streamed.digest) == (
        loaded.rows[0]["message_id"],
        loaded.digest,
    )


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_a_gzip_of_several_members_is_read_whole(folder: Path) -> None:
    data = gzip.compress(f"{LINE}\n".encode()) + gzip.compress(f"{LINE}\n".encode())
    assert len(binance(folder, data, f"{NAME}.gz").rows) == 2


@pytest.mark.parametrize(
    ("suffix", "data", "message"),
    [
        pytest.param(
            ".gz",
            gzip.compress(os.urandom(9000))[:5000],
            "cannot be read to its end",
            id="gzip-cut-off",
        ),
        pytest.param(
            ".gz",
            gzip.compress(LINE.encode())[:-6],
            "cannot be read to its end",
            id="gzip-without-its-end",
        ),
        pytest.param(".gz", b"plain text", "cannot be read to its end", id="gzip-of-plain-text"),
        pytest.param(".gz", b"", "is empty, not a gzip file", id="gzip-empty"),
        pytest.param(".zst", b"plain text", "cannot be read to its end", id="zstd-of-plain-text"),
        pytest.param(
            ".zst",
            pa.compress(os.urandom(9000), codec="zstd", asbytes=True)[:5000],
            "to its end",
            id="zstd-cut-off",
        ),
        pytest.param(".zip", b"plain text", "is not a zip archive", id="zip-of-plain-text"),
        pytest.param(
            ".zip", zipped({NAME: LINE.encode()})[:50], "is not a zip archive", id="zip-cut-off"
        ),
        pytest.param(
            ".zip", zipped({"a.csv": b"", "b.csv": b""}), "holds 2 files", id="zip-of-two-files"
        ),
        pytest.param(".zip", zipped({}), "holds 0 files", id="zip-of-no-file"),
        pytest.param(
            ".zip", zipped({"../a.csv": b""}), "unsafe name", id="zip-of-a-name-with-dots"
        ),
        pytest.param(".zip", zipped({"/a.csv": b""}), "unsafe name", id="zip-of-an-absolute-name"),
        pytest.param(
            ".zip",
            zipped({"x\\..\\a.csv": b""}),
            "unsafe name",
            id="zip-of-a-name-with-backslashes",
        ),
    ],
)
def test_broken_archives_are_bad_data(folder: Path, suffix: str, data: bytes, message: str) -> None:
    with pytest.raises(BadData, match=message):
        binance(folder, data, NAME + suffix)


def test_a_zip_whose_checksum_is_wrong_is_bad_data(folder: Path) -> None:
    data = bytearray(zipped({NAME: f"{LINE}\n".encode()}))
    data[14] ^= 1  # of the member's CRC, in both headers
    data[data.index(b"PK\x01\x02") + 16] ^= 1
    with pytest.raises(BadData, match="cannot be read to its end"):
        binance(folder, bytes(data), f"{NAME}.zip")


def test_missing_forbidden_and_folder(folder: Path) -> None:
    with pytest.raises(NotFound, match=r"no\.csv does not exist"):
        load(folder / "no.csv", "binance-trades", CsvOptions())
    with pytest.raises(UsageError, match="is a directory"):
        load(folder, "binance-trades", CsvOptions())
    path = folder / NAME
    path.touch(mode=0)
    if not os.access(path, os.R_OK):
        with pytest.raises(ConfigError, match="cannot be read: Permission denied"):
            load(path, "binance-trades", CsvOptions())


@pytest.mark.parametrize(
    "data",
    [b"", b"\xef\xbb\xbf", b"\n", b"\r\n\n"],
    ids=["empty", "bom", "newline", "two-line-ends"],
)
def test_an_empty_file_is_bad_data(folder: Path, data: bytes) -> None:
    path = folder / NAME
    path.write_bytes(data)
    source = read_csv(path, load_layout("binance-trades"), CsvOptions())
    with pytest.raises(BadData, match="is empty: it has neither a header nor rows"):
        source.identity()


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["no-line-end", "newline", "crlf"])
def test_a_header_alone_has_no_rows(folder: Path, end: str) -> None:
    header = f"id,price,qty,quoteQty,time,isBuyerMaker,isBestMatch{end}"
    loaded = binance(folder, header)
    assert (loaded.rows, loaded.rejects, loaded.messages) == ([], [], 0)


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["newline", "crlf"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["no-bom", "bom"])
@pytest.mark.parametrize(
    "header",
    ["", "id,price,qty,quote_qty,time,is_buyer_maker,isBestMatch"],
    ids=["no-header", "header"],
)
def test_bom_newlines_and_header(folder: Path, bom: bytes, newline: str, header: str) -> None:
    lines = [*([header] if header else []), LINE, changed(0, "x"), "", LINE]
    loaded = binance(folder, bom + newline.join(lines).encode())
    assert [row["source_sequence"] for row in loaded.rows] == [3735685016] * 2
    assert loaded.rows[0]["vendor_data"] == [
        ("is_buyer_maker", "true"),
        ("trade_time", "1723161348055"),
        ("quote_quantity", "6.18001200"),
        ("is_best_match", "true"),
        ("base_asset", "BTC"),
        ("quote_asset", "USDT"),
    ]
    (reject,) = loaded.rejects
    assert reject.position == (3 if header else 2)
    assert reject.raw == changed(0, "x").encode()
    assert loaded.messages == 3


def grow(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"{LINE}\n")


def rewrite(path: Path) -> None:
    with path.open("r+") as file:
        file.write("9")
    os.utime(path, ns=(0, 0))  # the clock of a file system may be too coarse to tell


def shorten(path: Path) -> None:
    os.truncate(path, 7)


@pytest.mark.parametrize("change", [grow, rewrite, shorten])
def test_a_file_that_changes_while_it_is_read_is_bad_data(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", len(LINE) + 1)
    path = folder / NAME
    path.write_text(f"{LINE}\n" * 2)
    batches = read_csv(path, load_layout("binance-trades"), CsvOptions()).batches()
    next(batches)
    change(path)
    with pytest.raises(BadData, match=f"{path} changed while it was read"):
        list(batches)


def test_blocks_cut_the_file_at_line_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = "".join(f"{changed(0, 'x' if n % 10 == 7 else str(n))}\n" for n in range(1000))
    whole = binance(folder, data)
    monkeypatch.setattr(source_module, "BLOCK_BYTES", 97)
    parts = binance(folder, data)
    key = ("trade_id", "message_id", "timestamp", "vendor_data")
    assert [[r[k] for k in key] for r in whole.rows] == [[r[k] for k in key] for r in parts.rows]
    assert len(whole.rows) == 900
    assert [r.position for r in parts.rejects] == [r.position for r in whole.rejects]
    assert [r.position for r in whole.rejects] == list(range(8, 1001, 10))


def test_a_line_without_end_is_bad_data(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks_module, "LONGEST_LINE", 1000)
    for data in ("1" * 2000, f"{LINE}\n" + "1" * 2000, f"{LINE}\n" + "1" * 1001 + f"\n{LINE}\n"):
        with pytest.raises(BadData, match="has a line of more than"):
            binance(folder, data)
    assert len(binance(folder, f"{LINE}\n" * 100).rows) == 100


# --- lines


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        pytest.param(changed(0, ""), "id '' is empty", id="id-empty"),
        pytest.param(changed(0, "x1"), "id 'x1' is not a whole number", id="id-in-letters"),
        pytest.param(changed(0, "-1"), "id '-1' is not a whole number", id="id-negative"),
        pytest.param(
            changed(0, "9" * 19), f"id '{'9' * 19}' has more than 18 digits", id="id-too-long"
        ),
        pytest.param(changed(1, ""), "price '' is empty", id="price-empty"),
        pytest.param(changed(1, "abc"), "price 'abc' is not a plain number", id="price-in-letters"),
        pytest.param(
            changed(1, "1e100"), "price '1e100' is not a plain number", id="price-beyond-exponents"
        ),
        pytest.param(
            changed(1, "1e"), "price '1e' is not a plain number", id="price-half-an-exponent"
        ),
        pytest.param(
            changed(2, "1e-9"),
            "qty '1e-9' has more than 8 decimals",
            id="exponent-too-low",
        ),
        pytest.param(
            changed(1, "NaN"), "price 'NaN' is not a plain number", id="price-not-a-number"
        ),
        pytest.param(changed(1, "."), "price '.' is not a plain number", id="price-a-point-alone"),
        pytest.param(
            changed(1, "1.2.3"), "price '1.2.3' is not a plain number", id="price-two-points"
        ),
        pytest.param(changed(1, "1 1"), "price '1 1' is not a plain number", id="space-within"),
        pytest.param(changed(1, "-1.5"), "price '-1.5' is negative", id="price-negative"),
        pytest.param(
            changed(2, "0.123456789"),
            "qty '0.123456789' has more than 8 decimals",
            id="quantity-too-exact",
        ),
        pytest.param(
            changed(1, "12345678901"),
            "price '12345678901' has more than 10 digits before the point",
            id="price-too-high",
        ),
        pytest.param(
            changed(2, "1" * 13),
            f"qty '{'1' * 13}' has more than 12 digits before the point",
            id="quantity-too-high",
        ),
        pytest.param(
            changed(2, "0" * 39),
            f"qty '{'0' * 39}' has too many digits",
            id="quantity-too-many-digits",
        ),
        pytest.param(changed(4, ""), "time '' is empty", id="time-empty"),
        pytest.param(changed(4, "soon"), "time 'soon' is not a whole number", id="time-in-letters"),
        pytest.param(
            changed(4, "9" * 17),
            f"time '{'9' * 17}' is out of the years 1990 to 2",
            id="time-too-late",
        ),
        pytest.param(
            changed(5, "maybe"),
            "is_buyer_maker 'maybe' is not one of true, false",
            id="maker-not-a-boolean",
        ),
        pytest.param(LINE + ",1", "has 8 columns, not 7", id="column-too-many"),
        pytest.param("1,2", "has 2 columns, not 7", id="columns-too-few"),
        pytest.param(" ", "has 1 columns, not 7", id="space-alone"),
        pytest.param(changed(1, "1\0"), "holds a NUL byte", id="nul-byte"),
        pytest.param(changed(1, '"1'), "is not CSV: a quote is not closed", id="quote-not-closed"),
        pytest.param(changed(1, "1\r2"), "holds a carriage return", id="carriage-return"),
    ],
)
def test_a_bad_line_is_a_reject_that_says_why(folder: Path, line: str, reason: str) -> None:
    before_us = datetime.now(UTC).timestamp() * 1_000_000
    loaded = binance(folder, f"{LINE}\n{line}\n{LINE}\n")
    assert len(loaded.rows) == 2
    (reject,) = loaded.rejects
    assert (reject.raw, reject.position) == (line.encode(), 2)
    assert reject.reason.startswith(reason)
    after_us = datetime.now(UTC).timestamp() * 1_000_000
    assert before_us - 1 <= reject.received_us <= after_us + 1  # as floats round


def test_bytes_that_are_not_utf_8_are_a_reject(folder: Path) -> None:
    loaded = binance(folder, LINE.encode() + b"\n1,2\xff\n" + LINE.encode())
    assert [(r.raw, r.position, r.reason) for r in loaded.rejects] == [
        (b"1,2\xff", 2, "is not UTF-8 at byte 4")
    ]


def test_a_quoted_value_over_two_lines_is_two_rejects(folder: Path) -> None:
    loaded = binance(folder, f'{LINE}\n{changed(1, chr(34) + "1")}\n2"{LINE[30:]}\n{LINE}\n')
    assert [reject.position for reject in loaded.rejects] == [2, 3]
    assert len(loaded.rows) == 2


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["no-line-end", "newline", "crlf"])
def test_a_quote_that_is_open_at_the_end_of_the_file_is_a_reject(folder: Path, end: str) -> None:
    lines = ["timestamp,price,quantity,note", '2024-08-08,1,2,x"y', f'2024-08-08,1,2,"open{end}']
    loaded = generic(folder, "\n".join(lines))
    assert [row["vendor_data"] for row in loaded.rows] == [[("note", 'x"y')]]
    assert [(r.position, r.reason) for r in loaded.rejects] == [
        (3, "is not CSV: a quote is not closed")
    ]


def test_a_carriage_return_does_not_make_up_for_a_quoted_line_feed(folder: Path) -> None:
    lines = ["timestamp,price,quantity", '2024-08-08,1,"2', '"', "2024-08-08,1,2\r2024-08-08,1,2"]
    loaded = generic(folder, "\n".join(lines))
    assert (loaded.rows, [r.position for r in loaded.rejects]) == ([], [2, 3, 4])


def test_quotes_around_values_and_within_them(folder: Path) -> None:
    text = 'timestamp,price,quantity,"a ""note"""\n"2024-08-08","1","2","x, ""y"""\n'
    (row,) = generic(folder, text).rows
    assert row["vendor_data"] == [('a "note"', 'x, "y"')]


def test_a_file_of_bad_lines_alone(folder: Path) -> None:
    loaded = binance(folder, "".join(f"{changed(1, 'x')}\n" for _ in range(500)))
    assert loaded.rows == []
    assert [reject.position for reject in loaded.rejects] == list(range(1, 501))


def test_numbers_that_are_unusual_but_right(folder: Path) -> None:
    line = "007,5.,.5,0,1736000000000001,FALSE,"
    (row,) = binance(folder, line).rows
    assert (row["trade_id"], row["price"], row["quantity"]) == (
        "BINANCE-7",
        Decimal(5),
        Decimal("0.5"),
    )
    assert row["timestamp"] == datetime(2025, 1, 4, 14, 13, 20, 1, tzinfo=UTC)
    assert row["side"] == "BUY"
    assert "is_best_match" not in dict(row["vendor_data"])


def test_milliseconds_and_microseconds_in_one_file(folder: Path) -> None:
    both = f"{changed(4, '1735689599999')}\n{changed(4, '1735689600000001')}\n"
    first, second = (row["timestamp"] for row in binance(folder, both).rows)
    assert (first, second) == (
        datetime(2024, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(2025, 1, 1, 0, 0, 0, 1, tzinfo=UTC),
    )


# --- symbol, market, currency


@pytest.mark.parametrize(
    ("name", "options", "symbol", "exchange"),
    [
        ("BTCUSDT-trades-2026-01-12.csv", {}, "BTCUSDT", "BINANCE"),
        ("ETHBTC-trades-2026-01.csv", {}, "ETHBTC", "BINANCE"),
        ("usdm-ETHUSDT-trades-2024-07-18.csv", {}, "ETHUSDT", "BINANCE_USDM"),
        ("coinm-ETHUSD_PERP-trades-2024-08-08.csv", {}, "ETHUSD_PERP", "BINANCE_COINM"),
        ("x.csv", {"symbol": "btc/usdt", "market": Market.US}, "BTCUSDT", "BINANCE_US"),
        (NAME, {"symbol": "ETHUSDT"}, "ETHUSDT", "BINANCE"),
    ],
)
def test_file_name_and_options_say_symbol_and_market(
    folder: Path, name: str, options: dict[str, Any], symbol: str, exchange: str
) -> None:
    line = LINE.rpartition(",")[0] if name.startswith(("usdm", "coinm")) else LINE
    (row,) = binance(folder, line, name, **options).rows
    assert (row["symbol"], row["exchange"]) == (symbol, exchange)
    assert row["currency"] == dict(row["vendor_data"])["quote_asset"]


@pytest.mark.parametrize(
    ("name", "options", "error", "hint"),
    [
        ("x.csv", {}, UsageError, "--symbol"),
        ("FOOBARX-trades-2026-01-12.csv", {}, UsageError, "FOO/BAR"),
        (NAME, {"symbol": "??"}, UsageError, "BTCUSDT"),
        (NAME, {"symbol": " "}, UsageError, ""),
        (NAME, {"asset_class": "bonds"}, UsageError, "equities, crypto"),
        (NAME, {"timezone": "Mars/Olympus"}, UsageError, "Australia/Sydney"),
        ("7.csv", {"reference": Path("/no/such.csv")}, NotFound, ""),
    ],
)
def test_what_nothing_tells_must_be_given(
    folder: Path, name: str, options: dict[str, Any], error: type[K2Error], hint: str
) -> None:
    with pytest.raises(error) as caught:
        binance(folder, LINE, name, **options)
    assert hint in str(caught.value.hint)


def test_the_reference_knows_the_symbol_with_or_without_zeros(folder: Path) -> None:
    reference = folder / "company_info.csv"
    reference.write_text("company_id,symbol\r\n3153,MWR\r\n9,OLD\r\n09,NEW\r\n")
    path = folder / "03153.csv"
    path.write_text(f"{ASX_LINE}\n")
    (row,) = load(path, "asx-trades", CsvOptions(reference=reference)).rows
    assert (row["symbol"], dict(row["vendor_data"])["company_id"]) == ("MWR", "03153")
    for stem, message in (("9", "several symbols"), ("77", "has no symbol for 77")):
        with pytest.raises(UsageError, match=message):
            load(path.rename(folder / f"{stem}.csv"), "asx-trades", CsvOptions(reference=reference))
        path = folder / f"{stem}.csv"
    reference.write_text("a,b\n1,2\n")
    with pytest.raises(BadData, match="lacks the columns company_id and symbol"):
        load(path, "asx-trades", CsvOptions(reference=reference))


def test_generic_files_need_what_no_column_says(folder: Path) -> None:
    path = folder / "any.csv"
    path.write_text("timestamp,price,quantity\n2024-08-08,1,2\n")
    given: dict[str, Any] = {}
    steps = {"symbol": "A", "exchange": "X", "asset_class": "crypto", "currency": "EUR"}
    for name, value in steps.items():
        with pytest.raises(UsageError) as caught:
            load(path, "generic-trades", CsvOptions(**given))
        assert f"--{name.replace('_', '-')}" in str(caught.value.hint)
        given[name] = value
    assert len(load(path, "generic-trades", CsvOptions(**given)).rows) == 1


# --- ASX times


@pytest.mark.parametrize(
    ("date", "time", "utc"),
    [
        ("03/10/2014", "13:50:38.849", datetime(2014, 3, 10, 2, 50, 38, 849_000, tzinfo=UTC)),
        ("07/01/2014", "13:50:38", datetime(2014, 7, 1, 3, 50, 38, tzinfo=UTC)),
        ("04/06/2014", "02:30:00.000", datetime(2014, 4, 5, 15, 30, tzinfo=UTC)),  # comes twice
        ("04/06/2014", "03:30:00.000", datetime(2014, 4, 5, 17, 30, tzinfo=UTC)),
    ],
)
def test_local_times_of_sydney(folder: Path, date: str, time: str, utc: datetime) -> None:
    (row,) = asx(folder, f"{date},{time},1,2,0,,\r\n").rows
    assert row["timestamp"] == utc


def test_the_time_zone_of_the_layout_can_be_replaced(folder: Path) -> None:
    (row,) = asx(folder, ASX_LINE, timezone="UTC").rows
    assert row["timestamp"] == datetime(2014, 3, 10, 13, 50, 38, 849_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("date", "time", "reason"),
    [
        ("10/05/2014", "02:30:00.000", "does not exist in Australia/Sydney"),
        ("02/30/2014", "10:00:00.000", "is not a date or time like %m/%d/%Y"),
        ("2014-03-10", "10:00:00.000", "is not a date or time like %m/%d/%Y"),
        ("03/10/2014", "25:00:00.000", "is not a date or time like %H:%M:%S.%f"),
        ("03/10/2014", "10:00", "is not a date or time like"),
        ("03/10/2014", "", "is not a date or time like"),
        ("03/10/0014", "10:00:00.000", "is out of the years 1970 to 9999"),
        ("01/01/1970", "10:59:59.999", "is out of the years 1990 to"),
    ],
)
def test_bad_local_times_are_rejects(folder: Path, date: str, time: str, reason: str) -> None:
    loaded = asx(folder, f"{ASX_LINE}\r\n{date},{time},1,2,0,,\r\n{ASX_LINE}\r\n")
    assert [row["trade_id"] for row in loaded.rows] == [
        "ASX-1394419838849-1",
        "ASX-1394419838849-3",
    ]
    (reject,) = loaded.rejects
    assert f"{date} {time}" in reject.reason
    assert reason in reject.reason


def test_quotes_are_kept_as_they_are(folder: Path) -> None:
    (row,) = asx(folder, "03/10/2014,07:00:13.948,37.73,0.0,19,0\r\n", "quotes").rows
    assert (row["bid_price"], row["ask_price"], row["ask_quantity"]) == (Decimal("37.73"), 0, 0)


# --- generic files


def test_a_generic_file_with_all_columns(folder: Path) -> None:
    path = folder / "any.csv"
    path.write_text(
        "Time,Px,Size,Side,Symbol,Exchange,Asset Class,Currency,id,sequence,note\n"
        "2024-08-08T10:00:00+02:00,1.5,2,Sell,AAA,E1,equities,USD,7,,hello\n"
        "1723104000,1.5,2,b,BBB,E2,options,EUR,7,12,\n"
        "1723104000123,1.5,2,,AAA,E2,crypto,EUR,8,13,x\n"
    )
    layout = load_layout("generic-trades").mapped({"price": "Px"})
    first, second, third = load(path, layout, CsvOptions()).rows
    assert first["timestamp"] == datetime(2024, 8, 8, 8, tzinfo=UTC)
    assert second["timestamp"] == datetime(2024, 8, 8, 8, tzinfo=UTC)
    assert third["timestamp"] == datetime(2024, 8, 8, 8, 0, 0, 123_000, tzinfo=UTC)
    assert [row["side"] for row in (first, second, third)] == ["SELL", "BUY", "UNKNOWN"]
    assert [row["trade_id"] for row in (first, second, third)] == ["E1-7", "E2-7", "E2-8"]
    assert [row["source_sequence"] for row in (first, second, third)] == [None, 12, 13]
    assert [row["vendor_data"] for row in (first, second)] == [[("note", "hello")], []]
    assert len({row["message_id"] for row in (first, second, third)}) == 3


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("2024-13-01", "is not a time like"),
        ("", "is not a time like"),
        ("1969-12-31", "is out of the years 1990 to"),
        ("17231040001234567890", "has more than 19 digits"),
        ("9999999999999999999", "is not a number of 64 bits"),
        ("20240230000000123", "is not a time like"),
        ("1723104000.1.2", "is not a time like"),
        ("2024-08-08T10:00:00.1234567890", "is not a time like"),
    ],
)
def test_bad_generic_times(folder: Path, cell: str, reason: str) -> None:
    loaded = generic(folder, f"timestamp,price,quantity\n{cell},1,2\n2024-08-08 10:00,1,2\n")
    assert len(loaded.rows) == 1
    (reject,) = loaded.rejects
    assert reject.position == 2
    assert reject.reason.startswith(f"timestamp {cell!r} {reason}")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("timestamp,price", "no column for quantity in the header 'timestamp,price'"),
        ("price,quantity", "no column for timestamp"),
        ("2024-08-08,1,2", "no column for price"),
        ("timestamp,price,quantity,price", "names 'price' twice"),
        ('timestamp,"price', "the header is not CSV: a quote is not closed"),
    ],
)
def test_a_header_that_does_not_fit_is_bad_data(folder: Path, header: str, message: str) -> None:
    with pytest.raises(BadData, match=message):
        generic(folder, f"{header}\n2024-08-08,1,2\n")


def test_names_in_columns_must_be_names(folder: Path) -> None:
    path = folder / "any.csv"
    rows = ["AAA,1", ",2", "A\tA,3", f"{'A' * 65},4", "AAA,5"]
    path.write_text(
        "symbol,price,quantity,timestamp\n" + "".join(f"{r},1,2024-08-08\n" for r in rows)
    )
    options = CsvOptions(exchange="X", asset_class="equities", currency="EUR")
    loaded = load(path, "generic-trades", options)
    assert [row["price"] for row in loaded.rows] == [1, 5]
    reasons = [reject.reason.partition(" is ")[2] for reject in loaded.rejects]
    assert reasons == ["empty", "not a name", "longer than 64 characters"]


def test_a_symbol_column_of_a_binance_layout(folder: Path) -> None:
    text = """
        kind = "trades"
        header = "none"
        columns = ["s", "id", "p", "q", "t"]
        market = true
        fields = { symbol = "s", id = "id", price = "p", quantity = "q", timestamp = "t" }
        time = { how = "epoch" }
    """
    path = folder / "any.csv"
    path.write_text("".join(f"{line},1,1,{TIME}\n" for line in ("ethbtc,1", "WHAT,2", "BNBEUR,3")))
    loaded = load(path, parse_layout(text, origin="text"), CsvOptions())
    assert [(row["symbol"], row["currency"], row["side"]) for row in loaded.rows] == [
        ("ETHBTC", "BTC", "UNKNOWN"),
        ("BNBEUR", "EUR", "UNKNOWN"),
    ]
    (reject,) = loaded.rejects
    assert reject.reason.startswith("s 'WHAT' is unknown: cannot infer the quote asset")


def test_rows_without_ids_differ_by_file_and_line(folder: Path) -> None:
    text = "timestamp,price,quantity\n2024-08-08,1,2\n2024-08-08,1,2\n"
    first, again = generic(folder, text), generic(folder, text)
    other = generic(folder, f"{text}2024-08-08,1,2\n")
    ids = [[row["message_id"] for row in loaded.rows] for loaded in (first, again, other)]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 5
    assert [row["trade_id"] for row in first.rows] == ["X-1723075200000-1", "X-1723075200000-2"]


def test_a_time_in_one_column_with_a_format_of_its_own(folder: Path) -> None:
    text = """
        kind = "quotes"
        header = "none"
        columns = ["t", "b", "bq", "a", "aq"]
        time = { how = "format", date_format = "%d.%m.%Y %I:%M %p", zone = "Europe/Berlin" }
        [fields]
        timestamp = "t"
        bid_price = "b"
        bid_quantity = "bq"
        ask_price = "a"
        ask_quantity = "aq"
    """
    path = folder / "any.csv"
    path.write_text("08.08.2024 01:30 PM,1,2,3,4\n08.08.2024 13:30 PM,1,2,3,4\n")
    loaded = load(path, parse_layout(text, origin="text"), GENERIC)
    assert [row["timestamp"] for row in loaded.rows] == [datetime(2024, 8, 8, 11, 30, tzinfo=UTC)]
    assert [row["vendor_data"] for row in loaded.rows] == [None]
    assert [reject.position for reject in loaded.rejects] == [2]


def test_times_with_and_without_an_offset_in_one_file_beside_a_bad_line(folder: Path) -> None:
    times = ["2024-08-08 10:00", "2024-08-08T12:00+02:00", "never", "1723111200"]
    loaded = generic(folder, "timestamp,price,quantity\n" + "".join(f"{t},1,2\n" for t in times))
    assert {row["timestamp"] for row in loaded.rows} == {datetime(2024, 8, 8, 10, tzinfo=UTC)}
    assert [row["trade_id"][-2:] for row in loaded.rows] == ["-1", "-2", "-4"]
    assert [(r.position, r.raw) for r in loaded.rejects] == [(4, b"never,1,2")]


# --- ids


IDS = {
    "7": ("X-7", 7),
    "007": ("X-7", 7),
    "X-8": ("X-8", 8),
    "Y-9": ("X-Y-9", None),
    "A1B2": ("X-A1B2", None),
    "X-A1B3": ("X-A1B3", None),
    "0f8fad5b-d9cb-469f-a165-70867728950e": ("X-0f8fad5b-d9cb-469f-a165-70867728950e", None),
    "-5": ("X--5", None),
    "9" * 19: (f"X-{'9' * 19}", None),
    "": ("X-1723075200000-10", None),
    "é": ("X-é", None),
}


@pytest.mark.parametrize("block_bytes", [8 << 20, 40])
def test_ids_may_be_numbers_or_texts(
    folder: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(source_module, "BLOCK_BYTES", block_bytes)
    lines = "".join(f"{id_},2024-08-08,1,2\n" for id_ in IDS)
    rows = generic(folder, f"trade_id,timestamp,price,quantity\n{lines}").rows
    assert [(row["trade_id"], row["source_sequence"]) for row in rows] == list(IDS.values())
    ids = [row["message_id"] for row in rows]
    assert ids[0] == ids[1]  # one id
    assert len(set(ids)) == len(IDS) - 1
    assert {uuid.UUID(text).version for text in ids} == {8}
    assert ids[4] == "baea52b1-4820-8d2c-a2ca-7e51ca832864"  # for ever


def test_a_text_id_is_the_same_trade_in_every_file_of_its_symbol(folder: Path) -> None:
    text = "id,timestamp,price,quantity\nA1,2024-08-08,1,2\n"
    (one,) = generic(folder, text).rows
    (again, _) = generic(folder, f"{text}A2,2024-08-08,1,2\n").rows
    (other,) = generic(folder, text, symbol="OTHER").rows
    assert one["message_id"] == again["message_id"]
    assert one["message_id"] != other["message_id"]


def test_a_sequence_column_stands_beside_text_ids(folder: Path) -> None:
    text = "id,timestamp,price,quantity,sequence\nA1,2024-08-08,1,2,5\nA2,2024-08-08,1,2,\n"
    assert [row["source_sequence"] for row in generic(folder, text).rows] == [5, None]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        pytest.param(" 7", "id ' 7' is not an id", id="leading-space"),
        pytest.param("a\tb", "id 'a\\tb' is not an id", id="tab"),
        pytest.param("x" * 129, f"id '{'x' * 80}' is longer than 128 characters", id="too-long"),
    ],
)
def test_what_is_no_id_is_a_reject(folder: Path, cell: str, reason: str) -> None:
    loaded = generic(
        folder, f"id,timestamp,price,quantity\n{cell},2024-08-08,1,2\nA,2024-08-08,1,2\n"
    )
    assert [row["trade_id"] for row in loaded.rows] == ["X-A"]
    assert [(r.position, r.reason) for r in loaded.rejects] == [(2, reason)]
