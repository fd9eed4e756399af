"""Verify one symbol's trades of a day, and load those that are missing."""

import hashlib
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from k2cli.config import Settings
from k2cli.errors import BadData, NotFound
from k2cli.pipelines.verify.copy import SourceCopy
from k2cli.pipelines.verify.sources import Source
from k2cli.query.comparison import SOURCE_COLUMNS, Comparison, SymbolDay, compare_day
from k2cli.query.engine import Engine, open_engine
from k2cli.ranges import Ranges
from k2cli.records import TRADES, TableFiles
from k2cli.storage.lake import open_lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.loads import FileKey, LoadEntry

REPAIR_LAYOUT: Final = "repair"  # in the log of loads
_BACKFILLED: Final = "backfilled"  # in vendor_data


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """The outcome of verifying a day."""

    of: SymbolDay
    source: str  # for people
    digest: str  # SHA-256 of a dump, in hex; else empty
    has_checksum: bool
    is_partial: bool  # the day is not over
    repeated: int  # rows of the day in the source that repeat an id
    other_days: int  # rows of the source on other days, ignored
    holes: Ranges  # ids that the source itself lacks between its first and last
    comparison: Comparison  # after repairing
    repaired: int = 0  # rows that were loaded

    @property
    def is_passed(self) -> bool:
        """Whether the table has exactly the trades of the source."""
        return self.comparison.is_equal


def verify_day(
    config: Settings,
    open_source: Callable[[], Source],
    *,
    is_repairing: bool = False,
    uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Verification:
    """Compare the trades of a source with the table; with `is_repairing`, load the missing ones.

    A repair is one commit, marks its rows in `vendor_data`, and is listed as a load. Other rows are
    never changed. `uninterrupted` is a block that an interruption does not abort.

    Raises:
        NotFound: the table does not exist, and `is_repairing` is off.
        BadData: the source is invalid, or a file of the table is damaged.
        Unavailable: the source, the catalog or the disk.
        Conflict: other writers won too often; nothing was loaded.
    """
    columns = TRADES.arrow.names if is_repairing else SOURCE_COLUMNS
    with ExitStack() as stack:
        # First, because reading the source takes longer.
        table = _open_table(stack, config, is_created=is_repairing)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="k2-verify-"))
        engine = stack.enter_context(open_engine(config.query))
        source = open_source()
        try:
            with SourceCopy(Path(folder, "source.parquet"), source.of, columns) as copy:
                for rows in source.batches():
                    copy.write(rows)
        finally:
            source.close()
        _check_day(source, copy)
        table.refresh()
        comparison, repaired = _compare(engine, table, source, copy), 0
        if is_repairing and len(comparison.missing):
            with uninterrupted():
                repaired = _repair(table, source, copy, comparison.missing)
            table.refresh()
            comparison = _compare(engine, table, source, copy)
    return Verification(
        of=source.of,
        source=source.name,
        digest=source.digest,
        has_checksum=source.has_checksum,
        is_partial=source.is_partial,
        repeated=copy.repeated,
        other_days=copy.other_days,
        holes=copy.holes,
        comparison=comparison,
        repaired=repaired,
    )


def _open_table(stack: ExitStack, config: Settings, *, is_created: bool) -> LakeTable:
    try:
        lake = stack.enter_context(open_lake(config, create=is_created))
        return lake.open(TRADES)
    except NotFound as exc:
        raise NotFound(str(exc), hint="--repair creates it, and loads the day") from exc


def _check_day(source: Source, copy: SourceCopy) -> None:
    """Refuse a file without trades of the day: it proves nothing."""
    if source.digest and not copy.rows:
        others = f": its {copy.other_days:,} trades are of other days" if copy.other_days else ""
        raise BadData(f"{source.name} has no trades of {source.of.day}{others}")


def _compare(engine: Engine, table: LakeTable, source: Source, copy: SourceCopy) -> Comparison:
    numbers = copy.numbers
    last = numbers[1] if numbers and source.is_partial else None
    with engine.session([_plan(table, source.of, numbers)]) as session:
        return compare_day(session, copy.path, source.of, numbers=numbers, last=last)


def _plan(table: LakeTable, of: SymbolDay, numbers: tuple[int, int] | None) -> TableFiles:
    """Find the files with trades of the day, and with ids of the source on any day."""
    find = partial(table.plan, symbols=[of.symbol], exchanges=[of.exchange])
    plan = find(start=of.start, end=of.end)
    if numbers is None:
        return plan
    near = find(numbers=numbers)
    return replace(plan, paths=tuple(dict.fromkeys([*plan.paths, *near.paths])))


def _repair(table: LakeTable, source: Source, copy: SourceCopy, missing: Ranges) -> int:
    """Load the missing trades in one commit; return how many were not stored by now."""
    of, now_us = source.of, time.time_ns() // 1000
    said = f"repair {of.exchange}/{of.symbol} {of.day} {source.name} {source.digest} {now_us}"
    identity = hashlib.sha256(said.encode()).hexdigest()
    # Each repair is a load of its own, which no later load of the same file continues.
    key = FileKey(
        path=source.name, layout=REPAIR_LAYOUT, meaning=identity, identity=identity, digests=()
    )
    entry = LoadEntry(
        loaded_at=now_us,
        path=source.name,
        digest=source.digest,
        size_bytes=source.size_bytes,
        layout=REPAIR_LAYOUT,
        rejects=0,
        meaning=identity,
        identity=identity,
        exchange=of.exchange,
        symbol=of.symbol,
    )
    with table.load_file(source.name, file=identity) as target:
        for rows in copy.rows_of(missing):
            target.write(mark_backfilled(rows))
        target.commit(entry, key=key)
        return target.result.rows


def mark_backfilled(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Set `backfilled` to "true" in the vendor_data of trades that do not have it."""
    column = rows["vendor_data"]
    is_marked = pc.map_lookup(column, _BACKFILLED, "first").is_valid()
    if pc.all(is_marked).as_py():
        return rows
    starts = column.offsets.to_numpy()[:-1].astype(np.int64)
    lengths = np.diff(column.offsets.to_numpy()).astype(np.int64)
    lengths[column.is_null().to_numpy(zero_copy_only=False)] = 0
    is_new = ~is_marked.to_numpy(zero_copy_only=False)
    ends = np.cumsum(lengths + is_new)
    begins = ends - lengths - is_new
    index = np.arange(ends[-1]) - np.repeat(begins - starts, lengths + is_new)
    index[ends[is_new] - 1] = len(column.keys)  # the entry that is appended below
    entries = (
        pa.concat_arrays([texts, pa.array([text], pa.string())]).take(pa.array(index))
        for texts, text in ((column.keys, _BACKFILLED), (column.items, "true"))
    )
    offsets = pa.array(np.append(0, ends).astype(np.int32))
    marked = pa.MapArray.from_arrays(offsets, *entries)
    at = rows.schema.get_field_index("vendor_data")
    return rows.set_column(at, rows.schema.field(at), marked.cast(rows.schema.field(at).type))
