"""The .CHECKSUM files beside an exchange's dumps, in the format of sha256sum."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from k2cli.errors import BadData, ConfigError

_MAX_BYTES: Final = 1 << 16  # of a .CHECKSUM file
_LINE: Final = re.compile(r"([0-9a-fA-F]{64})(?: [ *]?(.+))?")


def checksum_path(path: Path) -> Path:
    """Return the path of the .CHECKSUM file of a file."""
    return path.with_name(f"{path.name}.CHECKSUM")


def check_checksum(path: Path, find_digest: Callable[[], str]) -> bool:
    """Compare a file with the .CHECKSUM file beside it; return False without one.

    `find_digest` returns the SHA-256 of the file, in hex.

    Raises:
        BadData: the .CHECKSUM file is malformed, or states another checksum.
        ConfigError: it cannot be read.
    """
    beside = checksum_path(path)
    try:
        if not beside.is_file():
            return False
        with beside.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8-sig", errors="replace")
    except OSError as exc:
        raise ConfigError(f"{beside} cannot be read: {exc.strerror}") from exc
    stated, actual = _stated(text, path.name, beside), find_digest()
    if stated != actual:
        raise BadData(
            f"{path} does not match {beside.name}: its SHA-256 is {actual}, not {stated}",
            hint="download the file again",
        )
    return True


def _stated(text: str, name: str, beside: Path) -> str:
    """Return the checksum in a .CHECKSUM file; of several lines, the one with the file's name."""
    lines = [_LINE.fullmatch(line.strip()) for line in text.splitlines() if line.strip()]
    found = [match for match in lines if match is not None]
    if len(found) > 1:
        found = [match for match in found if match[2] == name]
    if None in lines or len(found) != 1:
        raise BadData(
            f"{beside} is malformed: expected <SHA-256 in hex>  {name}",
            hint="download it again, or remove it",
        )
    return found[0][1].lower()
