"""Read Parquet files into batches with the same layouts: columns are found by name.

Values are converted to the text that a CSV file would have, so both forms of a file give the same
rows. Integers, decimals and times are converted exactly; floats to their shortest digits, without
an exponent. A row is rejected if a float cannot hold its id or time exactly, or a text is not
UTF-8.

Only the columns in use are read, with text as dictionaries, so repeated values are not repeated in
memory; then a few megabytes of text at a time are converted to rows. Arrow cannot read text with
delta encodings as dictionaries: it is read few rows at a time. Small row groups are joined.
"""

import itertools
import json
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from k2cli.columns import Ints, Unfit
from k2cli.errors import BadData, UsageError
from k2cli.flow import Batch
from k2cli.ingestion.csv.blocks import LONGEST_LINE
from k2cli.ingestion.csv.headers import Columns, find_columns, time_fields
from k2cli.ingestion.csv.layout import Layout, TimeRule
from k2cli.ingestion.csv.names import CsvOptions
from k2cli.ingestion.csv.numbers import plain_numbers
from k2cli.ingestion.csv.rows import Cells, RowBuilder
from k2cli.ingestion.csv.source import CsvSource, Start
from k2cli.rejects import MAX_SHOWN, Cause, Fault, Reject

# Limits of a batch.
_ROWS: Final = 65_536
_CELLS: Final = 1 << 20
_BYTES: Final = 8 << 20  # of text
_BUFFER: Final = 1 << 20  # bytes of a column per read
_DELTA_BYTES: Final = 256 << 20  # at most of delta-encoded text per read, if its chunks are small
_MIN_ROWS: Final = 16  # per read
_PIECE_ROWS: Final = 4096  # of a batch with rejects
_BROKEN: Final = (pa.ArrowException, OSError, ValueError, OverflowError)
_EXACT: Final = {16: 1 << 11, 32: 1 << 24, 64: 1 << 53}  # floats below it are exact, by bits
_DELTA_ENCODINGS: Final = {"DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"}
_ID_FIELDS: Final = ("id", "source_sequence")


def read_parquet(source: Path | IO[bytes], layout: Layout, options: CsvOptions) -> "ParquetSource":
    """Open a Parquet file, or a stream such as stdin.

    Raises:
        NotFound: the file does not exist.
        ConfigError: no permission to read it.
        UsageError: it is a directory, or the time zone is unknown.
    """
    return ParquetSource(source, layout, options)


class ParquetSource(CsvSource):
    """A Parquet file as a source of batches; iterate it once. Positions are row numbers."""

    def hash_content(self) -> str:
        """Return the SHA-256 of the file."""
        return self.hash()

    def expect_growth(self) -> None:
        """Raise, because a Parquet file does not grow.

        Raises:
            UsageError: always.
        """
        raise UsageError(f"{self.name} is Parquet", hint="only plain CSV files can be followed")

    def batches(self) -> Iterator[Batch]:
        """Yield the rows and rejects of the file, then close it."""
        with self._raw:
            start = self._started()
            assert start.columns is not None, "a Parquet file has columns"
            used, columns = _used(start.columns)
            self._epochs = self._epoch_columns(used, columns)
            self._builder = replace(start, columns=columns).builder(self._line_file)
            first = 1
            for values in _joined(self._values(used), min(_ROWS, _CELLS // len(used))):
                yield from self._built(self._builder, columns, values, first)
                first += values.num_rows
            self._digest = self._raw.finish(self._digest)

    def _values(self, used: Sequence[int]) -> Iterator[pa.RecordBatch]:
        """Yield the columns at these indexes, a bounded number of rows and bytes at a time."""
        about = self._open(self._raw.beside())
        schema = self._schema(about)
        names = [schema.names[index] for index in used]
        deltas = _delta_encoded(about.metadata, names)
        texts = [
            field.name for field in schema if _is_text(field.type) and field.name not in deltas
        ]
        most = max(min(_ROWS, _DELTA_BYTES // max(deltas.values(), default=1)), _MIN_ROWS)
        file = self._open(
            self._raw, metadata=about.metadata, read_dictionary=texts, buffer_size=_BUFFER
        )
        try:
            for batch in file.iter_batches(
                min(_rows_at_once(about.metadata, len(names)), most),
                columns=[*dict.fromkeys(names)],
            ):
                indexes = [batch.schema.get_field_index(name) for name in names]
                columns = [_checked(batch.column(index)) for index in indexes]
                yield from self._parts(pa.RecordBatch.from_arrays(columns, names))
        except _BROKEN as exc:
            raise BadData(f"{self.name} cannot be read to its end: {exc}") from exc

    def _parts(self, values: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Split a batch into parts whose values fit in memory as texts."""
        sizes = _row_sizes(values)
        if sizes.max(initial=0) > LONGEST_LINE:
            raise BadData(f"{self.name} has a row of more than {LONGEST_LINE >> 20} MB")
        cuts = np.flatnonzero(np.diff(np.cumsum(sizes) // _BYTES)) + 1
        bounds = [0, *cuts.tolist(), values.num_rows]
        for start, end in itertools.pairwise(bounds):
            yield values.slice(start, end - start)

    def _open(self, file: Any, **options: Any) -> pq.ParquetFile:
        try:
            return pq.ParquetFile(
                pa.PythonFile(file, mode="r"), page_checksum_verification=True, **options
            )
        except _BROKEN as exc:
            raise BadData(f"{self.name} is not a Parquet file: {exc}") from exc

    def _schema(self, file: pq.ParquetFile) -> pa.Schema:
        try:
            return file.schema_arrow
        except _BROKEN as exc:
            raise BadData(f"{self.name} has columns that cannot be read: {exc}") from exc

    def _built(
        self, builder: RowBuilder, columns: Columns, values: pa.RecordBatch, first: int
    ) -> Iterator[Batch]:
        now_us, kind = time.time_ns() // 1000, builder.kind
        cells, unfit = self._texts(columns, values)
        try:
            if unfit:
                raise Unfit("values of some rows cannot be converted to text", Cause.BAD_ROW)
            rows = builder.build_all(cells, first + np.arange(values.num_rows), now_us)
        except Unfit:
            pass
        else:
            yield Batch(rows=[(kind, rows)], rejects=[], messages=values.num_rows)
            return
        for offset in range(0, values.num_rows, _PIECE_ROWS):
            part = [column.slice(offset, _PIECE_ROWS) for column in cells]
            count = len(part[0])
            faults = {at: unfit[offset + at] for at in range(count) if offset + at in unfit}
            kept = np.setdiff1d(np.arange(count), list(faults))
            fit = [column.take(pa.array(kept)) for column in part]
            built = builder.build(fit, first + offset + kept, now_us)
            faults |= {int(kept[at]): fault for at, fault in built.faults.items()}
            rejects = [
                Reject(
                    fault=fault,
                    raw=_row_text(columns.names, values, part, offset, index),
                    position=first + offset + index,
                    received_us=now_us,
                )
                for index, fault in sorted(faults.items())
            ]
            yield Batch(
                rows=[(kind, batch) for batch in built.rows], rejects=rejects, messages=count
            )

    def _texts(
        self, columns: Columns, values: pa.RecordBatch
    ) -> tuple[list[pa.StringArray], Mapping[int, Fault]]:
        """Convert the values to texts; also return the faults of rows, by index."""
        faults: dict[int, Fault] = {}
        cells: list[pa.StringArray] = []
        try:
            for number, column in enumerate(values.columns):
                for index, fault in _inexact(columns, number, column):
                    faults.setdefault(index, fault)
                texts, bad = _readable(self._texts_of(columns, number, column))
                for index in bad:
                    name = columns.names[number]
                    value = texts[index].as_py()[:MAX_SHOWN]
                    fault = _fault(name, value, "is not UTF-8", Cause.BAD_ENCODING)
                    faults.setdefault(index, fault)
                cells.append(texts)
        except _BROKEN as exc:
            raise BadData(f"{self.name} has a column that cannot be read: {exc}") from exc
        return cells, faults

    def _texts_of(self, columns: Columns, index: int, column: pa.Array) -> pa.StringArray:
        rule = self._layout.time
        if index in self._epochs:
            return _epoch_texts(column, self._options.timezone or rule.zone)
        is_day = pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)
        if is_day and rule.how == "format" and columns.fields.get("date") == index:
            return pc.strftime(column, rule.date_formats[0]).fill_null("")
        texts = _as_text(column)
        if pa.types.is_decimal(column.type) and _is_id(columns, index):
            return pc.replace_substring_regex(texts, r"\.0+$", "")
        return texts

    def _epoch_columns(self, used: Sequence[int], columns: Columns) -> frozenset[int]:
        """Return the indexes of timestamps that vendor_data has as numbers in a CSV file."""
        if self._layout.time.how != "epoch":
            return frozenset()
        schema = self._schema(self._open(self._raw.beside()))
        return frozenset(
            index
            for _, index in columns.vendor
            if pa.types.is_timestamp(schema.field(used[index]).type)
        )

    def _begin_file(self) -> Start:
        schema = self._schema(self._open(self._raw.beside()))
        layout = _with_times(self._layout, schema)
        return self._fit(layout, schema.names, (), encoding="parquet")


def _used(columns: Columns) -> tuple[list[int], Columns]:
    """Return the indexes of the used columns, and the columns reduced to these.

    The column of the timestamp is there twice if vendor_data has it as well, which may need
    another text.
    """
    used = sorted({*columns.fields.values(), *(index for _, index in columns.vendor)})
    now = {old: new for new, old in enumerate(used)}
    of_vendor = dict(now)
    for field in time_fields(columns.fields):
        index = columns.fields[field]
        if any(index == at for _, at in columns.vendor):
            of_vendor[index] = len(used)
            used.append(index)
    return used, replace(
        columns,
        names=tuple(columns.names[index] for index in used),
        fields={name: now[index] for name, index in columns.fields.items()},
        vendor=tuple((key, of_vendor[index]) for key, index in columns.vendor),
        lower=frozenset(now[index] for index in columns.lower if index in now),
    )


def _joined(parts: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Join small batches to batches of at most this many rows and `_BYTES` of text."""
    waiting: list[pa.RecordBatch] = []
    count = size = 0
    for part in parts:
        own = int(_row_sizes(part).sum())
        if waiting and (count + part.num_rows > rows or size + own > _BYTES):
            yield _join(waiting)
            waiting, count, size = [], 0, 0
        waiting.append(part)
        count, size = count + part.num_rows, size + own
    if waiting:
        yield _join(waiting)


def _join(parts: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return parts[0] if len(parts) == 1 else pa.concat_batches(parts)


def _delta_encoded(metadata: pq.FileMetaData, names: Collection[str]) -> Mapping[str, int]:
    """Return the columns of delta-encoded text among these, with the bytes of a chunk.

    A value cannot be longer than the decompressed bytes of its chunk.
    """
    sizes: dict[str, int] = {}
    paths = [metadata.schema.column(index).path for index in range(metadata.num_columns)]
    of_names = [index for index, path in enumerate(paths) if path in names]
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        for index in of_names:
            chunk = group.column(index)
            if not _DELTA_ENCODINGS.isdisjoint(chunk.encodings):
                path = paths[index]
                sizes[path] = max(sizes.get(path, 1), chunk.total_uncompressed_size)
    return sizes


def _rows_at_once(metadata: pq.FileMetaData, columns: int) -> int:
    """Return how many rows to read so that values and bytes stay bounded.

    The size of all columns is used: Arrow aborts if that of a single one is corrupt.
    """
    groups = map(metadata.row_group, range(metadata.num_row_groups))
    widest = max((group.total_byte_size // max(group.num_rows, 1) for group in groups), default=1)
    return max(min(_ROWS, _CELLS // columns, _BYTES // max(widest, 1)), 1)


def _is_text(of: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_string(of)
        or types.is_large_string(of)
        or types.is_string_view(of)
        or types.is_binary(of)
        or types.is_large_binary(of)
        or types.is_binary_view(of)
    )


def _checked(column: pa.Array) -> pa.Array:
    """Return a column after checking that its dictionary has every referenced value."""
    if pa.types.is_dictionary(column.type):
        least_most = pc.min_max(column.indices).as_py()
        if least_most["min"] is not None and not (
            0 <= least_most["min"] <= least_most["max"] < len(column.dictionary)
        ):
            raise ValueError("a dictionary lacks values")
    return column


def _row_sizes(values: pa.RecordBatch) -> Ints:
    return sum(map(_sizes, values.columns), np.zeros(values.num_rows, dtype=np.int64))


def _sizes(column: pa.Array) -> Ints:
    """Estimate the bytes of each value as text; 0 for types that are always short."""
    if pa.types.is_dictionary(column.type):
        of_values = np.append(_sizes(column.dictionary), 0)  # and the index of null
        sizes: Ints = of_values[pc.fill_null(column.indices, len(column.dictionary)).to_numpy()]
        return sizes
    if _is_text(column.type):
        lengths = pc.binary_length(column).cast(pa.int64()).fill_null(0)
        return np.asarray(lengths.to_numpy(zero_copy_only=False), dtype=np.int64)
    is_nested = pa.types.is_nested(column.type)
    return np.full(len(column), column.nbytes // len(column) if is_nested else 0, dtype=np.int64)


def _is_id(columns: Columns, number: int) -> bool:
    return any(columns.fields.get(name) == number for name in _ID_FIELDS)


def _inexact(columns: Columns, number: int, column: pa.Array) -> Iterator[tuple[int, Fault]]:
    """Yield the rows in which a float of an id or a time may be inexact, with their faults."""
    fields = [name for name, at in columns.fields.items() if at == number]
    is_id = _is_id(columns, number)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    is_time = any(name in time_fields(columns.fields) for name in fields)
    if not (pa.types.is_floating(column.type) and (is_id or is_time)):
        return
    numbers = _doubles(column)
    is_exact = pc.less(pc.abs(numbers), float(_EXACT[column.type.bit_width]))
    if is_id:
        is_exact = pc.and_(is_exact, pc.equal(numbers, pc.floor(numbers)))
    name = columns.names[number]
    for index in pc.indices_nonzero(pc.invert(is_exact.fill_null(True))).to_pylist():
        brief = "is a float that is not exact: store integers instead"
        yield index, _fault(name, numbers[index].as_py(), brief, Cause.INEXACT, field=fields[0])


def _fault(column: str, value: object, brief: str, cause: Cause, *, field: str = "") -> Fault:
    return Fault(
        reason=f"{column} {value!r} {brief}",
        cause=cause,
        field=field,
        value=str(value),
        column=column,
        brief=brief,
    )


def _readable(texts: pa.StringArray) -> tuple[pa.StringArray, Sequence[int]]:
    """Return the texts as UTF-8, with invalid ones escaped, and the indexes of those."""
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        raw = texts.cast(pa.binary()).to_pylist()
        escaped = [value.decode(errors="backslashreplace") for value in raw]
        pairs = enumerate(zip(raw, escaped, strict=True))
        bad = [index for index, (value, text) in pairs if value != text.encode()]
        return pa.array(escaped, pa.string()), bad
    return texts, ()


def _with_times(layout: Layout, schema: pa.Schema) -> Layout:
    """Adapt the layout to a column of timestamps, however its CSV files write them."""
    try:
        index = find_columns(layout, schema.names).fields.get("timestamp")
    except BadData:
        return layout  # and `_fit` explains why
    if index is None or not pa.types.is_timestamp(schema.field(index).type):
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
        column = _json_texts(column)
    if pa.types.is_floating(of):
        return _float_texts(column)
    return pc.cast(column, pa.string(), safe=False).fill_null("")  # `_readable` checks it


def _json_texts(column: pa.Array) -> pa.BinaryArray:
    """Format nested values as JSON; text that is not UTF-8 keeps its bytes, for `_readable`."""
    values = column.cast(_with_bytes(column.type)).to_pylist()
    texts = [
        None if value is None else json.dumps(value, default=_json_text, ensure_ascii=False)
        for value in values
    ]
    return pa.array([text and text.encode(errors="surrogateescape") for text in texts], pa.binary())


def _json_text(value: object) -> str:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else str(value)


def _with_bytes(of: pa.DataType) -> pa.DataType:
    """Return a nested type with bytes for text."""
    types = pa.types
    if types.is_string(of) or types.is_large_string(of):
        return pa.binary() if types.is_string(of) else pa.large_binary()
    if types.is_struct(of):
        return pa.struct([field.with_type(_with_bytes(field.type)) for field in of.fields])
    if types.is_map(of):
        return pa.map_(_with_bytes(of.key_type), _with_bytes(of.item_type))
    if types.is_list(of) or types.is_large_list(of):
        field = of.value_field.with_type(_with_bytes(of.value_type))
        return pa.list_(field) if types.is_list(of) else pa.large_list(field)
    return of


def _epoch_texts(column: pa.Array, zone: str) -> pa.StringArray:
    """Format timestamps as microseconds since 1970, as the files of layouts with such times."""
    micros = pc.cast(column, pa.timestamp("us", tz=column.type.tz), safe=False)
    if column.type.tz is None:
        micros = pc.assume_timezone(micros, zone, ambiguous="earliest", nonexistent="earliest")
    return micros.cast(pa.int64()).cast(pa.string()).fill_null("")


def _doubles(column: pa.Array) -> pa.DoubleArray:
    if pa.types.is_float16(column.type):
        column = column.cast(pa.float32())
    return column.cast(pa.float64())


def _float_texts(column: pa.Array) -> pa.StringArray:
    """Format floats with all their digits, whole ones without a point."""
    numbers = _doubles(column)
    is_whole = pc.and_(
        pc.less(pc.abs(numbers), float(_EXACT[64])), pc.equal(numbers, pc.floor(numbers))
    )
    whole = pc.if_else(is_whole.fill_null(False), numbers, None).cast(pa.int64())
    return plain_numbers(pc.coalesce(whole.cast(pa.string()), column.cast(pa.string()), ""))


def _row_text(
    names: Sequence[str], values: pa.RecordBatch, part: Cells, offset: int, index: int
) -> bytes:
    row = {
        name: cells[index].as_py() if column[offset + index].is_valid else None
        for name, column, cells in reversed([*zip(names, values.columns, part, strict=True)])
    }
    return json.dumps({name: row[name] for name in names}, ensure_ascii=False).encode()
