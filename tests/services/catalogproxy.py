"""A stand-in between k2 and an Iceberg REST catalog, for what catalogs do on their bad days."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from support.waiting import PATIENCE_S


class CatalogProxy(ThreadingHTTPServer):
    """Passes requests on as they are; a test may spoil it.

    The signature of a request covers the address it was sent to, which is passed on with it.
    """

    daemon_threads = True

    def __init__(self, catalog_url: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = urlsplit(catalog_url).netloc
        self.table_config: dict[str, str] = {}  # what the catalog hands out with every table
        self.loses_commit_answers = False
        self.garbles_commit_answers = False
        self.repeats_commits = False  # as a gateway that lost the first answer
        self.commits_held = threading.Event()  # clear: commits wait here, and land when it is set
        self.commits_held.set()
        self.held_commits: list[str] = []  # paths of those that had to wait
        self.late_statuses: list[int] = []  # what came of commits that nobody waited for
        self.has_late_status = threading.Event()

    @property
    def url(self) -> str:
        """The address to give to clients."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: CatalogProxy
    protocol_version = "HTTP/1.1"

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_commit = self.command == "POST" and "/tables/" in self.path
        is_late = is_commit and not self.server.commits_held.is_set()
        if is_late:
            self.server.held_commits.append(self.path)
            assert self.server.commits_held.wait(PATIENCE_S)
        if is_commit and self.server.repeats_commits:
            self._forwarded(body)
        status, answer = self._forwarded(body)
        if is_commit and self.server.garbles_commit_answers:
            answer = b"{}"
        if is_late:
            self.server.late_statuses.append(status)
            self.server.has_late_status.set()
        if is_late or (is_commit and self.server.loses_commit_answers):
            self.close_connection = True
            return
        if self.command == "GET" and "/tables/" in self.path and status == 200:
            answer = self._with_config(answer)
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_HEAD = do_DELETE = _pass_on

    def _forwarded(self, body: bytes) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.server.target, timeout=PATIENCE_S)
        try:
            connection.putrequest(
                self.command, self.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def _with_config(self, answer: bytes) -> bytes:
        document: dict[str, Any] = json.loads(answer)
        document["config"] = {**document.get("config", {}), **self.server.table_config}
        return json.dumps(document).encode()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def running_proxy(catalog_url: str) -> Iterator[CatalogProxy]:
    """Run a proxy in front of a catalog."""
    with CatalogProxy(catalog_url) as proxy:
        server = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        server.start()
        try:
            yield proxy
        finally:
            proxy.commits_held.set()
            proxy.shutdown()
            server.join()
