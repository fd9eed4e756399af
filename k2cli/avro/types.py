"""Parse an Avro schema to a tree of types with resolved names.

https://avro.apache.org/docs/1.12.0/specification/ defines schemas. A repeated name is the same
`Type` object, so a record may contain itself.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import Any, Final

import msgspec

from k2cli.errors import BadData

UNION: Final = "union"
NAMED: Final = ("record", "enum", "fixed")
PRIMITIVES: Final = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
MAX_LEVELS: Final = 48  # of types within types
_MAX_JSON_LEVELS: Final = 128  # a record within a record takes three
_MAX_TYPES: Final = 20_000  # within one schema
_TOO_DEEP: Final = f"JSON is nested more than {_MAX_JSON_LEVELS} levels deep"
_BYTE_ORDER_MARK: Final = "\ufeff"
MAX_DIGITS: Final = 38  # of a decimal in Arrow and Iceberg
# Logical type -> its base types; on any other it is ignored.
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
CONTENTS: Final = {"array": "items", "map": "values"}
_SHOWN_CHARS: Final = 80
_INNER: Final = ("type", "items", "values")
_SUFFIXES: Final = {"array": "[]", "map": "{}", UNION: ""}  # of the path to the contents
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
    stray_logical: Any  # a logicalType beside the type instead of inside it


@dataclass(eq=False, slots=True, kw_only=True)
class Type:
    """A type; which attributes apply depends on its kind."""

    kind: str  # a primitive, record, enum, fixed, array, map or union
    name: str = ""  # of a record, enum or fixed: the full one
    aliases: tuple[str, ...] = ()  # full ones
    doc: str = ""
    fields: list[Field] = attribute(default_factory=list)  # of a record
    inner: list["Type"] = attribute(default_factory=list)  # branches, the item, or the value
    symbols: tuple[str, ...] = ()  # of an enum
    default: Any = None  # of an enum
    size: int = 0  # of a fixed
    logical: str | None = None  # only if it is effective: on one of its base types
    precision: int = 0  # of a decimal
    scale: int = 0
    ignored: str | None = None  # why its logicalType is ignored

    @property
    def short_name(self) -> str:
        """The name without its namespace, by which types are matched."""
        return self.name.rpartition(".")[2]

    def __str__(self) -> str:
        """Format the type for people: `null | decimal(18,8)`, `map<string>`, `record TradeV2`."""
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
    """Parse an Avro schema; `what` names its origin.

    For violations beyond the form of a schema, see `validation.violations`.

    Raises:
        BadData: it is not JSON, not Avro, or nested deeper or larger than k2 reads schemas.
    """
    avro = load_json(text, what)
    for reason in _misshapen(avro):
        raise BadData(f"{what} is not an Avro schema: {reason}")
    try:
        link(avro)
    except ValueError as exc:
        raise BadData(f"{what} is not an Avro schema: {exc}") from exc
    return avro


def load_json(text: str, what: str) -> Any:
    """Parse untrusted JSON; a byte order mark is skipped.

    Raises:
        BadData: it is not JSON, is nested too deeply, or has text that is not Unicode.
    """
    try:
        value = json.loads(text.removeprefix(_BYTE_ORDER_MARK))
    except ValueError as exc:
        raise BadData(f"{what} is not JSON: {exc}") from exc
    except RecursionError as exc:
        raise BadData(f"{what}: {_TOO_DEEP}") from exc
    try:
        _check_nesting(value)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as exc:
        raise BadData(f"{what} is not JSON: it has half a surrogate pair") from exc
    except ValueError as exc:
        raise BadData(f"{what}: {exc}") from exc
    return value


def _check_nesting(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_JSON_LEVELS):
        level = [inner for each in level for inner in _items(each)]
        if not level:
            return
    raise ValueError(_TOO_DEEP)


def _items(value: Any) -> Sequence[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else ()


def _misshapen(avro: Any) -> Iterator[str]:
    """Return which attribute has a wrong JSON type that parsers accept."""
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
            yield f"{avro.get('name', 'a record')} has no fields"
        for inner in (*avro.get("fields", ()), *(avro.get(key, []) for key in _INNER)):
            yield from _misshapen(inner)


def link(avro: Any) -> Type:
    """Build the types of a schema, with resolved names.

    Raises:
        ValueError: it is not Avro, or is too large: see `_check_extent`.
    """
    _check_nesting(avro)
    root = _Linker().link(avro, "")
    _check_extent(root)
    return root


def _check_extent(root: Type) -> None:
    """Limit what `walk` yields: a name is expanded wherever it is used."""
    todo: list[tuple[Type, tuple[Type, ...]]] = [(root, ())]
    count = 0
    while todo:
        of, within = todo.pop()
        count += 1
        if len(within) >= MAX_LEVELS:
            raise ValueError(f"its types are nested more than {MAX_LEVELS} levels deep")
        if count > _MAX_TYPES:
            raise ValueError(f"it consists of more than {_MAX_TYPES:,} types")
        inner = (*of.inner, *(field.type for field in of.fields))
        todo += [(each, (*within, of)) for each in inner if each not in within and each is not of]


class _Linker:
    """Builds types and remembers named ones."""

    def __init__(self) -> None:
        self._named: dict[str, Type] = {}

    def link(self, avro: Any, namespace: str) -> Type:
        match avro:
            case list():
                return Type(kind=UNION, inner=[self.link(each, namespace) for each in avro])
            case str():
                return self._find(avro, namespace)
            case {"type": "record" | "error" | "enum" | "fixed"}:
                return self._link_named(avro, namespace)
            case {"type": "array", "items": inner} | {"type": "map", "values": inner}:
                return Type(kind=avro["type"], inner=[self.link(inner, namespace)])
            case {"type": "array" | "map"}:
                raise ValueError(f"{avro['type']} has no {CONTENTS[avro['type']]}")
            case {"type": inner}:
                made = self.link(inner, namespace)
                if made.kind in PRIMITIVES:
                    _set_logical(made, avro)
                return made
            case _:
                raise ValueError(f"{_short(avro)} is not a type")

    def _find(self, name: str, namespace: str) -> Type:
        if name in PRIMITIVES:
            return Type(kind=name)
        found = self._named.get(_full_name(name, namespace)) or self._named.get(name)
        if found is None:
            raise ValueError(f"unknown type {_full_name(name, namespace)}")
        return found

    def _link_named(self, avro: Mapping[str, Any], namespace: str) -> Type:
        namespace = _text(avro, "namespace", namespace)
        name = _full_name(_name(avro), namespace)
        if name in self._named:
            raise ValueError(f"type {name} is defined more than once")
        namespace = name.rpartition(".")[0]
        made = self._named[name] = Type(
            kind="record" if avro["type"] == "error" else avro["type"],
            name=name,
            aliases=tuple(_full_name(alias, namespace) for alias in _aliases(avro)),
            doc=_text(avro, "doc"),
            symbols=_symbols(avro) if avro["type"] == "enum" else (),
            default=avro.get("default") if avro["type"] == "enum" else None,
            size=_size(avro) if avro["type"] == "fixed" else 0,
        )
        _set_logical(made, avro)
        if made.kind == "record":
            made.fields += [self._link_field(each, namespace) for each in _fields(avro)]
        return made

    def _link_field(self, avro: Mapping[str, Any], namespace: str) -> Field:
        name = _name(avro)
        if "type" not in avro:
            raise ValueError(f"field {name} has no type")
        return Field(
            name=name,
            type=self.link(avro["type"], namespace),
            doc=_text(avro, "doc"),
            aliases=_aliases(avro),
            has_default="default" in avro,
            default=avro.get("default"),
            stray_logical=avro.get("logicalType"),
        )


def _name(avro: Mapping[str, Any]) -> str:
    name = avro.get("name")
    if not isinstance(name, str):
        raise ValueError(f"{_short(avro)} has no name")
    return name


def _text(avro: Mapping[str, Any], key: str, otherwise: str = "") -> str:
    """Return an attribute that is only for people; a value of another type is ignored."""
    text = avro.get(key)
    return text if isinstance(text, str) else otherwise


def _aliases(avro: Mapping[str, Any]) -> tuple[str, ...]:
    aliases = avro.get("aliases")
    return tuple(each for each in aliases or () if isinstance(each, str)) if aliases else ()


def _fields(avro: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    fields = avro.get("fields")
    if not isinstance(fields, list) or not all(isinstance(each, dict) for each in fields):
        raise ValueError(f"{_short(avro)} has no list of fields")
    return fields


def _symbols(avro: Mapping[str, Any]) -> tuple[str, ...]:
    symbols = avro.get("symbols")
    if not isinstance(symbols, list) or not all(isinstance(each, str) for each in symbols):
        raise ValueError(f"{_short(avro)} has no list of symbols")
    return tuple(symbols)


def _size(avro: Mapping[str, Any]) -> int:
    size = avro.get("size")
    if type(size) is not int or size < 0:
        raise ValueError(f"{_short(avro)} has no size")
    return size


def _short(avro: Any) -> str:
    """Format part of a schema for a message."""
    text = json.dumps(avro)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def walk(of: Type, path: str = "", within: tuple[Type, ...] = ()) -> Iterator[tuple[str, Type]]:
    """Yield a type and its contents, each with its path: `legs[].price`, `prices{}`."""
    if of in within:
        return
    within = (*within, of)
    yield path, of
    for inner in of.inner:
        yield from walk(inner, path + _SUFFIXES[of.kind], within)
    for field in of.fields:
        yield from walk(field.type, join_path(path, field.name), within)


def join_path(outer: str, inner: str) -> str:
    """Join two parts of a path: `legs` and `[].price`."""
    return f"{outer}{'.' if outer and inner and inner[0] not in '[{' else ''}{inner}"


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
    """Return why the specification ignores a logical type; None if it does not."""
    bases = _BASES.get(logical) if isinstance(logical, str) else None
    if bases is None:
        return f"unknown logical type {logical!r}"
    if made.kind not in bases:
        return f"{logical} is on {made.kind}, not on {' or '.join(bases)}"
    if made.kind == "fixed" and made.size != _SIZES.get(str(logical), made.size):
        return f"{logical} is on a fixed of {made.size} bytes, not {_SIZES[str(logical)]}"
    return _unfit_decimal(made, avro) if logical == "decimal" else None


def _unfit_decimal(made: Type, avro: Mapping[str, Any]) -> str | None:
    precision, scale = avro.get("precision"), avro.get("scale", 0)
    if type(precision) is not int or precision < 1:
        return f"the precision of a decimal must be at least 1, not {precision!r}"
    if type(scale) is not int or not 0 <= scale <= precision:
        return f"the scale of a decimal must be from 0 to its precision {precision}, not {scale!r}"
    if made.kind == "fixed" and 10**precision > 1 << (8 * made.size - 1):
        return f"{precision} digits do not fit a fixed of {made.size} bytes"
    return None
