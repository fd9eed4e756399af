"""The profile of the config file that this run applies."""

from contextvars import ContextVar
from typing import Final

# Precedes the command, and applies to everything the command reads.
chosen_profile: Final[ContextVar[str | None]] = ContextVar("chosen_profile", default=None)
