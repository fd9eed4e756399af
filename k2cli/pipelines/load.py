"""Files -> tables or topics: which files, whether they are new, and all or nothing of each.

Like stream.py this is where sources and sinks meet; here the source has an end, and what is
committed is a file, not an interval.
"""

import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import pyarrow as pa

from k2cli.config import is_utf8
from k2cli.errors import BadData, ConfigError, NotFound, UsageError
from k2cli.flow import Batch
from k2cli.paths import expanded
from k2cli.pipelines.sinks import ConflictReport
from k2cli.records import RecordKind
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog
from k2cli.storage.lake import Lake
from k2cli.storage.loads import STDIN

if TYPE_CHECKING:
    from k2cli.pipelines.produce import TopicRows

SUFFIXES: Final = (".csv", ".csv.gz", ".csv.zst", ".zip")
_PERCENT: Final = 100
_SUM_BYTES: Final = 4096  # of a .CHECKSUM file; the sum is its first word
_LEAST_ID: Final = 4  # characters that name a load
_TO_FIND: Final = ["load", "loaded_at", "path", "exchange", "symbol", "duplicates"]


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many rejects a file may have: a number, or a share of its lines."""

    count: int = 0
    percent: float | None = None

    def is_exceeded(self, rejects: int, lines: int) -> bool:
        """Tell whether so many rejects among so many lines are too many."""
        if self.percent is None:
            return rejects > self.count
        return rejects * _PERCENT > self.percent * lines

    def __str__(self) -> str:
        return str(self.count) if self.percent is None else f"{self.percent:g}%"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPolicy:
    """What becomes of rejects, and of files that were loaded before."""

    rejects: RejectLog
    conflicts: ConflictReport
    allowance: Allowance
    max_reject_bytes: int = MAX_REJECT_BYTES  # of the file of rejects
    is_forced: bool = False  # load again what was loaded before; store no row twice
    is_repeating: bool = False  # store rows without ids once more
    is_following: bool = False  # load only complete lines, and those that were not loaded before
    is_checked: bool = False  # against the checksum beside each file
    # What an interruption does not break off: a commit, and the report of it.
    held: Callable[[], AbstractContextManager[None]] = nullcontext


class Reader(Protocol):
    """Reads one file, once."""

    @property
    def size_bytes(self) -> int:
        """How many bytes are read, with those that are skipped at the start."""

    @property
    def bytes_read(self) -> int:
        """How many of the file's bytes were read so far."""

    def hash(self) -> str:
        """Return the SHA-256 of these bytes, in hex."""

    def hash_content(self) -> str:
        """Return the SHA-256 of what the file holds, decompressed, in hex."""

    def meaning(self) -> str:
        """Return a digest of what the file is loaded as."""

    def identity(self) -> str:
        """Return a digest of the file's content and its meaning."""

    @property
    def file_values(self) -> Mapping[str, str]:
        """What holds for the whole file: exchange, symbol and so on."""

    @property
    def has_ids(self) -> bool:
        """Whether a column has ids."""

    def notices(self) -> Sequence[str]:
        """Return what users should know of how the file was read, once it was."""

    def repeat(self, copy: int) -> None:
        """Give rows without ids the message ids of the file's n-th copy."""

    def starts_with(self, size: int, digest: str) -> bool:
        """Tell whether the first bytes have this SHA-256."""

    def expect_growth(self) -> None:
        """Take the file for one that grows: a line counts once it is complete."""

    def follow(self, done: int) -> None:
        """Read complete lines alone, those after the first `done` bytes."""

    def close(self) -> None:
        """Close the file."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the file's batches; lines are their messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileToLoad:
    """A file on its way into the table."""

    path: str  # as the log of loads names it
    layout: str
    kind: RecordKind
    reader: Reader


@dataclass(slots=True, kw_only=True)
class LoadTotals:
    """The sums of one run."""

    files: int = 0
    loaded: int = 0
    skipped: int = 0  # loaded before
    failed: int = 0  # more rejects than allowed, or unreadable
    rows: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejects: int = 0
    empty: int = 0  # files with a header alone
    size_bytes: int = 0
    duration_s: float = 0.0


class Target(Protocol):
    """Takes the rows of one file."""

    def write(self, rows: pa.RecordBatch) -> None:
        """Take rows over."""


@dataclass(slots=True)
class FileSums:
    """What came of one file so far."""

    lines: int = 0
    rows: int = 0
    rejects: int = 0
    duplicates: int = 0  # rows that the table stores already
    conflicts: int = 0  # rows whose id is stored with other values


def find_files(
    words: Sequence[str],
    *,
    suffixes: tuple[str, ...] = SUFFIXES,
    is_following: bool = False,
    on_skip: Callable[[Path, str], None] = lambda _path, _reason: None,
) -> list[Path]:
    """Find the files that paths, globs and folders name, each once, in sorted order.

    What a folder or glob has beside regular files is skipped, and reported to `on_skip`: FIFOs,
    devices and, in folders unless `is_following`, symbolic links.

    Raises:
        UsageError: the path of a file is not UTF-8, as those in the tables' history are.
        NotFound: a file does not exist, or a folder or glob has no match.
        UsageError: a glob is not a valid pattern.
        ConfigError: no permission to look.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = expanded(word)
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
                f"{word} matches no file", hint=f"a folder's files end in {' '.join(suffixes)}"
            )
        if not is_there:
            raise NotFound(f"no file {word}")
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
    on_skip: Callable[[Path, str], None],
) -> list[Path]:
    matches, seen = [], set()
    for folder, folders, names in os.walk(path, onerror=_raise, followlinks=is_following):
        status = Path(folder).stat()
        if (status.st_dev, status.st_ino) in seen:  # links may lead back to where they are
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for each in (Path(folder, name) for name in [*names, *folders]):
            is_wanted = each.name.lower().endswith(suffixes)
            if each.is_symlink() and not is_following and (is_wanted or each.is_dir()):
                on_skip(each, "a symbolic link, which --follow-symlinks follows")
            elif is_wanted and not each.is_dir() and _is_regular(each, on_skip):
                matches.append(each)
    return sorted(matches)


def _in_glob(path: Path, on_skip: Callable[[Path, str], None]) -> list[Path]:
    try:
        found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    except (ValueError, IndexError, NotImplementedError, re.error) as exc:
        raise UsageError(f"{path} is not a valid pattern: {exc}") from exc
    return [each for each in found if not each.is_dir() and _is_regular(each, on_skip)]


def _is_regular(path: Path, on_skip: Callable[[Path, str], None]) -> bool:
    if path.is_file():
        return True
    is_there = path.exists()
    on_skip(
        path, "not a regular file; name it directly to read it" if is_there else "a broken link"
    )
    return False


def _raise(exc: OSError) -> None:
    raise exc


def check_digest(file: FileToLoad) -> None:
    """Compare a file with the `.CHECKSUM` file beside it, in the format of sha256sum.

    Raises:
        BadData: there is none, or it names another sum.
        ConfigError: it cannot be read.
    """
    path = Path(file.path)
    beside = path.with_name(f"{path.name}.CHECKSUM")
    try:
        if not beside.is_file():
            raise BadData(
                f"{path} has no {beside.name} beside it", hint="fetch it, or drop --checksum"
            )
        with beside.open("rb") as sums:
            words = sums.read(_SUM_BYTES).decode(errors="replace").split()
    except OSError as exc:
        raise ConfigError(f"{beside} cannot be read: {exc.strerror}") from exc
    if not words or words[0].lower() != file.reader.hash():
        raise BadData(f"{path} does not match {beside.name}", hint="fetch the file again")


def pump_file(
    file: FileToLoad,
    target: Target,
    policy: LoadPolicy,
    sums: FileSums,
    on_batch: Callable[[Batch], None] = lambda _: None,
) -> None:
    """Move a file's rows into a target, and its rejects into their file; commit nothing.

    `sums` counts what was read, even of a file that fails.

    Raises:
        BadData: more rejects than allowed, the file of rejects is full, or the file cannot be read
            to its end.
    """
    rejects, allowance = policy.rejects, policy.allowance
    first = ""
    for batch in file.reader:
        sums.lines += batch.messages
        sums.rejects += len(batch.rejects)
        if batch.rejects:
            first = first or f"line {batch.rejects[0].position}: {batch.rejects[0].reason}"
            rejects.check_size(policy.max_reject_bytes)  # other files may have filled it
            rejects.write([replace(reject, file=file.path) for reject in batch.rejects])
        for _, rows in batch.rows:
            sums.rows += rows.num_rows
            target.write(rows)
        on_batch(batch)
        if allowance.percent is None and allowance.is_exceeded(sums.rejects, sums.lines):
            break
        if batch.rejects:
            rejects.check_size(policy.max_reject_bytes)
    rejects.sync()
    if allowance.is_exceeded(sums.rejects, sums.lines):
        what = "line" if sums.rejects == 1 else "lines"
        raise BadData(
            f"{file.path}: {sums.rejects:,} {what} rejected (limit {allowance}); first: {first}",
            hint=f"see {rejects.path}; --max-rejects allows more",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What loading one file came to."""

    file: FileToLoad
    sums: FileSums
    is_new: bool = True  # False: it was loaded before, and nothing of it was read now
    fault: BadData | None = None  # why nothing of it was loaded

    @property
    def is_empty(self) -> bool:
        """Whether it was read, and has no lines but for a header."""
        return self.is_new and self.fault is None and not self.sums.lines


Progress = Callable[[FileToLoad], AbstractContextManager[Callable[[Batch], None]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundLoad:
    """A load that is to be undone, and what else the log has."""

    kind: RecordKind
    load: str
    path: str
    exchange: str | None  # of the whole file
    symbol: str | None
    others: Sequence[str]  # further loads of the same path, newest first
    has_later_duplicates: bool  # rows that later loads did not store because they were stored


def find_load(lake: Lake, word: str) -> FoundLoad:
    """Find a load by its id, or the start of it; or the newest load of a file by its path.

    Raises:
        NotFound: no table's log has such a load.
        UsageError: several loads have ids that start like this.
    """
    path = STDIN if word == STDIN else str(expanded(word).absolute())
    entries = [
        (kind, entry)
        for kind in lake.kinds()
        for entry in lake.loads(kind).select(_TO_FIND).to_pylist()
    ]
    entries.sort(key=lambda pair: pair[1]["loaded_at"], reverse=True)
    found = [(kind, entry) for kind, entry in entries if entry["path"] == path]
    if not found and len(word) >= _LEAST_ID:
        found = [(kind, entry) for kind, entry in entries if entry["load"].startswith(word.lower())]
        if len(found) > 1:
            raise UsageError(f"{len(found)} loads have ids that start with {word}")
    if not found:
        raise NotFound(
            f"no load of a file {path}, and no load {word}", hint="k2 load history lists the loads"
        )
    kind, entry = found[0]
    return FoundLoad(
        kind=kind,
        load=entry["load"],
        path=entry["path"],
        exchange=entry["exchange"],
        symbol=entry["symbol"],
        others=[
            other["load"]
            for _, other in entries
            if other["path"] == entry["path"] != STDIN and other["load"] != entry["load"]
        ],
        has_later_duplicates=any(
            other_kind == kind and other["loaded_at"] > entry["loaded_at"] and other["duplicates"]
            for other_kind, other in entries
        ),
    )


def load_into_topics(
    kind: RecordKind,
    topics: "TopicRows",
    pump: Callable[[Target], None],
    *,
    before_commit: Callable[[], object],
) -> None:
    """Send one file to its topics as one transaction: consumers see all of it, or nothing.

    `pump` moves the file's rows into the target that it is called with.

    Raises:
        BadData: more rejects than allowed, or the file cannot be read to its end.
        K2Error: the brokers refuse a record, or do not answer.
    """
    topics.begin()
    try:
        pump(_Topics(topics, kind))
        before_commit()
        topics.commit()
    finally:
        topics.abort()  # does nothing after a commit


class _Topics:
    """Topics as the target of one file."""

    def __init__(self, topics: "TopicRows", kind: RecordKind) -> None:
        self._topics = topics
        self._kind = kind

    def write(self, rows: pa.RecordBatch) -> None:
        self._topics.write(self._kind, rows)
