"""An Avro schema as a tree of types, its names resolved.

https://avro.apache.org/docs/1.12.0/specification/ says what a schema may be. A name that is used
again is the same `Type` again, so a record may hold itself.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Final

import fastavro
import msgspec

from k2cli.errors import BadData

UNION: Final = "union"
NAMED: Final = ("record", "enum", "fixed")
PRIMITIVES: Final = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
MOST_DIGITS: Final = 38  # of a decimal in Arrow and Iceberg
# Logical type -> what it may stand on; on anything else it is ignored.
_BASES: Final[Mapping[str, tuple[str, ...]]] = {
    "decimal": ("bytes", "fixed"),
    "uuid": ("string", "fixed"),
    "date": ("int",),
    "time-millis": ("int",),
    "time-micros": ("long",),
    **dict.fromkeys(("timestamp-millis", "timestamp-micros", "timestamp-nanos"), ("long",)),
    "local-timestamp-millis": ("long",),
    "local-timestamp-micros": ("long",),
    "local-timestamp-nanos": ("long",),
    "duration": ("fixed",),
}
_SHAPES: Final[Mapping[str, Any]] = {  # of attributes in JSON
    **dict.fromkeys(("name", "namespace", "doc"), str),
    **dict.fromkeys(("aliases", "symbols"), list[str]),
    "fields": list[dict[str, Any]],
    "size": int,
}
_INNER: Final = ("type", "items", "values")
_SUFFIXES: Final = {"array": "[]", "map": "{}", UNION: ""}  # of the path to what is inside
_SIZES: Final[Mapping[str, int]] = {"uuid": 16, "duration": 12}  # of a fixed


@dataclass(eq=False, slots=True, kw_only=True)
class Field:
    """A field of a record."""

    name: str
    type: "Type"
    doc: str
    aliases: tuple[str, ...]
    has_default: bool
    default: Any
    stray_logical: str | None  # a logicalType beside the type instead of in it


@dataclass(eq=False, slots=True, kw_only=True)
class Type:
    """A type; which of the attributes mean something depends on its kind."""

    kind: str  # a primitive, record, enum, fixed, array, map or union
    name: str = ""  # of a record, enum or fixed: the full one
    aliases: tuple[str, ...] = ()  # full ones
    doc: str = ""
    fields: list[Field] = attribute(default_factory=list)  # of a record
    inner: list["Type"] = attribute(default_factory=list)  # branches, the item, or the value
    symbols: tuple[str, ...] = ()  # of an enum
    default: str | None = None  # of an enum
    size: int = 0  # of a fixed
    logical: str | None = None  # where it counts: not on a type that it cannot stand on
    precision: int = 0  # of a decimal
    scale: int = 0
    ignored: str | None = None  # why its logicalType does not count

    @property
    def short_name(self) -> str:
        """The name without its namespace, by which types are matched."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        """Write the type for people: `null | decimal(18,8)`, `map<string>`, `record TradeV2`."""
        text = self.logical or self.kind
        if self.logical == "decimal":
            text = f"decimal({self.precision},{self.scale})"
        match self.kind:
            case "union":
                return " | ".join(map(str, self.inner))
            case "array" | "map":
                return f"{self.kind}<{self.inner[0]}>"
            case "fixed":
                return (
                    f"{f'{text} on ' if self.logical else ''}fixed {self.short_name}({self.size})"
                )
            case "enum" | "record":
                return f"{self.kind} {self.short_name}"
            case _:
                return text


def parse_avro(text: str, what: str) -> Any:
    """Parse an Avro schema; `what` says where it comes from.

    Raises:
        BadData: it is not JSON, or not Avro.
    """
    try:
        avro = json.loads(text)
    except ValueError as exc:
        raise BadData(f"{what} is not JSON: {exc}") from exc
    except RecursionError as exc:
        raise BadData(f"{what} is nested too deep") from exc
    try:
        fastavro.parse_schema(avro)
    except (
        fastavro.schema.SchemaParseException,
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        RecursionError,
    ) as exc:
        # For some mistakes the parser has no words of its own.
        said = isinstance(exc, fastavro.schema.SchemaParseException | ValueError)
        is_word = isinstance(exc, fastavro.schema.UnknownType)
        reason = str(exc) if said and not is_word else f"{type(exc).__name__} {exc}"
        raise BadData(f"{what} is not an Avro schema: {reason}") from exc
    for reason in _misshapen(avro):
        raise BadData(f"{what} is not an Avro schema: {reason}")
    return avro


def _misshapen(avro: Any) -> Iterator[str]:
    """Say which attribute has another type in JSON than it must, where parsers do not."""
    if isinstance(avro, list):
        for branch in avro:
            yield from _misshapen(branch)
    elif isinstance(avro, dict):
        for key in _SHAPES.keys() & avro.keys():
            try:
                msgspec.convert(avro[key], _SHAPES[key])
            except msgspec.ValidationError as exc:
                yield f"{key}: {exc}"
                return
        if avro.get("type") in ("record", "error") and "fields" not in avro:
            yield f"{avro['name']} has no fields"
        for inner in (*avro.get("fields", ()), *(avro.get(key, []) for key in _INNER)):
            yield from _misshapen(inner)


def link(avro: Any) -> Type:
    """Make the types of a schema that was parsed by `parse_avro`."""
    return _Linker().link(avro, "")


class _Linker:
    """Makes types and remembers those that have names."""

    def __init__(self) -> None:
        self._named: dict[str, Type] = {}

    def link(self, avro: Any, namespace: str) -> Type:
        match avro:
            case list():
                return Type(kind=UNION, inner=[self.link(each, namespace) for each in avro])
            case str():
                known = self._named.get(_full_name(avro, namespace))
                return known or Type(kind=avro)
            case {"type": "record" | "error" | "enum" | "fixed"}:
                return self._link_named(avro, namespace)
            case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
                return Type(kind=avro["type"], inner=[self.link(inner, namespace)])
            case {"type": inner}:
                made = self.link(inner, namespace)
                if made.kind in PRIMITIVES:
                    _set_logical(made, avro)
                return made
            case _:
                raise ValueError(f"no Avro type: {avro!r}")

    def _link_named(self, avro: Mapping[str, Any], namespace: str) -> Type:
        namespace = avro.get("namespace", namespace)
        name = _full_name(avro["name"], namespace)
        namespace = name.rpartition(".")[0]
        made = self._named[name] = Type(
            kind="record" if avro["type"] == "error" else avro["type"],
            name=name,
            aliases=tuple(_full_name(alias, namespace) for alias in avro.get("aliases", ())),
            doc=avro.get("doc", ""),
            symbols=tuple(avro.get("symbols", ())),
            default=avro.get("default") if avro["type"] == "enum" else None,
            size=avro.get("size", 0),
        )
        _set_logical(made, avro)
        made.fields += [self._link_field(each, namespace) for each in avro.get("fields", ())]
        return made

    def _link_field(self, avro: Mapping[str, Any], namespace: str) -> Field:
        return Field(
            name=avro["name"],
            type=self.link(avro["type"], namespace),
            doc=avro.get("doc", ""),
            aliases=tuple(avro.get("aliases", ())),
            has_default="default" in avro,
            default=avro.get("default"),
            stray_logical=avro.get("logicalType"),
        )


def walk(of: Type, path: str = "", within: tuple[Type, ...] = ()) -> Iterator[tuple[str, Type]]:
    """Yield a type and all that it is made of, each with its path: `legs[].price`, `prices{}`."""
    if of in within:
        return
    within = (*within, of)
    yield path, of
    for inner in of.inner:
        yield from walk(inner, path + _SUFFIXES[of.kind], within)
    for field in of.fields:
        yield from walk(field.type, joined(path, field.name), within)


def joined(place: str, inner: str) -> str:
    """Join two parts of a path: `legs` and `[].price`."""
    return f"{place}{'.' if place and inner and inner[0] not in '[{' else ''}{inner}"


def _full_name(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"


def _set_logical(made: Type, avro: Mapping[str, Any]) -> None:
    logical = avro.get("logicalType")
    if logical is None:
        return
    made.ignored = _why_ignored(made, logical, avro)
    if made.ignored:
        return
    made.logical = logical
    if logical == "decimal":
        made.precision, made.scale = avro["precision"], avro.get("scale", 0)


def _why_ignored(made: Type, logical: object, avro: Mapping[str, Any]) -> str | None:
    """Say why the specification ignores a logical type; None if it counts."""
    bases = _BASES.get(logical) if isinstance(logical, str) else None
    if bases is None:
        return f"there is no logical type {logical!r}"
    if made.kind not in bases:
        return f"{logical} stands on {made.kind}, not on {' or '.join(bases)}"
    if made.kind == "fixed" and made.size != _SIZES.get(str(logical), made.size):
        return f"{logical} stands on a fixed of {made.size} bytes, not {_SIZES[str(logical)]}"
    return _unfit_decimal(made, avro) if logical == "decimal" else None


def _unfit_decimal(made: Type, avro: Mapping[str, Any]) -> str | None:
    precision, scale = avro.get("precision"), avro.get("scale", 0)
    if type(precision) is not int or precision < 1:
        return f"a decimal has a precision of 1 or more, not {precision!r}"
    if type(scale) is not int or not 0 <= scale <= precision:
        return f"the scale of a decimal is from 0 to its precision {precision}, not {scale!r}"
    if made.kind == "fixed" and 10**precision > 1 << (8 * made.size - 1):
        return f"{precision} digits do not fit a fixed of {made.size} bytes"
    return None
