"""k2 within the process of the tests: fast, where nothing hangs on a process of its own."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from typer.testing import CliRunner, Result

from k2cli.commands.app import app
from support.forked import Result as Process

K2 = Callable[..., Result]
Run = Callable[..., Process]


def k2_at(home: Path, variables: Mapping[str, str] | None = None) -> K2:
    """Return what runs k2 with this home and these variables, and checks its exit code."""

    def run(*args: object, code: int = 0, stdin: bytes = b"", **more: str) -> Result:
        unset = {name: None for name in os.environ if name.startswith("K2_")}
        env = {**unset, "K2_HOME": str(home), "COLUMNS": "100", **(variables or {}), **more}
        result = CliRunner().invoke(app, [*map(str, args)], env=env, input=stdin)
        assert result.exit_code == code, result.output or result.exception
        return result

    return run
