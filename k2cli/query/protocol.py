"""The protocol between the client and the worker of a query: frames with kind and length.

The worker runs users' SQL, but only k2's code sends frames, and both sides are the same user on the
same machine, so bodies may be pickled.
"""

import io
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from k2cli.config import parse_size_bytes
from k2cli.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from k2cli.config import QuerySettings
    from k2cli.records import TableFiles

START: Final = struct.Struct(">QQ")  # to the fork server: limits of resident and spilled bytes
# From it, instead of an exit code: the worker was killed because it exceeded a limit.
SWOLLEN: Final = 256
SPILLED: Final = 257
MEMORY_HINT: Final = (
    "raise query.memory_limit or query.spill_limit (K2_QUERY_MEMORY_LIMIT, K2_QUERY_SPILL_LIMIT),"
    " or free space in $TMPDIR"
)
_THREAD_BYTES: Final = 100_000_000
_HEADER: Final = struct.Struct(">cI")
_CHUNK_BYTES: Final = 1 << 20


def modest_limit_bytes(settings: "QuerySettings") -> int:
    """Return the memory limit of k2's own queries, as DuckDB counts it.

    At most they sort. Large selections are sorted in pieces that fit, see `query.pieces`. Other
    sorts spill: 2 million rows to parquet keep the process below 600 MB.
    """
    modest = _THREAD_BYTES * (settings.threads or os.cpu_count() or 1)
    return min(modest, _limit_bytes(settings))


def memory_bytes(settings: "QuerySettings") -> int:
    """Return the memory limits of both engines of a user's SQL, as DuckDB counts it.

    Raises:
        ConfigError: the limit is not a size.
    """
    return _limit_bytes(settings) + modest_limit_bytes(settings)


def _limit_bytes(settings: "QuerySettings") -> int:
    try:
        return parse_size_bytes(settings.memory_limit)
    except ValueError as exc:
        raise ConfigError(
            f"query.memory_limit: {exc}", hint="set it in k2.toml or as K2_QUERY_MEMORY_LIMIT"
        ) from exc


class AnyAnswer(Protocol):
    """An answer that can be written, from an engine in this process or from a worker."""

    @property
    def named_types(self) -> Sequence[tuple[str, str]]:
        """Return the columns: name, and id of the DuckDB type."""

    def first(self, rows: int) -> "AnyAnswer":
        """Return the same answer, limited to its first rows."""

    def copy(self, form: str, sink: BinaryIO) -> int:
        """Write all rows in a format of `render.COPIES`; return how many."""

    def batches(self, rendering: str = ...) -> "Iterator[pa.RecordBatch]":
        """Stream the rows in a rendering of `render.RENDERINGS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A statement, and the requested form of its answer."""

    settings: "QuerySettings"
    files: "Sequence[TableFiles]"
    text: str
    form: str  # of render.COPIES: bytes; or of render.RENDERINGS: an Arrow stream
    zone: str  # for displayed times
    limit: int | None = None  # rows


class Kind(Enum):
    """The content of a frame."""

    REQUEST = b"R"
    READY = b"B"  # the statement starts
    COLUMNS = b"C"
    DATA = b"D"
    END = b"E"
    ERROR = b"X"


class Closed(Exception):
    """The other side closed the connection, or died."""


def send_frame(connection: socket.socket, kind: Kind, body: bytes | memoryview) -> None:
    """Send one frame; wait until the other side has received most of it."""
    connection.sendall(_HEADER.pack(kind.value, len(body)))
    connection.sendall(body)


class Frames:
    """Receives frames, and gives up after waiting `allowance_s` in total.

    Only time without data counts, not the time that the caller spends on frames.
    """

    def __init__(
        self,
        connection: socket.socket,
        *,
        allowance_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = connection
        self._clock = clock
        self.allowance_s = allowance_s
        self._left_s = allowance_s

    def receive(self) -> tuple[Kind, bytearray]:
        """Wait for the next frame.

        Raises:
            Closed: there are no more.
            TimeoutError: it did not arrive in time.
        """
        kind, size = _HEADER.unpack(self._exactly(_HEADER.size))
        return Kind(kind), self._exactly(size)

    def _exactly(self, size: int) -> bytearray:
        body = bytearray(size)
        view = memoryview(body)
        while view:
            taken = self._take(view)
            view = view[taken:]
        return body

    def _take(self, view: memoryview) -> int:
        if self._left_s is not None and self._left_s <= 0:
            raise TimeoutError
        self._connection.settimeout(self._left_s)
        begin = self._clock()
        try:
            taken = self._connection.recv_into(view)
        except ConnectionError as exc:
            raise Closed from exc
        if self._left_s is not None:
            self._left_s -= self._clock() - begin
        if not taken:
            raise Closed
        return taken


class FrameSink(io.RawIOBase):
    """A binary file that sends its bytes as data frames."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__()
        self._connection = connection

    def writable(self) -> bool:
        """Return True: it is writable."""
        return True

    def write(self, chunk: object) -> int:
        """Send a chunk of any size."""
        view = memoryview(chunk).cast("B")  # type: ignore[arg-type]
        for begin in range(0, len(view), _CHUNK_BYTES):
            send_frame(self._connection, Kind.DATA, view[begin : begin + _CHUNK_BYTES])
        return len(view)
