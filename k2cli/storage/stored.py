"""Looking records up in a table by their numbers: few files are opened, and few columns read.

Manifests never change, so each is read once by a process; what remains of it is a few numbers for
each data file.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.conversions import from_bytes
from pyiceberg.manifest import DataFile, ManifestContent, ManifestFile
from pyiceberg.table import Table

from k2cli.ranges import Ints, union
from k2cli.records import RecordKind
from k2cli.storage.admission import RECEIVED, Found, Keys, rows_days
from k2cli.storage.lines import KEY_COLUMNS, Lines, line_keys
from k2cli.storage.numbered import Numbered, numbered_rows
from k2cli.storage.position import Series, Stored

_LEAST: Final = np.iinfo(np.int64).min
_MOST: Final = np.iinfo(np.int64).max
_LAST_TEXT: Final = chr(0x10FFFF)
_IDENTITY: Final = ("exchange", "symbol", "source_sequence")
_TEXTS: Final = ["exchange", "symbol"]


@dataclass(frozen=True, slots=True)
class FileStatistics:
    """What is known of some data files without opening them, an element a file."""

    paths: list[str]
    days: Ints  # of the partition, days since 1970, UTC
    numbers: Ints  # shape (n, 2): bounds of source_sequence
    symbols: list[tuple[str, str]]  # bounds

    @classmethod
    def of(cls, table: Table, files: Sequence[DataFile]) -> "FileStatistics":
        """Read the statistics of data files. Where there are none, a file may hold anything."""
        sequence, symbol = (table.schema().find_field(name) for name in _IDENTITY[:0:-1])
        return cls(
            paths=[file.file_path for file in files],
            days=np.array([_day(file) for file in files], dtype=np.int64),
            numbers=np.array(
                [_bounds(file, sequence, (_LEAST, _MOST)) for file in files], dtype=np.int64
            ).reshape(-1, 2),
            symbols=[_bounds(file, symbol, ("", _LAST_TEXT)) for file in files],
        )

    @classmethod
    def joined(cls, parts: Sequence["FileStatistics"]) -> "FileStatistics":
        """Join several."""
        return cls(
            paths=[path for part in parts for path in part.paths],
            days=np.concatenate([np.empty(0, np.int64), *(part.days for part in parts)]),
            numbers=np.concatenate([np.empty((0, 2), np.int64), *(p.numbers for p in parts)]),
            symbols=[bounds for part in parts for bounds in part.symbols],
        )

    def may_hold(self, keys: Keys) -> list[str]:
        """Name the files that may hold rows of some of these keys."""
        chosen = np.zeros(len(self.paths), dtype=np.bool_)
        for code in np.unique(keys.codes).tolist():
            begin, end = np.searchsorted(keys.codes, [code, code + 1])
            for index in self._candidates(keys, begin, end):
                low, high = self.symbols[index]
                chosen[index] |= low <= keys.series[code].symbol <= high
        return [self.paths[index] for index in np.flatnonzero(chosen)]

    def only(self, paths: Collection[str]) -> "FileStatistics":
        """Return the statistics of some of the files."""
        index = [at for at, path in enumerate(self.paths) if path in paths]
        return FileStatistics(
            paths=[self.paths[at] for at in index],
            days=self.days[index],
            numbers=self.numbers[index],
            symbols=[self.symbols[at] for at in index],
        )

    def overlapping(self, stored: Mapping[Series, Stored]) -> list[str]:
        """Name the files that may hold numbers that are stored of some series."""
        chosen = np.zeros(len(self.paths), dtype=np.bool_)
        for series, each in stored.items():
            ranges = union(each.exact, each.mixed[:, :2])
            above = np.searchsorted(ranges[:, 1], self.numbers[:, 0])
            below = np.searchsorted(ranges[:, 0], self.numbers[:, 1], side="right")
            for index in np.flatnonzero(below > above):
                low, high = self.symbols[index]
                chosen[index] |= low <= series.symbol <= high
        return [self.paths[index] for index in np.flatnonzero(chosen)]

    def _candidates(self, keys: Keys, begin: int, end: int) -> Iterable[int]:
        """Find the files whose days and bounds of numbers fit keys of one series."""
        numbers = keys.numbers[begin:end]
        first_day, last_day = keys.first_days[begin:end].min(), keys.last_days[begin:end].max()
        is_near = (self.days >= first_day) & (self.days <= last_day)
        near = np.flatnonzero(is_near)
        above = np.searchsorted(numbers, self.numbers[near, 0])
        below = np.searchsorted(numbers, self.numbers[near, 1], side="right")
        found: list[int] = near[below > above].tolist()
        return found


def _day(file: DataFile) -> int:
    value = file.partition[0]
    return int(value) if value is not None else 0


def _bounds(file: DataFile, field: Any, unknown: tuple[Any, Any]) -> tuple[Any, Any]:
    lower = (file.lower_bounds or {}).get(field.field_id)
    upper = (file.upper_bounds or {}).get(field.field_id)
    return (
        unknown[0] if lower is None else from_bytes(field.field_type, lower),
        unknown[1] if upper is None else from_bytes(field.field_type, upper),
    )


class FileIndex:
    """The statistics of a table's data files, as of any of its snapshots."""

    def __init__(self) -> None:
        self._by_manifest: dict[str, FileStatistics] = {}
        self._snapshot_id: int | None = None
        self._joined = FileStatistics.joined([])

    def files(self, table: Table) -> FileStatistics:
        """Return the statistics of the data files in the newest snapshot."""
        snapshot = table.current_snapshot()
        if snapshot is None or snapshot.snapshot_id == self._snapshot_id:
            return self._joined
        self._by_manifest = {
            manifest.manifest_path: self._by_manifest.get(manifest.manifest_path)
            or _read_manifest(table, manifest)
            for manifest in snapshot.manifests(table.io)
            if manifest.content is ManifestContent.DATA
        }
        self._joined = FileStatistics.joined(list(self._by_manifest.values()))
        self._snapshot_id = snapshot.snapshot_id
        return self._joined


def _read_manifest(table: Table, manifest: ManifestFile) -> FileStatistics:
    entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
    return FileStatistics.of(table, [entry.data_file for entry in entries])


def find_rows(table: Table, kind: RecordKind, files: FileStatistics, keys: Keys) -> Found:
    """Look keys up in data files; of a key that is stored more than once, one row is returned."""
    indices: list[npt.NDArray[np.intp]] = []
    tables: list[pa.Table] = []
    for path in files.may_hold(keys):
        for index, rows in _find_in_file(table, kind, path, keys):
            indices.append(index)
            tables.append(rows)
    columns = [*kind.compared, RECEIVED]
    if not tables:
        empty = pa.schema([kind.arrow.field(name) for name in columns]).empty_table()
        return Found(np.empty(0, np.int64), empty)
    found = np.concatenate(indices)
    order, first = np.unique(found, return_index=True)
    rows = pa.concat_tables(tables, promote_options="permissive")
    return Found(order, rows.select(columns).take(pa.array(first)))


def _find_in_file(
    table: Table, kind: RecordKind, path: str, keys: Keys
) -> Iterator[tuple[npt.NDArray[np.intp], pa.Table]]:
    """Yield the indices of keys that a row group holds, and the rows."""
    with (
        table.io.new_input(path).open() as stream,
        pq.ParquetFile(stream, read_dictionary=_TEXTS) as file,
    ):
        for group in range(file.num_row_groups):
            if not _may_hold(file, group, keys):
                continue
            read = file.read_row_group(group, list(_IDENTITY), use_threads=False)
            index = _match(keys, read)
            rows = np.flatnonzero(index >= 0)
            if not len(rows):
                continue
            names = [*_IDENTITY, "message_id", *kind.compared, RECEIVED]
            hits = file.read_row_group(group, names, use_threads=False).take(pa.array(rows))
            ours = np.sort(numbered_rows(kind, hits).rows)
            yield index[rows[ours]], hits.take(pa.array(ours))


def _may_hold(file: pq.ParquetFile, group: int, keys: Keys) -> bool:
    if file.num_row_groups == 1:
        return True
    place = file.schema_arrow.get_field_index("source_sequence")
    statistics = next(
        (
            column.statistics
            for column in map(
                file.metadata.row_group(group).column, range(file.metadata.num_columns)
            )
            if column.path_in_schema == "source_sequence"
        ),
        None,
    )
    if place < 0 or statistics is None or not statistics.has_min_max:
        return True
    return bool(((keys.numbers >= statistics.min) & (keys.numbers <= statistics.max)).any())


def _match(keys: Keys, rows: pa.Table) -> npt.NDArray[np.intp]:
    """Return for each row the index of its key, or -1."""
    index = np.full(rows.num_rows, -1, dtype=np.intp)
    codes = _codes(keys, rows)
    numbers = rows["source_sequence"].combine_chunks().fill_null(-1).to_numpy()
    for code in np.unique(codes[codes >= 0]).tolist():
        begin, end = np.searchsorted(keys.codes, [code, code + 1])
        wanted = keys.numbers[begin:end]
        here = np.flatnonzero(codes == code)
        at = np.minimum(np.searchsorted(wanted, numbers[here]), max(len(wanted) - 1, 0))
        is_hit = wanted[at] == numbers[here] if len(wanted) else np.zeros(len(here), np.bool_)
        index[here[is_hit]] = begin + at[is_hit]
    return index


def _codes(keys: Keys, rows: pa.Table) -> Ints:
    """Return for each row the code of its series among the keys', or -1."""
    wanted = np.unique(keys.codes).tolist()
    known = {keys.series[code]: code for code in wanted}
    exchanges, symbols = (_dictionary(rows[name]) for name in _TEXTS)
    table = np.array(
        [
            [known.get(Series(exchange, symbol), -1) for symbol in symbols.dictionary.to_pylist()]
            for exchange in exchanges.dictionary.to_pylist()
        ],
        dtype=np.int64,
    )
    if not table.size:
        return np.full(rows.num_rows, -1, dtype=np.int64)
    codes: Ints = table[exchanges.indices.to_numpy(), symbols.indices.to_numpy()]
    return codes


def _dictionary(column: pa.ChunkedArray) -> pa.DictionaryArray:
    chunk = column.unify_dictionaries().combine_chunks()
    return chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()


def known_ids(
    table: Table, kind: RecordKind, files: FileStatistics, rows: pa.Table
) -> pa.StringArray:
    """Return those message ids of some rows that are stored, among the rows of the same days."""
    wanted = rows["message_id"].combine_chunks()
    known: set[str] = set()
    for stored in _rows_of_days(table, kind, files, rows, ["message_id"]):
        ids = stored["message_id"]
        known.update(ids.filter(pc.is_in(ids, wanted)).to_pylist())
    return pa.array(sorted(known), pa.string())


def known_lines(
    table: Table, kind: RecordKind, files: FileStatistics, rows: pa.Table, lines: Lines
) -> npt.NDArray[np.bool_]:
    """Tell which rows are stored as lines that `lines` names, among the rows of the same days."""
    wanted = line_keys(rows)
    known: set[str] = set()
    for stored in _rows_of_days(table, kind, files, rows, KEY_COLUMNS):
        keys = line_keys(stored.filter(pa.array(lines.mask(stored))))
        known.update(keys.filter(pc.is_in(keys, wanted.combine_chunks())).to_pylist())
    is_known: npt.NDArray[np.bool_] = pc.is_in(
        wanted, pa.array(list(known), pa.string())
    ).to_numpy()
    return is_known


def _rows_of_days(
    table: Table,
    kind: RecordKind,
    files: FileStatistics,
    rows: pa.Table,
    columns: Sequence[str],
) -> Iterator[pa.Table]:
    """Yield columns of the files that have rows of the same days, a part at a time."""
    is_near = np.isin(files.days, rows_days(kind, rows))
    for path in (files.paths[at] for at in np.flatnonzero(is_near)):
        with table.io.new_input(path).open() as stream, pq.ParquetFile(stream) as file:
            for batch in file.iter_batches(columns=list(columns), use_threads=False):
                yield pa.Table.from_batches([batch])


def read_numbers(table: Table, kind: RecordKind, path: str) -> Iterator[tuple[Numbered, pa.Table]]:
    """Yield the numbered rows of a data file, a row group at a time, with what was read of it."""
    names = [*_IDENTITY, "message_id", kind.partition_by]
    with table.io.new_input(path).open() as stream, pq.ParquetFile(stream) as file:
        for group in range(file.num_row_groups):
            read = file.read_row_group(group, names, use_threads=False)
            yield numbered_rows(kind, read), read
