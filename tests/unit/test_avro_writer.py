"""Writers' schemas as decoders get them: nothing in them that is ignored, or that is not safe."""

import json
import time
from typing import Any

import pytest

from k2cli.avro.types import link
from k2cli.avro.writer import writer_schema
from k2cli.errors import BadData
from support.avro_cases import (
    LEG,
    TREE,
    array,
    decimal,
    enum,
    field,
    fixed,
    logical,
    mapped,
    record,
)
from support.waiting import PATIENCE_S


def type_of(avro: Any) -> Any:
    """Reduce the type of the only field of a record."""
    (only,) = writer_schema(record(field(avro)))["fields"]
    return only["type"]


@pytest.mark.parametrize(
    "of",
    [
        decimal(4, 10),
        decimal(0, 0),
        decimal(4, -1),
        {**decimal(4, 2), "precision": "4"},
        {**decimal(4, 2), "scale": "2"},
        {**decimal(4, 2), "scale": True},
        {"type": "bytes", "logicalType": "decimal"},
        logical("date", "bytes"),
        logical("no-such-type", "bytes"),
        {"type": "bytes", "logicalType": ["decimal"]},
        {"type": {"type": "bytes", "logicalType": "uuid"}},
    ],
)
def test_a_logical_type_that_does_not_count_is_left_out(of: Any) -> None:
    assert type_of(of) == "bytes"


@pytest.mark.parametrize(
    "of", [decimal(18, 8), logical("timestamp-micros"), logical("date", "int")]
)
def test_a_logical_type_that_counts_stays(of: Any) -> None:
    assert type_of(of) == of


def test_what_is_for_readers_and_people_is_left_out() -> None:
    avro = record(
        field("string", default=0, doc=5, aliases="b"), doc=None, aliases=[1], namespace="a-b"
    )
    assert writer_schema(avro) == {
        "type": "record",
        "name": "R",
        "fields": [{"name": "a", "type": "string"}],
    }
    assert type_of(enum("A", default="B", doc=[]))["symbols"] == ["A"]


def test_a_named_type_is_written_out_wherever_it_is_used() -> None:
    avro = record(field(LEG), field(array("Leg"), "b"), field("n.Leg", "c"))
    found = writer_schema(avro)
    first, second, third = (each["type"] for each in found["fields"])
    assert first["fields"] == second["items"]["fields"] == third["fields"] == LEG["fields"]
    assert len({first["name"], second["items"]["name"], third["name"]}) == 3
    assert str(link(found).fields[0].type.fields[0].type) == "long"


@pytest.mark.parametrize(
    "avro",
    [
        TREE,
        record(field(TREE)),
        record(field(array("n.R"))),
        record(field(mapped(["null", "n.R"]))),
        record(field(record(field(["null", "n.R"]), field(["null", "n.S"], "b"), name="S"))),
    ],
)
def test_a_recursive_schema_is_refused(avro: Any) -> None:
    with pytest.raises(BadData, match="is recursive"):
        writer_schema(avro)


@pytest.mark.parametrize(
    "items", ["null", fixed(0), record(name="E"), record(field("null"), name="E"), []]
)
def test_an_array_of_items_without_bytes_is_refused(items: Any) -> None:
    with pytest.raises(BadData, match="take no bytes"):
        writer_schema(record(field(array(items))))
    writer_schema(record(field(items), field(array(["null", "long"]), "b")))


@pytest.mark.parametrize(
    ("avro", "reason"),
    [
        ("string", "the schema is string, not a record"),
        (None, "null is not a type"),
        ({"type": "record"}, "has no name"),
        ({"type": "record", "name": "R"}, "has no list of fields"),
        ({"type": "record", "name": "R", "fields": {"a": "long"}}, "has no list of fields"),
        (record("a"), "has no list of fields"),
        (record({"name": "a"}), "field a has no type"),
        (record({"type": "long"}), "has no name"),
        (record(field("long"), field("int")), "several fields of one name"),
        (record(field({"type": "array"})), "array has no items"),
        (record(field({"type": "fixed", "name": "F", "size": True})), "has no size"),
        (record(field(fixed(-1))), "has no size"),
        (record(field({"type": "enum", "name": "E", "symbols": "AB"})), "has no list of symbols"),
        (record(field(LEG), field(LEG, "b")), "type n.Leg is defined more than once"),
        (record(field(7)), "7 is not a type"),
        (record(field("nosuch")), "unknown type n.nosuch"),
    ],
)
def test_what_is_not_avro_is_refused_with_the_reason(avro: Any, reason: str) -> None:
    with pytest.raises(BadData) as refused:
        writer_schema(avro)
    assert reason in str(refused.value)


def test_a_clique_of_records_is_refused_quickly() -> None:
    """Each refers to all others: the paths through them are more than anybody can follow."""
    names = [f"R{n}" for n in range(14)]
    inner = record(*(field(["null", f"n.{name}"], name) for name in names), name=names[-1])
    for name in reversed(names[:-1]):
        others = (field(["null", f"n.{each}"], each) for each in names if each < name)
        inner = record(field(inner), *others, name=name)
    began = time.monotonic()
    with pytest.raises(BadData):
        writer_schema(json.loads(json.dumps(inner)))
    assert time.monotonic() - began < PATIENCE_S  # all paths would take years
