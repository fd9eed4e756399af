"""Run user SQL in processes that may crash, hang or be stopped at any time."""

import io
import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, BinaryIO, Final, NoReturn, cast

from k2cli.errors import BadData, Unavailable
from k2cli.query.protocol import (
    MEMORY_HINT,
    SPILLED,
    START,
    SWOLLEN,
    Closed,
    Frames,
    Kind,
    Request,
    memory_bytes,
    send_frame,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from k2cli.config import QuerySettings
    from k2cli.records import TableFiles


# Besides the memory that DuckDB counts: libraries, and rows in transit.
_HEADROOM_BYTES: Final = 600 << 20
# Reserve less of the bounded address space, and start no threads that a fork would lose.
_FRUGAL: Final = {
    "MALLOC_ARENA_MAX": "2",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "OPENBLAS_NUM_THREADS": "1",
}
_START_S: Final = 60.0  # until a worker reads its statement


class Sandbox:
    """A running fork server. Created by `open_sandbox`; safe to use from several threads."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._lock = Lock()

    @contextmanager
    def ask(
        self,
        settings: "QuerySettings",
        files: "Iterable[TableFiles]",
        text: str,
        *,
        zone: str = "UTC",
    ) -> Iterator["RemoteAnswer"]:
        """Prepare a statement; it runs, once, when the answer is read.

        Only the answer's times are shown in `zone`; the statement runs in UTC.

        On exit its process is stopped and its files are removed.
        """
        limits = START.pack(memory_bytes(settings) + _HEADROOM_BYTES, settings.spill_limit)
        ours, theirs = socket.socketpair()
        lifeline, their_lifeline = socket.socketpair()
        with ours, lifeline:
            with theirs, their_lifeline, self._lock:
                fds = [theirs.fileno(), their_lifeline.fileno()]
                try:
                    socket.send_fds(self._control, [limits], fds)
                except OSError as exc:
                    raise Unavailable("the process that starts queries ended") from exc
            # The form of the answer is not known yet.
            request = Request(settings=settings, files=list(files), text=text, form="", zone=zone)
            try:
                yield RemoteAnswer(ours, lifeline, request)
            finally:
                ours.close()
                with suppress(OSError):
                    lifeline.shutdown(socket.SHUT_WR)
                _exit_status(lifeline)


@contextmanager
def open_sandbox() -> Iterator[Sandbox]:
    """Start the fork server; it loads what queries need in the background."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            command = [sys.executable, "-P", "-m", "k2cli.query", str(theirs.fileno())]
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={**os.environ, **_FRUGAL},
                start_new_session=True,  # Ctrl-C and SIGHUP are for k2, which stops it
            )
        try:
            yield Sandbox(ours)
        finally:
            ours.close()
            process.wait()


def _exit_status(lifeline: socket.socket) -> int | None:
    """Wait until a worker is cleaned up; return its exit code, or minus its signal.

    None if unknown: the fork server was killed.
    """
    lifeline.settimeout(None)
    with suppress(ConnectionError):
        if status := lifeline.recv(16):
            return int(status)
    return None


class RemoteAnswer:
    """The answer of another process, like the engine's `Answer`.

    Its columns are known after the first rows are read.
    """

    def __init__(
        self, connection: socket.socket, lifeline: socket.socket, request: Request
    ) -> None:
        self._connection = connection
        self._lifeline = lifeline
        self._request = request
        self._frames = Frames(connection, allowance_s=_START_S)
        self._size_bytes = 0
        self._rows = 0  # set at the end of the answer
        self.named_types: Sequence[tuple[str, str]] = ()

    def first(self, rows: int) -> "RemoteAnswer":
        """Return the same answer, limited to its first rows."""
        return RemoteAnswer(self._connection, self._lifeline, replace(self._request, limit=rows))

    def copy(self, form: str, sink: BinaryIO) -> int:
        """Write all rows into `sink` in a format of `render.COPIES`; return how many."""
        self._send(form)
        while (body := self.next_bytes()) is not None:
            sink.write(body)
        sink.flush()
        return self._rows

    def batches(self, rendering: str = "exchanged") -> "Iterator[pa.RecordBatch]":
        """Stream the rows; the first batch is empty, later ones are not."""
        import pyarrow as pa  # noqa: PLC0415, the fork server starts before it is loaded

        self._send(rendering)
        data = cast("BinaryIO", io.BufferedReader(_Data(self)))
        with data, pa.ipc.open_stream(data) as reader:
            yield pa.RecordBatch.from_pylist([], schema=reader.schema)
            yield from reader
            while data.read(1):  # until the worker reports the end
                pass

    def _send(self, form: str) -> None:
        request = pickle.dumps(replace(self._request, form=form))
        with suppress(OSError):  # it died: the next frame has the cause
            send_frame(self._connection, Kind.REQUEST, request)

    def next_bytes(self) -> bytearray | None:
        """Receive the next bytes of the answer; None at the end."""
        try:
            kind, body = self._frames.receive()
        except TimeoutError:
            raise Unavailable(
                f"the query took longer than {self._frames.allowance_s:.15g}s",
                hint="increase --timeout or query.timeout (K2_QUERY_TIMEOUT)",
            ) from None
        except Closed:
            self._raise_death()
        if kind is Kind.ERROR:
            _raise_error(body)
        if kind is Kind.END:
            self._rows = int(body)
            return None
        if kind is Kind.DATA:
            return self._counted(body)
        if kind is Kind.READY:  # from now on the statement uses the time
            allowance_s = self._request.settings.timeout or None
            self._frames = Frames(self._connection, allowance_s=allowance_s)
        elif kind is Kind.COLUMNS:
            self.named_types = pickle.loads(body)
        return self.next_bytes()

    def _counted(self, body: bytearray) -> bytearray:
        self._size_bytes += len(body)
        if self._size_bytes > self._request.settings.answer_limit:
            raise Unavailable(
                f"the answer is larger than {self._request.settings.answer_limit:,} bytes",
                hint="increase query.answer_limit (K2_QUERY_ANSWER_LIMIT)",
            )
        return body

    def _raise_death(self) -> NoReturn:
        code = _exit_status(self._lifeline)
        if code == SWOLLEN:
            raise Unavailable("the query exceeded its memory limit", hint=MEMORY_HINT)
        if code == SPILLED:
            limit = self._request.settings.spill_limit
            raise Unavailable(
                f"the query spilled more than {limit:,} bytes to disk",
                hint="increase query.spill_limit (K2_QUERY_SPILL_LIMIT)",
            )
        if code is None or code == -signal.SIGKILL:
            raise Unavailable("the query process was killed; the system may be out of memory")
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise BadData(f"the query crashed DuckDB ({name})", hint="rewrite the query")


def _raise_error(body: bytearray) -> NoReturn:
    error = pickle.loads(body)
    if isinstance(error, str):
        raise RuntimeError(f"in the query process:\n{error}")
    cls, message, hint = error
    raise cls(message, hint=hint)


class _Data(io.RawIOBase):
    """The bytes of an answer, as a file."""

    def __init__(self, answer: RemoteAnswer) -> None:
        super().__init__()
        self._answer = answer
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        """Return True: it is readable."""
        return True

    def readinto(self, buffer: object) -> int:
        """Read the available bytes, at least one before the end."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._rest:
            body = self._answer.next_bytes()
            if body is None:
                return 0
            self._rest = memoryview(body)
        size = min(len(view), len(self._rest))
        view[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
