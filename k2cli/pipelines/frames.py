"""Load recordings: their frames through the exchange's parser, each row once.

A row's id decides whether it is new, so a recording may be loaded again, or after the stream that
recorded it. Whatever can be read of a damaged recording is loaded.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from k2cli.config import Settings
from k2cli.errors import BadData
from k2cli.events import Observer
from k2cli.files import reading
from k2cli.flow import Batch, Sink
from k2cli.ingestion.exchange import Parser, Venue
from k2cli.ingestion.playback import OtherMarket, RecordedFrames
from k2cli.ingestion.recordings import Damage
from k2cli.pipelines.pump import RejectPolicy
from k2cli.pipelines.targets import SinkOptions, open_sink
from k2cli.rejects import Reject


@dataclass(frozen=True, slots=True)
class RecordingToLoad:
    """A recording, and the market whose frames it has."""

    path: Path
    venue: Venue


@dataclass(slots=True, kw_only=True)
class FrameTotals:
    """The totals of one run. A failed file has damage, too many rejects or another market."""

    files: int = 0
    failed: int = 0
    messages: int = 0
    rows: int = 0
    duplicates: int = 0
    conflicts: int = 0
    rejects: int = 0
    missing: int = 0
    commits: int = 0
    size_bytes: int = 0
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameLoadOptions:
    """The target of rows, and how often to commit; see `SinkOptions`."""

    sink: Callable[[Venue], SinkOptions]
    policy: RejectPolicy
    flush_rows: int
    # A block that an interruption does not abort: a commit.
    uninterrupted: Callable[[], AbstractContextManager[None]] = nullcontext


Progress = Callable[[RecordedFrames, Path], AbstractContextManager[Callable[[Batch], None]]]


class FrameLoad:
    """Loads recordings one after the other; commit the rest with `finish`. `totals` are live."""

    def __init__(
        self, *, options: FrameLoadOptions, config: Settings, stack: ExitStack, observe: Observer
    ) -> None:
        """Prepare; sinks are opened when needed, and closed with the stack."""
        self.totals: Final = FrameTotals()
        self._options = options
        self._config = config
        self._stack = stack
        self._observe = observe
        self._sinks: dict[str, tuple[Sink, Parser]] = {}  # by exchange
        self._pending_rows = 0

    def load(self, recording: RecordingToLoad, progress: Progress) -> BadData | None:
        """Load what can be read of a recording; return what is wrong with it.

        Raises:
            BadData: the file of rejects is full.
            K2Error: the recording or the target cannot be opened, or a commit failed.
        """
        damages: list[Damage] = []

        def on_damage(damage: Damage) -> None:
            damages.append(damage)
            self._observe(
                "recording_damaged",
                path=str(damage.path),
                position=damage.position,
                reason=damage.reason,
            )

        self.totals.files += 1
        path, venue = recording.path, recording.venue
        sink, parser = self._sink(venue)
        with reading(path):
            frames = RecordedFrames(path, venue=venue, parser=parser, on_damage=on_damage)
        self.totals.size_bytes += frames.size_bytes
        before = replace(self.totals)
        try:
            with progress(frames, path) as on_batch:
                for batch in _read(frames, path):
                    self._take(sink, batch)
                    on_batch(batch)
            fault = self._fault(path, damages, before)
        except OtherMarket as exc:
            fault = exc
        self.totals.failed += fault is not None
        return fault

    def finish(self) -> None:
        """Commit the rest.

        Raises:
            K2Error: the commit failed.
        """
        self._commit()

    def _sink(self, venue: Venue) -> tuple[Sink, Parser]:
        if venue.exchange not in self._sinks:
            options = self._options.sink(venue)
            sink = open_sink(self._stack, options, self._config, self._observe)
            self._sinks[venue.exchange] = (sink, venue.open_parser((), self._config.home))
        return self._sinks[venue.exchange]

    def _take(self, sink: Sink, batch: Batch) -> None:
        self.totals.messages += batch.messages
        for kind, ids in batch.seen:  # first, so that newer rows do not open a gap
            self._pending_rows += ids.num_rows
            sink.see(kind, ids)
        for kind, rows in batch.rows:
            self._pending_rows += rows.num_rows
            sink.write(kind, rows)
        self._reject(batch.rejects)
        if self._pending_rows >= self._options.flush_rows:
            self._commit()

    def _reject(self, rejects: Sequence[Reject]) -> None:
        policy = self._options.policy
        self.totals.rejects += len(rejects)
        policy.rejects.write(rejects)
        if rejects:
            policy.rejects.check_size(policy.max_reject_bytes)

    def _commit(self) -> None:
        self._options.policy.rejects.sync()
        with self._options.uninterrupted():
            for sink, _ in self._sinks.values():
                self._commit_sink(sink)
        self._pending_rows = 0

    def _commit_sink(self, sink: Sink) -> None:
        while True:
            committed = sink.commit()
            committed.add_to(self.totals)
            self.totals.rejects += len(committed.unfit)
            self._options.policy.rejects.write([*committed.rejects, *committed.unfit])
            self._options.policy.rejects.sync()
            if committed.failure is not None:
                raise committed.failure
            if not committed.unfit:
                return

    def _fault(self, path: Path, damages: list[Damage], before: FrameTotals) -> BadData | None:
        allowance, rejects = self._options.policy.allowance, self.totals.rejects - before.rejects
        if damages:
            first = damages[0]
            return BadData(
                f"{path} is damaged at byte {first.position}: {first.reason}",
                hint="all frames that can be read were loaded",
            )
        if allowance.is_exceeded(rejects, self.totals.messages - before.messages):
            what = "frame" if rejects == 1 else "frames"
            return BadData(
                f"{path}: {rejects:,} {what} rejected (limit {allowance}); all others were loaded",
                hint=f"see {self._options.policy.rejects.path}, or increase --max-rejects",
            )
        return None


def _read(frames: RecordedFrames, path: Path) -> Iterator[Batch]:
    """Yield the batches of a recording, with errors of the disk translated."""
    with reading(path):
        yield from frames
