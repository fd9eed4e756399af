"""The file that an answer is written to, completely or not at all."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from k2cli.errors import NotFound, UsageError
from k2cli.files import already_exists, opened_for_writing, refuse_dangling_link
from k2cli.query.formats import (
    BINARY,
    EXTENSIONS,
    Compression,
    Format,
    compressed,
    compression_of,
    write_answer,
)

if TYPE_CHECKING:
    from k2cli.query.protocol import AnyAnswer

Write = Callable[["AnyAnswer", BinaryIO], int]  # returns the number of rows


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDestination:
    """A file, and the format of the answer in it. Created by `choose_file`."""

    path: Path
    format: Format
    is_forced: bool = False  # replace the file if it exists
    has_header: bool = True  # of csv
    compression: Compression | None = None

    def write(
        self,
        answer: "AnyAnswer",
        *,
        draw: Write | None = None,
        progress: Callable[[BinaryIO], AbstractContextManager[BinaryIO]] = nullcontext,
    ) -> int:
        """Run the answer and write it; return the number of rows.

        `draw` writes a table, the only format without a writer here; `progress` wraps the sink.

        Raises:
            UsageError: the file exists or may not be written.
            Unavailable: the disk failed or is full.
        """
        with (
            opened_for_writing(self.path, is_forced=self.is_forced) as opened,
            compressed(opened, self.compression) as sink,
            progress(sink) as watched,
        ):
            if self.format is Format.TABLE and draw is not None:
                return draw(answer, watched)
            return write_answer(
                answer, self.format, watched, has_header=self.has_header, is_stream=False
            )


def choose_file(path: Path, chosen: Format | None, *, is_forced: bool) -> FileDestination:
    """Choose the format before any work is done: the given one, or that of the file's suffix.

    Raises:
        UsageError: the file exists, its format is unclear, or it cannot be compressed as a whole.
        NotFound: the file's directory does not exist.
    """
    refuse_dangling_link(path)
    is_special = path.exists() and not path.is_file() and not path.is_dir()
    if path.is_dir():
        raise UsageError(f"{path} is a directory", hint="-o needs the name of a file")
    if not path.parent.is_dir():
        raise NotFound(f"directory {path.parent} does not exist", hint=f"mkdir -p {path.parent}")
    if path.is_file() and not is_forced:
        raise already_exists(path)
    compression, name = compression_of(path)
    found = chosen or EXTENSIONS.get(name.suffix.lower()) or (Format.CSV if is_special else None)
    if found is None:
        known = " ".join(EXTENSIONS)
        hint = (
            f"add --format, or use one of the suffixes {known}, with .gz or .zst for text formats"
        )
        raise UsageError(f"no format for {path}", hint=hint)
    if compression and found in BINARY:
        raise UsageError(
            f"{found} is compressed inside, not as a whole", hint=f"name it {name.name}"
        )
    return FileDestination(path=path, format=found, is_forced=is_forced, compression=compression)
