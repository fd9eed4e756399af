"""Rewrite the paths in an embedded catalog whose home folder was moved or copied.

Iceberg stores absolute paths: in the catalog, in metadata files, in manifest lists and manifests.
Relocating writes new metadata, lists and manifests beside the old ones, syncs them, and then swaps
the pointers of all tables in one transaction: before it the old state is in effect, after it the
new one. The names of new files follow from the old ones, so a repeated run overwrites what a run
that was killed had written. Data files and load logs contain no paths of the home folder.
"""

import gzip
import json
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

import fastavro
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import ValidationError

from k2cli.errors import BadData
from k2cli.files import sync_folder
from k2cli.storage.pointer import Pointer, read_pointers, swap_pointers
from k2cli.storage.stored import row_level_deletes
from k2cli.storage.vendor import reading_manifests

_FILE: Final = "file://"
_WAREHOUSE: Final = "warehouse"  # its name in every home folder
_DEPTH: Final = 5  # warehouse/namespace/table/metadata/file
_VERSION: Final = re.compile(r"(\d+)")
_LIST: Final = re.compile(r"snap-\d+-\d+-")
_GZIPPED: Final = ".gz.metadata.json"
_DELETES: Final = 1  # the content of manifests of row-level deletes

Identifier = tuple[str, str]
Record = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedTable:
    """A table whose paths point to the former home folder."""

    name: str
    old_home: str
    new_home: str
    pointer: Pointer
    metadata: Path  # the current metadata file, where it is now


@dataclass(frozen=True, slots=True)
class _Written:
    """The files written for one table, and the files unreferenced afterwards."""

    metadata: Path
    replaced: list[Path]


def moved_tables(catalog: Catalog, home: Path) -> dict[Identifier, MovedTable]:
    """Find the tables whose catalog entries point to a different home folder.

    Another path to the same folder, such as a symlink, is not another home.
    """
    found = {}
    for identifier, pointer in read_pointers(catalog).items():
        parts = PurePosixPath(pointer.current.removeprefix(_FILE)).parts
        old = PurePosixPath(*parts[:-_DEPTH])
        here = home.joinpath(*parts[-_DEPTH:])
        if len(parts) <= _DEPTH or parts[-_DEPTH] != _WAREHOUSE or old == PurePosixPath(home):
            continue
        there = Path(*parts).parent
        if here.parent.is_dir() and not (there.is_dir() and there.samefile(here.parent)):
            found[identifier] = MovedTable(
                name=".".join(identifier),
                old_home=str(old),
                new_home=str(home),
                pointer=pointer,
                metadata=here,
            )
    return found


def relocate_tables(catalog: Catalog, moved: Mapping[Identifier, MovedTable]) -> None:
    """Update all tables, or none, to the current paths of their files.

    Raises:
        BadData: a file is missing or damaged, or a table has row-level deletes.
        Conflict: another process changed a table meanwhile.
    """
    written = {identifier: _Relocation(table).write() for identifier, table in moved.items()}
    swap_pointers(
        catalog,
        {
            identifier: (moved[identifier].pointer, Pointer(str(each.metadata)))
            for identifier, each in written.items()
        },
    )
    for identifier, each in written.items():
        for path in each.replaced:
            if path.is_relative_to(moved[identifier].new_home):
                with suppress(OSError):  # remaining files are garbage
                    path.unlink()


@dataclass(slots=True)
class _Relocation:
    """Rewrites the metadata of one table with the current paths."""

    table: MovedTable
    replaced: list[Path] = field(default_factory=list)
    manifests: dict[str, tuple[str, int]] = field(default_factory=dict)  # old path: new one, size

    def write(self) -> _Written:
        """Write metadata, manifest lists and manifests, and sync them."""
        source = self.table.metadata
        with _reading(self.table, source):
            document = json.loads(_read_text(source))
            if not isinstance(document, dict):
                raise ValidationError("not a JSON object")
        for entry in document.get("metadata-log", ()):
            self.replaced.append(Path(self._plain(entry["metadata-file"])))
        document["metadata-log"] = []  # they contain the old paths
        changed = self._changed(document)
        for old, new in zip(
            document.get("snapshots", ()), changed.get("snapshots", ()), strict=True
        ):
            new["manifest-list"] = self._list(old["manifest-list"])
        match = _VERSION.match(source.name)
        version = int(match[1]) + 1 if match else 0
        target = source.with_name(f"{version:05}-{self._uuid(source)}.metadata.json")
        _write_synced(target, json.dumps(changed).encode())
        sync_folder(target.parent)
        self.replaced.append(source)
        return _Written(target, self.replaced)

    def _list(self, old: str) -> str:
        """Write a manifest list, and the manifests in it that are not written yet."""

        def change(record: Record) -> None:
            if record.get("content") == _DELETES:
                raise row_level_deletes(self.table.name)
            path = record["manifest_path"]
            if path not in self.manifests:
                self.manifests[path] = self._avro(path, self._change_entry)
            record["manifest_path"], record["manifest_length"] = self.manifests[path]

        return self._avro(old, change)[0]

    def _change_entry(self, record: Record) -> None:
        data_file = record["data_file"]
        for name in ("file_path", "referenced_data_file"):
            if data_file.get(name):
                data_file[name] = self._path(data_file[name])

    def _avro(self, old: str, change: Callable[[Record], None]) -> tuple[str, int]:
        """Write an Avro file with changed records; return its path and size."""
        source = Path(self._plain(old))
        with _reading(self.table, source), source.open("rb") as stream:
            reader = fastavro.reader(stream)
            records = [record for record in reader if isinstance(record, dict)]
            schema, codec = reader.writer_schema, reader.codec
            header = {
                key: value for key, value in reader.metadata.items() if not key.startswith("avro.")
            }
        for record in records:
            change(record)
        unique = self._uuid(source)
        match = _LIST.match(source.name)
        name = f"{match[0]}{unique}.avro" if match else f"{unique}-m0.avro"
        target = self.table.metadata.with_name(name)
        with _synced(target) as stream:
            fastavro.writer(stream, schema, records, codec=codec, metadata=header)
        self.replaced.append(source)
        return str(target), target.stat().st_size

    def _uuid(self, source: Path) -> uuid.UUID:
        return uuid.uuid5(uuid.NAMESPACE_URL, f"{self.table.old_home} {source}")

    def _changed(self, value: Any) -> Any:
        """Change all paths in a JSON document, except in snapshot summaries."""
        match value:
            case dict():
                return {
                    key: each if key == "summary" else self._changed(each)
                    for key, each in value.items()
                }
            case list():
                return [self._changed(each) for each in value]
            case str():
                return self._path(value)
            case _:
                return value

    def _path(self, text: str) -> str:
        """Change the home folder of a path; leave other texts unchanged."""
        for scheme in ("", _FILE):
            old = f"{scheme}{self.table.old_home}"
            if text == old or text.startswith(f"{old}/"):
                return f"{scheme}{self.table.new_home}{text[len(old) :]}"
        return text

    def _plain(self, text: str) -> str:
        return self._path(text).removeprefix(_FILE)


@contextmanager
def _reading(table: MovedTable, path: Path) -> Iterator[None]:
    """Return the error for an unreadable file."""
    try:
        with reading_manifests():
            yield
    except (FileNotFoundError, EOFError, ValidationError) as exc:
        reason = "is missing" if isinstance(exc, FileNotFoundError) else f"is damaged: {exc}"
        raise BadData(
            f"table {table.name} cannot be relocated: {path} {reason}",
            hint=f"restore it from a backup; or make {table.old_home} a link to {table.new_home},"
            " run k2 table repair, and remove the link",
        ) from exc


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    return (gzip.decompress(content) if path.name.endswith(_GZIPPED) else content).decode()


def _write_synced(path: Path, content: bytes) -> None:
    with _synced(path) as stream:
        stream.write(content)


@contextmanager
def _synced(path: Path) -> Iterator[Any]:
    """Yield a file that gets its name once it is complete and synced."""
    scratch = path.with_name(f".{path.name}.tmp")
    try:
        with scratch.open("wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
