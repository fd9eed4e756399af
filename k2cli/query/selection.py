"""Which rows and columns a question is about, as people write it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TypedDict, Unpack

from k2cli.errors import UsageError
from k2cli.query.timespan import Timespan, parse_timespan
from k2cli.symbols import split_commas, stored_spellings

Names = str | Iterable[str]
Moment = str | datetime
EVER = Timespan()


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which rows and columns of one kind of record, in which order. Empty means all."""

    symbols: Sequence[str] = ()
    exchanges: Sequence[str] = ()
    span: Timespan = EVER
    columns: Sequence[str] = ()
    is_descending: bool = False
    limit: int | None = None

    def count_of(self, rows: int) -> int | None:
        """Return how many of a table's rows are selected; None if it must be read for that."""
        if self.symbols or self.exchanges or self.span != EVER:
            return None
        return rows if self.limit is None else min(rows, self.limit)


class Selected(TypedDict, total=False):
    """The parameters that select rows, as people write them; without one, all are selected.

    Names may be comma lists; symbols are found in any spelling. Times are aware datetimes, or text
    such as `-1d` and `2026-01-13`; the start is inclusive, the end exclusive.
    """

    symbol: Names | None
    exchange: Names | None
    start: Moment | None
    end: Moment | None
    columns: Names | None
    order: Literal["asc", "desc"]  # by time; asc unless given
    limit: int | None


def selection_of(*, prefix: str = "", **selected: Unpack[Selected]) -> Selection:
    """Make a selection of what people write. See `Selected`.

    `prefix` comes before the names of parameters in messages: `--` on the command line.

    Raises:
        UsageError: a parameter that names nothing, a time that cannot be read, or a start that is
            not before the end.
    """
    order, limit = selected.get("order", "asc"), selected.get("limit")
    if order not in ("asc", "desc"):
        raise UsageError(f"{prefix}order {order!r} is unknown", hint="choose asc or desc")
    if limit is not None and limit < 0:
        raise UsageError(f"{prefix}limit {limit} is negative")
    return Selection(
        symbols=stored_spellings(_names(selected.get("symbol"), f"{prefix}symbol")),
        exchanges=[word.upper() for word in _names(selected.get("exchange"), f"{prefix}exchange")],
        span=parse_timespan(
            selected.get("start"), selected.get("end"), now=datetime.now(UTC), prefix=prefix
        ),
        columns=_names(selected.get("columns"), f"{prefix}columns"),
        is_descending=order == "desc",
        limit=limit,
    )


def _names(value: Names | None, option: str) -> list[str]:
    """Split names; refuse one that names nothing.

    An unset variable in a script (`--symbol "$SYMBOL"`) must not select everything.
    """
    if value is None:
        return []
    values = [value] if isinstance(value, str) else list(value)
    for each in values or [""]:
        if not any(word.strip() for word in each.split(",")):
            raise UsageError(
                f"{option} {each!r} names nothing", hint=f"leave {option} out to select all"
            )
    return split_commas(values)
