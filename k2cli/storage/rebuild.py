"""Rebuild the position of a table from the numbers of its rows.

That is needed once for a table that was written by k2 0.1.0, and after other engines have added,
changed or removed rows, or have expired all of k2's snapshots. Progress is saved in a file under
the home folder, so an interrupted run continues where the last one stopped.
"""

import os
import time
from pathlib import Path
from typing import Final

import msgspec
import pyarrow as pa

from k2cli.errors import BadData
from k2cli.files import make_folder, opener
from k2cli.storage.admission import rows_days, runs, stored_numbers
from k2cli.storage.append import Attempt, commit_attempts
from k2cli.storage.lookup import read_numbers
from k2cli.storage.numbered import Numbered
from k2cli.storage.position import (
    KEY,
    Position,
    Series,
    Stored,
    decode_position,
    encode_position,
)
from k2cli.storage.state import LOST_KEY, TableState, position_property, read_state
from k2cli.storage.target import Target

_SAVE_S: Final = 5.0
_MAX_RANGES: Final = 100_000  # of one series, during the rebuild


class _Progress(msgspec.Struct):
    """The progress of reading a table."""

    files: list[str]
    position: str


def ensure_position(target: Target) -> None:
    """Rebuild a table's position and commit it, unless it exists.

    Raises:
        Conflict: other writers won too often.
    """
    if read_state(target.table).position is not None:
        return
    rebuild = _Rebuild(target)

    def attempt(state: TableState) -> Attempt | None:
        if state.position is not None:  # another process was faster
            return None
        lost = {LOST_KEY: "1"} if state.is_lost else {}
        position = rebuild.read().updated({})
        properties = {**state.properties, **lost, KEY: position_property(position)}
        return Attempt(files=[], properties=properties, scratch=[], is_repeatable=True)

    commit_attempts(target.table, attempt, target.settings)
    rebuild.forget()


class _Rebuild:
    """Reads the numbers of a table, each data file once."""

    def __init__(self, target: Target) -> None:
        self._target = target
        uuid = target.table.metadata.table_uuid
        self._path = target.settings.home / "rebuild" / f"{uuid}.msgpack"
        self._done, self._series = _load(self._path)

    def read(self) -> Position:
        """Read the remaining data files of the newest snapshot."""
        table, kind = self._target.table, self._target.kind
        paths = self._target.index.files(table).paths
        if not self._done <= set(paths):  # what was read may be gone with its file
            self._done, self._series = set(), {}
        todo = [path for path in paths if path not in self._done]
        saved = time.monotonic()
        for number, path in enumerate(todo, start=1):
            for numbered, rows in read_numbers(table, kind, path):
                self._add(numbered, rows)
            self._done.add(path)
            if time.monotonic() - saved > _SAVE_S or number == len(todo):
                saved = time.monotonic()
                self._save()
                self._target.observe(
                    "rebuild_position",
                    table=kind.table,
                    files=len(paths) - len(todo) + number,
                    of=len(paths),
                )
        return Position(self._series)

    def forget(self) -> None:
        """Delete the saved progress."""
        self._path.unlink(missing_ok=True)

    def _add(self, numbered: Numbered, rows: pa.Table) -> None:
        kind = self._target.kind
        days = None if kind.is_dense else rows_days(kind, rows)[numbered.rows]
        for code, begin, end in runs(numbered.codes):
            part = stored_numbers(
                numbered.numbers[begin:end], None if days is None else days[begin:end]
            )
            series = numbered.series[code]
            merged = self._series.get(series, Stored()).merged(part)
            self._series[series] = merged.shrunk(_MAX_RANGES)

    def _save(self) -> None:
        make_folder(self._path.parent)
        progress = _Progress(sorted(self._done), encode_position(Position(self._series)))
        scratch = self._path.with_suffix(f".{os.getpid()}.tmp")
        with open(scratch, "wb", opener=opener) as file:
            file.write(msgspec.msgpack.encode(progress))
        scratch.replace(self._path)


def _load(path: Path) -> tuple[set[str], dict[Series, Stored]]:
    """Read the progress of an earlier run; empty if missing or unreadable."""
    try:
        progress = msgspec.msgpack.decode(path.read_bytes(), type=_Progress)
        return set(progress.files), dict(decode_position(progress.position).series)
    except (OSError, msgspec.DecodeError, BadData):
        return set(), {}
