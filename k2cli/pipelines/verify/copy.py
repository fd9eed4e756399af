"""The trades of a source in a temporary Parquet file, and what is known of their ids."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from k2cli.errors import BadData, Unavailable
from k2cli.query.comparison import SymbolDay
from k2cli.ranges import EMPTY, Ints, Ranges, difference, index_of, ranges_of, union
from k2cli.records import TRADES

T = TypeVar("T")
_GROUP_ROWS: Final = 100_000
_READ_ROWS: Final = 50_000


class SourceCopy:
    """A copy of a source's trades on disk; a context manager while it is written."""

    def __init__(self, path: Path, of: SymbolDay, columns: Sequence[str]) -> None:
        """Create the file for these columns of the trades."""
        self.path: Final = path
        self.ids: Ranges = EMPTY  # of the day
        self.rows = 0  # of the day
        self.other_days = 0  # rows of other days
        self._start_us = int(of.start.timestamp()) * 1_000_000
        self._end_us = int(of.end.timestamp()) * 1_000_000
        self._schema = pa.schema([TRADES.arrow.field(name) for name in columns])
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._writer = _written(lambda: pq.ParquetWriter(path, self._schema, compression="zstd"))

    def __enter__(self) -> "SourceCopy":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            with suppress(OSError):  # the file is not used
                self._writer.close()
            return
        self._flush()
        _written(self._writer.close)

    def write(self, rows: pa.RecordBatch) -> None:
        """Add trades, in any order.

        Raises:
            BadData: a trade has no number.
            Unavailable: the disk is full.
        """
        if rows["source_sequence"].null_count:
            raise BadData("the source has trades whose ids are not numbers")
        is_of_day = self._are_of_day(rows)
        numbers = np.sort(_ids(rows)[is_of_day])
        self.ids = union(self.ids, ranges_of(numbers))
        self.rows += len(numbers)
        self.other_days += rows.num_rows - len(numbers)
        self._pending.append(rows.select(self._schema.names))
        self._pending_rows += rows.num_rows
        if self._pending_rows >= _GROUP_ROWS:
            self._flush()

    def rows_of(self, wanted: Ranges) -> Iterator[pa.RecordBatch]:
        """Read the trades of the day with these ids."""
        with pq.ParquetFile(self.path) as file:
            for rows in file.iter_batches(_READ_ROWS):
                is_wanted = self._are_of_day(rows) & (index_of(wanted, _ids(rows)) >= 0)
                if is_wanted.any():
                    yield rows.filter(pa.array(is_wanted)).cast(self._schema)

    @property
    def trades(self) -> int:
        """How many trades the day has, each counted once."""
        return int((self.ids[:, 1] - self.ids[:, 0] + 1).sum())

    @property
    def repeated(self) -> int:
        """How many rows repeat the id of another one."""
        return self.rows - self.trades

    @property
    def numbers(self) -> tuple[int, int] | None:
        """The first and last id of the day; None without trades."""
        return (int(self.ids[0, 0]), int(self.ids[-1, 1])) if len(self.ids) else None

    @property
    def holes(self) -> Ranges:
        """The ids between the first and the last that the source does not have."""
        whole = np.array([self.numbers], dtype=np.int64) if self.numbers else EMPTY
        return difference(whole, self.ids)

    def _are_of_day(self, rows: pa.RecordBatch) -> npt.NDArray[np.bool_]:
        times = rows["timestamp"].cast(pa.int64()).to_numpy()
        are_of_day: npt.NDArray[np.bool_] = (times >= self._start_us) & (times < self._end_us)
        return are_of_day

    def _flush(self) -> None:
        if self._pending:
            rows = pa.Table.from_batches(self._pending)
            self._pending, self._pending_rows = [], 0
            _written(lambda: self._writer.write_table(rows))


def _ids(rows: pa.RecordBatch) -> Ints:
    ids: Ints = rows["source_sequence"].to_numpy()
    return ids


def _written(write: Callable[[], T]) -> T:
    try:
        return write()
    except OSError as exc:
        raise Unavailable(
            f"cannot write the temporary copy of the source: {exc.strerror or exc}",
            hint="set TMPDIR to a directory with more space",
        ) from exc
