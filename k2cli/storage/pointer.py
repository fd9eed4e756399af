"""Read and swap the metadata file that a catalog has for a table.

Only SQL catalogs, including the embedded one, store this pointer where k2 can access it; others
manage their metadata files themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from k2cli.errors import ConfigError, Conflict


@dataclass(frozen=True, slots=True)
class Pointer:
    """The metadata file of a table, and the one before it."""

    current: str
    previous: str | None = None


def read_pointers(catalog: Catalog) -> dict[tuple[str, str], Pointer]:
    """Return the pointers of all tables of a catalog, by namespace and name.

    Raises:
        ConfigError: k2 cannot set the pointers of this catalog.
    """
    sql = _sql(catalog)
    query = select(
        IcebergTables.table_namespace,
        IcebergTables.table_name,
        IcebergTables.metadata_location,
        IcebergTables.previous_metadata_location,
    ).where(IcebergTables.catalog_name == sql.name)
    with Session(sql.engine) as session:
        return {
            (namespace, name): Pointer(current, previous)
            for namespace, name, current, previous in session.execute(query)
            if current
        }


def swap_pointers(
    catalog: Catalog, swaps: Mapping[tuple[str, str], tuple[Pointer, Pointer]]
) -> None:
    """Replace the pointers of tables, (old, new), in one transaction: all or none.

    Raises:
        ConfigError: k2 cannot set the pointers of this catalog.
        Conflict: another process changed one since it was read.
    """
    sql = _sql(catalog)
    with Session(sql.engine) as session:
        for (namespace, name), (old, new) in swaps.items():
            statement = (
                update(IcebergTables)
                .where(
                    IcebergTables.catalog_name == sql.name,
                    IcebergTables.table_namespace == namespace,
                    IcebergTables.table_name == name,
                    IcebergTables.metadata_location == old.current,
                )
                .values(metadata_location=new.current, previous_metadata_location=new.previous)
            )
            if session.connection().execute(statement).rowcount != 1:
                raise Conflict(
                    f"table {namespace}.{name} was changed by another process meanwhile",
                    hint="run the command again",
                )
        session.commit()


def _sql(catalog: Catalog) -> SqlCatalog:
    if not isinstance(catalog, SqlCatalog):
        raise ConfigError(
            "this catalog keeps track of the metadata files itself; k2 cannot change which one is"
            " current",
            hint="restore the table with the catalog's own tools",
        )
    return catalog
