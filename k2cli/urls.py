"""Check URLs of users, before a client mistakes a part of a password for the host."""

import re
from urllib.parse import urlsplit

from k2cli.errors import K2Error
from k2cli.redaction import redact_url

_HINT = "percent-encode the user name and password: %2F for /, %3F for ?, %23 for #, %40 for @"


def check_url(url: str, what: str, error: type[K2Error]) -> None:
    """Check that a URL is unambiguous and has a valid host and port; `what` names it.

    Raises:
        K2Error: of type `error`, if it is not.
    """
    check_password(url, what, error)
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna"), parts.port
    except ValueError as exc:  # also for a label that no host name can have
        raise error(f"{what} {redact_url(url)}: {exc}") from exc


def check_password(url: str, what: str, error: type[K2Error]) -> None:
    """Check that no raw delimiter turns a part of a URL's password into its host.

    Raises:
        K2Error: of type `error`, if one does.
    """
    if _is_ambiguous(url):
        reason = "its user name or password has a raw / ? # or @"
        raise error(f"{what} {redact_url(url)}: {reason}", hint=_HINT)


def check_database_url(url: str, what: str, error: type[K2Error]) -> None:
    """Check that the password of a database URL, as parsed by SQLAlchemy, has no raw @.

    Raises:
        K2Error: of type `error`, if it has.
    """
    if "@" in url.partition("@")[2].partition("?")[0]:
        reason = "its user name or password has a raw @"
        raise error(f"{what} {redact_url(url)}: {reason}", hint=_HINT)


def _is_ambiguous(url: str) -> bool:
    """Return whether clients would mistake the text before a raw delimiter for the host."""
    rest = url.partition("://")[2] or url
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" not in rest[len(authority) :]:
        return False
    port = authority.rpartition(":")[2] if ":" in authority else ""
    return "@" in authority or bool(port and not port.isdigit())
