"""The command reference, written from `k2 --help`: the README carries it, a test checks it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import typer
from typer.core import TyperGroup

from k2cli.commands.app import app

WIDTH = 88


def commands() -> Iterator[tuple[str, ...]]:
    """Name every command that does something, such as ("query", "trades"), in help's order."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    yield from _below(root, ())


def _below(group: TyperGroup, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _below(command, (*path, name))
        elif not command.hidden:
            yield (*path, name)


def help_text(*path: str) -> str:
    """Return what `k2 PATH --help` prints, without colours, in lines of at most WIDTH."""
    plain = {"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1", "TERM": "dumb"}
    env = {name: value for name, value in os.environ.items() if name != "FORCE_COLOR"} | plain
    for name in ("GITHUB_ACTIONS", "PY_COLORS"):
        env.pop(name, None)
    done = subprocess.run(
        [sys.executable, "-m", "k2cli", *path, "--help"],
        env={**env, "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        check=True,
    )
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def as_markdown() -> str:
    """Write the reference of all commands, a folded section each."""
    sections = [
        f"<details><summary><code>k2 {' '.join(path)}</code></summary>\n\n"
        f"```text\n{help_text(*path)}\n```\n\n</details>\n"
        for path in commands()
    ]
    return "\n".join(sections)
