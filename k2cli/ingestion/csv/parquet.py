"""Parquet files into batches, by the same layouts: columns are found by their names.

Values become texts first, as a CSV file would have them, so that both forms of a file give the same
rows. Whole numbers, decimals and times are written exactly; floats as their shortest digits.
"""

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k2cli.columns import Unfit
from k2cli.errors import BadData, UsageError
from k2cli.flow import Batch, Reject
from k2cli.ingestion.csv.headers import find_columns
from k2cli.ingestion.csv.layout import Layout, TimeRule
from k2cli.ingestion.csv.names import CsvOptions
from k2cli.ingestion.csv.rows import Cells, RowBuilder
from k2cli.ingestion.csv.source import CsvSource, Start
from k2cli.ingestion.csv.times import check_zone

_ROWS: Final = 65_536  # of a batch
_PIECE_ROWS: Final = 4096  # of a batch that has rejects
_BROKEN: Final = (pa.ArrowException, OSError, ValueError, OverflowError)


def read_parquet(source: Path | IO[bytes], layout: Layout, options: CsvOptions) -> "ParquetSource":
    """Open a Parquet file, or read one from a stream such as stdin.

    Raises:
        NotFound: no such file.
        ConfigError: no permission to read it.
        UsageError: it is a folder, or the time zone is unknown.
    """
    zone = options.timezone or layout.time.zone
    check_zone(zone)
    return ParquetSource(source, layout, options, zone=zone)


class ParquetSource(CsvSource):
    """A Parquet file as a source of batches; iterate it once. Positions are numbers of rows."""

    def hash_content(self) -> str:
        """Return the SHA-256 of the file."""
        return self.hash()

    def expect_growth(self) -> None:
        """Refuse to follow it: a Parquet file does not grow.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.name} is Parquet", hint="only plain CSV files can be followed")

    def batches(self) -> Iterator[Batch]:
        """Yield the rows and rejects of the file, and close it."""
        with self._raw:
            start = self._started()
            self._builder = start.builder(self._line_file)
            first = 1
            for values in self._values():
                yield from self._built(self._builder, values, first)
                first += values.num_rows
            self._digest = self._raw.finish(self._digest)

    def _values(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._open(self._raw).iter_batches(_ROWS)
        except _BROKEN as exc:
            raise BadData(f"{self.name} cannot be read to its end: {exc}") from exc

    def _open(self, file: Any) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(pa.PythonFile(file, mode="r"))
        except _BROKEN as exc:
            raise BadData(f"{self.name} is not a Parquet file: {exc}") from exc

    def _built(self, builder: RowBuilder, values: pa.RecordBatch, first: int) -> Iterator[Batch]:
        now_us = time.time_ns() // 1000
        kind, cells = builder.kind, self._texts(values)
        try:
            rows = builder.build_all(cells, _numbers(first, values.num_rows), now_us)
        except Unfit:
            pass
        else:
            yield Batch(rows=[(kind, rows)], rejects=[], messages=values.num_rows)
            return
        for offset in range(0, values.num_rows, _PIECE_ROWS):
            part = [column.slice(offset, _PIECE_ROWS) for column in cells]
            count = len(part[0])
            built = builder.build(part, _numbers(first + offset, count), now_us)
            rejects = [
                Reject(
                    raw=_row_text(values.schema.names, part, index),
                    position=first + offset + index,
                    received_us=now_us,
                    reason=fault.reason,
                    column=fault.column,
                    code=fault.code,
                )
                for index, fault in sorted(built.faults.items())
            ]
            yield Batch(
                rows=[(kind, batch) for batch in built.rows], rejects=rejects, messages=count
            )

    def _texts(self, values: pa.RecordBatch) -> list[pa.StringArray]:
        try:
            return [_as_text(column) for column in values.columns]
        except _BROKEN as exc:
            raise BadData(f"{self.name} has a column that cannot be read: {exc}") from exc

    def _begin_file(self) -> Start:
        schema = self._open(self._raw.beside()).schema_arrow
        layout = _with_times(self._layout, schema)
        return self._fit(layout, schema.names, (), encoding="parquet")


def _numbers(first: int, count: int) -> Any:
    return np.arange(first, first + count)


def _with_times(layout: Layout, schema: pa.Schema) -> Layout:
    """Read a column of times as what it is, however the layout's files write them."""
    try:
        place = find_columns(layout, schema.names).fields.get("timestamp")
    except BadData:
        return layout  # and `_fit` explains it
    if place is None or not pa.types.is_timestamp(schema.field(place).type):
        return layout
    return msgspec.structs.replace(layout, time=TimeRule(how="auto", zone=layout.time.zone))


def _as_text(column: pa.Array) -> pa.StringArray:
    of = column.type
    if pa.types.is_dictionary(of):
        return _as_text(column.dictionary_decode())
    if pa.types.is_timestamp(of) and of.tz is not None:
        utc = column.cast(pa.timestamp(of.unit, tz="UTC"))
        texts = utc.cast(pa.timestamp(of.unit)).cast(pa.string())
        return pc.binary_join_element_wise(texts, "Z", "").fill_null("")
    if pa.types.is_nested(of):
        values = column.to_pylist()
        texts = [None if value is None else json.dumps(value, default=str) for value in values]
        column = pa.array(texts, pa.string())
    return column.cast(pa.string()).fill_null("")


def _row_text(names: Sequence[str], cells: Cells, index: int) -> bytes:
    row = {name: column[index].as_py() for name, column in zip(names, cells, strict=True)}
    return json.dumps(row, ensure_ascii=False).encode()
