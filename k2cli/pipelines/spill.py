"""Save rows that a stopped run could not commit as files for the next run.

A file is an Arrow IPC file of one kind's rows. Its metadata has the kind, and the sequence numbers
seen without a row. A run that reads a file locks it until its rows are committed, so two runs do
not pick up the same file.
"""

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa

from k2cli.config import Settings
from k2cli.errors import Unavailable
from k2cli.events import Observer
from k2cli.files import make_folder, opener, sync_folder
from k2cli.records import KINDS, RecordKind
from k2cli.redaction import redact_url
from k2cli.storage.position import Series, Stored

_KIND: Final = b"k2.kind"
_SEEN: Final = b"k2.seen"
_SUFFIX: Final = ".arrow"


@dataclass(slots=True, kw_only=True)
class Spilled:
    """The content of one file."""

    path: Path
    kind: RecordKind
    rows: pa.Table
    seen: Mapping[Series, Stored]
    lock: BinaryIO

    def remove(self) -> None:
        """Remove the file: its rows are committed."""
        self.path.unlink(missing_ok=True)
        self.lock.close()

    def release(self) -> None:
        """Leave the file, with its rows, to the next run."""
        self.lock.close()

    def forget_rows(self) -> None:
        """Drop the rows from memory; the file still has them."""
        self.rows = self.kind.arrow.empty_table()


class SpillFolder:
    """The folder of saved rows for one catalog, created with the first file."""

    def __init__(self, config: Settings, observe: Observer) -> None:
        self.path: Final = config.home / "uncommitted" / _catalog_name(config)
        self._observe = observe

    def save(self, kind: RecordKind, rows: pa.Table, seen: Mapping[Series, Stored]) -> Path:
        """Write rows durably; return the file.

        Raises:
            Unavailable: the file cannot be written.
        """
        metadata = {_KIND: kind.name.encode(), _SEEN: _encode(seen)}
        name = f"{kind.name}-{time.time_ns()}-{secrets.token_hex(4)}"
        path, partial = self.path / f"{name}{_SUFFIX}", self.path / f"{name}.tmp"
        try:
            make_folder(self.path)
            try:
                with open(partial, "wb", opener=opener) as file:
                    schema = kind.arrow.with_metadata(metadata)
                    with pa.ipc.new_file(file, schema) as writer:
                        writer.write_table(rows.replace_schema_metadata(metadata))
                    file.flush()
                    os.fsync(file.fileno())
                partial.replace(path)
                sync_folder(self.path)
            finally:
                partial.unlink(missing_ok=True)
        except OSError as exc:
            raise Unavailable(f"cannot write {path}: {exc.strerror or exc}") from exc
        return path

    def load(self) -> Iterator[Spilled]:
        """Yield the files of earlier runs, oldest first, and lock each.

        A file that cannot be read is reported and left in place.
        """
        for path in sorted(self.path.glob(f"*{_SUFFIX}"), key=lambda each: each.name.split("-")[1]):
            file = _locked(path)
            if file is None:  # another run has locked it
                continue
            try:
                rows = pa.ipc.open_file(file).read_all()
                metadata = rows.schema.metadata or {}
                kind = KINDS[metadata[_KIND].decode()]
                spilled = Spilled(
                    path=path,
                    kind=kind,
                    rows=rows.select(kind.arrow.names).cast(kind.arrow),
                    seen=_decode(metadata[_SEEN]),
                    lock=file,
                )
            except (pa.ArrowException, OSError, LookupError, ValueError, TypeError) as exc:
                file.close()
                self._observe("uncommitted_unreadable", file=str(path), reason=str(exc))
                continue
            yield spilled


def _locked(path: Path) -> BinaryIO | None:
    """Open and lock a file, unless another process holds it or has removed it."""
    with suppress(FileNotFoundError, BlockingIOError):
        file = path.open("rb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.stat()  # it may have been removed before it was locked
        except OSError:
            file.close()
            raise
        return file
    return None


def _catalog_name(config: Settings) -> str:
    """Return a name for the rows' catalog that does not depend on its password."""
    where = [config.catalog.get(key) for key in ("uri", "warehouse")]
    if not any(where):
        return "embedded"
    text = json.dumps([redact_url(value or "") for value in where])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _encode(seen: Mapping[Series, Stored]) -> bytes:
    return json.dumps(
        [[*series, stored.exact.tolist()] for series, stored in seen.items()]
    ).encode()


def _decode(data: bytes) -> dict[Series, Stored]:
    return {
        Series(exchange, symbol): Stored(exact=np.array(ranges, dtype=np.int64).reshape(-1, 2))
        for exchange, symbol, ranges in json.loads(data)
    }
