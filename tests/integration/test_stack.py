"""docker/compose.yml on a real engine, where there is one: simulator, Kafka, tables, an answer."""

import json
import shutil
import subprocess
import time
from typing import Any

import pytest

from support.compose import COMPOSE, variables

QUERY = "run --rm -T k2 query symbols --format json"
STARTED_S, ANSWERED_S = 900, 120


def _succeeds(*command: str) -> bool:
    if shutil.which("docker") is None:
        return False
    done = subprocess.run(["docker", *command], capture_output=True, timeout=60, check=False)
    return done.returncode == 0


# --- what pytest-docker asks for


@pytest.fixture(scope="session")
def docker_compose_file() -> str:
    return str(COMPOSE)


@pytest.fixture(scope="session")
def docker_compose_command(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compose, with what `k2 config init --docker` writes, and with the simulator."""
    values = {**variables(), "STREAM_OPTIONS": "--url ws://simulator:9443"}
    path = tmp_path_factory.mktemp("stack") / ".env"
    path.write_text("".join(f"{name}={value}\n" for name, value in values.items()))
    return f'docker compose --env-file "{path}" --profile demo --profile monitoring'


@pytest.fixture(scope="session")
def docker_setup() -> list[str]:
    return ["up --detach --build --wait"]


@pytest.fixture(scope="session")
def docker_cleanup() -> list[str]:
    return ["down --volumes --remove-orphans"]


# ---


def test_compose_accepts_the_file(docker_compose_command: str) -> None:
    if not _succeeds("compose", "version"):
        pytest.skip("no docker compose here")
    command = [*docker_compose_command.replace('"', "").split(), "-f", str(COMPOSE), "config", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.timeout(STARTED_S, func_only=True)
def test_what_the_simulator_sends_can_be_asked_for(request: pytest.FixtureRequest) -> None:
    if not (_succeeds("compose", "version") and _succeeds("info")):
        pytest.skip("no docker engine here to run the stack on")
    stack: Any = request.getfixturevalue("docker_services")
    deadline = time.monotonic() + ANSWERED_S
    found: set[tuple[str, str]] = set()
    while len(found) < 4:
        assert time.monotonic() < deadline, found
        answer = stack._docker_compose.execute(QUERY, ignore_stderr=True)
        found = {(row["symbol"], row["kind"]) for row in json.loads(answer or b"[]")}
    assert found == {(s, k) for s in ("BTCUSDT", "ETHUSDT") for k in ("trades", "quotes")}
