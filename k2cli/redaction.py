"""Hide secrets in all output for people and log collectors.

It hides what looks like a secret (the password of a URL, the value after `password=`), and the
secrets that this process was configured with, in any form.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import quote, unquote

HIDDEN: Final = "********"
_WORDS: Final = (
    r"secret|password|passwd|pwd|token|credential|access[-_.]?key|api[-_.]?key|user[-_.]info"
    r"|ssl[-_.]key|authorization|jaas|signature"
)
_NAME_CHARS: Final = "{0,100}"  # bounded, for linear time
_SECRET_KEY = re.compile(rf"{_WORDS}|^header\.", re.IGNORECASE)
# Up to the last @ of the value, because a password may itself contain / : ? # and @.
_URL_PASSWORD = re.compile(r"(\A|://)([^:\s]*):(?!//)(.+)@", re.DOTALL)
# The same within a text, in which a URL ends at a space or a quote, and a port is not a password.
_TEXT_PASSWORD = re.compile(
    r"(?<=://)([^:\s\"'<>]*):(?!\d+[/?#])((?:(?!://)[^\s\"'<>])+)@", re.DOTALL
)
_URL_QUERY = re.compile(
    rf"([?&;#][^=&;#?\s\"']{_NAME_CHARS}(?:{_WORDS})[^=&;#?\s\"']{_NAME_CHARS}=)([^&#\s\"'<>]+)",
    re.IGNORECASE,
)
# password=x, password = "x y", sasl.password:x and "password": "x"; not "password: it is wrong".
_ASSIGNED = re.compile(
    rf"((?:{_WORDS})[\w.\-]{_NAME_CHARS}(?:\s?=\s?|:(?=[^\s/])|[\"']\s?:\s?(?=[\"'])))"
    r"(\"[^\"]*\"|'[^']*'|[^\s,;&\"'<>]+)",
    re.IGNORECASE,
)
_LISTED = re.compile(r",(?=[\w+.\-]+://)")  # between the URLs of a list
_SHORTEST: Final = 4  # shortest secret that is searched by value
_DISTINCT: Final = 8  # from this length on also within words
_PLAIN: Final = frozenset({"true", "false", "none", "null"})

_known: tuple[re.Pattern[str], ...] = ()  # of this process; see `remember_secrets`


def is_secret(key: str) -> bool:
    """Return whether a setting's value must never be shown, judging by its name."""
    return _SECRET_KEY.search(key) is not None


def redact_setting(key: str, value: str) -> str:
    """Return a setting's value with its secrets hidden."""
    if is_secret(key):
        return HIDDEN
    return hide_secrets(redact_url(value))


def split_urls(value: str) -> list[str]:
    """Split a list of URLs at its commas, but not at one within a password."""
    return _LISTED.split(value)


def redact_url(value: str) -> str:
    """Return one or more comma-separated URLs with passwords hidden; the same in every process."""
    urls = (_URL_PASSWORD.sub(rf"\1\2:{HIDDEN}@", url) for url in split_urls(value))
    return _URL_QUERY.sub(rf"\1{HIDDEN}", ",".join(urls))


def hide_secrets(text: str) -> str:
    """Return a text (a message, a log line) with the secrets in it hidden."""
    for pattern in _known:
        text = pattern.sub(HIDDEN, text)
    if "@" in text:
        text = _TEXT_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    if "=" in text or ":" in text:
        text = _ASSIGNED.sub(rf"\1{HIDDEN}", _URL_QUERY.sub(rf"\1{HIDDEN}", text))
    return text


def hide_in_value(value: object) -> object:
    """Return a JSON-like value with the secrets in its strings hidden; keys are unchanged."""
    if isinstance(value, str):
        return hide_secrets(value)
    if isinstance(value, Mapping):
        return {key: hide_in_value(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [hide_in_value(each) for each in value]
    if isinstance(value, BaseException):
        return hide_secrets(str(value))
    return value


def remember_secrets(settings: Mapping[str, str]) -> None:
    """Make `hide_secrets` hide the secrets in these settings from now on."""
    global _known  # noqa: PLW0603
    secrets = {form for key, value in settings.items() for form in _forms_of_all(key, value)}
    old = {pattern.pattern for pattern in _known}
    added = {_pattern(secret) for secret in secrets if _is_distinct(secret)} - old
    _known = tuple(map(re.compile, sorted(old | added, key=lambda each: (-len(each), each))))


def _forms_of_all(key: str, value: str) -> Iterator[str]:
    for user, secret in _credentials(key, value):
        yield from (secret, unquote(secret), quote(secret, safe=""))
        if user is not None:  # as in an Authorization header
            pair = f"{unquote(user)}:{unquote(secret)}"
            yield base64.b64encode(pair.encode(errors="surrogateescape")).decode()


def _credentials(key: str, value: str) -> Iterator[tuple[str | None, str]]:
    """Yield the user, if any, and the secret of all credentials in a setting."""
    if is_secret(key):
        yield None, value
        user, sign, password = value.partition(":")
        if sign and "info" in key:  # basic.auth.user.info
            yield user, password
        return
    for url in split_urls(value):
        if found := _URL_PASSWORD.search(url):
            yield found[2], found[3]
    for found in _URL_QUERY.finditer(value):
        yield None, found[2]


def _is_distinct(secret: str) -> bool:
    return len(secret) >= _SHORTEST and secret.lower() not in _PLAIN


def _pattern(secret: str) -> str:
    escaped = re.escape(secret)
    return escaped if len(secret) >= _DISTINCT else rf"(?<![A-Za-z0-9]){escaped}(?![A-Za-z0-9])"
