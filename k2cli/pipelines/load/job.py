"""Load one file into any target: rejects, limits, totals and outcome."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from k2cli.errors import BadData
from k2cli.flow import Batch
from k2cli.pipelines.checksums import check_checksum, checksum_path
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.pump import LineSums, RejectPolicy, Write, pump
from k2cli.records import RecordKind


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPolicy(RejectPolicy):
    """How rejects, and files that were loaded before, are handled."""

    conflicts: ConflictReport
    is_forced: bool = False  # load files again; no row is stored twice
    is_repeating: bool = False  # store rows without ids again
    is_following: bool = False  # load only complete new lines
    is_checked: bool = False  # against the checksum beside each file
    # A block that an interruption does not abort: a commit and its report.
    uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext


class Reader(Protocol):
    """Reads one file, once."""

    @property
    def size_bytes(self) -> int:
        """How many bytes are read, including those skipped at the start."""

    @property
    def bytes_read(self) -> int:
        """How many of the file's bytes were read so far."""

    def hash(self) -> str:
        """Return the SHA-256 of these bytes, in hex."""

    def hash_content(self) -> str:
        """Return the SHA-256 of the decompressed content, in hex."""

    def meaning(self) -> str:
        """Return a digest of how the file is interpreted."""

    def identity(self) -> str:
        """Return a digest of the file's content and its meaning."""

    @property
    def file_values(self) -> Mapping[str, str]:
        """The values of the whole file: exchange, symbol and so on."""

    @property
    def has_ids(self) -> bool:
        """Whether a column has ids."""

    def notices(self) -> Sequence[str]:
        """Return notices for the user about how the file was read, after reading it."""

    def repeat(self, copy: int) -> None:
        """Give rows without ids the message ids of the file's n-th copy."""

    def starts_with(self, size: int, digest: str) -> bool:
        """Return whether the first bytes have this SHA-256."""

    def expect_growth(self) -> None:
        """Treat the file as growing: a line counts once it is complete."""

    def follow(self, done: int) -> None:
        """Read only complete lines after the first `done` bytes."""

    def close(self) -> None:
        """Close the file."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the file's batches; lines are their messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileToLoad:
    """A file that is being loaded into a table."""

    path: str  # as in the log of loads
    layout: str
    kind: RecordKind
    reader: Reader


@dataclass(slots=True)
class FileSums(LineSums):
    """What was read and stored of one file so far."""

    duplicates: int = 0  # rows that the table already stores
    conflicts: int = 0  # rows whose id is stored with other values


def check_digest(file: FileToLoad) -> None:
    """Compare a file with the `.CHECKSUM` file beside it, in the format of sha256sum.

    Raises:
        BadData: it does not exist, is malformed, or has another checksum.
        ConfigError: it cannot be read.
    """
    path = Path(file.path)
    if not check_checksum(path, file.reader.hash):
        raise BadData(
            f"{path} has no checksum file {checksum_path(path).name}",
            hint="download it, or omit --checksum",
        )


def pump_file(
    file: FileToLoad,
    write: Write,
    policy: LoadPolicy,
    sums: FileSums,
    on_batch: Callable[[Batch], None] = lambda _: None,
) -> None:
    """Write a file's rows; `on_batch` is called with each batch that was written. See `pump`."""

    def watched() -> Iterator[Batch]:
        for batch in file.reader:
            yield batch
            on_batch(batch)

    pump(watched(), write, path=file.path, policy=policy, sums=sums)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The outcome of loading one file."""

    file: FileToLoad
    sums: FileSums
    is_new: bool = True  # False: it was loaded before, so it was not read
    fault: BadData | None = None  # why it was not loaded

    @property
    def is_empty(self) -> bool:
        """Whether it was read and has no lines except a header."""
        return self.is_new and self.fault is None and not self.sums.lines

    @property
    def is_loaded(self) -> bool:
        """Whether its lines were read and stored in the target."""
        return self.is_new and self.fault is None and not self.is_empty


@dataclass(slots=True, kw_only=True)
class LoadTotals:
    """The totals of one run."""

    files: int = 0
    loaded: int = 0
    skipped: int = 0  # loaded before
    failed: int = 0  # more rejects than allowed, or unreadable
    rows: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejects: int = 0
    empty: int = 0  # files with only a header
    size_bytes: int = 0
    duration_s: float = 0.0

    def add(self, outcome: Outcome) -> None:
        """Add one file."""
        sums = outcome.sums
        self.files += 1
        self.size_bytes += outcome.file.reader.size_bytes
        self.rejects += sums.rejects
        if outcome.fault is not None:
            self.failed += 1
            return
        self.loaded += outcome.is_loaded
        self.empty += outcome.is_empty
        self.skipped += not outcome.is_new
        self.rows += sums.rows
        self.duplicates += sums.duplicates
        self.conflicts += sums.conflicts


Progress = Callable[[FileToLoad], AbstractContextManager[Callable[[Batch], None]]]


def load_each(
    files: Iterable[FileToLoad],
    policy: LoadPolicy,
    load: Callable[[FileToLoad, FileSums, ExitStack], None],
) -> Iterator[Outcome]:
    """Load each file separately, close it, and yield its outcome.

    Contexts that `load` enters into its last argument are exited after the outcome is consumed.

    Raises:
        K2Error: a file cannot be opened, or `load` failed for a reason beyond one file.
    """
    for file in files:
        sums = FileSums()
        fault: BadData | None = None
        with ExitStack() as stack:
            with closing(file.reader):
                try:
                    if policy.is_checked:
                        check_digest(file)
                    load(file, sums, stack)
                except BadData as exc:
                    fault, sums = exc, FileSums(rejects=sums.rejects)
            yield Outcome(file=file, sums=sums, fault=fault)
