"""Symbols, exchanges, topics and subjects, cached in the home folder for shell completion.

Commands that see these names store them here, and the completion process reads them: one file per
profile, one line of kind, tab and word per name.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from k2cli.files import replace_file

_FOLDER: Final = "completion"
_DEFAULT: Final = "default"  # the file name without a profile
_MAX_WORDS: Final = 20_000  # per kind
_SAFE: Final = frozenset("._-/@+")


def is_safe(word: str) -> bool:
    """Return whether every shell takes a word literally: letters, digits and `._-/@+`."""
    return bool(word) and all(char.isalnum() or char in _SAFE for char in word)


def read_words(home: Path, profile: str | None) -> dict[str, list[str]]:
    """Return the stored words by kind, sorted; none without a file."""
    words: dict[str, list[str]] = {}
    with suppress(OSError, UnicodeDecodeError):
        for line in _path(home, profile).read_text(encoding="utf-8").splitlines():
            kind, tab, word = line.partition("\t")
            if tab and is_safe(word):
                words.setdefault(kind, []).append(word)
    return words


def remember(
    home: Path,
    profile: str | None,
    words: Mapping[str, Iterable[str]],
    *,
    is_complete: bool = False,
) -> None:
    """Add words to the stored ones; with `is_complete`, replace the words of these kinds.

    The file is replaced atomically. A missing home folder is not created, and an unwritable one is
    left unchanged, because completion must not make a command fail.
    """
    if not home.is_dir():
        return
    known = read_words(home, profile)
    merged = dict(known)
    for kind, found in words.items():
        old = [] if is_complete else known.get(kind, [])
        merged[kind] = sorted({*old, *filter(is_safe, found)})[:_MAX_WORDS]
    if merged != known:
        lines = (f"{kind}\t{word}\n" for kind in merged for word in merged[kind])
        with suppress(OSError):
            replace_file(_path(home, profile), "".join(lines))


def _path(home: Path, profile: str | None) -> Path:
    # A profile may have any name; only safe names get a file.
    name = profile if profile and is_safe(profile) and "/" not in profile else _DEFAULT
    return home / _FOLDER / f"{name}.txt"
