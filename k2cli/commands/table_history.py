"""`k2 table rollback`, `tag`, `untag` and `diff`: the snapshots of a table."""

import json
import re
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import typer
from typer.core import TyperCommand

from k2cli.commands.groups import AnswerOptions, takes_groups
from k2cli.commands.options import (
    HomeOpt,
    TextOrJson,
    TextOrJsonOpt,
    YesOpt,
    dry_run_option,
    settings,
)
from k2cli.commands.table_kind import TableArg, kind_of_table
from k2cli.commands.terminal import output
from k2cli.commands.terminal.confirmation import confirm
from k2cli.commands.terminal.streams import note
from k2cli.errors import UsageError
from k2cli.iso import iso_utc

if TYPE_CHECKING:
    from k2cli.storage.history import Point
    from k2cli.storage.rollback import Rollback

_AGO: Final = re.compile(r"-\d+\w")
_LONGEST_EPOCH: Final = 16  # digits, in microseconds; longer numbers are snapshot ids
_POINT: Final = "a snapshot id, a tag, or a time such as 2024-08-08T10:30Z or -2h"
_MAX_SYMBOLS: Final = 20  # listed for people
_CONSEQUENCES: Final = (
    "positions go back with the rows:",
    "- files loaded since then count as not loaded, and can be loaded again",
    "- consumers read their topics again from the older offsets",
    "- streams fetch what is missing, as far as the exchange serves it",
    "the later snapshots are kept until they expire, but k2 cannot return to them",
)
_NO_STATE: Final = (
    "k2's state of that time has expired: all loads are forgotten, topics are read again from the"
    " start, and the next write reads all ids in the table once"
)


class SnapshotCommand(TyperCommand):
    """Parses times such as -2h as arguments, not as options."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse the command line."""
        words = [f" {each}" if _AGO.fullmatch(each) else each for each in args]
        return super().parse_args(ctx, words)


def rollback(
    table: TableArg,
    snapshot: Annotated[str, typer.Argument(help=f"Roll back to {_POINT}.", show_default=False)],
    dry_run: Annotated[
        bool, dry_run_option("what would be lost without changing anything")
    ] = False,
    yes: YesOpt = False,
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    home: HomeOpt = None,
) -> None:
    """Roll a table back to an older snapshot: later rows are lost.

    Positions go back with the rows: files loaded since then can be loaded again, consumers read
    topics again from the older offsets, and streams fetch what is missing, as far as the exchange
    serves it. At a time, the newest snapshot at or before it is chosen.

    Shows the rows that would be lost by symbol, and asks. If another process changes rows after
    that, nothing is changed (exit code 7).

    Example: k2 table rollback trades before-load --dry-run
    """
    from k2cli.storage.lake import open_lake

    kind, point = kind_of_table(table), _point(snapshot)
    with open_lake(settings(home)) as lake:
        history = lake.history(kind)
        plan = history.plan_rollback(point)
        output.data(
            json.dumps(asdict(plan), default=str)
            if fmt is TextOrJson.JSON
            else "\n".join(_rollback_lines(plan))
        )
        if not plan.commits:
            note(f"table {plan.table} is at this snapshot: nothing to do")
            return
        for line in _CONSEQUENCES:
            note(line)
        if not plan.has_state:
            note(_NO_STATE)
        if plan.uncounted:
            note(f"the rows by symbol are unknown: {plan.uncounted}")
        if dry_run:
            note("dry run: nothing was changed")
            return
        confirm(f"roll back table {plan.table}?", is_confirmed=yes)
        history.roll_back(plan)
        note(f"table {plan.table} has {plan.rows:,} rows")


def tag(
    table: TableArg,
    name: Annotated[str, typer.Argument(help="Name of the tag.", show_default=False)],
    snapshot: Annotated[
        str | None,
        typer.Argument(help=f"Tag {_POINT}.", show_default="the newest snapshot"),
    ] = None,
    home: HomeOpt = None,
) -> None:
    """Tag a snapshot of a table. It is kept, with its files, until the tag is removed.

    Example: k2 table tag trades before-load
    """
    from k2cli.storage.lake import open_lake

    kind = kind_of_table(table)
    if _moment(name) is not None:
        raise UsageError(
            f"the tag {name!r} could be a time", hint=f"choose another name: eod-{name.strip()}"
        )
    point = None if snapshot is None else _point(snapshot)
    with open_lake(settings(home)) as lake:
        snapshot_id = lake.history(kind).tag(name, point)
    note(f"snapshot {snapshot_id} of table {kind.table} has the tag {name}")


def untag(
    table: TableArg,
    name: Annotated[str, typer.Argument(help="Name of the tag.", show_default=False)],
    home: HomeOpt = None,
) -> None:
    """Remove a tag. Its snapshot expires like any other from then on.

    Example: k2 table untag trades before-load
    """
    from k2cli.storage.lake import open_lake

    kind = kind_of_table(table)
    with open_lake(settings(home)) as lake:
        snapshot_id = lake.history(kind).untag(name)
    note(f"removed the tag {name} from snapshot {snapshot_id} of table {kind.table}")


@takes_groups
def diff(
    *,
    table: TableArg,
    before: Annotated[str, typer.Argument(help=f"The first: {_POINT}.", show_default=False)],
    after: Annotated[str, typer.Argument(help="The second, likewise.", show_default=False)],
    out: AnswerOptions,
    home: HomeOpt = None,
) -> None:
    """Count the rows added and removed between two snapshots, by exchange and symbol.

    A compaction does not change rows, so it shows no difference. Rows that were added and later
    removed are in both counts; only the net change is known where snapshots in between have
    expired. `main` is the newest snapshot.

    Example: k2 table diff trades before-load main
    """
    from k2cli.storage.lake import open_lake

    chosen = out.choose()
    kind, points = kind_of_table(table), (_point(before), _point(after))
    with open_lake(settings(home)) as lake:
        changes = lake.history(kind).diff(*points)
    output.print_rows(chosen, changes)
    if not changes.num_rows:
        note("no difference")


def _point(text: str) -> "Point":
    """Parse what names a snapshot.

    Raises:
        UsageError: it is empty, or a time in the future.
    """
    from k2cli.storage.history import Point

    if not text.strip():
        raise UsageError("the snapshot is empty", hint=f"write {_POINT}")
    moment = _moment(text)
    if moment is not None and moment > datetime.now(UTC):
        raise UsageError(f"{text.strip()} is in the future")
    return Point(text.strip(), moment)


def _moment(text: str) -> datetime | None:
    """Parse a time as `--start` of queries does; None if it is something else."""
    from k2cli.query.timespan import parse_time

    if text.strip().isdigit() and len(text.strip()) > _LONGEST_EPOCH:
        return None
    try:
        return parse_time(text, now=datetime.now(UTC))
    except ValueError:
        return None


def _rollback_lines(plan: "Rollback") -> list[str]:
    at_least = "at least " if plan.has_expired else ""
    lines = [
        f"now      snapshot {plan.newest_id}: {iso_utc(plan.newest_at)}, {plan.newest_rows:,} rows",
        f"then     snapshot {plan.snapshot_id}: {iso_utc(plan.committed_at)}, {plan.rows:,} rows",
        f"undone   {at_least}{plan.commits:,} commits",
        f"lost     {at_least}{plan.lost_rows:,} rows added since then",
        f"restored {at_least}{plan.restored_rows:,} rows removed since then",
    ]
    by_size = sorted(plan.symbols, key=lambda each: (-each.lost, each.exchange, each.symbol))
    for each in by_size[:_MAX_SYMBOLS]:
        restored = f", restored {each.restored:,}" if each.restored else ""
        lines.append(f"symbol   {each.exchange} {each.symbol}: lost {each.lost:,}{restored}")
    if more := by_size[_MAX_SYMBOLS:]:
        rest = sum(each.lost for each in more)
        lines.append(f"symbol   {len(more):,} more: lost {rest:,}; --format json shows all")
    return lines
