"""Tables on narrow screens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.commands.terminal.fitting import (
    GAP,
    Column,
    cell_width,
    fit_columns,
    fit_rows,
    pad,
    shorten,
)

WIDE = [
    Column(name="id", width=16),
    Column(name="path", width=60, can_shrink=True),
    Column(name="rows", width=10),
    Column(name="digest", width=64, can_shrink=True),
]


def test_all_columns_stay_where_they_fit() -> None:
    fit = fit_columns(WIDE, 16 + 60 + 10 + 64 + 3 * len(GAP), details=["digest"])
    assert [width for _, width in fit.shown] == [16, 60, 10, 64]
    assert fit.note("x") == ""


def test_details_are_left_out_first_and_in_their_order() -> None:
    fit = fit_columns(WIDE, 100, details=["digest", "rows"])
    assert (fit.shown, fit.left_out) == ([(0, 16), (1, 60), (2, 10)], ["digest"])
    assert fit.note("use csv") == "omitted: digest; use csv"


def test_texts_are_shortened_when_leaving_out_is_not_enough() -> None:
    fit = fit_columns(WIDE, 50, details=["digest"])
    assert fit.shown == [(0, 16), (1, 20), (2, 10)]
    assert fit.note("use csv") == "omitted: digest; shortened: path; use csv"


def test_last_resort_leaves_out_from_the_right() -> None:
    assert fit_columns(WIDE, 30).left_out == ["digest", "rows"]
    assert fit_columns(WIDE, 10).shown == [(0, 16)]


columns = st.builds(
    Column,
    name=st.sampled_from("abcdefgh"),
    width=st.integers(1, 300),
    can_shrink=st.booleans(),
)


@given(
    wanted=st.lists(columns, min_size=1, max_size=12, unique_by=lambda each: each.name),
    width=st.integers(1, 400),
    details=st.lists(st.sampled_from("abcdefgh"), unique=True),
)
def test_no_line_is_longer_than_the_screen(
    wanted: list[Column], width: int, details: list[str]
) -> None:
    fit = fit_columns(wanted, width, details=details)
    total = sum(size for _, size in fit.shown) + len(GAP) * (len(fit.shown) - 1)
    (first, *others) = fit.shown
    assert total <= width or (not others and not wanted[first[0]].can_shrink)
    names = [wanted[at].name for at, _ in fit.shown]
    assert sorted([*names, *fit.left_out]) == sorted(each.name for each in wanted)
    for at, size in fit.shown:
        assert size == wanted[at].width or (wanted[at].can_shrink and size < wanted[at].width)


@given(text=st.text("ab/例えば😀", max_size=40), width=st.integers(0, 50))
def test_padded_text_has_exactly_the_width(text: str, width: int) -> None:
    assert cell_width(shorten(text, width)) <= width
    assert cell_width(pad(text, width)) == width


@pytest.mark.parametrize(
    ("text", "width", "short"),
    [
        ("/data/2024/BTCUSDT.csv", 22, "/data/2024/BTCUSDT.csv"),
        ("/data/2024/BTCUSDT.csv", 11, "/data…T.csv"),
        ("币安人生USDT", 9, "币安…USDT"),
        ("abc", 1, "…"),
        ("abc", 0, ""),
    ],
)
def test_middle_of_a_text_is_left_out(text: str, width: int, short: str) -> None:
    assert shorten(text, width) == short


def test_rows_are_aligned_and_complete_without_a_screen() -> None:
    rows = [["币安人生USDT", "1,234"], ["BTCUSDT", "5"]]
    lines, fit = fit_rows(["symbol", "rows"], rows, None, texts=["symbol"])
    assert lines == ["symbol         rows", "币安人生USDT  1,234", "BTCUSDT           5"]
    assert fit.note("x") == ""
