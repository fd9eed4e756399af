"""`k2 schema diff`: how two schemas differ."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.options import (
    HomeOpt,
    RegistryOpt,
    TextOrJson,
    TextOrJsonOpt,
    TimeoutOpt,
)
from k2cli.commands.schema.names import Finder
from k2cli.commands.terminal import output
from k2cli.commands.terminal.streams import note

if TYPE_CHECKING:
    from k2cli.avro.differences import Difference

_HELP = "A name such as trade_v2, FILE.avsc, - or SUBJECT@VERSION."
_SIGNS = {"added": "+", "removed": "-"}


def diff(
    old: Annotated[str, typer.Argument(help=_HELP, show_default=False)],
    new: Annotated[str, typer.Argument(help=_HELP, show_default=False)],
    fmt: TextOrJsonOpt = TextOrJson.TEXT,
    timeout: TimeoutOpt = None,
    registry: RegistryOpt = None,
    home: HomeOpt = None,
) -> None:
    """Show how two schemas differ, field by field: added, removed, type, default, doc, aliases.

    The exit code is 0 even if they differ; use `k2 schema check` to check compatibility.

    Example: k2 schema diff trade_v1 trade_v2
    """
    from k2cli.avro.differences import differences

    finder = Finder(home=home, registry=registry, timeout_s=timeout)
    older, newer = finder.find(old), finder.find(new)
    found = differences(older.linked().type, newer.linked().type)
    if fmt is TextOrJson.JSON:
        document = {
            "old": older.name,
            "new": newer.name,
            "differences": [{**asdict(each), "path": each.path or None} for each in found],
        }
        output.data(json.dumps(document, ensure_ascii=False))
    elif found:
        output.data("\n".join(_lines(found)))
    if not found:
        note("no difference")


def _lines(found: "Sequence[Difference]") -> list[str]:
    """Format one line per difference; the name of a field only the first time."""
    width = max(len(each.path) for each in found)
    lines = []
    before: str | None = None
    for each in found:
        sign = _SIGNS.get(each.what, "~")
        name = "" if each.path == before else each.path
        before = each.path
        if each.what in _SIGNS:
            change = each.new or each.old or ""
        else:
            change = f"{each.what}: {_text(each.old)} -> {_text(each.new)}"
        lines.append(f"{sign} {name:{width}}  {change}")
    return lines


def _text(value: str | None) -> str:
    return "none" if value is None else value
