"""Members of a consumer group: runs of `k2 consume`, and the producer that keeps them busy."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from k2cli.ingestion.kafka.producer import open_writer
from k2cli.records import TRADES
from support.cluster import numbered_trades
from support.running import K2_COMMAND, start_k2

STOPPING: Final = Path(__file__).with_name("stopping.py")
TIMEOUT_S: Final = 120.0
_TOO_EARLY: Final = (4, 5)  # exit codes: no such topic, no such server
_TERMINATED: Final = 128 + signal.SIGTERM  # exit code of SIGTERM before the run began
_POLL_S: Final = 0.05
_BURST: Final = 100  # records
_PAUSE_S: Final = 0.05


class Wrong(Exception):
    """A round did not go as it must; the message says how."""


class Run:
    """A k2 in a process of its own; its events go to a file."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str],
        log: Path,
        program: Sequence[str] = K2_COMMAND,
    ) -> None:
        """Start it."""
        self.log = log
        with log.open("wb") as out:
            self.process = start_k2(
                *args,
                env=env,
                program=program,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def is_running(self) -> bool:
        """Whether the process lives, stopped or not."""
        return self.process.poll() is None

    def count(self, event: str) -> int:
        """Count the events of a name."""
        return self.log.read_text(encoding="utf-8").count(f'"event": "{event}"')

    def events(self) -> list[dict[str, Any]]:
        """Return all events; the last line may be half of one."""
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]

    def pause(self) -> None:
        """Stop the process where it is."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let a stopped process go on."""
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it as a crash would."""
        self.process.kill()
        self.process.wait(TIMEOUT_S)

    def terminate(self) -> None:
        """Ask it to end, which it must do well."""
        self.process.terminate()
        try:
            code = self.process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as exc:
            raise Wrong(f"it does not end: {self.log}\n{self.tail()}") from exc
        # Python itself may not have come so far yet as to take the signal.
        is_early = code in (-signal.SIGTERM, _TERMINATED) and not self.events()
        if code != 0 and not is_early:
            raise Wrong(f"exit code {code}: {self.log}\n{self.tail()}")

    def tail(self) -> str:
        """Return the last of what it said."""
        return self.log.read_text(encoding="utf-8")[-2_000:]


class Member(Run):
    """A member of a consumer group: a `k2 consume`."""

    def __init__(
        self,
        *args: str,
        env: Mapping[str, str],
        log: Path,
        stop_at: str | None = None,
        times: int = 1,
    ) -> None:
        """Start it; with `stop_at`, so that it stops at that point of its commit number `times`."""
        stopping = (sys.executable, str(STOPPING), str(stop_at), str(times))
        super().__init__(
            *("consume", "--log-format", "json", *args),
            env=env,
            log=log,
            program=K2_COMMAND if stop_at is None else stopping,
        )

    @property
    def came_to_run(self) -> bool:
        """Whether a process that ended had found its topic and servers when it started."""
        names = {event["event"] for event in self.events()}
        return self.process.returncode not in _TOO_EARLY or bool(names - {"error", "summary"})

    def wait_until_stopped(self) -> None:
        """Return when the process has stopped itself."""

        def is_stopped() -> bool:
            if not self.is_running:
                raise Wrong(f"it ended instead of stopping:\n{self.tail()}")
            options = os.WSTOPPED | os.WNOHANG
            return os.waitid(os.P_PID, self.process.pid, options) is not None

        wait_for(is_stopped, f"it never stopped: {self.log}")


class Production:
    """Produces numbered trades from a thread of its own, until it is told to end.

    `header` is what messages begin with; another one counts from the next burst on.
    """

    def __init__(
        self, kafka: Mapping[str, str], topic: str, header: bytes, *, begin: int = 0
    ) -> None:
        self.header = header
        self.count = begin
        self._kafka = kafka
        self._topic = topic
        self._end = threading.Event()
        self._worker = ThreadPoolExecutor(max_workers=1)
        self._run: Future[None] = self._worker.submit(self._produce)

    def end(self) -> int:
        """Return how many records there are now; the brokers hold all of them."""
        self._end.set()
        self._run.result(2 * TIMEOUT_S)
        self._worker.shutdown()
        return self.count

    def _produce(self) -> None:
        with open_writer(self._kafka, observe=_ignore, patience_s=TIMEOUT_S) as writer:
            while not self._end.wait(_PAUSE_S):
                rows = numbered_trades(_BURST, begin=self.count)
                writer.write(self._topic, TRADES, rows, header=self.header)
                self.count += _BURST
            writer.flush()


def wait_for(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    """Wait until a condition is met; `what` says what is wrong if it never is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Wrong(what)
        time.sleep(_POLL_S)


def _ignore(event: str, /, **fields: object) -> None:
    """Take no notice: that the brokers are away is no news here."""
