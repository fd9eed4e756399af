"""Symbols as text: one spelling of each, whatever the source.

Exchanges list non-ASCII symbols (币安人生USDT). Their case is left alone, because exchanges, file
systems and databases only agree on the case of ASCII letters; and a file system may return the same
name in another Unicode normal form.
"""

import string
import unicodedata
from collections.abc import Iterable
from typing import Final

_UPPER: Final = str.maketrans(string.ascii_lowercase, string.ascii_uppercase)
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)
_JOIN: Final = str.maketrans("", "", "/_-")
_ASCII: Final = frozenset(string.ascii_uppercase + string.digits)


def normalize_symbol(text: str) -> str:
    """Return a symbol in Unicode's normal form NFC, with its case unchanged."""
    return unicodedata.normalize("NFC", text)


def fold_symbol(text: str) -> str:
    """Return the stored spelling of a symbol: NFC, ASCII letters in upper case."""
    return normalize_symbol(text).translate(_UPPER)


def join_symbol(text: str) -> str:
    """Return a symbol without the separator of its assets: BTCUSDT for BTC/USDT."""
    return text.translate(_JOIN)


def lower_symbol(text: str) -> str:
    """Return the spelling in stream names: NFC, ASCII letters in lower case."""
    return normalize_symbol(text).translate(_LOWER)


def is_asset(text: str) -> bool:
    """Return whether a folded text can name an asset: letters, digits, printable non-ASCII."""
    return bool(text) and all(
        char in _ASCII if char.isascii() else char.isprintable() for char in text
    )


def split_commas(values: Iterable[str]) -> list[str]:
    """Flatten comma-separated names, in order and without duplicates."""
    words = [word.strip() for value in values for word in value.split(",")]
    return list(dict.fromkeys(word for word in words if word))


def stored_spellings(symbols: Iterable[str]) -> list[str]:
    """Return symbols as they are stored: BTC/USDT, btc-usdt and BTCUSDT are the same.

    Both spellings are returned if the separator may belong to the symbol (BRK-B, BTC-240927).
    """
    folded = [fold_symbol(word) for word in symbols]
    joined = (join_symbol(word) for word in folded)
    return list(dict.fromkeys([*folded, *joined]))
