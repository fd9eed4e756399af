"""Run commits in a separate thread, one at a time, and handle their outcomes."""

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from k2cli.errors import BadData
from k2cli.pipelines.consume.run import Run
from k2cli.pipelines.consume.writer import BatchWriter, Spans
from k2cli.storage.offsets import Partition, PositionMoved

if TYPE_CHECKING:
    from k2cli.pipelines.consume.batch import Batch

_MAX_FILLED: Final = 1  # batches that wait for the running commit


class Committer:
    """Passes batches to the writing thread, and records the outcomes in the progress."""

    def __init__(self, run: Run, writer: BatchWriter) -> None:
        self._run = run
        self._writer = writer
        self._under_way: Future[Batch] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="commit")

    def commit_if_due(self, now_s: float) -> None:
        """Start a commit if the pending batch is full or old.

        While another commit is running, only a full batch waits for it.
        """
        batch, policy = self._run.progress.pending, self._run.policy
        fill = batch.fill(policy.batch_rows)
        is_old = now_s - batch.began_s >= policy.commit_interval_s
        if not batch.spans or not (fill >= 1 or is_old):
            return
        if self._under_way is not None:
            if fill < _MAX_FILLED:
                return
            self.collect(is_waiting=True)
        if not self._run.progress.must_rewind:
            self._submit()

    def flush(self) -> None:
        """Commit everything that was read, unless another consumer may own it by now.

        Raises:
            BadData: a batch can never be committed.
        """
        self.collect(is_waiting=True)
        if self._run.progress.pending.spans and not self._run.progress.must_rewind:
            self._submit()
            self.collect(is_waiting=True)

    def collect(self, *, is_waiting: bool) -> None:
        """Record the outcome of the running commit, if it has ended.

        Raises:
            BadData: the batch can never be committed.
        """
        if self._under_way is None or not (is_waiting or self._under_way.done()):
            return
        ended, self._under_way = self._under_way, None
        try:
            written = ended.result()
        except PositionMoved as exc:
            self._run.totals.lost_commits += 1
            self._run.observe("commit_lost", reason=str(exc))
            self._run.progress.require_rewind()
            return
        except BadData:
            self._run.progress.drop()
            raise
        reached = self._run.progress.commit(written)
        if reached and self._run.policy.has_group_offsets:
            self._run.reader.commit_group_offsets(reached)

    def positions(self, topics: Iterable[str]) -> dict[Partition, int]:
        """Return the tables' positions in these topics."""
        return self._thread.submit(self._writer.positions, topics).result()

    def begin(self, spans: Spans) -> bool:
        """Commit start positions; return False if another consumer did so first."""
        try:
            self._thread.submit(self._writer.begin, spans).result()
        except PositionMoved:
            return False
        return True

    def close(self) -> None:
        """Wait for the running commit, and drop everything else."""
        self._thread.shutdown()
        self._under_way = None
        self._run.progress.drop()

    def _submit(self) -> None:
        self._under_way = self._thread.submit(self._writer.write, self._run.progress.hand_over())
