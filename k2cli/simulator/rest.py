"""The REST side of the simulated exchange, without I/O: trade history, limits and wrong answers.

It serves what the market has published so far, with the same content and times as the streams.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol
from urllib.parse import parse_qs, urlsplit

import msgspec
import numpy as np

from k2cli.ingestion.symbols import FUTURES
from k2cli.simulator.market import SyntheticMarket
from k2cli.simulator.options import RestFault, SimulatorOptions
from k2cli.symbols import fold_symbol, is_asset

HISTORICAL_TRADES: Final = "historicalTrades"
AGG_TRADES: Final = "aggTrades"
EXCHANGE_INFO: Final = "exchangeInfo"
TIME: Final = "time"

_HISTORY: Final = (HISTORICAL_TRADES, AGG_TRADES)
_SPOT_WEIGHTS: Final = {HISTORICAL_TRADES: 25, AGG_TRADES: 4, EXCHANGE_INFO: 20, TIME: 1}
_FUTURES_WEIGHTS: Final = {HISTORICAL_TRADES: 200, AGG_TRADES: 20, EXCHANGE_INFO: 1, TIME: 1}
_SPOT_LIMIT: Final = 6000
_FUTURES_LIMIT: Final = 2400
_MINUTE_S: Final = 60
_PATIENCE: Final = 5  # requests after a 429 until the client is banned
_DEFAULT_ROWS: Final = 500
_MAX_ROWS: Final = 1000
_MIN_MICROS: Final = 10**15  # a time of this size is in microseconds
_NUMBER: Final = re.compile(r"\d{1,18}")
_HTML: Final = b"<html><body><h1>Sorry</h1></body></html>"


class _Refused(Exception):
    """A request that the exchange answers with an error."""

    def __init__(self, code: int, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, and how it is sent."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    fault: RestFault | None = None  # of those that only the sender can commit
    delay_s: float = 0.0


class Exchange(Protocol):
    """What the REST side needs to know of its exchange."""

    options: SimulatorOptions
    exchange_info: bytes

    def market_time_us(self) -> int:
        """Return the market's time, in UTC microseconds."""

    def utc_s(self) -> float:
        """Return the time, in UTC seconds."""


class Weights:
    """The request weight that a client may use per minute, and the ban of one that ignores it.

    The clock returns UTC seconds: the exchange counts by the minute of UTC.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._minute = 0
        self._used = 0
        self._ignored = 0
        self._banned_until_s = 0.0

    def charge(self, weight: int, *, limit: int, ban_s: float) -> Answer | None:
        """Count a request; return the refusal if the limit is exceeded. A limit of 0 is none."""
        now_s = self._clock()
        if now_s // _MINUTE_S != self._minute:
            self._minute, self._used, self._ignored = int(now_s // _MINUTE_S), 0, 0
        self._used += weight
        if now_s < self._banned_until_s:
            return refusal(RestFault.BANNED, self._banned_until_s - now_s)
        if not limit or self._used <= limit:
            return None
        self._ignored += 1
        if self._ignored > _PATIENCE:
            self._banned_until_s = now_s + ban_s
            return refusal(RestFault.BANNED, ban_s)
        return refusal(RestFault.TOO_MANY, _MINUTE_S - now_s % _MINUTE_S)

    @property
    def used(self) -> int:
        """The weight used in this minute."""
        return self._used


def refusal(fault: RestFault, retry_after_s: float = 0) -> Answer:
    """Build the answer to a client that asks too much, or of a server that does not work."""
    headers = {"Retry-After": str(int(retry_after_s) + 1)} if retry_after_s else {}
    match fault:
        case RestFault.TOO_MANY:
            body = _error(-1003, "Too many requests; current limit is exceeded.")
        case RestFault.BANNED:
            body = _error(-1003, "Way too many requests; IP banned.")
        case RestFault.UNAVAILABLE:
            body = _error(-1007, "Timeout waiting for response from backend server.")
        case _:
            body = _HTML
    return Answer(body=body, status=int(fault.value), headers=headers)


def _error(code: int, message: str) -> bytes:
    return msgspec.json.encode({"code": code, "msg": message})


class Rest:
    """The REST side of a simulated exchange."""

    def __init__(self, exchange: Exchange, market: SyntheticMarket, base: str) -> None:
        self._exchange = exchange
        self._market = market
        self._base = base  # /api/v3, /fapi/v1 or /dapi/v1
        self._weights = Weights(exchange.utc_s)
        self._is_futures = market.kind in FUTURES
        self._histories = 0  # requests for history

    def serves(self, path: str) -> bool:
        """Return whether a path is one of the REST side."""
        return self._endpoint(path) in _SPOT_WEIGHTS

    def is_info(self, path: str) -> bool:
        """Return whether a path is that of `exchangeInfo`."""
        return self._endpoint(path) == EXCHANGE_INFO

    def _endpoint(self, path: str) -> str:
        base, _, endpoint = urlsplit(path).path.rpartition("/")
        return endpoint if base == self._base else ""

    def answer(self, path: str, headers: Mapping[str, str]) -> Answer:
        """Answer a request for a path that is served; header names are in lower case."""
        endpoint, options = self._endpoint(path), self._exchange.options
        weights = _FUTURES_WEIGHTS if self._is_futures else _SPOT_WEIGHTS
        limit = options.weight_limit
        if limit is None:
            limit = _FUTURES_LIMIT if self._is_futures else _SPOT_LIMIT
        refused = self._weights.charge(weights[endpoint], limit=limit, ban_s=options.ban_s)
        found = refused or self._respond(endpoint, path, headers)
        used = {"X-MBX-USED-WEIGHT-1M": str(self._weights.used)} if limit else {}
        return Answer(
            body=found.body,
            status=found.status,
            headers={**used, **found.headers},
            fault=found.fault,
            delay_s=found.delay_s,
        )

    def _respond(self, endpoint: str, path: str, headers: Mapping[str, str]) -> Answer:
        is_micros = not self._is_futures and (
            headers.get("x-mbx-time-unit", "").upper() == "MICROSECOND"
        )
        if endpoint == EXCHANGE_INFO:
            return Answer(body=self._exchange.exchange_info)
        if endpoint == TIME:
            now = self._exchange.market_time_us() // (1 if is_micros else 1000)
            return Answer(body=b'{"serverTime":%d}' % now)
        fault = self._next_fault()
        if fault is not None and fault.value.isdigit():
            retry_after_s = 0.5 if fault in (RestFault.TOO_MANY, RestFault.BANNED) else 0
            return refusal(fault, retry_after_s)
        if fault is RestFault.NOT_JSON:
            return Answer(body=_HTML)
        try:
            if self._is_futures and endpoint == HISTORICAL_TRADES and not headers.get(_API_KEY):
                raise _Refused(-2014, "API-key format invalid.", status=401)
            rows = self._rows(endpoint, _query(path), is_micros=is_micros, fault=fault)
        except _Refused as exc:
            return Answer(body=_error(exc.code, str(exc)), status=exc.status)
        body = b"[%b]" % b",".join(rows)
        delay_s = self._exchange.options.slow_s if fault is RestFault.SLOW else 0.0
        return Answer(body=body, fault=fault, delay_s=delay_s)

    def _next_fault(self) -> RestFault | None:
        options = self._exchange.options
        self._histories += 1
        turn, rest = divmod(self._histories, options.rest_fault_every or self._histories + 1)
        is_due = turn > 0 and rest == 0
        return options.rest_faults[(turn - 1) % len(options.rest_faults)] if is_due else None

    def _rows(
        self, endpoint: str, query: Mapping[str, str], *, is_micros: bool, fault: RestFault | None
    ) -> list[bytes]:
        symbol = self._symbol(query)
        limit = _number(query, "limit", _DEFAULT_ROWS)
        if not 1 <= limit <= _MAX_ROWS:
            raise _Refused(-1130, "Data sent for parameter 'limit' is not valid.")
        is_timed = "startTime" in query or "endTime" in query
        if is_timed and (self._is_futures and "fromId" in query):
            raise _Refused(-1128, "Combination of optional parameters invalid.")
        asked = self._asked(endpoint, symbol, query, limit)
        if fault is RestFault.SHIFTED:
            asked = range(max(asked.start - limit, 0), max(asked.stop - limit, 0))
        ids = self._market.listed(np.arange(asked.start, asked.stop, dtype=np.int64))
        is_newest = not is_timed and "fromId" not in query
        ids = ids[-limit:] if is_newest else ids[:limit]
        rows = self._market.rows(endpoint, symbol, ids, is_micros=is_micros)
        return _falsify(rows, fault)

    def _symbol(self, query: Mapping[str, str]) -> str:
        symbol = query.get("symbol", "")
        if not symbol:
            raise _Refused(-1102, "Mandatory parameter 'symbol' was not sent.")
        is_named = symbol == fold_symbol(symbol) and all(map(is_asset, symbol.split("_", 1)))
        if not is_named or not self._market.lists(symbol):
            raise _Refused(-1121, "Invalid symbol.")
        return symbol

    def _asked(self, endpoint: str, symbol: str, query: Mapping[str, str], limit: int) -> range:
        """Return the ids that may be in the answer: enough of them, even if some do not exist."""
        ids = self._market.published(symbol, self._exchange.market_time_us())
        most = 2 * limit  # at most every second id is unlisted
        if "fromId" in query:
            begin = max(_number(query, "fromId", 0), ids.start)
            return range(begin, min(begin + most, ids.stop))
        if endpoint == HISTORICAL_TRADES or not ("startTime" in query or "endTime" in query):
            return range(max(ids.stop - most, ids.start), ids.stop)
        begin, end = ids.start, ids.stop
        if "startTime" in query:
            begin = self._market.first_at(symbol, ids, _time_us(query, "startTime"))
        if "endTime" in query:
            unit = 1 if _number(query, "endTime", 0) >= _MIN_MICROS else 1000
            end = self._market.first_at(symbol, ids, _time_us(query, "endTime") + unit)
        return range(begin, min(begin + most, end))


_API_KEY: Final = "x-mbx-apikey"


def _query(path: str) -> Mapping[str, str]:
    found = parse_qs(urlsplit(path).query, keep_blank_values=True)
    return {name: values[-1] for name, values in found.items()}


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if _NUMBER.fullmatch(text) is None:
        raise _Refused(-1100, f"Illegal characters found in parameter '{name}'.")
    return int(text)


def _time_us(query: Mapping[str, str], name: str) -> int:
    value = _number(query, name, 0)
    return value if value >= _MIN_MICROS else value * 1000


def _falsify(rows: list[bytes], fault: RestFault | None) -> list[bytes]:
    match fault:
        case RestFault.UNORDERED:
            return rows[::-1]
        case RestFault.REPEATED:
            return [row for row in rows for _ in range(2)]
        case RestFault.EMPTY:
            return []
        case _:
            return rows
