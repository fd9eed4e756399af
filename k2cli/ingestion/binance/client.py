"""Requests to the REST API: servers in failover order, a budget, retries, and pauses.

| answer | what follows |
| --- | --- |
| 429, 418 | no requests to any server for as long as the exchange says |
| 403 | no requests to this server for some minutes; the others are tried |
| 404, 405, 410, 501 | the server does not offer the endpoint; the others are tried |
| 5xx, an invalid answer, none at all | the request is repeated, with the next server |
| another error that the exchange reports | the request is refused |

The limits of 429 and 418 are those of an IP address, which all servers of an exchange share.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx2
import stamina
from stamina import instrumentation

from k2cli.ingestion.binance.answers import InvalidAnswer, parse_error
from k2cli.ingestion.binance.budget import WeightBudget
from k2cli.ingestion.binance.http import STEP_TIMEOUT_S, Answer, Timing, tls_context
from k2cli.ingestion.binance.restapi import KeyUse, RestApi
from k2cli.ingestion.history import HistoryRefused, HistoryUnavailable
from k2cli.redaction import hide_secrets

T = TypeVar("T")

# What a request may raise, its answer included.
FAILURES: Final = (
    httpx2.HTTPError,
    httpx2.InvalidURL,
    httpx2.StreamError,
    OSError,
    ValueError,
)
TRADES_ENDPOINT: Final = "historicalTrades"
AGGREGATES_ENDPOINT: Final = "aggTrades"
_MAX_BYTES: Final = 5 << 20  # of a decompressed answer; 1000 trades have about 200 kB
_ATTEMPTS: Final = 5  # at least, and two for each server
_FIRST_WAIT_S: Final = 0.5
_LONGEST_WAIT_S: Final = 10.0
_FAILED_FOR_S: Final = 60.0  # how long other servers are preferred to one that failed
_LIMITED_S: Final = 60.0  # for 429 without Retry-After: the limit is one per minute
_BANNED_S: Final = 300.0  # for 418 without Retry-After, and for 403
_LONGEST_BAN_S: Final = 3 * 86_400.0
_NOT_OFFERED: Final = frozenset({404, 405, 410, 501})
_OK: Final = 200
_UNAUTHORIZED: Final = 401
_FIREWALL: Final = 403
_BANNED: Final = 418
_LIMITED: Final = 429
_CLIENT_ERRORS: Final = range(400, 500)
_MAX_DIGITS: Final = 9
# The exchange failed, or does not know whether it did: a GET is repeated.
_TRANSIENT_CODES: Final = frozenset({-1000, -1001, -1004, -1006, -1007, -1008, -1016})
_KEY_CODES: Final = frozenset({-1002, -2008, -2014, -2015})
# By default stamina logs every retry to stderr, and counts them in the process's metrics.
instrumentation.set_on_retry_hooks(())


class NotOffered(HistoryRefused):
    """No server offers an endpoint."""


class Refused(HistoryRefused):
    """The exchange refuses a request; `code` is its error code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code: Final = code


class _Failed(Exception):
    """A request that is repeated; the text is the reason."""


@dataclass(slots=True, eq=False)
class _Server:
    base: str
    name: str  # for people
    failed_until_s: float = 0.0  # others are preferred
    blocked_until_s: float = 0.0  # it wants no requests
    not_offered: set[str] = field(default_factory=set)  # endpoints


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Pause:
    """No server is asked until then."""

    until_s: float
    reason: str
    is_banned: bool


class RestClient:
    """Asks the servers of one REST API. Use it within one event loop."""

    def __init__(
        self,
        *,
        api: RestApi,
        bases: Sequence[str],
        api_key: str | None,
        timing: Timing,
    ) -> None:
        """Prepare a client; `api_key` is sent only to the endpoint that needs it."""
        self._api = api
        self._headers = {"X-MBX-TIME-UNIT": "MICROSECOND"} if api.has_microseconds else {}
        self._api_key = None if api.key_use is KeyUse.NEVER else api_key
        self._timing = timing
        self._clock = timing.monotonic
        self._servers = [_Server(base.rstrip("/"), _name(base)) for base in bases]
        self._weights: Final = {
            TRADES_ENDPOINT: api.trades_weight,
            AGGREGATES_ENDPOINT: api.aggregates_weight,
        }
        largest = max(self._weights.values())
        share = api.weight_per_minute // 2
        self._budget = WeightBudget(share, largest=largest, clock=timing.utc)
        self._pause = _Pause(0.0, "", is_banned=False)
        try:
            self._http = httpx2.AsyncClient(verify=tls_context(), timeout=STEP_TIMEOUT_S)
        except (ValueError, httpx2.InvalidURL) as exc:  # the environment's proxy
            raise HistoryRefused(hide_secrets(f"no connection is possible: {exc}")) from exc

    async def get(
        self, endpoint: str, parameters: Mapping[str, str | int], parse: Callable[[bytes], T]
    ) -> T:
        """Request an endpoint until there is an answer that `parse` accepts, and return that.

        Raises:
            HistoryUnavailable: no such answer after some attempts, or the exchange wants none.
            NotOffered, HistoryRefused: repeating the request is pointless.
        """
        try:
            async for attempt in stamina.retry_context(
                on=_Failed,
                attempts=max(_ATTEMPTS, 2 * len(self._servers)),
                timeout=None,
                wait_initial=_FIRST_WAIT_S,
                wait_max=_LONGEST_WAIT_S,
            ):
                with attempt:
                    return await self._ask(endpoint, parameters, parse)
        except _Failed as exc:
            raise HistoryUnavailable(str(exc)) from exc
        raise AssertionError("the last attempt returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _ask(
        self, endpoint: str, parameters: Mapping[str, str | int], parse: Callable[[bytes], T]
    ) -> T:
        """Request an endpoint once, from the best server."""
        self._server(endpoint)  # refuses before any budget is spent
        await self._budget.spend(self._weights[endpoint])
        server = self._server(endpoint)  # other requests may have failed in the meantime
        response = await self._send(server, endpoint, parameters)
        used = response.headers.get("x-mbx-used-weight-1m", "")
        if _is_number(used):
            self._budget.correct(int(used))
        if response.status != _OK:
            raise self._failure(server, endpoint, response)
        try:
            parsed = parse(response.body)
        except InvalidAnswer as exc:
            raise self._failed(server, f"the answer is invalid: {exc}") from exc
        server.failed_until_s = 0.0
        return parsed

    def _server(self, endpoint: str) -> _Server:
        """Return the first server that is expected to answer.

        Raises:
            HistoryUnavailable: no server may be asked now.
            NotOffered: no server offers the endpoint.
        """
        now_s = self._clock()
        if now_s < self._pause.until_s:
            raise HistoryUnavailable(
                self._pause.reason,
                retry_in_s=self._pause.until_s - now_s,
                is_banned=self._pause.is_banned,
            )
        offering = [each for each in self._servers if endpoint not in each.not_offered]
        if not offering:
            names = ", ".join(each.name for each in self._servers)
            raise NotOffered(f"{names}: {endpoint} is not offered")
        open_servers = [each for each in offering if each.blocked_until_s <= now_s]
        if not open_servers:
            soonest = min(offering, key=lambda each: each.blocked_until_s)
            raise HistoryUnavailable(
                f"{soonest.name} refuses requests from this address (HTTP 403)",
                retry_in_s=soonest.blocked_until_s - now_s,
                is_banned=True,
            )
        return min(open_servers, key=lambda each: max(each.failed_until_s, now_s))

    async def _send(
        self, server: _Server, endpoint: str, parameters: Mapping[str, str | int]
    ) -> _Response:
        url = f"{server.base}{self._api.path}/{endpoint}"
        headers = dict(self._headers)
        if self._api_key and endpoint == TRADES_ENDPOINT:
            headers["X-MBX-APIKEY"] = self._api_key
        answer = Answer(_MAX_BYTES)
        try:
            async with (
                asyncio.timeout(self._timing.timeout_s),
                self._http.stream("GET", url, params=parameters, headers=headers) as response,
            ):
                async for part in response.aiter_bytes():
                    answer.add(part)
        except TimeoutError as exc:
            raise self._failed(server, f"no answer within {self._timing.timeout_s:g} s") from exc
        except FAILURES as exc:
            raise self._failed(server, str(exc) or type(exc).__name__) from exc
        return _Response(response.status_code, response.headers, bytes(answer.body))

    def _failed(self, server: _Server, reason: str) -> _Failed:
        """Prefer other servers to one that failed."""
        server.failed_until_s = self._clock() + _FAILED_FOR_S
        return _Failed(hide_secrets(f"{server.name}: {reason}"))

    def _failure(self, server: _Server, endpoint: str, response: _Response) -> Exception:
        """Return the error for an answer other than 200, after taking note of it."""
        status = response.status
        error = parse_error(response.body)
        said = f"HTTP {status}" if error is None else f"HTTP {status}, error {error[0]}: {error[1]}"
        reason = hide_secrets(f"{server.name}: {said}")
        if status in (_LIMITED, _BANNED):
            return self._paused(response, reason)
        if status == _FIREWALL:
            server.blocked_until_s = self._clock() + self._wait_s(response, _BANNED_S)
        elif status in _NOT_OFFERED:
            server.not_offered.add(endpoint)
        elif status == _UNAUTHORIZED:
            return self._refusal(error[0] if error else 0, reason, is_about_key=True)
        elif error is not None and error[0] not in _TRANSIENT_CODES and status in _CLIENT_ERRORS:
            return self._refusal(error[0], reason, is_about_key=error[0] in _KEY_CODES)
        else:
            return self._failed(server, said)
        self._server(endpoint)  # raises if no other one is left
        return _Failed(reason)

    def _paused(self, response: _Response, reason: str) -> HistoryUnavailable:
        is_banned = response.status == _BANNED
        wait_s = self._wait_s(response, _BANNED_S if is_banned else _LIMITED_S)
        until_s = max(self._clock() + wait_s, self._pause.until_s)
        self._pause = _Pause(until_s, reason, is_banned or self._is_banned())
        return HistoryUnavailable(reason, retry_in_s=wait_s, is_banned=is_banned)

    def _wait_s(self, response: _Response, default_s: float) -> float:
        return _wait_s(response.headers, default_s, self._timing.utc())

    def _is_banned(self) -> bool:
        return self._pause.is_banned and self._clock() < self._pause.until_s

    def _refusal(self, code: int, reason: str, *, is_about_key: bool) -> Refused:
        if not is_about_key or self._api.key_use is KeyUse.NEVER:
            return Refused(reason, code)
        if self._api_key:
            return Refused(f"the exchange rejects the API key: {reason}", code)
        return Refused(f"past trades need an API key (binance.api_key): {reason}", code)


def _name(base: str) -> str:
    """Return host and port of a URL, without a password."""
    return urlsplit(base).netloc.rpartition("@")[2]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS


def _wait_s(headers: Mapping[str, str], default_s: float, now_s: float) -> float:
    """Return the time in Retry-After, seconds or a date, within reason; `now_s` is UTC."""
    text = headers.get("retry-after", "").strip()
    if _is_number(text):
        wait_s = float(text)
    else:
        try:
            wait_s = parsedate_to_datetime(text).timestamp() - now_s
        except (ValueError, OverflowError):
            return default_s
    return min(wait_s, _LONGEST_BAN_S) if wait_s > 0 else default_s
