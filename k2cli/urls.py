"""URLs as users write them, checked before a client takes a part of a password for the host."""

import re
from urllib.parse import urlsplit

from k2cli.errors import K2Error
from k2cli.redaction import redact_url

_HINT = "percent-encode what stands before the host: %2F for /, %3F for ?, %23 for #, %40 for @"


def check_url(url: str, what: str, error: type[K2Error]) -> None:
    """Check that a URL has one meaning, a host name and a port; `what` names it in the error.

    Raises:
        K2Error: of type `error`, if it has not.
    """
    check_password(url, what, error)
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna"), parts.port
    except ValueError as exc:  # also of a label that no host name can have
        raise error(f"{what} {redact_url(url)}: {exc}") from exc


def check_password(url: str, what: str, error: type[K2Error]) -> None:
    """Check that no raw delimiter makes a part of a URL's password its host.

    Raises:
        K2Error: of type `error`, if one does.
    """
    if _is_ambiguous(url):
        reason = "its user name or password has a raw / ? # or @"
        raise error(f"{what} {redact_url(url)}: {reason}", hint=_HINT)


def check_database_url(url: str, what: str, error: type[K2Error]) -> None:
    """Check that the password in the URL of a database, as SQLAlchemy reads it, has no raw @.

    Raises:
        K2Error: of type `error`, if it has.
    """
    if "@" in url.partition("@")[2].partition("?")[0]:
        reason = "its user name or password has a raw @"
        raise error(f"{what} {redact_url(url)}: {reason}", hint=_HINT)


def _is_ambiguous(url: str) -> bool:
    """Return whether clients would take what stands before a raw delimiter for the host."""
    rest = url.partition("://")[2] or url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in rest[len(authority) :]:
        return False
    port = authority.rpartition(":")[2] if ":" in authority else ""
    return "@" in authority or bool(port and not port.isdigit())
