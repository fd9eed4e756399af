"""The protocol of the completion scripts that `k2 --install-completion` writes."""

import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from k2cli.completion.answers import Candidate, candidates

_BREAKS: Final = frozenset("=:")  # where bash splits words, unlike the shell's grammar


def complete(instruction: str) -> bool:
    """Print completions for a shell to stdout; print nothing to stderr.

    Returns False if Typer has to answer: other shells, and the scripts themselves.
    """
    answer = _SHELLS.get(instruction)
    if answer is None:
        return False
    # Errors must not be written into the line that the user is typing.
    sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  until the end
    text = answer(os.environ)
    sys.stdout.buffer.write(text.encode(errors="surrogateescape"))
    sys.stdout.flush()
    return True


def _bash(environment: Mapping[str, str]) -> str:
    words = _split(environment.get("COMP_WORDS", ""))
    at = int(environment.get("COMP_CWORD", len(words)))
    args = _joined(words[1:at])
    current = words[at] if at < len(words) else ""
    *args, incomplete = _joined([*words[1:at], current]) if current else [*args, ""]
    if current and set(current) <= _BREAKS and incomplete.endswith(current):
        current = ""  # bash completes only what follows the =
    elif not current and args and args[-1].endswith("=") and words[at - 1 : at] == ["="]:
        incomplete = args.pop()
    found = candidates(args, incomplete, environment)
    before = incomplete[: len(incomplete) - len(current)]
    return _lines(each.word.removeprefix(before) for each in found)


def _joined(words: Sequence[str]) -> list[str]:
    """Rejoin words such as `--home=x` and `ws://host:1`, which bash splits."""
    joined: list[str] = []
    is_glued = False
    for word in words:
        is_break = bool(word) and set(word) <= _BREAKS
        if joined and (is_glued or is_break):
            joined[-1] += word
        else:
            joined.append(word)
        is_glued = is_break
    return joined


def _split(text: str) -> list[str]:
    """Split a command line like a shell; an open quote extends to the end."""
    lexer = shlex.shlex(text, posix=True)
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        words.extend(lexer)
    except ValueError:  # an open quote
        words.append(lexer.token)
    return words


def _typed(environment: Mapping[str, str]) -> list[Candidate]:
    text = environment.get("_TYPER_COMPLETE_ARGS", "")
    words = _split(text)[1:]
    incomplete = words.pop() if words and not text[-1].isspace() else ""
    return candidates(words, incomplete, environment)


def _zsh(environment: Mapping[str, str]) -> str:
    found = _typed(environment)
    if not found:
        return "_files\n"
    listed = "\n".join(
        f'"{_zsh_quoted(each.word)}"' + (f':"{_zsh_quoted(each.help)}"' if each.help else "")
        for each in found
    )
    return f"_arguments '*: :(({listed}))'\n"


def _zsh_quoted(text: str) -> str:
    """Quote a text twice: for zsh's eval, and for the evaluation in `_arguments`."""
    text = re.sub(r'([\\"$`:])', r"\\\1", text)
    return text.replace("'", "’")  # noqa: RUF001  no quoting survives both


def _fish(environment: Mapping[str, str]) -> str:
    found = _typed(environment)
    if environment.get("_TYPER_COMPLETE_FISH_ACTION") == "is-args":
        sys.exit(0 if found else 1)  # 1: fish completes files
    return _lines(f"{each.word}\t{each.help}" if each.help else each.word for each in found)


def _lines(words: Iterable[str]) -> str:
    return "".join(f"{word}\n" for word in words)


_SHELLS: Final[Mapping[str, Callable[[Mapping[str, str]], str]]] = {
    "complete_bash": _bash,
    "complete_zsh": _zsh,
    "complete_fish": _fish,
}
