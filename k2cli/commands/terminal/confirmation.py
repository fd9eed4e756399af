"""Ask the user for confirmation."""

import sys

import typer

from k2cli.errors import UsageError


def confirm(question: str, *, is_confirmed: bool) -> None:
    """Ask for confirmation before data is lost.

    Raises:
        UsageError: stdin is not a terminal, or the user declined.
    """
    if is_confirmed:
        return
    if not sys.stdin.isatty():
        raise UsageError("stdin is not a terminal: cannot ask", hint="confirm with --yes")
    if not typer.confirm(question, err=True):
        raise UsageError("not confirmed: nothing was changed")
