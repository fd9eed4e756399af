"""Headers: map the columns of a file to the fields of a record.

Names are compared without case, spaces and punctuation; layouts list further spellings. Nothing is
guessed: an unknown column of a dump is an error, and an absent field gets a notice if the file has
unused columns.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from k2cli.errors import BadData
from k2cli.ingestion.csv.layout import Layout, layout_names, load_layout
from k2cli.ingestion.csv.market import plain_name

MAX_COLUMNS: Final = 1000
_SHOWN: Final = 200  # characters of a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of one file: a layout applied to the file's column names."""

    names: tuple[str, ...]
    fields: Mapping[str, int]
    vendor: tuple[tuple[str, int], ...]
    lower: frozenset[int]
    unused: tuple[str, ...] = ()  # unused columns


def find_columns(layout: Layout, names: Sequence[str]) -> Columns:
    """Find a layout's columns among a file's columns.

    Raises:
        BadData: a required column is missing, a name or field is duplicated, there are too many
        columns, or a dump has a column unknown to the layout.
    """
    if len(names) > MAX_COLUMNS:
        raise BadData(f"{len(names):,} columns, more than {MAX_COLUMNS:,}")
    names = tuple(name or f"column_{number}" for number, name in enumerate(names, start=1))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadData(f"the header names {twice!r} twice")
    fields = {
        name: index
        for name in layout.fields
        if (index := _find_first(layout, names, layout.candidates(name))) is not None
    }
    vendor = dict(_vendor_columns(layout, names))
    used = {*fields.values(), *vendor.values()}
    unused = [name for index, name in enumerate(names) if index not in used]
    missing = list(_missing(layout, fields))
    if layout.market:
        _check_known(layout, names, unused, missing)
    if missing:
        raise BadData(
            f"no column for {missing[0]} in the header {_shown(names)}",
            hint=_fitting(layout, names) or f"map it with --map {missing[0]}=COLUMN",
        )
    if layout.rest:
        rest = {name: index for index, name in enumerate(names) if index not in used}
        vendor |= {name: index for name, index in rest.items() if name not in vendor}
    return Columns(
        names=names,
        fields=fields,
        vendor=tuple(vendor.items()),
        lower=frozenset(
            index for name in layout.lower_case if (index := _find(layout, names, name)) is not None
        ),
        unused=tuple(unused),
    )


def notices(layout: Layout, columns: Columns) -> Iterator[str]:
    """Yield notices about fields that seem missing or duplicated, if columns are unused."""
    if not columns.unused:
        return
    of = f"unused columns: {', '.join(columns.unused)[:_SHOWN]}"
    for field, index in columns.fields.items():
        if others := _further_columns(layout, columns, field):
            yield (
                f"{field} is read from column {columns.names[index]}, not from {others[0]}"
                f" (--map {field}={others[0]} changes that)"
            )
    for field in layout.decimals:
        if field in layout.fields and field not in columns.fields:
            yield f"no column for {field}, so it is null ({of}; --map {field}=COLUMN)"
    if "id" in layout.fields and "id" not in columns.fields:
        yield f"no id column, so rows are identified by their line ({of}; --map id=COLUMN)"
    if "side" in layout.fields and "side" not in columns.fields:
        yield f"no side column, so sides are UNKNOWN ({of}; --map side=COLUMN)"


def _further_columns(layout: Layout, columns: Columns, field: str) -> list[str]:
    """Return unused columns that a field could also be read from."""
    known = {
        plain_name(spelling)
        for candidate in layout.candidates(field)
        for spelling in layout.spellings(candidate)
    } - {""}
    return [name for name in columns.unused if known & _plain_names(name)]


def time_fields(fields: Collection[str]) -> Sequence[str]:
    """Return the fields that make the time of a row."""
    return ("timestamp",) if "timestamp" in fields else ("date", "time")


def _missing(layout: Layout, fields: Mapping[str, int]) -> Iterator[str]:
    needed = [*layout.needed, *time_fields(layout.fields)]
    for name in dict.fromkeys([*needed, *(layout.fields if layout.market else ())]):
        if name not in fields:
            yield name


def _check_known(
    layout: Layout, names: Sequence[str], unused: Collection[str], missing: Sequence[str]
) -> None:
    """Check that the layout has every column of a dump."""
    known = {_find(layout, names, column) for column in layout.all_columns}
    for index, name in enumerate(names):
        if name in unused and index not in known:
            lacks = f", and no column for {missing[0]}" if missing else ""
            raise BadData(
                f"unknown column {name!r}{lacks} in the header {_shown(names)}",
                hint=_fitting(layout, names)
                or f"if it is the {missing[0] if missing else 'price'}, "
                f"--map {missing[0] if missing else 'price'}={name!r}; else remove it",
            )


def _shown(names: Sequence[str]) -> str:
    return repr(",".join(names)[:_SHOWN])


def _fitting(layout: Layout, names: Sequence[str]) -> str | None:
    """Find the dump layout with exactly these columns."""
    if not names or (not layout.market and layout.rest is False):
        return None
    for name in layout_names():
        other = load_layout(name)
        if other.dump and other.dump != layout.dump:
            indexes = {_find(other, names, column) for column in other.all_columns} - {None}
            if len(indexes) == len(names):
                return f"these are the columns of --layout {name}"
    return None


def _vendor_columns(layout: Layout, names: Sequence[str]) -> Iterator[tuple[str, int]]:
    for key, column in layout.vendor_data.items():
        index = _find(layout, names, column)
        if index is not None:
            yield key, index


def _find_first(layout: Layout, names: Sequence[str], columns: Sequence[str]) -> int | None:
    found = (_find(layout, names, column) for column in columns)
    return next((index for index in found if index is not None), None)


def _find(layout: Layout, names: Sequence[str], column: str) -> int | None:
    """Find a column by its name, or by the only name that is a spelling of it.

    Raises:
        BadData: several names are spellings of it.
    """
    spellings = layout.spellings(column)
    for spelling in spellings:
        if spelling in names:
            return names.index(spelling)
    plain = {plain_name(spelling) for spelling in spellings} - {""}
    found = [index for index, name in enumerate(names) if plain & _plain_names(name)]
    if len(found) > 1:
        both = " and ".join(repr(names[index]) for index in found[:2])
        raise BadData(f"the header has {both}, which both mean {column}", hint="remove one")
    return found[0] if found else None


def _plain_names(name: str) -> set[str]:
    """Return the plain forms of a name; for two scripts, `price/价格`, also the first."""
    first, _, second = name.partition("/")
    return {plain_name(name), *([plain_name(first)] if second and not second.isascii() else [])}
