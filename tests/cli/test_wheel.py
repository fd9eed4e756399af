"""The wheel is all that a user gets: it works away from the checkout."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

from support.paths import REPOSITORY


def test_wheel_carries_the_schemas_and_runs_away_from_the_clone(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=REPOSITORY, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("k2cli-*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    done = subprocess.run(
        [sys.executable, "-c", "import k2cli.records as r; print(r.__file__, r.TRADES.table)"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == [str(site / "k2cli" / "records.py"), "trades_v2"]
    assert (site / "k2cli" / "schemas" / "trade_v2.avsc").is_file()
