"""What a command imports, in a process of its own."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.running import environment, run_k2


@pytest.mark.parametrize(
    "command",
    [("load", "csv", "a.csv", "--layout", "binance-trades"), ("query", "sql", "select 1 as x")],
    ids=["load", "sql"],
)
def test_pandas_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    """A package of its name stands for it, and says so when it is imported."""
    package = tmp_path / "packages" / "pandas"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    (tmp_path / "a.csv").write_text("id,price,qty,quote_qty,time,is_buyer_maker\n1,2,3,6,0,true\n")
    env = environment(tmp_path / "home", {"PYTHONPATH": str(tmp_path / "packages")})
    monkeypatch.chdir(tmp_path)
    run_k2(command, env=env)
    assert (tmp_path / "home").exists() or command[0] == "query"
    assert not (tmp_path / "imported").exists()
    subprocess.run([sys.executable, "-c", "import pandas"], env=env, check=True)
    assert (tmp_path / "imported").exists()
