"""The pieces of gaps that are asked for, and what an exchange answers about them; pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final

import numpy as np
import pyarrow as pa

from k2cli.flow import Batch
from k2cli.ingestion.history import Page
from k2cli.ranges import Ints, Ranges, index_of, ranges_of
from k2cli.records import TRADES
from k2cli.storage.opengaps import Hole, OpenGap, without
from k2cli.storage.position import Series

NOT_LISTED: Final = "the exchange does not list them"
END: Final = 2**63 - 2  # above every number


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Trades to ask for; with `since_us`, only the first number since this UTC time."""

    series: Series
    first: int = 0
    last: int = 0
    since_us: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece(OpenGap):
    """A part of a gap that is handled as a whole."""

    failures: int = 0  # in a row
    due_s: float = 0.0  # monotonic
    is_idle: bool = False  # not asked for again during this run

    def merged(self, after: "Piece") -> "Piece":
        """Merge two pieces; the whole is idle if one of them is."""
        return replace(
            OpenGap.merged(self, after),
            failures=max(self.failures, after.failures),
            due_s=max(self.due_s, after.due_s),
            is_idle=self.is_idle or after.is_idle,
        )


@dataclass(frozen=True, slots=True)
class Fetched:
    """Trades of an exchange's page that are not committed yet, and the gaps they fill."""

    batch: Batch
    series: Series
    gaps: Sequence[OpenGap]


def piece_of(gap: OpenGap, *, unfilled: str | None) -> Piece:
    """Turn a gap into a piece; it is idle if there is a reason why it cannot be filled."""
    values = {each.name: getattr(gap, each.name) for each in fields(OpenGap)}
    if unfilled is not None:
        values["reason"] = unfilled
    return Piece(**values, is_idle=unfilled is not None)


def plain(gap: OpenGap) -> OpenGap:
    """Return what is noted of a piece."""
    return OpenGap(**{each.name: getattr(gap, each.name) for each in fields(OpenGap)})


def hole_of(gap: OpenGap) -> Hole:
    """Return the numbers of a gap."""
    return gap.first, gap.last


def page_numbers(page: Page, request: Request) -> Ints | None:
    """Return the numbers of a page; None if it is not an answer to the request."""
    rows = page.rows
    if rows.num_rows == 0:
        return np.empty(0, np.int64)
    if rows["source_sequence"].null_count:
        return None
    numbers: Ints = rows["source_sequence"].to_numpy()
    is_within = request.first <= numbers[0] and numbers[-1] <= min(request.last, page.known_to)
    is_ascending = bool((np.diff(numbers) > 0).all())
    given = {*zip(rows["exchange"].to_pylist(), rows["symbol"].to_pylist(), strict=True)}
    return numbers if is_within and is_ascending and given == {(*request.series,)} else None


def match_page(
    pieces: Sequence[Piece], request: Request, page: Page, numbers: Ints
) -> tuple[Fetched, list[tuple[Piece, str]]]:
    """Match a page with the pieces that it is about.

    Returns the rows that were missing, and the pieces that are still missing, with the reasons.
    """
    missing = without(pieces, ranges_of(numbers))
    filled = [plain(each) for each in without(pieces, [hole_of(each) for each in missing])]
    wanted = np.array([hole_of(each) for each in filled], dtype=np.int64).reshape(-1, 2)
    fetched = Fetched(_batch(page, numbers, wanted), request.series, filled)
    rejected = {reject.position: reject.reason for reject in page.rejects}
    return fetched, [part for piece in missing for part in _by_reason(piece, rejected)]


def _batch(page: Page, numbers: Ints, wanted: Ranges) -> Batch:
    """Build a batch of the wanted rows of a page, and its rejects."""
    is_wanted = index_of(wanted, numbers) >= 0
    rows = page.rows.filter(pa.array(is_wanted))
    return Batch(
        rows=[(TRADES, rows)] if rows.num_rows else [],
        rejects=page.rejects,
        backfilled=rows.num_rows + len(page.rejects),
    )


def _by_reason(piece: Piece, rejected: Mapping[int, str]) -> list[tuple[Piece, str]]:
    """Split a missing piece into what the exchange does not list, and rejected trades."""
    numbers = sorted(number for number in rejected if piece.first <= number <= piece.last)
    rest = without([piece], [(number, number) for number in numbers])
    single = [(replace(piece, first=n, last=n), f"rejected: {rejected[n]}") for n in numbers]
    return sorted([*((each, NOT_LISTED) for each in rest), *single], key=lambda of: of[0].first)


def join_idle(pieces: Sequence[Piece]) -> list[Piece]:
    """Join idle pieces that touch and have the same reason."""
    joined: list[Piece] = []
    for piece in pieces:
        before = joined[-1] if joined else None
        if (
            before is not None
            and before.is_idle
            and piece.is_idle
            and (before.last + 1, before.reason) == (piece.first, piece.reason)
            and before.is_between_runs == piece.is_between_runs
        ):
            joined[-1] = before.merged(piece)
        else:
            joined.append(piece)
    return joined


def holes_of(fetched: Iterable[Fetched]) -> dict[Series, list[Hole]]:
    """Return the numbers of fetched rows by series, ascending."""
    holes: dict[Series, list[Hole]] = {}
    for each in fetched:
        holes.setdefault(each.series, []).extend(map(hole_of, each.gaps))
    return {series: sorted(some) for series, some in holes.items() if some}


def count_numbers(holes: Iterable[Hole]) -> int:
    """Return how many numbers are in holes."""
    return sum(last - first + 1 for first, last in holes)
