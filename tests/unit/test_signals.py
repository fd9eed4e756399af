"""Signals that arrive at an awkward moment, or in another thread."""

import signal
import subprocess
import sys
import threading
from concurrent.futures import Future
from pathlib import Path
from types import FrameType

import pytest

from k2cli.background import wait_for_end

RUN = """
import os, signal, sys
import typer
from k2cli.commands.terminal.signals import forget_interrupts, interrupted_by_signals

WAIT = "import os, signal; os.kill(os.getpid(), signal.{0}); [0 for _ in iter(int, 1)]"

class Named:
    def __set_name__(self, owner, name):
        exec(WAIT)

try:
    with interrupted_by_signals():
        {1}
except typer.Exit as exc:
    code = exc.exit_code
forget_interrupts()
sys.exit(code)
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize(
    "during", ["exec(WAIT)", "type('Made', (), {'named': Named()})"], ids=["exec", "class"]
)
def test_a_signal_while_code_is_made_ends_with_the_exit_code_of_a_shell(
    tmp_path: Path, name: str, code: int, during: str
) -> None:
    module = RUN.replace("{0}", name).replace("{1}", during)
    (tmp_path / "made.py").write_text(module, encoding="utf-8")
    done = subprocess.run(  # as a module: so k2 may be started, too
        [sys.executable, "-m", "made"], cwd=tmp_path, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (code, "")


@pytest.mark.timeout(60)
def test_a_wait_for_a_thread_is_interrupted_by_a_signal_that_another_thread_received() -> None:
    class Received(Exception):
        pass

    def handle(_number: int, _frame: FrameType | None) -> None:
        raise Received

    def receive() -> None:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        receiver = threading.Timer(0.1, receive)
        receiver.start()
        with pytest.raises(Received):
            wait_for_end(Future[None]())
        receiver.join()
    finally:
        signal.signal(signal.SIGUSR1, before)
