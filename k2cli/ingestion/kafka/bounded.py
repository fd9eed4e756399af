"""Limit the size and duration of HTTP answers: a server may be broken or hostile.

httpx has a timeout per read, so a server that sends a byte now and then never times out. Here a
thread has a deadline while it sends a request and reads the answer, headers included, and every
socket read waits until then at most. Compressed answers are refused: a few bytes could expand to
gigabytes.
"""

import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx2

MAX_BYTES: Final = 8 << 20


def bound_client(client: httpx2.Client, *, timeout_s: float) -> None:
    """Limit all answers that a client receives to `MAX_BYTES` and `timeout_s`.

    Answers that are late, too large or compressed raise an `httpx2.TransportError`.
    """
    # httpx accepts a transport, but then ignores the proxies of the environment, and its own
    # transport accepts no network backend. So both are replaced in place.
    client._transport = _BoundedTransport(client._transport, timeout_s)  # noqa: SLF001
    mounts = client._mounts  # noqa: SLF001
    for pattern, transport in mounts.items():
        mounts[pattern] = transport and _BoundedTransport(transport, timeout_s)
    client.headers["Accept-Encoding"] = "identity"


class _Deadline(threading.local):
    """The deadline of the answer that this thread waits for."""

    at: float = 0.0  # monotonic

    def left_s(self) -> float:
        left = self.at - time.monotonic()
        if left <= 0:
            raise httpx2.ReadTimeout("timed out")
        return left


class _BoundedTransport(httpx2.BaseTransport):
    def __init__(self, inner: httpx2.BaseTransport, timeout_s: float) -> None:
        self._inner = inner
        self._timeout_s = timeout_s
        self._deadline = _Deadline()
        pool: Any = inner._pool  # type: ignore[attr-defined]  # noqa: SLF001
        pool._network_backend = _Bounded(pool._network_backend, self._deadline)  # noqa: SLF001

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self._deadline.at = time.monotonic() + self._timeout_s
        response = self._inner.handle_request(request)
        encoding = response.headers.get("Content-Encoding", "identity")
        if encoding.lower() != "identity":
            response.close()
            raise httpx2.RemoteProtocolError(f"the answer is compressed ({encoding})")
        response.stream = _BoundedStream(response.stream)
        return response

    def close(self) -> None:
        self._inner.close()


class _BoundedStream(httpx2.SyncByteStream):
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._inner:
            size += len(part)
            if size > MAX_BYTES:
                raise httpx2.RemoteProtocolError(f"the answer exceeds {MAX_BYTES >> 20} MiB")
            yield part

    def close(self) -> None:
        self._inner.close()


class _Bounded:
    """A network backend of httpcore, or a connection that it made, with a deadline."""

    def __init__(self, inner: Any, deadline: _Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def connect_tcp(self, *args: Any, timeout: float | None = None, **more: Any) -> "_Bounded":
        made = self._inner.connect_tcp(*args, timeout=self._wait_s(timeout), **more)
        return _Bounded(made, self._deadline)

    def start_tls(self, *args: Any, timeout: float | None = None, **more: Any) -> "_Bounded":
        made = self._inner.start_tls(*args, timeout=self._wait_s(timeout), **more)
        return _Bounded(made, self._deadline)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data: bytes = self._inner.read(max_bytes, timeout=self._wait_s(timeout))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, timeout=self._wait_s(timeout))

    def _wait_s(self, timeout: float | None) -> float:
        left = self._deadline.left_s()
        return left if timeout is None else min(left, timeout)
