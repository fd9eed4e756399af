"""What a command imports, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support.waiting import PATIENCE_S


@pytest.mark.parametrize(
    "command",
    [("load", "csv", "a.csv", "--layout", "binance-trades"), ("query", "sql", "select 1 as x")],
    ids=["load", "sql"],
)
def test_pandas_is_left_alone(tmp_path: Path, command: tuple[str, ...]) -> None:
    """A package of its name stands for it, and says so when it is imported."""
    package = tmp_path / "packages" / "pandas"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    (tmp_path / "a.csv").write_text("id,price,qty,quote_qty,time,is_buyer_maker\n1,2,3,6,0,true\n")
    env = {
        **os.environ,
        "K2_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(tmp_path / "packages"),
    }
    subprocess.run(
        [sys.executable, "-m", "k2cli", *command],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (tmp_path / "home").exists() or command[0] == "query"
    assert not (tmp_path / "imported").exists()
    subprocess.run([sys.executable, "-c", "import pandas"], env=env, check=True)
    assert (tmp_path / "imported").exists()
