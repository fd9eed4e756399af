"""`k2 export`: write rows of the tables as files in the layout of their source."""

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.commands.groups import FileOptions, SelectionOptions, takes_groups
from k2cli.commands.known import remember_tables
from k2cli.commands.options import HomeOpt, LayoutOpt, each_kind, settings
from k2cli.commands.query import note_nothing
from k2cli.errors import UsageError
from k2cli.query.formats import Format

if TYPE_CHECKING:
    from k2cli.ingestion.csv.layout import Layout

export_app = typer.Typer(help="Export rows as files in a layout.", no_args_is_help=True)


@each_kind(
    export_app,
    "Write {kind} as CSV in a layout, the inverse of `k2 load csv`.\n\n"
    "Example: k2 export {kind} --symbol BHP --layout asx-{kind} -o {kind}.csv",
)
@takes_groups
def rows(
    context: typer.Context,
    *,
    layout: LayoutOpt,
    selecting: SelectionOptions,
    tz: Annotated[
        str | None,
        typer.Option(
            "--tz",
            metavar="ZONE",
            help="Write times in this zone, with offsets, if the layout has ISO 8601 times: an "
            "IANA name, or local. Times in options stay UTC unless they have an offset.",
            show_default="UTC",
        ),
    ] = None,
    output: FileOptions,
    home: HomeOpt = None,
) -> None:
    """Write the rows of the record kind in the command's name."""
    from k2cli.answers import LakeReader
    from k2cli.ingestion.csv.layout import load_layout
    from k2cli.pipelines.export import check_zone, export_rows
    from k2cli.zones import resolve_zone

    chosen = load_layout(layout)
    _check_kind(chosen, str(context.info_name))
    zone = resolve_zone("UTC" if tz is None else tz, env=os.environ)
    check_zone(chosen, zone)
    out = output.choose(Format.CSV)
    out = replace(out, has_header=chosen.header == "required")
    selection = selecting.select()
    with LakeReader(settings(home)) as reader:
        plan = reader.plan(chosen.record, selection)
        answer = reader.ask([plan], partial(export_rows, layout=chosen, selection=selection), zone)
        rows = out.write(answer, expected=selection.count_of(plan.rows))
        if not rows:
            note_nothing(reader, plan.kind, selection)
        remember_tables(reader.settings, reader.lake, [chosen.record])


def _check_kind(layout: "Layout", name: str) -> None:
    if layout.kind != name:
        raise UsageError(
            f"the layout is for {layout.kind}", hint=f"use k2 export {layout.kind} ..."
        )
