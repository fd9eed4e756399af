"""The exchange's side of the protocol, without I/O: requests, paths, control messages, frames."""

import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import Final
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from k2cli.ingestion.symbols import Instrument

# Non-ASCII names are percent-encoded in paths, and plain in control messages.
_STREAM: Final = re.compile(r"((?:[a-z0-9_]|[^\x00-\x7f])+@|!)[a-zA-Z0-9_]+(@[a-zA-Z0-9_]+)?")


# USD-M serves its streams by route; an address without one connects, too.
_ROUTE: Final = re.compile(r"(/public|/market|/private)?(/ws|/stream)(?![a-z])")

_REQUEST_WORDS: Final = 3  # GET, path, HTTP/1.1


@dataclass(frozen=True, slots=True)
class Request:
    """The head of an HTTP request."""

    words: Sequence[bytes]  # of the request line
    path: str  # with the query; empty if this is not a request line
    lines: bytes  # the headers as received

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers by name in lower case."""
        pairs = (line.partition(":") for line in self.lines.decode("latin-1").split("\r\n"))
        return {name.strip().lower(): value.strip() for name, _, value in pairs if name}


def parse_head(head: bytes) -> Request:
    """Split the head of an HTTP request."""
    line, _, headers = head.partition(b"\r\n")
    words = line.split(b" ")
    path = words[1].decode("latin-1") if len(words) == _REQUEST_WORDS else ""
    return Request(words, path, headers)


def http_answer(body: bytes, *, status: int, headers: Mapping[str, str]) -> bytes:
    """Write an HTTP answer; its connection stays open."""
    kind = "text/html" if body.startswith(b"<") else "application/json;charset=UTF-8"
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class RefusedPath(Exception):
    """A handshake that the exchange answers with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """The streams that a handshake path requests."""

    streams: tuple[str, ...]
    is_combined: bool
    is_micros: bool
    prefix: str = ""  # of USD-M: /public, /market or /private


def parse_path(path: str, *, max_streams: int) -> Route:
    """Parse a handshake path.

    /ws/btcusdt@trade    /ws/btcusdt@trade/ethusdt@trade?timeUnit=MICROSECOND    /ws
    /stream?streams=btcusdt@trade/ethusdt@bookTicker    /stream
    /public/ws/btcusdt@trade    /market/stream?streams=btcusdt@trade

    Raises:
        RefusedPath: 404 for an unknown path, 400 for a malformed name or too many streams.
    """
    url = urlsplit(path)
    query = parse_qs(url.query)
    route = _ROUTE.match(url.path)
    prefix = route[1] or "" if route else ""
    rest = url.path.removeprefix(prefix)
    if rest == "/stream":
        names = query.get("streams", [""])[0]
    elif rest == "/ws" or rest.startswith("/ws/"):
        names = unquote(rest.removeprefix("/ws"))
    else:
        raise RefusedPath(404, f"no such path: {url.path}")
    streams = tuple(dict.fromkeys(name for name in names.split("/") if name))
    for name in streams:
        if _STREAM.fullmatch(name) is None:
            raise RefusedPath(400, f"invalid stream name: {name[:80]}")
    if len(streams) > max_streams:
        raise RefusedPath(400, f"{len(streams)} streams, at most {max_streams} per connection")
    unit = query.get("timeUnit", ["MILLISECOND"])[0].upper()
    if unit not in ("MILLISECOND", "MICROSECOND"):
        raise RefusedPath(400, f"invalid timeUnit: {unit[:80]}")
    return Route(
        streams=streams,
        is_combined=rest == "/stream",
        is_micros=unit == "MICROSECOND",
        prefix=prefix,
    )


def exchange_info(
    instruments: Sequence[Instrument], statuses: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """Build the `exchangeInfo` answer for these symbols; they trade unless they have a status.

    {"timezone":"UTC","symbols":[{"symbol":"BTCUSDT","status":"TRADING","baseAsset":"BTC",...}]}
    """
    symbols = [
        {
            "symbol": i.symbol,
            "status": statuses.get(i.symbol, "TRADING"),
            "baseAsset": i.base,
            "quoteAsset": i.quote,
        }
        for i in instruments
    ]
    return msgspec.json.encode({"timezone": "UTC", "symbols": symbols})


class RefusedRequest(Exception):
    """A control message that the exchange answers with an error."""

    def __init__(self, code: int, message: str, request_id: object = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id


def answer_control(text: bytes, streams: dict[str, None], *, max_streams: int) -> bytes:
    """Apply a control message to the subscribed streams, and return the reply.

    {"method":"SUBSCRIBE","params":["btcusdt@trade"],"id":1} -> {"result":null,"id":1}
    """
    try:
        request_id, result = _carry_out(text, streams, max_streams)
    except RefusedRequest as exc:
        reply: dict[str, object] = {"code": exc.code, "msg": str(exc), "id": exc.request_id}
    else:
        reply = {"result": result, "id": request_id}
    return msgspec.json.encode(reply)


def _carry_out(text: bytes, streams: dict[str, None], max_streams: int) -> tuple[object, object]:
    try:
        request = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise RefusedRequest(3, f"Invalid JSON: {exc}") from exc
    if not isinstance(request, dict):
        raise RefusedRequest(2, "Invalid request: expected an object")
    request_id, method = request.get("id"), request.get("method")
    if not (request_id is None or isinstance(request_id, int | str)):
        raise RefusedRequest(2, "Invalid request: request ID must be an unsigned integer")
    match method:
        case "LIST_SUBSCRIPTIONS":
            return request_id, list(streams)
        case "SUBSCRIBE" | "UNSUBSCRIBE":
            names = _stream_names(request.get("params"), request_id)
        case _:
            raise RefusedRequest(2, f"Invalid request: unknown variant {method}", request_id)
    if method == "UNSUBSCRIBE":
        for name in names:
            streams.pop(name, None)
    elif len(streams | names) > max_streams:
        raise RefusedRequest(2, f"Invalid request: more than {max_streams} streams", request_id)
    else:
        streams.update(names)
    return request_id, None


def _stream_names(params: object, request_id: object) -> dict[str, None]:
    if not isinstance(params, list) or not params:
        raise RefusedRequest(2, "Invalid request: params must be a list of streams", request_id)
    for name in params:
        if not isinstance(name, str) or _STREAM.fullmatch(name) is None:
            raise RefusedRequest(2, f"Invalid request: invalid stream {str(name)[:80]}", request_id)
    return dict.fromkeys(params)


_SIZE_IN_16_BITS: Final = 126
_SIZE_IN_64_BITS: Final = 127


def _header(size: int) -> bytes:
    """Return the header of an unmasked text frame (RFC 6455, section 5.2)."""
    if size < _SIZE_IN_16_BITS:
        return bytes((0x81, size))
    if size < 1 << 16:
        return struct.pack(">BBH", 0x81, _SIZE_IN_16_BITS, size)
    return struct.pack(">BBQ", 0x81, _SIZE_IN_64_BITS, size)


_HEADERS: Final = tuple(_header(size) for size in range(1024))


def websocket_frames(payloads: list[bytes]) -> bytes:
    """Frame payloads as consecutive text messages of a server."""
    try:
        parts = [part for payload in payloads for part in (_HEADERS[len(payload)], payload)]
    except IndexError:
        parts = [part for payload in payloads for part in (_header(len(payload)), payload)]
    return b"".join(parts)
