"""What goes wrong in a round: the faults of the exchange, by name, and when."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from k2cli.simulator import RestFault

# The options that the faults below set, as they are without a fault.
NO_FAULTS: Final[Mapping[str, Any]] = {
    "drop_after": None,
    "life_s": None,
    "shutdown_after": None,
    "silent_after": None,
    "silent_stream_after": None,
    "silent_routes": (),
    "skip_every": None,
    "garbage_every": None,
    "half_open_every": None,
    "rest_fault_every": None,
    "weight_limit": None,
}
_QUICK_ERRORS: Final = (
    RestFault.SERVER_ERROR,
    RestFault.NOT_JSON,
    RestFault.TOO_MANY,
    RestFault.CUT,
    RestFault.UNAVAILABLE,
)
_LYING: Final = (RestFault.UNORDERED, RestFault.REPEATED, RestFault.SHIFTED, RestFault.ENDLESS)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long a round misbehaves, how much is traded, and which faults it has."""

    phase_s: tuple[float, float]  # shortest and longest time that a fault lasts
    rate: float  # trades per second of each symbol
    unlisted_every: int
    faults: Sequence[str]
    settle_s: float  # most time for the stream to catch up once all faults have ended


def faults(frames_per_s: float) -> Mapping[str, Mapping[str, Any]]:
    """Return the options of every fault, by name, for this many frames per second."""

    def frames(seconds: float) -> int:
        return max(int(frames_per_s * seconds), 1)

    rest: dict[str, Any] = {"skip_every": frames(1), "rest_fault_every": 2}
    return {
        "drops": {"drop_after": frames(2)},
        "short lives": {"life_s": 2.0},
        "shutdowns": {"shutdown_after": frames(2)},
        "silent connections": {"silent_after": frames(1)},
        "silent streams": {"silent_stream_after": frames(0.5)},
        "silent routes": {"silent_routes": ("/public",), "drop_after": frames(3)},
        "skipped ids": {"skip_every": frames(0.5)},
        "garbage": {"garbage_every": frames(0.1)},
        "half-open sockets": {"half_open_every": 2, "drop_after": frames(2)},
        "REST errors": {**rest, "rest_faults": _QUICK_ERRORS},
        "REST silence": {**rest, "rest_faults": (RestFault.HUNG, RestFault.SLOW)},
        "REST lies": {**rest, "rest_faults": _LYING},
        "REST bans": {**rest, "rest_faults": (RestFault.BANNED, RestFault.FORBIDDEN)},
        "REST limits": {"skip_every": frames(0.5), "weight_limit": 100},
    }


SHORT: Final = Plan(
    phase_s=(1.5, 2.5),
    rate=40.0,
    unlisted_every=331,
    faults=("drops", "shutdowns", "skipped ids", "garbage", "REST errors", "short lives"),
    settle_s=120.0,
)
LONG: Final = Plan(
    phase_s=(15.0, 90.0),  # silence of a single stream is noticed after a minute
    rate=20.0,
    unlisted_every=997,
    faults=tuple(name for name in faults(1.0) if name != "silent routes"),
    settle_s=1800.0,  # after a 403, nothing is asked for during minutes
)
