"""The queue between the connections and the parser: order, sessions, size."""

import pytest

from k2cli.ingestion.bursts import CHUNK_FRAMES, FRAME_MIN_BYTES, BurstQueue


def test_empty_queue_gives_an_empty_chunk_of_the_same_session() -> None:
    queue = BurstQueue()
    assert not queue
    assert queue.take(3) == (3, [], [])


def test_frames_come_out_in_order_each_with_its_time() -> None:
    queue = BurstQueue()
    queue.put([b"a", b"b"], 10)
    queue.put([b"c"], 20)
    assert queue.take(0) == (0, [b"a", b"b", b"c"], [10, 10, 20])
    assert not queue


def test_chunk_ends_where_a_session_does() -> None:
    queue = BurstQueue()
    queue.put([b"a"], 10)
    queue.begin_session()
    queue.put([b"b"], 20)
    queue.begin_session()
    first = queue.take(0)
    second = queue.take(first.session)
    assert first == (0, [b"a"], [10])
    assert second == (1, [b"b"], [20])
    assert queue.take(second.session) == (2, [], [])


def test_burst_of_any_size_is_taken_in_chunks() -> None:
    queue = BurstQueue()
    frames = [b"%d" % number for number in range(2 * CHUNK_FRAMES + 5)]
    queue.put(frames, 10)
    chunks = [queue.take(0) for _ in range(3)]
    assert [len(chunk.frames) for chunk in chunks] == [CHUNK_FRAMES, CHUNK_FRAMES, 5]
    assert [frame for chunk in chunks for frame in chunk.frames] == frames
    assert not queue


@pytest.mark.parametrize(
    ("frames", "size_bytes"),
    [([b"x"] * 3, 3 * FRAME_MIN_BYTES), ([b"x" * 2_000] * 3, 6_000)],
    ids=["tiny", "large"],
)
def test_size_is_that_of_the_frames_that_wait(frames: list[bytes], size_bytes: int) -> None:
    queue = BurstQueue()
    queue.put(frames, 10)
    assert queue.is_over(size_bytes - 1)
    assert not queue.is_over(size_bytes)
    queue.take(0)
    assert not queue.is_over(0)
