"""The boundary to pyiceberg, SQLAlchemy and the file system: translate their errors."""

import errno
import re
import sqlite3
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Final

import pyarrow as pa
from pyiceberg.exceptions import (
    AuthorizationExpiredError,
    ForbiddenError,
    NoSuchNamespaceError,
    NoSuchTableError,
    OAuthError,
    ResolveError,
    RESTError,
    UnauthorizedError,
    ValidationError,
)
from pyiceberg.expressions import BooleanExpression
from sqlalchemy.exc import DatabaseError, OperationalError

from k2cli.errors import BadData, ConfigError, K2Error, NotFound, Unavailable
from k2cli.redaction import hide_secrets

_LOADS_LOG: Final = "k2-loads-log-"  # see loads.py
_LOADS_LOG_HINT: Final = (
    "restore it from a backup; let no other engine remove orphan files named k2-loads-log-*"
)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NOT_WRITABLE = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL),
)
# Errors of pyiceberg's JSON and Avro readers for truncated or overwritten files.
_DAMAGED = (EOFError, UnicodeDecodeError, JSONDecodeError, zlib.error, SystemError)
# Arrow's messages about S3: the operation's error and, for unknown refusals, the status.
_S3_ERROR: Final = "AWS Error"
_S3_REFUSED: Final = re.compile(
    r"AWS Error (ACCESS_DENIED|INVALID_ACCESS_KEY_ID|INVALID_CLIENT_TOKEN_ID"
    r"|SIGNATURE_DOES_NOT_MATCH|INVALID_SIGNATURE|MISSING_AUTHENTICATION_TOKEN"
    r"|UNRECOGNIZED_CLIENT)|HTTP status 40[13]"
)
_S3_KEYS: Final = (
    "check s3.access-key-id, s3.secret-access-key and s3.region under [catalog], or"
    " K2_CATALOG_S3__ACCESS_KEY_ID and so on; k2 config show shows what is set"
)
_CATALOG_LOCATION: Final = "check uri and warehouse under [catalog]: k2 config show"
_NOT_THERE: Final = re.compile(r"NoSuch\w+Exception|NotFoundException")
_REPAIR: Final = (
    "k2 table check shows the damage, k2 table repair restores the newest intact state;"
    " or restore it from a backup"
)
_REFUSED = (UnauthorizedError, ForbiddenError, OAuthError, AuthorizationExpiredError)
_CATALOG_KEYS: Final = (
    "check token or credential under [catalog]; with rest.sigv4-enabled"
    " client.access-key-id and client.secret-access-key"
)

_AWS_UNSET: Final = ("NoRegionError", "NoCredentialsError", "PartialCredentialsError")
_AWS_REFUSED: Final = re.compile(r"\((AccessDenied|UnrecognizedClient|InvalidSignature|Signature)")
_AWS_KEYS: Final = (
    "set client.region, client.access-key-id and client.secret-access-key under [catalog], or"
    " AWS_REGION and so on"
)


def predicate(
    make: Callable[..., BooleanExpression], column: str, value: object
) -> BooleanExpression:
    """Build a predicate; its constructor accepts more than its annotations."""
    return make(column, value)


@contextmanager
def translated(what: str) -> Iterator[None]:
    """Translate vendor errors inside the block; `what` describes the operation.

    Raises:
        NotFound: the table does not exist, or the warehouse that it would be in.
        ConfigError: a folder or catalog file cannot be written or opened, or keys are refused.
        BadData: the catalog file is damaged, or a file of a table is missing.
        Unavailable: disk full, catalog locked or unreachable, object storage unreachable.
    """
    try:
        yield
    except NoSuchTableError as exc:
        raise NotFound(f"{what}: the table does not exist") from exc
    except NoSuchNamespaceError as exc:
        raise NotFound(f"{what}: {exc}", hint=_CATALOG_LOCATION) from exc
    except (ValidationError, *_DAMAGED) as exc:
        said, _, _ = str(exc).partition("For further information")  # end of pydantic's messages
        reason = " ".join(hide_secrets(said).split())[:300]
        raise BadData(f"{what}: a metadata file is damaged: {reason}", hint=_REPAIR) from exc
    except (DatabaseError, OSError, RESTError) as exc:
        raise _translate(what, exc) from exc
    except aws_errors() as exc:
        raise _translate_aws(what, exc) from exc


@contextmanager
def reading_manifests() -> Iterator[None]:
    """Distinguish damage from bugs: pyiceberg does not validate manifests.

    Raises:
        ValidationError: a manifest or manifest list is invalid.
    """
    try:
        yield
    except (ValueError, LookupError, TypeError, ResolveError) as exc:
        raise ValidationError(f"a manifest: {exc}") from exc


@contextmanager
def translated_damage(path: str) -> Iterator[None]:
    """Translate Arrow's errors about a damaged Parquet file.

    Raises:
        BadData: the file at `path` is damaged.
    """
    try:
        yield
    except (pa.ArrowInvalid, OSError) as exc:
        is_other = isinstance(exc, OSError) and (
            type(exc) is not OSError or exc.errno is not None or _S3_ERROR in str(exc)
        )
        if is_other:
            raise
        reason = " ".join(hide_secrets(str(exc)).split())[:300]
        raise BadData(f"the data file {path} is damaged: {reason}", hint=_REPAIR) from exc


def _translate(what: str, exc: DatabaseError | OSError | RESTError) -> K2Error:
    if isinstance(exc, OSError):
        return _translate_os(what, exc)
    if isinstance(exc, RESTError):
        return _translate_rest(what, exc)
    return _translate_database(what, exc)


def aws_errors() -> tuple[type[Exception], ...]:
    """Return the error types of AWS's library; none if it is not loaded."""
    errors = sys.modules.get("botocore.exceptions")
    return (errors.BotoCoreError, errors.ClientError) if errors else ()


def _translate_aws(what: str, exc: Exception) -> K2Error:
    kind = type(exc).__name__
    if kind in _AWS_UNSET or _AWS_REFUSED.search(str(exc)):
        return ConfigError(f"{what}: {exc}", hint=_AWS_KEYS)
    return Unavailable(f"{what}: {exc}")


def _translate_rest(what: str, exc: RESTError) -> K2Error:
    reason = " ".join(hide_secrets(str(exc)).split())[:300]
    if isinstance(exc, _REFUSED):
        return ConfigError(
            f"{what}: the catalog rejected the credentials: {reason}", hint=_CATALOG_KEYS
        )
    if _NOT_THERE.match(reason):
        return NotFound(f"{what}: {reason}", hint=_CATALOG_LOCATION)
    return Unavailable(f"{what}: {reason}", hint=_CATALOG_LOCATION)


def _translate_database(what: str, exc: DatabaseError) -> K2Error:
    reason = " ".join(str(exc.orig).split())
    if not isinstance(exc.orig, sqlite3.Error):
        if "password" in reason or "authentication" in reason:
            hint = "check the user and password in catalog.uri"
            return ConfigError(f"{what}: the catalog rejected the credentials: {reason}", hint=hint)
        return Unavailable(f"{what}: {reason}")
    if not isinstance(exc, OperationalError):
        return BadData(
            f"{what}: {reason}",
            hint="the catalog file is damaged; restore it from a backup, or move it elsewhere",
        )
    if getattr(exc.orig, "sqlite_errorname", "") == "SQLITE_READONLY_DBMOVED":
        return Unavailable(f"{what}: the catalog file was moved or deleted while it was open")
    if "unable to open" in reason or "readonly" in reason:
        hint = "choose a writable directory with --home, or fix catalog.uri if it is set"
        return ConfigError(f"{what}: {reason}", hint=hint)
    return Unavailable(f"{what}: {reason}")


def _translate_os(what: str, exc: OSError) -> K2Error:
    if exc.errno in _NO_SPACE:
        return Unavailable(f"{what}: {exc}", hint="free some disk space and run it again")
    if exc.errno in _NOT_WRITABLE:
        return ConfigError(f"{what}: {exc}", hint="choose a writable directory with --home")
    if isinstance(exc, FileNotFoundError):
        is_remote = "://" in str(exc) or "Path does not exist" in str(exc)  # pyiceberg's, Arrow's
        hint = f"does the bucket still exist? If so, {_REPAIR}" if is_remote else _REPAIR
        if _LOADS_LOG in str(exc):
            hint = _LOADS_LOG_HINT
        return BadData(f"{what}: a file of the table is missing: {exc}", hint=hint)
    if _S3_ERROR in str(exc):
        return _translate_s3(what, str(exc))
    if isinstance(exc, ConnectionError | TimeoutError):
        return Unavailable(f"{what}: {exc}", hint=_CATALOG_LOCATION)
    return Unavailable(f"{what}: {exc}")


def _translate_s3(what: str, reason: str) -> K2Error:
    if "NO_SUCH_BUCKET" in reason:
        return NotFound(f"{what}: {reason}", hint="create the bucket, or check catalog.warehouse")
    if _S3_REFUSED.search(reason):
        return ConfigError(f"{what}: {reason}", hint=_S3_KEYS)
    return Unavailable(f"{what}: {reason}", hint="check catalog.s3.endpoint: k2 config show")
