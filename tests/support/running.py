"""The two ways in which tests run k2: within their own process, and in one of its own.

`k2_at` runs it within the process: fast, for all that does not depend on a process. `run_k2` runs a
process to its end, and `start_k2` one that a test talks to while it runs.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from typer.testing import CliRunner

from k2cli.commands.app import app as k2_app
from support.forked import can_fork, run_forked
from support.waiting import PATIENCE_S, wait_for

# What starts k2, for a shell or a terminal.
K2_COMMAND: Final = (sys.executable, "-m", "k2cli")


@dataclass(frozen=True)
class Result:
    """What a run of k2 gave back."""

    exit_code: int
    stdout_bytes: bytes
    stderr_bytes: bytes

    @property
    def stdout(self) -> str:
        """The data, as text with newlines of one kind."""
        return _text(self.stdout_bytes)

    @property
    def stderr(self) -> str:
        """The messages, as text with newlines of one kind."""
        return _text(self.stderr_bytes)

    @property
    def output(self) -> str:
        """All that was printed: the data, then the messages."""
        return self.stdout + self.stderr


Process = subprocess.Popen[Any]
K2 = Callable[..., Result]  # that `k2_at` returns
Run = Callable[..., Result]  # the fixture `run`


def environment(home: Path, variables: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return what k2 runs in: this machine's variables without any K2_*, the home, and these."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
    return {**env, "K2_HOME": str(home), "COLUMNS": "100", **(variables or {})}


def k2_at(
    home: Path, variables: Mapping[str, str] | None = None, *, app: typer.Typer = k2_app
) -> K2:
    """Return what runs k2 within this process, with this home and these variables.

    What it returns takes the arguments, and checks the exit code: `k2("query", "trades", code=4)`.
    """

    def run(*args: object, code: int = 0, stdin: str | bytes = b"", **more: str) -> Result:
        unset = {name: None for name in os.environ if name.startswith("K2_")}
        env = {**unset, **environment(home, variables), **more}
        done = CliRunner().invoke(app, [*map(str, args)], env=env, input=stdin)
        assert done.exit_code == code, (args, done.output or done.exception)
        return Result(done.exit_code, done.stdout_bytes, done.stderr_bytes)

    return run


def run_k2(
    args: Sequence[object],
    *,
    env: Mapping[str, str],
    stdin: str = "",
    timeout_s: float = PATIENCE_S,
) -> Result:
    """Run k2 as a user does, in a process, to its end.

    Raises:
        subprocess.TimeoutExpired: it took too long, and was killed.
    """
    words = [*map(str, args)]
    if can_fork(env):
        return Result(*run_forked(words, env=env, stdin=stdin, timeout_s=timeout_s))
    done = subprocess.run(
        [*K2_COMMAND, *words],
        env=dict(env),
        input=stdin.encode(),
        capture_output=True,
        timeout=timeout_s,
        check=False,
    )
    return Result(done.returncode, done.stdout, done.stderr)


def start_k2(
    *args: object,
    env: Mapping[str, str],
    program: Sequence[str] = K2_COMMAND,
    **options: Any,
) -> Process:
    """Start k2 as a user does; its streams are text, in pipes, but for what `options` say."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*program, *map(str, args)], env=dict(env), **{**pipes, **options})


def kill_while_writing(*args: object, env: Mapping[str, str], folder: Path, files: int) -> None:
    """Start k2, and kill it when it has written this many files, or has ended."""

    def count() -> int:
        return sum(path.is_file() for path in folder.rglob("*"))

    before = count()
    with start_k2(*args, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: process.poll() is not None or count() >= before + files)
        process.kill()


def _text(data: bytes) -> str:
    return data.decode().replace("\r\n", "\n").replace("\r", "\n")
