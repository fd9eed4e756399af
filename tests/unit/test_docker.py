"""docker/: the image and the stack, as far as they can be checked without an engine."""

import itertools
import re
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import typer
from dockerfile_parse import DockerfileParser
from packaging.requirements import Requirement

from k2cli.commands.app import app
from k2cli.commands.config_files import DOCKER_VARIABLES
from k2cli.config import load_settings
from k2cli.redaction import is_secret
from support.compose import (
    COMPOSE,
    DOCKER,
    command_of,
    own_services,
    required_variables,
    services,
    variables,
)
from support.paths import REPOSITORY
from support.waiting import PATIENCE_S

SERVICES = services()
OWN = own_services()

# --- the stack


def test_compose_file_is_as_the_specification_wants_it() -> None:
    check = ("-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(COMPOSE))
    done = subprocess.run(
        [sys.executable, *check], capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout


def test_variables_are_those_that_k2_writes() -> None:
    assert required_variables() == DOCKER_VARIABLES.keys()


def test_ports_are_open_to_this_machine_only_and_do_not_clash() -> None:
    ports = [each.split(":") for one in SERVICES.values() for each in one.get("ports", ())]
    assert {address for address, *_ in ports} == {"127.0.0.1"}
    assert len({port for _, port, _ in ports}) == len(ports)


def test_services_wait_for_what_can_come_true() -> None:
    """Another service is well only with a health check, and is absent without its profile."""
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            awaited = SERVICES[other]
            if how["condition"] == "service_healthy":
                assert "test" in awaited["healthcheck"], (name, other)
            is_there = awaited.get("profiles") in (None, service.get("profiles"))
            assert is_there or how["required"] is False, (name, other)


def test_volumes_are_named_or_are_there() -> None:
    mounts = [each for one in SERVICES.values() for each in one.get("volumes", ())]
    for source in (mount.split(":")[0] for mount in mounts):
        if source.startswith("."):
            assert (DOCKER / source).is_dir(), source
        else:
            assert f"\n  {source}:\n" in COMPOSE.read_text(encoding="utf-8"), source


def test_secrets_come_from_variables_only() -> None:
    given = variables()
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if is_secret(key):
                assert value in given.values(), (name, key)


# --- k2 in it


def test_consumers_can_be_many() -> None:
    service = OWN["k2-consume"]
    assert not {"container_name", "ports", "volumes", "hostname"} & service.keys()


@pytest.mark.parametrize("name", OWN)
def test_k2_takes_its_settings(name: str) -> None:
    settings = load_settings({**OWN[name]["environment"], "K2_HOME": "/nowhere"})
    assert settings.kafka == {"bootstrap.servers": "kafka:19092"}
    assert settings.schema_registry == {"url": "http://registry:8080/apis/ccompat/v7"}
    access = variables()["S3_ACCESS_KEY"]
    assert settings.catalog["type"] == "rest"
    assert settings.catalog["s3.access-key-id"] == access
    assert settings.catalog["client.access-key-id"] == access


def test_k2_takes_its_settings_from_the_store_that_is_tested(seaweedfs: Any) -> None:
    """The tests' own settings are known to work."""
    wanted = seaweedfs.catalog_properties()
    settings = load_settings({**OWN["k2-init"]["environment"], "K2_HOME": "/nowhere"})
    own = dict(settings.catalog)
    ours = ("uri", "warehouse", "s3.endpoint")
    keys = [key for key in wanted if "key" in key]
    for key in (*ours, *keys):
        assert own.pop(key)
        del wanted[key]
    assert own == wanted


@pytest.mark.parametrize("name", [name for name in OWN if "command" in OWN[name]])
def test_k2_understands_its_command(name: str) -> None:
    assert parsed(command_of(OWN[name]))


def test_k2_understands_the_options_of_the_demo() -> None:
    head = COMPOSE.read_text(encoding="utf-8").split("\nname:")[0]
    (options,) = re.findall(r'STREAM_OPTIONS="(.*)"', head)
    command = command_of(services(STREAM_OPTIONS=options)["k2-stream"])
    assert parsed(command)["url"] == ["ws://simulator:9443"]
    assert parsed(command_of(OWN["simulator"]))["port"] == 9443


def test_a_wrong_command_would_be_found() -> None:
    with pytest.raises(Exception, match=r"No such option: --partition$"):
        parsed(["init", "--partition", "4"])
    with pytest.raises(Exception, match="is not a duration"):
        parsed(["init", "--retention", "7"])


def parsed(args: list[str]) -> dict[str, Any]:
    """Read a command line as k2 does, but run nothing; return the values of its options."""
    command: Any = typer.main.get_command(app)
    context = None
    while hasattr(command, "resolve_command"):
        context = command.make_context(command.name, args, parent=context)
        rest = [*context._protected_args, *context.args]
        _, command, args = command.resolve_command(context, rest)
    values: dict[str, Any] = command.make_context(command.name, args, parent=context).params
    return values


# --- the image


@pytest.fixture(scope="module")
def steps() -> list[dict[str, str]]:
    """What the Dockerfile does, step by step."""
    with (DOCKER / "Dockerfile").open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    return [step for step in structure if step["instruction"] != "COMMENT"]


def values(steps: list[dict[str, str]], instruction: str) -> list[str]:
    return [step["value"] for step in steps if step["instruction"] == instruction]


def test_services_give_k2_its_arguments_and_a_home(steps: list[dict[str, str]]) -> None:
    assert values(steps, "ENTRYPOINT") == ['["k2"]']
    (user,) = values(steps, "USER")
    owner = user.split(":")[0]
    assert all(f"uid={owner}," in each for each in OWN["k2-init"]["tmpfs"] if "/var/lib" in each)


def test_image_has_all_that_a_wheel_needs(steps: list[dict[str, str]]) -> None:
    """What is copied is there, and the list of what Docker may see admits it."""
    admitted = (DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in admitted
    copied = [value.split()[:-1] for value in values(steps, "COPY") if "--from" not in value]
    sources = set(itertools.chain.from_iterable(copied))
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    build = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert {*build["packages"], *build["force-include"], project["project"]["readme"]} <= sources
    for source in sources:
        assert (REPOSITORY / source).exists(), source
        assert f"!{source}" in admitted, source


def test_image_has_the_packages_that_k2_wants() -> None:
    """Each once, in one version that fits pyproject.toml."""
    text = (DOCKER / "requirements.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    held = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.+]+)", line).groups()  # type: ignore[union-attr]
        held[_plain(name)] = version
    document = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    project = document["project"]
    tables_in_s3 = project["optional-dependencies"]["s3"]
    for wanted in map(Requirement, [*project["dependencies"], *tables_in_s3]):
        assert wanted.specifier.contains(held[_plain(wanted.name)]), wanted


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
