"""Keep the open gaps of streams into Kafka in a file of the home folder, for later runs.

A file has the gaps of one topic on one cluster, by exchange and symbol. Streams of different
symbols may write it at the same time: each replaces the gaps of its own symbols, under a lock.
The symbols of a stream may change while it runs.
"""

import fcntl
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from k2cli.errors import BadData, Unavailable
from k2cli.files import make_folder, opener, replace_file
from k2cli.storage.opengaps import MAX_GAPS, OpenGaps, decode_open_gaps, encode_open_gaps, shrunk

_HASHED: Final = 16  # characters


class GapFile:
    """The file of the open gaps of one topic."""

    def __init__(self, home: Path, *, target: str) -> None:
        """Name the file; `target` names the cluster and the topic."""
        name = hashlib.sha256(target.encode()).hexdigest()[:_HASHED]
        self.path: Final = home / "gaps" / f"kafka-{name}.txt"

    def load(self) -> OpenGaps:
        """Return the open gaps of all series.

        Raises:
            BadData: the file is damaged.
            Unavailable: it cannot be read.
        """
        try:
            return decode_open_gaps(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except OSError as exc:
            raise self._unavailable("read", exc) from exc
        except (BadData, UnicodeDecodeError) as exc:
            raise BadData(
                f"{self.path}: {exc}",
                hint="move the file elsewhere; k2 then does not fill the gaps in it",
            ) from exc

    def save(self, gaps: OpenGaps) -> None:
        """Replace the open gaps of the given series, of which some may have none any more.

        Raises:
            BadData: the file is damaged.
            Unavailable: it cannot be written.
        """
        with self._locked():
            text = encode_open_gaps(shrunk({**self.load(), **gaps}, MAX_GAPS))
            try:
                replace_file(self.path, text)
            except OSError as exc:
                raise self._unavailable("write", exc) from exc

    @contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            make_folder(self.path.parent)
            with open(self.path.with_suffix(".lock"), "ab", opener=opener) as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as exc:
            raise self._unavailable("lock", exc) from exc

    def _unavailable(self, what: str, exc: OSError) -> Unavailable:
        return Unavailable(f"cannot {what} {self.path}: {exc.strerror or exc}")
