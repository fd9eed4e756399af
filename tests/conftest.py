"""What all tests share: a home of their own, a way to run k2, and the recorded data."""

import os
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from k2cli import files, redaction
from k2cli.config import Settings, load_settings
from k2cli.storage.lake import Lake, open_lake
from support.paths import RECORDINGS
from support.running import Result, Run, environment, run_k2

pytest_plugins = ["services.fixtures"]

# A slow machine is no fault of an example.
hypothesis_settings.register_profile(
    "any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("any-machine")


def pytest_configure() -> None:
    """Heed the signals that `nohup` and a shell's `&` let processes ignore: k2 inherits that."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name values with escapes by their argument, which pytest then numbers."""
    if isinstance(val, bytes):
        val = val.decode("latin-1")
    if isinstance(val, str) and b"\\" in val.encode("unicode_escape"):
        return argname
    return None


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home folder that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture(autouse=True)
def _own_process() -> Iterator[None]:
    """Undo what a run of k2 within this process leaves: its umask, and the secrets it knows."""
    umask = os.umask(0o022)
    os.umask(umask)
    access, known = files._access, redaction._known
    yield
    os.umask(umask)
    files._access, redaction._known = access, known


@pytest.fixture
def settings(home: Path) -> Settings:
    """The default settings, in a home of their own."""
    return load_settings({"K2_HOME": str(home)})


@pytest.fixture
def lake(settings: Settings) -> Iterator[Lake]:
    """An empty lakehouse with all tables."""
    with open_lake(settings, create=True) as lake:
        yield lake


@pytest.fixture
def k2_env(home: Path) -> dict[str, str]:
    """The environment that k2 runs in: this machine's, without any K2_* but the home."""
    return environment(home)


@pytest.fixture
def run(k2_env: dict[str, str]) -> Run:
    """Run k2 as a user does, in a process of its own."""

    def run_with(
        args: Sequence[object], *, env: Mapping[str, str] | None = None, stdin: str = ""
    ) -> Result:
        return run_k2(args, env={**k2_env, **(env or {})}, stdin=stdin)

    return run_with


@pytest.fixture
def black_hole() -> Iterator[str]:
    """A server that takes connections, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def recordings() -> Path:
    """The folder of recorded market data, which is kept beside the repository."""
    if not RECORDINGS.is_dir():
        pytest.skip(f"no recorded data in {RECORDINGS}")
    return RECORDINGS
