"""Text for people, without secrets and terminal control characters."""

import re

from k2cli.redaction import hide_secrets


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
