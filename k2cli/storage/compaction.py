"""Choose the data files of a day to compact; pure, no I/O.

A day that is over is sorted once as a whole, and the files are marked with the table's sort order
in their manifest entries, which other engines keep. Before that, and for rows that arrive later,
small files are packed together. Every packing writes a row to a file at least four times as large
as its previous one, so no row is written often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np

TARGET_BYTES: Final = 128_000_000
SMALL_BYTES: Final = 32_000_000  # larger files are not packed
FEWEST: Final = 8  # files to pack
ALL_SYMBOLS: Final = ("", chr(0x10FFFF))  # the bounds of a file without statistics
_GROWTH: Final = 4  # a packed file is at least so many times as large as its largest part
_LATE_SHARE: Final = 10  # a sorted day is sorted again if a tenth of it is new


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A data file, as its manifest describes it."""

    path: str
    size_bytes: int
    rows: int
    is_marked: bool = False  # as part of a sorted day
    symbols: tuple[str, str] = ALL_SYMBOLS  # bounds
    begin: int = 0  # lower bound of the times, in microseconds since 1970
    end: int = 0  # upper bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Files to be written as one sorted set."""

    files: Sequence[StoredFile]  # by time
    is_whole_day: bool


def plan_day(
    files: Sequence[StoredFile], *, is_over: bool, target_bytes: int = TARGET_BYTES
) -> list[Group]:
    """Choose the files of one day to compact, in groups; none if the day is in shape."""
    ordered = sorted(files, key=lambda file: (file.begin, file.end, file.path))
    if not is_over:
        return _packed(ordered, target_bytes)
    done = [file for file in ordered if file.is_marked]
    late = [file for file in ordered if not file.is_marked]
    is_done = bool(done) and _are_disjoint(done) and _are_large(done, target_bytes)
    if is_done and _size(late) * _LATE_SHARE < _size(ordered):
        return _packed(late, target_bytes)
    return [Group(files=ordered, is_whole_day=True)] if len(ordered) > 1 else []


def saved_bytes(files: Sequence[StoredFile], files_after: int) -> int:
    """Estimate the bytes that fewer files save: what each file needs beyond its rows.

    That is the intercept of a line through the files' sizes by their rows.
    """
    rows = np.array([file.rows for file in files], dtype=float)
    if len(np.unique(rows)) < 2:  # noqa: PLR2004  a line needs two points
        return 0
    sizes = np.array([file.size_bytes for file in files], dtype=float)
    spread = rows - rows.mean()
    slope = (spread * sizes).sum() / (spread**2).sum()
    overhead = max(0.0, min(sizes.mean() - slope * rows.mean(), sizes.min()))
    return int(overhead * max(0, len(files) - files_after))


def files_after(groups: Sequence[Group], target_bytes: int) -> int:
    """Return how many files the groups become at most."""
    return sum(-(-_size(group.files) // target_bytes) for group in groups)


def _packed(files: Sequence[StoredFile], target_bytes: int) -> list[Group]:
    """Pack small files, which are in the order of time, into groups up to the target size."""
    most = min(SMALL_BYTES, target_bytes)
    small = sorted((file for file in files if file.size_bytes < most), key=lambda f: f.size_bytes)
    sums = np.cumsum([file.size_bytes for file in small])
    counts = [
        at + 1
        for at, file in enumerate(small)
        if at + 1 >= FEWEST and file.size_bytes * _GROWTH <= sums[at]
    ]
    chosen = {file.path for file in small[: max(counts, default=0)]}
    bins: list[list[StoredFile]] = []
    room = 0
    for file in files:
        if file.path not in chosen:
            continue
        if file.size_bytes > room:
            bins.append([])
            room = target_bytes
        bins[-1].append(file)
        room -= file.size_bytes
    return [Group(files=each, is_whole_day=False) for each in bins if len(each) >= FEWEST]


def _are_disjoint(files: Sequence[StoredFile]) -> bool:
    """Return whether no two files have rows of the same symbol and time, by their bounds.

    A file of several symbols does not tell the times of each, so it may share its first and last
    symbol with its neighbours.
    """
    ordered = sorted(files, key=lambda file: (*file.symbols, file.begin))
    for one, next_one in pairwise(ordered):
        if one.symbols[1] < next_one.symbols[0]:
            continue
        if one.symbols[1] > next_one.symbols[0]:
            return False
        has_one_symbol = one.symbols[0] == next_one.symbols[1]
        if has_one_symbol and one.end > next_one.begin:
            return False
    return True


def _are_large(files: Sequence[StoredFile], target_bytes: int) -> bool:
    """Return whether all files but one have at least half of the target size."""
    return sum(file.size_bytes * 2 < target_bytes for file in files) <= 1


def _size(files: Sequence[StoredFile]) -> int:
    return sum(file.size_bytes for file in files)
