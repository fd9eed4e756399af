"""Check whether records written with one Avro schema can be read with another.

The rules are those of the specification, "Schema Resolution"
(https://avro.apache.org/docs/1.12.0/specification/). Registries follow them, too, but ignore
logical types: a price with a new scale would pass and be read as another price. Here it is a
misfit, marked as one that registries accept. A decimal may get more digits, because all written
values fit.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from k2cli.avro.level import Level
from k2cli.avro.types import NAMED, UNION, Field, Type, join_path

# Values written as the key may be read as any of these.
_PROMOTIONS: Final = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """Where and why a reader cannot read what a writer wrote."""

    path: str  # price, legs[].price, prices{}; empty for the schema as a whole
    reason: str
    is_let_pass: bool = False  # accepted by registries, which ignore logical types


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """A schema and its name."""

    name: str
    type: Type


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """A misfit between two versions, in one direction."""

    direction: str  # BACKWARD or FORWARD
    reader: str
    writer: str
    misfit: Misfit

    def __str__(self) -> str:
        where = f"field {self.misfit.path}: " if self.misfit.path else ""
        passes = " (the registry would accept this)" if self.misfit.is_let_pass else ""
        return (
            f"{self.direction}: a reader with {self.reader} cannot read what {self.writer} wrote: "
            f"{where}{self.misfit.reason}{passes}"
        )


def breaches(level: Level, older: Sequence[Schema], newer: Schema) -> list[Breach]:
    """List what keeps a schema from succeeding others, which are sorted oldest first."""
    found = []
    for direction in level.directions:
        for old in older if level.is_transitive else older[-1:]:
            reader, writer = (newer, old) if direction == "BACKWARD" else (old, newer)
            found += [
                Breach(direction=direction, reader=reader.name, writer=writer.name, misfit=misfit)
                for misfit in misfits(reader.type, writer.type)
            ]
    return found


def misfits(reader: Type, writer: Type) -> list[Misfit]:
    """List what keeps a reader from reading everything that a writer can write."""
    return _Resolution().misfits(reader, writer)


class _Resolution:
    """Compares types, each pair only once, because a record may contain itself."""

    def __init__(self) -> None:
        self._known: dict[tuple[Type, Type], list[Misfit]] = {}

    def misfits(self, reader: Type, writer: Type) -> list[Misfit]:
        pair = (reader, writer)
        if pair not in self._known:
            self._known[pair] = []  # fits, unless something within it does not
            self._known[pair] = self._compare(reader, writer)
        return self._known[pair]

    def _compare(self, reader: Type, writer: Type) -> list[Misfit]:
        if writer.kind == UNION:
            return [each for branch in writer.inner for each in self.misfits(reader, branch)]
        if reader.kind == UNION:
            return self._compare_branches(reader, writer)
        if not _is_match(reader, writer):
            return [Misfit(path="", reason=f"{writer} cannot be read as {reader}")]
        return [*self._compare_inside(reader, writer), *_changed_meaning(reader, writer)]

    def _compare_inside(self, reader: Type, writer: Type) -> Iterator[Misfit]:
        for field in reader.fields:
            yield from self._compare_field(field, writer)
        for mine, theirs in zip(reader.inner, writer.inner, strict=True):
            step = "[]" if reader.kind == "array" else "{}"
            yield from _under(step, self.misfits(mine, theirs))
        unknown = [symbol for symbol in writer.symbols if symbol not in reader.symbols]
        if unknown and reader.default is None:
            reason = f"{reader} lacks {', '.join(unknown)}, and has no default"
            yield Misfit(path="", reason=reason)

    def _compare_branches(self, reader: Type, writer: Type) -> list[Misfit]:
        """Choose the branch that fits best; if none fits, the first match gives the reason."""
        found = [
            self.misfits(branch, writer) for branch in reader.inner if _is_match(branch, writer)
        ]
        if not found:
            return [Misfit(path="", reason=f"{writer} is not one of {reader}")]
        return min(found, key=_weight)

    def _compare_field(self, field: Field, writer: Type) -> list[Misfit]:
        theirs = {each.name: each for each in writer.fields}
        source = next((name for name in (field.name, *field.aliases) if name in theirs), None)
        if source is not None:
            return _under(field.name, self.misfits(field.type, theirs[source].type))
        if field.has_default:
            return []
        return [Misfit(path=field.name, reason=f"{writer} lacks it, and it has no default")]


def _weight(found: Sequence[Misfit]) -> int:
    """Rank misfits: 0 fits, 1 is accepted by registries, 2 is accepted by nobody."""
    return max((1 if each.is_let_pass else 2 for each in found), default=0)


def _is_match(reader: Type, writer: Type) -> bool:
    """Return whether two types match, without comparing their contents."""
    if reader.kind != writer.kind:
        return reader.kind in _PROMOTIONS.get(writer.kind, ())
    if reader.kind not in NAMED:
        return True
    is_named_alike = reader.short_name == writer.short_name or writer.name in reader.aliases
    return is_named_alike and reader.size == writer.size


def _changed_meaning(reader: Type, writer: Type) -> Iterator[Misfit]:
    """Find values that could be read but would change their meaning."""
    if reader.logical == writer.logical == "decimal":
        if reader.scale != writer.scale:
            reason = f"{writer} read as {reader} would change every value"
            yield Misfit(path="", reason=reason, is_let_pass=True)
        elif reader.precision < writer.precision:
            reason = f"{writer} has values that do not fit {reader}"
            yield Misfit(path="", reason=reason, is_let_pass=True)
    elif reader.logical != writer.logical:
        reason = f"{writer} read as {reader} would mean something else"
        yield Misfit(path="", reason=reason, is_let_pass=True)


def _under(outer: str, found: Sequence[Misfit]) -> list[Misfit]:
    """Prefix the paths of nested misfits with a field, `[]` or `{}`."""
    return [replace(each, path=join_path(outer, each.path)) for each in found]
