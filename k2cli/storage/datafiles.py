"""Write rows to Parquet data files with the table's field ids, which are committed unchanged.

pyarrow writes these rows at about a million a second if only repetitive columns get a dictionary;
pyiceberg's append spends several times that on casts.
"""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyiceberg.io.pyarrow import (
    compute_statistics_plan,
    data_file_statistics_from_parquet_metadata,
    parquet_path_to_id_mapping,
)
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
from pyiceberg.partitioning import PartitionFieldValue, PartitionKey
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.types import ListType, MapType, NestedField

from k2cli.records import RecordKind
from k2cli.storage.admission import rows_days
from k2cli.storage.evolve import arrow_columns, fit_rows
from k2cli.storage.vendor import translated_damage

ROW_GROUP_ROWS: Final = 100_000
_NULL_FIRST: Final = -1  # numbers are not negative
# Columns of few distinct values; ids and numbers are better off without a dictionary.
_DICTIONARY: Final = [
    *("symbol", "exchange", "asset_class", "currency", "side"),
    *("vendor_data.key_value.key", "vendor_data.key_value.value"),
]


def write_data_files(table: Table, kind: RecordKind, rows: pa.Table) -> list[DataFile]:
    """Write sorted rows as one Parquet file per day; nothing is visible until committed.

    `rows` have the kind's columns, and optionally other columns of the table, in any order. The
    table's location provider determines the paths.

    Raises:
        BadData: the table is outdated: it lacks a column, or a value does not fit a narrower one.
    """
    rows = fit_rows(table, kind, rows)
    schema = arrow_schema_with_ids(rows.schema, table.schema())
    files: list[DataFile] = []
    try:
        for day, part in _sorted_days(kind, rows):
            files.append(_write_file(table, kind, _day_key(table, day), schema, [part]))
    except BaseException:
        delete_files(table, (file.file_path for file in files))
        raise
    return files


@contextmanager
def open_data_file(table: Table, path: str, **options: Any) -> Iterator[pq.ParquetFile]:
    """Open a data file for reading, with options of `pyarrow.parquet.ParquetFile`.

    Page checksums, which all files written by k2 have, are verified during reading.

    Raises:
        BadData: the file is damaged; this may only be detected during reading.
    """
    with translated_damage(path), table.io.new_input(path).open() as stream:
        yield pq.ParquetFile(stream, page_checksum_verification=True, **options)


def read_data_file(
    table: Table, file: DataFile, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """Yield the rows of a data file by row group, with the table's current columns.

    `columns` selects some of them; by default all are read.

    Columns are found by their field ids, so the engine that wrote the file and former names or
    widths of columns do not matter.
    """
    schema = arrow_columns(table.schema())
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    ids = {field.name: str(field.field_id).encode() for field in table.schema().fields}
    with open_data_file(table, file.file_path) as parquet:
        written = {
            (field.metadata or {}).get(b"PARQUET:field_id"): field.name
            for field in parquet.schema_arrow
        }
        names = {name: written[ids[name]] for name in schema.names if ids[name] in written}
        for group in range(parquet.num_row_groups):
            read = parquet.read_row_group(group, list(names.values()), use_threads=False)
            yield pa.Table.from_arrays(
                [
                    read[names[field.name]].cast(field.type)
                    if field.name in names
                    else pa.nulls(read.num_rows, field.type)
                    for field in schema
                ],
                schema=schema,
            )


def write_data_file_again(
    table: Table, kind: RecordKind, file: DataFile, rows: Iterable[pa.Table]
) -> DataFile:
    """Write a replacement for a data file; invisible until committed.

    `rows` are in order, have the columns of the table, and belong to the file's partition.
    """
    schema = arrow_schema_with_ids(arrow_columns(table.schema()), table.schema())
    form = _Form(sort_order_id=file.sort_order_id)
    return _write_file(table, kind, _key_of(table, file), schema, rows, form)


def write_sorted_files(  # noqa: PLR0913  one parameter per property of the files
    table: Table,
    kind: RecordKind,
    like: DataFile,
    rows: Iterable[pa.Table],
    *,
    size_bytes: int,
    sort_order_id: int | None,
) -> Iterator[DataFile]:
    """Write sorted rows of one partition, that of `like`, as files of at least this size.

    The last one may be smaller. Each file is yielded when it is complete; nothing is visible until
    committed. `rows` have the columns of the table; each part becomes a row group, or several.
    """
    schema = arrow_schema_with_ids(arrow_columns(table.schema()), table.schema())
    key, parts = _key_of(table, like), iter(rows)
    form = _Form(sort_order_id=sort_order_id, size_bytes=size_bytes)
    for first in parts:
        yield _write_file(table, kind, key, schema, chain([first], parts), form)


def _key_of(table: Table, file: DataFile) -> PartitionKey:
    """Return the partition of a data file."""
    spec = table.specs()[file.spec_id]
    values = [
        PartitionFieldValue(field=field, value=file.partition[at])
        for at, field in enumerate(spec.fields)
    ]
    return PartitionKey(field_values=values, partition_spec=spec, schema=table.schema())


def delete_files(table: Table, paths: Iterable[str]) -> None:
    """Delete unreferenced files; a file that cannot be deleted is garbage, not an error."""
    for path in paths:
        with suppress(OSError):
            table.io.delete(path)


def _day_key(table: Table, day: int) -> PartitionKey:
    spec = table.spec()
    value = PartitionFieldValue(field=spec.fields[0], value=day)
    return PartitionKey(field_values=[value], partition_spec=spec, schema=table.schema())


def _sorted_days(kind: RecordKind, rows: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Split rows by UTC day (days since 1970), each part in the kind's sort order."""
    days = rows_days(kind, rows)
    order = np.lexsort((*sort_keys(rows, kind.sort_by), days))
    ordered = rows.take(pa.array(order))
    present, starts = np.unique(days[order], return_index=True)
    for day, start, end in zip(present, starts, [*starts[1:], len(order)], strict=True):
        yield int(day), ordered.slice(start, end - start)


def sort_keys(
    rows: pa.Table, sort_by: Sequence[str], *, null: int = _NULL_FIRST
) -> list[npt.NDArray[np.int64]]:
    """Return the keys that `numpy.lexsort` needs to order rows by these columns.

    A null number is ordered like the number `null`.
    """
    return [_sort_key(rows[name], null) for name in reversed(sort_by)]


def _sort_key(column: pa.ChunkedArray, null: int) -> npt.NDArray[np.int64]:
    """Map values to integers of the same order; strings by code point."""
    key: npt.NDArray[np.int64]
    if pa.types.is_string(column.type):
        encoded = column.combine_chunks().dictionary_encode()
        rank = np.argsort(np.argsort(np.array(encoded.dictionary.to_pylist(), dtype=object)))
        key = rank[encoded.indices.to_numpy()]
    else:
        key = column.cast(pa.int64()).fill_null(null).to_numpy()
    return key


@dataclass(frozen=True, slots=True, kw_only=True)
class _Form:
    """How a data file is written."""

    sort_order_id: int | None = None
    size_bytes: int | None = None  # the file ends with the part that reaches this size


def _write_file(  # noqa: PLR0913, PLR0917  one parameter per property of a file
    table: Table,
    kind: RecordKind,
    key: PartitionKey,
    schema: pa.Schema,
    parts: Iterable[pa.Table],
    form: _Form = _Form(),
) -> DataFile:
    """Write one data file; delete it if that fails."""
    output = table.io.new_output(
        table.location_provider().new_data_location(f"{uuid.uuid4()}.parquet", key)
    )
    try:
        with (
            output.create() as stream,
            pq.ParquetWriter(
                stream,
                schema,
                compression="zstd",
                write_page_checksum=True,
                use_dictionary=[name for name in _DICTIONARY if name.split(".")[0] in schema.names],
                column_encoding={
                    "message_id": "DELTA_BYTE_ARRAY",
                    kind.id_column: "DELTA_BYTE_ARRAY",
                },
                store_decimal_as_integer=True,
            ) as writer,
        ):
            for rows in parts:
                writer.write_table(
                    pa.Table.from_arrays(rows.columns, schema=schema), ROW_GROUP_ROWS
                )
                if form.size_bytes is not None and stream.tell() >= form.size_bytes:
                    break
    except BaseException:
        delete_files(table, [output.location])
        raise
    statistics = data_file_statistics_from_parquet_metadata(
        parquet_metadata=writer.writer.metadata,
        stats_columns=compute_statistics_plan(table.schema(), table.properties),
        parquet_column_mapping=parquet_path_to_id_mapping(table.schema()),
    )
    return DataFile.from_args(
        content=DataFileContent.DATA,
        file_path=output.location,
        file_format=FileFormat.PARQUET,
        partition=key.partition,
        file_size_in_bytes=len(output),
        sort_order_id=form.sort_order_id,
        spec_id=key.partition_spec.spec_id,
        equality_ids=None,
        key_metadata=None,
        **statistics.to_serialized_dict(),
    )


def arrow_schema_with_ids(arrow: pa.Schema, iceberg: Schema) -> pa.Schema:
    """Add the table's field ids, including nested ones, to an Arrow schema, by name."""
    return pa.schema([_with_id(field, iceberg.find_field(field.name)) for field in arrow])


def _with_id(field: pa.Field, iceberg: NestedField) -> pa.Field:
    kind = field.type
    match iceberg.field_type:
        case ListType() as nested:
            kind = pa.list_(_with_id(kind.value_field, nested.element_field))
        case MapType() as nested:
            key = _with_id(kind.key_field, nested.key_field)
            kind = pa.map_(key, _with_id(kind.item_field, nested.value_field))
        case _:
            pass
    metadata = {"PARQUET:field_id": str(iceberg.field_id)}
    return pa.field(field.name, kind, nullable=field.nullable, metadata=metadata)
