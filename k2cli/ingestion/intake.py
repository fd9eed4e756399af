"""What all connections do with the frames they receive: queue them, up to a limit.

While the queue is long the connections stop reading, so back-pressure reaches the exchange and
memory stays bounded.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

from k2cli.ingestion.bursts import BurstQueue
from k2cli.ingestion.connection import Connection
from k2cli.ingestion.recorder import Record

QUEUE_HIGH_BYTES: Final = 8 * 1024 * 1024  # reading pauses above it, until half is left
_DRAIN_CHECK_S: Final = 0.01  # between checks of a queue that is too long


class Intake:
    """Queues the frames of all connections; `on_full` is called after the last one."""

    def __init__(
        self,
        queue: BurstQueue,
        *,
        max_messages: int | None,
        on_full: Callable[[], None],
        record: Record | None = None,
    ) -> None:
        """Prepare; `record` gets all frames as they are received, in one thread."""
        self.is_open = True
        self._record = record
        self._queue = queue
        self._left = max_messages
        self._on_full = on_full

    def interrupt(self) -> None:
        """Begin a new session: data may be missing before later frames."""
        self._queue.begin_session()

    def record(self, frames: Sequence[bytes], received_ns: int) -> None:
        """Record frames as they were received, up to the requested number of messages."""
        if self._record is not None and self.is_open:
            self._record(frames if self._left is None else frames[: self._left], received_ns)

    def put(self, frames: Sequence[bytes], received_us: int) -> None:
        """Queue frames, up to the requested number of messages."""
        if not self.is_open:
            return
        if self._left is not None:
            frames = frames[: self._left]
            self._left -= len(frames)
        if frames:
            self._queue.put(frames, received_us)
        if self._left == 0:
            self.is_open = False
            self._on_full()

    def throttle(self, connection: Connection) -> None:
        """Stop reading from a connection while the queue is too long."""
        if not connection.is_paused and self._queue.is_over(QUEUE_HIGH_BYTES):
            connection.pause()
            self._resume_when_drained(connection)

    def _resume_when_drained(self, connection: Connection) -> None:
        if self._queue.is_over(QUEUE_HIGH_BYTES // 2):
            loop = asyncio.get_running_loop()
            loop.call_later(_DRAIN_CHECK_S, self._resume_when_drained, connection)
        else:
            connection.resume()
