"""How a record kind becomes an Iceberg table."""

from collections.abc import Mapping
from typing import Final

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import TableAlreadyExistsError, ValidationError
from pyiceberg.io.pyarrow import UnsupportedPyArrowTypeException, _pyarrow_to_schema_without_ids
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.transforms import DayTransform, IdentityTransform

from k2cli.records import RecordKind

# For other engines, whose rewrites race k2's commits. k2 itself retries in its own way.
RETRIES_KEY: Final = "commit.retry.num-retries"
RETRIES: Final = "10"
_PROPERTIES: Final[Mapping[str, str]] = {
    "format-version": "2",
    RETRIES_KEY: RETRIES,
    # What keeps the thousandth commit as cheap as the tenth.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    "commit.manifest.target-size-bytes": "1048576",  # the most that one merge writes again
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    "write.parquet.compression-codec": "zstd",
    # Bounds only for the columns that prune; the others would only make manifests large.
    "write.metadata.metrics.default": "none",
    "write.metadata.metrics.column.symbol": "full",
    "write.metadata.metrics.column.exchange": "full",
    "write.metadata.metrics.column.timestamp": "full",
    "write.metadata.metrics.column.source_sequence": "full",
}


def create_table(catalog: Catalog, identifier: tuple[str, str], kind: RecordKind) -> None:
    """Create a kind's table: docs from the schema, partitioned by day, sorted.

    Raises:
        TableAlreadyExistsError: it is there, be it since a moment ago.
        CommitFailedException: as the one above, from catalogs that find out at the end.
    """
    with catalog.create_table_transaction(
        identifier, schema=kind.arrow, properties=dict(_PROPERTIES)
    ) as transaction:
        if transaction.table_metadata.spec().fields:  # some catalogs hand out what is there
            raise TableAlreadyExistsError(".".join(identifier))
        day_name = f"{kind.partition_by}_day"
        with transaction.update_spec() as spec:
            spec.add_field(kind.partition_by, DayTransform(), day_name)
        with transaction.update_sort_order() as order:
            for name in kind.sort_by:
                order.asc(name, IdentityTransform())


def iceberg_schema(columns: pa.Schema) -> Schema:
    """Return the schema that a table of these columns gets.

    Raises:
        ValueError: Iceberg has no such type.
    """
    try:
        return assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(columns))
    except (UnsupportedPyArrowTypeException, ValidationError, TypeError) as exc:
        raise ValueError(str(exc)) from exc
