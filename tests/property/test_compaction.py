"""Which files are compacted, and sorting more rows than fit in memory."""

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from k2cli.storage import sorting
from k2cli.storage.compaction import (
    FEWEST,
    SMALL_BYTES,
    StoredFile,
    files_after,
    plan_day,
    saved_bytes,
)
from k2cli.storage.sorting import regrouped, sorted_rows

TARGET = 128_000_000
SORT_BY = ("symbol", "timestamp", "source_sequence")


@st.composite
def stored_files(draw: st.DrawFn) -> list[StoredFile]:
    sizes = draw(st.lists(st.integers(1, 300_000_000) | st.integers(1_000, 50_000), max_size=60))
    files = []
    for number, size in enumerate(sizes):
        begin = draw(st.integers(0, 1_000))
        files.append(
            StoredFile(
                path=f"{number}",
                size_bytes=size,
                rows=size // 30 + 1,
                is_marked=draw(st.booleans()),
                symbols=("A", "B"),
                begin=begin,
                end=begin + draw(st.integers(0, 100)),
            )
        )
    return files


@given(files=stored_files())
def test_small_files_are_packed_within_the_limits(files: list[StoredFile]) -> None:
    groups = plan_day(files, is_over=False, target_bytes=TARGET)
    chosen = [file for group in groups for file in group.files]
    assert len({file.path for file in chosen}) == len(chosen)
    for group in groups:
        sizes = [file.size_bytes for file in group.files]
        assert len(sizes) >= FEWEST
        assert sum(sizes) <= TARGET
        assert max(sizes) < SMALL_BYTES
        assert not group.is_whole_day
        begins = [file.begin for file in group.files]
        assert begins == sorted(begins)


@given(files=stored_files(), rounds=st.integers(1, 6))
def test_packing_ends_and_writes_no_row_often(files: list[StoredFile], rounds: int) -> None:
    """Repeated after new small files, as a stream leaves them."""
    written = dict.fromkeys((file.path for file in files), 1)
    for number in range(rounds):
        while groups := plan_day(files, is_over=False, target_bytes=TARGET):
            for at, group in enumerate(groups):
                gone = {file.path for file in group.files}
                size = sum(file.size_bytes for file in group.files)
                one = StoredFile(
                    path=f"{number}-{at}-{len(written)}", size_bytes=size, rows=1, begin=0, end=0
                )
                written[one.path] = 1 + max(written[path] for path in gone)
                files = [file for file in files if file.path not in gone] + [one]
        new = [
            StoredFile(path=f"n{number}-{at}", size_bytes=10_000, rows=1, begin=at, end=at)
            for at in range(8)
        ]
        written |= dict.fromkeys((file.path for file in new), 1)
        files = files + new
    # From 1 byte to 32 MB by at least the factor that packing gains on the average of 8 files.
    assert max(written.values(), default=1) <= 14


@given(files=stored_files())
def test_a_closed_day_is_sorted_as_a_whole_once(files: list[StoredFile]) -> None:
    unmarked = [
        StoredFile(path=f.path, size_bytes=f.size_bytes, rows=f.rows, begin=f.begin, end=f.end)
        for f in files
    ]
    groups = plan_day(unmarked, is_over=True, target_bytes=TARGET)
    if len(unmarked) < 2:
        assert not groups
        return
    (group,) = groups
    assert group.is_whole_day
    assert {file.path for file in group.files} == {file.path for file in unmarked}
    assert files_after(groups, TARGET) >= 1
    total = sum(file.size_bytes for file in unmarked)
    assert 0 <= saved_bytes(unmarked, 1) <= total
    whole, rest = divmod(total, TARGET)
    done = [
        StoredFile(
            path=f"s{at}",
            size_bytes=TARGET if at < whole else rest,
            rows=1,
            is_marked=True,
            symbols=(f"S{at:03}", f"S{at + 1:03}"),
        )
        for at in range(whole + bool(rest))
    ]
    assert not plan_day(done, is_over=True, target_bytes=TARGET)


def marked(path: str, symbols: tuple[str, str], **over: Any) -> StoredFile:
    given = {"path": path, "size_bytes": TARGET, "rows": 1, "is_marked": True, "symbols": symbols}
    return StoredFile(**{**given, **over})


LATE = StoredFile(path="late", size_bytes=10_000, rows=9)


@pytest.mark.parametrize(
    ("files", "is_in_shape"),
    [
        ([marked("a", ("A", "B")), marked("b", ("B", "C"))], True),
        ([marked("a", ("A", "A"), end=5), marked("b", ("A", "A"), begin=5, end=9)], True),
        ([marked("a", ("A", "A"), end=6), marked("b", ("A", "A"), begin=5, end=9)], False),
        ([marked("a", ("A", "C")), marked("b", ("B", "C"))], False),
        ([marked("a", ("A", "B")), LATE], True),
        ([marked("a", ("A", "B")), marked("late", ("A", "B"), is_marked=False)], False),
        ([marked(f"{at}", (f"{at}", f"{at}"), size_bytes=9) for at in range(3)], False),
        ([LATE], True),
    ],
    ids=[
        "sorted",
        "by-time",
        "times-overlap",
        "symbols-overlap",
        "late",
        "much-late",
        "small",
        "one",
    ],
)
def test_a_day_in_shape_is_left_alone(files: list[StoredFile], is_in_shape: bool) -> None:
    assert (not plan_day(files, is_over=True, target_bytes=TARGET)) == is_in_shape


def test_late_files_of_a_sorted_day_are_packed_by_themselves() -> None:
    late = [StoredFile(path=f"l{at}", size_bytes=10_000, rows=9, begin=at) for at in range(FEWEST)]
    (group,) = plan_day([marked("a", ("A", "B")), *late], is_over=True, target_bytes=TARGET)
    assert list(group.files) == late
    assert not group.is_whole_day


row = st.tuples(
    st.sampled_from(["", "A", "AB", "B", "ÿ", "\ue000", "\U0001f600"]),
    st.integers(0, 5),
    st.none() | st.integers(0, 2**62),
)


@given(
    parts=st.lists(st.lists(row, max_size=30), max_size=12),
    run_bytes=st.integers(1, 2_000),
    block_rows=st.integers(1, 9),
)
def test_runs_merge_to_the_same_rows_in_order(
    parts: list[list[Any]], run_bytes: int, block_rows: int
) -> None:
    schema = pa.schema(
        [
            ("symbol", pa.string()),
            ("timestamp", pa.timestamp("us", "UTC")),
            ("source_sequence", pa.int64()),
            ("note", pa.map_(pa.string(), pa.string())),
        ]
    )
    tables = [
        pa.table(
            [
                [each[0] for each in part],
                pa.array([each[1] for each in part], pa.int64()).cast(schema.types[1]),
                pa.array([each[2] for each in part], pa.int64()),
                pa.array([[("k", repr(each))] for each in part], schema.types[3]),
            ],
            schema=schema,
        )
        for part in parts
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sorting, "_BLOCK_ROWS", block_rows)
        found = list(regrouped(sorted_rows(tables, SORT_BY, run_bytes=run_bytes), 7))
    assert all(each.num_rows == 7 for each in found[:-1])
    rows = [each for table in found for each in table.to_pylist()]
    expected = [
        (*each, [("k", repr(each))])
        for part in parts
        for each in part
    ]  # fmt: skip

    def key(each: tuple[Any, ...]) -> tuple[Any, ...]:
        return each[0], each[1], 2**63 if each[2] is None else each[2]

    got = [
        (each["symbol"], each["timestamp"].microsecond, each["source_sequence"], each["note"])
        for each in rows
    ]
    assert [key(each) for each in got] == sorted(map(key, expected))
    assert sorted(map(repr, got)) == sorted(map(repr, expected))


def test_a_merge_reads_blocks_only_when_they_are_next() -> None:
    """Runs of different hours are in memory one at a time."""
    order = list(range(8))
    random.Random(1).shuffle(order)
    tables = [
        pa.table(
            {
                "symbol": ["A"] * 5_000,
                "timestamp": pa.array(range(hour * 5_000, (hour + 1) * 5_000), pa.int64()),
                "source_sequence": pa.array(range(5_000), pa.int64()),
            }
        )
        for hour in order
    ]
    sizes = [part.num_rows for part in sorted_rows(tables, SORT_BY, run_bytes=1)]
    assert sum(sizes) == 40_000
    assert max(sizes) <= 4_096
