"""Sets of offsets, as in receipts, and the description of values."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from k2cli.codec.encode import wire_header
from k2cli.ingestion.kafka.letters import LetterId, LetterReader, OffsetSet, list_letters
from k2cli.ingestion.kafka.topics import PartitionInfo
from k2cli.ingestion.kafka.values import describe_value, hex_lines

RANGES = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)))


@given(RANGES)
def test_offsets_are_those_that_were_added(ranges: list[tuple[int, int]]) -> None:
    offsets = OffsetSet()
    expected: set[int] = set()
    for first, more in ranges:
        offsets.add(first, first + more)
        expected.update(range(first, first + more + 1))
    assert {offset for offset in range(-1, 80) if offset in offsets} == expected
    every = np.arange(80)
    assert set(every[offsets.mask(every)].tolist()) == expected
    assert OffsetSet(str(offsets)).ranges == offsets.ranges
    assert all(one[1] + 1 < two[0] for one, two in pairwise(offsets.ranges))


def test_offsets_are_written_as_ranges() -> None:
    offsets = OffsetSet("3,1-2")
    offsets.update(OffsetSet("7,9-12"))
    assert str(offsets) == "1-3,7,9-12"
    assert str(OffsetSet()) == ""


HUGE = "9" * 5000  # more digits than Python converts
BEYOND = str(1 << 63)


@pytest.mark.parametrize(
    "text", ["x", "1-y", "1,,2", "-", "5-3", "-5", "1_0", BEYOND, f"0-{BEYOND}", "9" * 20, HUGE]
)
def test_what_is_no_range_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid (number|range)|integer string conversion"):
        OffsetSet(text)


def test_the_largest_offset_is_one() -> None:
    text = str((1 << 63) - 1)
    assert OffsetSet(f"0,{text}").mask(np.array([0, 1, int(text)])).tolist() == [True, False, True]


class ScriptedLetters(LetterReader):
    """Letters as others may have put them on the topic; no brokers."""

    def __init__(self, messages: list[Message]) -> None:
        self._source = "t"
        self._found = messages
        self._replayed = {}
        self._partitions = (PARTITION,)

    def _messages(self, _info: PartitionInfo, _begin: int) -> Iterator[Message]:
        return iter(self._found)


PARTITION = PartitionInfo(number=0, leader=1, replicas=(1,), in_sync=(1,), first=0, next=9)


def letter(place: int, time_ms: int = 0, /, **headers: str) -> Message:
    given: list[tuple[str, str | bytes | None]] = [
        (f"k2.{name}", value.encode()) for name, value in headers.items()
    ]
    return Message(
        topic="t.dlq",
        partition=0,
        offset=place,
        value=b"",
        headers=given,
        timestamp=(1, time_ms),
    )


def test_odd_numbers_and_times_of_others_are_listed_as_null(tmp_path: Path) -> None:
    reader = ScriptedLetters(
        [
            letter(0, partition="9" * 20, offset=HUGE),
            letter(1, 10**15, partition="3", offset=str((1 << 63) - 1)),
            letter(2, replayed="0"),
            letter(3, replayed=f"5-{BEYOND}"),
            letter(4, replayed="5-3"),
        ]
    )
    rows = list_letters(reader, tmp_path / "spool", newest=None).to_pylist()
    assert [row["letter"] for row in rows] == ["0/0", "0/1", "0/3", "0/4"]
    assert [row["is_replayed"] for row in rows] == [True, False, False, False]
    assert [row["partition"] for row in rows] == [None, 3, None, None]
    assert [row["offset"] for row in rows] == [None, (1 << 63) - 1, None, None]
    assert [row["time"] is None for row in rows] == [False, True, False, False]


@pytest.mark.parametrize("text", ["0", "0/", "/1", "a/1", "0/-1", f"0/{BEYOND}", f"0/{HUGE}"])
def test_what_names_no_letter_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"invalid number|integer string conversion"):
        LetterId.parse(text)


def test_a_value_that_is_text_is_shown_as_text() -> None:
    info = describe_value('{"a": "é"}'.encode(), "no registry")
    assert (info.text, info.size_bytes, info.problem, info.hex) == ('{"a": "é"}', 11, None, None)


def test_a_value_that_is_nothing_known_is_shown_in_hex() -> None:
    info = describe_value(bytes([200, 65]) * 200, "no registry")
    assert info.problem == "neither in the wire format of a schema registry, nor text"
    assert info.hex == "c841" * 128
    assert (
        hex_lines("c841" * 9)[1]
        == "00000010  c8 41                                            |.A|"
    )


def test_a_record_without_a_registry_still_tells_its_schema() -> None:
    info = describe_value(wire_header(7) + b"x", "no schema registry is configured")
    assert (info.schema_id, info.fields) == (7, None)
    assert info.problem == "no schema registry is configured"
    assert info.hex == "000000000778"


def test_no_value_is_a_tombstone() -> None:
    info = describe_value(None, "no registry")
    assert (info.size_bytes, info.problem) == (None, "a null value (tombstone)")
