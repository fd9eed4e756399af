"""The suite is the same in every process: xdist compares what its workers collect."""

import os
import re
import subprocess
import sys
import time

from support.paths import REPOSITORY
from support.waiting import PATIENCE_S

# Escaped bytes and control characters, and the addresses of objects.
UNSTABLE = re.compile(r"\\|\b0x[0-9a-f]{6,}")
WORLDS = (
    {"PYTHONHASHSEED": "1", "TZ": "UTC"},
    {"PYTHONHASHSEED": "2", "TZ": "Pacific/Auckland"},
)


def begin_collection(world: dict[str, str]) -> "subprocess.Popen[str]":
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider"],
        cwd=REPOSITORY,
        env={**env, **world},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_every_process_collects_the_same_readable_ids() -> None:
    running = []
    for world in WORLDS:
        running.append(begin_collection(world))
        time.sleep(1.1)  # archives and clocks count in seconds
    outputs = [process.communicate(timeout=PATIENCE_S)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    first, second = ([line for line in out.splitlines() if "::" in line] for out in outputs)
    assert len(first) > 1_000
    assert first == second
    assert [name for name in first if UNSTABLE.search(name)] == []
