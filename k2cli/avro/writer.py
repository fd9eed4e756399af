"""Reduce a writer's schema to what determines how its records are decoded."""

from collections.abc import Mapping
from itertools import count
from typing import Any, Final

from k2cli.avro.types import CONTENTS, UNION, Type, link
from k2cli.errors import BadData

_TYPE: Final = "k2_type"


def writer_schema(avro: Any) -> dict[str, Any]:
    """Return the schema of a record without what does not matter for decoding.

    Docs, aliases, defaults and logical types that the specification ignores are omitted, so a
    mistake in them cannot keep records from being read. Named types are written out wherever they
    are used. The result is safe for decoding: its nesting is limited, it is not recursive, and
    every item of an array takes at least one byte.

    Raises:
        BadData: it is not Avro, not a record, or not safe.
    """
    try:
        root = link(avro)
        if root.kind != "record":
            raise BadData(f"the schema is {root}, not a record")
        return {**_Writer().write(root, ()), "name": root.short_name}
    except ValueError as exc:
        raise BadData(f"the schema cannot be used for decoding: {exc}") from exc


class _Writer:
    """Writes types as JSON, each named type with a unique name."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def write(self, of: Type, within: tuple[Type, ...]) -> Any:
        if of in within:
            raise ValueError(f"{of} is recursive")
        within = (*within, of)
        if of.kind == "array" and _is_empty(of.inner[0], within):
            raise ValueError(f"the items of {of} take no bytes")
        inner = [self.write(each, within) for each in of.inner]
        match of.kind:
            case "union":
                return inner
            case "record":
                return self._record(of, within)
            case "array" | "map":
                return {"type": of.kind, CONTENTS[of.kind]: inner[0]}
            case "enum":
                return self._named(of) | {"symbols": list(of.symbols)}
            case "fixed":
                return self._named(of) | {"size": of.size, **_logical(of)}
            case _:
                logical = _logical(of)
                return {"type": of.kind, **logical} if logical else of.kind

    def _record(self, of: Type, within: tuple[Type, ...]) -> dict[str, Any]:
        names = [field.name for field in of.fields]
        if len({*names}) < len(names):
            raise ValueError(f"{of} has several fields of one name")
        fields = [
            {"name": field.name, "type": self.write(field.type, within)} for field in of.fields
        ]
        return self._named(of) | {"fields": fields}

    def _named(self, of: Type) -> dict[str, Any]:
        return {"type": of.kind, "name": f"{_TYPE}{next(self._numbers)}"}


def _logical(of: Type) -> Mapping[str, Any]:
    if of.logical is None:
        return {}
    size = {"precision": of.precision, "scale": of.scale} if of.logical == "decimal" else {}
    return {"logicalType": of.logical, **size}


def _is_empty(of: Type, within: tuple[Type, ...]) -> bool:
    """Return whether a value takes no bytes, so a tiny array could have billions of items."""
    if of.kind == "record":
        return of not in within and all(_is_empty(field.type, (*within, of)) for field in of.fields)
    if of.kind == UNION:
        return not of.inner
    return of.kind == "null" or (of.kind == "fixed" and not of.size)
