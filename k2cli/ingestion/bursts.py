"""A queue of frames between the connections and the thread that parses them.

One thread puts, another takes; neither waits for the other. The connections check `is_over` and
stop reading while the queue is long, so memory stays bounded.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

CHUNK_FRAMES: Final = 4096  # parsed together, roughly
FRAME_MIN_BYTES: Final = 512  # smaller frames cost as much to handle
NOTICE_MAX_BYTES: Final = 256  # a longer frame is never a shutdown notice


class Burst(NamedTuple):
    """Frames from one read of the network."""

    session: int
    received_us: int  # UTC microseconds
    frames: Sequence[bytes]
    size_bytes: int


class Chunk(NamedTuple):
    """Frames of one session, with their receive times in UTC microseconds."""

    session: int
    frames: list[bytes]
    received_us: list[int]


class BurstQueue:
    """A queue of bursts that belong to numbered sessions."""

    def __init__(self) -> None:
        self._bursts: deque[Burst] = deque()
        self._session = 0
        self._queued_bytes = 0  # written by the producing thread ...
        self._taken_bytes = 0  # ... and by the consuming one; both only grow

    def __bool__(self) -> bool:
        """Return whether the queue has bursts."""
        return bool(self._bursts)

    def begin_session(self) -> None:
        """Start a new session for later bursts: data may be missing before them."""
        self._session += 1
        self._bursts.append(Burst(self._session, 0, [], 0))

    def put(self, frames: Sequence[bytes], received_us: int) -> None:
        """Append frames that were received together."""
        for start in range(0, len(frames), CHUNK_FRAMES):
            some = frames[start : start + CHUNK_FRAMES]
            size_bytes = max(sum(map(len, some)), FRAME_MIN_BYTES * len(some))
            self._queued_bytes += size_bytes
            self._bursts.append(Burst(self._session, received_us, some, size_bytes))

    def is_over(self, limit_bytes: int) -> bool:
        """Return whether more than this is queued."""
        return self._queued_bytes - self._taken_bytes > limit_bytes

    def take(self, session: int) -> Chunk:
        """Take some frames of one session; `session` is the session of the previous frames.

        The chunk is empty if nothing is queued.
        """
        frames: list[bytes] = []
        received_us: list[int] = []
        while self._bursts and len(frames) < CHUNK_FRAMES:
            if frames and self._bursts[0].session != session:
                break
            burst = self._bursts.popleft()
            session = burst.session
            frames += burst.frames
            received_us += [burst.received_us] * len(burst.frames)
            self._taken_bytes += burst.size_bytes
        return Chunk(session, frames, received_us)
