"""Pairs of Avro schemas, and who can read what the other wrote.

`backward` tells whether a reader with the new schema reads what the old one wrote, `forward`
whether a reader with the old one reads what the new one wrote, both as k2 says it. Where the
registry says otherwise, `registry` has its own pair, and `why` the reason.
"""

from dataclasses import dataclass
from typing import Any

Avro = Any
_VERDICTS = {  # backward, forward
    "both": (True, True),
    "backward": (True, False),
    "forward": (False, True),
    "neither": (False, False),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """An old and a new schema, and the verdicts."""

    name: str
    old: Avro
    new: Avro
    backward: bool
    forward: bool
    registry: tuple[bool, bool] | None = None  # backward, forward; None: the same as k2
    why: str = ""

    @property
    def by_registry(self) -> tuple[bool, bool]:
        return self.registry or (self.backward, self.forward)


def record(*fields: Avro, name: str = "R", **more: Avro) -> Avro:
    return {"type": "record", "name": name, "namespace": "n", "fields": list(fields), **more}


def field(type: Avro, name: str = "a", **more: Avro) -> Avro:
    return {"name": name, "type": type, **more}


def enum(*symbols: str, name: str = "E", **more: Avro) -> Avro:
    return {"type": "enum", "name": name, "symbols": list(symbols), **more}


def fixed(size: int, name: str = "F", **more: Avro) -> Avro:
    return {"type": "fixed", "name": name, "size": size, **more}


def decimal(precision: int, scale: int) -> Avro:
    return {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale}


def logical(name: str, base: str = "long") -> Avro:
    return {"type": base, "logicalType": name}


def array(items: Avro) -> Avro:
    return {"type": "array", "items": items}


def mapped(values: Avro) -> Avro:
    return {"type": "map", "values": values}


def typed(name: str, old: Avro, new: Avro, fits: str, by_registry: str = "") -> Case:
    """Make a case of one field that changes its type; who reads whom is one of _VERDICTS."""
    backward, forward = _VERDICTS[fits]
    return Case(
        name=name,
        old=record(field(old)),
        new=record(field(new)),
        backward=backward,
        forward=forward,
        registry=_VERDICTS[by_registry] if by_registry else None,
        why="registries look past logical types" if by_registry else "",
    )


B = field("string", "b")
LEG = record(field("long"), name="Leg")
TREE = record(field("long", "v"), field(["null", "n.Tree"], "next", default=None), name="Tree")
WIDE_TREE = record(
    field("double", "v"), field(["null", "n.Tree"], "next", default=None), name="Tree"
)
FULLER_TREE = record(
    field("long", "v"),
    field("long", "w"),
    field(["null", "n.Tree"], "next", default=None),
    name="Tree",
)

CASES = [
    # Fields that come and go.
    Case(
        name="nothing changes",
        old=record(field("long")),
        new=record(field("long")),
        backward=True,
        forward=True,
    ),
    Case(
        name="a field with default is added",
        old=record(B),
        new=record(B, field("long", default=1)),
        backward=True,
        forward=True,
    ),
    Case(
        name="a field without default is added",
        old=record(B),
        new=record(B, field("long")),
        backward=False,
        forward=True,
    ),
    Case(
        name="a nullable field with default is added",
        old=record(B),
        new=record(B, field(["null", "long"], default=None)),
        backward=True,
        forward=True,
    ),
    Case(
        name="a nullable field without default is added",
        old=record(B),
        new=record(B, field(["null", "long"])),
        backward=False,
        forward=True,
    ),
    Case(
        name="a field with default is removed",
        old=record(B, field("long", default=1)),
        new=record(B),
        backward=True,
        forward=True,
    ),
    Case(
        name="a field without default is removed",
        old=record(B, field("long")),
        new=record(B),
        backward=True,
        forward=False,
    ),
    Case(
        name="one field goes and another comes",
        old=record(B, field("long")),
        new=record(B, field("long", "c")),
        backward=False,
        forward=False,
    ),
    Case(
        name="fields change places",
        old=record(B, field("long")),
        new=record(field("long"), B),
        backward=True,
        forward=True,
    ),
    Case(
        name="a default goes",
        old=record(B, field("long", default=1)),
        new=record(B, field("long")),
        backward=True,
        forward=True,
    ),
    Case(
        name="an array with default is added",
        old=record(B),
        new=record(B, field(array("string"), default=[])),
        backward=True,
        forward=True,
    ),
    # Names and aliases.
    Case(
        name="a field is renamed without alias",
        old=record(field("long")),
        new=record(field("long", "c")),
        backward=False,
        forward=False,
    ),
    Case(
        name="a field is renamed with alias",
        old=record(field("long")),
        new=record(field("long", "c", aliases=["a"])),
        backward=True,
        forward=False,
    ),
    Case(
        name="a field is renamed with alias and default",
        old=record(field("long", default=1)),
        new=record(field("long", "c", aliases=["a"], default=1)),
        backward=True,
        forward=True,
    ),
    Case(
        name="a field with alias has another type",
        old=record(field("string")),
        new=record(field("long", "c", aliases=["a"])),
        backward=False,
        forward=False,
    ),
    Case(
        name="the old one knows the new name as an alias",
        old=record(field("long", "c", aliases=["a"])),
        new=record(field("long")),
        backward=False,
        forward=True,
    ),
    Case(
        name="the record is renamed",
        old=record(B, name="R"),
        new=record(B, name="S"),
        backward=False,
        forward=False,
    ),
    Case(
        name="the record is renamed with alias",
        old=record(B, name="R"),
        new=record(B, name="S", aliases=["R"]),
        backward=True,
        forward=False,
    ),
    Case(
        name="the record is renamed with a full alias",
        old=record(B, name="R"),
        new=record(B, name="S", aliases=["n.R"]),
        backward=True,
        forward=False,
    ),
    Case(
        name="the record moves to another namespace",
        old=record(B),
        new={**record(B), "namespace": "m"},
        backward=True,
        forward=True,
    ),
    # Promotions.
    typed("int to long", "int", "long", "backward"),
    typed("int to float", "int", "float", "backward"),
    typed("int to double", "int", "double", "backward"),
    typed("long to float", "long", "float", "backward"),
    typed("long to double", "long", "double", "backward"),
    typed("float to double", "float", "double", "backward"),
    typed("string to bytes", "string", "bytes", "both"),
    typed("int to string", "int", "string", "neither"),
    typed("boolean to int", "boolean", "int", "neither"),
    typed("long to string", "long", "string", "neither"),
    typed("null to long", "null", "long", "neither"),
    # Unions.
    typed("long becomes nullable", "long", ["null", "long"], "backward"),
    typed("the union's branches change places", ["null", "long"], ["long", "null"], "both"),
    typed("a branch is added", ["null", "long"], ["null", "long", "string"], "backward"),
    typed("a branch is widened", ["null", "int"], ["null", "long"], "backward"),
    typed("a branch is replaced", ["null", "long"], ["null", "boolean"], "neither"),
    typed("int into a union of wider ones", "int", ["null", "double"], "backward"),
    typed("no branch takes it", "string", ["null", "long"], "neither"),
    typed("a union of one", ["long"], "long", "both"),
    typed("bytes into a union with string", "bytes", ["null", "string"], "backward"),
    typed("a union of records", ["null", LEG], ["null", record(name="Leg")], "backward"),
    typed(
        "a union's record gets a field",
        ["null", LEG],
        ["null", record(field("long"), field("long", "c"), name="Leg")],
        "forward",
    ),
    Case(
        name="the schema is a union",
        old=["null", record(B)],
        new=["null", record(B), record(B, name="S")],
        backward=True,
        forward=False,
    ),
    # Enums.
    typed("a symbol is added", enum("A", "B"), enum("A", "B", "C"), "backward"),
    typed(
        "a symbol is added where there is a default",
        enum("A", "B", default="A"),
        enum("A", "B", "C", default="A"),
        "both",
    ),
    typed("a symbol is removed", enum("A", "B"), enum("A"), "forward"),
    typed("a symbol is removed with default", enum("A", "B"), enum("A", default="A"), "both"),
    typed("symbols change places", enum("A", "B"), enum("B", "A"), "both"),
    typed("the enum is renamed", enum("A"), enum("A", name="E2"), "neither"),
    typed(
        "the enum is renamed with alias", enum("A"), enum("A", name="E2", aliases=["E"]), "backward"
    ),
    typed("enum to string", enum("A"), "string", "neither"),
    Case(
        name="a field's default does not stand in for an enum's",
        old=record(field(enum("A", "B"), default="A")),
        new=record(field(enum("A"), default="A")),
        backward=False,
        forward=True,
    ),
    # Fixed.
    typed("the same fixed", fixed(8), fixed(8), "both"),
    typed("a fixed grows", fixed(8), fixed(16), "neither"),
    typed("a fixed is renamed", fixed(8), fixed(8, name="G"), "neither"),
    typed("fixed to bytes", fixed(8), "bytes", "neither"),
    # Arrays and maps.
    typed("items are widened", array("int"), array("long"), "backward"),
    typed("items change", array("int"), array("string"), "neither"),
    typed("items become nullable", array("int"), array(["null", "int"]), "backward"),
    typed("values are widened", mapped("float"), mapped("double"), "backward"),
    typed("values change", mapped("long"), mapped("boolean"), "neither"),
    typed("array to map", array("long"), mapped("long"), "neither"),
    typed("map to record", mapped("long"), LEG, "neither"),
    # Nested and recursive records.
    typed("a nested record loses a field", LEG, record(name="Leg"), "backward"),
    typed(
        "a record in an array gets a field",
        array(LEG),
        array(record(field("long"), field("long", "c"), name="Leg")),
        "forward",
    ),
    typed(
        "a record in a map gets a field with default",
        mapped(LEG),
        mapped(record(field("long"), field("long", "c", default=0), name="Leg")),
        "both",
    ),
    Case(name="a recursive record", old=TREE, new=TREE, backward=True, forward=True),
    Case(name="a recursive one is widened", old=TREE, new=WIDE_TREE, backward=True, forward=False),
    Case(
        name="a recursive one gets a field", old=TREE, new=FULLER_TREE, backward=False, forward=True
    ),
    Case(
        name="a type is named twice",
        old=record(field(LEG), field("n.Leg", "b")),
        new=record(field(record(field("double"), name="Leg")), field("n.Leg", "b")),
        backward=True,
        forward=False,
    ),
    # Logical types, of which registries know nothing.
    typed("the same decimal", decimal(18, 8), decimal(18, 8), "both"),
    typed("the scale grows", decimal(18, 6), decimal(18, 8), "neither", "both"),
    typed("the precision grows", decimal(18, 8), decimal(20, 8), "backward", "both"),
    typed("the precision shrinks", decimal(18, 8), decimal(10, 8), "forward", "both"),
    typed("bytes become a decimal", "bytes", decimal(18, 8), "neither", "both"),
    typed("a decimal as string", decimal(18, 8), "string", "neither", "both"),
    typed(
        "milliseconds to microseconds",
        logical("timestamp-millis"),
        logical("timestamp-micros"),
        "neither",
        "both",
    ),
    typed("a time loses its meaning", logical("timestamp-micros"), "long", "neither", "both"),
    typed(
        "a date to a time",
        logical("date", "int"),
        logical("timestamp-millis"),
        "neither",
        "backward",
    ),
    typed(
        "a decimal becomes nullable, with another scale",
        decimal(18, 6),
        ["null", decimal(18, 8)],
        "neither",
        "backward",
    ),
    typed(
        "a logical type that cannot stand there is none",
        logical("timestamp-micros", "string"),
        "string",
        "both",
    ),
]
