"""Suggestions for names that were misspelt."""

import difflib
from collections.abc import Iterable
from typing import Final

_LEAST_RATIO: Final = 0.6  # of difflib: foo is not symbol


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that `name` is probably a misspelling of, whatever their case."""
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_LEAST_RATIO)
    return by_folded[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest name, or else all of them."""
    names = list(known)
    nearest = nearest_name(name, names)
    return f"did you mean {nearest}?" if nearest else f"known: {', '.join(names)}"
