"""Every cause of a reject, with input of its kind from every source that has it."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from k2cli.codec.encode import wire_header
from k2cli.codec.kinds import KindDecoder
from k2cli.codec.upgrade import UPGRADES, V1_DEFAULTS, Origin
from k2cli.columns import Unfit, why_no_decimal
from k2cli.errors import NotFound
from k2cli.ingestion.binance.protocol import FrameParser
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.csv.layout import load_layout, parse_layout
from k2cli.ingestion.csv.parquet import read_parquet
from k2cli.ingestion.csv.rows import _each_that_fails
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.ndjson import read_ndjson
from k2cli.ingestion.symbols import Market
from k2cli.pipelines.conflicts import conflict_rejects
from k2cli.records import QUOTES, TRADES
from k2cli.rejects import MAX_SHOWN, Cause, Fault, Reject
from k2cli.storage.admission import ValueConflict
from k2cli.storage.position import Series
from support.builders import trade_row, trade_v1, trades_batch, written
from support.cluster import unexpected, values_of

Told = tuple[Cause, str, str | None]  # cause, field, value
OF_FILE: Final[dict[str, Any]] = {"exchange": "X", "asset_class": "crypto", "currency": "EUR"}
GOOD: Final = {
    "timestamp": "2024-08-08T10:00:00",
    "symbol": "ABC",
    "price": "1.5",
    "quantity": "2",
    "side": "buy",
    "trade_id": "1",
    "source_sequence": "1",
}


def names(cases: Sequence[tuple[Any, ...]]) -> list[str]:
    """Name each case by the cause and the field that it expects; pytest numbers equal ones."""
    return ["-".join(filter(None, case[1][:2])) for case in cases]


def told(fault: Fault) -> Told:
    return fault.cause, fault.field, fault.value


def csv_line(**over: str) -> bytes:
    return ",".join({**GOOD, **over}.values()).encode()


CSV_LINES: Final[list[tuple[bytes, Told]]] = [
    (csv_line(price=""), (Cause.MISSING, "price", "")),
    (csv_line(price="-1.5"), (Cause.NEGATIVE, "price", "-1.5")),
    (csv_line(quantity="-.5"), (Cause.NEGATIVE, "quantity", "-.5")),
    (csv_line(price="1.5.0"), (Cause.NOT_A_NUMBER, "price", "1.5.0")),
    (csv_line(price="-"), (Cause.NOT_A_NUMBER, "price", "-")),
    (csv_line(price="it's"), (Cause.NOT_A_NUMBER, "price", "it's")),
    (csv_line(price="1.123456789"), (Cause.TOO_MANY_DECIMALS, "price", "1.123456789")),
    (csv_line(price="9" * 11), (Cause.DECIMAL_OVERFLOW, "price", "9" * 11)),
    (csv_line(price="9" * 90), (Cause.DECIMAL_OVERFLOW, "price", "9" * MAX_SHOWN)),
    (csv_line(source_sequence="1.5"), (Cause.NOT_AN_INTEGER, "source_sequence", "1.5")),
    (csv_line(source_sequence="9" * 19), (Cause.OUT_OF_RANGE, "source_sequence", "9" * 19)),
    (csv_line(timestamp="noon"), (Cause.BAD_TIME, "timestamp", "noon")),
    (csv_line(timestamp=" "), (Cause.MISSING, "timestamp", " ")),
    (csv_line(timestamp="1950-01-01"), (Cause.TIME_OUT_OF_RANGE, "timestamp", "1950-01-01")),
    (
        csv_line(timestamp="2024-03-31 02:30:00"),
        (Cause.NONEXISTENT_TIME, "timestamp", "2024-03-31 02:30:00"),
    ),
    (csv_line(side="up"), (Cause.UNKNOWN_ENUM, "side", "up")),
    (csv_line(symbol=""), (Cause.MISSING, "symbol", "")),
    (csv_line(symbol=" A"), (Cause.BAD_TEXT, "symbol", " A")),
    (csv_line(symbol="A" * 65), (Cause.TOO_LONG, "symbol", "A" * 65)),
    (csv_line(trade_id="a\x01"), (Cause.BAD_TEXT, "id", "a\x01")),
    (csv_line(trade_id="a" * 129), (Cause.TOO_LONG, "id", "a" * MAX_SHOWN)),
    (csv_line(side="\xff").replace("\xff".encode(), b"\xff"), (Cause.BAD_ENCODING, "", None)),
    (csv_line(side='"buy'), (Cause.BAD_CSV, "", None)),
    (csv_line(side="b\0"), (Cause.BAD_CSV, "", None)),
    (csv_line() + b",1", (Cause.BAD_COLUMN_COUNT, "", None)),
]


def of_csv(folder: Path, line: bytes, **options: str) -> Reject:
    """Read a line among good ones, and return it as the reject that it is."""
    path = folder / "a.csv"
    path.write_bytes(b"\n".join([",".join(GOOD).encode(), csv_line(), line, csv_line(), b""]))
    given = CsvOptions(**{**OF_FILE, "timezone": "Europe/Berlin", **options})
    batches = list(read_csv(path, load_layout("generic-trades"), given))
    (reject,) = [each for batch in batches for each in batch.rejects]
    assert sum(rows.num_rows for batch in batches for _, rows in batch.rows) == 2
    assert (reject.position, reject.raw) == (3, line)
    return reject


@pytest.mark.parametrize(("line", "expected"), CSV_LINES, ids=names(CSV_LINES))
def test_csv(tmp_path: Path, line: bytes, expected: Told) -> None:
    reject = of_csv(tmp_path, line)
    assert told(reject.fault) == expected
    assert reject.code == (f"bad_{expected[1]}" if expected[1] else expected[0])


def test_csv_without_currency(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\n".join([",".join(GOOD).encode(), csv_line(symbol="QQQ")]))
    options = CsvOptions(exchange="X", asset_class="crypto")
    ((reject,),) = (
        batch.rejects for batch in read_csv(path, load_layout("generic-trades"), options)
    )
    assert told(reject.fault) == (Cause.UNKNOWN_CURRENCY, "symbol", "QQQ")


def test_csv_with_date_and_time(tmp_path: Path) -> None:
    path = tmp_path / "7078.csv"
    path.write_text("03/10/2014,25:00:00.000,1.11,3667,0,,\n , ,1.11,3667,0,,\n")
    source = read_csv(path, load_layout("asx-trades"), CsvOptions(symbol="BHP"))
    bad, missing = [each for batch in source for each in batch.rejects]
    expected = (Cause.BAD_TIME, "timestamp", "03/10/2014 25:00:00.000")
    assert (told(bad.fault), "," in bad.column) == (expected, True)
    assert missing.fault.cause is Cause.MISSING


DUMP: Final = """
kind = "trades"
header = "none"
columns = ["s", "id", "p", "q", "t"]
market = true
fields = { symbol = "s", id = "id", price = "p", quantity = "q", timestamp = "t" }
time = { how = "epoch" }
"""


@pytest.mark.parametrize(
    ("line", "expected", "column"),
    [
        ("BTCUSD_PERP,1,1,1,1723161348055", (Cause.UNKNOWN_SYMBOL, "symbol", "BTCUSD_PERP"), "s"),
        ("BTCUSDT,x1,1,1,1723161348055", (Cause.NOT_AN_INTEGER, "id", "x1"), "id"),
        (f"BTCUSDT,{'1' * 19},1,1,1723161348055", (Cause.OUT_OF_RANGE, "id", "1" * 19), "id"),
        ("BTCUSDT,,1,1,1723161348055", (Cause.MISSING, "id", ""), "id"),
        ("BTCUSDT,1,1,1,x", (Cause.BAD_TIME, "timestamp", "x"), "t"),
        ("BTCUSDT,1,1,1,1.x", (Cause.BAD_TIME, "timestamp", "1.x"), "t"),
        ("BTCUSDT,1,1,1," + "9" * 20, (Cause.TIME_OUT_OF_RANGE, "timestamp", "9" * 20), "t"),
        ("BTCUSDT,1,1,1,1", (Cause.TIME_OUT_OF_RANGE, "timestamp", "1"), "t"),
    ],
)
def test_dumps(tmp_path: Path, line: str, expected: Told, column: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(line)
    ((reject,),) = (
        batch.rejects for batch in read_csv(path, parse_layout(DUMP, origin="text"), CsvOptions())
    )
    assert (told(reject.fault), reject.column) == (expected, column)


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {
        "timestamp": ["2024-01-01"] * 4,
        "price": [1, -3, None, 5],
        "size": [1] * 4,
        "trade_id": [1.0, 2.0, 3.0, 1e17],
    }
    pq.write_table(pa.table(columns), path)
    options = CsvOptions(symbol="ABC", **OF_FILE)
    (batch,) = read_parquet(path, load_layout("generic-trades"), options)
    assert [told(each.fault) for each in batch.rejects] == [
        (Cause.NEGATIVE, "price", "-3"),
        (Cause.MISSING, "price", ""),
        (Cause.INEXACT, "id", "1e+17"),
    ]


def plain(value: object) -> str:
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def ndjson_line(**over: Any) -> bytes:
    return json.dumps({**trade_row(), **over}, default=plain).encode()


def lacking(name: str) -> bytes:
    row = json.loads(ndjson_line())
    del row[name]
    return json.dumps(row).encode()


NDJSON_LINES: Final[list[tuple[bytes, Told]]] = [
    (b"{oops", (Cause.BAD_JSON, "", None)),
    (b"[1]", (Cause.BAD_JSON, "", None)),
    (ndjson_line(extra={"a": True}), (Cause.UNKNOWN_FIELD, "extra", '{"a": true}')),
    (lacking("symbol"), (Cause.MISSING, "symbol", None)),
    (ndjson_line(currency=None), (Cause.MISSING, "currency", None)),
    (ndjson_line(price="-1.5"), (Cause.NEGATIVE, "price", "-1.5")),
    (ndjson_line(price=-2), (Cause.NEGATIVE, "price", "-2")),
    (ndjson_line(price="1,5"), (Cause.NOT_A_NUMBER, "price", "1,5")),
    (ndjson_line(price="5-3"), (Cause.NOT_A_NUMBER, "price", "5-3")),
    (ndjson_line(price=""), (Cause.MISSING, "price", "")),
    (ndjson_line(price="1.123456789"), (Cause.TOO_MANY_DECIMALS, "price", "1.123456789")),
    (ndjson_line(price="1" * 11), (Cause.DECIMAL_OVERFLOW, "price", "1" * 11)),
    (ndjson_line(price="1" * 90), (Cause.DECIMAL_OVERFLOW, "price", "1" * 80 + "...")),
    (ndjson_line(price=[1]), (Cause.WRONG_TYPE, "price", "[1]")),
    (ndjson_line(price=True), (Cause.WRONG_TYPE, "price", "true")),
    (ndjson_line(symbol=5), (Cause.WRONG_TYPE, "symbol", "5")),
    (ndjson_line(trade_conditions="x"), (Cause.WRONG_TYPE, "trade_conditions", "x")),
    (ndjson_line(source_sequence="x"), (Cause.WRONG_TYPE, "source_sequence", "x")),
    (ndjson_line(source_sequence=1.5), (Cause.NOT_AN_INTEGER, "source_sequence", "1.5")),
    (ndjson_line(source_sequence=2**70), (Cause.OUT_OF_RANGE, "source_sequence", str(2**70))),
    (ndjson_line(timestamp="soon"), (Cause.BAD_TIME, "timestamp", "soon")),
    (ndjson_line(timestamp=[1]), (Cause.WRONG_TYPE, "timestamp", "[1]")),
    (ndjson_line(timestamp=2**70), (Cause.TIME_OUT_OF_RANGE, "timestamp", str(2**70))),
    (ndjson_line(side="UP"), (Cause.UNKNOWN_ENUM, "side", "UP")),
]


@pytest.mark.parametrize(("line", "expected"), NDJSON_LINES, ids=names(NDJSON_LINES))
def test_ndjson(line: bytes, expected: Told) -> None:
    stream = io.BytesIO(b"\n".join([ndjson_line(), line, ndjson_line()]))
    batches = list(read_ndjson(stream, TRADES))
    (reject,) = [each for batch in batches for each in batch.rejects]
    assert sum(rows.num_rows for batch in batches for _, rows in batch.rows) == 2
    assert told(reject.fault) == expected
    assert (reject.position, reject.raw) == (2, line)


TRADE: Final = {
    "e": "trade",
    "E": 1723161348056,
    "s": "BTCUSDT",
    "t": 1,
    "p": "1.5",
    "q": "2",
    "T": 1723161348055,
    "m": True,
    "M": True,
}
QUOTE: Final = {"u": 1, "s": "BTCUSDT", "b": "1", "B": "1", "a": "1", "A": "1"}


def frame(payload: Mapping[str, object], **over: object) -> bytes:
    data = {key: value for key, value in {**payload, **over}.items() if value is not None}
    return json.dumps({"stream": "x", "data": data}).encode()


FRAMES: Final[list[tuple[bytes, Told, str]]] = [
    (b"\xff", (Cause.BAD_FRAME, "", None), ""),
    (frame(TRADE, t="1"), (Cause.BAD_FRAME, "", None), ""),
    (frame({"e": "news"}), (Cause.UNKNOWN_EVENT, "", None), ""),
    (b'{"id": 1}', (Cause.UNKNOWN_EVENT, "", None), ""),
    (b'{"error": {"code": -1, "msg": "no"}}', (Cause.EXCHANGE_ERROR, "", None), ""),
    (b'{"code": 2, "msg": "no"}', (Cause.EXCHANGE_ERROR, "", None), ""),
    (frame(TRADE, p=None), (Cause.MISSING, "price", None), "p"),
    (frame(TRADE, t=None), (Cause.MISSING, "id", None), "t"),
    (frame(TRADE, E=None), (Cause.MISSING, "", None), "E"),
    (frame(TRADE, p=""), (Cause.MISSING, "price", ""), "p"),
    (frame(TRADE, q="-1"), (Cause.NEGATIVE, "quantity", "-1"), "q"),
    (frame(TRADE, p="x"), (Cause.NOT_A_NUMBER, "price", "x"), "p"),
    (frame(TRADE, p="1.123456789"), (Cause.TOO_MANY_DECIMALS, "price", "1.123456789"), "p"),
    (frame(TRADE, p="1" * 12), (Cause.DECIMAL_OVERFLOW, "price", "1" * 12), "p"),
    (frame(TRADE, s="?"), (Cause.UNKNOWN_SYMBOL, "symbol", "?"), "s"),
    (frame(QUOTE, b=5), (Cause.WRONG_TYPE, "bid_price", "5"), "b"),
    (frame(QUOTE, A="x"), (Cause.NOT_A_NUMBER, "ask_quantity", "x"), "A"),
]


@pytest.mark.parametrize(("raw", "expected", "key"), FRAMES, ids=names(FRAMES))
def test_frames(raw: bytes, expected: Told, key: str) -> None:
    parser = FrameParser(venue=VENUES[Market.SPOT], instruments=())
    frames = [frame(TRADE), raw, frame(QUOTE)]
    parsed = parser.parse(frames, [1, 2, 3], first=7)
    (reject,) = parsed.rejects
    assert (told(reject.fault), reject.column) == (expected, key)
    assert (reject.position, reject.received_us, reject.raw) == (8, 2, raw)
    assert [rows.num_rows for _, rows in parsed.rows] == [1, 1]


class Schemas:
    """A registry of the schema of trades, and that of quotes."""

    def schema(self, schema_id: int) -> Any:
        if schema_id not in (1, 2):
            raise NotFound("unknown")
        return (TRADES.avro, QUOTES.avro)[schema_id - 1]


MESSAGES: Final[list[tuple[bytes | None, Told]]] = [
    (None, (Cause.NULL_MESSAGE, "", None)),
    (b"", (Cause.BAD_WIRE_FORMAT, "", None)),
    (b'{"json": 1}', (Cause.BAD_WIRE_FORMAT, "", None)),
    (wire_header(9) + b"x", (Cause.UNKNOWN_SCHEMA, "", None)),
    (wire_header(2) + b"x", (Cause.INCOMPATIBLE_SCHEMA, "", None)),
    (wire_header(1) + b"x", (Cause.BAD_BODY, "", None)),
    (values_of(trades_batch(1), wire_header(1))[0] + b"xy", (Cause.TRAILING_BYTES, "", None)),
    *(
        (wire_header(1) + written(TRADES.avro, trade_row(**{name: Decimal(value)}))[0], expected)
        for name, value, expected in (
            ("price", "-1", (Cause.NEGATIVE, "price", "-1.00000000")),
            ("quantity", "-1", (Cause.NEGATIVE, "quantity", "-1.00000000")),
        )
    ),
]


@pytest.mark.parametrize(("value", "expected"), MESSAGES, ids=names(MESSAGES))
def test_messages(value: bytes | None, expected: Told) -> None:
    schemas: Any = Schemas()
    reader = MessageReader(registry=schemas, topic="t", kind=lambda: TRADES, observe=unexpected)
    good = values_of(trades_batch(2), wire_header(1))
    decoded = reader.read([good[0], value, good[1]], np.zeros(3, np.int64), np.arange(3))
    ((place, fault),) = decoded.rejects
    assert (place, told(fault), decoded.indexes.tolist()) == (1, expected, [0, 2])


@pytest.mark.parametrize(
    ("over", "expected"),
    [
        ({"volume": -5}, (Cause.NEGATIVE, "volume", "-5")),
        ({"volume": 10**13}, (Cause.DECIMAL_OVERFLOW, "volume", str(10**13))),
        ({"price": Decimal(-1)}, (Cause.NEGATIVE, "price", "-1.000000")),
        ({"sequence_number": -1}, (Cause.OUT_OF_RANGE, "sequence_number", "-1")),
    ],
)
def test_records_of_v1(over: dict[str, Any], expected: Told) -> None:
    avro = UPGRADES["trade_v1"].avro
    (body,) = written(avro, trade_v1(**over))
    origin = Origin(series=["t"], codes=np.zeros(1, np.int64), numbers=np.zeros(1, np.int64))
    decoded = KindDecoder(avro, TRADES, V1_DEFAULTS).decode([wire_header(1) + body], origin)
    ((_, fault),) = decoded.rejects
    assert told(fault) == expected


SHOWN_TIME = "2024-01-01T00:00:00.000000Z"


@pytest.mark.parametrize(
    ("differing", "expected"),
    [
        ({"price": Decimal(2)}, ("price", "2")),
        ({"price": Decimal("0.00000023")}, ("price", "0.00000023")),
        ({"timestamp": datetime(2024, 1, 1, tzinfo=UTC)}, ("timestamp", SHOWN_TIME)),
        ({"price": Decimal(2), "timestamp": datetime(2024, 1, 1, tzinfo=UTC)}, ("", None)),
    ],
)
def test_conflicts(differing: Mapping[str, object], expected: tuple[str, str | None]) -> None:
    stored = {"price": Decimal(1), "timestamp": datetime(2024, 1, 2, tzinfo=UTC)}
    conflict = ValueConflict(
        series=Series("X", "ABC"),
        number=1,
        text="X-1",
        stored=stored,
        received={**stored, **differing},
    )
    (reject,) = conflict_rejects([conflict])
    assert told(reject.fault) == (Cause.CONFLICT, *expected)
    assert reject.code == "conflict"


def test_values_of_a_conflict_are_written_as_in_a_query() -> None:
    stored = {"price": Decimal("0E-8"), "timestamp": datetime(2024, 1, 1, tzinfo=UTC)}
    received = {"price": None, "timestamp": datetime(2024, 1, 1, 0, 0, 1, tzinfo=UTC)}
    conflict = ValueConflict(
        series=Series("X", "ABC"), number=1, text="X-1", stored=stored, received=received
    )
    assert str(conflict).endswith(
        "already stored: price null (stored 0.00000000),"
        " timestamp 2024-01-01T00:00:01.000000Z (stored 2024-01-01T00:00:00.000000Z)"
    )
    (reject,) = conflict_rejects([conflict])
    assert json.loads(reject.raw) == {
        "received": {"price": None, "timestamp": "2024-01-01T00:00:01.000000Z"},
        "stored": {"price": "0.00000000", "timestamp": "2024-01-01T00:00:00.000000Z"},
    }


def test_a_row_that_does_not_fit_for_no_field() -> None:
    def attempt(start: int, size: int) -> None:
        if start <= 3 < start + size:
            raise Unfit("no field", Cause.NOT_A_NUMBER)

    ((place, fault),) = _each_that_fails(attempt, 100)
    assert (place, told(fault), fault.code) == (3, (Cause.BAD_ROW, "", None), "bad_row")


@pytest.mark.parametrize(
    ("text", "cause"),
    [("1.0", Cause.DECIMAL_OVERFLOW), (".", Cause.NOT_A_NUMBER), ("-.", Cause.NOT_A_NUMBER)],
)
def test_numbers_that_look_nearly_good(text: str, cause: Cause) -> None:
    assert why_no_decimal(text, pa.decimal128(1, 1)).cause is cause


def _of_tables() -> Iterator[Cause]:
    for table in (CSV_LINES, NDJSON_LINES, MESSAGES):
        yield from (expected[0] for _, expected in table)
    yield from (expected[0] for _, expected, _ in FRAMES)


def test_every_cause_has_input_of_its_kind() -> None:
    by_tests = {Cause.UNKNOWN_CURRENCY, Cause.INEXACT, Cause.CONFLICT, Cause.BAD_ROW}
    assert {*_of_tables(), *by_tests} == set(Cause)


def test_codes_are_unlike_each_other() -> None:
    whole = {str(cause) for cause in Cause if cause.is_whole}
    fields = {f"bad_{name}" for kind in (TRADES, QUOTES) for name in (*kind.arrow.names, "id")}
    assert not whole & fields
    assert all(cause.meaning.endswith(".") for cause in Cause)
