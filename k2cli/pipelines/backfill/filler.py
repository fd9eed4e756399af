"""Fetch missing trades in a thread of its own, and hand them over with the stream's rows."""

import asyncio
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from typing import Final

from k2cli.events import Observer
from k2cli.flow import Batch, Source
from k2cli.ingestion.history import History, HistoryRefused, HistoryUnavailable
from k2cli.ingestion.symbols import Instrument
from k2cli.pipelines.backfill.ledger import GapLedger
from k2cli.pipelines.backfill.pieces import Request

_TICK_S: Final = 0.1
_CLOSE_S: Final = 2.0
_STOP_S: Final = 5.0
_MAX_BATCHES: Final = 100  # of fetched trades, after each batch of the stream


class GapFiller:
    """Asks an exchange's history for the open gaps of a ledger, one request at a time."""

    def __init__(
        self,
        *,
        ledger: GapLedger,
        history: History,
        instruments: Iterable[Instrument],
        observe: Observer,
    ) -> None:
        """Prepare; `instruments` are those of the ledger's symbols."""
        self._ledger = ledger
        self._history = history
        self._instruments = {each.symbol: each for each in instruments}
        self._observe = observe
        self._is_stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ended: Future[None] = Future()
        self._thread = threading.Thread(target=self._run_thread, name="backfill", daemon=True)

    def follow(self, instruments: Iterable[Instrument]) -> None:
        """Add instruments; call this before the ledger's `follow`. Any thread."""
        self._instruments |= {each.symbol: each for each in instruments}

    async def has_newer(self, instrument: Instrument, since_us: int) -> bool:
        """Return whether the exchange has a trade at or after a UTC time. Any event loop.

        Raises:
            HistoryRefused, HistoryUnavailable: the exchange does not say.
        """
        if self._loop is None or self._is_stopped.is_set():
            raise HistoryUnavailable("nothing is fetched now")
        asking = self._history.first_since(instrument, since_us)
        first = asyncio.run_coroutine_threadsafe(asking, self._loop)
        return await asyncio.wrap_future(first) is not None

    def start(self) -> None:
        """Start to fill gaps."""
        self._thread.start()

    def stop(self) -> None:
        """Request the end, without waiting for a running request. Any thread, any time."""
        self._is_stopped.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._task.cancel)

    def join(self) -> None:
        """Wait for the end.

        A request that cannot be cancelled is abandoned after some seconds.
        """
        self._thread.join(_STOP_S)
        self.check()

    def check(self) -> None:
        """Raise the error that ended the thread, which is a bug."""
        if self._ended.done():
            self._ended.result()

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            self._ended.set_result(None)
        except BaseException as exc:  # noqa: BLE001  raised again by `check`
            self._ended.set_exception(exc)
        else:
            self._ended.set_result(None)

    async def _run(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            while not self._is_stopped.is_set():
                request = self._ledger.next_request()
                if isinstance(request, Request):
                    await self._ask(request)
                else:
                    await asyncio.sleep(min(request, _TICK_S))
        finally:
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOSE_S):
                    await self._history.close()

    async def _ask(self, request: Request) -> None:
        instrument = self._instruments[request.series.symbol]
        try:
            if request.since_us is not None:
                first = await self._history.first_since(instrument, request.since_us)
                self._ledger.found_since(request, first)
                return
            page = await self._history.trades(instrument, request.first, request.last)
        except HistoryUnavailable as exc:
            pause_s = self._ledger.unavailable(request, exc)
            self._observe("backfill_paused", reason=str(exc), retry_in_s=round(pause_s, 2))
        except HistoryRefused as exc:
            self._ledger.refused(request, str(exc))
        else:
            self._ledger.answered(request, page)


class BackfilledSource:
    """A stream together with the trades that fill its gaps, as one source."""

    def __init__(self, *, stream: Source, filler: GapFiller, ledger: GapLedger) -> None:
        self._stream = stream
        self._filler = filler
        self._ledger = ledger
        self._session = 0

    def stop(self) -> None:
        """Stop reading; `batches` still yields what was read before. Any thread, any time."""
        self._filler.stop()
        self._stream.stop()

    def batches(self) -> Iterator[Batch]:
        """Yield the stream's batches, and after each the trades fetched meanwhile.

        Raises:
            Unavailable: the stream failed.
        """
        self._filler.start()
        try:
            for batch in self._stream.batches():
                self._session = batch.session
                yield batch
                yield from self._fetched()
                self._filler.check()
        finally:
            self._filler.stop()
            self._filler.join()
        yield from self._fetched()

    def _fetched(self) -> Iterator[Batch]:
        for _ in range(_MAX_BATCHES):
            if (batch := self._ledger.take()) is None:
                break
            yield replace(batch, session=self._session)
        if self._ledger.is_commit_due():
            yield Batch(session=self._session, notes=1)
