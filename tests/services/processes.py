"""Server processes: started, watched until they are ready, and stopped."""

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

LAUNCHER = Path(__file__).with_name("launcher.py")
STOP_TIMEOUT_S = 60.0
LOG_TAIL_CHARS = 3_000

# Below the ephemeral range: a client that dials a stopped server at an ephemeral port can be given
# that port as its own, and the server could not come back.
PORTS = range(15_000, 32_000)

_handed_out: set[int] = set()


class ServerFailed(Exception):
    """A server ended, or was not ready in time; the message has the end of its log."""


class ServerProcess:
    """One process that serves, in a session of its own, so that Ctrl-C reaches only the tests.

    It ends with the tests even if they are killed, as long as `start` is called from the main
    thread. It sees none of this process's environment but PATH, and has `folder` as its working
    directory and home.
    """

    def __init__(self, *, name: str, folder: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = folder / f"{name}.log"
        self._name = name
        self._folder = folder
        self._env = {"PATH": os.defpath, "HOME": str(folder), "LANG": "C.UTF-8", **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int:
        """The process id, of the last process if it has ended."""
        if self._process is None:
            raise RuntimeError(f"{self._name} was never started")
        return self._process.pid

    def is_running(self) -> bool:
        """Tell whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(
        self, command: Sequence[str], *, is_ready: Callable[[], bool], timeout_s: float
    ) -> None:
        """Start the program and return when `is_ready` says so.

        Raises:
            ServerFailed: it ended or was not ready in time; it is not running then.
        """
        if self.is_running():
            raise RuntimeError(f"{self._name} is running already")
        launcher = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid())]
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                [*launcher, *command],
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait(is_ready, timeout_s)
        except BaseException:
            self.kill()
            raise

    def log_text(self) -> str:
        """Read what the process has logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    def stop(self) -> None:
        """Ask the process to end (SIGTERM) and wait for it; kill it if it does not."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End the process as a crash would (SIGKILL)."""
        self._end(signal.SIGKILL)

    def _wait(self, is_ready: Callable[[], bool], timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while not is_ready():
            if not self.is_running():
                raise ServerFailed(f"{self._name} ended at its start:\n{self._log_tail()}")
            if time.monotonic() > deadline:
                message = f"{self._name} was not ready in {timeout_s:.0f} s"
                raise ServerFailed(f"{message}:\n{self._log_tail()}")
            time.sleep(0.05)

    def _log_tail(self) -> str:
        return f"{self.log_text()[-LOG_TAIL_CHARS:]}\n(the whole log: {self.log})"

    def _end(self, how: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(how)
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)


def free_port(*, twin_offset: int = 0) -> int:
    """Choose a port of 127.0.0.1 that nobody listens on, and that was not chosen before.

    With `twin_offset`, the port that many above it is free too, and both are within PORTS.
    """
    last = PORTS.stop - twin_offset
    for port in random.SystemRandom().sample(range(PORTS.start, last), k=100):
        ports = {port, port + twin_offset}
        if ports.isdisjoint(_handed_out) and all(map(_is_free, ports)):
            _handed_out.update(ports)
            return port
    raise ServerFailed(f"no free port in {PORTS}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
