"""The border to pyiceberg, SQLAlchemy and the file system: their errors become ours, once."""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pyiceberg.exceptions import NoSuchTableError, RESTError
from sqlalchemy.exc import DatabaseError, OperationalError

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, Unavailable

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate vendor errors inside the block; `what` says what was being done, and where.

    Raises:
        NotFound: the table does not exist.
        ConfigError: a folder or catalog file cannot be written or opened.
        BadData: the catalog file is damaged.
        Unavailable: disk full, catalog locked or out of reach.
    """
    try:
        yield
    except NoSuchTableError as exc:
        raise NotFound(f"{what}: no such table") from exc
    except (DatabaseError, OSError, RESTError) as exc:
        raise _translate(what, exc) from exc


def _translate(what: str, exc: DatabaseError | OSError | RESTError) -> K2Error:
    if isinstance(exc, OSError):
        return _translate_os(what, exc)
    if isinstance(exc, RESTError):
        return Unavailable(f"{what}: {exc}")
    reason = str(exc.orig)
    if not isinstance(exc, OperationalError):
        return BadData(
            f"{what}: {reason}",
            hint="the catalog file is damaged; restore it from a backup, or move it away",
        )
    if "unable to open" in reason or "readonly" in reason:
        return ConfigError(f"{what}: {reason}", hint="choose a folder you may write with --home")
    return Unavailable(f"{what}: {reason}")


def _translate_os(what: str, exc: OSError) -> K2Error:
    if exc.errno in _NO_SPACE:
        return Unavailable(f"{what}: {exc}", hint="free some disk space and run it again")
    if exc.errno in _NOT_WRITABLE:
        return ConfigError(f"{what}: {exc}", hint="choose a folder you may write with --home")
    if isinstance(exc, FileNotFoundError):
        return BadData(f"{what}: a file of the table is missing: {exc}")
    return Unavailable(f"{what}: {exc}")
