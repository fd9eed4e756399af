"""What is wrong with an Avro schema, and what k2 could not do with it.

Parsers are lenient where the specification is not, and readers ignore a logical type that they do
not understand; so a price could become bytes without a word. Here both are errors.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from k2cli.avro.compatibility import misfits
from k2cli.avro.ours import our_schema, ours_of
from k2cli.avro.types import MOST_DIGITS, UNION, Type, joined, link, walk
from k2cli.records import arrow_field

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
_IGNORED: Final = "the logical type would be ignored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is wrong at a place of a schema; a warning is wrong only where one is strict."""

    path: str  # of the field; empty for the schema as a whole
    reason: str
    is_warning: bool = False


def findings(avro: Any) -> list[Finding]:
    """List what is wrong with a schema that was parsed by `parse_avro`."""
    root = link(avro)
    if root.kind != "record":
        return [Finding(path="", reason=f"it is {root}, not a record")]
    return [
        *_misnamed(root),
        *_undocumented(root),
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
                yield Finding(path=joined(path, field.name), reason="has no doc", is_warning=True)


def _flaws(path: str, of: Type) -> Iterator[Finding]:
    """Say what the specification forbids, though parsers let it pass, and what k2 cannot hold."""
    if of.name and not _NAME.fullmatch(of.name):
        yield Finding(path=path, reason=f"{of.name!r} is not a name")
    if of.ignored:
        yield Finding(path=path, reason=f"{_IGNORED}: {of.ignored}")
    if of.precision > MOST_DIGITS:
        yield Finding(path=path, reason=f"{of} has more than {MOST_DIGITS} digits")
    if of.kind == "fixed" and of.size < 1:
        yield Finding(path=path, reason=f"{of} has no bytes")
    if of.kind == UNION:
        yield from _flaws_of_union(path, of)
    if of.kind == "record":
        yield from _flaws_of_fields(path, of)


def _flaws_of_fields(path: str, of: Type) -> Iterator[Finding]:
    names = [field.name for field in of.fields]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield Finding(path=joined(path, name), reason="there are several fields of this name")
    for field in of.fields:
        place, symbols = joined(path, field.name), field.type.symbols
        if not _NAME.fullmatch(field.name) or "." in field.name:
            yield Finding(path=place, reason="is not a name that a field can have")
        for alias in sorted({*field.aliases} & {*names} - {field.name}):
            yield Finding(path=place, reason=f"its alias {alias} is another field")
        if field.stray_logical is not None:
            reason = f"logicalType {field.stray_logical} stands beside the type, not in it"
            yield Finding(path=place, reason=f"{_IGNORED}: {reason}")
        if field.has_default and symbols and field.default not in symbols:
            yield Finding(path=place, reason=f"default {field.default!r} is none of its symbols")


def _flaws_of_union(path: str, of: Type) -> Iterator[Finding]:
    kinds = [branch.name or branch.kind for branch in of.inner]
    for kind in sorted({kind for kind in kinds if kinds.count(kind) > 1}):
        yield Finding(path=path, reason=f"the union has {kind} more than once")
    if UNION in kinds:
        yield Finding(path=path, reason="the union has a union within it")


def _core(root: Type) -> Iterator[Finding]:
    """Say what keeps records with one of our names from being read as ours."""
    if stem := ours_of(root.short_name):
        for each in misfits(link(our_schema(stem)), root):
            yield Finding(path=each.path, reason=f"does not make a {stem}: {each.reason}")


def _columns(avro: Any) -> Iterator[Finding]:
    """Say which fields have a type that no column of k2 has."""
    for field in avro["fields"]:
        try:
            arrow_field(field["name"], field["type"])
        except ValueError as exc:
            yield Finding(path=field["name"], reason=f"k2 has no column for it: {exc}")
