"""The errors that k2 expects and shows, each with its exit code.

K2Error
 ├─ UsageError   2  a wrong option or argument
 ├─ ConfigError  3  a setting is missing or wrong
 ├─ NotFound     4  a table, snapshot, symbol or file that does not exist
 ├─ Exists       4  something to be created that already exists
 ├─ Unavailable  5  exchange, catalog or disk refused or timed out; a retry may help
 ├─ BadData      6  input or schema does not fit; more rejects than allowed
 └─ Conflict     7  another writer won too often; a retry may help

Any other exception is a bug and ends with a traceback and exit code 1.
"""

from typing import ClassVar

from k2cli.redaction import hide_secrets


class K2Error(Exception):
    """Base of all expected failures. `hint` names the command or setting that fixes it.

    Secrets in both are redacted here, including those in texts of libraries.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(hide_secrets(message))
        self.hint = hint and hide_secrets(hint)


class UsageError(K2Error):
    """An option or argument is wrong."""

    exit_code = 2


class ConfigError(K2Error):
    """A setting is missing or wrong; the message names the key and its origin."""

    exit_code = 3


class NotFound(K2Error):
    """The requested object does not exist."""

    exit_code = 4


class Exists(K2Error):
    """The object to be created already exists."""

    exit_code = 4


class Unavailable(K2Error):
    """Something outside k2 refused or did not answer; the same command may work later."""

    exit_code = 5


class BadData(K2Error):
    """Input or stored data does not fit."""

    exit_code = 6


class Conflict(K2Error):
    """Another writer won too often, or holds the lock."""

    exit_code = 7
