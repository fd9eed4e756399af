"""Sets of integers as ranges: pure arithmetic on arrays of shape (n, 2).

A set is an array of ascending pairs of first and last number (inclusive), with at least one number
missing between two pairs. A million consecutive trade ids are one pair.
"""

from typing import Final

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Ranges = npt.NDArray[np.int64]  # shape (n, 2)

EMPTY: Final[Ranges] = np.empty((0, 2), dtype=np.int64)


def ranges_of(numbers: Ints) -> Ranges:
    """Build ranges from ascending numbers, which may repeat."""
    if not len(numbers):
        return EMPTY
    breaks = np.flatnonzero(np.diff(numbers) > 1) + 1
    return np.column_stack((numbers[np.append(0, breaks)], numbers[np.append(breaks - 1, -1)]))


def union(one: Ranges, other: Ranges) -> Ranges:
    """Return the numbers that are in either set."""
    if not len(one) or not len(other):
        return one if len(one) else other
    if one[0, 0] > other[0, 0]:
        one, other = other, one
    if other[0, 0] > one[-1, 1]:  # when a series continues
        is_joined = int(other[0, 0] == one[-1, 1] + 1)
        both = np.concatenate((one[: len(one) - is_joined], other))
        both[len(one) - is_joined, 0] = one[-1, 0] if is_joined else other[0, 0]
        return both
    both = np.concatenate((one, other))
    both = both[np.argsort(both[:, 0], kind="stable")]
    reached = np.maximum.accumulate(both[:, 1])
    starts = np.append(0, np.flatnonzero(both[1:, 0] > reached[:-1] + 1) + 1)
    return np.column_stack((both[starts, 0], reached[np.append(starts[1:] - 1, -1)]))


def difference(one: Ranges, other: Ranges) -> Ranges:
    """Return the numbers of `one` that are not in `other`."""
    if not len(one) or not len(other):
        return one
    bounds = np.iinfo(np.int64)
    holes = np.column_stack(
        (np.append(bounds.min, other[:, 1] + 1), np.append(other[:, 0] - 1, bounds.max))
    )
    return intersection(one, holes)


def intersection(one: Ranges, other: Ranges) -> Ranges:
    """Return the numbers that are in both sets."""
    if not len(one) or not len(other):
        return EMPTY
    begin = np.searchsorted(other[:, 1], one[:, 0])  # the first range that ends at or after it
    end = np.searchsorted(other[:, 0], one[:, 1], side="right")
    counts = np.maximum(end - begin, 0)
    mine = np.repeat(np.arange(len(one)), counts)
    offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    theirs = begin[mine] + offsets
    return np.column_stack(
        (
            np.maximum(one[mine, 0], other[theirs, 0]),
            np.minimum(one[mine, 1], other[theirs, 1]),
        )
    )


def index_of(ranges: Ranges, numbers: Ints) -> Ints:
    """Return the index of the range that contains each number, or -1."""
    if not len(ranges):
        return np.full(len(numbers), -1, dtype=np.int64)
    index = np.searchsorted(ranges[:, 0], numbers, side="right") - 1
    is_inside = (index >= 0) & (numbers <= ranges[np.maximum(index, 0), 1])
    return np.where(is_inside, index, -1)
