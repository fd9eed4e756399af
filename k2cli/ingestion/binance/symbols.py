"""The markets of Binance and their venues, for scripts that import them from here."""

from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.symbols import Market

__all__ = ["VENUES", "Market"]
