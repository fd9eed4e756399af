"""Data files as a table has them, without a table."""

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from k2cli.records import RecordKind, TableFiles


def write_files(
    folder: Path, kind: RecordKind, *tables: pa.Table, old_names: Mapping[str, str] = {}
) -> TableFiles:
    """Write Parquet files with field ids, as the table would."""
    ids = {name: place for place, name in enumerate(kind.arrow.names, start=1)}
    paths = []
    for place, table in enumerate(tables):
        fields = [
            pa.field(old_names.get(field.name, field.name), field.type)
            .with_metadata({"PARQUET:field_id": str(ids[field.name])})
            for field in table.schema
        ]  # fmt: skip
        path = folder / f"{kind.name}-{place}.parquet"
        pq.write_table(pa.table(table.columns, schema=pa.schema(fields)), path)
        paths.append(str(path))
    return TableFiles(
        kind=kind,
        paths=tuple(paths),
        columns={field_id: name for name, field_id in ids.items()},
        rows=sum(table.num_rows for table in tables),
    )
