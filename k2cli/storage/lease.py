"""The lease of a compaction: one at a time per table, as a table property.

Two compactions of a table do no harm, as only one of them can replace a file, but waste work. The
lease ends by itself if its process dies.
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, Final

from pyiceberg.exceptions import CommitFailedException, RESTError
from pyiceberg.table import Table
from sqlalchemy.exc import DatabaseError

from k2cli.errors import Conflict, K2Error
from k2cli.iso import iso_utc
from k2cli.storage.append import OneCommit
from k2cli.storage.races import ATTEMPTS, too_many_races, wait_after_race

KEY: Final = "k2.compaction"
DURATION_S: Final = 300.0


class Lease:
    """The right to compact a table. Created by `hold_lease`."""

    def __init__(self, load: Callable[[], Table]) -> None:
        self._load = load
        self._id = uuid.uuid4().hex
        self._until = 0.0

    def take(self) -> None:
        """Take the lease, or take it over if it has ended.

        Raises:
            Conflict: another compaction has it.
        """
        for number in range(ATTEMPTS):
            table = self._load()
            if (holder := _holder(table)) and holder["id"] != self._id and _is_alive(holder):
                raise Conflict(
                    f"another compaction of {table.name()[-1]} is running: process"
                    f" {holder['pid']} on {holder['host']}",
                    hint="wait for it; if it was killed, its right to compact ends at "
                    + iso_utc(datetime.fromtimestamp(holder["until"], UTC), "seconds"),
                )
            until = time.time() + DURATION_S
            text = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid()}
            with suppress(CommitFailedException):
                transaction = OneCommit(table)
                transaction.set_properties({KEY: json.dumps({**text, "until": int(until)})})
                transaction.commit_transaction()
                self._until = until
                self.check(self._load())
                return
            wait_after_race(number)
        raise too_many_races(self._load())

    def renew(self) -> None:
        """Extend the lease if half of it is over."""
        if time.time() > self._until - DURATION_S / 2:
            self.check(self._load())
            self.take()

    def check(self, table: Table) -> None:
        """Check that no other compaction took the lease over.

        Raises:
            Conflict: one did.
        """
        holder = _holder(table)
        if holder is None or holder["id"] != self._id:
            raise Conflict(
                f"another compaction of {table.name()[-1]} took over", hint="run the command again"
            )

    def end(self) -> None:
        """Give the lease back, unless another compaction has it."""
        for _ in range(ATTEMPTS):
            table = self._load()
            holder = _holder(table)
            if holder is None or holder["id"] != self._id:
                return
            with suppress(CommitFailedException):
                transaction = OneCommit(table)
                transaction.remove_properties(KEY)
                transaction.commit_transaction()
                return


@contextmanager
def hold_lease(load: Callable[[], Table]) -> Iterator[Lease]:
    """Hold the lease of a table; `load` loads its newest metadata.

    Raises:
        Conflict: another compaction has it.
    """
    lease = Lease(load)
    lease.take()
    try:
        yield lease
    except BaseException:
        # The first error matters; the lease ends by itself.
        with suppress(K2Error, DatabaseError, OSError, RESTError):
            lease.end()
        raise
    lease.end()


def _holder(table: Table) -> dict[str, Any] | None:
    """Return who has the lease; None for nobody, and for a text that k2 did not write."""
    try:
        holder = json.loads(table.properties.get(KEY, "null"))
        return {**holder, "until": float(holder["until"]), "pid": int(holder["pid"])}
    except (ValueError, TypeError, KeyError):
        return None


def _is_alive(holder: dict[str, Any]) -> bool:
    if holder["until"] < time.time():
        return False
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
