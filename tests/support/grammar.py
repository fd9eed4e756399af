"""Write k2cli/completion/grammar.json from the Typer app: `nox -s docs`."""

import json
from enum import Enum
from typing import Any, get_args

import typer
from typer.core import TyperArgument, TyperGroup, TyperOption

from k2cli.commands.app import app
from k2cli.ingestion.exchanges import EXCHANGES
from support.paths import REPOSITORY

PATH = REPOSITORY / "k2cli" / "completion" / "grammar.json"

# Where the values of options and arguments come from, whatever command they belong to.
_OPTIONS = {
    "--symbol": "symbols",
    "--symbols": "symbols",
    "--exchange": "exchanges",
    "--columns": "columns",
    "--layout": "layouts",
    "--profile": "profiles",
    "--schema": "schemas",
    "--subject": "subjects",
    "--topic": "topics",
}
_ARGUMENTS = {"table": "tables", "topic": "topics", "topics": "topics"}
_ARGUMENTS |= {"old": "schemas", "new": "schemas", "schemas": "schemas", "schema": "schemas"}
_ARGUMENTS |= {"subject": "subjects", "subjects": "subjects"}
_SPECIAL: dict[tuple[str, str], str | bool] = {
    ("load layouts", "name"): "layouts",
    ("schema show", "name"): "schemas",
    ("load csv", "--columns"): True,  # those of a file
    ("topic create", "topics"): True,  # they do not exist yet
}


def grammar() -> dict[str, Any]:
    """Describe every command by its path, "" being k2 itself."""
    root = typer.main.get_command(app)
    assert isinstance(root, TyperGroup)
    return dict(_nodes(root, ()))


def _nodes(command: Any, path: tuple[str, ...]) -> Any:
    context = typer.Context(command, info_name="k2")
    name = " ".join(path)
    shown = [param for param in command.get_params(context) if not getattr(param, "hidden", False)]
    commands = command.commands if isinstance(command, TyperGroup) else {}
    visible = {key: each for key, each in commands.items() if not each.hidden}
    yield (
        name,
        {
            "help": command.get_short_help_str(200),
            "commands": list(visible),
            "options": [_option(each, name) for each in shown if isinstance(each, TyperOption)],
            "arguments": [
                {
                    "values": _values(each, name, each.name, _ARGUMENTS),
                    "is_repeated": each.nargs == -1,
                }
                for each in shown
                if isinstance(each, TyperArgument)
            ],
        },
    )
    for key, each in visible.items():
        yield from _nodes(each, (*path, key))


def _option(option: TyperOption, path: str) -> dict[str, Any]:
    names = [*option.opts, *option.secondary_opts]
    takes_none = option.is_flag or option.count
    return {
        "names": sorted(names, key=len, reverse=True) if len(option.opts) > 1 else names,
        "help": (option.help or "").strip(),
        "values": False if takes_none else _values(option, path, option.opts[0], _OPTIONS),
    }


def _values(param: Any, path: str, name: str, sources: dict[str, str]) -> Any:
    of = param.type_descriptor.annotation
    for each in (of, *get_args(of)):
        if isinstance(each, type) and issubclass(each, Enum):
            return [str(choice.value) for choice in each]
    if name == "--channels":  # of the exchange that the command is named after
        return {"several": list(EXCHANGES[path.rpartition(" ")[2]].channels)}
    return _SPECIAL.get((path, name), sources.get(name, True))


def text() -> str:
    """Return the file's text."""
    return json.dumps(grammar(), ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    PATH.write_text(text(), encoding="utf-8")
