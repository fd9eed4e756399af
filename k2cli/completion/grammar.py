"""The generated description of every command, option and argument.

`tests/support/grammar.py` writes grammar.json from the Typer app, and a test keeps the two equal.
Importing Typer and all commands instead would cost half a second.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

_GRAMMAR: Final = Path(__file__).with_name("grammar.json")


def load_grammar() -> Mapping[str, Any]:
    """Return the description of each command by its path, such as "query trades"; "" is k2.

    A command has `help` (its first sentence), `commands` (names, in the order of --help),
    `options` and `arguments`.
    """
    grammar: Mapping[str, Any] = json.loads(_GRAMMAR.read_text(encoding="utf-8"))
    return grammar
