"""Store names that commands see, for shell completion."""

from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from k2cli.completion.words import remember
from k2cli.config import Settings
from k2cli.errors import K2Error

if TYPE_CHECKING:
    from k2cli.records import RecordKind
    from k2cli.storage.lake import Lake


def remember_topics(config: Settings, topics: Iterable[str], *, is_complete: bool = False) -> None:
    """Store names of topics; with `is_complete` there are no others."""
    remember(config.home, config.profile, {"topics": topics}, is_complete=is_complete)


def remember_subjects(config: Settings, subjects: Iterable[str]) -> None:
    """Store the names of all subjects of the registry."""
    remember(config.home, config.profile, {"subjects": subjects}, is_complete=True)


def remember_series(
    config: Settings, series: Iterable[tuple[str, str]], *, is_complete: bool = False
) -> None:
    """Store exchanges and their symbols; with `is_complete` there are no others."""
    pairs = list(series)
    words = {"exchanges": (pair[0] for pair in pairs), "symbols": (pair[1] for pair in pairs)}
    remember(config.home, config.profile, words, is_complete=is_complete)


def remember_tables(config: Settings, lake: "Lake", kinds: "Iterable[RecordKind]") -> None:
    """Store the series in the tables' positions, without reading rows."""
    with suppress(K2Error):  # the command itself reports problems of tables
        remember_series(config, {pair for kind in kinds for pair in lake.open(kind).series()})
