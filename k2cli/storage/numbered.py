"""Determine the numbered series of rows; pure.

A row is identified by its series (exchange, kind and symbol) and its `source_sequence`, if its
message id was computed from them. k2's rows without an exchange id have a message id computed from
their file and line, whatever their `source_sequence`; they do not belong to a series. For message
ids from elsewhere, the number decides.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.ranges import Ints
from k2cli.records import MAX_NUMBER, OWN_ID, RecordKind, message_ids
from k2cli.storage.position import Series


@dataclass(frozen=True, slots=True)
class Numbered:
    """The rows of a table that belong to numbered series, ascending by series and number.

    Rows of the same number keep their order in the table.
    """

    series: list[Series]
    rows: Ints  # their indices in the table
    codes: Ints  # of each row's series: its index in `series`
    numbers: Ints


def numbered_rows(kind: RecordKind, rows: pa.Table) -> Numbered:
    """Find the rows of a table that belong to numbered series."""
    exchanges, symbols = _encoded(rows["exchange"]), _encoded(rows["symbol"])
    names = symbols.dictionary.to_pylist()
    series = [Series(e, s) for e in exchanges.dictionary.to_pylist() for s in names]
    codes = exchanges.indices.to_numpy().astype(np.int64) * len(names) + symbols.indices.to_numpy()
    sequence = rows["source_sequence"].combine_chunks()
    numbers = sequence.fill_null(-1).to_numpy()
    is_numbered = (numbers >= 0) & (numbers <= MAX_NUMBER)
    if is_numbered.any():
        is_numbered &= _is_identity(kind, rows["message_id"], series, codes, numbers)
    index = np.flatnonzero(is_numbered)
    codes, numbers = codes[index], numbers[index]
    if not _is_sorted(codes, numbers):
        order = np.lexsort((numbers, codes))
        index, codes, numbers = index[order], codes[order], numbers[order]
    return Numbered(series, index, codes, numbers)


def are_unnumbered(kind: RecordKind, rows: pa.Table) -> npt.NDArray[np.bool_]:
    """Return which rows are outside numbered series, such as lines of files."""
    mask = np.ones(rows.num_rows, dtype=np.bool_)
    mask[numbered_rows(kind, rows).rows] = False
    return mask


def are_own_ids(ids: pa.ChunkedArray) -> npt.NDArray[np.bool_]:
    """Return which message ids k2 computed: one record each, whatever route it takes."""
    are_own: npt.NDArray[np.bool_] = pc.match_substring_regex(ids, OWN_ID).to_numpy()
    return are_own


def _is_identity(
    kind: RecordKind, ids: pa.ChunkedArray, series: list[Series], codes: Ints, numbers: Ints
) -> npt.NDArray[np.bool_]:
    """Return which message ids are computed from series and number, or not from k2."""
    names = [f"{each.exchange}/{kind.name}/{each.symbol}" for each in series]
    made = message_ids(names, codes, np.clip(numbers, 0, MAX_NUMBER))
    is_same = pc.equal(ids, made)
    if pc.all(is_same).as_py():
        return np.ones(len(numbers), dtype=np.bool_)
    is_foreign = pc.invert(pc.match_substring_regex(ids, OWN_ID))
    either: npt.NDArray[np.bool_] = pc.or_(is_same, is_foreign).to_numpy()
    return either


def _encoded(column: pa.ChunkedArray) -> pa.DictionaryArray:
    return column.combine_chunks().dictionary_encode()


def _is_sorted(codes: Ints, numbers: Ints) -> bool:
    step = np.diff(codes)
    return bool(((step > 0) | ((step == 0) & (np.diff(numbers) >= 0))).all())
