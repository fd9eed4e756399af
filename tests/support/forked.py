"""k2 in processes that are forked from one that has imported all of it.

Most runs of k2 in these tests take less time than Python and the libraries need to start, and there
are hundreds of them. Each is a process of its own all the same, with its own arguments,
environment, folder and streams. Where an interpreter has to start anew to notice a variable,
and where processes cannot be forked this way, `support.running` starts k2 as users do.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import selectors
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any, cast

from support.paths import TESTS

_AT_START = (
    *("PYTHON", "LC_", "LANG", "LD_", "ARROW_", "MALLOC_", "OMP_", "OPENBLAS_", "RUST_"),
    *("SSL_", "AWS_", "CURL_", "REQUESTS_"),
)
_REQUEST_BYTES = 1 << 20
_CAN_FORK = hasattr(os, "pidfd_open")
_ANSWER_BYTES = 16


def can_fork(env: Mapping[str, str]) -> bool:
    """Tell whether a forked process is what a new one with these variables would be."""
    return _CAN_FORK and _variables_at_start(env) == _variables_at_start(os.environ)


def run_forked(
    args: Sequence[str], *, env: Mapping[str, str], stdin: str, timeout_s: float
) -> tuple[int, bytes, bytes]:
    """Run k2 to its end, in this process's folder; return its exit code, stdout and stderr.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was killed.
    """
    request = json.dumps({"args": [*args], "env": dict(env), "folder": str(Path.cwd())})
    with ExitStack() as stack:
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        text_in = stack.enter_context(os.fdopen(pipes[0][1], "w", encoding="utf-8"))
        outputs = [stack.enter_context(os.fdopen(pipe[0], "rb")) for pipe in pipes[1:]]
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            connection.connect(_server())
            socket.send_fds(connection, [request.encode()], theirs)
        finally:
            for fd in theirs:
                os.close(fd)
        read = [b"", b""]
        readers = [
            threading.Thread(target=_read, args=(file, read, at)) for at, file in enumerate(outputs)
        ]
        for reader in readers:
            reader.start()
        _write(text_in, stdin)
        connection.settimeout(timeout_s)
        try:
            answer = connection.recv(_ANSWER_BYTES)
        except TimeoutError:
            raise subprocess.TimeoutExpired(["k2", *args], timeout_s) from None
        assert answer, "the server of forked processes ended"
        for reader in readers:
            reader.join()
    return int(answer), read[0], read[1]


@cache
def _server() -> str:
    """Start the server of this process, which ends with it; return the path of its socket."""
    folder = tempfile.mkdtemp(prefix="k2-fork-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = str(Path(folder, "socket"))
    command = [sys.executable, "-m", "support.forked", path]
    process = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    atexit.register(process.wait)
    atexit.register(cast("IO[bytes]", process.stdin).close)
    assert cast("IO[bytes]", process.stdout).readline() == b"ready\n"
    return path


def _variables_at_start(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name.startswith(_AT_START)}


def _read(file: Any, read: list[bytes], at: int) -> None:
    read[at] = file.read()


def _write(file: Any, text: str) -> None:
    with suppress(BrokenPipeError):  # it does not read
        file.write(text)
        file.close()


def _serve(path: str) -> Any:
    """Fork a process for every connection; returns its request, in the forked process."""
    _import_everything()
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    listener.listen(100)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ, None)
    selector.register(0, selectors.EVENT_READ, None)
    while True:
        for key, _ in selector.select():
            run = key.data
            if key.fileobj == 0:  # the tests ended
                raise SystemExit
            if run is None:
                connection = listener.accept()[0]
                message, fds, _, _ = socket.recv_fds(connection, _REQUEST_BYTES, 3)
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    for file in _files(selector):
                        os.close(file if isinstance(file, int) else file.detach())
                    selector.close()
                    return SimpleNamespace(**json.loads(message), fds=fds)
                for fd in fds:
                    os.close(fd)
                run = SimpleNamespace(pid=pid, pidfd=os.pidfd_open(pid), connection=connection)
                for file in (run.pidfd, connection):
                    selector.register(file, selectors.EVENT_READ, run)
            elif key.fileobj is run.connection:  # the other side gave up
                selector.unregister(run.connection)
                os.kill(run.pid, 9)
            else:
                _end(selector, run)


def _end(selector: selectors.BaseSelector, run: Any) -> None:
    """Send back how a process ended, as `subprocess` gives it."""
    code = os.waitstatus_to_exitcode(os.waitpid(run.pid, 0)[1])
    selector.unregister(run.pidfd)
    os.close(run.pidfd)
    if run.connection in _files(selector):
        selector.unregister(run.connection)
        run.connection.send(str(code).encode())
    run.connection.close()


def _files(selector: selectors.BaseSelector) -> list[Any]:
    return [key.fileobj for key in selector.get_map().values()]


def _import_everything() -> None:
    package = importlib.import_module("k2cli")
    for module in pkgutil.walk_packages(package.__path__, "k2cli."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _become(request: Any) -> None:
    """Make this process what a new interpreter would be."""
    for at, fd in enumerate(request.fds):
        os.dup2(fd, at)
        os.close(fd)
    os.environ.clear()
    os.environ.update(request.env)
    os.chdir(request.folder)
    time.tzset()
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.argv = ["k2", *request.args]


def _run() -> int:
    """Run k2 as `python -m k2cli` does; return the exit code."""
    code: Any = 0
    try:
        runpy.run_module("k2cli", run_name="__main__", alter_sys=True)
    except SystemExit as exc:
        code = exc.code
        if not isinstance(code, int | None):
            sys.stderr.write(f"{code}\n")
            code = 1
    except BaseException:  # noqa: BLE001
        traceback.print_exc()
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as an interpreter
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    return code or 0


if __name__ == "__main__":
    _become(_serve(sys.argv[1]))
    # Libraries that have threads cannot clean up after them here: they were not forked.
    os._exit(_run())
