"""Offsets and spans of a run: what is committed as what, and when it has to rewind."""

import numpy as np
import pyarrow as pa
import pytest
from confluent_kafka import Message

from k2cli.errors import BadData
from k2cli.ingestion.kafka.deadletters import dead_letter
from k2cli.pipelines.consume.batch import Decoded, Reached
from k2cli.pipelines.consume.progress import Progress, Start
from k2cli.rejects import Cause, Fault
from k2cli.storage.offsets import Partition, Span

ZERO, ONE = ("t", 0), ("t", 1)
NOW_S = 5.0


@pytest.fixture
def progress() -> Progress:
    """A progress of two partitions, whose table has the first 10 offsets of partition 0."""
    progress = Progress({"t": "old"})
    progress.assign(
        {
            ZERO: Start(stored=10, first=0, end=20),
            ONE: Start(stored=None, first=0, end=20),
        }
    )
    return progress


def read(progress: Progress, partition: tuple[str, int], reached: int, messages: int = 1) -> None:
    """Keep messages of a partition, up to an offset."""
    decoded = Decoded(
        kind="trades",
        rows=pa.record_batch({"n": [reached] * messages}),
        messages=messages,
        reached={partition: Reached(reached, 1_000 + reached)},
    )
    progress.keep(decoded, now_s=NOW_S)


@pytest.mark.parametrize(
    ("stored", "first", "offset", "missing"),
    [
        (None, 0, 0, 0),
        (None, 7, 7, 0),  # whoever begins late has missed nothing
        (5, 0, 5, 0),
        (5, 5, 5, 0),
        (5, 9, 9, 4),
        (20, 0, 20, 0),
    ],
)
def test_start_is_where_the_table_stands_or_where_the_brokers_begin(
    stored: int | None, first: int, offset: int, missing: int
) -> None:
    start = Start(stored=stored, first=first, end=20)
    assert (start.offset, start.missing) == (offset, missing)
    assert Progress({"t": "id"}).assign({ZERO: start}) == {ZERO: offset}


def test_table_beyond_the_end_is_an_error_and_nothing_is_assigned() -> None:
    progress = Progress({"t": "id"})
    with pytest.raises(BadData, match="is at offset 21 of t/0, which ends at 20"):
        progress.assign({ZERO: Start(stored=21, first=0, end=20)})
    assert progress.next_offsets() == {}


def test_spans_begin_where_the_last_batch_ended(progress: Progress) -> None:
    read(progress, ZERO, 12)
    read(progress, ZERO, 15)
    read(progress, ONE, 3)
    first = progress.hand_over()
    assert first.spans == {
        Partition("t", "old", 0): Span(expected=10, reached=15),
        Partition("t", "old", 1): Span(expected=None, reached=3),
    }
    assert (first.messages, first.began_s, first.newest_ms) == (3, NOW_S, {ZERO: 1015, ONE: 1003})
    read(progress, ZERO, 16)
    assert progress.hand_over().spans == {
        Partition("t", "old", 0): Span(expected=15, reached=16),
    }


def test_committed_follows_commits_not_reads(progress: Progress) -> None:
    read(progress, ZERO, 12)
    assert progress.next_offsets() == {ZERO: 12, ONE: 0}
    assert progress.committed() == {ZERO: 10, ONE: 0}
    assert progress.commit(progress.hand_over()) == {ZERO: 12}
    assert progress.committed() == {ZERO: 12, ONE: 0}
    assert progress.committed_ms() == {ZERO: 1012}


def test_messages_are_owned_from_the_next_offset_on_and_of_assigned_partitions(
    progress: Progress,
) -> None:
    numbers = np.array([0, 0, 0, 1, 2])
    offsets = np.array([9, 10, 11, 0, 0])
    assert progress.owned("t", numbers, offsets).tolist() == [False, True, True, True, False]
    assert not progress.owned("other", numbers, offsets).any()
    progress.suspend([ONE])
    progress.release([ZERO])
    assert not progress.owned("t", numbers, offsets).any()


def test_ends_are_reached_without_messages_and_only_forward(progress: Progress) -> None:
    progress.keep_ends({ZERO: 10, ONE: 4, ("t", 9): 7}, now_s=NOW_S)
    assert progress.pending.spans == {
        Partition("t", "old", 1): Span(expected=None, reached=4),
    }
    assert progress.pending.newest_ms == {}
    assert progress.pending.began_s == NOW_S


def test_a_rewind_drops_what_is_pending(progress: Progress) -> None:
    read(progress, ZERO, 12)
    progress.require_rewind()
    assert progress.must_rewind
    assert progress.pending.spans == {}
    progress.rewind()
    assert not progress.must_rewind
    assert progress.assign({ZERO: Start(stored=10, first=0, end=20)}) == {ZERO: 10}


def test_what_was_read_before_a_confirmed_question_is_kept_of_a_recreated_topic(
    progress: Progress,
) -> None:
    read(progress, ZERO, 12)
    mark = progress.mark({ZERO: 20, ONE: 20})
    read(progress, ZERO, 15)
    progress.confirm(mark, {"t"})
    batch = progress.hand_over().cut()
    assert batch.spans == {Partition("t", "old", 0): Span(expected=10, reached=12)}
    assert [rows["n"].to_pylist() for rows in batch.rows["trades"]] == [[12]]
    assert progress.commit(batch) == {}
    assert progress.must_rewind


def test_nothing_is_kept_of_a_recreated_topic_without_a_confirmed_question(
    progress: Progress,
) -> None:
    read(progress, ZERO, 12)
    progress.confirm(progress.mark({}), set())
    batch = progress.hand_over().cut()
    assert (batch.spans, batch.rows, batch.messages) == ({}, {}, 0)


def test_records_of_a_recreated_topic_that_were_never_stored_are_missing(
    progress: Progress,
) -> None:
    mark = progress.mark({ZERO: 25, ONE: 20})  # five records more have arrived
    progress.confirm(mark, {"t"})
    stored = {Partition("t", "old", 0): 18}  # another consumer has come further than this one
    assert progress.recreate("t", "new", stored) == (25 - 18) + 20
    assert progress.topic_id("t") == "new"
    assert progress.identify(ZERO) == Partition("t", "new", 0)
    assert progress.must_rewind


def test_what_views_read_is_a_copy(progress: Progress) -> None:
    progress.next_offsets().clear()
    progress.committed().clear()
    progress.committed_ms()[ZERO] = 1
    assert progress.next_offsets() == progress.committed() == {ZERO: 10, ONE: 0}
    assert progress.committed_ms() == {}


def test_dead_letters_fill_a_batch_with_their_bytes(progress: Progress) -> None:
    """Of large ones, few must be kept in memory."""
    message = Message(topic="t", partition=1, offset=0, key=b"key", value=b"x" * 1_000)
    fault = Fault(reason="why", cause=Cause.BAD_BODY)
    decoded = Decoded(
        kind="trades",
        rows=pa.record_batch({"n": pa.array([], pa.int64())}),
        messages=2,
        reached={ONE: Reached(2, 0)},
        letters=[dead_letter(message, fault)] * 2,
    )
    progress.keep(decoded, now_s=NOW_S)
    assert progress.pending.size_bytes == 2_006
    assert progress.pending.fill(batch_rows=10_000_000) == pytest.approx(2_006 / (128 << 20))
