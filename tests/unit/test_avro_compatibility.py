"""Who can read what, by the specification; the table of cases is tests/support/avro_cases.py."""

from typing import Any

import pytest

from k2cli.avro.compatibility import Schema, breaches, misfits
from k2cli.avro.level import Level
from k2cli.avro.types import link
from support.avro_cases import (
    CASES,
    Case,
    array,
    decimal,
    enum,
    field,
    fixed,
    logical,
    mapped,
    record,
)


def told(reader: Any, writer: Any) -> list[tuple[str, str]]:
    return [(each.path, each.reason) for each in misfits(link(reader), link(writer))]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_verdicts_are_as_the_table_has_them(case: Case) -> None:
    old, new = link(case.old), link(case.new)
    assert (not misfits(new, old)) is case.backward
    assert (not misfits(old, new)) is case.forward


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_schema_reads_what_it_wrote(case: Case) -> None:
    assert told(case.old, case.old) == []
    assert told(case.new, case.new) == []


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_only_k2_refuses_is_marked(case: Case) -> None:
    """Where the registry lets pass what k2 does not, every misfit says so."""
    for ours, theirs, reader, writer in (
        (case.backward, case.by_registry[0], case.new, case.old),
        (case.forward, case.by_registry[1], case.old, case.new),
    ):
        found = misfits(link(reader), link(writer))
        if not ours:
            assert all(each.is_let_pass for each in found) is theirs


@pytest.mark.parametrize(
    ("reader", "writer", "path", "reason"),
    [
        ("long", "string", "a", "string cannot be read as long"),
        (["null", "long"], "string", "a", "string is not one of null | long"),
        ("long", ["null", "long"], "a", "null cannot be read as long"),
        (enum("A"), enum("A", "B", "C"), "a", "enum E lacks B, C, and has no default"),
        (fixed(8), fixed(16), "a", "fixed F(16) cannot be read as fixed F(8)"),
        (array("int"), array("long"), "a[]", "long cannot be read as int"),
        (mapped(array("int")), mapped(array("long")), "a{}[]", "long cannot be read as int"),
        (
            array(record(field("int", "b"), name="Leg")),
            array(record(field("string", "b"), name="Leg")),
            "a[].b",
            "string cannot be read as int",
        ),
        (
            mapped(["null", record(field("int", "b"), name="Leg")]),
            mapped(["null", record(name="Leg")]),
            "a{}.b",
            "record Leg lacks it, and it has no default",
        ),
        (
            decimal(18, 8),
            decimal(18, 6),
            "a",
            "decimal(18,6) read as decimal(18,8) would change every value",
        ),
        (
            decimal(9, 8),
            decimal(18, 8),
            "a",
            "decimal(18,8) has values that do not fit decimal(9,8)",
        ),
        (
            logical("timestamp-micros"),
            logical("timestamp-millis"),
            "a",
            "timestamp-millis read as timestamp-micros would mean something else",
        ),
    ],
)
def test_a_misfit_says_where_and_why(reader: Any, writer: Any, path: str, reason: str) -> None:
    assert told(record(field(reader)), record(field(writer))) == [(path, reason)]


def test_all_misfits_are_told() -> None:
    reader = record(field("int"), field("string", "b"), field("long", "c"))
    writer = record(field("string"), field("int", "b"))
    assert [path for path, _ in told(reader, writer)] == ["a", "b", "c"]


def test_a_record_that_holds_itself_is_told_once() -> None:
    def tree(of: str) -> Any:
        children = array("n.Tree")
        return record(field(of, "v"), field(children, "children"), name="Tree")

    assert told(tree("int"), tree("string")) == [("v", "string cannot be read as int")]


def test_of_branches_the_one_that_fits_is_taken() -> None:
    reader = ["null", "string", decimal(18, 8)]
    assert told(record(field(reader)), record(field(decimal(18, 8)))) == []
    (misfit,) = misfits(link(record(field(reader))), link(record(field(decimal(18, 6)))))
    assert misfit.is_let_pass


def schemas(*types: Any) -> list[Schema]:
    return [
        Schema(name=f"v{number}", type=link(record(field(of))))
        for number, of in enumerate(types, start=1)
    ]


def test_a_breach_says_which_field_breaks_whom() -> None:
    old = Schema(name="OLD", type=link(record(field("long", "price"))))
    new = Schema(name="NEW", type=link(record(field("int", "price"))))
    (breach,) = breaches(Level.BACKWARD, [old], new)
    assert str(breach) == (
        "BACKWARD: a reader with NEW cannot read what OLD wrote: "
        "field price: long cannot be read as int"
    )
    assert breaches(Level.FORWARD, [old], new) == []
    scaled = [
        Schema(name=name, type=link(record(field(decimal(18, scale), "price"))))
        for name, scale in (("OLD", 6), ("NEW", 8))
    ]
    both = breaches(Level.FULL, scaled[:1], scaled[1])
    assert [breach.direction for breach in both] == ["BACKWARD", "FORWARD"]
    assert str(both[1]).startswith("FORWARD: a reader with OLD cannot read what NEW wrote: ")
    assert str(both[1]).endswith("(the registry would accept this)")


@pytest.mark.parametrize(
    ("level", "found"),
    [
        (Level.NONE, []),
        (Level.BACKWARD, []),
        (Level.BACKWARD_TRANSITIVE, [("BACKWARD", "v3", "v1")]),
        (Level.FORWARD, [("FORWARD", "v2", "v3")]),
        (Level.FORWARD_TRANSITIVE, [("FORWARD", "v1", "v3"), ("FORWARD", "v2", "v3")]),
        (Level.FULL, [("FORWARD", "v2", "v3")]),
        (
            Level.FULL_TRANSITIVE,
            [("BACKWARD", "v3", "v1"), ("FORWARD", "v1", "v3"), ("FORWARD", "v2", "v3")],
        ),
    ],
)
def test_a_level_says_who_must_read_what(level: Level, found: list[tuple[str, str, str]]) -> None:
    """Text, then whole numbers, then wider ones: the last two steps fit backward alone."""
    first, second, third = schemas("string", "int", "long")
    told = breaches(level, [first, second], third)
    assert [(each.direction, each.reader, each.writer) for each in told] == found
