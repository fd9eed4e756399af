"""The sets of offsets in which receipts are kept, and values that are looked at."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.codec.encode import wire_header
from k2cli.ingestion.kafka.letters import OffsetSet
from k2cli.ingestion.kafka.values import describe_value, hex_lines

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)))


@given(RANGES)
def test_offsets_are_those_that_were_added(ranges: list[tuple[int, int]]):
    offsets, expected = OffsetSet(), set()
    for first, more in ranges:
        offsets.add(first, first + more)
        expected.update(range(first, first + more + 1))
    assert {offset for offset in range(-1, 80) if offset in offsets} == expected
    every = np.arange(80)
    assert set(every[offsets.mask(every)].tolist()) == expected
    assert OffsetSet(str(offsets)).ranges == offsets.ranges
    assert all(one[1] + 1 < two[0] for one, two in pairwise(offsets.ranges))


def test_offsets_are_written_as_ranges():
    offsets = OffsetSet("3,1-2")
    offsets.update(OffsetSet("7,9-12"))
    assert str(offsets) == "1-3,7,9-12"
    assert str(OffsetSet()) == ""


@pytest.mark.parametrize("text", ["x", "1-y", "1,,2", "-"])
def test_what_is_no_range_is_an_error(text: str):
    with pytest.raises(ValueError, match="invalid literal"):
        OffsetSet(text)


def test_a_value_that_is_text_is_shown_as_text():
    info = describe_value('{"a": "é"}'.encode(), "no registry")
    assert (info.text, info.size_bytes, info.problem, info.hex) == ('{"a": "é"}', 11, None, None)


def test_a_value_that_is_nothing_known_is_shown_in_hex():
    info = describe_value(bytes([200, 65]) * 200, "no registry")
    assert info.problem == "neither in the wire format of a schema registry, nor text"
    assert info.hex == "c841" * 128
    assert (
        hex_lines("c841" * 9)[1]
        == "00000010  c8 41                                            |.A|"
    )


def test_a_record_without_a_registry_still_tells_its_schema():
    info = describe_value(wire_header(7) + b"x", "no schema registry is set up")
    assert (info.schema_id, info.fields) == (7, None)
    assert info.problem == "no schema registry is set up"
    assert info.hex == "000000000778"


def test_no_value_is_a_tombstone():
    info = describe_value(None, "no registry")
    assert (info.size_bytes, info.problem) == (None, "a null value (tombstone)")
