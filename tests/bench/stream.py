"""Simulated exchange -> `k2 stream` -> table, against the client of another package.

And against a client that only counts the frames.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from processes import (
    K2,
    SYMBOLS,
    check_equal,
    check_summary,
    helper,
    output_of,
    simulated_exchange,
    stream_command,
)
from report import Aim, Line, Setup

from k2cli.config import load_settings
from k2cli.ingestion.binance.venues import VENUES, Channel
from k2cli.ingestion.symbols import Market
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake

_ROUNDS = 3


def run(setup: Setup) -> list[Line]:
    """Stream trades of ten symbols from one server, in turns; the best round counts."""
    messages = 200_000 if setup.is_quick else 1_000_000
    streamed, by_websockets, counted = [], [], []
    with simulated_exchange() as url:
        for number in range(_ROUNDS):
            streamed.append(_stream(url, messages, setup.folder / f"home{number}"))
            by_websockets.append(
                _stream(url, messages, setup.folder / f"old{number}", helper("by_websockets.py"))
            )
            counted.append(_count(url, messages, setup.folder))
    common: dict[str, Any] = {"value": max(streamed), "unit": "rows/s", "samples": streamed}
    client: dict[str, Any] = {
        "reference": max(by_websockets),
        "against": "the same with a websockets client",
        "reference_samples": by_websockets,
    }
    bare: dict[str, Any] = {
        "reference": max(counted),
        "against": "a bare websockets client",
        "reference_samples": counted,
    }
    what = f"{messages:,} trades from the exchange into the table"
    return [
        Line(what=what, aim=Aim("ratio", ">=", 1.6), **client, **common),
        Line(what=f"{what}, of frames", aim=Aim("ratio", ">=", 0.8), **bare, **common),
        Line(what=f"{what}, as such", aim=Aim("value", ">=", 50_000), **bare, **common),
    ]


def _stream(url: str, messages: int, home: Path, k2: Sequence[str] = K2) -> float:
    """Return rows/s by the command's own clock: from before connecting to the last commit."""
    summary = json.loads(output_of(stream_command(url, messages, k2), home=home))
    check_summary(summary, messages)
    with open_lake(load_settings({"K2_HOME": str(home)})) as lake:
        check_equal(lake.open(TRADES).plan().rows, messages)
    return float(summary["rows"] / summary["duration_s"])


def _count(url: str, messages: int, home: Path) -> float:
    venue = VENUES[Market.SPOT]
    names = [venue.stream_name(venue.parse_symbol(symbol), Channel.TRADE) for symbol in SYMBOLS]
    whole_url = venue.stream_url(url, names)
    took_s = output_of(helper("bare_client.py", whole_url, str(messages)), home=home)
    return messages / float(took_s)
