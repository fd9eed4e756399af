"""What the REST API of a market allows and serves."""

from dataclasses import dataclass
from enum import StrEnum


class KeyUse(StrEnum):
    """Whether requests for trades carry the user's API key."""

    NEVER = "never"
    IF_SET = "if set"
    REQUIRED = "required"


@dataclass(frozen=True, slots=True, kw_only=True)
class RestApi:
    """What the REST API of a market allows and serves."""

    path: str  # of its endpoints
    has_microseconds: bool  # can send times in microseconds, as the streams can
    weight_per_minute: int  # for an IP address
    trades_weight: int  # of a request to `historicalTrades`
    aggregates_weight: int  # of a request to `aggTrades`
    key_use: KeyUse = KeyUse.NEVER
    aggregates_for_s: float | None = None  # how far back `aggTrades` reaches, if it is limited
    window_s: float = 3600.0  # the longest time that one request to `aggTrades` may span
