"""What is known about open gaps: encoded, merged, closed."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.errors import BadData
from k2cli.ranges import ranges_of
from k2cli.storage.opengaps import (
    MAX_GAPS,
    GapNotes,
    OpenGap,
    OpenGaps,
    close_in_properties,
    close_stored,
    decode_open_gaps,
    encode_open_gaps,
    overlay,
    shrunk,
    with_open_gaps,
    without,
)
from k2cli.storage.position import Position, Series, Stored

BTC, ETH = Series("BINANCE", "BTCUSDT"), Series("BINANCE", "ETHUSDT")
FOUND_S = 1_790_000_000


def gap(first: int, last: int, reason: str = "not fetched yet", **over: Any) -> OpenGap:
    return OpenGap(first=first, last=last, reason=reason, **{"found_s": FOUND_S, **over})


def stored(*ranges: tuple[int, int]) -> Stored:
    return Stored(exact=np.array(ranges, dtype=np.int64).reshape(-1, 2))


def numbers(gaps: list[OpenGap] | tuple[OpenGap, ...]) -> list[int]:
    return [number for each in gaps for number in range(each.first, each.last + 1)]


@st.composite
def series_gaps(draw: st.DrawFn) -> list[OpenGap]:
    """Ascending, disjoint gaps."""
    gaps: list[OpenGap] = []
    for step in draw(st.lists(st.integers(1, 5), max_size=8)):
        first = (gaps[-1].last if gaps else 0) + step
        found_s = draw(st.integers(1, 2**32))
        is_tried = draw(st.booleans())
        gaps.append(
            OpenGap(
                first=first,
                last=first + draw(st.integers(0, 4)),
                reason=draw(st.sampled_from(["not fetched yet", "unknown symbol", "交易所"])),
                found_s=found_s,
                tried_s=found_s + draw(st.integers(0, 1000)) if is_tried else 0,
                attempts=draw(st.integers(0, 9)),
                is_between_runs=draw(st.booleans()),
            )
        )
    return gaps


@given(series_gaps(), series_gaps())
def test_encoding_keeps_everything(btc: list[OpenGap], eth: list[OpenGap]) -> None:
    gaps = {series: some for series, some in ((BTC, btc), (ETH, eth)) if some}
    read = decode_open_gaps(encode_open_gaps(gaps))
    assert read.keys() == gaps.keys()
    for series, some in gaps.items():
        assert {*numbers([*read[series]])} >= {*numbers(some)}
        explained = {n: each for each in read[series] for n in range(each.first, each.last + 1)}
        for each in some:
            known = explained[each.first]
            assert (known.reason, known.found_s, known.tried_s) == (
                each.reason,
                each.found_s,
                each.tried_s,
            )
            assert known.attempts == each.attempts
            assert known.is_between_runs == each.is_between_runs


@pytest.mark.parametrize("text", ["g0:abc", "g1:abc", "g1:", "g1:eJwDAAAAAAE=", "nonsense"])
def test_a_damaged_property_is_bad_data(text: str) -> None:
    with pytest.raises(BadData, match="the open gaps cannot be read"):
        decode_open_gaps(text)


@given(series_gaps(), st.lists(st.integers(0, 60), unique=True))
def test_stored_numbers_are_not_open(gaps: list[OpenGap], found: list[int]) -> None:
    ranges = ranges_of(np.array(sorted(found), dtype=np.int64))
    left = without(gaps, ranges)
    assert numbers(left) == [n for n in numbers(gaps) if n not in found]
    assert close_stored({BTC: gaps}, Position({BTC: Stored(exact=ranges)})).get(BTC, []) == left


@given(series_gaps(), series_gaps())
def test_newer_notes_replace_older_ones(older: list[OpenGap], newer: list[OpenGap]) -> None:
    both = overlay(older, newer)
    assert numbers(both) == sorted({*numbers(older), *numbers(newer)})
    assert all(each in both for each in newer)


@given(series_gaps(), series_gaps(), st.integers(2, 10))
def test_merging_loses_no_gap(btc: list[OpenGap], eth: list[OpenGap], limit: int) -> None:
    gaps: OpenGaps = {BTC: btc, ETH: eth}
    merged = shrunk(gaps, limit)
    assert sum(map(len, merged.values())) <= limit
    for series, some in gaps.items():
        assert {*numbers([*some])} <= {*numbers([*merged[series]])}
        assert numbers([*merged[series]]) == sorted({*numbers([*merged[series]])})


def test_alternating_gaps_take_one_entry() -> None:
    """Every second number is missing: the position separates them again."""
    gaps = {BTC: [gap(n, n) for n in range(1, 2 * 50_000, 2)]}
    text = with_open_gaps({}, gaps)["k2.gaps"]
    assert len(text) < 200
    even = stored(*((n, n) for n in range(0, 2 * 50_000 + 1, 2)))
    assert close_stored(decode_open_gaps(text), Position({BTC: even})) == gaps


def test_the_property_stays_small() -> None:
    gaps = {
        Series("BINANCE", f"S{number:04}USDT"): [
            gap(10**9 + 100_000 * n, 10**9 + 100_000 * n + 7 * n, found_s=FOUND_S + n)
            for n in range(1, 11)
        ]
        for number in range(500)
    }
    text = with_open_gaps({}, gaps)["k2.gaps"]
    assert sum(map(len, decode_open_gaps(text).values())) <= MAX_GAPS
    assert len(text) < 30_000


def test_a_commit_notes_what_it_opens_and_what_the_stream_learned() -> None:
    earlier = {BTC: [gap(10, 20), gap(30, 40)], ETH: [gap(1, 5)]}
    notes = GapNotes(
        reason="not fetched yet",
        now_s=FOUND_S,
        updates={BTC: [gap(30, 35, "the exchange does not list them", tried_s=FOUND_S)]},
        filled={},
    )
    position = Position({BTC: stored((0, 12), (18, 29), (41, 49), (60, 61))})
    assert notes.added(earlier, {BTC: [gap(50, 59)]}, position) == {
        BTC: [
            gap(13, 17),
            gap(30, 35, "the exchange does not list them", tried_s=FOUND_S),
            gap(36, 40),
            gap(50, 59),
        ],
        ETH: [gap(1, 5)],
    }


def test_filled_numbers_are_closed_where_the_position_is_mixed() -> None:
    mixed = Position({BTC: Stored(mixed=np.array([[0, 100, 0, 0]], dtype=np.int64))})
    notes = GapNotes(reason="", now_s=FOUND_S, updates={}, filled={BTC: [(12, 20)]})
    assert notes.added({BTC: [gap(10, 20)]}, {}, mixed) == {BTC: [gap(10, 11)]}


def test_a_snapshot_without_open_gaps_has_no_property() -> None:
    properties = with_open_gaps({"k2.rows": "7"}, {BTC: [gap(1, 5)]})
    assert properties.keys() == {"k2.rows", "k2.gaps"}
    closed = close_in_properties(properties, Position({BTC: stored((0, 6))}))
    assert closed == {"k2.rows": "7"}
