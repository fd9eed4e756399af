"""Symbols as text: one spelling of each, whoever wrote it.

Exchanges list symbols that are not ASCII (币安人生USDT). Their case is left alone, because only
for ASCII letters do all exchanges, file systems and databases agree on it; and a file system may
hand out the same name in another normal form of Unicode.
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
    """Return a symbol in Unicode's normal form NFC, its case as it is."""
    return unicodedata.normalize("NFC", text)


def fold_symbol(text: str) -> str:
    """Return the spelling that symbols are stored in: NFC, ASCII letters in upper case."""
    return normalize_symbol(text).translate(_UPPER)


def join_symbol(text: str) -> str:
    """Return a symbol without the separator between its assets: BTCUSDT of BTC/USDT."""
    return text.translate(_JOIN)


def lower_symbol(text: str) -> str:
    """Return the spelling that streams are named in: NFC, ASCII letters in lower case."""
    return normalize_symbol(text).translate(_LOWER)


def is_asset(text: str) -> bool:
    """Return whether a folded text can name an asset: letters, digits, printable non-ASCII."""
    return bool(text) and all(
        char in _ASCII if char.isascii() else char.isprintable() for char in text
    )


def split_commas(values: Iterable[str]) -> list[str]:
    """Flatten comma lists of names; order kept, repeats dropped."""
    words = [word.strip() for value in values for word in value.split(",")]
    return list(dict.fromkeys(word for word in words if word))


def stored_spellings(symbols: Iterable[str]) -> list[str]:
    """Return symbols as they are stored: BTC/USDT, btc-usdt and BTCUSDT are one.

    Both spellings are looked for where a separator may belong to the symbol (BRK-B, BTC-240927).
    """
    folded = [fold_symbol(word) for word in symbols]
    joined = (join_symbol(word) for word in folded)
    return list(dict.fromkeys([*folded, *joined]))
