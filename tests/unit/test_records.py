"""Record kinds and message ids."""

import json
import uuid

import numpy as np
import pyarrow as pa
import pytest

from k2cli.records import (
    MAX_NUMBER,
    QUOTES,
    TRADES,
    RecordKind,
    avro_to_arrow_schema,
    message_ids,
    schema_text,
)


def ids(series: str, *numbers: int) -> list[str]:
    codes = np.zeros(len(numbers), dtype=np.int64)
    found: list[str] = message_ids([series], codes, np.array(numbers, dtype=np.int64)).to_pylist()
    return found


@pytest.mark.parametrize(("kind", "stem"), [(TRADES, "trade_v2"), (QUOTES, "quote_v2")])
def test_kind_has_the_columns_of_its_avsc_in_order(kind: RecordKind, stem: str) -> None:
    avsc = json.loads(schema_text(stem))
    assert kind.arrow.names == [field["name"] for field in avsc["fields"]]
    assert avro_to_arrow_schema(avsc) == kind.arrow


def test_trades_have_exact_types() -> None:
    assert TRADES.arrow.field("price") == pa.field("price", pa.decimal128(18, 8), nullable=False)
    assert TRADES.type_of("quantity") == pa.decimal128(20, 8)
    assert TRADES.arrow.field("timestamp").type == pa.timestamp("us", tz="UTC")
    assert TRADES.arrow.field("source_sequence") == pa.field("source_sequence", pa.int64())
    assert TRADES.arrow.field("side").type == pa.string()


@pytest.mark.parametrize(
    "avro", [["null", "long", "string"], {"type": "record", "name": "R", "fields": []}]
)
def test_unsupported_avro_types_are_refused(avro: object) -> None:
    with pytest.raises(ValueError, match=r"Avro|unpack"):
        avro_to_arrow_schema({"fields": [{"name": "x", "type": avro, "doc": ""}]})


def test_message_id_is_a_uuid_of_version_8() -> None:
    parsed = uuid.UUID(ids("BINANCE/trades/BTCUSDT", 3_735_685_016)[0])
    assert parsed.version == 8
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int & MAX_NUMBER == 3_735_685_016


def test_message_id_never_changes() -> None:
    assert ids("BINANCE/trades/BTCUSDT", 17) == ["4a9ae213-a5ed-8ce5-8000-000000000011"]


def test_message_ids_differ_by_series_and_number() -> None:
    all_ids = [
        *ids("BINANCE/trades/BTCUSDT", 0, 1, 2, MAX_NUMBER),
        *ids("BINANCE/quotes/BTCUSDT", 0, 1, 2, MAX_NUMBER),
        *ids("BINANCE_USDM/trades/BTCUSDT", 0, 1, 2, MAX_NUMBER),
    ]
    assert len(set(all_ids)) == len(all_ids)


def test_message_ids_take_each_row_its_series() -> None:
    mixed = message_ids(["a", "b"], np.array([0, 1, 0]), np.array([1, 1, 2])).to_pylist()
    assert mixed == [ids("a", 1)[0], ids("b", 1)[0], ids("a", 2)[0]]
