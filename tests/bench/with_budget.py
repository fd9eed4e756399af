"""`k2` with a multiple of the exchange's budget for REST: `with_budget.py FACTOR ARGUMENTS OF K2`.

The exchange's own budget serves two pages a second, so it hides whether k2 could do more.
"""

import sys
from dataclasses import replace
from typing import Any, cast

from k2cli.__main__ import main
from k2cli.ingestion.binance.venues import BINANCE


def multiply_budget(factor: int) -> None:
    """Let k2 use this many times the weight per minute of the spot market."""
    venues = cast("dict[str, Any]", BINANCE.venues)
    venue = venues["spot"]
    weight = venue.rest.weight_per_minute * factor
    venues["spot"] = replace(venue, rest=replace(venue.rest, weight_per_minute=weight))


if __name__ == "__main__":
    multiply_budget(int(sys.argv.pop(1)))
    main()
