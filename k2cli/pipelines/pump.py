"""The bounded pump: batches of one input into a target, until too many lines are rejected."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa

from k2cli.errors import BadData
from k2cli.flow import Batch
from k2cli.records import RecordKind
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog

_PERCENT: Final = 100


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many rejects an input may have: a number, or a share of its lines."""

    count: int = 0
    percent: float | None = None

    def is_exceeded(self, rejects: int, lines: int) -> bool:
        """Return whether there are too many rejects for this number of lines."""
        if self.percent is None:
            return rejects > self.count
        return rejects * _PERCENT > self.percent * lines

    def __str__(self) -> str:
        return str(self.count) if self.percent is None else f"{self.percent:g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectPolicy:
    """Where rejects are written, and how many an input may have."""

    rejects: RejectLog
    allowance: Allowance
    max_reject_bytes: int = MAX_REJECT_BYTES  # of the rejects file


@dataclass(slots=True)
class LineSums:
    """What was read of an input so far."""

    lines: int = 0
    rows: int = 0
    rejects: int = 0


Write = Callable[[RecordKind, pa.RecordBatch], object]  # takes rows over


def pump(
    batches: Iterable[Batch], write: Write, *, path: str, policy: RejectPolicy, sums: LineSums
) -> None:
    """Write the rows of an input, and its rejects into their file; commit nothing.

    `path` names the input; `sums` counts what was read, even of an input that fails.

    Raises:
        BadData: more rejects than allowed, the file of rejects is full, or the input cannot be read
            to its end.
    """
    rejects, allowance = policy.rejects, policy.allowance
    first = ""
    for batch in batches:
        sums.lines += batch.messages
        sums.rejects += len(batch.rejects)
        if batch.rejects:
            first = first or f"line {batch.rejects[0].position}: {batch.rejects[0].reason}"
            rejects.check_size(policy.max_reject_bytes)  # other inputs may have filled it
            rejects.write([replace(reject, file=path) for reject in batch.rejects])
        for kind, rows in batch.rows:
            sums.rows += rows.num_rows
            write(kind, rows)
        if allowance.percent is None and allowance.is_exceeded(sums.rejects, sums.lines):
            break
        if batch.rejects:
            rejects.check_size(policy.max_reject_bytes)
    rejects.sync()
    if allowance.is_exceeded(sums.rejects, sums.lines):
        what = "line" if sums.rejects == 1 else "lines"
        raise BadData(
            f"{path}: {sums.rejects:,} {what} rejected (limit {allowance}); first: {first}",
            hint=f"see {rejects.path}, or increase --max-rejects",
        )
