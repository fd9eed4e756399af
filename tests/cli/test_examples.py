"""What the documents and help print is true: commands parse, and run where they need no server."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pytest
import typer
from typer.core import TyperGroup

from k2cli.commands.app import app
from k2cli.flow import Totals
from k2cli.pipelines.consume.policy import ConsumeTotals
from k2cli.pipelines.load.job import LoadTotals
from k2cli.records import QUOTES, TRADES
from k2cli.storage.lake import Lake
from support import reference
from support.builders import quotes_batch, trades_batch
from support.paths import REPOSITORY
from support.running import k2_at

# The reference of commands has the examples of the help.
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if page.name != "commands.md"]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
_BLOCK = re.compile(r"^```(console|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# They need a registry, a tag, or a home in another place.
_ELSEWHERE = ("-value", "before-load", "--home", "--cluster", "--docker", "export quotes")


def printed() -> list[str]:
    """Collect the commands of k2 from the documents' blocks of a shell and the help's examples."""
    lines: list[str] = []
    for kind, block in _BLOCK.findall(TEXT):
        joined = block.replace("\\\n", " ").splitlines()
        typed = [line for line in joined if kind == "sh" or line.startswith("$ ")]
        lines += [line.removeprefix("$ ") for line in typed]
    examples = [re.search(r"Example: (.*)", reference_help(path)) for path in reference.commands()]
    lines += [match[1] for match in examples if match]
    return sorted({command for line in lines for command in commands_of(line)})


def reference_help(path: tuple[str, ...]) -> str:
    command = typer.main.get_command(app)
    for name in path:
        assert isinstance(command, TyperGroup)
        command = command.commands[name]
    return command.help or ""


def commands_of(line: str) -> Iterator[str]:
    """Split a line of a shell at its pipes, and keep what k2 is asked."""
    lexer = shlex.shlex(line, posix=False, punctuation_chars=True)  # quotes stay
    lexer.whitespace_split = True
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("|&;<>()"):
            if words[:1] == ["k2"]:
                yield " ".join(words[1:])
            words = []
        else:
            words.append(word)


@pytest.mark.parametrize("command", printed())
def test_printed_command_parses(command: str) -> None:
    """Parse it by its command's own parser, without running it."""
    args = shlex.split(command)
    root = typer.main.get_command(app)
    context = root.make_context("k2", args)
    node = root
    while isinstance(node, TyperGroup):
        words = [*context._protected_args, *context.args]
        name, found, args = node.resolve_command(context, words)
        assert found is not None, name
        node = found
        context = node.make_context(name, args, parent=context)
    assert not context.args


def test_documents_have_commands_of_every_group() -> None:
    groups = {path[0] for path in reference.commands()}
    assert {shlex.split(command)[0] for command in printed()} >= groups


def runnable() -> list[str]:
    """Return the printed commands that need rows of trades and nothing else."""
    starts = ("query", "table", "export", "config", "load layouts", "load history", "schema show t")
    return [
        command
        for command in printed()
        if command.startswith(starts) and not any(word in command for word in _ELSEWHERE)
    ]


def test_printed_commands_run_over_a_home_with_rows(
    home: Path, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for symbol in ("BTCUSDT", "ETHUSDT"):
        lake.open(TRADES).append(pa.Table.from_batches([trades_batch(30, symbol=symbol)]))
        lake.open(QUOTES).append(pa.Table.from_batches([quotes_batch(3, symbol=symbol)]))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").mkdir()
    commands = runnable()
    assert len(commands) > 20
    for command in commands:
        for written in ("eth.parquet", "quotes.parquet", "trades.csv"):
            Path(written).unlink(missing_ok=True)
        k2_at(home)(*shlex.split(command))


def test_sums_are_printed_with_the_names_that_they_have() -> None:
    known = [
        {*asdict(Totals()), "silent_streams"},
        set(asdict(LoadTotals())),
        {*asdict(ConsumeTotals()), "duration_s"},
        {"table", "load", "path", "exchange", "symbol", "rows", "files"},
    ]
    lines = re.findall(r"^summary (.*[^.])$", TEXT, re.MULTILINE)
    assert len(lines) > 5
    for line in lines:
        assert {word.partition("=")[0] for word in line.split()} in known, line
