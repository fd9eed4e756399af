"""Expand paths as users write them."""

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
