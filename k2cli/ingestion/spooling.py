"""Copy inputs that cannot be read twice, such as pipes, to temporary files."""

import errno
import tempfile
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from k2cli.errors import BadData, Unavailable
from k2cli.files import open_input

_CHUNK: Final = 1 << 20
_NO_SPACE: Final = (errno.ENOSPC, errno.EDQUOT)


def spool(source: IO[bytes]) -> BinaryIO:
    """Copy an input to a temporary file, which is deleted when it is closed.

    Raises:
        BadData: the input cannot be read.
        Unavailable: the disk is full.
    """
    copy = tempfile.TemporaryFile()  # noqa: SIM115  closed by the caller
    try:
        while data := source.read(_CHUNK):
            copy.write(data)
        copy.seek(0)  # flushes its buffer
    except OSError as exc:
        copy.close()
        if exc.errno in _NO_SPACE:
            raise Unavailable(
                f"no space for a copy of the input in {tempfile.gettempdir()}",
                hint="set TMPDIR to a directory with more space",
            ) from exc
        raise BadData(f"the input cannot be read: {exc.strerror}") from exc
    return cast("BinaryIO", copy)


def open_seekable(path: Path) -> BinaryIO:
    """Open a file without a buffer; copy stdin (`-`), pipes and the like to a temporary file.

    Raises:
        OSError: it cannot be opened.
        BadData, Unavailable: it cannot be copied.
    """
    if path.is_file():
        return cast("BinaryIO", path.open("rb", buffering=0))
    with open_input(path) as source:
        return spool(source)
