"""Memory of long runs: freed blocks go back to the system, unused libraries stay unloaded."""

import platform
import subprocess
import sys

import pytest

from support.waiting import PATIENCE_S

HOLES = """
import os
from pathlib import Path
from k2cli.memory import return_freed_memory

return_freed_memory()
import pyarrow as pa

def resident_mb():
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

def column(size_bytes):
    return pa.nulls(size_bytes // 8, pa.int64()).fill_null(7)

freed = [column(16 << 20) for _ in range(2)]
del freed  # from now on glibc, by itself, takes 16 MB from its heap
before = resident_mb()
columns = [(column(5 << 20), column(8 << 10)) for _ in range(20)]
neighbours = [small for _, small in columns]
del columns
print(pa.default_memory_pool().backend_name, resident_mb() - before)
"""
LOADED = """
import sys
import k2cli.pipelines.consume.loop, k2cli.pipelines.stream
import k2cli.pipelines.sinks, k2cli.storage.lake
print("duckdb" in sys.modules)
"""


def output_of(program: str) -> str:
    run = [sys.executable, "-c", program]
    return subprocess.run(
        run, capture_output=True, text=True, check=True, timeout=PATIENCE_S
    ).stdout


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has to be asked for it")
def test_freed_blocks_between_others_go_back_to_the_system() -> None:
    pool, kept_mb = output_of(HOLES).split()
    assert pool == "system"
    assert float(kept_mb) < 20  # of 100


def test_stream_and_consume_do_not_load_duckdb() -> None:
    assert output_of(LOADED).strip() == "False"
