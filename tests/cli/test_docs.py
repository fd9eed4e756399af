"""Every command is documented, and what the documents say is true."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from k2cli import __version__
from k2cli.errors import K2Error
from k2cli.events import EVENTS
from support import reference
from support.paths import REPOSITORY
from support.running import Run

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
PAGES = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
COMMANDS = list(reference.commands())

_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_LINK = re.compile(r"\]\(([^()\s]+)\)")


def read(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """Return the anchors that a forge gives the headings of a page."""
    found: Counter[str] = Counter()
    names = set()
    for heading in _HEADING.findall(_FENCE.sub("", read(page))):
        text = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        names.add(f"{text}-{found[text]}" if found[text] else text)
        found[text] += 1
    return names


def broken_links(page: Path, root: Path = REPOSITORY) -> list[str]:
    """Return the links of a page to files or headings that do not exist below `root`."""
    broken = []
    for link in _LINK.findall(_FENCE.sub("", read(page))):
        name, _, anchor = link.partition("#")
        if re.match(r"\w+:", name):
            continue  # another site
        target = (page.parent / name).resolve() if name else page
        is_there = target.is_relative_to(root) and target.exists()
        if not is_there or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_stands_in_the_reference_with_its_example(path: tuple[str, ...]) -> None:
    name = f"k2 {' '.join(path)}"
    example = reference.example(path)
    assert name in example
    _, found, rest = read(DOCS / "reference" / "commands.md").partition(f"# {name}\n")
    section = rest.partition("\n## ")[0].partition("\n### ")[0]
    assert found
    assert f"```text\n{name} " in section
    assert f"```sh\n{example}\n```" in section


def test_reference_names_every_option() -> None:
    text = read(DOCS / "reference" / "commands.md")
    for path in COMMANDS:
        section = text.partition(f"# k2 {' '.join(path)}\n")[2].partition("\n#")[0]
        for param in reference.command(path).params:
            if not getattr(param, "hidden", False) and param.opts[0].startswith("-"):
                assert f"`{param.opts[0]}`" in section, (path, param.opts)


def test_every_exit_code_is_listed() -> None:
    text = read(DOCS / "reference" / "exit-codes.md")
    errors = K2Error.__subclasses__()
    assert len(errors) > 5
    for error in errors:
        assert text.count(f"\n| {error.exit_code} | ") >= 2, error  # what it means, and its class
        assert f"| `{error.__name__}` |" in text


@pytest.mark.parametrize("event", EVENTS)
def test_event_is_listed(event: str) -> None:
    table = read(DOCS / "reference" / "events.md").partition("## Metrics")[0]
    assert re.search(rf"^\| [^|]*`{event}`", table, re.MULTILINE)


def test_readme_is_short() -> None:
    assert 8_000 <= README.stat().st_size <= 12_000


def test_index_links_every_page() -> None:
    indexes = [DOCS / "README.md", DOCS / "runbooks" / "README.md"]
    linked = {
        (index.parent / link.partition("#")[0]).resolve()
        for index in indexes
        for link in _LINK.findall(read(index))
    }
    assert linked >= {*DOCS.rglob("*.md")} - {indexes[0]}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_somewhere(page: Path) -> None:
    assert broken_links(page) == []


def test_broken_links_are_found(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "outside.md").touch()
    page = root / "page.md"
    links = "[1](#a-b-c) [2](#no) [3](no.md) [4](../outside.md)"
    page.write_text(f"# A `b` [c]\n{links}\n```\n[5](in-code.md)\n```\n")
    assert broken_links(page, root) == ["#no", "no.md", "../outside.md"]


def test_architecture_names_files_that_exist() -> None:
    text = read(DOCS / "explanation" / "architecture.md")
    paths = re.findall(r"`([\w/]+\.(?:py|json|toml))`", text)
    assert len(paths) > 15
    files = [*(REPOSITORY / "k2cli").rglob("*.*"), *(REPOSITORY / "tests").rglob("*.py")]
    known = [each.as_posix() for each in (*files, REPOSITORY / "pyproject.toml")]
    assert [path for path in paths if not any(each.endswith(f"/{path}") for each in known)] == []


def test_architecture_names_every_module_at_the_top() -> None:
    layout = read(DOCS / "explanation" / "architecture.md").partition("## Layers")[0]
    for path in (REPOSITORY / "k2cli").iterdir():
        if path.suffix == ".py" and not path.stem.startswith("__"):
            assert f" {path.name}" in layout
        elif (path / "__init__.py").is_file():
            assert f" {path.name}/" in layout


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
    heavy |= {"confluent_kafka", "picows", "websockets", "prometheus_client"}
    assert heavy & {name.partition(".")[0] for name in loaded} == set()


def test_shell_completes_commands(run: Run) -> None:
    env = {"_K2_COMPLETE": "complete_bash", "COMP_WORDS": "k2 que", "COMP_CWORD": "1"}
    assert run([], env=env).stdout.split() == ["query"]


def test_the_site_has_every_page() -> None:
    nav = read(REPOSITORY / "mkdocs.yml").partition("\nnav:\n")[2]
    pages = re.findall(r"([\w/-]+\.md)$", nav, re.MULTILINE)
    written = [str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")]
    assert sorted(pages) == sorted(written)
