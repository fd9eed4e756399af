"""One run of `k2 load frames`: its files, output and exit."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from k2cli.commands.groups import LogOptions, ServerOptions
from k2cli.commands.known import remember_series
from k2cli.commands.load_options import PREVIEW_ROWS, LoadTo, RowTargetOptions
from k2cli.commands.load_run import opened_run, parse_allowance, progress_bar, sum_up
from k2cli.commands.terminal import output
from k2cli.commands.terminal.events import RunLog
from k2cli.commands.terminal.signals import Terminated
from k2cli.commands.terminal.streams import error, note
from k2cli.config import Settings
from k2cli.errors import BadData, NotFound, UsageError
from k2cli.files import STDIN
from k2cli.flow import Batch
from k2cli.ingestion.exchange import Exchange, Venue
from k2cli.ingestion.exchanges import EXCHANGES
from k2cli.ingestion.playback import RecordedFrames
from k2cli.ingestion.recordings import SUFFIXES, market_of
from k2cli.paths import expand_home
from k2cli.pipelines.frames import FrameLoad, FrameLoadOptions, Progress, RecordingToLoad
from k2cli.pipelines.load.files import find_files
from k2cli.pipelines.pump import RejectPolicy
from k2cli.pipelines.targets import SinkOptions
from k2cli.records import KINDS
from k2cli.rejects import MAX_REJECT_BYTES, RejectLog


@dataclass(frozen=True, slots=True, kw_only=True)
class FramesRun:
    """Which recordings to load, into which target, with which limits."""

    config: Settings
    recordings: list[RecordingToLoad]
    target: RowTargetOptions
    servers: ServerOptions
    log: LogOptions
    rejects: Path
    summary: output.Summary

    def load(self) -> None:
        """Load the recordings and print the totals.

        Raises:
            BadData: some of them are damaged, or have too many rejects.
        """
        started = time.monotonic()
        with opened_run(self.log, self.config.run) as (log, interrupts, stack):
            policy = RejectPolicy(
                rejects=stack.enter_context(RejectLog(self.rejects, run=self.config.run)),
                allowance=parse_allowance(self.target.max_rejects),
                max_reject_bytes=self.target.max_reject_bytes or MAX_REJECT_BYTES,
            )
            options = FrameLoadOptions(
                sink=self._sink,
                policy=policy,
                flush_rows=self.config.stream.flush_rows,
                uninterrupted=interrupts.uninterrupted,
            )
            load = FrameLoad(options=options, config=self.config, stack=stack, observe=log.on_event)
            try:
                self._load_all(load, log)
            except KeyboardInterrupt as exc:
                note("interrupted; run the same command to continue")
                if isinstance(exc, Terminated):
                    raise typer.Exit(exc.exit_code) from exc
                raise
            finally:
                sum_up(load.totals, started, self.target, self.summary, log)
            if failed := load.totals.failed:
                raise BadData(f"{failed} of {load.totals.files} recordings have errors")

    def _load_all(self, load: FrameLoad, log: RunLog) -> None:
        seen: set[tuple[str, str]] = set()
        try:
            for recording in self.recordings:
                fault = load.load(recording, self._progress(seen))
                if fault is not None:
                    log.record("failed", path=str(recording.path), message=str(fault), hint=None)
                    error(fault)
            load.finish()
        finally:
            if self.target.destination is LoadTo.TABLE:
                remember_series(self.config, seen)

    def _sink(self, venue: Venue) -> SinkOptions:
        target = self.target
        produce = None
        if target.destination is LoadTo.KAFKA:
            produce = self.servers.produce_options(
                self.config, target.topic, is_registering=target.auto_register
            )
        is_printed = target.destination in (None, LoadTo.STDOUT)
        return SinkOptions(
            venue=venue,
            kinds=[KINDS[kind] for kind in venue.channels.values()],
            produce=produce,
            out=sys.stdout.buffer if is_printed else None,
            limit=PREVIEW_ROWS if target.destination is None else None,
        )

    def _progress(self, seen: set[tuple[str, str]]) -> Progress:
        @contextmanager
        def progress(frames: RecordedFrames, path: Path) -> Iterator[Callable[[Batch], None]]:
            is_shown = self.log.log_format is None
            with progress_bar(
                path, frames.size_bytes, lambda: frames.bytes_read, is_shown=is_shown
            ) as show:

                def on_batch(batch: Batch) -> None:
                    for _, rows in batch.rows:
                        exchange, symbols = rows["exchange"][0].as_py(), rows["symbol"].unique()
                        seen.update((exchange, symbol) for symbol in symbols.to_pylist())
                    show(batch)

                yield on_batch

        return progress


def choose_recordings(words: Iterable[str], market: str | None) -> list[RecordingToLoad]:
    """Find the recordings of files, globs and folders, and the market of each; `-` is stdin.

    In folders, files of other markets, or whose names have no market, are skipped with a note.

    Raises:
        NotFound: a file does not exist, or a folder or glob has no recordings of the market.
        UsageError: the market of a file is unknown, or it is another.
    """
    found: dict[Path, Venue] = {}
    for word in words:
        is_stdin = word == STDIN
        files = [Path(STDIN)] if is_stdin else find_files([word], suffixes=SUFFIXES, on_skip=_skip)
        is_named = is_stdin or files == [expand_home(word)]
        for path in files:
            try:
                found[path] = _venue(path, market)
            except UsageError as exc:
                if is_named:
                    raise
                _skip(path, str(exc))
    if not found:
        raise NotFound("there are no recordings to load", hint="choose the market with --market")
    return [RecordingToLoad(path, venue) for path, venue in found.items()]


def _venue(path: Path, market: str | None) -> Venue:
    """Return the market of a file: from its name, else the chosen one."""
    named = market_of(path)
    exchange = EXCHANGES.get(named[0]) if named else None
    venue = exchange.venues.get(named[1]) if named and exchange else None
    if venue is None and market is None:
        what = "stdin is unknown" if str(path) == STDIN else f"{path} is not in its name"
        raise UsageError(f"the market of {what}", hint="choose it with --market")
    if venue is None:
        return _default_exchange().venues[market or ""]
    if market is not None and named and named[1] != market:
        raise UsageError(f"{path} is a recording of market {named[1]}, not {market}")
    return venue


def _default_exchange() -> Exchange:
    return next(iter(EXCHANGES.values()))


def _skip(path: Path, reason: str) -> None:
    note(f"{path} skipped: {reason}")
