"""docker/compose.yml as Docker Compose reads it."""

import re
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from ruamel.yaml import YAML

from k2cli.commands.config_files import docker_file
from support.paths import REPOSITORY

DOCKER: Final = REPOSITORY / "docker"
COMPOSE: Final = DOCKER / "compose.yml"
OWN_IMAGE: Final = "k2cli:local"
_VARIABLE: Final = re.compile(r"\$(?:\$|\{(?P<name>\w+):(?P<sign>[?-])(?P<rest>[^}]*)\})")


def yaml_of(path: str) -> Any:
    """Read a YAML file of the folder docker/."""
    return YAML(typ="safe").load((DOCKER / path).read_text(encoding="utf-8"))


@cache
def variables() -> dict[str, str]:
    """Return what `k2 config init --docker` writes."""
    lines = [line for line in docker_file().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


def services(**more: str) -> dict[str, dict[str, Any]]:
    """Return the services with their variables filled in: those of the .env, and `more`."""
    found: dict[str, dict[str, Any]] = _filled(yaml_of("compose.yml"), {**variables(), **more})
    return found["services"]


def own_services() -> dict[str, dict[str, Any]]:
    """Return the services that run k2."""
    return {name: each for name, each in services().items() if each["image"] == OWN_IMAGE}


def command_of(service: Mapping[str, Any]) -> list[str]:
    """Return the arguments that a service's program gets."""
    command = service["command"]
    return shlex.split(command) if isinstance(command, str) else list(command)


def required_variables() -> set[str]:
    """Return the names of the variables without which Compose refuses the file."""
    found = _VARIABLE.finditer(COMPOSE.read_text(encoding="utf-8"))
    return {match["name"] for match in found if match["sign"] == "?"}


def _filled(value: Any, values: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(each, values) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, values) for each in value]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> str:
        if match["name"] is None:
            return "$"
        return values[match["name"]] if match["sign"] == "?" else values.get(match["name"], "")

    return _VARIABLE.sub(fill, value)
