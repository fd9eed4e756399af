"""Suggestions for misspelt names."""

import difflib
from collections.abc import Iterable
from typing import Final

_LEAST_RATIO: Final = 0.6  # difflib cutoff: foo does not suggest symbol


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to `name`, ignoring case."""
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_LEAST_RATIO)
    return by_folded[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest name, or all of them."""
    names = list(known)
    nearest = nearest_name(name, names)
    return f"did you mean {nearest}?" if nearest else f"known: {', '.join(names)}"
