"""The HTTP server of a run: metrics for Prometheus, and probes for orchestrators.

- `/metrics`: the metrics in Prometheus' text format
- `/livez`: 200 as long as the process answers
- `/readyz`: 200 if the run is ready, else 503 with a reason per line
"""

import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from socketserver import ThreadingMixIn
from threading import Thread
from typing import TYPE_CHECKING
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from k2cli.commands.options import Address
from k2cli.errors import Unavailable

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

Unready = Callable[[], Sequence[str]]  # why a run is not ready; nothing if it is


@contextmanager
def serving(address: Address, registry: CollectorRegistry, unready: Unready) -> Iterator[str]:
    """Serve until the block ends, on exactly this address; yield the URL without a path.

    Raises:
        Unavailable: the address is not available.
    """
    try:
        server = make_server(
            address.host,
            address.port,
            _application(registry, unready),
            server_class=_server_class(address),
            handler_class=_QuietHandler,
        )
    except (OSError, UnicodeError) as exc:  # an invalid host name is a UnicodeError
        raise Unavailable(
            f"cannot serve metrics on {address}: {exc}",
            hint="stop the server there, or choose a free port with --metrics 127.0.0.1:0",
        ) from exc
    thread = Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    try:
        yield f"http://{Address(address.host, server.server_port)}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _application(registry: CollectorRegistry, unready: Unready) -> "WSGIApplication":
    metrics: WSGIApplication = make_wsgi_app(registry)

    def application(environ: "WSGIEnvironment", start: "StartResponse") -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start)
        if path == "/livez":
            return _answer(start, HTTPStatus.OK, ["ok"])
        if path == "/readyz":
            reasons = unready()
            status = HTTPStatus.SERVICE_UNAVAILABLE if reasons else HTTPStatus.OK
            return _answer(start, status, reasons or ["ok"])
        return _answer(start, HTTPStatus.NOT_FOUND, ["/metrics, /livez or /readyz"])

    return application


def _answer(start: "StartResponse", status: HTTPStatus, lines: Sequence[str]) -> Iterable[bytes]:
    start(f"{status.value} {status.phrase}", [("Content-Type", "text/plain; charset=utf-8")])
    return ["".join(f"{line}\n" for line in lines).encode()]


class _Server(ThreadingMixIn, WSGIServer):
    """Answers each client in a thread of its own, so that a slow one does not delay the others."""

    daemon_threads = True


def _server_class(address: Address) -> type[_Server]:
    """Return the server class for the family of an address, IPv4 or IPv6."""
    found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    return type("_Server", (_Server,), {"address_family": found[0][0]})


class _QuietHandler(WSGIRequestHandler):
    timeout = 30  # seconds, for a client that sends nothing

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: stderr belongs to the run."""
