"""What a position says of numbers, and how it stays small."""

from collections.abc import Callable

import numpy as np
import pytest

from k2cli.errors import BadData
from k2cli.storage.position import (
    MAX_RANGES,
    MAX_SERIES,
    Position,
    Series,
    State,
    Stored,
    decode_position,
    encode_position,
)

BTC = Series("BINANCE", "BTCUSDT")
ETH = Series("BINANCE", "ETHUSDT")


def exact(*ranges: tuple[int, int]) -> Stored:
    return Stored(exact=np.array(ranges, dtype=np.int64).reshape(-1, 2))


def mixed(*ranges: tuple[int, int, int, int]) -> Stored:
    return Stored(mixed=np.array(ranges, dtype=np.int64).reshape(-1, 4))


def states(stored: Stored, *numbers: int) -> list[int]:
    found: list[int] = stored.states(np.array(numbers, dtype=np.int64)).tolist()
    return found


def test_a_number_is_stored_unknown_or_absent() -> None:
    stored = exact((5, 7), (20, 20)).merged(mixed((10, 14, 1, 1)))
    assert states(stored, 4, 5, 7, 8, 10, 12, 14, 15, 20, 21) == [0, 1, 1, 0, 2, 2, 2, 0, 1, 0]
    assert stored.top == 20
    assert states(Stored(), 1) == [State.ABSENT]
    assert Stored().top == -1


def test_ranges_that_touch_are_one() -> None:
    assert exact((1, 5)).merged(exact((6, 7))) == exact((1, 7))
    assert exact((1, 5), (9, 9)).merged(exact((6, 8))) == exact((1, 9))
    assert exact((1, 5)).merged(exact((7, 7))) == exact((1, 5), (7, 7))


def test_what_is_mixed_stays_mixed() -> None:
    assert mixed((1, 9, 3, 3)).merged(exact((4, 12))) == Stored(
        exact=exact((10, 12)).exact, mixed=mixed((1, 9, 3, 3)).mixed
    )


def test_mixed_ranges_of_the_same_day_are_one_and_others_are_not() -> None:
    assert mixed((1, 5, 3, 3)).merged(mixed((8, 9, 3, 3))) == mixed((1, 9, 3, 3))
    two = mixed((1, 5, 3, 3)).merged(mixed((8, 9, 4, 4)))
    assert two == mixed((1, 5, 3, 3), (8, 9, 4, 4))
    assert two.days(np.array([2, 9, 7])).tolist() == [[3, 3], [4, 4], [0, 1 << 24]]


def test_mixed_ranges_that_overlap_are_one_with_the_days_of_both() -> None:
    assert mixed((1, 5, 3, 3)).merged(mixed((4, 9, 5, 6))) == mixed((1, 9, 3, 6))


def test_numbers_can_be_taken_out() -> None:
    left = exact((1, 9)).merged(mixed((20, 29, 1, 1))).without(exact((3, 4), (21, 22)).exact)
    assert states(left, 2, 3, 4, 5, 21) == [1, 0, 0, 1, 2]


def test_the_smallest_holes_close_first_and_mean_unknown() -> None:
    stored = exact((0, 9), (11, 19), (30, 39), (1_000, 1_009), (1_012, 1_020))
    assert stored.shrunk(3) == Stored(
        exact=exact((30, 39)).exact,
        mixed=np.array([[0, 19, 1 << 30, -1], [1_000, 1_020, 1 << 30, -1]]),
    )
    assert states(stored.shrunk(3), 5, 10, 25, 35, 1_010) == [2, 2, 0, 1, 2]
    assert stored.shrunk(5) is stored


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_shrinking_forgets_no_number(limit: int) -> None:
    numbers = np.arange(0, 300, 3)
    stored = Stored(exact=np.column_stack((numbers, numbers)))
    shrunk = stored.shrunk(limit)
    assert len(shrunk) == limit
    assert (shrunk.states(numbers) != State.ABSENT).all()


def test_a_position_keeps_within_its_limits() -> None:
    numbers = np.arange(0, 100, 2)
    many = Stored(exact=np.column_stack((numbers, numbers)))
    position = Position().updated({Series("X", f"S{n}"): many for n in range(500)})
    assert sum(map(len, position.series.values())) <= MAX_RANGES
    assert all(
        (stored.states(numbers) != State.ABSENT).all() for stored in position.series.values()
    )


def test_with_too_many_series_those_left_out_are_unknown() -> None:
    series = {Series("X", f"S{n:05}"): exact((n, n)) for n in range(MAX_SERIES + 3)}
    position = Position().updated(series)
    assert len(position.series) == MAX_SERIES
    assert states(position.of(Series("X", "S00001")), 1, 2) == [State.STORED, State.ABSENT]
    assert states(position.of(Series("X", f"S{MAX_SERIES + 2:05}")), 1) == [State.UNKNOWN]
    assert states(position.of(Series("Y", "new")), 0, 2**62 - 1) == [State.UNKNOWN] * 2
    again = decode_position(encode_position(position)).extended({Series("Y", "new"): exact((1, 1))})
    assert states(again.of(Series("Y", "new")), 1) == [State.UNKNOWN]


def test_a_position_is_read_as_it_was_written() -> None:
    both = exact((0, 0), (2**61, 2**62 - 1)).merged(mixed((5, 9, 19_000, 19_001)))
    position = Position({BTC: both, ETH: Stored(), Series("Ä", "币 安|\n"): exact((7, 9))})
    assert decode_position(encode_position(position)) == position
    assert decode_position(encode_position(Position(is_partial=True))).is_partial


def ranges(random: np.random.Generator, count: int, step: int) -> Stored:
    """Return ranges whose numbers do not compress."""
    steps = random.integers(2, step, size=2 * count)
    bounds = int(random.integers(10**9, 10**10)) + np.cumsum(steps)
    return Stored(exact=bounds.reshape(-1, 2))


def days_ranges(random: np.random.Generator, count: int, step: int) -> Stored:
    """Return mixed ranges whose numbers do not compress, of other days each."""
    bounds = ranges(random, count, step).exact
    days = 20_000 + 3 * np.arange(count)
    last_days = days + random.integers(0, 3, size=count)
    return Stored(mixed=np.column_stack((bounds, days, last_days)))


@pytest.mark.parametrize("make", [ranges, days_ranges], ids=["trades", "quotes"])
@pytest.mark.parametrize(
    ("symbols", "count"), [(2000, 2), (2000, 20), (500, 10), (500, 8), (1, 9000)]
)
def test_a_position_of_2000_symbols_is_small(
    make: Callable[[np.random.Generator, int, int], Stored], symbols: int, count: int
) -> None:
    """At its limits and just below, and with numbers that do not compress."""
    random = np.random.default_rng(7)
    series = {
        Series("BINANCE", f"{n:04x}USDT"): make(random, count, 2_000_000) for n in range(symbols)
    }
    position = Position().updated(series)
    text = encode_position(position)
    assert decode_position(text) == position
    assert len(text) < 64 << 10


def test_mixed_ranges_without_days_stay_apart() -> None:
    """Those of dense series have no days, which says nothing about where their rows lie."""
    many = Stored(exact=np.arange(40).reshape(-1, 2) * 100).shrunk(10)
    again = decode_position(encode_position(Position({BTC: many}))).of(BTC)
    assert again == many
    assert len(again.merged(exact((10**6, 10**6)))) == len(many) + 1


@pytest.mark.parametrize(
    "text",
    ["", "z2:", "z2:!!", "z2:" + "0" * 40, "z1:abc", "x9:abc"],
    ids=["empty", "nothing", "not-base85", "not-deflated", "older", "foreign"],
)
def test_a_damaged_position_is_bad_data(text: str) -> None:
    with pytest.raises(BadData, match="position of the table cannot be read"):
        decode_position(text)
