"""`k2 schema` offline: validate, check, diff and show, without a registry."""

import gzip
import json
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.schema import Schema

from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema
from k2cli.codec.upgrade import UPGRADES
from k2cli.records import QUOTES, TRADES, arrow_field, avro_to_arrow_schema
from support.builders import START, Row, quote_row, trade_row, trade_v1, trades_batch
from support.running import K2, k2_at

CSV = ("--layout", "generic-trades", "--exchange", "X", "--asset-class", "crypto")
HEADER = "timestamp,symbol,price,quantity,side,currency,id\n"


@pytest.fixture
def k2(home: Path) -> K2:
    return k2_at(home)


@pytest.fixture
def schema_file(tmp_path: Path) -> Callable[..., Path]:
    """Write our schema of trades with further fields, or with others in their place."""

    def write(name: str, *fields: dict[str, Any]) -> Path:
        new = {field["name"]: field for field in fields}
        kept = [new.pop(each["name"], each) for each in TRADES.avro["fields"]]
        path = tmp_path / name
        path.write_text(json.dumps({**TRADES.avro, "fields": [*kept, *new.values()]}))
        return path

    return write


def price(scale: int, precision: int = 18) -> dict[str, Any]:
    (field,) = (each for each in TRADES.avro["fields"] if each["name"] == "price")
    return {**field, "type": {**field["type"], "scale": scale, "precision": precision}}


VENUE = {"name": "venue", "type": ["null", "string"], "default": None, "doc": "Where."}


def avro_file(path: Path, rows: Sequence[Row], schema: Any = TRADES.avro) -> Path:
    with path.open("wb") as file:
        fastavro.writer(file, fastavro.parse_schema(dict(schema)), rows, codec="deflate")
    return path


def plain(value: object) -> str:
    """Write a decimal without exponent, a time as ISO 8601."""
    return f"{value:f}" if isinstance(value, Decimal) else str(value)


def ndjson_file(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row, default=plain) + "\n" for row in rows))
    return path


def found(result: Any) -> list[dict[str, Any]]:
    """The errors of the only file of a validation in JSON."""
    (file,) = json.loads(result.stdout)["files"]
    assert file["valid"] is not bool(file["errors"])
    errors: list[dict[str, Any]] = file["errors"]
    return errors


# --- validate: schemas


def test_our_own_schemas_are_valid_and_strictly_so(k2: K2) -> None:
    result = k2("schema", "validate", "--strict")
    assert result.stdout.splitlines() == [f"{name}: valid" for name in BUILTIN_SCHEMAS]
    assert result.stderr == ""


def test_a_schema_is_valid_or_says_where_not(k2: K2, schema_file: Callable[..., Path]) -> None:
    good = schema_file("good.avsc", VENUE)
    bad = schema_file("bad.avsc", price(6), {"name": "venue", "type": "double"})
    result = k2("schema", "validate", good, bad, code=6)
    assert result.stdout.splitlines() == [
        f"{good}: valid",
        f"{bad}: 2 errors",
        "  price: does not fit trade_v2: decimal(18,6) read as decimal(18,8) would change every"
        " value",
        "  venue: k2 has no column for it: no Arrow type for the Avro type 'double'",
        "  warning: venue: has no doc",
    ]
    assert result.stderr == "error: 1 of 2 schemas and files are not valid\n"


def test_a_missing_doc_fails_only_with_strict(k2: K2, schema_file: Callable[..., Path]) -> None:
    path = schema_file("x.avsc", {**VENUE, "doc": ""})
    assert "warning: venue: has no doc" in k2("schema", "validate", path).stdout
    result = k2("schema", "validate", path, "--strict", "--format", "json", code=6)
    (problem,) = found(result)
    assert problem.items() >= {"row": None, "field": "venue", "value": None}.items()
    assert (problem["reason"], problem["code"], problem["cause"]) == ("has no doc", None, None)


def test_a_schema_comes_from_stdin_too(k2: K2) -> None:
    text = json.dumps(builtin_schema("quote_v1")).encode()
    assert k2("schema", "validate", "-", stdin=text).stdout == "stdin: valid\n"
    assert "stdin is not JSON" in k2("schema", "validate", "-", stdin=b"{", code=6).stdout


# --- validate: data


def test_rows_that_fit_are_valid_in_every_format(k2: K2, tmp_path: Path) -> None:
    rows = [trade_row(source_sequence=i) for i in range(20)]
    table = pa.Table.from_pylist(rows, schema=TRADES.arrow)
    pq.write_table(table, tmp_path / "a.parquet")
    avro_file(tmp_path / "a.avro", rows)
    ndjson_file(tmp_path / "a.ndjson", rows)
    ndjson_file(tmp_path / "a.jsonl", rows)
    files = [tmp_path / f"a.{end}" for end in ("parquet", "avro", "ndjson", "jsonl")]
    result = k2("schema", "validate", *files, "--schema", "trade_v2")
    assert result.stdout.splitlines() == [f"{file}: valid (20 rows of trade_v2)" for file in files]


def test_what_k2_queries_and_loads_is_valid(k2: K2, tmp_path: Path) -> None:
    """The formats that `k2 query -o` writes, by DuckDB, hold what a schema of ours says."""
    csv = tmp_path / "in.csv"
    csv.write_text(HEADER + f"{START.isoformat()},AAA,1.5,2,BUY,USD,1\n")
    k2("schema", "validate", csv, *CSV)
    k2("load", "csv", csv, *CSV)
    for name in ("out.parquet", "out.ndjson"):
        k2("query", "trades", "-o", tmp_path / name)
        result = k2("schema", "validate", tmp_path / name, "--schema", "trade_v2")
        assert result.stdout == f"{tmp_path / name}: valid (1 rows of trade_v2)\n"


def test_parquet_of_polars_and_others_is_read_alike(k2: K2, tmp_path: Path) -> None:
    """Large texts, dictionaries and other widths are other ways to store the same."""
    table = pa.Table.from_batches([trades_batch(5)])
    table = table.set_column(2, "symbol", table["symbol"].cast(pa.large_string()))
    table = table.set_column(9, "side", table["side"].dictionary_encode())
    table = table.set_column(11, "source_sequence", table["source_sequence"].cast(pa.int16()))
    pq.write_table(table.append_column("more", pa.array([1.5] * 5)), tmp_path / "a.parquet")
    k2("schema", "validate", tmp_path / "a.parquet", "--schema", "trade_v2")


BAD_ROWS = [
    trade_row(),
    trade_row(price=Decimal("-1.5")),
    trade_row(source_sequence=5),
    trade_row(timestamp=START.replace(year=9999, month=12, day=31)),
    trade_row(quantity=Decimal("-0.1"), price=Decimal("-2.5")),
]
UNFIT = "is negative or does not fit decimal128({}, 8)"


@pytest.mark.parametrize("end", ["parquet", "avro"])
def test_faults_of_columns_name_row_field_and_value(k2: K2, tmp_path: Path, end: str) -> None:
    path = tmp_path / f"a.{end}"
    if end == "avro":
        avro_file(path, BAD_ROWS)
    else:
        pq.write_table(pa.Table.from_pylist(BAD_ROWS, schema=TRADES.arrow), path)
    result = k2("schema", "validate", path, "--schema", "trade_v2", "--format", "json", code=6)
    assert found(result) == [
        {"row": 2, "field": "price", "value": "-1.50000000", "reason": UNFIT.format(18)}
        | {"code": "bad_price", "cause": "negative"},
        {"row": 5, "field": "price", "value": "-2.50000000", "reason": UNFIT.format(18)}
        | {"code": "bad_price", "cause": "negative"},
        {"row": 5, "field": "quantity", "value": "-0.10000000", "reason": UNFIT.format(20)}
        | {"code": "bad_quantity", "cause": "negative"},
    ]
    assert json.loads(result.stdout)["files"][0]["rows"] == 5


def test_faults_of_ndjson_name_line_field_and_value(k2: K2, tmp_path: Path) -> None:
    missing = trade_row()
    del missing["symbol"]
    rows = [*BAD_ROWS[:2], missing, trade_row(side="UP"), trade_row(extra=1)]
    rows += [trade_row(currency=None), trade_row(price=1.5), trade_row(timestamp="soon")]
    path = ndjson_file(tmp_path / "a.ndjson", rows)
    path.write_text(path.read_text() + "\n{oops\n")
    args = ("schema", "validate", path, "--schema", "trade_v2", "--format", "json")
    errors = found(k2(*args, code=6))
    assert [(each["row"], each["field"], each["value"]) for each in errors] == [
        (2, "price", "-1.5"),
        (3, "symbol", None),
        (4, "side", "UP"),
        (5, "extra", "1"),
        (6, "currency", None),
        (8, "timestamp", "soon"),
        (10, None, "{oops"),
    ]
    assert [each["cause"] for each in errors] == [
        "negative",
        "missing",
        "unknown_enum",
        "unknown_field",
        "missing",
        "bad_time",
        "bad_json",
    ]
    assert [each["reason"] for each in errors[:5]] == [
        "negative",
        "field symbol is missing",
        "'UP' is not one of BUY, SELL, SELL_SHORT, UNKNOWN",
        "unknown field extra",
        "currency is null",
    ]


def test_faults_of_csv_name_line_column_and_value(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [
        "2024-01-01T00:00:00Z,AAA,1.5,2,BUY,USD,1",
        "2024-01-01T00:00:00Z,AAA,1x5,2,BUY,USD,2",
        "2024-01-01T00:00:00Z,AAA,1,-2,BUY,USD,3",
        "noon,AAA,1,2,BUY,USD,4",
        "2024-01-01T00:00:00Z,AAA,1",
        "2024-01-01T00:00:00Z,AAA,it's,2,BUY,USD,5",
    ]
    path.write_text(HEADER + "\n".join(lines) + "\n")
    result = k2("schema", "validate", path, *CSV, "--format", "json", code=6)
    errors = found(result)
    assert [(each["row"], each["field"], each["value"]) for each in errors] == [
        (3, "price", "1x5"),
        (4, "quantity", "-2"),
        (5, "timestamp", "noon"),
        (6, None, lines[4]),
        (7, "price", "it's"),
    ]
    assert [each["reason"] for each in errors[:2]] == ["is not a plain number", "is negative"]
    assert errors[3]["reason"] == "has 3 columns, not 7"
    assert [(each["code"], each["cause"]) for each in errors] == [
        ("bad_price", "not_a_number"),
        ("bad_quantity", "negative"),
        ("bad_timestamp", "bad_time"),
        ("bad_column_count", "bad_column_count"),
        ("bad_price", "not_a_number"),
    ]
    assert json.loads(result.stdout)["files"][0]["schema"] == "trade_v2"


def test_a_file_stops_behind_so_many_errors(k2: K2, tmp_path: Path) -> None:
    rows = [trade_row(price=Decimal(-1))] * 30
    path = avro_file(tmp_path / "a.avro", rows)
    result = k2("schema", "validate", path, "--format", "json", code=6)
    assert len(found(result)) == 20
    assert json.loads(result.stdout)["files"][0]["stopped"] is True
    text = k2("schema", "validate", path, "--max-errors", 3, code=6).stdout.splitlines()
    assert text[0] == f"{path}: 3 errors (30 rows of trade_v2); stopped, there are more"
    assert len(text) == 4
    every = k2("schema", "validate", path, "--max-errors", 0, "--format", "json", code=6)
    assert len(found(every)) == 30
    exact = k2("schema", "validate", path, "--max-errors", 30, "--format", "json", code=6)
    assert json.loads(exact.stdout)["files"][0]["stopped"] is False


def test_an_avro_file_tells_what_its_records_are(k2: K2, tmp_path: Path) -> None:
    path = avro_file(
        tmp_path / "a.avro", [trade_v1(i) for i in range(3)], builtin_schema("trade_v1")
    )
    assert k2("schema", "validate", path).stdout == f"{path}: valid (3 rows of trade_v1)\n"
    other = k2("schema", "validate", path, "--schema", "trade_v2", "--format", "json", code=6)
    assert [each["reason"] for each in found(other)] == ["the records are Trade, not TradeV2"]
    own = {"type": "record", "name": "Own", "fields": [{"name": "a", "type": "long"}]}
    stranger = avro_file(tmp_path / "b.avro", [{"a": 1}], own)
    assert k2("schema", "validate", stranger).stdout == f"{stranger}: valid (1 rows of Own)\n"


def test_the_schema_of_an_avro_file_must_be_readable_as_ours(k2: K2, tmp_path: Path) -> None:
    fields = [price(6) if each["name"] == "price" else each for each in TRADES.avro["fields"]]
    fields = [each for each in fields if each["name"] not in ("symbol", "vendor_data")]
    rows = [trade_row(price=Decimal("1.5"))]
    path = avro_file(tmp_path / "a.avro", rows, {**TRADES.avro, "fields": fields})
    errors = found(k2("schema", "validate", path, "--format", "json", code=6))
    assert [(each["row"], each["field"], each["reason"]) for each in errors] == [
        (None, "symbol", "is missing, and has no default"),
        (None, "price", "is decimal128(18, 6), not decimal128(18, 8)"),
    ]


def test_columns_of_other_types_are_told_once(k2: K2, tmp_path: Path) -> None:
    table = pa.Table.from_batches([trades_batch(3)]).drop_columns(["symbol", "trade_conditions"])
    place = table.schema.get_field_index("price")
    table = table.set_column(place, "price", table["price"].cast(pa.float64()))
    pq.write_table(table, tmp_path / "a.parquet")
    args = ("schema", "validate", tmp_path / "a.parquet", "--schema", "trade_v2")
    errors = found(k2(*args, "--format", "json", code=6))
    assert [(each["field"], each["reason"]) for each in errors] == [
        ("price", "is double, not decimal128(18, 8)"),
        ("symbol", "is missing, and has no default"),
    ]


def test_nulls_and_unknown_symbols_in_parquet_are_faults(k2: K2, tmp_path: Path) -> None:
    loose = pa.schema([field.with_nullable(True) for field in TRADES.arrow])
    nested = {
        "trade_conditions": pa.list_(pa.string()),
        "vendor_data": pa.map_(pa.string(), pa.string()),
    }
    for name, of in nested.items():
        loose = loose.set(loose.get_field_index(name), pa.field(name, of))
    rows = [
        trade_row(symbol=None),
        trade_row(side="UP"),
        trade_row(trade_conditions=["a", None]),
        trade_row(vendor_data={"a": None}),
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=loose), tmp_path / "a.parquet")
    args = ("schema", "validate", tmp_path / "a.parquet", "--schema", "trade_v2")
    errors = found(k2(*args, "--format", "json", code=6))
    assert [(each["row"], each["field"], each["reason"]) for each in errors] == [
        (1, "symbol", "is null"),
        (2, "side", "is UP, not a symbol of it"),
        (3, "trade_conditions", "contains a null"),
        (4, "vendor_data", "contains a null"),
    ]


def test_nulls_within_are_no_faults_where_the_schema_has_them(k2: K2, tmp_path: Path) -> None:
    items = {"type": "array", "items": ["null", "string"]}
    values = {"type": "map", "values": ["null", "long"]}
    fields = [{"name": "items", "type": items}, {"name": "values", "type": values}]
    schema = tmp_path / "own.avsc"
    schema.write_text(json.dumps({"type": "record", "name": "Own", "fields": fields}))
    rows = pa.table(
        {
            "items": pa.array([["a", None]], pa.list_(pa.string())),
            "values": pa.array([[("a", None)]], pa.map_(pa.string(), pa.int64())),
        }
    )
    rows = rows.cast(pa.schema([field.with_nullable(False) for field in rows.schema]))
    pq.write_table(rows, tmp_path / "a.parquet")
    k2("schema", "validate", tmp_path / "a.parquet", "--schema", schema)


def test_rows_are_held_against_a_schema_of_a_file(
    k2: K2, tmp_path: Path, schema_file: Callable[..., Path]
) -> None:
    schema = schema_file("newer.avsc", {**VENUE, "type": "string"} | {"default": "X"}, price(2, 9))
    rows = [trade_row(venue="Y", price=Decimal("1.25")), trade_row(price=Decimal("1.255"))]
    path = ndjson_file(tmp_path / "a.ndjson", rows)
    errors = found(k2("schema", "validate", path, "--schema", schema, "--format", "json", code=6))
    assert [(each["row"], each["field"], each["value"]) for each in errors] == [
        (2, "price", "1.255")
    ]


def test_rows_of_the_first_version_are_looked_at_as_such(k2: K2, tmp_path: Path) -> None:
    rows = [trade_v1(0), trade_v1(1, price=Decimal("-1"))]
    path = ndjson_file(tmp_path / "a.ndjson", rows)
    args = ("schema", "validate", path, "--schema", "trade_v1", "--format", "json")
    assert [(each["row"], each["field"]) for each in found(k2(*args, code=6))] == [(2, "price")]


@pytest.mark.parametrize("end", ["avro", "parquet"])
def test_a_broken_file_is_not_valid(k2: K2, tmp_path: Path, end: str) -> None:
    rows = [trade_row(source_sequence=i) for i in range(1000)]
    whole = tmp_path / f"whole.{end}"
    if end == "avro":
        avro_file(whole, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows, schema=TRADES.arrow), whole)
    cut, no = tmp_path / f"cut.{end}", tmp_path / f"no.{end}"
    cut.write_bytes(whole.read_bytes()[:-100])
    no.write_bytes(b"something else")
    args = ("schema", "validate", "--schema", "trade_v2", cut, no, "--format", "json")
    result = k2(*args, code=6)
    assert [len(file["errors"]) for file in json.loads(result.stdout)["files"]] == [1, 1]


def test_all_files_are_looked_at_and_the_worst_wins(k2: K2, tmp_path: Path) -> None:
    good = avro_file(tmp_path / "good.avro", [trade_row()])
    bad = avro_file(tmp_path / "bad.avro", [trade_row(price=Decimal(-1))])
    gone = tmp_path / "gone.avro"
    only_gone = k2("schema", "validate", good, gone, "--format", "json", code=4)
    files = json.loads(only_gone.stdout)["files"]
    assert [(file["kind"], file["valid"]) for file in files] == [("avro", True), ("avro", False)]
    assert files[1]["errors"][0]["reason"] == f"{gone} does not exist"
    both = k2("schema", "validate", gone, bad, good, code=6)
    assert [line.partition(":")[0] for line in both.stdout.splitlines() if "  " not in line] == [
        str(gone),
        str(bad),
        str(good),
    ]
    assert both.stderr == "error: 2 of 3 schemas and files are not valid\n"


def test_rows_come_from_stdin(k2: K2) -> None:
    line = json.dumps(trade_row(), default=plain).encode()
    ndjson = k2("schema", "validate", "-", "--schema", "trade_v2", stdin=line)
    assert ndjson.stdout == "stdin: valid (1 rows of trade_v2)\n"
    text = HEADER + "2024-01-01T00:00:00Z,AAA,1.5,2,BUY,USD,1\n"
    assert "valid (1 rows" in k2("schema", "validate", "-", *CSV, stdin=text.encode()).stdout


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["a.ndjson"], 2, "hint: use --schema, for example --schema trade_v2"),
        (["a.parquet"], 2, "hint: use --schema, for example --schema trade_v2"),
        (["a.csv"], 2, "hint: use --layout NAME; k2 load layouts lists them"),
        (["a.xml"], 2, "hint: use one of .avsc .avro"),
        (["a.csv", *CSV, "--schema", "quote_v2"], 2, "hint: omit --schema"),
        (["a.csv", "--layout", "no-such"], 4, "no-such"),
        (["a.ndjson", "--schema", "./no.avsc"], 4, "no.avsc does not exist"),
        (["a.ndjson", "--schema", "trade_v7"], 3, "trade_v7 is not a built-in schema"),
        (["a.ndjson", "--schema", "trade_v2"], 4, "a.ndjson does not exist"),
        (["a.avro", "--max-errors", "-1"], 2, "--max-errors"),
        (["a.avsc"], 4, "a.avsc does not exist"),
    ],
)
def test_a_validation_that_cannot_be_says_why(
    k2: K2, tmp_path: Path, args: list[str], code: int, stderr: str
) -> None:
    (tmp_path / "a.csv").write_text(HEADER)
    first = tmp_path / args[0]
    assert stderr in k2("schema", "validate", first, *args[1:], code=code).stderr


def test_a_folder_is_no_file(k2: K2, tmp_path: Path) -> None:
    (tmp_path / "a.avro").mkdir()
    result = k2("schema", "validate", tmp_path / "a.avro", code=2)
    assert "is a directory" in result.stderr


# --- check


def test_check_names_the_field_that_breaks_whom(k2: K2, schema_file: Callable[..., Path]) -> None:
    newer = schema_file("newer.avsc", {"name": "venue", "type": "string"})
    result = k2("schema", "check", "trade_v2", newer, code=6)
    assert result.stdout == (
        f"BACKWARD: a reader with {newer} cannot read what trade_v2 wrote: field venue: "
        "record TradeV2 lacks it, and it has no default\n"
    )
    assert result.stderr == f"error: {newer} does not fit trade_v2 at level BACKWARD\n"
    forward = k2("schema", "check", "trade_v2", newer, "--compatibility", "forward")
    assert (forward.stdout, forward.stderr) == ("", f"{newer} fits trade_v2 at level FORWARD\n")
    k2("schema", "check", "trade_v2", newer, "--compatibility", "NONE")


def test_check_refuses_a_changed_scale_at_every_level(
    k2: K2, schema_file: Callable[..., Path]
) -> None:
    newer = schema_file("newer.avsc", price(6))
    args = ("schema", "check", "trade_v2", newer, "--compatibility", "FULL", "--format", "json")
    document = json.loads(k2(*args, code=6).stdout)
    assert (document["compatible"], document["level"]) == (False, "FULL")
    assert [
        (reason["direction"], reason["field"], reason["registry_passes"])
        for reason in document["reasons"]
    ] == [("BACKWARD", "price", True), ("FORWARD", "price", True)]


def test_only_a_transitive_level_looks_at_all_older_ones(
    k2: K2, schema_file: Callable[..., Path]
) -> None:
    second = schema_file("2.avsc", VENUE)
    third = schema_file("3.avsc", {"name": "venue", "type": ["null", "string"]})
    k2("schema", "check", "trade_v2", second, third)
    level = ("--compatibility", "BACKWARD_TRANSITIVE")
    result = k2("schema", "check", "trade_v2", second, third, *level, code=6)
    assert result.stdout.count("\n") == 1
    assert "what trade_v2 wrote: field venue" in result.stdout


@pytest.mark.usefixtures("lake")
def test_check_holds_a_schema_against_the_table(k2: K2, schema_file: Callable[..., Path]) -> None:
    against = ("--against", "table")
    assert k2("schema", "check", "trade_v2", *against).stderr == "trade_v2 fits trades_v2\n"
    for name in ("quote_v2", "trade_v1", "quote_v1"):
        k2("schema", "check", name, *against)
    newer = schema_file("newer.avsc", VENUE)
    result = k2("schema", "check", newer, *against, code=6)
    assert result.stdout == "the table lacks: add venue string\n"
    assert f"hint: k2 table evolve trades --schema {newer}" in result.stderr
    k2("table", "evolve", "trades", "--schema", newer)
    k2("schema", "check", newer, *against)
    scaled = schema_file("scaled.avsc", price(6))
    text = k2("schema", "check", scaled, *against, code=6).stdout
    assert text == "field price is decimal128(18, 6), not decimal128(18, 8)\n"
    other = k2("schema", "check", "quote_v2", *against, "--table", "trades", code=6)
    assert other.stdout == "the schema is QuoteV2, not TradeV2\n"


@pytest.mark.parametrize(
    ("args", "code", "stderr"),
    [
        (["trade_v2"], 2, "hint: use k2 schema check OLD trade_v2"),
        (["trade_v1", "trade_v2", "--against", "table"], 2, "takes one schema, the new one"),
        (["trade_v2", "--against", "registry"], 3, "no schema registry is configured"),
        (["trade_v1", "trade_v2", "--subject", "x"], 2, "--subject requires --against registry"),
        (["trade_v1", "trade_v2", "--table", "trades"], 2, "--table requires --against table"),
        (
            ["trade_v2", "--against", "table", "--compatibility", "FULL"],
            2,
            "does not apply to tables",
        ),
        (["trade_v2", "no.avsc"], 4, "no.avsc does not exist"),
        (["trade_v2", "trade_v3"], 3, "trade_v3 is not a built-in schema"),
        (["trade_v1", "trade_v2", "--compatibility", "SOME"], 2, "SOME"),
        (["trade_v2", "--against", "table"], 4, "there are no tables"),
    ],
)
def test_a_check_that_cannot_be_says_why(k2: K2, args: list[str], code: int, stderr: str) -> None:
    result = k2("schema", "check", *args, code=code)
    assert stderr in result.stderr
    assert result.stdout == ""


@pytest.mark.usefixtures("lake")
def test_a_schema_that_tells_no_kind_needs_a_table(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / "own.avsc"
    path.write_text('{"type": "record", "name": "Own", "fields": []}')
    result = k2("schema", "check", path, "--against", "table", code=2)
    assert "from its name Own" in result.stderr


# --- diff


def test_diff_shows_what_changed_and_ends_with_0(k2: K2, schema_file: Callable[..., Path]) -> None:
    newer = schema_file("newer.avsc", VENUE, price(6))
    result = k2("schema", "diff", "trade_v2", newer)
    assert (result.stdout, result.stderr) == (
        "~ price  type: decimal(18,8) -> decimal(18,6)\n+ venue  null | string = null\n",
        "",
    )
    document = json.loads(k2("schema", "diff", "trade_v2", newer, "-f", "json").stdout)
    assert document["differences"] == [
        {"path": "price", "what": "type", "old": "decimal(18,8)", "new": "decimal(18,6)"},
        {"path": "venue", "what": "added", "old": None, "new": "null | string = null"},
    ]


def test_diff_says_when_there_is_none(k2: K2) -> None:
    result = k2("schema", "diff", "quote_v2", "quote_v2")
    assert (result.stdout, result.stderr) == ("", "no difference\n")
    stdin = json.dumps(builtin_schema("quote_v2")).encode()
    empty = k2("schema", "diff", "quote_v2", "-", "-f", "json", stdin=stdin)
    assert json.loads(empty.stdout)["differences"] == []


# --- show and list


@pytest.mark.parametrize("name", BUILTIN_SCHEMAS)
def test_ours_are_shown_in_every_form(k2: K2, name: str) -> None:
    avro = builtin_schema(name)
    arrow = avro_to_arrow_schema(avro)
    assert json.loads(k2("schema", "show", name).stdout) == avro
    plain = arrow.remove_metadata().to_string(show_field_metadata=False)
    assert k2("schema", "show", name, "--as", "arrow").stdout == f"{plain}\n"
    iceberg = Schema.model_validate_json(k2("schema", "show", name, "--as", "iceberg").stdout)
    assert [field.name for field in iceberg.fields] == arrow.names
    assert [field.required for field in iceberg.fields] == [not field.nullable for field in arrow]
    markdown = k2("schema", "show", name, "--as", "markdown").stdout.splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in markdown[2:]] == arrow.names


@pytest.mark.parametrize("name", BUILTIN_SCHEMAS)
def test_the_sql_makes_a_table_that_takes_the_rows(k2: K2, name: str) -> None:
    sql = k2("schema", "show", name, "--as", "sql").stdout
    schema = avro_to_arrow_schema(builtin_schema(name))
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(sql)
        record = builtin_schema(name)["name"]
        made = connection.execute(f'SELECT * FROM "{record}"').to_arrow_table().schema
    assert made.names == schema.names
    for ours, theirs in zip(schema, made, strict=True):
        assert pa.types.is_timestamp(ours.type) or ours.type.id == theirs.type.id


EVERY_TYPE = [
    *("string", "long", "int", "boolean"),
    {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 10},
    {"type": "long", "logicalType": "timestamp-micros"},
    {"type": "long", "logicalType": "timestamp-millis"},
    {"type": "enum", "name": "E", "symbols": ["A"]},
    {"type": "array", "items": {"type": "map", "values": "boolean"}},
    {"type": "map", "values": {"type": "array", "items": ["null", "int"]}},
]


def test_every_type_that_a_column_can_have_is_shown_in_every_form(k2: K2, tmp_path: Path) -> None:
    fields = [{"name": f"f{place}", "type": of} for place, of in enumerate(EVERY_TYPE)]
    path = tmp_path / "all.avsc"
    path.write_text(json.dumps({"type": "record", "name": "All", "fields": fields}))
    assert all(arrow_field("x", of) for of in EVERY_TYPE)
    for form in ("avro", "arrow", "iceberg", "markdown"):
        assert k2("schema", "show", path, "--as", form).stdout.count("f9") == 1
    with duckdb.connect() as connection:
        connection.execute(k2("schema", "show", path, "--as", "sql").stdout)


def test_a_type_that_no_column_has_is_shown_where_it_can_be(k2: K2, tmp_path: Path) -> None:
    path = tmp_path / "x.avsc"
    field = {"name": "a", "type": ["null", "double"], "doc": "x | y"}
    path.write_text(json.dumps({"type": "record", "name": "X", "fields": [field]}))
    markdown = k2("schema", "show", path, "--as", "markdown").stdout
    assert "| a | double | yes |  | x \\| y |" in markdown
    for form in ("arrow", "iceberg", "sql"):
        result = k2("schema", "show", path, "--as", form, code=6)
        assert "no Arrow type for the Avro type 'double'" in result.stderr
        assert f"hint: k2 schema validate {path}" in result.stderr
    path.write_text('"string"')
    assert (
        "is not the schema of a record" in k2("schema", "show", path, "--as", "sql", code=6).stderr
    )


@pytest.mark.parametrize("name", ["trade_v1", "quote_v1"])
def test_the_mapping_is_that_of_the_rules(k2: K2, name: str) -> None:
    rules = UPGRADES[name].rules
    text = k2("schema", "show", name, "--mapping").stdout.splitlines()
    assert text[0].split() == ["field", "type", "computed", "from", "how"]
    assert [line.split()[0] for line in text[2:]] == [rule.target for rule in rules]
    markdown = k2("schema", "show", name, "--mapping", "--as", "markdown").stdout.splitlines()
    assert markdown[0] == "| field | type | computed from | how |"
    for line, rule in zip(markdown[2:], rules, strict=True):
        assert line.endswith(f"| {', '.join(rule.sources)} | {rule.how} |")


@pytest.mark.parametrize(
    ("args", "stderr"),
    [
        (["trade_v2", "--mapping"], "hint: use one of trade_v1, quote_v1"),
        (["--mapping"], "no mapping for an unnamed schema"),
        (["trade_v1", "--mapping", "--as", "sql"], "--mapping supports only text"),
        (["trade_v2", "--version", "1"], "--version requires the name of a subject"),
    ],
)
def test_show_says_what_cannot_be(k2: K2, args: list[str], stderr: str) -> None:
    assert stderr in k2("schema", "show", *args, code=2).stderr


def test_ours_are_listed_offline(k2: K2) -> None:
    rows = json.loads(k2("schema", "list", "--ours", "--format", "json").stdout)
    assert [row["name"] for row in rows] == list(BUILTIN_SCHEMAS)
    assert rows[0]["record"] == "com.k2.marketdata.TradeV2"
    result = k2("schema", "list", code=3)
    assert "without a registry: k2 schema list --ours" in result.stderr


def test_quotes_are_validated_like_trades(k2: K2, tmp_path: Path) -> None:
    rows = [quote_row(), quote_row(bid_price=Decimal(-1))]
    path = avro_file(tmp_path / "q.avro", rows, QUOTES.avro)
    errors = found(k2("schema", "validate", path, "--format", "json", code=6))
    assert [(each["row"], each["field"]) for each in errors] == [(2, "bid_price")]


def test_a_compressed_csv_is_validated_as_it_is(k2: K2, tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(
        gzip.compress((HEADER + "x,AAA,1.5,2,BUY,USD,1\n").encode())
    )
    result = k2("schema", "validate", tmp_path / "a.csv.gz", *CSV, code=6)
    assert "row 2, timestamp" in result.stdout


def test_all_files_are_looked_at_whatever_they_are(home: Path, tmp_path: Path) -> None:
    escape = tmp_path / "escape.ndjson"
    escape.write_bytes(b"\x1b[31mhi\x07\n")
    words = tmp_path / "words.txt"
    words.touch()
    validate = ("schema", "validate", words, tmp_path, escape, "--schema", "trade_v2")
    lines = k2_at(home)(*validate, code=6).stdout.splitlines()
    assert f"{words}: 1 error" in lines
    assert f"  {tmp_path} is a directory" in lines
    assert any("\\x1b[31mhi\\x07" in line for line in lines)
    document = json.loads(k2_at(home)(*validate, "--format", "json", code=6).stdout)
    assert [file["valid"] for file in document["files"]] == [False, False, False]
    assert "name the files in it" in k2_at(home)("schema", "validate", tmp_path, code=2).stderr


# --- check: what is not Avro


def one_field(avro: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": "record",
        "name": "T",
        "namespace": "x",
        "fields": [{"name": "a", "type": avro, **more}],
    }


@pytest.mark.parametrize(
    ("avro", "reason"),
    [
        (one_field(["string", "string"]), "field a: the union has string more than once"),
        ({**one_field("long"), "name": "T-1"}, "'x.T-1' is not a valid name"),
        (one_field("long", default="1"), 'field a: default "1" is not long'),
        (one_field("nosuch"), "unknown type x.nosuch"),
    ],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_a_schema_that_is_not_avro_cannot_be_checked(
    k2: K2, tmp_path: Path, avro: Any, reason: str, is_old: bool
) -> None:
    good, bad = tmp_path / "good.avsc", tmp_path / "bad.avsc"
    good.write_text(json.dumps(one_field("long")))
    bad.write_text(json.dumps(avro))
    result = k2("schema", "check", *((bad, good) if is_old else (good, bad)), code=6)
    assert result.stdout == ""
    assert str(bad) in result.stderr
    assert reason in result.stderr


def test_a_schema_with_a_byte_order_mark_and_an_invalid_logical_type_can_be_checked(
    k2: K2, tmp_path: Path
) -> None:
    path = tmp_path / "bom.avsc"
    fee = {"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 3}
    path.write_text("\ufeff" + json.dumps(one_field(fee)), encoding="utf-8")
    assert "fits" in k2("schema", "check", path, path).stderr
    assert "the logical type would be ignored" in k2("schema", "validate", path, code=6).stdout


@pytest.mark.parametrize("levels", [60, 300, 5_000])
def test_a_schema_that_is_nested_too_deep_is_refused(k2: K2, tmp_path: Path, levels: int) -> None:
    path = tmp_path / "deep.avsc"
    before = '{"type":"record","name":"T","fields":[{"name":"a","type":'
    path.write_text(before + '{"type":"array","items":' * levels + '"long"' + "}" * levels + "}]}")
    for args in (("check", path, path), ("validate", path), ("diff", path, "trade_v2")):
        result = k2("schema", *args, code=6)
        assert "levels deep" in result.stdout + result.stderr
