"""Fit tables to the width of a screen: which columns stay, and how wide they are."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

GAP: Final = "  "
ELLIPSIS: Final = "…"
_MIN_WIDTH: Final = 12  # minimum width of a shortened text, unless the screen is narrower


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column to fit."""

    name: str
    width: int  # cells that its widest text needs
    can_shrink: bool = False  # a text that is still useful with its middle cut out


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The result: indices and widths of the columns that stay, and names of the others."""

    shown: Sequence[tuple[int, int]]
    left_out: Sequence[str] = ()
    shortened: Sequence[str] = ()

    def note(self, complete: str) -> str:
        """Describe what is missing and how to see it; empty if nothing is missing."""
        parts = []
        if self.left_out:
            parts.append(f"omitted: {', '.join(self.left_out)}")
        if self.shortened:
            parts.append(f"shortened: {', '.join(self.shortened)}")
        return "; ".join([*parts, complete]) if parts else ""


def fit_columns(columns: Sequence[Column], width: int, *, details: Sequence[str] = ()) -> Fit:
    """Fit columns into a width, so that no line of the table is longer than the screen.

    Columns named in `details` are omitted first, in that order. If that is not enough, texts are
    shortened, the widest first, and then columns are omitted from the right. A last column that
    cannot shrink keeps its width.
    """
    shown = dict(enumerate(columns))
    left_out = []
    by_name = {column.name: at for at, column in shown.items()}
    for name in details:
        if _total(column.width for column in shown.values()) <= width or len(shown) == 1:
            break
        if name in by_name and by_name[name] in shown:
            del shown[by_name[name]]
            left_out.append(name)
    while len(shown) > 1 and _total(map(_least, shown.values())) > width:
        _, column = shown.popitem()
        left_out.append(column.name)
    widths = {at: column.width for at, column in shown.items()}
    _shrink(shown, widths, width)
    shortened = [column.name for at, column in shown.items() if widths[at] < column.width]
    return Fit(shown=list(widths.items()), left_out=left_out, shortened=shortened)


def _least(column: Column) -> int:
    return min(column.width, _MIN_WIDTH) if column.can_shrink else column.width


def _shrink(columns: dict[int, Column], widths: dict[int, int], width: int) -> None:
    """Cut the widest texts to one common width with which the table fits."""
    texts = [at for at, column in columns.items() if column.can_shrink]
    room = width - _total(widths.values()) + sum(widths[at] for at in texts)
    least = _MIN_WIDTH if len(columns) > 1 else 1
    most = max((widths[at] for at in texts), default=0)
    while least < most:  # the largest width that leaves room for all
        middle = (least + most + 1) // 2
        if sum(min(widths[at], middle) for at in texts) <= room:
            least = middle
        else:
            most = middle - 1
    for at in texts:
        widths[at] = min(widths[at], least)


def _total(widths: Iterable[int]) -> int:
    sizes = list(widths)
    return sum(sizes) + len(GAP) * (len(sizes) - 1)


def fit_rows(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int | None,
    *,
    texts: Sequence[str],
    details: Sequence[str] = (),
) -> tuple[list[str], Fit]:
    """Arrange cells below their names, in lines of at most `width`; None means any length.

    Columns named in `texts` are left-aligned and may be shortened; the others are numbers.
    """
    columns = [
        Column(name=name, width=max(map(cell_width, (name, *cells))), can_shrink=name in texts)
        for name, *cells in zip(names, *rows, strict=True)
    ]
    fit = fit_columns(columns, sys.maxsize if width is None else width, details=details)
    lines = []
    for row in (names, *rows):
        cells = [pad(row[at], size, is_number=names[at] not in texts) for at, size in fit.shown]
        lines.append(GAP.join(cells).rstrip())
    return lines, fit


def shorten(text: str, width: int) -> str:
    """Cut out the middle of a text that is wider than N cells."""
    if cell_width(text) <= width:
        return text
    room = width - 1
    head = _cut(text, (room + 1) // 2)
    tail = _cut(text[::-1], room - cell_width(head))[::-1]
    return f"{head}{ELLIPSIS}{tail}" if width > 0 else ""


def _cut(text: str, width: int) -> str:
    """Return as much of the start as fits; wide characters take two cells."""
    used = 0
    for at, char in enumerate(text):
        used += cell_width(char)
        if used > width:
            return text[:at]
    return text


def pad(text: str, width: int, *, is_number: bool = False) -> str:
    """Shorten or pad a text to exactly N cells; numbers are right-aligned."""
    fitting = shorten(text, width) if not is_number else text
    space = " " * (width - cell_width(fitting))
    return space + fitting if is_number else fitting + space


def cell_width(text: str) -> int:
    """Return how many cells a text takes on a terminal; Chinese characters take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)
