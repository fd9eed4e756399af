"""The exchanges that k2 streams from; to add one, add a folder beside `binance` and a line here."""

from collections.abc import Mapping
from typing import Final

from k2cli.ingestion.binance.venues import BINANCE
from k2cli.ingestion.exchange import Exchange

EXCHANGES: Final[Mapping[str, Exchange]] = {
    "binance": BINANCE,
}
