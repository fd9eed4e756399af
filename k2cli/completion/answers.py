"""Complete a command line: commands, options and their values."""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from k2cli.completion.grammar import load_grammar
from k2cli.completion.words import is_safe, read_words
from k2cli.kinds import KindName

_PACKAGE: Final = Path(__file__).parent.parent
_LISTS: Final = frozenset({"symbols", "exchanges", "columns", "topics"})  # by commas


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate that can replace the unfinished word."""

    word: str
    help: str = ""


@dataclass(slots=True)
class _Line:
    """A partial command line: the command, the given options, and what comes next."""

    path: list[str] = field(default_factory=list)
    given: dict[str, str] = field(default_factory=dict)  # the first name of an option: its value
    arguments: int = 0
    pending: dict[str, Any] | None = None  # the option whose value comes next
    is_literal: bool = False  # after --


def candidates(
    args: Sequence[str], incomplete: str, environment: Mapping[str, str]
) -> list[Candidate]:
    """Return candidates for the unfinished word of a command line; none if any text fits.

    `args` are the finished words after the program's name.
    """
    grammar = load_grammar()
    line = _read(args, grammar)
    node = grammar[" ".join(line.path)]
    if line.pending is not None:
        return _values(line.pending["values"], incomplete, line, environment)
    if not line.is_literal and incomplete.startswith("-"):
        return _options(node, incomplete, line, environment)
    if node["commands"] and not line.arguments:
        names = [name for name in node["commands"] if name.startswith(incomplete)]
        return [Candidate(name, grammar[" ".join([*line.path, name])]["help"]) for name in names]
    argument = _argument(node["arguments"], line.arguments)
    return _values(argument["values"], incomplete, line, environment) if argument else []


def _options(
    node: Mapping[str, Any], incomplete: str, line: _Line, environment: Mapping[str, str]
) -> list[Candidate]:
    """Complete the name of an option, or its value after the =."""
    name, equals, text = incomplete.partition("=")
    if not equals:
        return [
            Candidate(each, option["help"])
            for option in node["options"]
            for each in option["names"]
            if each.startswith(incomplete)
        ]
    option = _option(node, name)
    found = _values(option["values"], text, line, environment) if option else []
    return [Candidate(f"{name}={each.word}", each.help) for each in found]


def _argument(arguments: Sequence[dict[str, Any]], number: int) -> dict[str, Any] | None:
    """Return the argument at a position."""
    if number < len(arguments):
        return arguments[number]
    return arguments[-1] if arguments and arguments[-1]["is_repeated"] else None


def _read(args: Sequence[str], grammar: Mapping[str, Any]) -> _Line:
    line = _Line()
    for word in args:
        node = grammar[" ".join(line.path)]
        if line.pending is not None:
            line.given[line.pending["names"][0]] = word
            line.pending = None
        elif word == "--" and not line.is_literal:
            line.is_literal = True
        elif word.startswith("-") and len(word) > 1 and not line.is_literal:
            name, equals, value = word.partition("=")
            option = _option(node, name)
            if option is not None and equals:
                line.given[option["names"][0]] = value
            elif option is not None and option["values"] is not False:
                line.pending = option
        elif word in node["commands"]:
            line.path.append(word)
        else:
            line.arguments += 1
    return line


def _option(node: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((option for option in node["options"] if name in option["names"]), None)


def _values(
    values: bool | str | list[str] | dict[str, list[str]],
    incomplete: str,
    line: _Line,
    environment: Mapping[str, str],
) -> list[Candidate]:
    """Return the values of an option or argument: choices, comma lists, or those of a source."""
    match values:
        case bool():
            return []
        case str():
            names, is_list = _SOURCES[values](line, environment), values in _LISTS
        case dict():
            names, is_list = values["several"], True
        case _:
            names, is_list = values, False
    before, text = "", incomplete
    if is_list:  # keep the typed part of a comma list
        head, comma, text = incomplete.rpartition(",")
        before = head + comma
        names = [name for name in names if name not in head.split(",")]
    folded = text.casefold()
    return [Candidate(before + name) for name in names if name.casefold().startswith(folded)]


def _home(line: _Line, environment: Mapping[str, str]) -> Path:
    given = os.path.expandvars(line.given.get("--home", ""))  # as typed
    return Path(given or environment.get("K2_HOME") or "~/.k2").expanduser()


def _profile(line: _Line, environment: Mapping[str, str]) -> str | None:
    return line.given.get("--profile") or environment.get("K2_PROFILE") or None


def _remembered(kind: str) -> "Callable[[_Line, Mapping[str, str]], list[str]]":
    def words(line: _Line, environment: Mapping[str, str]) -> list[str]:
        found = read_words(_home(line, environment), _profile(line, environment))
        return found.get(kind, [])

    return words


def _columns(line: _Line, _environment: Mapping[str, str]) -> list[str]:
    """Return the columns of the record kind in the command's name."""
    schema = _schemas()[KindName(line.path[-1]).traits.schema]
    return [column["name"] for column in json.loads(schema.read_text(encoding="utf-8"))["fields"]]


def _schemas() -> dict[str, Path]:
    folders = (_PACKAGE / "schemas", _PACKAGE.parent / "schemas")  # installed; in a checkout
    folder = next(each for each in folders if each.is_dir())
    return {path.stem: path for path in sorted(folder.glob("*.avsc"))}


def _schema_names(line: _Line, environment: Mapping[str, str]) -> list[str]:
    return [*_schemas(), *_remembered("subjects")(line, environment)]


def _layouts(_line: _Line, _environment: Mapping[str, str]) -> list[str]:
    return sorted(path.stem for path in (_PACKAGE / "ingestion/csv/layouts").glob("*.toml"))


def _profiles(line: _Line, environment: Mapping[str, str]) -> list[str]:
    """Return the profiles of the config file."""
    import tomllib  # noqa: PLC0415  a few milliseconds that other completions do not need

    given = environment.get("K2_CONFIG")
    path = Path(given).expanduser() if given else _home(line, environment) / "k2.toml"
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8")).get("profile", {})
    except (OSError, ValueError):
        return []
    return sorted(filter(is_safe, found)) if isinstance(found, dict) else []


_SOURCES: Final[Mapping[str, Callable[[_Line, Mapping[str, str]], list[str]]]] = {
    "symbols": _remembered("symbols"),
    "exchanges": _remembered("exchanges"),
    "topics": _remembered("topics"),
    "subjects": _remembered("subjects"),
    "columns": _columns,
    "layouts": _layouts,
    "profiles": _profiles,
    "schemas": _schema_names,
    "tables": lambda _line, _environment: [kind.value for kind in KindName],
}


def source_names() -> Iterator[str]:
    """Yield the names of the sources that a grammar can use."""
    yield from _SOURCES
