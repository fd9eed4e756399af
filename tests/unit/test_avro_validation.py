"""What is wrong with a schema, beyond what parsers say."""

import json
from typing import Any

import pytest

from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema
from k2cli.avro.types import parse_avro
from k2cli.avro.validation import check_valid, findings
from k2cli.errors import BadData
from support.avro_cases import LEG, array, decimal, enum, field, fixed, logical, mapped, record

ARRAY = '{"type":"array","items":'
RECORD = '{"type":"record","name":"R#","fields":[{"name":"a","type":'


def errors(avro: Any) -> list[tuple[str, str]]:
    parsed = parse_avro(json.dumps(avro), "it")
    return [(each.path, each.reason) for each in findings(parsed) if not each.is_warning]


def trade(**fields: Any) -> Any:
    """Change the types of some fields of our trades; None takes a field away."""
    ours = builtin_schema("trade_v2")
    changed = [{**each, "type": fields.get(each["name"], each["type"])} for each in ours["fields"]]
    return {**ours, "fields": [each for each in changed if each["type"] is not None]}


@pytest.mark.parametrize("name", BUILTIN_SCHEMAS)
def test_nothing_is_wrong_with_ours(name: str) -> None:
    assert findings(builtin_schema(name)) == []


def test_missing_docs_and_namespace_are_warnings() -> None:
    found = findings({**record(field("long"), field("long", "b", doc="x")), "namespace": ""})
    assert [(each.path, each.reason, each.is_warning) for each in found] == [
        ("", "the record has no namespace", True),
        ("", "the record has no doc", True),
        ("a", "has no doc", True),
    ]


@pytest.mark.parametrize(
    ("of", "reason"),
    [
        (
            {"type": "string", "logicalType": "decimal", "precision": 4, "scale": 2},
            "decimal is on string, not on bytes or fixed",
        ),
        (logical("timestamp-micros", "string"), "timestamp-micros is on string, not on long"),
        (logical("timestamp-micros", "int"), "timestamp-micros is on int, not on long"),
        (logical("date"), "date is on long, not on int"),
        (logical("timestamp-micro"), "unknown logical type 'timestamp-micro'"),
        (
            {"type": "bytes", "logicalType": "decimal"},
            "the precision of a decimal must be at least 1, not None",
        ),
        (decimal(0, 0), "the precision of a decimal must be at least 1, not 0"),
        (fixed(8, logicalType="duration"), "duration is on a fixed of 8 bytes, not 12"),
    ],
)
def test_a_logical_type_that_readers_would_ignore_is_an_error(of: Any, reason: str) -> None:
    found = [why for path, why in errors(record(field(of))) if path == "a"]
    assert f"the logical type would be ignored: {reason}" in found


def test_a_logical_type_beside_the_type_is_an_error() -> None:
    assert errors(record(field("string", logicalType="uuid"))) == [
        (
            "a",
            "the logical type would be ignored: logicalType uuid is beside the type, not inside it",
        )
    ]


def test_a_decimal_of_more_digits_than_columns_have_is_an_error() -> None:
    assert ("a", "decimal(40,2) has more than 38 digits") in errors(record(field(decimal(40, 2))))
    assert errors(record(field(decimal(38, 38)))) == []


@pytest.mark.parametrize(
    ("avro", "path", "reason"),
    [
        (record(field("long"), field("string")), "a", "the record has several fields of this name"),
        (record(field("long", "a-b")), "a-b", "is not a valid field name"),
        (record(field("long"), name="1R"), "", "'n.1R' is not a valid name"),
        (record(field(["null", "long", "long"])), "a", "the union has long more than once"),
        (record(field(["null", ["long"]])), "a", "the union contains a union"),
        (record(field(enum("A"), default="B")), "a", 'default "B" is not one of its symbols'),
        (record(field(fixed(0))), "a", "fixed F(0) has no bytes"),
        (
            record(field("long"), field("long", "b", aliases=["a"])),
            "b",
            "its alias a is the name of another field",
        ),
    ],
)
def test_what_parsers_let_pass_is_an_error(avro: Any, path: str, reason: str) -> None:
    assert (path, reason) in errors(avro)


@pytest.mark.parametrize(
    ("of", "default"),
    [
        ("string", 0),
        ("long", 1 << 63),
        ("int", True),
        ("double", "1"),
        ("boolean", 0),
        ("null", 0),
        (decimal(9, 2), 0),
        ("bytes", "\u0100"),
        (fixed(2), "abc"),
        (array("long"), None),
        (array("long"), ["1"]),
        (mapped("long"), {"a": None}),
        (["null", "long"], "x"),
        (record(field("long"), name="Leg"), {}),
        (enum("A"), None),
    ],
)
def test_a_default_of_another_type_is_an_error(of: Any, default: Any) -> None:
    found = errors(record(field(of, default=default)))
    assert [path for path, reason in found if reason.startswith("default ")] == ["a"]


@pytest.mark.parametrize(
    ("of", "default"),
    [
        ("long", -(1 << 63)),
        ("float", 1),
        (decimal(9, 2), "\u00ff\u0000"),
        (fixed(2), "ab"),
        (array(["null", "long"]), [None, 1]),
        (mapped("long"), {"a": 1}),
        (["null", "long"], 1),
        (record(field("long", default=1), name="Leg"), {}),
        (enum("A"), "A"),
    ],
)
def test_a_default_of_its_type_is_valid(of: Any, default: Any) -> None:
    check_valid(parse_avro(json.dumps(record(field(of, default=default))), "it"), "it")


@pytest.mark.parametrize(
    ("avro", "reason"),
    [
        (record(field(["string", "string"])), "field a: the union has string more than once"),
        (record(field("long", "a-b")), "field a-b: is not a valid field name"),
        (record(field("long"), name="long", namespace=""), "'long' is not a valid name"),
        (record(field(enum("A", "A"))), "field a: the enum has the symbol A more than once"),
        (record(field(enum("A b"))), "field a: 'A b' is not a valid symbol"),
        (record(field(enum("A", default="B"))), "field a: default 'B' is not one of its symbols"),
    ],
)
def test_what_the_specification_forbids_is_not_valid(avro: Any, reason: str) -> None:
    with pytest.raises(BadData) as refused:
        check_valid(parse_avro(json.dumps(avro), "it"), "it")
    assert str(refused.value) == f"it is not a valid Avro schema: {reason}"


def test_a_logical_type_that_is_ignored_is_valid() -> None:
    check_valid(parse_avro(json.dumps(record(field(decimal(4, 10)))), "it"), "it")


def nested(levels: int, before: str, after: str) -> str:
    """Write JSON that may be too deep for Python's own writer; `#` is the number of the level."""
    begin = "".join(before.replace("#", str(level)) for level in range(levels))
    return f'{begin}"long"{after * levels}'


def chained(count: int, times: int) -> str:
    """Records that each use the one before it, by its name: flat as JSON, deep or huge as types."""
    first = record(field("long"), name="R0")
    links = [
        record(*(field(f"n.R{level}", f"b{n}") for n in range(times)), name=f"R{level + 1}")
        for level in range(count)
    ]
    return json.dumps(record(*(field(each, f"f{n}") for n, each in enumerate([first, *links]))))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (nested(300, ARRAY, "}"), "nested more than 128 levels"),
        (nested(100_000, "[", "]"), "nested more than 128 levels"),
        (nested(60, ARRAY, "}"), "nested more than 48 levels"),
        (
            nested(400, RECORD, "}]}"),
            "nested more than 128 levels",
        ),
        (chained(1_000, 1), "nested more than 48 levels"),
        (chained(40, 2), "more than 20,000 types"),
    ],
    ids=["arrays", "lists", "types", "records", "chain", "doubling"],
)
def test_a_schema_that_describes_too_much_is_refused(text: str, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        parse_avro(text, "it")


def test_a_byte_order_mark_is_skipped() -> None:
    assert parse_avro("\ufeff" + json.dumps(LEG), "it") == LEG


@pytest.mark.parametrize("text", ["", "{", "\ufeff", "NaN,", '"\\ud800"', "1" * 5_000])
def test_what_is_not_json_is_refused(text: str) -> None:
    with pytest.raises(BadData, match="it is not JSON"):
        parse_avro(text, "it")


@pytest.mark.parametrize(
    "of", ["double", "bytes", record(field("long"), name="Leg"), ["int", "long"]]
)
def test_a_type_that_no_column_has_is_an_error(of: Any) -> None:
    ((path, reason),) = errors(record(field(of)))
    assert path == "a"
    assert reason.startswith("k2 has no column for it: no Arrow type for the Avro type")


def test_what_is_no_record_is_an_error() -> None:
    assert errors("string") == [("", "it is string, not a record")]


@pytest.mark.parametrize(
    ("fields", "path", "reason"),
    [
        ({"symbol": None}, "symbol", "record TradeV2 lacks it, and it has no default"),
        ({"symbol": "long"}, "symbol", "long cannot be read as string"),
        (
            {"price": decimal(18, 6)},
            "price",
            "decimal(18,6) read as decimal(18,8) would change every value",
        ),
        (
            {"timestamp": logical("timestamp-millis")},
            "timestamp",
            "timestamp-millis read as timestamp-micros would mean something else",
        ),
    ],
)
def test_a_record_of_our_name_has_our_core_fields(
    fields: dict[str, Any], path: str, reason: str
) -> None:
    assert errors(trade(**fields)) == [(path, f"does not fit trade_v2: {reason}")]


def test_a_record_of_our_name_may_have_less_and_more() -> None:
    less = trade(vendor_data=None, trade_conditions=None)
    more = field(["null", "string"], "venue", default=None, doc="x")
    assert findings({**less, "fields": [*less["fields"], more]}) == []


@pytest.mark.parametrize(
    ("avro", "reason"),
    [
        (record(field("long"), doc=5), "doc: Expected `str`, got `int`"),
        (record(field("long"), aliases=[1]), "aliases: Expected `str`, got `int`"),
        (record(field("long", doc=None)), "doc: Expected `str`, got `null`"),
        (record({"name": 1, "type": "long"}), "name: Expected `str`, got `int`"),
        (record(field(["null", fixed(8) | {"size": "x"}])), "size: Expected `int`, got `str`"),
        ({"type": "record", "name": "R"}, "R has no fields"),
        (record(field("nosuch")), "unknown type n.nosuch"),
        ({}, "{} is not a type"),
    ],
)
def test_what_is_no_avro_is_refused_with_the_reason(avro: Any, reason: str) -> None:
    with pytest.raises(BadData) as refused:
        parse_avro(json.dumps(avro), "it")
    assert str(refused.value).startswith("it is not an Avro schema: ")
    assert reason in str(refused.value)
