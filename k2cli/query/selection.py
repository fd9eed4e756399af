"""Select rows and columns of a question, with parameters as people write them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from operator import index
from typing import Final, Literal, SupportsIndex, TypedDict, Unpack

from k2cli.errors import UsageError
from k2cli.nearest import suggestion
from k2cli.query.timespan import Timespan, parse_timespan
from k2cli.symbols import split_commas, stored_spellings

Names = str | Iterable[str]
Moment = str | datetime
EVER = Timespan()
_MAX_ROWS: Final = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The selected rows and columns of one record kind, and their order. Empty means all."""

    symbols: Sequence[str] = ()
    exchanges: Sequence[str] = ()
    span: Timespan = EVER
    columns: Sequence[str] = ()
    is_descending: bool = False
    limit: int | None = None

    def count_of(self, rows: int) -> int | None:
        """Return how many of a table's rows are selected; None if the table must be read."""
        if self.symbols or self.exchanges or self.span != EVER:
            return None
        return rows if self.limit is None else min(rows, self.limit)


class Selected(TypedDict, total=False):
    """The parameters that select rows, as people write them; none select all rows.

    Names may be comma-separated; symbols may be in any spelling. Times are aware datetimes, or text
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
    """Build a selection from parameters. See `Selected`.

    `prefix` precedes parameter names in messages: `--` on the command line.

    Raises:
        UsageError: an empty parameter, an invalid time, or a start that is not before the end.
    """
    for name in selected:
        if name not in Selected.__annotations__:
            raise UsageError(
                f"unknown parameter {prefix}{name}", hint=suggestion(name, Selected.__annotations__)
            )
    order = selected.get("order", "asc")
    if order not in ("asc", "desc"):
        raise UsageError(f"{prefix}order {order!r} is unknown", hint="choose asc or desc")
    return Selection(
        symbols=stored_spellings(_names(selected.get("symbol"), f"{prefix}symbol")),
        exchanges=[word.upper() for word in _names(selected.get("exchange"), f"{prefix}exchange")],
        span=parse_timespan(
            selected.get("start"), selected.get("end"), now=datetime.now(UTC), prefix=prefix
        ),
        columns=_names(selected.get("columns"), f"{prefix}columns"),
        is_descending=order == "desc",
        limit=_limit(selected.get("limit"), f"{prefix}limit"),
    )


def _limit(value: SupportsIndex | None, option: str) -> int | None:
    if value is None:
        return None
    try:
        limit = index(value)
    except TypeError as exc:
        raise UsageError(f"{option} {value!r} is not a whole number") from exc
    if limit < 0:
        raise UsageError(f"{option} {limit} is negative")
    if limit > _MAX_ROWS:
        raise UsageError(f"{option} {limit} is greater than {_MAX_ROWS}")
    return limit


def _names(value: Names | None, option: str) -> list[str]:
    """Split names; refuse empty ones.

    An unset variable in a script (`--symbol "$SYMBOL"`) must not select everything.
    """
    if value is None:
        return []
    values = [value] if isinstance(value, str) else _listed(value, option)
    for each in values or [""]:
        if not any(word.strip() for word in each.split(",")):
            raise UsageError(
                f"{option} {each!r} contains an empty name", hint=f"omit {option} to select all"
            )
    return split_commas(values)


def _listed(values: object, option: str) -> list[str]:
    listed = []
    for each in values if isinstance(values, Iterable) else [values]:
        if not isinstance(each, str):
            raise UsageError(f"{option}: {each!r} is not a name", hint="a name is a str")
        listed.append(each)
    return listed
