"""Rows whose id is stored with other values: as events, and as rejects with both values."""

import json
import time
from collections.abc import Sequence
from typing import Final

from k2cli.events import Observer
from k2cli.records import RecordKind
from k2cli.rejects import Cause, Fault, Reject, shown
from k2cli.storage.admission import MAX_CONFLICTS, ValueConflict

_NO_EXAMPLE: Final = "ids are already stored with other values"


class ConflictReport:
    """Reports rows whose id is stored with other values: each as an event, the first as rejects."""

    def __init__(self, observe: Observer) -> None:
        self._observe = observe
        self._left = MAX_CONFLICTS

    def report(
        self, kind: RecordKind, count: int, examples: Sequence[ValueConflict]
    ) -> list[Reject]:
        """Report conflicts of one commit; return those to write to the rejects file.

        Only the first conflicts of a commit have examples: a file that shares it may have none.
        """
        if not count:
            return []
        reason = str(examples[0]) if examples else _NO_EXAMPLE
        self._observe("conflict", table=kind.table, count=count, reason=reason)
        shown = examples[: self._left]
        self._left -= len(shown)
        return conflict_rejects(shown)


def conflict_rejects(conflicts: Sequence[ValueConflict]) -> list[Reject]:
    """Write conflicts as rejects, with both values as JSON."""
    return [_conflict_reject(each) for each in conflicts]


def _conflict_reject(conflict: ValueConflict) -> Reject:
    values = {"received": conflict.received, "stored": conflict.stored}
    differing = conflict.differing
    field = differing[0] if len(differing) == 1 else ""
    return Reject(
        fault=Fault(
            reason=str(conflict),
            cause=Cause.CONFLICT,
            field=field,
            value=shown(conflict.received[field]) if field else None,
        ),
        raw=json.dumps(values, default=shown).encode(),
        position=conflict.number or 0,
        received_us=time.time_ns() // 1000,
        source=f"{conflict.series.exchange}/{conflict.series.symbol}",
    )
