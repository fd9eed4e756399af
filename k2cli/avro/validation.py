"""Find errors in an Avro schema, and features that k2 does not support.

Parsers are more lenient than the specification, and readers ignore a logical type that they do not
support, so a price could silently become bytes. Here both are errors.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from k2cli.avro.builtin import builtin_name, builtin_schema
from k2cli.avro.compatibility import misfits
from k2cli.avro.types import MAX_DIGITS, PRIMITIVES, UNION, Type, join_path, link, walk
from k2cli.errors import BadData
from k2cli.records import arrow_field

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_LAST_BYTE: Final = 0xFF
_IGNORED: Final = "the logical type would be ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A problem in a schema; a warning is an error only in strict mode."""

    path: str  # of the field; empty for the schema as a whole
    reason: str
    is_warning: bool = False


def findings(avro: Any) -> list[Finding]:
    """List the problems of a schema parsed by `parse_avro`."""
    root = link(avro)
    if root.kind != "record":
        return [Finding(path="", reason=f"it is {root}, not a record")]
    return [
        *_misnamed(root),
        *_undocumented(root),
        *violations(root),
        *(each for path, of in walk(root) for each in _flaws(path, of)),
        *_core(root),
        *_columns(avro),
    ]


def _misnamed(root: Type) -> Iterator[Finding]:
    if "." not in root.name:
        yield Finding(path="", reason="the record has no namespace", is_warning=True)


def _undocumented(root: Type) -> Iterator[Finding]:
    if not root.doc.strip():
        yield Finding(path="", reason="the record has no doc", is_warning=True)
    for path, of in walk(root):
        for field in of.fields:
            if not field.doc.strip():
                yield Finding(
                    path=join_path(path, field.name), reason="has no doc", is_warning=True
                )


def check_valid(avro: Any, what: str) -> None:
    """Check a schema parsed by `parse_avro`; `what` names its origin.

    Raises:
        BadData: the specification forbids it.
    """
    for each in violations(link(avro)):
        where = f"field {each.path}: " if each.path else ""
        raise BadData(f"{what} is not a valid Avro schema: {where}{each.reason}")


def violations(root: Type) -> Iterator[Finding]:
    """Yield violations of the specification that parse as a schema."""
    for path, of in walk(root):
        if of.name and (not _NAME.fullmatch(of.name) or of.name in PRIMITIVES):
            yield Finding(path=path, reason=f"{of.name!r} is not a valid name")
        if of.kind == UNION:
            yield from _invalid_union(path, of)
        if of.kind == "enum":
            yield from _invalid_enum(path, of)
        if of.kind == "record":
            yield from _invalid_fields(path, of)


def _invalid_union(path: str, of: Type) -> Iterator[Finding]:
    kinds = [branch.name or branch.kind for branch in of.inner]
    for kind in sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        yield Finding(path=path, reason=f"the union has {kind} more than once")
    if UNION in kinds:
        yield Finding(path=path, reason="the union contains a union")


def _invalid_enum(path: str, of: Type) -> Iterator[Finding]:
    for symbol, times in Counter(of.symbols).items():
        if not _NAME.fullmatch(symbol) or "." in symbol:
            yield Finding(path=path, reason=f"{symbol!r} is not a valid symbol")
        if times > 1:
            yield Finding(path=path, reason=f"the enum has the symbol {symbol} more than once")
    if of.default is not None and of.default not in of.symbols:
        yield Finding(path=path, reason=f"default {of.default!r} is not one of its symbols")


def _invalid_fields(path: str, of: Type) -> Iterator[Finding]:
    names = [field.name for field in of.fields]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding(
            path=join_path(path, name), reason="the record has several fields of this name"
        )
    for field in of.fields:
        field_path = join_path(path, field.name)
        if not _NAME.fullmatch(field.name) or "." in field.name:
            yield Finding(path=field_path, reason="is not a valid field name")
        if field.has_default and not _is_value(field.default, field.type):
            text = json.dumps(field.default, ensure_ascii=False)
            if field.type.kind == "enum":
                yield Finding(path=field_path, reason=f"default {text} is not one of its symbols")
            else:
                yield Finding(path=field_path, reason=f"default {text} is not {field.type}")


def _is_value(value: Any, of: Type) -> bool:
    """Return whether JSON encodes a value of a type, as defaults are written."""
    match of.kind:
        case "union":
            return any(_is_value(value, branch) for branch in of.inner)
        case "array":
            return isinstance(value, list) and all(_is_value(each, of.inner[0]) for each in value)
        case "map":
            values = value.values() if isinstance(value, dict) else [value]
            return isinstance(value, dict) and all(_is_value(each, of.inner[0]) for each in values)
        case "record":
            return isinstance(value, dict) and all(
                _is_value(value[field.name], field.type)
                if field.name in value
                else field.has_default
                for field in of.fields
            )
        case _:
            return _SIMPLE_VALUES[of.kind](value, of)


def _is_whole(value: Any, bits: int) -> bool:
    return type(value) is int and -(1 << bits - 1) <= value < 1 << bits - 1


def _is_number(value: Any, _: Type) -> bool:
    return type(value) in (int, float)


def _is_binary(value: Any, _: Type) -> bool:
    """Return whether JSON encodes bytes: a text of the characters U+0000 to U+00FF."""
    return isinstance(value, str) and all(ord(char) <= _LAST_BYTE for char in value)


_SIMPLE_VALUES: Final[Mapping[str, Callable[[Any, Type], bool]]] = {
    "null": lambda value, _: value is None,
    "boolean": lambda value, _: isinstance(value, bool),
    "int": lambda value, _: _is_whole(value, 32),
    "long": lambda value, _: _is_whole(value, 64),
    "float": _is_number,
    "double": _is_number,
    "bytes": _is_binary,
    "fixed": lambda value, of: _is_binary(value, of) and len(value) == of.size,
    "string": lambda value, _: isinstance(value, str),
    "enum": lambda value, of: value in of.symbols,
}


def _flaws(path: str, of: Type) -> Iterator[Finding]:
    """Yield valid but probably unintended declarations, and those k2 cannot store."""
    if of.ignored:
        yield Finding(path=path, reason=f"{_IGNORED}: {of.ignored}")
    if of.precision > MAX_DIGITS:
        yield Finding(path=path, reason=f"{of} has more than {MAX_DIGITS} digits")
    if of.kind == "fixed" and of.size < 1:
        yield Finding(path=path, reason=f"{of} has no bytes")
    names = {field.name for field in of.fields}
    for field in of.fields:
        field_path = join_path(path, field.name)
        for alias in sorted({*field.aliases} & names - {field.name}):
            yield Finding(path=field_path, reason=f"its alias {alias} is the name of another field")
        if field.stray_logical is not None:
            reason = f"logicalType {field.stray_logical} is beside the type, not inside it"
            yield Finding(path=field_path, reason=f"{_IGNORED}: {reason}")


def _core(root: Type) -> Iterator[Finding]:
    """Yield what keeps records with a k2 name from being read as that k2 kind."""
    if stem := builtin_name(root.short_name):
        for each in misfits(link(builtin_schema(stem)), root):
            yield Finding(path=each.path, reason=f"does not fit {stem}: {each.reason}")


def _columns(avro: Any) -> Iterator[Finding]:
    """Yield the fields with a type that no k2 column has."""
    for field in avro["fields"]:
        try:
            arrow_field(field["name"], field["type"])
        except ValueError as exc:
            yield Finding(path=field["name"], reason=f"k2 has no column for it: {exc}")
