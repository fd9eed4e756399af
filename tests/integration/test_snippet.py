"""`k2 table describe --python` prints code that reads the table without k2."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pytest

from k2cli.config import load_settings
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import open_lake
from services.seaweedfs import SECRET_KEY, SeaweedFs
from support.builders import quotes_batch, trades_batch
from support.running import Run
from support.waiting import PATIENCE_S

LIBRARIES = {"pyiceberg": "pyiceberg", "DuckDB": "duckdb", "polars": "polars", "pandas": "pandas"}
SHOWN = {
    "trades": ("price: decimal128(18, 8)", "quantity: decimal128(20, 8)"),
    "quotes": ("bid_price: decimal128(18, 8)", "bid_quantity: decimal128(20, 8)"),
}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """A home, in a folder whose name has spaces, with 40 trades and 30 quotes."""
    home = tmp_path / "market data" / "home"
    with open_lake(load_settings({"K2_HOME": str(home)}), create=True) as lake:
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(40)]))
        lake.open(QUOTES).append(pa.Table.from_batches([quotes_batch(30)]))
    return home


def parts(code: str) -> tuple[str, dict[str, str]]:
    """Split code into what comes first, and the part of each library."""
    first, *rest = re.split(r"^# (?=(?:pyiceberg|DuckDB|polars|pandas):)", code, flags=re.MULTILINE)
    return first, {part.partition(":")[0]: f"# {part}" for part in rest}


def executed(code: str, folder: Path, env: dict[str, str]) -> str:
    """Run code in a Python that knows nothing of k2's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("K2_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**clean, **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("kind", ["trades", "quotes"])
def test_the_code_of_each_library_reads_the_table(
    run: Run, filled: Path, tmp_path: Path, kind: str, library: str
) -> None:
    first, of_library = parts(
        run(["table", "describe", kind, "--python", "--home", str(filled)]).stdout
    )
    assert of_library.keys() == LIBRARIES.keys()
    assert "k2cli" not in first
    if importlib.util.find_spec(LIBRARIES[library]) is None:
        pytest.skip(f"{library} is not installed")
    shown = executed(first + of_library[library], tmp_path, {})
    assert "BTCUSDT" in shown
    if library == "pyiceberg":
        assert all(text in shown for text in SHOWN[kind])
    elif library == "DuckDB":
        assert shown.count("20" if kind == "trades" else "15") == 2


def test_code_and_json_exclude_each_other(run: Run, filled: Path) -> None:
    words = ["table", "describe", "trades", "--python", "-f", "json", "--home", str(filled)]
    assert run(words).exit_code == 2


def test_code_of_a_table_that_does_not_exist_is_not_printed(run: Run) -> None:
    result = run(["table", "describe", "trades", "--python"])
    assert (result.exit_code, result.stdout) == (4, "")


@pytest.mark.parametrize("catalog", ["rest", "sql"])
def test_secrets_are_not_printed_but_taken_from_the_environment(
    run: Run, seaweedfs: SeaweedFs, tmp_path: Path, catalog: Literal["rest", "sql"]
) -> None:
    properties = seaweedfs.catalog_properties(catalog, folder=tmp_path)
    env = {
        f"K2_CATALOG_{key.replace('.', '__').replace('-', '_').upper()}": value
        for key, value in properties.items()
    }
    with open_lake(load_settings(env), create=True) as lake:
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(40)]))
    code = run(["table", "describe", "trades", "--python"], env=env).stdout
    assert SECRET_KEY not in code
    assert json.dumps(properties["uri"]) in code
    first, of_library = parts(code)
    assert "BTCUSDT" in executed(first + of_library["pyiceberg"], tmp_path, env)
