"""Which files were loaded into a table: a log that lives and dies with the table's snapshots.

The log is a few immutable Parquet segments beside the table's data files; the snapshot's property
`k2.loads` names them. A load adds a segment of one entry and merges it with segments that are not
larger, so that 100,000 loads are some 17 segments and a look-up reads only their digests. Since
the property is carried from snapshot to snapshot, the log outlives every snapshot that is expired,
and a table that is rolled back to before a load has not loaded that file.
"""

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.table import Table

KEY: Final = "k2.loads"
# Not beside the metadata: there some stores take no file but Iceberg's own.
_PREFIX: Final = "k2-loads-log-"
STDIN: Final = "-"  # the path of what came from no file
_OFFSET: Final = pa.field("offset_bytes", pa.int64())  # not in logs of k2 0.1.0
_SCHEMA: Final = pa.schema(
    [
        pa.field("loaded_at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("layout", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("rejects", pa.int64(), nullable=False),
        _OFFSET,
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEntry:
    """One file that was loaded, or what had been appended to it since an earlier load."""

    loaded_at: int  # UTC microseconds
    path: str
    digest: str  # sha256 of the file's first `size_bytes`, as they lie on disk, in hex
    size_bytes: int
    layout: str
    rows: int
    rejects: int
    offset_bytes: int = 0  # the first ones of these, which earlier loads took


@dataclass(frozen=True, slots=True)
class _Segment:
    name: str
    rows: int


def loaded_before(table: Table, log: str | None, digests: Sequence[str]) -> set[str]:
    """Tell which of these digests the log holds."""
    wanted = pa.array(digests, pa.string())
    found: set[str] = set()
    for segment in _segments(log):
        column = _read(table, segment, ["digest"])["digest"]
        found.update(column.filter(pc.is_in(column, wanted)).to_pylist())
    return found


@dataclass(frozen=True, slots=True)
class FileState:
    """How far a file was loaded: so many of its first bytes, with this digest."""

    size_bytes: int
    digest: str


def newest_load(table: Table, log: str | None, path: str, layout: str) -> FileState | None:
    """Tell how far the newest load of a path by this layout went, if any took rows.

    None for stdin, too.
    """
    if path == STDIN:
        return None
    took_rows = (pc.field("rows") > 0) | (pc.field("offset_bytes") > 0)
    wanted = (pc.field("path") == path) & (pc.field("layout") == layout) & took_rows
    for segment in reversed(_segments(log)):
        found = _read(table, segment).filter(wanted)
        if len(found):
            return FileState(found["size_bytes"][-1].as_py(), found["digest"][-1].as_py())
    return None


def list_loads(table: Table, log: str | None) -> pa.Table:
    """Return all entries of the log, newest first."""
    tables = [_read(table, segment) for segment in _segments(log)]
    return pa.concat_tables([_SCHEMA.empty_table(), *tables]).sort_by(
        [("loaded_at", "descending"), ("path", "ascending")]
    )


def extended(table: Table, log: str | None, entries: Sequence[LoadEntry]) -> tuple[str, str]:
    """Write a segment with these entries, merged with those that are not larger.

    Returns the property's new value, and the path of the segment that was written.
    """
    kept = _segments(log)
    rows = pa.Table.from_pylist([asdict(entry) for entry in entries], schema=_SCHEMA)
    while kept and kept[-1].rows <= rows.num_rows:
        rows = pa.concat_tables([_read(table, kept.pop()), rows])
    segment = _Segment(f"{_PREFIX}{uuid.uuid4()}", rows.num_rows)
    path = _path(table, segment)
    with table.io.new_output(path).create() as stream:
        pq.write_table(rows, stream, compression="zstd")
    return ",".join(f"{each.name}:{each.rows}" for each in [*kept, segment]), path


def segment_paths(table: Table, logs: Iterable[str | None]) -> set[str]:
    """Return the files that these logs consist of."""
    return {_path(table, segment) for log in logs for segment in _segments(log)}


def _segments(log: str | None) -> list[_Segment]:
    pairs = (word.rpartition(":") for word in (log or "").split(",") if word)
    return [_Segment(name, int(rows)) for name, _, rows in pairs]


def _path(table: Table, segment: _Segment) -> str:
    name, places = f"{segment.name}.parquet", table.location_provider()
    if segment.name.startswith(_PREFIX):
        return places.new_data_location(name)
    return places.new_metadata_location(name)  # where they were at first


def _read(table: Table, segment: _Segment, columns: list[str] | None = None) -> pa.Table:
    with table.io.new_input(_path(table, segment)).open() as stream:
        found = pq.ParquetFile(stream).read(columns, use_threads=False)
    if columns is None and len(found.schema) < len(_SCHEMA):
        found = found.append_column(_OFFSET, pa.nulls(len(found), _OFFSET.type))
    return found
