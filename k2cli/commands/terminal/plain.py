"""Text for people, without secrets and terminal control characters."""

import re
from typing import Final

from k2cli.redaction import hide_secrets

_COLOURS: Final = re.compile(r"(\x1b\[[0-9;]*m)")


def printable(text: str) -> str:
    """Escape terminal control characters."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """Escape terminal control characters except line breaks and tabs."""
    return "".join(
        part if part in "\n\t" else printable(part) for part in re.split(r"([\n\t])", text)
    )


def for_people(text: str) -> str:
    """Hide secrets and escape control characters in a message of one or more lines."""
    return printable_lines(hide_secrets(text))


def for_people_in_colour(text: str) -> str:
    """Hide secrets and escape control characters, but keep Rich's colours."""
    parts = _COLOURS.split(hide_secrets(text))
    return "".join(part if index % 2 else printable_lines(part) for index, part in enumerate(parts))
