"""The errors that k2 means to show, each with the exit code of its kind.

K2Error
 ├─ UsageError   2  a wrong option or argument
 ├─ ConfigError  3  a setting is missing or wrong
 ├─ NotFound     4  a table, snapshot, symbol or file that is not there
 ├─ Exists       4  something to be created that exists already
 ├─ Unavailable  5  exchange, catalog or disk refused or timed out; worth a retry
 ├─ BadData      6  input or schema does not fit; more rejects than allowed
 └─ Conflict     7  another writer won too often; worth a retry

Whatever else is raised is a bug: it ends in a traceback and exit code 1.
"""

from typing import ClassVar

from k2cli.redaction import hide_secrets


class K2Error(Exception):
    """Base of all expected failures. `hint` names the command or setting that fixes it.

    Secrets in either are hidden here, whatever library's text they came with.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(hide_secrets(message))
        self.hint = hint and hide_secrets(hint)


class UsageError(K2Error):
    """An option or argument that cannot be right."""

    exit_code = 2


class ConfigError(K2Error):
    """A setting is missing or wrong; the message names the key and where it came from."""

    exit_code = 3


class NotFound(K2Error):
    """What was asked for does not exist."""

    exit_code = 4


class Exists(K2Error):
    """What was to be created exists already."""

    exit_code = 4


class Unavailable(K2Error):
    """Something outside k2 refused or did not answer; the same command may work later."""

    exit_code = 5


class BadData(K2Error):
    """Input or stored data that does not fit."""

    exit_code = 6


class Conflict(K2Error):
    """Another writer won too often, or holds the lock."""

    exit_code = 7
