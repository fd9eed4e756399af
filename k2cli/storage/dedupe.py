"""Remove records that a table stores more than once."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
from pyiceberg.expressions import And, BooleanExpression, GreaterThanOrEqual, LessThan
from pyiceberg.manifest import DataFile

from k2cli.errors import Conflict
from k2cli.ranges import EMPTY, Ints, Ranges, intersection, union
from k2cli.records import RecordKind
from k2cli.storage.append import Attempt
from k2cli.storage.duplicates import DuplicateRows, Keep, find_across_days, find_in_day
from k2cli.storage.lines import Bools
from k2cli.storage.position import Series, Stored
from k2cli.storage.rewrite import Removed, Rewrite
from k2cli.storage.state import TableState
from k2cli.storage.stored import FileStatistics
from k2cli.storage.target import Target
from k2cli.storage.vendor import predicate

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ATTEMPTS = 5


def remove_duplicates(
    target: Target, keep: Keep | None, *, is_dry_run: bool
) -> Iterator[DuplicateRows]:
    """Remove rows stored more than once, one commit per day; yield the result of each day.

    Of identical rows, the one received first is kept; of rows of one id with other values the one
    that `keep` selects, else all. With `is_dry_run` nothing is written.

    Raises:
        Conflict: another engine repeatedly rewrote the files during the search.
        BadData: another engine left row-level deletes.
    """
    known: dict[Series, Ranges] = {}
    several: dict[Series, Ranges] = {}  # numbers that are stored on several days
    for day in np.unique(target.index.files(target.table).days).tolist():
        find = partial(find_in_day, target.table, target.kind, day=day, keep=keep)
        found = _find_and_remove(target, find, is_dry_run=is_dry_run)
        yield found
        for series, stored in found.numbers.items():
            before = known.get(series, EMPTY)
            both = intersection(before, stored.exact)
            if len(both):
                several[series] = union(several.get(series, EMPTY), both)
            known[series] = union(before, stored.exact)
    if several:
        numbers = {series: Stored(exact=ranges) for series, ranges in several.items()}
        find = partial(find_across_days, target.table, target.kind, numbers=numbers, keep=keep)
        yield _find_and_remove(target, find, is_dry_run=is_dry_run)


def _find_and_remove(
    target: Target, find: Callable[[FileStatistics], DuplicateRows], *, is_dry_run: bool
) -> DuplicateRows:
    """Remove the rows found; search again if other writers rewrote the files meanwhile."""
    for _ in range(_ATTEMPTS):
        found = find(target.index.files(target.table.refresh()))
        if is_dry_run or not found.rows:
            return found
        with suppress(Conflict):
            _remove(target, found)
            return found
    raise Conflict("other writers rewrote the files meanwhile", hint="run the command again")


def _remove(target: Target, found: DuplicateRows) -> None:
    """Remove the rows that were found, in one commit.

    Raises:
        Conflict: files that hold some of them were rewritten meanwhile.
    """
    choose = _Choice(found.drop)
    with Rewrite(target, _filter(target.kind, found), choose, columns=()) as rewrite:

        def finish(state: TableState, removed: Removed) -> Attempt:
            if removed.rows != found.rows:
                raise Conflict(
                    f"files of {target.kind.table} were rewritten meanwhile",
                    hint="run the command again",
                )
            return Attempt(files=[], properties=state.properties, scratch=[])

        rewrite.commit(finish)


def _filter(kind: RecordKind, found: DuplicateRows) -> BooleanExpression:
    """Choose the days from the first to the last with rows to remove."""
    begin, end = (_EPOCH + timedelta(days=day) for day in (min(found.days), max(found.days) + 1))
    return And(
        predicate(GreaterThanOrEqual, kind.partition_by, begin.isoformat()),
        predicate(LessThan, kind.partition_by, end.isoformat()),
    )


class _Choice:
    """Chooses rows of data files by their indices."""

    def __init__(self, drop: Mapping[str, Ints]) -> None:
        self._drop = drop
        self._begun: dict[str, int] = {}  # rows of each file already requested

    def __call__(self, file: DataFile, rows: pa.Table) -> Bools:
        """Return which rows to remove."""
        path = file.file_path
        begin = self._begun.get(path, 0)
        self._begun[path] = begin + rows.num_rows
        is_dropped = np.zeros(rows.num_rows, dtype=np.bool_)
        indices = self._drop.get(path)
        if indices is not None:
            here = indices[(indices >= begin) & (indices < begin + rows.num_rows)]
            is_dropped[here - begin] = True
        return is_dropped
