"""Commits that lose to other writers: how often they are repeated, and what ends them."""

import random
import time
from typing import Final

from pyiceberg.table import Table

from k2cli.errors import Conflict

ATTEMPTS: Final = 20
_MAX_WAIT_S: Final = 1.0


def wait_after_race(number: int) -> None:
    """Wait before the next attempt, longer after each; `number` is that of the lost one, from 0."""
    time.sleep(random.uniform(0, min(_MAX_WAIT_S, 0.02 * 2**number)))


def too_many_races(table: Table) -> Conflict:
    """Return the error after all attempts were lost."""
    return Conflict(
        f"other writers of {'.'.join(table.name())} won {ATTEMPTS} times in a row",
        hint="run the command again, or let fewer processes write",
    )
