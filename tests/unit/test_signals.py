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

RUN = '''
import os, signal, sys
import typer
from k2cli.commands.terminal.signals import forget_interrupts, interrupted_by_signals

WAIT = "import os, signal; os.kill(os.getpid(), signal.{0}); [0 for _ in iter(int, 1)]"

class Named:
    def __set_name__(self, owner, name):
        exec(WAIT)

def call_c():
    """Like a C library that does not pass on an error: see _Py_CheckFunctionResult."""
    try:
        exec(WAIT)
    except KeyboardInterrupt as exc:
        raise SystemError("returned a result with an exception set") from exc

try:
    with interrupted_by_signals():
        {1}
except typer.Exit as exc:
    code = exc.exit_code
forget_interrupts()
sys.exit(code)
'''


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize(
    "during",
    ["exec(WAIT)", "type('Made', (), {'named': Named()})", "call_c()"],
    ids=["exec", "class", "c"],
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


TOGETHER = """
import os, signal, sys
from k2cli.commands.terminal.signals import Interrupts, interrupted_by_signals, stopped_by_signals
import typer

ends = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM}

def receive_all():
    # Python calls the handlers of what is delivered during one C call in one pass.
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    for each in ends:
        os.kill(os.getpid(), each)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)

stops = []
if sys.argv[1] == "stopped":
    with stopped_by_signals(lambda: stops.append(1)):
        receive_all()
        print(stops)
        if sys.argv[2:]:
            os.kill(os.getpid(), signal.SIGTERM)
            print("still alive")
elif sys.argv[1] == "raised":
    try:
        with Interrupts().raised():
            receive_all()
    except KeyboardInterrupt as exc:
        print(type(exc).__name__)
else:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupted_by_signals():
            receive_all()
    except typer.Exit as exc:
        print(exc.exit_code)
"""


@pytest.mark.parametrize(
    ("words", "code", "printed"),
    [
        (["stopped"], 0, "[1]"),
        (["stopped", "again"], -signal.SIGTERM, "[1]"),
        (["raised"], 0, "Terminated"),
        (["interrupted"], 0, "129"),
    ],
)
def test_signals_that_arrive_together_count_as_one(
    words: list[str], code: int, printed: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-u", "-c", TOGETHER, *words], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (code, printed, "")


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
