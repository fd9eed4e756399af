"""Options of the simulated exchange, and the interface of what a connection plays."""

from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from ssl import SSLContext
from typing import Final, Protocol

from k2cli.ingestion.symbols import Market
from k2cli.simulator.market import CHANNELS

# What --garbage-every puts between the frames, in turn.
GARBAGE: Final = (
    b"not json at all",
    b'{"stream":"btcusdt@trade","data":{"e":"trade","E":17231613480',
    b"\xff\xfe{\x00\x80}",
    b'{"e":"trade","s":null,"t":"x","p":12.5}',
    b"",
    b"[1,2,3]",
)


class RestFault(StrEnum):
    """A wrong answer to a request for history. The last ones pretend to be right."""

    TOO_MANY = "429"
    BANNED = "418"
    FORBIDDEN = "403"
    SERVER_ERROR = "500"
    UNAVAILABLE = "503"
    NOT_JSON = "not-json"
    CUT = "cut"  # the connection ends in the middle
    SLOW = "slow"
    HUNG = "hung"  # no answer, while the connection stays open
    ENDLESS = "endless"  # a body without an end
    UNORDERED = "unordered"
    REPEATED = "repeated"  # every row twice
    SHIFTED = "shifted"  # rows before the ones that were asked for
    EMPTY = "empty"


# What --rest-fault-every answers, in turn: errors that a client recognizes.
REST_FAULTS: Final = (
    RestFault.SERVER_ERROR,
    RestFault.TOO_MANY,
    RestFault.NOT_JSON,
    RestFault.UNAVAILABLE,
    RestFault.SLOW,
    RestFault.CUT,
    RestFault.HUNG,
    RestFault.BANNED,
    RestFault.FORBIDDEN,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorOptions:
    """What the simulated exchange plays, how fast, and with which failures.

    Counts of frames are market frames of one connection; garbage does not count. Of
    `drop_after`, `silent_after`, `shutdown_after` and `limit`, the smallest ends a connection.
    Faults depend on counters alone, so the same requests meet the same faults.
    """

    host: str = "127.0.0.1"
    port: int = 0  # 0 chooses a free one
    ssl: SSLContext | None = None
    market: Market = Market.SPOT
    symbols: tuple[str, ...] = ()  # none: any symbol
    channels: tuple[str, ...] = CHANNELS
    seed: int = 0
    first_id: int | None = None  # None: from the clock
    frames: Path | None = None  # a recording or a folder of them, instead of the synthetic market
    frames_speed: float | None = None  # 1: at the recording's pace; None: as fast as possible
    loop: bool = False
    limit: int | None = None  # frames per connection, then the market ends
    close_at_end: bool = False
    rate: float | None = None  # frames/s per connection; None: as fast as possible
    live_rate: float | None = None  # ids/s per stream, without clients too; None: on demand
    history_s: float = 0.0  # how long ago the synthetic market's clock starts
    speed: float = 60.0  # how fast its clock runs until now
    drop_after: int | None = None
    silent_after: int | None = None
    shutdown_after: int | None = None
    shutdown_grace_s: float = 0.5
    garbage_every: int | None = None
    skip_every: int | None = None
    life_s: float | None = None  # of a connection, which is then cut
    silent_stream_after: int | None = None  # frames, then one stream of the connection is silent
    silent_symbols: tuple[str, ...] = ()  # on sockets; REST serves their trades
    silent_routes: tuple[str, ...] = ()  # such as /public; "" is the one without a name
    half_open_every: int | None = None  # connections; the last of them is never answered
    unlisted_every: int | None = None  # ids divisible by this do not exist
    clock_jump_s: float = 0.0  # how far the clock of a live market is off, now and then
    clock_jump_every: int = 1000  # ids after which it jumps there, or back
    weight_limit: int | None = None  # of requests per minute; None: the exchange's, 0: none
    ban_s: float = 120.0  # for a client that keeps asking in spite of 429
    rest_fault_every: int | None = None  # requests for history
    rest_faults: tuple[RestFault, ...] = REST_FAULTS  # in turn
    slow_s: float = 3.0  # how long a slow answer takes
    ping_interval_s: float = 20.0
    pong_timeout_s: float = 60.0
    max_streams: int = 1024
    max_inbound_per_s: int = 5


class FrameSource(Protocol):
    """The source of one connection's frames."""

    @property
    def is_at_end(self) -> bool:
        """Return whether `take` will never return a frame again."""

    @property
    def is_idle(self) -> bool:
        """Return whether `take` returns nothing until other streams are subscribed."""

    def follow(self, streams: Collection[str]) -> None:
        """Subscribe to these streams."""

    def take(self, most: int, now_us: int) -> list[bytes]:
        """Return the next frames in order, up to a limit; none does not mean the end."""
