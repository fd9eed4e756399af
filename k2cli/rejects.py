"""Rejects as ndjson: what became no row, as it came, where it stood and why.

A line has `reason`, `position` (number of the message in the run; out of Kafka its offset, and
`source` is topic/partition; of a row that a table cannot hold the exchange's number, and `source`
is the table), `received` (ISO UTC; the microseconds since 1970 outside the years 1 to 9999), `run`,
and the input as `raw` text, or as `raw_base64` where it is not UTF-8; a Kafka message without a
value has `raw` null. A Kafka message also has its `key` and its `headers`, a list of objects with
`name` and `value`, where it has them; bytes that are not UTF-8 are `key_base64` and `value_base64`.
A line of a file also has `file`, `code` (bad_price, bad_column_count, ...) and, where one does not
fit, `column`. The `raw` text of a row is what `k2 query --format ndjson` prints of it.
"""

import base64
import errno
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Final

from k2cli.errors import BadData, ConfigError, Unavailable
from k2cli.files import make_folder, opener, refuse_dangling_link
from k2cli.flow import Reject
from k2cli.iso import iso_utc_us

MAX_REJECT_BYTES: Final = 10**9  # of a file of rejects, unless an option sets another limit
_BUFFER_BYTES: Final = 64 * 1024
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class RejectLog:
    """A file that rejects are appended to; it is created with the first one.

    What a full disk does not take is kept and written by the next call that can.

    Raises:
        UsageError: the file is a link that leads nowhere.
        ConfigError: the file cannot be written (from any method).
        Unavailable: the disk is full.
    """

    def __init__(self, path: Path, *, run: str) -> None:
        """Prepare to append to a file; `run` goes into every line, as log lines have it."""
        refuse_dangling_link(path)
        self.path: Final = path
        self._run = run
        self._file: IO[bytes] | None = None
        self._unwritten = bytearray()
        self._written_bytes = 0
        self._is_behind = False  # the last attempt to write failed

    def __enter__(self) -> "RejectLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with suppress(OSError):  # `sync` has reported already what cannot be written
                self._drain(self._file)
            self._file.close()

    @property
    def size_bytes(self) -> int:
        """Size of the file, with what earlier runs wrote; 0 before the first reject."""
        return self._written_bytes + len(self._unwritten)

    @property
    def unwritten(self) -> int:
        """How many rejects were taken over that the file has not, or not as a whole."""
        return self._unwritten.count(b"\n")

    def check_size(self, most: int) -> None:
        """Raise BadData if the file, once this run wrote to it, has more bytes than these."""
        if self.size_bytes > most:
            raise BadData(
                f"{self.path} has {self.size_bytes:,} bytes of rejects; allowed are {most:,}",
                hint=f"move {self.path} away, or raise --max-reject-bytes",
            )

    def write(self, rejects: Sequence[Reject]) -> None:
        """Append rejects, a line each; none of them if an earlier one could not be written."""
        if not rejects:
            return
        with self._translated():
            if self._file is None:
                self._file = _open_for_lines(self.path)
                self._written_bytes = os.fstat(self._file.fileno()).st_size
            if self._is_behind:
                self._drain(self._file)
            for reject in rejects:
                self._unwritten += _reject_line(reject, self._run)
            if len(self._unwritten) >= _BUFFER_BYTES:
                with suppress(OSError):  # they are taken over: `sync` raises if it still fails
                    self._drain(self._file)

    def sync(self) -> None:
        """Make the rejects durable; called before the position moves past them."""
        if self._file is not None:
            with self._translated():
                self._drain(self._file)
                if self.path.is_file():  # a pipe or a device cannot be synced
                    os.fsync(self._file.fileno())

    def _drain(self, file: IO[bytes]) -> None:
        self._is_behind = True
        while self._unwritten:
            done = os.write(file.fileno(), self._unwritten)
            del self._unwritten[:done]
            self._written_bytes += done
        self._is_behind = False

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            if exc.errno in _NO_SPACE:
                raise Unavailable(f"cannot write rejects to {self.path}: {exc.strerror}") from exc
            raise ConfigError(
                f"cannot write rejects to {self.path}: {exc.strerror}",
                hint="name another file with --rejects",
            ) from exc


def _open_for_lines(path: Path) -> IO[bytes]:
    """Open a file for appending, on a new line even where a run was cut off within one."""
    make_folder(path.parent)
    is_cut = False
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            is_cut = file.read() != b"\n"
    lines = open(path, "ab", buffering=0, opener=opener)  # noqa: SIM115
    if is_cut:
        lines.write(b"\n")
    return lines


def _text(name: str, value: bytes | None) -> dict[str, str | None]:
    """Return a field with bytes as text, or in base64 where they are not UTF-8."""
    if value is None:
        return {name: None}
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def _reject_line(reject: Reject, run: str) -> bytes:
    line: dict[str, object] = {
        "reason": reject.reason,
        "position": reject.position,
        "received": iso_utc_us(reject.received_us),
    }
    named = {
        "run": run,
        "source": reject.source,
        "file": reject.file,
        "code": reject.code,
        "column": reject.column,
    }
    line |= {key: value for key, value in named.items() if value}
    if reject.key is not None:
        line |= _text("key", reject.key)
    if reject.headers:
        line["headers"] = [
            {"name": name, **_text("value", value)} for name, value in reject.headers
        ]
    line |= _text("raw", None if reject.is_null else reject.raw)
    # Half of a surrogate pair becomes the escape that JSON has for it.
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
