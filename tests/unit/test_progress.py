"""The line that shows how far a file is."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from k2cli.commands.terminal.progress import _Counted, progress_text, shown_progress
from support.paths import REPOSITORY
from support.terminal import Terminal

# Writes a file; waits at every gate, a FIFO, until the test opens it.
WRITING = """
import io, sys
from k2cli.commands.terminal.progress import shown_progress
before, after = sys.argv[1:] or (None, None)
with shown_progress(io.BytesIO(), has_lines=True, total=200) as sink:
    before and open(before).close()
    sink.write(memoryview(b"row\\n" * 50))
    after and open(after).close()
"""
WRITING_AT_LENGTH = """
import io, time
from k2cli.commands.terminal import progress
progress._QUIET_S = progress._EVERY_S = 0.01
with progress.shown_progress(io.BytesIO(), has_lines=True, total=200) as sink:
    time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("written", "has_lines", "total", "text"),
    [
        (b"", True, 100, "running the query  4 s"),
        (b"x\n" * 50, True, 100, "50%  50 rows  25/s  4 s"),
        (b"x\n" * 50, True, None, "50 rows  25/s  4 s"),
        (b"x\n" * 101, True, 100, "100%  101 rows  50/s  4 s"),  # with the header
        (b"\n" * 3_000_000, False, None, "3.0 MB  1.5 MB/s  4 s"),
    ],
)
def test_line_has_what_is_known(
    written: bytes, has_lines: bool, total: int | None, text: str
) -> None:
    counted = _Counted(io.BytesIO(), has_lines=has_lines)
    counted.write(written)
    assert progress_text(counted, total, elapsed_s=4.0, writing_s=2.0) == text


def test_line_is_shown_on_a_terminal_and_wiped(tmp_path: Path) -> None:
    gates = [tmp_path / "before", tmp_path / "after"]
    for gate in gates:
        os.mkfifo(gate)
    program = [sys.executable, "-c", WRITING, *map(str, gates)]
    with Terminal(program, os.environ, columns=20) as terminal:
        terminal.wait_for(lambda text: "running the query" in text)
        gates[0].write_bytes(b"")
        terminal.wait_for(lambda text: text == "25%  50 rows  50/s")
        gates[1].write_bytes(b"")
        assert terminal.end() == 0
        assert terminal.text == ""


def test_nothing_is_shown_of_a_short_run() -> None:
    with Terminal([sys.executable, "-c", WRITING], os.environ) as terminal:
        assert terminal.end() == 0
        assert terminal.text == ""


def test_nothing_is_shown_without_a_terminal() -> None:
    sink = io.BytesIO()
    with shown_progress(sink, has_lines=True) as same:
        assert same is sink
    program = [sys.executable, "-c", WRITING_AT_LENGTH]
    done = subprocess.run(program, capture_output=True, check=True, cwd=REPOSITORY)
    assert (done.stdout, done.stderr) == (b"", b"")
