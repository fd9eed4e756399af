"""Headers: which column of a file is which field of a record, whatever it is called there.

Names are compared without regard to letter case, spaces and signs; layouts list further spellings.
Nothing is guessed: a column of a dump that the layout does not know is an error, and a field that
a file seems to lack while it has columns that nothing uses is noted.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from k2cli.errors import BadData
from k2cli.ingestion.csv.layout import Layout, layout_names, load_layout
from k2cli.ingestion.csv.market import plain_name

MOST_COLUMNS: Final = 1000
_SHOWN: Final = 200  # characters of a header


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The columns of one file: what a layout comes to with the file's own names."""

    names: tuple[str, ...]
    fields: Mapping[str, int]
    vendor: tuple[tuple[str, int], ...]
    lower: frozenset[int]
    unused: tuple[str, ...] = ()  # columns that no field is read from


def find_columns(layout: Layout, names: Sequence[str]) -> Columns:
    """Find the columns that a layout names among a file's.

    Raises:
        BadData: a needed column is missing, a name or field comes twice, there are too many, or the
            file is a dump and has a column that the layout does not know.
    """
    if len(names) > MOST_COLUMNS:
        raise BadData(f"{len(names):,} columns, more than {MOST_COLUMNS:,}")
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
            hint=_fitting(layout, names) or f"name it with --map {missing[0]}=COLUMN",
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
    """Yield what a header seems to lack or to have twice; only where it has unused columns."""
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
    """Return columns that nothing uses and that a field could be read from, too."""
    known = {
        plain_name(spelling)
        for candidate in layout.candidates(field)
        for spelling in layout.spellings(candidate)
    } - {""}
    return [name for name in columns.unused if known & _plain_names(name)]


def time_fields(fields: Collection[str]) -> Sequence[str]:
    """Return the fields that the time of a row is read from."""
    return ("timestamp",) if "timestamp" in fields else ("date", "time")


def _missing(layout: Layout, fields: Mapping[str, int]) -> Iterator[str]:
    needed = [*layout.needed, *time_fields(layout.fields)]
    for name in dict.fromkeys([*needed, *(layout.fields if layout.market else ())]):
        if name not in fields:
            yield name


def _check_known(
    layout: Layout, names: Sequence[str], unused: Collection[str], missing: Sequence[str]
) -> None:
    """Check that every column of a dump is one of its layout's."""
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
    """Look for the dump layout that has just these columns."""
    if not layout.market and layout.rest is False:
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
    """Find a column by its name, or else by the only one that is a spelling of it.

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
    """Return the plain forms of a name; of one in two scripts, `price/价格`, also the first."""
    first, _, second = name.partition("/")
    return {plain_name(name), *([plain_name(first)] if second and not second.isascii() else [])}
