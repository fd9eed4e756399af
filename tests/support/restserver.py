"""A small REST API of an exchange on a port of this machine, which misbehaves on request."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from support.httpserving import serving

TRADES, AGGREGATES = "historicalTrades", "aggTrades"
_PAGE_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Request:
    """A request as it arrived."""

    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]  # names in lower case

    @property
    def endpoint(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer; `parts` are written one by one, and may never end."""

    body: object = b""  # bytes, or what becomes JSON
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    parts: Iterator[bytes] | None = None

    def encoded(self) -> bytes:
        """Return the body."""
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


Answering = Callable[[Request], Reply | None]


class RestServer:
    """Serves trades, unless `answer` replies first. All trades are of one symbol."""

    def __init__(self, trades: Sequence[Mapping[str, Any]], answer: Answering | None) -> None:
        self.trades = trades
        self.answer = answer
        self.requests: list[Request] = []
        self.url = ""

    def asked(self, endpoint: str) -> list[Request]:
        """The requests of one endpoint."""
        return [each for each in self.requests if each.endpoint == endpoint]

    def reply(self, request: Request) -> Reply:
        """Record a request and answer it."""
        self.requests.append(request)
        chosen = self.answer(request) if self.answer else None
        if chosen is not None:
            return chosen
        limit = int(request.query.get("limit", _PAGE_ROWS))
        if request.endpoint == TRADES:
            first = int(request.query["fromId"])
            return Reply([each for each in self.trades if each["id"] >= first][:limit])
        if request.endpoint == AGGREGATES:
            return Reply(self._aggregates(request.query, limit))
        return Reply({"code": -1, "msg": "unknown path"}, 404)

    def _aggregates(self, query: Mapping[str, str], limit: int) -> list[dict[str, Any]]:
        rows = aggregates_of(self.trades)
        if "fromId" in query:
            return [each for each in rows if each["a"] >= int(query["fromId"])][:limit]
        if "startTime" in query:
            start, end = int(query["startTime"]), int(query["endTime"])
            return [each for each in rows if start <= _ms(each["T"]) <= end][:limit]
        return rows[-limit:]


def aggregates_of(trades: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Aggregate consecutive trades of the same time."""
    rows: list[dict[str, Any]] = []
    for each in trades:
        last = rows[-1] if rows else None
        if last is not None and (last["l"], last["T"]) == (each["id"] - 1, each["time"]):
            last["l"] = each["id"]
        else:
            row = {"a": len(rows) + 5000, "f": each["id"], "l": each["id"], "T": each["time"]}
            rows.append({**row, "p": each["price"], "q": each["qty"], "m": each["isBuyerMaker"]})
    return rows


def _ms(time: int) -> int:
    return time // 1000 if time >= 10**15 else time


@contextmanager
def rest_server(
    trades: Sequence[Mapping[str, Any]] = (), answer: Answering | None = None
) -> Iterator[RestServer]:
    """Run a server in a thread."""
    rest = RestServer(trades, answer)

    def respond(handler: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(handler.path)
        names = {name.lower(): value for name, value in handler.headers.items()}
        _write(handler, rest.reply(Request(parts.path, dict(parse_qsl(parts.query)), names)))

    with serving(respond) as rest.url:
        yield rest


def _write(handler: BaseHTTPRequestHandler, reply: Reply) -> None:
    try:
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        if reply.parts is None:
            handler.send_header("Content-Length", str(len(reply.encoded())))
        handler.end_headers()
        for part in reply.parts or [reply.encoded()]:
            handler.wfile.write(part)
    except OSError:
        pass  # the client has given up
