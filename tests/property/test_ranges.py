"""Ranges are sets of numbers, whatever is done with them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from k2cli.ranges import Ranges, difference, index_of, intersection, ranges_of, union

NUMBERS = st.sets(st.integers(0, 60))


def ranges(numbers: set[int]) -> Ranges:
    return ranges_of(np.array(sorted(numbers), dtype=np.int64))


def members(found: Ranges) -> set[int]:
    return {number for first, last in found.tolist() for number in range(first, last + 1)}


def assert_normal(found: Ranges) -> None:
    """No empty range, ascending, and at least one number missing between two."""
    assert (found[:, 0] <= found[:, 1]).all()
    assert (found[1:, 0] > found[:-1, 1] + 1).all()


@given(NUMBERS)
def test_ranges_hold_what_they_were_made_of(numbers: set[int]) -> None:
    found = ranges(numbers)
    assert members(found) == numbers
    assert int((found[:, 1] - found[:, 0] + 1).sum()) == len(numbers)
    assert_normal(found)


@given(NUMBERS, NUMBERS)
def test_operations_are_those_of_sets(one: set[int], other: set[int]) -> None:
    a, b = ranges(one), ranges(other)
    for operation, expected in (
        (union, one | other),
        (difference, one - other),
        (intersection, one & other),
    ):
        found = operation(a, b)
        assert members(found) == expected
        assert_normal(found)


@given(NUMBERS, st.lists(st.integers(-5, 70)))
def test_index_names_the_range_that_holds_a_number(held: set[int], asked: list[int]) -> None:
    found = ranges(held)
    index = index_of(found, np.array(asked, dtype=np.int64))
    for number, at in zip(asked, index.tolist(), strict=True):
        assert (at >= 0) == (number in held)
        if at >= 0:
            first, last = found[at]
            assert first <= number <= last
