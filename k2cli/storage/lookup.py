"""Look up records in a table, opening few files and reading few columns."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.table import Table

from k2cli.errors import BadData
from k2cli.ranges import Ints
from k2cli.records import RecordKind
from k2cli.storage.admission import RECEIVED, RECORD_COLUMNS, Found, Keys, record_keys, rows_days
from k2cli.storage.datafiles import open_data_file
from k2cli.storage.lines import KEY_COLUMNS, Bools, line_keys
from k2cli.storage.numbered import Numbered, are_unnumbered, numbered_rows
from k2cli.storage.position import Series
from k2cli.storage.stored import Days, FileStatistics

_IDENTITY: Final = ("exchange", "symbol", "source_sequence")
_TEXTS: Final = ["exchange", "symbol"]
_Found = tuple[npt.NDArray[np.intp], pa.Table]  # indices of keys, and their rows


def days_of_keys(keys: Keys) -> Days:
    """Return the possible days of rows of some keys."""
    return Days(int(keys.first_days.min()), int(keys.last_days.max()))


def days_of_rows(kind: RecordKind, rows: pa.Table) -> Days:
    """Return the days of rows."""
    days = rows_days(kind, rows)
    return Days(int(days.min()), int(days.max()))


def find_rows(table: Table, kind: RecordKind, files: FileStatistics, keys: Keys) -> Found:
    """Look up keys in data files; return one row per key, even if it is stored more often."""
    found = [
        each for path in files.may_hold(keys) for each in _find_in_file(table, kind, path, keys)
    ]
    return _first_of(kind, found)


def _first_of(kind: RecordKind, found: Sequence[_Found]) -> Found:
    """Keep one row per key, with the compared columns."""
    columns = [*kind.compared, RECEIVED]
    if not found:
        empty = pa.schema([kind.arrow.field(name) for name in columns]).empty_table()
        return Found(np.empty(0, np.int64), empty)
    keys, first = np.unique(np.concatenate([index for index, _ in found]), return_index=True)
    rows = pa.concat_tables(
        [rows.select(columns) for _, rows in found], promote_options="permissive"
    )
    return Found(keys, rows.take(pa.array(first)))


def _find_in_file(table: Table, kind: RecordKind, path: str, keys: Keys) -> Iterator[_Found]:
    """Yield the indices of keys in a row group, and the rows."""
    with open_data_file(table, path, read_dictionary=_TEXTS) as file:
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
            hit = np.sort(numbered_rows(kind, hits).rows)
            yield index[rows[hit]], hits.take(pa.array(hit))


def _may_hold(file: pq.ParquetFile, group: int, keys: Keys) -> bool:
    if file.num_row_groups == 1:
        return True
    columns = map(file.metadata.row_group(group).column, range(file.metadata.num_columns))
    statistics = next(
        (each.statistics for each in columns if each.path_in_schema == "source_sequence"), None
    )
    if statistics is None or not statistics.has_min_max:
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
        at = np.minimum(np.searchsorted(wanted, numbers[here]), len(wanted) - 1)
        is_hit = wanted[at] == numbers[here]
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


class StoredIds:
    """Looks up rows by message ids that are not computed from a number.

    Such ids do not indicate their file, so all files of the same days are read, each once: 16 bytes
    per row are cached while rows of its day are looked up.
    """

    def __init__(self) -> None:
        self._hashes: dict[str, Ints] = {}  # by the path of the file, ascending
        self._joined: Ints = np.empty(0, np.int64)  # all of these, ascending

    def find(self, table: Table, kind: RecordKind, files: FileStatistics, rows: pa.Table) -> Found:
        """Find the stored rows of some records; `rows` has one of each."""
        wanted = np.sort(_hashes(rows["message_id"].combine_chunks()))
        records = record_keys(rows).combine_chunks()
        near = files.of_days(rows_days(kind, rows))
        self._read(table, near)
        found: list[_Found] = []
        if _have_common(self._joined, wanted):
            for path in near:
                if _have_common(self._hashes[path], wanted):
                    found += _find_records_in_file(table, kind, path, records)
        return _first_of(kind, found)

    def _read(self, table: Table, paths: Sequence[str]) -> None:
        """Read the files that are not cached, and forget all others."""
        gone = self._hashes.keys() - set(paths)
        new = {path: _read_hashes(table, path) for path in paths if path not in self._hashes}
        kept = {path: each for path, each in self._hashes.items() if path not in gone}
        self._hashes = kept | new
        if gone or new:
            parts = kept.values() if gone else [self._joined]
            joined = np.concatenate([np.empty(0, np.int64), *parts, *new.values()])
            self._joined = np.sort(joined, kind="stable")  # quick, as the parts are sorted


def _read_hashes(table: Table, path: str) -> Ints:
    with open_data_file(table, path) as file:
        batches = file.iter_batches(columns=["message_id"], use_threads=False)
        parts = [_hashes(batch["message_id"]) for batch in batches]
    return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))


def _have_common(known: Ints, wanted: Ints) -> bool:
    """Return whether ascending numbers have some in common."""
    if not len(known):
        return False
    at = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    return bool((known[at] == wanted).any())


def _hashes(ids: pa.StringArray) -> Ints:
    return np.fromiter(map(hash, ids.to_pylist()), np.int64, len(ids))


def _find_records_in_file(
    table: Table, kind: RecordKind, path: str, records: pa.StringArray
) -> Iterator[_Found]:
    with open_data_file(table, path) as file:
        for group in range(file.num_row_groups):
            read = file.read_row_group(group, list(RECORD_COLUMNS), use_threads=False)
            index = pc.index_in(record_keys(read), records).fill_null(-1).to_numpy()
            rows = np.flatnonzero(index >= 0)
            if len(rows):
                names = [*kind.compared, RECEIVED]
                hits = file.read_row_group(group, names, use_threads=False)
                yield index[rows], hits.take(pa.array(rows))


def known_lines(
    table: Table,
    kind: RecordKind,
    files: FileStatistics,
    rows: pa.Table,
    are_lines: Callable[[pa.Table], Bools],
) -> Bools:
    """Return which rows are stored on the same days, as lines that `are_lines` selects."""
    wanted = line_keys(rows)
    known: set[str] = set()
    for path in files.of_days(rows_days(kind, rows)):
        with open_data_file(table, path) as file:
            for batch in file.iter_batches(columns=list(KEY_COLUMNS), use_threads=False):
                stored = pa.Table.from_batches([batch])
                keys = line_keys(stored.filter(pa.array(are_lines(stored))))
                known.update(keys.filter(pc.is_in(keys, wanted.combine_chunks())).to_pylist())
    is_known: Bools = pc.is_in(wanted, pa.array(list(known), pa.string())).to_numpy()
    return is_known


def check_lines(
    table: Table,
    kind: RecordKind,
    find_files: Callable[[Days], FileStatistics],
    rows: pa.Table,
    what: str,
) -> None:
    """Refuse lines that may be stored as lines of another file, if the table's log was lost.

    Raises:
        BadData: rows of the same series have the same line number and time.
    """
    if not rows.num_rows:
        return
    near = find_files(days_of_rows(kind, rows))
    count = int(known_lines(table, kind, near, rows, partial(are_unnumbered, kind)).sum())
    if count:
        raise BadData(
            f"{what}: it may be stored already; the table's log of loads was lost, and {count} rows"
            " have the same line numbers and times",
            hint="use --force to store the missing lines, or --allow-duplicates to store all",
        )


def read_numbers(table: Table, kind: RecordKind, path: str) -> Iterator[tuple[Numbered, pa.Table]]:
    """Yield the numbered rows of a data file, a row group at a time, with what was read of it."""
    names = [*_IDENTITY, "message_id", kind.partition_by]
    with open_data_file(table, path) as file:
        for group in range(file.num_row_groups):
            read = file.read_row_group(group, names, use_threads=False)
            yield numbered_rows(kind, read), read
