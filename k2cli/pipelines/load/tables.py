"""Load new files into tables, all or nothing per file; small files share a commit."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from k2cli.errors import BadData, K2Error, UsageError
from k2cli.pipelines.load.job import (
    FileSums,
    FileToLoad,
    LoadPolicy,
    Outcome,
    Progress,
    check_digest,
    pump_file,
)
from k2cli.records import RecordKind, nth_copy
from k2cli.storage.groupload import CompleteFile
from k2cli.storage.lake import Lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.lines import Lines
from k2cli.storage.loadresult import LoadResult
from k2cli.storage.loads import FileKey, FileState, LoadEntry

_GROUP_FILES: Final = 100  # committed together at most
_GROUP_BYTES: Final = 16 << 20  # of all of them, on disk
_GROUP_ROWS: Final = 200_000  # in memory before a commit


def load_into_tables(
    files: Iterable[FileToLoad], lake: Lake, policy: LoadPolicy, progress: Progress
) -> Iterator[Outcome]:
    """Load files into their tables, all or nothing per file, and close them.

    Small files are committed in groups. An error in one file is part of its outcome, and the other
    files are loaded.

    Raises:
        Conflict: other writers won too often.
        K2Error: a file cannot be opened, or an option is missing; all files before it are loaded.
    """
    loader = _TableLoader(lake, policy, progress)
    for group, fault in _groups(files):
        try:
            yield from loader.load(group)
        finally:
            for file in group:
                file.reader.close()
        if fault is not None:
            raise fault


def _groups(files: Iterable[FileToLoad]) -> Iterator[tuple[list[FileToLoad], K2Error | None]]:
    """Group small files; the last group also has the error that ended the files."""
    group: list[FileToLoad] = []
    size = 0
    try:
        for file in files:
            is_other = any(file.kind != each.kind or file.path == each.path for each in group)
            size += file.reader.size_bytes
            if group and (is_other or len(group) == _GROUP_FILES or size > _GROUP_BYTES):
                yield group, None
                group, size = [], file.reader.size_bytes
            group.append(file)
    except K2Error as exc:
        yield group, exc
        return
    yield group, None


@dataclass(slots=True, kw_only=True)
class _Loading:
    """A file that is being loaded."""

    file: FileToLoad
    sums: FileSums = field(default_factory=FileSums)
    newest: FileState | None = None  # the earlier load of its path
    offset: int = 0  # how many bytes of it were loaded
    key: FileKey | None = None
    complete: CompleteFile | None = None  # read to its end, but not committed yet
    is_new: bool = True
    is_stored: bool = False
    fault: BadData | None = None

    @property
    def is_open(self) -> bool:
        """Whether the outcome is still pending."""
        return self.is_new and self.fault is None

    def settle(self, result: LoadResult) -> None:
        """Record what was stored of it."""
        sums, self.is_stored = self.sums, True
        sums.rows, sums.duplicates, sums.conflicts = (
            result.rows,
            result.duplicates,
            result.conflicts,
        )

    def outcome(self) -> Outcome:
        """Return its outcome."""
        sums = self.sums if self.is_open else FileSums(rejects=self.sums.rejects)
        return Outcome(file=self.file, sums=sums, is_new=self.is_new, fault=self.fault)


class _TableLoader:
    """Loads groups of files into their table."""

    def __init__(self, lake: Lake, policy: LoadPolicy, progress: Progress) -> None:
        self._lake = lake
        self._tables: dict[str, LakeTable] = {}
        self._policy = policy
        self._progress = progress
        self._is_again = policy.is_forced or policy.is_repeating
        self._done: set[str] = set()  # identities of the files read in this group
        self._error: K2Error | None = None  # why files after this group are not loaded

    def load(self, group: Sequence[FileToLoad]) -> Iterator[Outcome]:
        """Load files of one kind.

        An interruption is raised after yielding the outcomes of everything committed.

        Raises:
            K2Error: see `load_into_tables`; the outcomes of files stored, skipped or refused before
            it are yielded first.
        """
        loadings = [_Loading(file=file) for file in group]
        interruption = None
        try:
            self._load_all(loadings)
        except (K2Error, KeyboardInterrupt) as exc:
            interruption = exc
            loadings = [each for each in loadings if each.is_stored or not each.is_open]
        with self._policy.uninterrupted():
            for loading in loadings:
                yield loading.outcome()
        if interruption is not None:
            raise interruption
        if self._error is not None:
            raise self._error

    def _load_all(self, loadings: list[_Loading]) -> None:
        self._done = set()
        self._find_newest(loadings)
        self._each(loadings, self._identify)
        if not self._is_again:
            self._leave_out_loaded(loadings)
        self._each(loadings, partial(self._load, loadings))
        self._commit(loadings)

    def _each(self, loadings: list[_Loading], step: Callable[[_Loading], None]) -> None:
        """Run a step for each file; drop the files after one that fails fatally."""
        for at, loading in enumerate(loadings):
            if not loading.is_open:
                continue
            try:
                step(loading)
            except BadData as exc:
                loading.fault = exc
            except K2Error as exc:
                self._error = exc
                del loadings[at:]
                return

    def _find_newest(self, loadings: list[_Loading]) -> None:
        """Look up the earlier loads of the paths."""
        paths: list[FileKey] = []

        def add(loading: _Loading) -> None:
            if self._policy.is_checked:
                check_digest(loading.file)
            if self._policy.is_following:
                loading.file.reader.expect_growth()
            paths.append(_key(loading.file, identity=""))

        self._each(loadings, add)
        if not paths:
            return
        newest = self._newest_table(loadings[0].file.kind).newest_loads(paths)
        for loading in loadings:
            loading.newest = newest.get(loading.file.path)

    def _identify(self, loading: _Loading) -> None:
        """Identify the file, without the lines that were loaded before."""
        reader, newest = loading.file.reader, loading.newest
        is_asked = newest is not None and not self._is_again
        if is_asked and newest and reader.starts_with(newest.size_bytes, newest.digest):
            loading.offset = newest.size_bytes
        if self._policy.is_following:
            reader.follow(loading.offset)
        loading.key = _key(loading.file, identity=reader.identity())

    def _leave_out_loaded(self, loadings: Sequence[_Loading]) -> None:
        """Skip files that were loaded before, or refuse those that may be partly loaded."""
        left = [(each, each.key) for each in loadings if each.is_open and each.key]
        if not left:
            return
        known = self._table(left[0][0].file).loaded_before([key for _, key in left])
        for loading, key in left:
            loading.is_new = key.identity not in known
            is_grown = loading.offset > 0
            if (
                loading.is_new
                and loading.newest is not None
                and is_grown != self._policy.is_following
            ):
                loading.fault = _unclear(loading.file, is_grown=is_grown)

    def _load(self, loadings: Sequence[_Loading], loading: _Loading) -> None:
        """Load a file of a group; commit complete files before they use too much memory."""
        assert loading.key is not None, "it was identified"
        if not self._is_again and loading.key.identity in self._done:
            loading.is_new = False
            return
        self._read(loading, loading.key)
        self._done.add(loading.key.identity)
        if sum(each.sums.rows for each in loadings if each.complete) > _GROUP_ROWS:
            self._commit(loadings)

    def _read(self, loading: _Loading, key: FileKey) -> None:
        """Read a file; commit it immediately if it is large or loaded again."""
        file = loading.file
        table = self._table(file)
        copy, known = _again(file, table, self._policy, key)
        name = nth_copy(key.identity, copy)
        with (
            self._progress(file) as on_batch,
            table.load_file(file.path, file=name, known=known, is_again=self._is_again) as target,
        ):
            pump_file(
                file,
                lambda _, rows: target.write(rows),
                self._policy,
                loading.sums,
                on_batch,
            )
            entry = _entry(loading, key, copy)
            rows = None if self._is_again else target.take_rows()
            if rows is None:
                with self._policy.uninterrupted():
                    snapshot_id = target.commit(entry, key=key, after=loading.newest)
                    loading.is_new = snapshot_id is not None
                    loading.settle(target.result)
                    self._report(loading, target.result)
            else:
                lines = Lines(file.kind, (name,))
                loading.complete = CompleteFile(
                    rows=rows, lines=lines, entry=entry, key=key, after=loading.newest
                )

    def _commit(self, loadings: Sequence[_Loading]) -> None:
        """Commit complete files together, or one by one if the table refuses one."""
        left = [(each, each.complete) for each in loadings if each.complete]
        if not left:
            return
        try:
            with self._policy.uninterrupted():
                self._commit_together(left)
        except BadData as exc:
            if len(left) == 1:
                left[0][0].fault, left[0][0].complete = exc, None
            else:
                for loading, _ in left:
                    self._commit([loading])

    def _commit_together(self, left: Sequence[tuple[_Loading, CompleteFile]]) -> None:
        files = [complete for _, complete in left]
        outcomes = self._table(left[0][0].file).load_group(files)
        for (loading, _), result in zip(left, outcomes, strict=True):
            loading.is_new = result is not None
            loading.complete = None
            if result is not None:
                loading.settle(result)
        for (loading, _), result in zip(left, outcomes, strict=True):
            if result is not None:
                self._report(loading, result)

    def _newest_table(self, kind: RecordKind) -> LakeTable:
        """Open a table, or refresh it: once for each group, before its files are looked up."""
        if kind.name in self._tables:
            self._tables[kind.name].refresh()
        else:
            self._tables[kind.name] = self._lake.open(kind)
        return self._tables[kind.name]

    def _table(self, file: FileToLoad) -> LakeTable:
        """Return the table of a file, as its group found it."""
        return self._tables[file.kind.name]

    def _report(self, loading: _Loading, result: LoadResult) -> None:
        """Report rows whose id is stored with other values."""
        policy, kind = self._policy, loading.file.kind
        if loading.is_new and result.conflicts:
            found = policy.conflicts.report(kind, result.conflicts, result.examples)
            policy.rejects.write([replace(each, file=loading.file.path) for each in found])
            policy.rejects.sync()


def _entry(loading: _Loading, key: FileKey, copy: int) -> LoadEntry:
    """Describe a load for the log, except for the stored rows."""
    reader = loading.file.reader
    return LoadEntry(
        loaded_at=time.time_ns() // 1000,
        path=loading.file.path,
        digest=reader.hash(),
        size_bytes=reader.size_bytes,
        layout=loading.file.layout,
        rejects=loading.sums.rejects,
        offset_bytes=loading.offset,
        meaning=key.meaning,
        identity=key.identity,
        copy=copy,
        exchange=reader.file_values.get("exchange"),
        symbol=reader.file_values.get("symbol"),
    )


def _again(
    file: FileToLoad, table: LakeTable, policy: LoadPolicy, key: FileKey
) -> tuple[int, Lines | None]:
    """Return which copy of rows without ids is loaded, and which lines are already stored."""
    reader = file.reader
    if policy.is_repeating:
        if reader.has_ids:
            raise UsageError(
                f"{file.path} has ids, so each of its rows can be stored only once",
                hint="omit --allow-duplicates: it is for files without ids",
            )
        copy = table.copies(key.identity) + 1
        reader.repeat(copy)
        return copy, None
    if policy.is_forced:
        return 1, table.stored_lines(key, reader.starts_with)
    return 1, None


def _key(file: FileToLoad, *, identity: str) -> FileKey:
    """Describe a file for the log of loads."""
    reader = file.reader
    digests = (reader.hash(), reader.hash_content()) if identity else ()
    return FileKey(
        path=file.path,
        layout=file.layout,
        meaning=reader.meaning(),
        identity=identity,
        digests=digests,
    )


def _unclear(file: FileToLoad, *, is_grown: bool) -> BadData:
    """Refuse a file that would be partly loaded twice, or has unidentifiable new lines."""
    if is_grown:
        return BadData(
            f"{file.path} has grown since it was last loaded",
            hint="use --follow-appends to load its new lines, or --force to load all of it",
        )
    return BadData(
        f"{file.path} was rewritten: it does not start with what was loaded before",
        hint="use --force or another file name to load all of it",
    )
