"""The log of files loaded into a table, which is part of the table's snapshots.

The log is a few immutable Parquet segments beside the table's data files; the snapshot's property
`k2.loads` names them. A load adds a segment of one entry and merges it with segments that are not
larger, so that 100,000 loads are some 17 segments and a look-up reads only a few columns. Since
the property is carried from snapshot to snapshot, the log outlives every snapshot that is expired,
and a table that is rolled back to before a load has not loaded that file.

Segments of k2 0.1.0 lack the newer columns. They do not record how a file was interpreted, so such
a file counts as loaded before if a file with the same bytes is loaded with a layout of that name.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.table import Table
from pyiceberg.table.snapshots import Snapshot

from k2cli.files import STDIN
from k2cli.records import RecordKind, nth_copy
from k2cli.storage.datafiles import open_data_file
from k2cli.storage.lines import Lines
from k2cli.storage.snapshots import summary_of

KEY: Final = "k2.loads"
# Not beside the metadata: some stores only accept Iceberg's files there.
PREFIX: Final = "k2-loads-log-"
_ID_CHARS: Final = 12
_TIME: Final = pa.timestamp("us", tz="UTC")
_SCHEMA: Final = pa.schema(
    [
        pa.field("loaded_at", _TIME, nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string(), nullable=False),
        pa.field("size_bytes", pa.int64(), nullable=False),
        pa.field("layout", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("rejects", pa.int64(), nullable=False),
        # Logs of k2 0.1.0 lack the following columns.
        pa.field("offset_bytes", pa.int64()),
        pa.field("meaning", pa.string()),
        pa.field("identity", pa.string()),
        pa.field("copy", pa.int64()),
        pa.field("exchange", pa.string()),
        pa.field("symbol", pa.string()),
        pa.field("duplicates", pa.int64()),
        pa.field("conflicts", pa.int64()),
        pa.field("has_texts", pa.bool_()),
        pa.field("stored", pa.string()),
        pa.field("received", pa.list_(pa.int64())),
        pa.field("first_time", _TIME),
        pa.field("last_time", _TIME),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadEntry:
    """One loaded file, or the lines appended to it since an earlier load."""

    loaded_at: int  # UTC microseconds
    path: str
    digest: str  # sha256 of the file's first `size_bytes` on disk, in hex
    size_bytes: int
    layout: str
    rows: int = 0
    rejects: int
    offset_bytes: int = 0  # the first of these, which earlier loads covered
    meaning: str  # digest of the interpretation
    identity: str  # digest of the content and its meaning
    copy: int = 1  # number of stored copies of its rows without ids, with this load
    exchange: str | None = None  # of the whole file
    symbol: str | None = None
    duplicates: int = 0
    conflicts: int = 0
    has_texts: bool = False  # rows were stored whose ids are texts
    stored: str = ""  # the numbers that were stored, as an encoded position
    received: Sequence[int] = ()  # every ingestion_timestamp of the rows
    first_time: int | None = None  # of the rows, UTC microseconds
    last_time: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileKey:
    """The identity of a loaded file."""

    path: str
    layout: str
    meaning: str  # empty: a file without rows has no interpretation
    identity: str
    digests: tuple[str, ...]  # of its bytes, raw and decompressed: all that 0.1.0 recorded


@dataclass(frozen=True, slots=True)
class _Segment:
    name: str
    rows: int


def load_log(snapshot: Snapshot) -> str | None:
    """Return the log of loads that a snapshot names; None without loads."""
    return summary_of(snapshot).get(KEY)


def loaded_before(table: Table, log: str | None, keys: Sequence[FileKey]) -> set[str]:
    """Return the identities of files in the log with the same interpretation."""
    wanted = {key.identity for key in keys}
    digests = {digest for key in keys for digest in key.digests}
    is_legacy = pc.field("identity").is_null() & pc.field("digest").isin(_texts(digests))
    which = pc.field("identity").isin(_texts(wanted)) | is_legacy
    found: set[str] = set()
    for entries in _find(table, log, which, _IDENTITY):
        for entry in entries.to_pylist():
            if entry["identity"] is not None:
                found.add(entry["identity"])
                continue
            found |= {
                key.identity
                for key in keys
                if entry["digest"] in key.digests and entry["layout"] == key.layout
            }
    return found


@dataclass(frozen=True, slots=True)
class FileState:
    """How far a file was loaded: the number of its first bytes, and their digest."""

    size_bytes: int
    digest: str


def newest_loads(table: Table, log: str | None, keys: Sequence[FileKey]) -> dict[str, FileState]:
    """Return the newest load of each path with the same interpretation, if any.

    Nothing for stdin.
    """
    counts = ("rows", "offset_bytes", "duplicates", "conflicts")
    took_rows = pc.field("rows") > 0
    for name in counts[1:]:
        took_rows |= pc.field(name) > 0
    of_path = {key.path: key for key in keys if key.path != STDIN}
    columns = ("path", "layout", "meaning", "size_bytes", "digest", *counts)
    states: dict[str, FileState] = {}
    for found in _find(table, log, pc.field("path").isin(_texts(of_path)) & took_rows, columns):
        for entry in reversed(found.to_pylist()):
            key = of_path[entry["path"]]
            is_same = entry["layout"] == key.layout and (
                not key.meaning or entry["meaning"] in (key.meaning, None)
            )
            if is_same and key.path not in states:
                states[key.path] = FileState(entry["size_bytes"], entry["digest"])
    return states


def stored_lines(
    table: Table,
    log: str | None,
    kind: RecordKind,
    key: FileKey,
    is_start: Callable[[int, str], bool],
) -> Lines:
    """Return the loads that may have stored lines of this file with the same interpretation.

    These are its earlier loads, and loads of the file when it was shorter:
    `is_start(size, digest)` reports whether its first bytes have this digest.
    """
    found = _find(table, log, _may_mean(key), _START)
    entries = pa.concat_tables([_SCHEMA.empty_table().select(_START), *found])
    files: dict[str, None] = {key.identity: None}  # possibly by a load that is still running
    legacy: dict[str, None] = {}
    for entry in entries.sort_by("size_bytes").to_pylist():
        if entry["identity"] != key.identity and not (
            entry["digest"] in key.digests or is_start(entry["size_bytes"], entry["digest"])
        ):
            continue
        if entry["identity"] is None:
            legacy[entry["digest"]] = None
        else:
            files[nth_copy(entry["identity"], entry["copy"])] = None
    return Lines(kind, tuple(files), tuple(legacy))


def copies(table: Table, log: str | None, identity: str) -> int:
    """Return the highest copy of a file that was loaded; 0 if none was."""
    found = _find(table, log, pc.field("identity") == identity, _START)
    return max((pc.max(each["copy"]).as_py() or 0 for each in found), default=0)


def list_loads(table: Table, log: str | None) -> pa.Table:
    """Return all entries of the log, newest first, each with the id of its load."""
    tables = [_read(table, segment) for segment in _segments(log)]
    return _with_ids(pa.concat_tables([_SCHEMA.empty_table(), *tables])).sort_by(
        [("loaded_at", "descending"), ("path", "ascending")]
    )


def _with_ids(entries: pa.Table) -> pa.Table:
    """Add the ids of loads: digests of what is unique to an entry."""
    parts = entries.select(["loaded_at", "path", "digest", "identity"])
    said = zip(*(column.cast(pa.string()).to_pylist() for column in parts), strict=True)
    ids = [hashlib.sha256(repr(each).encode()).hexdigest()[:_ID_CHARS] for each in said]
    return entries.add_column(0, "load", pa.array(ids, pa.string()))


def append_entries(table: Table, log: str | None, entries: Sequence[LoadEntry]) -> tuple[str, str]:
    """Write a segment with these entries, merged with segments that are not larger.

    Returns the property's new value, and the path of the segment that was written.
    """
    kept = _segments(log)
    rows = pa.Table.from_pylist([asdict(entry) for entry in entries], schema=_SCHEMA)
    while kept and kept[-1].rows <= rows.num_rows:
        rows = pa.concat_tables([_read(table, kept.pop()), rows])
    segment = _write(table, rows)
    return _value([*kept, segment]), _path(table, segment)


def remove_entry(table: Table, log: str | None, load: str) -> tuple[str | None, str | None]:
    """Remove the entry of a load: rewrite its segment.

    Returns the property's new value (None: the log is empty now), and the path of the segment that
    was written, if one was.
    """
    segments = _segments(log)
    for at, segment in enumerate(segments):
        entries = _with_ids(_read(table, segment))
        kept = entries.filter(pc.field("load") != load).drop_columns("load")
        if kept.num_rows == entries.num_rows:
            continue
        written = [_write(table, kept)] if kept.num_rows else []
        value = _value([*segments[:at], *written, *segments[at + 1 :]])
        return value or None, _path(table, written[0]) if written else None
    return log, None


def segment_paths(table: Table, logs: Iterable[str | None]) -> set[str]:
    """Return the files of these logs."""
    return {_path(table, segment) for log in logs for segment in _segments(log)}


def _segments(log: str | None) -> list[_Segment]:
    pairs = (word.rpartition(":") for word in (log or "").split(",") if word)
    return [_Segment(name, int(rows)) for name, _, rows in pairs]


def _path(table: Table, segment: _Segment) -> str:
    name, locations = f"{segment.name}.parquet", table.location_provider()
    if segment.name.startswith(PREFIX):
        return locations.new_data_location(name)
    return locations.new_metadata_location(name)  # their original location


def _value(segments: Sequence[_Segment]) -> str:
    return ",".join(f"{each.name}:{each.rows}" for each in segments)


def _write(table: Table, entries: pa.Table) -> _Segment:
    segment = _Segment(f"{PREFIX}{uuid.uuid4()}", entries.num_rows)
    with table.io.new_output(_path(table, segment)).create() as stream:
        pq.write_table(entries, stream, compression="zstd", write_page_checksum=True)
    return segment


_IDENTITY: Final = ("identity", "digest", "layout")
_START: Final = ("meaning", "identity", "copy", "digest", "size_bytes")


def _texts(values: Iterable[str]) -> pa.StringArray:
    return pa.array(sorted(values), pa.string())


def _may_mean(key: FileKey) -> pc.Expression:
    """Select entries with the same interpretation; k2 0.1.0 did not record it."""
    if not key.meaning:
        return pc.field("meaning").is_null() | pc.field("meaning").is_valid()
    is_same: pc.Expression = pc.field("meaning") == key.meaning
    return is_same | pc.field("meaning").is_null()


def _find(
    table: Table, log: str | None, which: pc.Expression, columns: Sequence[str]
) -> Iterator[pa.Table]:
    """Yield the entries that an expression selects, the newest segment first."""
    for segment in reversed(_segments(log)):
        yield _read(table, segment, columns).filter(which)


def _read(table: Table, segment: _Segment, names: Sequence[str] | None = None) -> pa.Table:
    """Read entries; columns that an older segment lacks are null."""
    fields = [_SCHEMA.field(name) for name in names or _SCHEMA.names]
    with open_data_file(table, _path(table, segment)) as file:
        there = [field.name for field in fields if field.name in file.schema_arrow.names]
        found = file.read(there, use_threads=False)
    columns: Mapping[str, Any] = {name: found[name] for name in there}
    return pa.table(
        [columns.get(field.name, pa.nulls(found.num_rows, field.type)) for field in fields],
        schema=pa.schema(fields),
    )
