"""Find loads in the tables' logs by id or path."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from k2cli.errors import NotFound, UsageError
from k2cli.files import STDIN
from k2cli.paths import expand_home
from k2cli.records import RecordKind
from k2cli.storage.lake import Lake

_MIN_ID: Final = 4  # shortest prefix of an id
_TO_FIND: Final = ["load", "loaded_at", "path", "exchange", "symbol", "duplicates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLoad:
    """A load to undo, with related entries of the log."""

    kind: RecordKind
    load: str
    path: str
    exchange: str | None  # of the whole file
    symbol: str | None
    others: Sequence[str]  # further loads of the same path, newest first
    has_later_duplicates: bool  # rows that later loads skipped as duplicates


def find_load(lake: Lake, word: str) -> FoundLoad:
    """Find a load by its id or a prefix, or the newest load of a file by its path.

    Raises:
        NotFound: no table's log has this load.
        UsageError: several loads have ids with this prefix.
    """
    path = STDIN if word == STDIN else str(expand_home(word).absolute())
    entries = [
        (kind, entry)
        for kind in lake.kinds()
        for entry in lake.open(kind).loads().select(_TO_FIND).to_pylist()
    ]
    entries.sort(key=lambda pair: pair[1]["loaded_at"], reverse=True)
    found = [(kind, entry) for kind, entry in entries if entry["path"] == path]
    if not found and len(word) >= _MIN_ID:
        found = [(kind, entry) for kind, entry in entries if entry["load"].startswith(word.lower())]
        if len(found) > 1:
            raise UsageError(f"{len(found)} loads have ids that start with {word}")
    if not found:
        raise NotFound(
            f"no load of a file {path}, and no load {word}", hint="k2 load history lists the loads"
        )
    kind, entry = found[0]
    return FoundLoad(
        kind=kind,
        load=entry["load"],
        path=entry["path"],
        exchange=entry["exchange"],
        symbol=entry["symbol"],
        others=[
            other["load"]
            for _, other in entries
            if other["path"] == entry["path"] != STDIN and other["load"] != entry["load"]
        ],
        has_later_duplicates=any(
            other_kind == kind and other["loaded_at"] > entry["loaded_at"] and other["duplicates"]
            for other_kind, other in entries
        ),
    )
