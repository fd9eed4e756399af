"""stdout is data, stderr is talk. Machine formats never pass through Rich."""

import sys

from k2cli.errors import K2Error


def note(message: str) -> None:
    """Say something to the user on stderr."""
    print(message, file=sys.stderr)


def error(exc: K2Error) -> None:
    """Print an expected failure and, on a line of its own, what mends it."""
    print(f"error: {exc}", file=sys.stderr)
    if exc.hint:
        print(f"hint: {exc.hint}", file=sys.stderr)
