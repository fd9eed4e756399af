"""Remove duplicates from a table, with the rows of conflicting ids in a rejects file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from k2cli.config import Settings
from k2cli.pipelines.conflicts import conflict_rejects
from k2cli.records import RecordKind
from k2cli.rejects import RejectLog
from k2cli.storage.admission import ValueConflict
from k2cli.storage.duplicates import Keep
from k2cli.storage.lake import open_lake

_MAX_EXAMPLES: Final = 100


@dataclass(slots=True, kw_only=True)
class DedupeTotals:
    """The totals of one run."""

    days: int = 0  # with duplicates
    removed: int = 0
    conflicts: int = 0  # rows whose id has another row with other values


@dataclass(slots=True, kw_only=True)
class Deduplication:
    """The result of one run: its totals, the first conflicts, and the file they are in."""

    totals: DedupeTotals = field(default_factory=DedupeTotals)
    examples: list[ValueConflict] = field(default_factory=list)
    rejects: Path | None = None  # None: none were written


def dedupe_table(
    config: Settings,
    kind: RecordKind,
    keep: Keep | None,
    *,
    rejects: Path | None = None,
    is_dry_run: bool = False,
) -> Deduplication:
    """Remove rows stored more than once, one commit per day; write conflicts to a rejects file.

    The default file is in the home folder; with `is_dry_run`, which changes no table, there is
    none. See `storage.dedupe.remove_duplicates` for the rows that are kept.

    Raises:
        NotFound: the lake has no tables.
        Conflict: another engine repeatedly rewrote the files during the search.
        BadData: another engine left row-level deletes, or a file is damaged.
    """
    result = Deduplication()
    totals, examples = result.totals, result.examples
    with open_lake(config) as lake:
        for found in lake.open(kind).dedupe(keep, is_dry_run=is_dry_run):
            totals.days += bool(found.rows)
            totals.removed += found.rows
            totals.conflicts += found.conflicts
            examples += found.examples[: _MAX_EXAMPLES - len(examples)]
    if rejects is None and not is_dry_run:
        rejects = config.home / "rejects" / "table-dedupe.ndjson"
    if examples and rejects is not None:
        with RejectLog(rejects, run=config.run) as log:
            log.write(conflict_rejects(examples))
            log.sync()
        result.rejects = rejects
    return result
