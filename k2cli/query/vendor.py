"""Translate DuckDB's errors to k2 errors, here and nowhere else."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import duckdb

from k2cli.errors import BadData, ConfigError, K2Error, Unavailable, UsageError
from k2cli.query.protocol import MEMORY_HINT
from k2cli.query.s3 import KEYS_HINT

_OVERFLOW: Final = "an explicit cast to a bigger decimal"
_WIDER: Final = "cast one side to a wider type first, as in CAST(price AS DECIMAL(28, 8)) * price"
# Messages of failed casts of constants (LIMIT 1e30, price = 'abc'); for stored values they name the
# column.
_OUT_OF_RANGE: Final = "the value is out of range"
_OF_COLUMN: Final = "when casting from source column"
_OUTSIDE: Final = ("Out of Memory Error", "IO Error", "HTTP Error", "INTERRUPT Error")
# Syntax errors and unknown names, unsupported features, files outside the table.
MISTAKES: Final = (
    duckdb.ProgrammingError,
    duckdb.NotSupportedError,
    duckdb.DependencyException,
    duckdb.PermissionException,
)


class Interrupted(Unavailable):
    """A query was interrupted without a request: one of its threads failed.

    That thread's error has the cause, but DuckDB sometimes reports the error of another thread that
    was interrupted because of it.
    """


@contextmanager
def translated(*, is_from_user: bool = False) -> Iterator[None]:
    """Translate DuckDB's errors to k2 errors.

    Mistakes in user SQL are usage errors. In k2's own SQL they are bugs, like DuckDB's internal
    errors: they propagate as tracebacks.
    """
    try:
        yield
    except RuntimeError as exc:
        if isinstance(exc.__cause__, KeyboardInterrupt):  # DuckDB's error after Ctrl-C
            raise KeyboardInterrupt from exc
        raise
    except duckdb.Error as exc:
        error = _expected(exc, is_from_user=is_from_user)
        if error is None:
            raise
        raise error from exc


def streaming_error(exc: Exception) -> K2Error:
    """Translate the errors of a stream of batches.

    Through Arrow's C interface an error of DuckDB loses its type but keeps its text.
    """
    reason = str(exc).partition("\n")[0]
    return _outside(reason) if reason.startswith(_OUTSIDE) else _misfit(reason)


def _expected(exc: duckdb.Error, *, is_from_user: bool) -> K2Error | None:
    reason = str(exc).partition("\n")[0]
    if isinstance(exc, duckdb.OutOfMemoryException):
        return Unavailable(reason, hint=MEMORY_HINT)
    if isinstance(exc, duckdb.IOException | duckdb.InterruptException):
        return _outside(reason)
    if isinstance(exc, duckdb.DataError | duckdb.InvalidInputException):
        is_cast = isinstance(exc, duckdb.ConversionException) or _OUT_OF_RANGE in reason
        return _misfit(reason, is_mistake=is_from_user and is_cast and _OF_COLUMN not in reason)
    if is_from_user and isinstance(exc, MISTAKES):
        return _mistake(str(exc))
    if isinstance(exc, duckdb.PermissionException):  # DuckDB looks for a directory of that name
        return Unavailable(f"a data file no longer exists: {reason}", hint="run it again")
    return None


def _mistake(text: str) -> UsageError:
    """Keep DuckDB's explanation of wrong SQL: the caret, and the suggestion as the hint."""
    lines = [line for line in text.splitlines() if line.strip()]
    hints = [line for line in lines if line.startswith(("Did you mean", "Candidate "))]
    caret = next((at for at, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    message = [*lines[:1], *lines[caret : caret + 2]]
    return UsageError("\n".join(message), hint=hints[0] if hints else None)


def _misfit(reason: str, *, is_mistake: bool = False) -> K2Error:
    hint = _WIDER if _OVERFLOW in reason else None
    if is_mistake or reason.startswith("Out of Range Error"):  # of the statement, not the data
        return UsageError(reason, hint=hint)
    return BadData(reason, hint=hint)


def _outside(reason: str) -> K2Error:
    if reason.startswith("INTERRUPT Error"):
        return Interrupted(f"the query failed: {reason}", hint="run it again")
    if "(HTTP 401" in reason or "(HTTP 403" in reason:
        return ConfigError(f"the object store rejected the credentials: {reason}", hint=KEYS_HINT)
    if "(HTTP 404" in reason:
        return Unavailable(f"a data file no longer exists: {reason}", hint="run it again")
    return Unavailable(reason)
