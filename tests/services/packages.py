"""The servers' software: fetched by Maven once, kept in the user's cache.

`python -m services.packages` fetches it ahead of the tests. Every version of pom.xml has a folder
of its own; the folders of old ones can be deleted at any time.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from services import ServiceMissing

POM = Path(__file__).with_name("pom.xml")
FETCH_TIMEOUT_S = 900


@dataclass(frozen=True)
class Packages:
    """The folders of what pom.xml names."""

    kafka: Path
    registry: Path


def fetch() -> Packages:
    """Return the servers' software, fetched now if this machine does not have it.

    Raises:
        ServiceMissing: Maven is missing or failed.
    """
    folder = made_once(f"packages-{digest(POM.read_text())}", _fetch_into)
    return Packages(kafka=folder / "kafka", registry=folder / "registry")


def made_once(name: str, make: Callable[[Path], None]) -> Path:
    """Return the cache's folder `name`; `make` fills it if it is not there.

    It appears whole or not at all, and is made once, however many processes ask at the same time.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "k2-tests"
    cache.mkdir(parents=True, exist_ok=True)
    folder, unfinished = cache / name, cache / f"{name}.unfinished"
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel frees it if this process dies
        if not folder.exists():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


def digest(*texts: str) -> str:
    """Make a short name that is another one when any of the texts is."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def _fetch_into(folder: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServiceMissing("no mvn on PATH to fetch the test servers with")
    with tempfile.TemporaryDirectory() as work:  # Maven writes beside the pom
        pom = shutil.copy(POM, work)
        command = [maven, "-q", "-B", "-ntp", "-f", pom, "package", f"-Dservices.dir={folder}"]
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=FETCH_TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        raise ServiceMissing(f"Maven could not fetch the test servers:\n{done.stdout[-3_000:]}")


if __name__ == "__main__":
    try:
        sys.stdout.write(f"{fetch()}\n")
    except ServiceMissing as missing:
        sys.exit(str(missing))
