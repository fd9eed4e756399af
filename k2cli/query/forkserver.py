"""A preloaded process that forks a worker for each user statement.

It cleans up after workers: it kills the worker when the client hangs up, waits for it, and removes
its folder. It runs no SQL, so it does not crash with a worker; when k2 itself is killed, it kills
all workers.

Each worker has a connection to the client and a lifeline. The client closes the lifeline to kill
the worker; the server sends the worker's exit status on it after cleaning up.

DuckDB's limits of memory and disk are not exact, and the kernel limits addresses, not memory. So
the server monitors each worker and kills those that use too much.
"""

import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from k2cli.query.protocol import SPILLED, START, SWOLLEN
from k2cli.query.worker import run_worker

_FDS: Final = 2  # connection and lifeline, with every message on the control socket
_WATCH_S: Final = 0.05


@dataclass(slots=True)
class _Worker:
    pid: int
    folder: Path
    resident_limit: int  # bytes
    spill_limit: int
    lifeline: socket.socket
    pulse: BinaryIO  # readable when the worker has exited
    verdict: int | None = None  # why it was killed, instead of its exit code

    def kill(self) -> None:
        """Kill it; its process id stays valid until it was waited for."""
        os.kill(self.pid, signal.SIGKILL)

    def check(self) -> None:
        """Kill it if it uses too much."""
        if _resident_size(self.pid) > self.resident_limit:
            self.verdict = SWOLLEN
        elif _size_on_disk(self.folder) > self.spill_limit:
            self.verdict = SPILLED
        if self.verdict is not None:
            self.kill()


def _resident_size(pid: int) -> int:
    try:
        pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):  # another system, or it has just exited
        return 0
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _size_on_disk(folder: Path) -> int:
    size = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                size += Path(parent, name).stat().st_blocks * 512
    return size


class _Server:
    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._selector = selectors.DefaultSelector()
        self._selector.register(control, selectors.EVENT_READ)
        self._workers: list[_Worker] = []

    def serve(self) -> None:
        """Start and stop workers until the client closes the control socket."""
        is_open = True
        while is_open or self._workers:
            for key, _ in self._selector.select(_WATCH_S if self._workers else None):
                if key.fileobj is self._control:
                    is_open = self._start()
                elif isinstance(key.data, _Worker):
                    self._on_event(key.data, is_pulse=key.fileobj is key.data.pulse)
            for worker in self._workers:
                worker.check()

    def _start(self) -> bool:
        message, fds, _, _ = socket.recv_fds(self._control, START.size, _FDS)
        if len(fds) != _FDS:
            self._selector.unregister(self._control)
            for worker in self._workers:
                worker.kill()
            return False
        connection, lifeline = (socket.socket(fileno=fd) for fd in fds)
        folder = Path(tempfile.mkdtemp(prefix="k2-query-"))
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._run(connection, lifeline, folder, read_fd)
        os.close(write_fd)
        connection.close()
        resident, spilled = START.unpack(message)
        pulse = os.fdopen(read_fd, "rb", buffering=0)
        worker = _Worker(pid, folder, resident, spilled, lifeline, pulse)
        self._workers.append(worker)
        for end in (worker.lifeline, worker.pulse):
            self._selector.register(end, selectors.EVENT_READ, worker)
        return True

    def _run(
        self, connection: socket.socket, lifeline: socket.socket, folder: Path, read_fd: int
    ) -> None:
        """Run as the worker, without open files of other workers."""
        code = 1
        try:
            self._selector.close()
            for end in (self._control, lifeline, *(each.lifeline for each in self._workers)):
                end.close()
            os.close(read_fd)
            with open(os.devnull, "r+b") as null:  # noqa: PTH123
                for fd in (0, 1, 2):  # DuckDB logs, profiles and prints crashes
                    os.dup2(null.fileno(), fd)
            run_worker(connection, folder)
            code = 0
        finally:
            os._exit(code)

    def _on_event(self, worker: _Worker, *, is_pulse: bool) -> None:
        if worker not in self._workers:  # both of its files were ready
            return
        if not is_pulse:
            worker.kill()
            self._selector.unregister(worker.lifeline)
            return
        _, status = os.waitpid(worker.pid, 0)
        shutil.rmtree(worker.folder, ignore_errors=True)
        self._workers.remove(worker)
        self._selector.unregister(worker.pulse)
        with suppress(KeyError):
            self._selector.unregister(worker.lifeline)
        worker.pulse.close()
        code = os.waitstatus_to_exitcode(status)
        code = worker.verdict if code < 0 and worker.verdict is not None else code
        with worker.lifeline, suppress(OSError):  # the reader may be gone
            worker.lifeline.send(str(code).encode())


def main() -> None:
    """Serve on the socket with the descriptor given as argument."""
    _Server(socket.socket(fileno=int(sys.argv[1]))).serve()
    os._exit(0)  # exit without finalizers
