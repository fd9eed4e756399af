"""The process that runs one user statement with bounded memory and sends the answer.

It may hang or crash at any time: DuckDB has SELECTs that crash it and SELECTs that cannot be
interrupted. `k2cli.query.forkserver` starts the process and cleans up after it.
"""

import os
import pickle
import resource
import socket
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Final, cast

import pyarrow as pa

from k2cli.config import QuerySettings
from k2cli.errors import K2Error, Unavailable
from k2cli.query.answer import Answer
from k2cli.query.engine import open_sql
from k2cli.query.protocol import (
    MEMORY_HINT,
    Frames,
    FrameSink,
    Kind,
    Request,
    memory_bytes,
    send_frame,
)
from k2cli.query.render import COPIES, RENDERINGS

# Memory of DuckDB, Arrow and Python that DuckDB does not count.
_HEADROOM_BYTES: Final = 1 << 30
_LONGEST_ERROR: Final = 4_000  # characters
_DEEPEST_TREE: Final = 20_000  # levels of a parse tree in JSON


def run_worker(connection: socket.socket, folder: Path) -> None:
    """Answer one request; spill into `folder`. Results and errors are sent, never printed."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tempfile.tempdir = str(folder)
    sys.setrecursionlimit(_DEEPEST_TREE)
    with suppress(BrokenPipeError, ConnectionResetError):  # the client disconnected
        try:
            _, body = Frames(connection).receive()
            rows = _answer(pickle.loads(body), connection)
            send_frame(connection, Kind.END, str(rows).encode())
        except K2Error as exc:
            _send_error(connection, exc)
        except MemoryError:
            _send_error(connection, Unavailable("the query ran out of memory", hint=MEMORY_HINT))
        except (BrokenPipeError, ConnectionResetError):
            raise
        except BaseException:  # a bug in k2: the client raises it
            send_frame(connection, Kind.ERROR, pickle.dumps(traceback.format_exc()))
            raise


def _send_error(connection: socket.socket, exc: K2Error) -> None:
    # As its base class: the client does not have the engine's subclasses.
    known = next(cls for cls in type(exc).__mro__ if cls.__module__ == K2Error.__module__)
    hint = _shortened(exc.hint) if exc.hint else exc.hint
    send_frame(connection, Kind.ERROR, pickle.dumps((known, _shortened(str(exc)), hint)))


def _shortened(text: str) -> str:
    """Shorten an error that a query made long."""
    return text if len(text) <= _LONGEST_ERROR else f"{text[:_LONGEST_ERROR]}..."


def _answer(request: Request, connection: socket.socket) -> int:
    with open_sql(request, when_ready=lambda: _begin(request, connection)) as answer:
        send_frame(connection, Kind.COLUMNS, pickle.dumps(answer.named_types))
        sink = cast("BinaryIO", FrameSink(connection))
        if request.form in COPIES:
            return answer.copy(request.form, sink)
        return _stream(answer, request.form, sink)


def _begin(request: Request, connection: socket.socket) -> None:
    _bound_memory(request.settings)
    send_frame(connection, Kind.READY, b"")


def _stream(answer: Answer, rendering: str, sink: BinaryIO) -> int:
    rows = 0
    schema, batches = answer.stream(RENDERINGS[rendering])
    with pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            rows += batch.num_rows
    return rows


def _bound_memory(settings: QuerySettings) -> None:
    """Limit the memory of the process: DuckDB does not count everything."""
    statm = Path("/proc/self/statm")
    if not statm.exists():  # other systems do not enforce the limit
        return
    idle = int(statm.read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limit = (
        idle + 2 * memory_bytes(settings) + _HEADROOM_BYTES
    )  # allocators reserve more than they use
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
