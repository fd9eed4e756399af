"""What two schemas differ in."""

from typing import Any

from k2cli.avro.builtin import BUILTIN_SCHEMAS, builtin_schema
from k2cli.avro.differences import differences
from k2cli.avro.types import link
from support.avro_cases import array, decimal, enum, field, mapped, record


def told(old: Any, new: Any) -> list[tuple[str, str, str | None, str | None]]:
    return [(d.path, d.what, d.old, d.new) for d in differences(link(old), link(new))]


def test_ours_do_not_differ_from_themselves() -> None:
    for name in BUILTIN_SCHEMAS:
        assert told(builtin_schema(name), builtin_schema(name)) == []


def test_fields_come_go_and_change() -> None:
    old = record(field("int", doc="x"), field("string", "gone"), field("long", "b", default=1))
    new = record(
        field("long", doc="y"),
        field("long", "b", aliases=["c"]),
        field("string", "new", default=""),
    )
    assert told(old, new) == [
        ("a", "type", "int", "long"),
        ("a", "doc", "x", "y"),
        ("b", "default", "1", None),
        ("b", "aliases", None, "c"),
        ("new", "added", None, 'string = ""'),
        ("gone", "removed", "string", None),
    ]


def test_the_record_itself_is_compared() -> None:
    old = record(field("int"), doc="one")
    new = {**record(field("int"), name="S", doc="two", aliases=["R"]), "namespace": "m"}
    assert told(old, new) == [
        ("", "name", "n.R", "m.S"),
        ("", "doc", "one", "two"),
        ("", "aliases", None, "m.R"),
    ]


def test_a_field_with_the_alias_of_one_that_is_gone_was_renamed() -> None:
    old = record(field("int"))
    new = record(field("long", "c", aliases=["a"]))
    assert told(old, new) == [
        ("c", "renamed", "a", "c"),
        ("c", "type", "int", "long"),
        ("c", "aliases", None, "a"),
    ]


def test_what_is_nested_has_a_path() -> None:
    def legs(of: Any) -> Any:
        leg = record(field(of, "price"), name="Leg")
        return record(field(array(leg), "legs"), field(mapped(["null", "n.Leg"]), "more"))

    assert told(legs(decimal(18, 6)), legs(decimal(18, 8))) == [
        ("legs[].price", "type", "decimal(18,6)", "decimal(18,8)"),
        ("more{}.price", "type", "decimal(18,6)", "decimal(18,8)"),
    ]


def test_symbols_and_the_default_of_an_enum_are_of_its_type() -> None:
    old, new = record(field(enum("A"))), record(field(enum("A", "B", default="A")))
    assert told(old, new) == [("a", "type", "enum n.E(A)", "enum n.E(A, B) = A")]


def test_fields_in_another_order_are_told() -> None:
    old = record(field("int"), field("int", "b"), field("int", "c"))
    new = record(field("int", "b"), field("int"), field("int", "d"))
    assert told(old, new)[-1] == ("", "order", "a, b", "b, a")


def test_a_record_that_holds_itself_ends() -> None:
    tree = record(field(["null", "n.Tree"], "next"), field("int"), name="Tree")
    wider = record(field(["null", "n.Tree"], "next"), field("long"), name="Tree")
    assert told(tree, wider) == [("a", "type", "int", "long")]


def test_schemas_need_not_be_records() -> None:
    assert told("string", "bytes") == [("", "name", "string", "bytes")]
