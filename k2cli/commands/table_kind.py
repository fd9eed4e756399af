"""The argument that names a table."""

from typing import TYPE_CHECKING, Annotated

import typer

from k2cli.errors import NotFound
from k2cli.kinds import KindName

if TYPE_CHECKING:
    from k2cli.records import RecordKind

TableArg = Annotated[
    str,
    typer.Argument(help=f"{' or '.join(KindName)}, or a table's full name.", show_default=False),
]


def kind_of_table(table: str) -> "RecordKind":
    """Return the record kind of a table's name, with or without its namespace.

    Raises:
        NotFound: the table does not exist.
    """
    from k2cli.records import KINDS

    name = table.rpartition(".")[2].lower()
    for kind in KINDS.values():
        if name in (kind.name, kind.table):
            return kind
    raise NotFound(f"table {table!r} does not exist", hint=f"tables: {', '.join(KINDS)}")
