"""What all requests to a REST API share: the check of its URL, TLS, and the limit of an answer."""

import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from k2cli.errors import UsageError
from k2cli.urls import check_url

STEP_TIMEOUT_S: Final = 10.0  # to connect, and between two reads


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """The clocks of requests, and their time limit."""

    utc: Callable[[], float] = time.time  # seconds since 1970
    monotonic: Callable[[], float] = time.monotonic
    timeout_s: float = 30.0  # of a request, in total


def check_rest_url(base: str) -> None:
    """Check the base of a REST API.

    Raises:
        UsageError: it is not an http:// or https:// URL of a server.
    """
    check_url(base, "the REST URL", UsageError)
    parts = urlsplit(base)
    is_base = parts.scheme in ("http", "https") and parts.hostname and not parts.query
    if not is_base or parts.port == 0:
        raise UsageError(f"{base!r} is not a REST URL", hint="write https://api.binance.com")


def tls_context() -> ssl.SSLContext:
    """Return the system's authorities, or those in SSL_CERT_FILE, as the stream uses them."""
    return ssl.create_default_context()


class Answer:
    """The decompressed body of an answer, of limited size."""

    def __init__(self, most_bytes: int) -> None:
        self.body: Final = bytearray()
        self._most_bytes = most_bytes

    def add(self, part: bytes) -> None:
        """Append the next part.

        Raises:
            ValueError: the body is too large.
        """
        self.body.extend(part)
        if len(self.body) > self._most_bytes:
            raise ValueError(f"the answer is larger than {self._most_bytes >> 20} MB")
