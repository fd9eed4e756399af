"""Texts about names: suggestions for misspelt ones, and long lists in short."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Final

_MIN_RATIO: Final = 0.6  # difflib cutoff: foo does not suggest symbol


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is closest to `name`, ignoring case."""
    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=_MIN_RATIO)
    return by_folded[found[0]] if found else None


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return a hint: the nearest name, or all of them."""
    names = list(known)
    nearest = nearest_name(name, names)
    return f"did you mean {nearest}?" if nearest else f"known: {', '.join(names)}"


def first_names(names: Sequence[str], most: int, *, sep: str = ", ") -> str:
    """Join the first names, and count the others: `A, B and 1,200 more`."""
    more = len(names) - most
    return sep.join(names[:most]) + (f" and {more:,} more" if more > 0 else "")
