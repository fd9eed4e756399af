"""Paths and other texts as users and the system write them."""

from pathlib import Path

from k2cli.errors import NotFound


def expand_home(path: str | Path) -> Path:
    """Replace ~ or ~user at the start of a path with that home directory.

    Raises:
        NotFound: the user or the user's home directory is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as exc:
        raise NotFound(f"{path}: no such home directory", hint="write the full path") from exc


def is_utf8(text: str) -> bool:
    """Return whether a text from the system, such as an argument, can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
