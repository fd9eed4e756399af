"""Compact a table: replace the data files of a day by fewer, sorted ones with the same rows.

The files are written first; then one REPLACE snapshot per day exchanges them. It is repeated after
a lost race, with the same files, as long as all files that it replaces are live.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyiceberg.exceptions import RESTError
from pyiceberg.manifest import DataFile
from sqlalchemy.exc import DatabaseError

from k2cli.errors import BadData, Conflict, K2Error
from k2cli.storage.append import (
    Attempt,
    OutcomeUnknown,
    PositionMissing,
    commit_attempts,
)
from k2cli.storage.compaction import Group
from k2cli.storage.compactplan import Choice, DayPlan, plan_compaction, table_sort_order
from k2cli.storage.datafiles import (
    ROW_GROUP_ROWS,
    delete_files,
    read_data_file,
    write_sorted_files,
)
from k2cli.storage.lease import Lease
from k2cli.storage.rebuild import ensure_position
from k2cli.storage.sorting import regrouped, sorted_rows
from k2cli.storage.state import TableState
from k2cli.storage.stored import Days
from k2cli.storage.target import Target

_ATTEMPTS: Final = 5  # plans of one day
_WRAP: Final = 1 << 64


class InputsGone(Exception):
    """Another writer replaced or deleted files that are to be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DayDone:
    """What the compaction of a day replaced."""

    plan: DayPlan
    files: int  # afterwards
    size_bytes: int  # afterwards
    snapshot_id: int | None


def compact_day(
    target: Target, plan: DayPlan, lease: Lease, choice: Choice, on_rows: Callable[[int], None]
) -> DayDone | None:
    """Compact one day; plan again if other writers replaced its files. None: nothing is left.

    `on_rows` is called with numbers of rows that were read, and again as they are written.

    Raises:
        Conflict: other writers won too often, or another compaction took over.
        BadData: a file is damaged, or rows would change; nothing was changed.
    """
    for _ in range(_ATTEMPTS):
        with _Outputs(target, plan, lease, on_rows) as outputs:
            try:
                return outputs.commit()
            except (InputsGone, FileNotFoundError) as exc:
                target.table.refresh()
                if isinstance(exc, FileNotFoundError) and outputs.are_inputs_live():
                    raise
        only = Choice(day=plan.day, target_bytes=plan.target_bytes, over_for_s=choice.over_for_s)
        plans = plan_compaction(target.table, target.kind, only)
        if not plans:
            return None
        plan = plans[0]
    raise Conflict("other writers replaced the files meanwhile", hint="run the command again")


class _Outputs:
    """The files that replace those of a plan; deleted on exit unless they were committed."""

    def __init__(
        self, target: Target, plan: DayPlan, lease: Lease, on_rows: Callable[[int], None]
    ) -> None:
        self._target = target
        self._table = target.table
        self._plan = plan
        self._lease = lease
        self._on_rows = on_rows
        self._schema_id = target.table.schema().schema_id
        self._files: list[DataFile] = []
        self._are_ours = True  # no snapshot can refer to them

    def __enter__(self) -> "_Outputs":
        return self

    def __exit__(self, *exc: object) -> None:
        if self._are_ours:
            delete_files(self._table, [file.file_path for file in self._files])

    def commit(self) -> DayDone:
        """Write the files, and exchange them in one snapshot.

        Raises:
            InputsGone: other writers replaced or deleted input files.
        """
        if not self.are_inputs_live():  # the plan is outdated
            raise InputsGone
        for group in self._plan.groups:
            self._write(group)
        while True:
            try:
                snapshot_id = self._exchange()
            except PositionMissing:  # another engine wrote meanwhile
                ensure_position(self._target)
                continue
            return DayDone(
                plan=self._plan,
                files=len(self._files),
                size_bytes=sum(file.file_size_in_bytes for file in self._files),
                snapshot_id=snapshot_id,
            )

    def are_inputs_live(self) -> bool:
        """Return whether the loaded table has all files to replace, and the same schema."""
        day = self._plan.day_number
        live = self._target.index.files(self._table, Days(day, day)).paths
        is_same_schema = self._table.schema().schema_id == self._schema_id
        return is_same_schema and self._plan.files.keys() <= set(live)

    def _exchange(self) -> int | None:
        self._table.refresh()  # the lease and the inputs as they are now
        self._are_ours = False  # whatever interrupts the commit, it may have succeeded
        try:
            return commit_attempts(self._table, self._attempt, self._target.settings)
        except OutcomeUnknown:
            raise
        except (K2Error, InputsGone, PositionMissing, DatabaseError, OSError, RESTError):
            self._are_ours = True  # it failed for certain
            raise

    def _attempt(self, state: TableState) -> Attempt:
        if state.position is None:
            raise PositionMissing
        self._lease.check(self._table)
        if not self.are_inputs_live():
            raise InputsGone
        return Attempt(
            files=self._files,
            removed=list(self._plan.files.values()),
            properties=state.properties,
            scratch=[],  # kept for the next attempt
            is_same_rows=True,
        )

    def _write(self, group: Group) -> None:
        """Write the rows of a group, sorted, and check that all are there.

        Raises:
            BadData: they are not.
        """
        inputs = [self._plan.files[file.path] for file in group.files]
        kind, table = self._target.kind, self._table
        before, after = Checked(), Checked()
        parts = before.watching(part for file in inputs for part in self._read(file))
        rows = after.watching(regrouped(sorted_rows(parts, kind.sort_by), ROW_GROUP_ROWS))
        written = 0
        for file in write_sorted_files(
            table,
            kind,
            inputs[0],
            self._renewing(rows),
            size_bytes=self._plan.target_bytes,
            sort_order_id=table_sort_order(table, kind) if group.is_whole_day else None,
        ):
            self._files.append(file)
            written += file.record_count
        stored = sum(file.record_count for file in inputs)
        if before != after or not written == after.rows == stored:
            raise BadData(
                f"the files of {self._plan.day} in table {kind.table} should have {stored:,} rows;"
                f" {before.rows:,} were read and {written:,} written",
                hint=f"k2 table check {kind.name}",
            )

    def _read(self, file: DataFile) -> Iterator[pa.Table]:
        for part in read_data_file(self._table, file):
            self._lease.renew()
            yield part
            self._on_rows(part.num_rows)

    def _renewing(self, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
        for part in parts:
            self._lease.renew()
            yield part
            self._on_rows(part.num_rows)


@dataclass(slots=True)
class Checked:
    """What must be equal before and after: the number of rows, and the bounds of their ids."""

    rows: int = 0
    numbers: list[int] = field(default_factory=list)  # lowest and highest
    sum_of_numbers: int = 0  # modulo 2^64, as Arrow adds
    ids: list[str] = field(default_factory=list)  # first and last

    def watching(self, parts: Iterator[pa.Table]) -> Iterator[pa.Table]:
        """Pass rows on, and count them."""
        for part in parts:
            self.rows += part.num_rows
            self.numbers = _bounds(self.numbers, part["source_sequence"])
            self.ids = _bounds(self.ids, part["message_id"])
            added = int(pc.sum(part["source_sequence"]).as_py() or 0)
            self.sum_of_numbers = (self.sum_of_numbers + added) % _WRAP
            yield part


def _bounds(known: list[Any], column: pa.ChunkedArray) -> list[Any]:
    found = pc.min_max(column).as_py()
    values = [*known, found["min"], found["max"]]
    values = [value for value in values if value is not None]
    return [min(values), max(values)] if values else []
