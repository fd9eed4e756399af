"""One WebSocket connection to a server of an exchange.

The messages of each read from the network are passed on together, with one receive time. Reads are
small, so a flood of tiny frames cannot occupy the event loop. This is the only ingestion module
that opens WebSockets.
"""

import asyncio
import base64
import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from http import HTTPStatus
from typing import Final, NamedTuple
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from picows import (
    WSCloseCode,
    WSError,
    WSFrame,
    WSInvalidStatusError,
    WSListener,
    WSMsgType,
    WSProtocolError,
    WSTransport,
    ws_connect,
)
from python_socks import ProxyError

from k2cli.events import Cause
from k2cli.ingestion.proxies import socks_connector

READ_BYTES: Final = 32 * 1024
MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_UNSENT_MAX_BYTES: Final = 1024 * 1024  # of pongs that the exchange does not read
_MAX_REDIRECTS: Final = 2  # they do not count as attempts
_CLOSE_S: Final = 0.3  # for the closing handshake
_THROTTLED: Final = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.IM_A_TEAPOT,  # "banned for a while", at some exchanges
)
_RETRIED: Final = (HTTPStatus.REQUEST_TIMEOUT, *_THROTTLED)
_MAX_RETRY_AFTER_S: Final = 3600.0
_COMPRESSED: Final = "the exchange sent compressed frames that were not asked for"

_LOGGER: Final = logging.getLogger(f"{__name__}.picows")
_LOGGER.setLevel(logging.CRITICAL + 1)  # it logs errors that it also raises


class Ending(NamedTuple):
    """Why a connection ended."""

    cause: Cause
    reason: str  # for people


class Refused(ConnectionError):
    """The server answered the opening request with an HTTP status instead of a WebSocket."""

    def __init__(self, status: int, retry_after: str = "") -> None:
        super().__init__(f"the server refuses the connection: HTTP {status}")
        self.status: Final = status
        self._retry_after = retry_after

    @property
    def is_final(self) -> bool:
        """Return whether another attempt is pointless, as after a redirect to another server."""
        is_refused = HTTPStatus.MULTIPLE_CHOICES <= self.status < HTTPStatus.INTERNAL_SERVER_ERROR
        return is_refused and self.status not in _RETRIED

    @property
    def retry_after_s(self) -> float:
        """Return how many seconds a throttling server asked clients to wait, or 0."""
        text = self._retry_after
        if self.status not in _THROTTLED or not (text.isascii() and text.isdecimal()):
            return 0.0
        return min(float(text), _MAX_RETRY_AFTER_S)


class Connection(WSListener):
    """A connection that passes messages on as they arrive, without queueing them.

    It reads on after `start`. `received_ns` (UTC) and `last_data_s` are the times of the last data,
    pings included; `last_message_s` is the time of the last message. Times in seconds are those of
    `clock`.
    """

    def __init__(
        self,
        *,
        take: Callable[["Connection", list[bytes]], None],
        clock: Callable[[], float],
    ) -> None:
        self.is_paused = False
        self.received_ns = 0
        self.last_data_s = clock()
        self.last_message_s: float | None = None
        self._take = take
        self._clock = clock
        self._transport: WSTransport | None = None
        self._messages: list[bytes] = []  # of the current read
        self._fragments: bytearray | None = None  # of an incomplete message
        self._ending: Ending | None = None

    async def open(self, url: str, *, proxy: str | None, timeout_s: float) -> None:
        """Connect; follow redirects only within the server.

        Raises:
            Refused: an HTTP status instead of a WebSocket.
            OSError: no connection, a wrong answer, or a proxy that refuses.
            TimeoutError: it took too long.
        """
        try:
            async with asyncio.timeout(timeout_s):
                for _ in range(1 + _MAX_REDIRECTS):
                    target = await self._connect(url, proxy, timeout_s)
                    if target is None:
                        return
                    url = target
                raise ConnectionError("too many redirects")
        except TimeoutError as exc:
            raise TimeoutError(str(exc) or f"no answer within {timeout_s:g} s") from exc
        except (WSError, ProxyError) as exc:
            raise ConnectionError(str(exc)) from exc
        except UnicodeError as exc:  # a label that no host name can have
            raise ConnectionError(f"not a host name: {exc}") from exc

    async def _connect(self, url: str, proxy: str | None, timeout_s: float) -> str | None:
        """Connect, or return the URL of the same server to which it redirects."""
        bare, headers = _without_user(url)
        connect = socks_connector(proxy)
        try:
            await _finished(
                ws_connect(
                    lambda: self,
                    bare,
                    websocket_handshake_timeout=timeout_s,
                    logger_name=_LOGGER,
                    enable_auto_pong=False,  # it would hide that a ping ends a read
                    max_frame_size=MAX_MESSAGE_BYTES,
                    extra_headers=headers,
                    max_redirects=0,
                    proxy=None if connect else proxy,
                    socket_factory=connect,
                    read_buffer_init_size=READ_BYTES,
                )
            )
        except WSInvalidStatusError as exc:
            answer = exc.response
            status, fields = (int(answer.status), answer.headers) if answer else (0, {})
            target = _redirected(url, status, fields.get("Location", ""))
            if target is None:
                raise Refused(status, fields.get("Retry-After", "")) from exc
            return target
        if self._transport is None:  # picows reports no error for this
            raise ConnectionResetError("the connection was closed before the handshake ended")
        return None

    def start(self) -> None:
        """Pass messages on, first those that came with the handshake, and read on."""
        self.end_read()
        if not self.is_paused:
            self._opened.underlying_transport.resume_reading()

    def send(self, message: str) -> None:
        """Send a text message."""
        self._opened.send(WSMsgType.TEXT, message)

    async def wait_closed(self) -> Ending:
        """Wait until the connection is closed, and return why."""
        try:
            await self._opened.wait_disconnected()
        except WSError as exc:
            self._end("error", str(exc))
        return self._ending or Ending("closed", "the connection was closed")

    def _end(self, cause: Cause, reason: str) -> None:
        """Note why it ends; the first reason counts."""
        self._ending = self._ending or Ending(cause, reason)

    async def close(self) -> None:
        """Close it quickly, even if the exchange does not respond."""
        transport = self._transport
        if transport is None:
            return
        try:
            transport.send_close(WSCloseCode.OK)
            with suppress(TimeoutError, WSError):
                async with asyncio.timeout(_CLOSE_S):
                    await transport.wait_disconnected()
        finally:
            transport.disconnect(graceful=False)

    def abort(self, cause: Cause, reason: str) -> None:
        """Close it at once, for this reason."""
        self._end(cause, reason)
        self._opened.disconnect(graceful=False)

    def pause(self) -> None:
        """Stop reading from the network, so that the exchange feels the back-pressure."""
        self.is_paused = True
        self._opened.underlying_transport.pause_reading()

    def resume(self) -> None:
        """Resume reading."""
        self.is_paused = False
        self.last_data_s = self.last_message_s = self._clock()
        if not self._opened.is_disconnected:
            self._opened.underlying_transport.resume_reading()

    @property
    def is_closed(self) -> bool:
        """Return whether the connection is closed, once it was open."""
        return self._opened.is_disconnected

    @property
    def _opened(self) -> WSTransport:
        assert self._transport is not None, "not open yet"
        return self._transport

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Read no more until `start`. The current read may contain messages, too."""
        self._transport = transport
        self.begin_read()
        connected = transport.underlying_transport
        connected.set_protocol(_Reads(connected.get_protocol(), self))
        connected.pause_reading()

    def begin_read(self) -> None:
        """Set the receive time of the messages that follow."""
        self.received_ns = time.time_ns()
        self.last_data_s = self._clock()

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Keep a message until the end of the read, and answer pings."""
        kind = frame.msg_type
        if kind is WSMsgType.TEXT or kind is WSMsgType.BINARY:
            if frame.fin and self._fragments is None and not frame.rsv1:
                self._messages.append(frame.get_payload_as_bytes())
            else:
                self._add_fragment(frame, is_first=True)
        elif kind is WSMsgType.CONTINUATION:
            self._add_fragment(frame, is_first=False)
        elif kind is WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif kind is WSMsgType.CLOSE:
            self._end("closed", _farewell(frame))
            transport.send_close(frame.get_close_code())
            transport.disconnect()

    def _add_fragment(self, frame: WSFrame, *, is_first: bool) -> None:
        if frame.rsv1:
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, _COMPRESSED)
        if is_first is (self._fragments is not None):
            raise WSProtocolError(WSCloseCode.PROTOCOL_ERROR, "a fragment out of order")
        fragments = bytearray() if self._fragments is None else self._fragments
        fragments += frame.get_payload_as_memoryview()
        if len(fragments) > MAX_MESSAGE_BYTES:
            raise WSProtocolError(WSCloseCode.MESSAGE_TOO_BIG, "a message is too long")
        self._fragments = None if frame.fin else fragments
        if frame.fin:
            self._messages.append(bytes(fragments))

    def end_read(self) -> None:
        """Pass the messages of the read on."""
        transport = self._opened.underlying_transport
        if transport.get_write_buffer_size() > _UNSENT_MAX_BYTES:
            self.abort("error", "the exchange does not read the replies to its pings")
        if self._messages:
            self.last_message_s = self.last_data_s
            messages, self._messages = self._messages, []
            self._take(self, messages)

    def lost(self, exc: Exception | None) -> None:
        """Note why the network connection was lost."""
        if exc is not None:
            self._end("error", str(exc) or type(exc).__name__)

    def pause_writing(self) -> None:
        """Do nothing: `end_read` checks the size of the buffer."""

    def resume_writing(self) -> None:
        """Do nothing."""


class _Reads(asyncio.BufferedProtocol):
    """Limits the size of each read, and tells the connection where it begins and ends."""

    def __init__(self, frames: asyncio.BaseProtocol, connection: Connection) -> None:
        assert isinstance(frames, asyncio.BufferedProtocol)
        self._frames = frames
        self._connection = connection

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._frames.get_buffer(sizehint))[:READ_BYTES]

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.begin_read()
        self._frames.buffer_updated(nbytes)
        self._connection.end_read()

    def eof_received(self) -> bool | None:
        return self._frames.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.lost(exc)
        self._frames.connection_lost(exc)

    def pause_writing(self) -> None:
        self._frames.pause_writing()

    def resume_writing(self) -> None:
        self._frames.resume_writing()


async def _finished(opening: Coroutine[object, object, object]) -> None:
    """Run this; if cancelled, give the handshake time to end, or its socket would stay open."""
    task = asyncio.ensure_future(opening)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task], timeout=_CLOSE_S)
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        task.cancel()
        raise


def _without_user(url: str) -> tuple[str, Sequence[tuple[str, str]]]:
    """Move the user name and password of a URL to a header."""
    parts = urlsplit(url)
    if parts.username is None:
        return url, ()
    user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    header = f"Basic {base64.b64encode(user.encode()).decode()}"
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    return bare, [("Authorization", header)]


def _redirected(url: str, status: int, location: str) -> str | None:
    """Return where a redirect leads, if that is on the same server."""
    is_redirect = HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST
    if not is_redirect or not location:
        return None
    try:
        target = urljoin(url, location)
        return target if _server(target) == _server(url) else None
    except ValueError:  # not a URL
        return None


def _server(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "wss" else 80)


def _farewell(frame: WSFrame) -> str:
    """Say how the exchange closed the connection."""
    code = frame.get_close_code()
    number = getattr(code, "value", code)
    if not number:
        return "the exchange closed the connection"
    reason = (frame.get_close_message() or b"").decode("utf-8", "replace")
    return f"the exchange closed the connection: {number} {reason}".rstrip()
