"""Rows without an exchange id: their message ids are computed from a file and a line.

The first characters of such an id come from the file and the row's series, the others are the line
number, so the id identifies the load of a row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.records import SERIES_CHARS, RecordKind, line_series, series_prefix

KEY_COLUMNS: Final = ("exchange", "symbol", "message_id", "timestamp", "source_sequence")
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Lines:
    """The lines of some files, identified by their message ids."""

    kind: RecordKind
    files: Sequence[str] = ()  # as `line_series` names them
    legacy: Sequence[str] = ()  # SHA-256 of files that k2 0.1.0 loaded: ids without a series

    def __bool__(self) -> bool:
        return bool(self.files or self.legacy)

    @cached_property
    def _legacy_prefixes(self) -> set[str]:
        return {series_prefix(f"{digest}/{self.kind.name}") for digest in self.legacy}

    def mask(self, rows: pa.Table) -> Bools:
        """Return which rows are lines of these files."""
        prefixes = pc.utf8_slice_codeunits(rows["message_id"], 0, SERIES_CHARS)
        names = [
            f"{exchange}/{self.kind.name}/{symbol}"
            for exchange in rows["exchange"].unique().to_pylist()
            for symbol in rows["symbol"].unique().to_pylist()
        ]
        wanted = {series_prefix(line_series(file, name)) for file in self.files for name in names}
        wanted |= self._legacy_prefixes
        mask: Bools = pc.is_in(prefixes, pa.array(sorted(wanted), pa.string())).to_numpy()
        return mask


def line_keys(rows: pa.Table) -> pa.ChunkedArray:
    """Return a key that is equal for rows of the same line with the same interpretation.

    The ids of two loads of one line may differ: a file that has grown is another file.
    """
    numbers = pc.utf8_slice_codeunits(rows["message_id"], SERIES_CHARS)
    times = rows["timestamp"].cast(pa.int64()).cast(pa.string())
    texts = [rows[name].cast(pa.string()) for name in ("exchange", "symbol")]
    return pc.binary_join_element_wise(numbers, times, *texts, "/")
