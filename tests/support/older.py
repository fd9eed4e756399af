"""Tables as they were before their kind got wider: what a lakehouse has until it is evolved."""

from k2cli.records import KINDS
from k2cli.storage.lake import NAMESPACE, Lake
from k2cli.storage.tables import create_table
from support.builders import narrow


def make_narrow(lake: Lake) -> None:
    """Replace all tables by ones whose quantities have 18 digits."""
    for kind in KINDS.values():
        identifier, catalog = (NAMESPACE, kind.table), lake.open(kind).iceberg.catalog
        catalog.drop_table(identifier)
        create_table(catalog, identifier, narrow(kind))
