"""Rejects as ndjson: what became no row, as it came, where it stood and why.

A line has `reason`, `position` (number of the message in the run), `received` (ISO UTC) and the
input as `raw` text, or as `raw_base64` where it is not UTF-8.
"""

import base64
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Final

from k2cli.errors import ConfigError, Unavailable
from k2cli.flow import Reject


class RejectLog:
    """A file that rejects are appended to; it is made with the first one.

    Raises:
        ConfigError: the file cannot be written (from any method).
        Unavailable: the disk is full.
    """

    def __init__(self, path: Path) -> None:
        self.path: Final = path
        self._file: IO[str] | None = None

    def __enter__(self) -> "RejectLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, rejects: Sequence[Reject]) -> None:
        """Append rejects, a line each."""
        with self._translated():
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("a", encoding="utf-8")
            self._file.writelines(map(_reject_line, rejects))

    def sync(self) -> None:
        """Make the rejects durable; called before the position moves past them."""
        if self._file is not None:
            with self._translated():
                self._file.flush()
                os.fsync(self._file.fileno())

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno == errno.ENOSPC:
                raise Unavailable(f"cannot write rejects to {self.path}: {exc.strerror}") from exc
            raise ConfigError(
                f"cannot write rejects to {self.path}: {exc.strerror}",
                hint="name another file with --rejects",
            ) from exc


def _reject_line(reject: Reject) -> str:
    received = datetime.fromtimestamp(reject.received_us / 1_000_000, tz=UTC)
    line: dict[str, object] = {
        "reason": reject.reason,
        "position": reject.position,
        "received": received.isoformat(timespec="microseconds").replace("+00:00", "Z"),
    }
    try:
        line["raw"] = reject.raw.decode()
    except UnicodeDecodeError:
        line["raw_base64"] = base64.b64encode(reject.raw).decode()
    return json.dumps(line, ensure_ascii=False) + "\n"
