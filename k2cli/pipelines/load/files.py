"""Find and open the files of a load."""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from k2cli.errors import ConfigError, K2Error, NotFound, UsageError
from k2cli.files import STDIN
from k2cli.ingestion.csv.layout import Layout
from k2cli.ingestion.csv.source import CsvOptions, CsvSource
from k2cli.paths import expand_home, is_utf8
from k2cli.pipelines.load.job import FileToLoad

SUFFIXES: Final = (".csv", ".csv.gz", ".csv.zst", ".zip")
PARQUET_SUFFIXES: Final = (".parquet", ".pq")
OnSkip = Callable[[Path, str], None]


Read = Callable[[Path | IO[bytes], Layout, CsvOptions], CsvSource]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFiles:
    """The files of paths, globs and folders, and how to read them; `-` is stdin."""

    words: Sequence[str]
    layout_name: str
    layout: Layout
    options: CsvOptions
    read: Read
    suffixes: tuple[str, ...]
    is_following: bool = False  # symbolic links in folders

    def open(self, on_skip: OnSkip) -> Iterator[FileToLoad]:
        """Open the files lazily; the caller closes them.

        Raises:
            K2Error: see `find_files`, or a file cannot be opened.
        """
        for path in self._paths(on_skip):
            yield FileToLoad(
                path=_name(path),
                layout=self.layout_name,
                kind=self.layout.record,
                reader=self.read(path or sys.stdin.buffer, self.layout, self.options),
            )

    def names(self) -> list[str]:
        """Return the files that `open` opens, up to the first that does not exist."""
        names: list[str] = []
        with suppress(K2Error):
            names.extend(map(_name, self._paths(lambda _path, _reason: None)))
        return names

    def _paths(self, on_skip: OnSkip) -> Iterator[Path | None]:
        """Find the files; None is stdin."""
        for word in self.words:
            if word == STDIN:
                yield None
                continue
            yield from find_files(
                [word], suffixes=self.suffixes, is_following=self.is_following, on_skip=on_skip
            )


def _name(path: Path | None) -> str:
    return STDIN if path is None else str(path.absolute())


def find_files(
    words: Sequence[str],
    *,
    suffixes: tuple[str, ...] = SUFFIXES,
    is_following: bool = False,
    on_skip: OnSkip = lambda _path, _reason: None,
) -> list[Path]:
    """Find the files of paths, globs and folders, each once, in sorted order.

    Other than regular files, the contents of folders and globs are skipped and reported to
    `on_skip`: FIFOs, devices and, in folders unless `is_following`, symbolic links.

    Raises:
        UsageError: the path of a file is not UTF-8, which the tables' history requires.
        NotFound: a file does not exist, or a folder or glob has no match.
        UsageError: a glob is not a valid pattern.
        ConfigError: no permission to list a folder.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = expand_home(word)
        try:
            if path.is_dir():
                matches = _in_folder(path, suffixes, is_following=is_following, on_skip=on_skip)
            elif path.exists() or not any(mark in str(path) for mark in "*?["):
                matches = [path]
            else:
                matches = _in_glob(path, on_skip)
            is_there = not matches or matches[0].exists()
        except OSError as exc:
            raise ConfigError(f"{exc.filename or word} cannot be read: {exc.strerror}") from exc
        if not matches:
            raise NotFound(
                f"{word} matches no file",
                hint=f"files in a folder must end in {' '.join(suffixes)}",
            )
        if not is_there:
            raise NotFound(f"{word} does not exist")
        found |= dict.fromkeys(matches)
    for path in found:
        if not is_utf8(str(path.absolute())):
            raise UsageError(f"the path of {str(path)!r} is not UTF-8", hint="rename it")
    return list(found)


def _in_folder(
    path: Path,
    suffixes: tuple[str, ...],
    *,
    is_following: bool,
    on_skip: OnSkip,
) -> list[Path]:
    matches, seen = [], set()
    for folder, folders, names in os.walk(path, onerror=_raise, followlinks=is_following):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # links may form a cycle
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for each in (Path(folder, name) for name in [*names, *folders]):
            is_wanted = each.name.lower().endswith(suffixes)
            if each.is_symlink() and not is_following and (is_wanted or each.is_dir()):
                on_skip(each, "a symbolic link; use --follow-symlinks to read it")
            elif is_wanted and not each.is_dir() and _is_regular(each, on_skip):
                matches.append(each)
    return sorted(matches)


def _in_glob(path: Path, on_skip: OnSkip) -> list[Path]:
    try:
        found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    except (ValueError, IndexError, NotImplementedError, re.error) as exc:
        raise UsageError(f"{path} is not a valid pattern: {exc}") from exc
    return [each for each in found if not each.is_dir() and _is_regular(each, on_skip)]


def _is_regular(path: Path, on_skip: OnSkip) -> bool:
    if path.is_file():
        return True
    is_there = path.exists()
    on_skip(
        path, "not a regular file; name it directly to read it" if is_there else "a broken link"
    )
    return False


def _raise(exc: OSError) -> None:
    raise exc
