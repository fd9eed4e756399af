"""Avro messages: exact, fast, and every bad one found."""

import json
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from k2cli.codec.encode import encode_messages, varint, wire_header
from k2cli.codec.resolve import Incompatible, RecordDecoder
from k2cli.records import KINDS, QUOTES, TRADES, RecordKind
from k2cli.rejects import Cause
from support.builders import (
    START,
    batch_of,
    narrow,
    quote_row,
    quotes_batch,
    trade_row,
    trades_batch,
    written,
)
from support.faults import causes_of, reasons_of

BATCHES = {"trades": trades_batch, "quotes": quotes_batch}


def bodies_of(rows: pa.RecordBatch, kind: RecordKind = TRADES) -> list[bytes]:
    bodies: list[bytes] = encode_messages(rows, kind.avro).to_pylist()
    return bodies


def as_records(rows: pa.RecordBatch) -> list[dict[str, Any]]:
    return [{**row, "vendor_data": dict(row["vendor_data"])} for row in rows.to_pylist()]


def evolved(*, drop: str = "", **fields: Any) -> dict[str, Any]:
    """Return the schema of trades with a field dropped, changed or added."""
    schema = json.loads(json.dumps(TRADES.avro))
    kept = [field for field in schema["fields"] if field["name"] not in {drop, *fields}]
    added = [{"name": name, **field} for name, field in fields.items()]
    return {**schema, "fields": kept + added}


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_bodies_are_those_that_fastavro_writes(kind: RecordKind) -> None:
    rows = BATCHES[kind.name](100)
    assert bodies_of(rows, kind) == written(dict(kind.avro), *as_records(rows))


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_rows_come_back_as_they_were(kind: RecordKind) -> None:
    rows = BATCHES[kind.name](1_000)
    decoded = RecordDecoder(kind.avro, kind.avro).decode(bodies_of(rows, kind))
    assert decoded.rows.equals(rows)
    assert decoded.rows.schema.equals(kind.arrow)
    assert decoded.indexes.tolist() == list(range(1_000))
    assert decoded.rejects == []


def test_nothing_becomes_nothing() -> None:
    assert bodies_of(trades_batch(0)) == []
    decoded = RecordDecoder(TRADES.avro, TRADES.avro).decode([])
    assert (decoded.rows.num_rows, decoded.indexes.size, decoded.rejects) == (0, 0, [])


def test_a_slice_encodes_like_its_rows() -> None:
    rows = trades_batch(50, trade_conditions=["a", ""])
    assert bodies_of(rows.slice(7, 20)) == bodies_of(rows)[7:27]


def test_empty_and_full_lists_maps_and_nulls_side_by_side() -> None:
    rows = batch_of(
        TRADES,
        [
            trade_row(trade_conditions=[], vendor_data=None, source_sequence=None),
            trade_row(trade_conditions=["x", "é" * 100], vendor_data={}),
            trade_row(trade_conditions=[""], vendor_data={"k": "v" * 70, "": ""}),
            trade_row(source_sequence=-(2**63), platform_sequence=2**63 - 1),
        ],
    )
    assert RecordDecoder(TRADES.avro, TRADES.avro).decode(bodies_of(rows)).rows.equals(rows)
    records = [
        {**row, "vendor_data": None if row["vendor_data"] is None else dict(row["vendor_data"])}
        for row in rows.to_pylist()
    ]
    assert bodies_of(rows) == written(dict(TRADES.avro), *records)


def test_messages_carry_the_schema_id() -> None:
    (message,) = encode_messages(trades_batch(1), TRADES.avro, header=wire_header(258)).to_pylist()
    assert message[:5] == b"\x00\x00\x00\x01\x02"
    assert message[5:] == bodies_of(trades_batch(1))[0]


def test_an_unknown_symbol_of_an_enum_is_not_written() -> None:
    with pytest.raises(ValueError, match="'HOLD' is not one of BUY, SELL"):
        bodies_of(batch_of(TRADES, [trade_row(), trade_row(side="HOLD")]))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        pytest.param(0, b"\x00", id="zero"),
        pytest.param(-1, b"\x01", id="minus-one"),
        pytest.param(63, b"\x7e", id="largest-of-one-byte"),
        pytest.param(64, b"\x80\x01", id="smallest-of-two-bytes"),
        pytest.param(-(2**63), b"\xff" * 9 + b"\1", id="least-long"),
    ],
)
def test_varints_are_those_of_the_specification(number: int, expected: bytes) -> None:
    assert varint(number) == expected


def test_bad_bodies_are_told_from_good_ones() -> None:
    good = bodies_of(trades_batch(400))
    bodies = list(good)
    bodies[10] = b""
    bodies[20] += b"x"
    bodies[30] = bodies[30][:-1]
    bodies[40] = b"\xff" * 60
    decoded = RecordDecoder(TRADES.avro, TRADES.avro).decode(bodies)
    assert dict(reasons_of(decoded.rejects)) == {
        10: "the body does not decode: EOFError",
        20: "1 extra bytes after the record",
        30: "the body does not decode: EOFError",
        40: decoded.rejects[3][1].reason,
    }
    assert decoded.rejects[3][1].reason.startswith("the body does not decode: ")
    kept = [place for place in range(400) if place not in {10, 20, 30, 40}]
    assert decoded.indexes.tolist() == kept
    assert decoded.rows.equals(trades_batch(400).take(pa.array(kept)))


def test_two_halves_never_pass_for_two_records() -> None:
    one, two, three = bodies_of(trades_batch(3))
    bodies = [one + two[:20], two[20:] + three, b""]
    decoded = RecordDecoder(TRADES.avro, TRADES.avro).decode(bodies)
    assert decoded.rows.num_rows == 0
    assert [place for place, _ in decoded.rejects] == [0, 1, 2]


def test_bodies_of_nothing_but_noise_end() -> None:
    decoded = RecordDecoder(TRADES.avro, TRADES.avro).decode(
        [bytes([n % 251]) * n for n in range(300)]
    )
    assert len(decoded.rejects) == 300


def test_decimals_written_with_bytes_to_spare_are_read() -> None:
    schema = evolved(price={"type": "bytes"})
    row = {**as_records(trades_batch(1))[0], "price": (6_180_000_000_000).to_bytes(12)}
    (body,) = written(schema, row)
    moved = evolved(price=TRADES.avro["fields"][6])  # the same field, at the end
    assert RecordDecoder(moved, TRADES.avro).decode([body]).rows["price"].to_pylist() == [
        Decimal(61800)
    ]


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"price": Decimal(-1)}, "price is negative or does not fit decimal128(18, 8)"),
        ({"timestamp": 2**62}, "timestamp is outside the years 1 to 9999"),
        ({"quantity": Decimal(10**12)}, "quantity is negative or does not fit decimal128(20, 8)"),
    ],
)
def test_values_that_do_not_fit_are_rejects(over: dict[str, Any], reason: str) -> None:
    wide = {"type": "bytes", "logicalType": "decimal", "precision": 30, "scale": 8}
    schema = evolved(price={"type": wide}, quantity={"type": wide}, timestamp={"type": "long"})
    moment = {"timestamp": int(START.timestamp() * 1_000_000)}
    rows = [{**row, **moment} for row in as_records(trades_batch(3))]
    rows[1] |= over
    time = {"type": {"type": "long", "logicalType": "timestamp-micros"}}
    read = evolved(price={"type": wide}, quantity={"type": wide}, timestamp=time)
    decoded = RecordDecoder(read, TRADES.avro).decode(written(schema, *rows))
    assert reasons_of(decoded.rejects) == [(1, reason)]
    assert decoded.indexes.tolist() == [0, 2]
    assert decoded.rows.num_rows == 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_readers_and_writers_of_wide_and_narrow_quantities_are_mixed(kind: RecordKind) -> None:
    old, rows = narrow(kind), BATCHES[kind.name](3)
    old_bodies = encode_messages(rows.cast(old.arrow), old.avro).to_pylist()
    assert RecordDecoder(old.avro, kind.avro).decode(old_bodies).rows.equals(rows)
    decoded = RecordDecoder(kind.avro, old.avro).decode(bodies_of(rows, kind))
    assert decoded.rows.equals(rows.cast(old.arrow))


def test_quotes_with_one_side_are_read_and_written() -> None:
    rows = batch_of(
        QUOTES,
        [
            quote_row(bid_price=None, bid_quantity=None),
            quote_row(ask_price=None, ask_quantity=None),
            quote_row(bid_quantity=None, ask_quantity=None),
        ],
    )
    bodies = bodies_of(rows, QUOTES)
    assert bodies == written(dict(QUOTES.avro), *as_records(rows))
    assert RecordDecoder(QUOTES.avro, QUOTES.avro).decode(bodies).rows.equals(rows)
    older = RecordDecoder(QUOTES.avro, narrow(QUOTES).avro).decode(bodies)
    assert [fault.reason for _, fault in older.rejects] == [
        "bid_price is null",
        "ask_price is null",
        "bid_quantity is null",
    ]


def test_a_negative_price_is_a_reject_where_it_may_be_null() -> None:
    rows = batch_of(QUOTES, [quote_row(bid_price=Decimal(-1))])
    decoded = RecordDecoder(QUOTES.avro, QUOTES.avro).decode(bodies_of(rows, QUOTES))
    assert "bid_price is negative" in decoded.rejects[0][1].reason


def test_only_values_that_do_not_fit_a_narrow_reader_are_rejects() -> None:
    large = Decimal("35962838485.00000001")
    rows = batch_of(TRADES, [trade_row(), trade_row(quantity=large), trade_row()])
    bodies = encode_messages(rows, TRADES.avro).to_pylist()
    read = RecordDecoder(TRADES.avro, narrow(TRADES).avro).decode(bodies)
    reason = "quantity is negative or does not fit decimal128(18, 8)"
    assert reasons_of(read.rejects) == [(1, reason)]
    assert causes_of(read.rejects) == [(Cause.DECIMAL_OVERFLOW, "quantity", str(large))]
    assert read.indexes.tolist() == [0, 2]
    # A registry may give both schemas one id; no value changes for it.
    read = RecordDecoder(narrow(TRADES).avro, TRADES.avro).decode(bodies)
    assert read.rows["quantity"].to_pylist()[1] == large


def test_a_newer_schema_is_read_with_the_fields_we_know() -> None:
    schema = evolved(venue={"type": ["null", "string"], "default": None}, score={"type": "double"})
    rows = [{**row, "venue": "X", "score": 0.5} for row in as_records(trades_batch(3))]
    assert (
        RecordDecoder(schema, TRADES.avro)
        .decode(written(schema, *rows))
        .rows.equals(trades_batch(3))
    )


@pytest.mark.parametrize("name", ["k2_mark", "k2_prefix", "k2_block"])
def test_a_writers_names_never_collide_with_those_of_the_decoder(name: str) -> None:
    field: dict[str, Any] = {name: {"type": {"type": "fixed", "name": name, "size": 16}}}
    schema = evolved(**field)
    rows = trades_batch(3)
    bodies = written(schema, *({**record, name: b"m" * 16} for record in as_records(rows)))
    framed = [wire_header(1) + body for body in bodies]
    decoded = RecordDecoder(schema, TRADES.avro, prefix_bytes=5).decode(framed)
    assert decoded.rejects == []
    assert decoded.rows.equals(rows)


def test_fields_that_an_older_schema_lacks_get_our_default() -> None:
    schema = evolved(drop="trade_conditions")
    rows = trades_batch(3)
    decoded = RecordDecoder(schema, TRADES.avro).decode(written(schema, *as_records(rows)))
    assert decoded.rows.equals(rows)


def test_an_int_is_widened_to_our_long() -> None:
    schema = evolved(source_sequence={"type": ["null", "int"], "default": None})
    decoded = RecordDecoder(schema, TRADES.avro).decode(
        written(schema, *as_records(trades_batch(3)))
    )
    assert decoded.rows["source_sequence"].to_pylist() == [1_000, 1_001, 1_002]
    assert decoded.rows.schema.equals(TRADES.arrow)


def test_milliseconds_become_microseconds() -> None:
    schema = evolved(timestamp={"type": {"type": "long", "logicalType": "timestamp-millis"}})
    rows = trades_batch(3)
    decoded = RecordDecoder(schema, TRADES.avro).decode(written(schema, *as_records(rows)))
    assert decoded.rows["timestamp"].equals(rows["timestamp"])


def test_a_further_decimal_may_be_negative_but_must_fit() -> None:
    wide = {"type": "bytes", "logicalType": "decimal", "precision": 38, "scale": 8}
    narrow = {**wide, "precision": 4}
    written_as = evolved(fee={"type": ["null", wide], "default": None})
    rows = as_records(trades_batch(4))
    fees = [None, Decimal("-1E-8"), Decimal("0.00010000"), Decimal(-(10**29))]
    bodies = written(
        written_as, *({**row, "fee": fee} for row, fee in zip(rows, fees, strict=True))
    )
    read = RecordDecoder(written_as, written_as).decode(bodies)
    assert read.rows["fee"].to_pylist() == fees
    ours = evolved(fee={"type": ["null", narrow], "default": None})
    fit = RecordDecoder(written_as, ours).decode(bodies)
    assert fit.rows["fee"].to_pylist() == fees[:2]
    assert [place for place, _ in fit.rejects] == [2, 3]
    assert fit.rejects[0][1].reason == "fee does not fit decimal128(4, 8)"


def test_a_symbol_that_only_the_writer_knows_is_a_reject() -> None:
    schema = evolved(
        side={"type": {"type": "enum", "name": "TradeSide", "symbols": ["BUY", "CROSS", "SELL"]}}
    )
    rows = as_records(trades_batch(3))
    rows[1]["side"] = "CROSS"
    decoded = RecordDecoder(schema, TRADES.avro).decode(written(schema, *rows))
    assert reasons_of(decoded.rejects) == [(1, "side is CROSS, not a symbol of it")]
    assert decoded.rows["side"].to_pylist() == ["BUY", "BUY"]


def test_a_null_where_we_need_a_value_is_a_reject() -> None:
    schema = evolved(currency={"type": ["null", "string"]})
    rows = as_records(trades_batch(2))
    rows[0]["currency"] = None
    decoded = RecordDecoder(schema, TRADES.avro).decode(written(schema, *rows))
    assert reasons_of(decoded.rejects) == [(0, "currency is null")]


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (QUOTES.avro, "the schema is QuoteV2, not TradeV2"),
        (evolved(drop="symbol"), "field symbol is missing, and has no default"),
        (
            evolved(price={"type": "double"}),
            "field price: no Arrow type for the Avro type 'double'",
        ),
        (
            evolved(
                price={
                    "type": {
                        "type": "bytes",
                        "logicalType": "decimal",
                        "precision": 18,
                        "scale": 6,
                    }
                }
            ),
            "field price is decimal128(18, 6), not decimal128(18, 8)",
        ),
        (
            evolved(timestamp={"type": "long"}),
            "field timestamp is int64, not timestamp[us, tz=UTC]",
        ),
    ],
)
def test_schemas_that_cannot_be_read_say_which_field(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(Incompatible) as caught:
        RecordDecoder(schema, TRADES.avro)
    assert str(caught.value) == reason


def test_bad_bodies_alone_are_told_also_where_our_default_is_a_list() -> None:
    """There is nothing to repeat the default for."""
    fields = [field for field in TRADES.avro["fields"] if field["name"] != "trade_conditions"]
    decoder = RecordDecoder({**TRADES.avro, "fields": fields}, TRADES.avro)
    decoded = decoder.decode([b"x"])
    assert (decoded.rows.num_rows, len(decoded.rejects)) == (0, 1)
    assert decoded.rows.schema.names == TRADES.arrow.names
