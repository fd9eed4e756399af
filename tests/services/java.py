"""The Java that servers run on."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services import ServiceMissing

JVM_FOLDERS = ("/usr/lib/jvm/*", "/Library/Java/JavaVirtualMachines/*/Contents/Home")

# Tests start servers often and use them little. Nothing is written outside their folders.
QUICK_START = ("-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData")


@dataclass(frozen=True)
class Java:
    """A Java program and what it says about itself."""

    program: Path
    version: str

    @property
    def major(self) -> int:
        """The version's first number; 0 if it cannot be told."""
        found = re.search(r'version "(\d+)', self.version)
        return int(found[1]) if found else 0


@cache
def find_java(at_least: int) -> Java:
    """Find the first Java that is new enough: JAVA_HOME, then PATH, then the system's folders.

    Raises:
        ServiceMissing: there is none.
    """
    for program in _candidates():
        java = Java(program, _version(program))
        if java.major >= at_least:
            return java
    raise ServiceMissing(f"no Java {at_least} or newer in JAVA_HOME, on PATH or in {JVM_FOLDERS}")


def _candidates() -> Iterator[Path]:
    if home := os.environ.get("JAVA_HOME"):
        yield Path(home, "bin", "java")
    if on_path := shutil.which("java"):
        yield Path(on_path)
    for pattern in JVM_FOLDERS:
        yield from sorted(Path("/").glob(f"{pattern[1:]}/bin/java"))


@cache
def _version(program: Path) -> str:
    try:
        done = subprocess.run(
            [program, "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except OSError:
        return ""
    return done.stderr
