"""Commands that are imported when they are used: a command costs only its own modules."""

from collections.abc import Iterator, Mapping
from importlib import import_module
from inspect import cleandoc
from typing import Any

import typer
from typer.core import TyperCommand

from k2cli.completion.grammar import load_grammar


class LazyCommands(Mapping[str, Any]):
    """Commands by name, each imported at its first use.

    `targets` has `module:name` of a function or a Typer app, and the hidden commands.
    """

    def __init__(self, targets: Mapping[str, str], *, hidden: frozenset[str]) -> None:
        self._targets = targets
        self._hidden = hidden
        self._loaded: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        """Return a command as Typer runs it.

        Raises:
            KeyError: there is no such command.
        """
        if name not in self._loaded:
            self._loaded[name] = _load(name, self._targets[name], is_hidden=name in self._hidden)
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        """Yield the names, in the order of --help."""
        return iter(self._targets)

    def __len__(self) -> int:
        """Return how many commands there are."""
        return len(self._targets)


def described(path: str) -> dict[str, Any]:
    """Return the visible commands of a group with their help only, without importing them."""
    grammar = load_grammar()
    names = grammar[path]["commands"]
    texts = {name: grammar[f"{path} {name}".lstrip()]["help"] for name in names}
    return {name: TyperCommand(name, short_help=text) for name, text in texts.items()}


def _load(name: str, target: str, *, is_hidden: bool) -> Any:
    """Import a command, and build it as part of a group."""
    module, _, attribute = target.partition(":")
    found = getattr(import_module(module), attribute)
    group = typer.Typer(add_completion=False, rich_markup_mode=None)
    group.callback()(lambda: None)
    if isinstance(found, typer.Typer):
        group.add_typer(found, name=name, hidden=is_hidden)
    else:
        group.command(name, hidden=is_hidden)(found)
    parent: Any = typer.main.get_command(group)
    command = parent.commands[name]
    _summarize(command)
    return command


def _summarize(group: Any) -> None:
    """List the commands of a group with the first paragraphs of their help, uncut."""
    for command in getattr(group, "commands", {}).values():
        command.short_help = " ".join(cleandoc(command.help or "").partition("\n\n")[0].split())
        _summarize(command)
