"""Create the Iceberg table of a record kind."""

from collections.abc import Mapping
from typing import Final

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import TableAlreadyExistsError, ValidationError
from pyiceberg.io.pyarrow import UnsupportedPyArrowTypeException, _pyarrow_to_schema_without_ids
from pyiceberg.schema import Schema, assign_fresh_schema_ids
from pyiceberg.transforms import DayTransform, IdentityTransform

from k2cli.records import RecordKind

# For other engines, whose rewrites race k2's commits. k2 has separate retries.
RETRIES_KEY: Final = "commit.retry.num-retries"
RETRIES: Final = "10"
_PROPERTIES: Final[Mapping[str, str]] = {
    "format-version": "2",
    RETRIES_KEY: RETRIES,
    # Keeps the thousandth commit as cheap as the tenth.
    "commit.manifest-merge.enabled": "true",
    "commit.manifest.min-count-to-merge": "50",
    "commit.manifest.target-size-bytes": "1048576",  # the maximum that one merge rewrites
    "write.metadata.delete-after-commit.enabled": "true",
    "write.metadata.previous-versions-max": "10",
    "write.parquet.compression-codec": "zstd",
    # Bounds only for columns that prune files; others would only enlarge manifests.
    "write.metadata.metrics.default": "none",
    "write.metadata.metrics.column.symbol": "full",
    "write.metadata.metrics.column.exchange": "full",
    "write.metadata.metrics.column.timestamp": "full",
    "write.metadata.metrics.column.source_sequence": "full",
}


def create_table(catalog: Catalog, identifier: tuple[str, str], kind: RecordKind) -> None:
    """Create a kind's table: docs from the schema, partitioned by day, sorted.

    Raises:
        TableAlreadyExistsError: it already exists, possibly created just now.
        CommitFailedException: the same, from catalogs that detect it at the end.
    """
    with catalog.create_table_transaction(
        identifier, schema=kind.arrow, properties=dict(_PROPERTIES)
    ) as transaction:
        if transaction.table_metadata.spec().fields:  # some catalogs return the existing table
            raise TableAlreadyExistsError(".".join(identifier))
        day_name = f"{kind.partition_by}_day"
        with transaction.update_spec() as spec:
            spec.add_field(kind.partition_by, DayTransform(), day_name)
        with transaction.update_sort_order() as order:
            for name in kind.sort_by:
                order.asc(name, IdentityTransform())


def iceberg_schema(columns: pa.Schema) -> Schema:
    """Return the Iceberg schema for a table with these columns.

    Raises:
        ValueError: Iceberg does not have a type.
    """
    try:
        return assign_fresh_schema_ids(_pyarrow_to_schema_without_ids(columns))
    except (UnsupportedPyArrowTypeException, ValidationError, TypeError) as exc:
        raise ValueError(str(exc)) from exc
