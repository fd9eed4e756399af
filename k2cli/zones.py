"""Time zones by their IANA names, and this machine's zone."""

import zoneinfo
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from k2cli.errors import UsageError
from k2cli.nearest import nearest_name

UTC: Final = "UTC"
LOCAL: Final = "local"
_EXAMPLES: Final = "an IANA name such as Australia/Sydney, Europe/London or UTC; or local"
_LINK: Final = Path("/etc/localtime")
_NAME_FILE: Final = Path("/etc/timezone")
_FOLDER: Final = "/zoneinfo/"


def resolve_zone(name: str, *, env: Mapping[str, str], what: str = "--tz") -> str:
    """Return the IANA name of a time zone, ignoring case; `local` is this machine's.

    Raises:
        UsageError: the zone is unknown, or the machine's has no name; `what` names the option.
    """
    if name == UTC:  # without the database
        return UTC
    if name.strip().lower() == LOCAL:
        return _local_zone(env, what)
    known = zoneinfo.available_timezones() - {
        "localtime"
    }  # the machine's, which DuckDB does not support
    found = {each.casefold(): each for each in known}.get(name.strip().casefold())
    if found is None:
        raise UsageError(f"{what} {name!r} is not a time zone", hint=_hint(name, known))
    return found


def _hint(name: str, known: set[str]) -> str:
    """Suggest a zone with a similar name or city."""
    cities = {each.rpartition("/")[2]: each for each in sorted(known) if "/" in each}
    city = nearest_name(name.strip().replace(" ", "_"), cities)
    nearest = nearest_name(name, known) or (cities[city] if city else None)
    return f"did you mean {nearest}?" if nearest else f"write {_EXAMPLES}"


def _local_zone(env: Mapping[str, str], what: str) -> str:
    """Find the machine's zone as the C library does: TZ, then /etc/localtime, else UTC."""
    text = env.get("TZ", "").removeprefix(":")
    if not text:
        text = _name_of_link() or _name_in_file() or ("" if _LINK.exists() else "UTC")
    name = text.rpartition(_FOLDER)[2]
    if name not in zoneinfo.available_timezones():
        raise UsageError(
            f"{what} local: this machine's time zone has no IANA name",
            hint=f"write {_EXAMPLES.partition(';')[0]}; or set TZ to one",
        )
    return name


def _name_of_link() -> str:
    path = str(_LINK.resolve())
    return path if _FOLDER in path else ""


def _name_in_file() -> str:
    try:
        return _NAME_FILE.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
