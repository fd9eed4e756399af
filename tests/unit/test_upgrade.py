"""Records of the v1 schemas: every field exact, every id the same each time."""

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from k2cli.codec.decode import Decoded
from k2cli.codec.encode import encode_messages, wire_header
from k2cli.codec.kinds import KindDecoder
from k2cli.codec.resolve import Incompatible
from k2cli.codec.upgrade import UPGRADES, V1_DEFAULTS, Origin, Upgrade, V1Defaults
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.registry import Registry
from k2cli.records import MAX_NUMBER, QUOTES, TRADES, message_ids
from support.builders import START, quote_v1, trade_v1, trades_batch, written
from support.cluster import unexpected
from support.faults import reasons_of

V1 = UPGRADES["trade_v1"].avro
QUOTE_V1 = UPGRADES["quote_v1"].avro
MOMENT = START + timedelta(milliseconds=55)
HEADER = wire_header(1)
UNFIT = "is negative or does not fit decimal128({}, 8)"
UNFIT_PRICE, UNFIT_QUANTITY = UNFIT.format(18), UNFIT.format(20)


def origin_of(count: int, *, first: int = 500) -> Origin:
    """Say that records stood on partition 1, from an offset on."""
    return Origin(
        series=["kafka/t/0", "kafka/t/1"],
        codes=np.ones(count, dtype=np.int64),
        numbers=np.arange(first, first + count),
    )


def messages(schema: Any, *records: dict[str, Any]) -> list[bytes]:
    return [HEADER + body for body in written(schema, *records)]


def upgraded(
    *records: dict[str, Any], schema: Any = V1, defaults: V1Defaults = V1_DEFAULTS
) -> Decoded:
    kind = QUOTES if schema is QUOTE_V1 else TRADES
    values = messages(schema, *records)
    return KindDecoder(schema, kind, defaults).decode(values, origin_of(len(values)))


def row_of(decoded: Decoded) -> dict[str, Any]:
    (row,) = decoded.rows.to_pylist()
    return {**row, "vendor_data": dict(row["vendor_data"])}


def evolved(*, drop: str = "", **types: Any) -> dict[str, Any]:
    """Return the v1 schema of trades with a field dropped or of another type."""
    schema = json.loads(json.dumps(V1))
    for field in schema["fields"]:
        field["type"] = types.get(field["name"], field["type"])
    return {**schema, "fields": [f for f in schema["fields"] if f["name"] != drop]}


def id_of(series: str, number: int) -> str:
    (made,) = message_ids([series], np.zeros(1, np.int64), np.array([number])).to_pylist()
    return str(made)


def test_every_field_of_a_trade() -> None:
    decoded = upgraded(trade_v1())
    assert decoded.rows.schema.equals(TRADES.arrow)
    assert row_of(decoded) == {
        "message_id": id_of("ASX/trades/BHP", 1_000),
        "trade_id": "ASX-1000",
        "symbol": "BHP",
        "exchange": "ASX",
        "asset_class": "equities",
        "timestamp": MOMENT,
        "price": Decimal("45.12345600"),
        "quantity": Decimal("100.00000000"),
        "currency": "AUD",
        "side": "UNKNOWN",
        "trade_conditions": [],
        "source_sequence": 1_000,
        "ingestion_timestamp": MOMENT + timedelta(milliseconds=7),
        "platform_sequence": None,
        "vendor_data": {"company_id": "7078", "qualifiers": "3", "venue": "X", "buyer_id": "B7"},
    }


def test_every_field_of_a_quote() -> None:
    decoded = upgraded(quote_v1(), schema=QUOTE_V1)
    assert decoded.rows.schema.equals(QUOTES.arrow)
    assert row_of(decoded) == {
        "message_id": id_of("ASX/quotes/BHP", 1_000),
        "quote_id": "ASX-1000",
        "symbol": "BHP",
        "exchange": "ASX",
        "asset_class": "equities",
        "timestamp": MOMENT,
        "bid_price": Decimal("45.12000000"),
        "bid_quantity": Decimal("200.00000000"),
        "ask_price": Decimal("45.13000000"),
        "ask_quantity": Decimal("300.00000000"),
        "currency": "AUD",
        "source_sequence": 1_000,
        "ingestion_timestamp": MOMENT + timedelta(milliseconds=7),
        "platform_sequence": None,
        "vendor_data": {"company_id": "7078"},
    }


def test_nothing_becomes_nothing() -> None:
    decoded = upgraded()
    assert (decoded.rows.num_rows, decoded.rejects) == (0, [])
    assert decoded.rows.schema.equals(TRADES.arrow)


def test_what_is_null_is_not_in_the_vendor_data() -> None:
    decoded = upgraded(trade_v1(buyer_id=None), trade_v1(1), trade_v1(2, buyer_id=""))
    assert [
        dict(entries).get("buyer_id") for entries in decoded.rows["vendor_data"].to_pylist()
    ] == [
        None,
        "B7",
        "",
    ]


def test_without_a_sequence_number_the_offset_tells_records_apart() -> None:
    records = [trade_v1(sequence_number=None), trade_v1(1), trade_v1(sequence_number=None)]
    rows = upgraded(*records).rows
    moment_ms = round(MOMENT.timestamp() * 1000)
    assert rows["source_sequence"].to_pylist() == [None, 1_001, None]
    assert rows["trade_id"].to_pylist() == [
        f"ASX-{moment_ms}-500",
        "ASX-1001",
        f"ASX-{moment_ms}-502",
    ]
    assert rows["message_id"].to_pylist() == [
        id_of("kafka/t/1", 500),
        id_of("ASX/trades/CBA", 1_001),
        id_of("kafka/t/1", 502),
    ]


def test_ids_do_not_depend_on_what_was_decoded_along() -> None:
    records = [trade_v1(i, sequence_number=None if i % 3 else i) for i in range(20)]
    values, decoder = messages(V1, *records), KindDecoder(V1, TRADES, V1_DEFAULTS)
    together = decoder.decode(values, origin_of(20)).rows
    alone = [decoder.decode([v], origin_of(1, first=500 + i)).rows for i, v in enumerate(values)]
    assert together.equals(pa.concat_batches(alone))
    assert len(set(together["message_id"].to_pylist())) == 20


def test_volumes_may_have_twelve_digits() -> None:
    row = row_of(upgraded(trade_v1(volume=10**12 - 1)))
    assert row["quantity"] == Decimal(10**12 - 1)
    quote = quote_v1(bid_volume=10**12 - 1, ask_volume=10**11)
    row = row_of(upgraded(quote, schema=QUOTE_V1))
    assert (row["bid_quantity"], row["ask_quantity"]) == (10**12 - 1, 10**11)


def test_currency_and_side_are_what_they_are_told_to_be() -> None:
    row = row_of(upgraded(trade_v1(), defaults=V1Defaults(currency="NZD", side="BUY")))
    assert (row["currency"], row["side"]) == ("NZD", "BUY")


@pytest.mark.parametrize(
    ("over", "reason"),
    [
        ({"volume": -1}, f"volume -1 {UNFIT_QUANTITY}"),
        ({"volume": 10**12}, f"volume 1000000000000 {UNFIT_QUANTITY}"),
        ({"volume": -(2**63)}, f"volume {-(2**63)} {UNFIT_QUANTITY}"),
        ({"volume": 2**63 - 1}, f"volume {2**63 - 1} {UNFIT_QUANTITY}"),
        ({"price": Decimal("123456789012.5")}, f"price 123456789012.500000 {UNFIT_PRICE}"),
        ({"price": Decimal("10000000000")}, f"price 10000000000.000000 {UNFIT_PRICE}"),
        ({"price": Decimal("-0.01")}, "price is negative or does not fit decimal128(18, 6)"),
        ({"exchange_timestamp": 2**62}, "exchange_timestamp is outside the years 1 to 9999"),
        ({"ingestion_timestamp": -(2**63)}, "ingestion_timestamp is outside the years 1 to 9999"),
        ({"sequence_number": -1}, f"sequence_number -1 is not within 0 to {MAX_NUMBER}"),
        ({"sequence_number": 2**62}, f"sequence_number {2**62} is not within 0 to {MAX_NUMBER}"),
    ],
)
def test_values_that_do_not_fit_are_rejects(over: dict[str, Any], reason: str) -> None:
    records = [trade_v1(i, sequence_number=None) for i in range(3)]
    expected = upgraded(*records).rows
    records[1] |= over
    decoded = upgraded(*records)
    assert reasons_of(decoded.rejects) == [(1, reason)]
    assert decoded.indexes.tolist() == [0, 2]
    assert decoded.rows.equals(expected.take(pa.array([0, 2])))


def test_the_largest_and_smallest_values_are_exact() -> None:
    records = [
        trade_v1(price=Decimal("9999999999.999999"), volume=10**12 - 1, sequence_number=MAX_NUMBER),
        trade_v1(price=Decimal("0.000001"), volume=0, company_id=-(2**31), sequence_number=0),
    ]
    rows = upgraded(*records).rows
    assert rows["price"].to_pylist() == [Decimal("9999999999.999999"), Decimal("0.000001")]
    assert rows["quantity"].to_pylist() == [Decimal(10**12 - 1), Decimal(0)]
    assert rows["trade_id"].to_pylist() == [f"ASX-{MAX_NUMBER}", "ASX-0"]


def test_bodies_that_do_not_decode_leave_the_others_alone() -> None:
    values = messages(V1, *(trade_v1(i, sequence_number=None) for i in range(4)))
    decoder = KindDecoder(V1, TRADES, V1_DEFAULTS)
    expected = decoder.decode(values, origin_of(4)).rows
    decoded = decoder.decode([values[0], HEADER, values[2] + b"x", values[3]], origin_of(4))
    assert [place for place, _ in decoded.rejects] == [1, 2]
    assert decoded.indexes.tolist() == [0, 3]
    assert decoded.rows.equals(expected.take(pa.array([0, 3])))


def test_records_that_are_all_bad_become_no_row() -> None:
    decoded = upgraded(trade_v1(volume=-1), trade_v1(1, volume=-2))
    assert (decoded.rows.num_rows, len(decoded.rejects)) == (0, 2)
    assert decoded.rows.schema.equals(TRADES.arrow)


def test_a_writers_variant_of_v1_is_read_by_the_rules_of_the_specification() -> None:
    schema = {**evolved(drop="exchange", volume="int"), "name": "com.k2.market_data.Trade"}
    decoded = upgraded(trade_v1(), schema=schema)
    assert decoded.rows.equals(upgraded(trade_v1()).rows)


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        (evolved(drop="volume"), "field volume is missing, and has no default"),
        (
            evolved(price=TRADES.avro["fields"][6]["type"]),
            "field price is decimal128(18, 8), not decimal128(18, 6)",
        ),
        (evolved(company_id="long"), "field company_id is int64, not int32"),
        (QUOTE_V1, "the schema is Quote, not TradeV2"),
    ],
)
def test_schemas_that_cannot_be_read_say_which_field(schema: dict[str, Any], reason: str) -> None:
    with pytest.raises(Incompatible) as caught:
        KindDecoder(schema, TRADES, V1_DEFAULTS)
    assert str(caught.value) == reason


@pytest.mark.parametrize("upgrade", UPGRADES.values(), ids=UPGRADES.keys())
def test_the_mapping_makes_every_column_and_uses_every_field(upgrade: Upgrade) -> None:
    assert [rule.target for rule in upgrade.rules] == upgrade.kind.arrow.names
    sources = {source for rule in upgrade.rules for source in rule.sources}
    assert sources == {field["name"] for field in upgrade.avro["fields"]}
    assert all(rule.how for rule in upgrade.rules)


class Schemas:
    """Two schemas and their ids, in the place of a registry."""

    def schema(self, schema_id: int) -> Any:
        return {1: V1, 2: TRADES.avro}[schema_id]


def schemas() -> Registry:
    """Return a registry that knows these schemas."""
    return cast("Registry", Schemas())


def test_messages_of_both_versions_keep_their_order() -> None:
    v2 = encode_messages(trades_batch(3), TRADES.avro, header=wire_header(2)).to_pylist()
    v1 = messages(V1, *(trade_v1(i) for i in range(2)))
    (bad,) = written(V1, trade_v1(volume=-5))
    values = [v2[0], v1[0], wire_header(1) + bad, v2[1], v1[1], v2[2]]
    reader = MessageReader(registry=schemas(), kind=lambda: TRADES, observe=unexpected, topic="t")
    decoded = reader.read(values, np.zeros(6, np.int64), np.arange(10, 16))
    assert decoded.rows["symbol"].to_pylist() == ["BTCUSDT", "BHP", "ETHUSDT", "CBA", "BTCUSDT"]
    assert decoded.rows["platform_sequence"].to_pylist() == [10, 11, 13, 14, 15]
    assert decoded.indexes.tolist() == [0, 1, 3, 4, 5]
    assert reasons_of(decoded.rejects) == [(2, f"volume -5 {UNFIT_QUANTITY}")]


def test_a_message_without_a_number_is_known_by_topic_partition_and_offset() -> None:
    (body,) = written(V1, trade_v1(sequence_number=None))
    reader = MessageReader(
        registry=schemas(), kind=lambda: TRADES, observe=unexpected, topic="market.equities.trades"
    )
    rows = reader.read([wire_header(1) + body], np.array([3]), np.array([41])).rows
    assert rows["message_id"].to_pylist() == [id_of("kafka/market.equities.trades/3", 41)]
