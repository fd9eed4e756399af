"""Format answers as aligned text, on a terminal of any width or in a file."""

import itertools
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from k2cli.commands.terminal.fitting import GAP, Column, Fit, cell_width, fit_columns, pad
from k2cli.commands.terminal.plain import printable
from k2cli.commands.terminal.streams import note
from k2cli.query.formats import Row, are_numbers, text_rows

if TYPE_CHECKING:
    from k2cli.query.protocol import AnyAnswer

COMPLETE: Final = "--format csv shows everything"
# Columns that a table on a narrow terminal omits first.
DETAILS: Final = (
    *("vendor_data", "message_id", "ingestion_timestamp", "platform_sequence"),
    *("trade_conditions", "asset_class", "trade_id", "quote_id", "source_sequence", "currency"),
)
_BLOCK_ROWS: Final = 1_000  # rows that determine the column widths
# Columns that are still useful with the middle cut out; numbers and times are not.
_TEXTS: Final = frozenset({"varchar", "json", "list", "array", "struct", "map", "union"})


def write_table(
    answer: "AnyAnswer",
    sink: BinaryIO,
    *,
    limit: int | None,
    width: int | None,
    details: Sequence[str],
    complete: str,
) -> int:
    """Write rows in columns as wide as the first rows need; return how many.

    Rows beyond `limit` are counted, not written. On a screen of `width`, columns that do not fit
    are omitted or shortened, with a note that ends in `complete`; characters that its encoding
    lacks are escaped.
    """
    rows = text_rows(answer)
    block = list(itertools.islice(rows, _BLOCK_ROWS))
    if not block:
        return 0
    encoding = "utf-8" if width is None else sys.stdout.encoding
    layout = _Layout.fitting(answer, block, width, details)
    sink.write(layout.header().encode(encoding, "backslashreplace"))
    count = 0
    for count, row in enumerate(itertools.chain(block, rows), start=1):
        if limit is None or count <= limit:
            sink.write(layout.line(row).encode(encoding, "backslashreplace"))
    if missing := layout.fit.note(complete):
        sink.flush()  # the note is printed below the table
        note(missing)
    return count


@dataclass(frozen=True, slots=True)
class _Layout:
    """The columns of a table: name, index in the row, width, whether it is a number."""

    columns: Sequence[tuple[str, int, int, bool]]
    fit: Fit
    is_bounded: bool  # because of the screen width

    @classmethod
    def fitting(
        cls, answer: "AnyAnswer", rows: Sequence[Row], width: int | None, details: Sequence[str]
    ) -> "_Layout":
        names = [name for name, _ in answer.named_types]
        titles = [printable(name) for name in names]
        widths = [
            max(cell_width(line) for cell in (title, *cells) for line in _lines(cell))
            for title, cells in zip(titles, zip(*rows, strict=True), strict=True)
        ]
        columns = [
            Column(name=name, width=widest, can_shrink=of in _TEXTS)
            for (name, of), widest in zip(answer.named_types, widths, strict=True)
        ]
        fit = fit_columns(columns, sys.maxsize if width is None else width, details=details)
        numbers = are_numbers(answer)
        shown = [(titles[at], at, size, numbers[at]) for at, size in fit.shown]
        return cls(shown, fit, is_bounded=width is not None)

    def header(self) -> str:
        """Return the names and the line below them."""
        names = [name for name, *_ in self.columns]
        return self._text(names) + self._text(["-" * width for _, _, width, _ in self.columns])

    def line(self, row: Row) -> str:
        """Return one row, with as many lines as its tallest cell."""
        cells = [_lines(row[at]) for _, at, _, _ in self.columns]
        return "".join(map(self._text, itertools.zip_longest(*cells, fillvalue="")))

    def _text(self, cells: Row) -> str:
        padded = [
            pad(cell, width if self.is_bounded else max(width, cell_width(cell)), is_number=number)
            for cell, (_, _, width, number) in zip(cells, self.columns, strict=True)
        ]
        return GAP.join(padded).rstrip() + "\n"


def _lines(cell: str) -> list[str]:
    """Split a cell into lines, with control characters escaped."""
    if cell.isprintable():
        return [cell]
    return [printable(line) for line in cell.split("\n")]
