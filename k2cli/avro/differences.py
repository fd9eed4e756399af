"""Compare two Avro schemas field by field."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from k2cli.avro.types import UNION, Field, Type, join_path, walk


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One difference between two schemas."""

    path: str  # of the field; empty for the schema as a whole
    what: str  # added, removed, renamed, type, default, doc, aliases, name, order
    old: str | None
    new: str | None


def differences(old: Type, new: Type) -> list[Difference]:
    """List the differences: of the whole schema, then field by field in the new order."""
    before, after = dict(_fields(old)), dict(_fields(new))
    renamed = dict(_renamed(before, after))
    found = list(_changes("", _traits(old), _traits(new)))
    for path, field in after.items():
        earlier = before.get(renamed.get(path, path))
        if earlier is None:
            found.append(_whole("added", path, field))
            continue
        if path in renamed:
            found.append(Difference(path=path, what="renamed", old=renamed[path], new=path))
        found += _changes(path, _field_traits(earlier), _field_traits(field))
    gone = before.keys() - after.keys() - set(renamed.values())
    found += [_whole("removed", path, field) for path, field in before.items() if path in gone]
    return found + list(_reordered(list(before), list(after)))


def _fields(root: Type) -> Iterator[tuple[str, Field]]:
    """Yield every field with its path, nested ones after the record that contains them."""
    for path, of in walk(root):
        for field in of.fields:
            yield join_path(path, field.name), field


def _renamed(before: Mapping[str, Field], after: Mapping[str, Field]) -> Iterator[tuple[str, str]]:
    """Yield new and old paths of renamed fields: an alias matches a removed name."""
    for path, field in after.items():
        if path in before:
            continue
        parent = path.removesuffix(field.name)
        names = (parent + alias for alias in field.aliases)
        yield from ((path, name) for name in names if name in before and name not in after)


def _traits(of: Type) -> dict[str, str | None]:
    return {
        "name": of.name or str(of),
        "doc": of.doc or None,
        "aliases": ", ".join(of.aliases) or None,
    }


def _field_traits(field: Field) -> dict[str, str | None]:
    return {
        "type": described(field.type),
        "default": json.dumps(field.default) if field.has_default else None,
        "doc": field.doc or None,
        "aliases": ", ".join(field.aliases) or None,
    }


def described(of: Type) -> str:
    """Format a type with all its details, such as the symbols of an enum."""
    if of.kind == "enum":
        default = f" = {of.default}" if of.default else ""
        return f"enum {of.name}({', '.join(of.symbols)}){default}"
    if of.kind == UNION:
        return " | ".join(map(described, of.inner))
    return f"{of.kind}<{described(of.inner[0])}>" if of.inner else str(of)


def _changes(
    path: str, old: Mapping[str, str | None], new: Mapping[str, str | None]
) -> Iterator[Difference]:
    for what, value in new.items():
        if value != old[what]:
            yield Difference(path=path, what=what, old=old[what], new=value)


def _whole(what: str, path: str, field: Field) -> Difference:
    default = f" = {json.dumps(field.default)}" if field.has_default else ""
    text = described(field.type) + default
    is_new = what == "added"
    return Difference(
        path=path, what=what, old=None if is_new else text, new=text if is_new else None
    )


def _reordered(before: list[str], after: list[str]) -> Iterator[Difference]:
    old = [path for path in before if path in after]
    new = [path for path in after if path in before]
    if old != new:
        yield Difference(path="", what="order", old=", ".join(old), new=", ".join(new))
