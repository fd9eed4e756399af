"""Every command is documented, and what the documents say is true."""

import tomllib

import pytest
import reference
from conftest import REPOSITORY, Run

from k2cli import __version__
from k2cli.errors import K2Error

README = REPOSITORY / "README.md"
COMMANDS = list(reference.commands())


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_has_an_example_and_stands_in_the_readme(path: tuple[str, ...]) -> None:
    text = reference.help_text(*path)
    assert f"k2 {' '.join(path)}" in text.partition("Example: ")[2]
    assert text in README.read_text(encoding="utf-8")


def test_readme_lists_every_exit_code() -> None:
    text = README.read_text(encoding="utf-8")
    for error in K2Error.__subclasses__():
        assert f"| {error.exit_code} |" in text


def test_version_is_the_same_everywhere(run: Run) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    changelog = (REPOSITORY / "CHANGELOG.md").read_text()
    newest = changelog.replace("\n## Unreleased\n", "").partition("\n## ")[2].split()[0]
    assert run(["--version"]).stdout == f"k2 {__version__}\n"
    assert __version__ == project["version"] == newest


def test_help_loads_no_heavy_package(run: Run) -> None:
    result = run(["--help"], env={"PYTHONPROFILEIMPORTTIME": "1"})
    assert result.exit_code == 0
    loaded = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines()}
    assert "typer" in loaded
    heavy = {"pyarrow", "polars", "duckdb", "pyiceberg", "numpy"}
    heavy |= {"confluent_kafka", "websockets", "prometheus_client"}
    assert heavy & {name.partition(".")[0] for name in loaded} == set()


def test_shell_completes_commands(run: Run) -> None:
    env = {"_K2_COMPLETE": "complete_bash", "COMP_WORDS": "k2 que", "COMP_CWORD": "1"}
    assert run([], env=env).stdout.split() == ["query"]
