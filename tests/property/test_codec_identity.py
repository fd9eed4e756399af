"""Any valid batch survives Avro, and fastavro agrees on every byte."""

import io
from datetime import UTC, datetime
from decimal import Decimal

import fastavro
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from k2cli.codec.encode import encode_messages
from k2cli.codec.resolve import RecordDecoder
from k2cli.records import KINDS, RecordKind
from support.builders import Row, batch_of

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
_LONG = st.integers(-(2**63), 2**63 - 1)
_TIME = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30)).map(  # noqa: DTZ001
    lambda time: time.replace(tzinfo=UTC)
)


def _decimals(of: pa.DataType) -> st.SearchStrategy[Decimal]:
    return st.integers(0, 10**of.precision - 1).map(
        lambda unscaled: Decimal(unscaled).scaleb(-of.scale)
    )


def _values(field: pa.Field, symbols: list[str] | None) -> st.SearchStrategy[object]:
    kind = field.type
    values: st.SearchStrategy[object] = _LONG
    if symbols:
        values = st.sampled_from(symbols)
    elif pa.types.is_string(kind):
        values = _TEXT
    elif pa.types.is_decimal(kind):
        values = _decimals(kind)
    elif pa.types.is_timestamp(kind):
        values = _TIME
    elif pa.types.is_map(kind):
        values = st.dictionaries(_TEXT, _TEXT, max_size=4)
    elif pa.types.is_list(kind):
        values = st.lists(_TEXT, max_size=4)
    return st.none() | values if field.nullable else values


def _rows(kind: RecordKind) -> st.SearchStrategy[list[Row]]:
    enums = {
        field["name"]: field["type"]["symbols"]
        for field in kind.avro["fields"]
        if isinstance(field["type"], dict) and field["type"]["type"] == "enum"
    }
    row = st.fixed_dictionaries(
        {field.name: _values(field, enums.get(field.name)) for field in kind.arrow}
    )
    return st.lists(row, max_size=12)


_DECODERS = {name: RecordDecoder(kind.avro, kind.avro) for name, kind in KINDS.items()}
_SCHEMAS = {name: fastavro.parse_schema(dict(kind.avro)) for name, kind in KINDS.items()}
_BATCHES = st.sampled_from(list(KINDS.values())).flatmap(
    lambda kind: st.tuples(st.just(kind), _rows(kind))
)


@given(_BATCHES, st.integers(0, 3))
def test_a_batch_survives_avro_and_fastavro_reads_it(
    drawn: tuple[RecordKind, list[Row]], cut: int
) -> None:
    kind, rows = drawn
    batch = batch_of(kind, rows).slice(cut)
    bodies = encode_messages(batch, kind.avro).to_pylist()
    for body, row in zip(bodies, rows[cut:], strict=True):
        read = io.BytesIO(body)
        assert fastavro.schemaless_reader(read, _SCHEMAS[kind.name], None) == row
        assert read.tell() == len(body)
    decoded = _DECODERS[kind.name].decode(bodies)
    assert decoded.rejects == []
    assert decoded.rows.equals(batch)


@given(_rows(KINDS["trades"]).filter(bool), st.data())
def test_a_damaged_body_never_changes_another_row(rows: list[Row], data: st.DataObject) -> None:
    kind = KINDS["trades"]
    bodies = encode_messages(batch_of(kind, rows), kind.avro).to_pylist()
    hit = data.draw(st.integers(0, len(bodies) - 1))
    body = bytearray(bodies[hit])
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    bodies[hit] = bytes(body)
    decoded = _DECODERS["trades"].decode(bodies)
    others = [place for place in range(len(rows)) if place != hit]
    kept = dict(zip(decoded.indexes.tolist(), decoded.rows.to_pylist(), strict=True))
    expected = batch_of(kind, rows).to_pylist()
    assert {place: kept[place] for place in others} == {place: expected[place] for place in others}
    assert len(kept) + len(decoded.rejects) == len(rows)
