"""The open gaps of a run: which trades to ask the exchange for, and what came of it.

No I/O here, and no threads: the sink reports commits and the gaps that they open, the filler asks
for the next request and reports its answer, each in its own thread, under one lock. Every number of
a gap is in one of these states:

- open: in a piece, which is asked for as soon as it is due;
- idle: in a piece that is not asked for again during this run, with the reason;
- fetched: in a batch of rows that waits to be taken, or was taken and is not committed yet.

Numbers leave when they are committed, by whatever route.

The module is long because both sides change the same state under the same lock.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock
from typing import Final

from k2cli.config import Backfill
from k2cli.events import Observer
from k2cli.flow import Batch
from k2cli.ingestion.history import HistoryUnavailable, Page
from k2cli.pipelines.backfill.pieces import (
    END,
    NOT_LISTED,
    Fetched,
    Piece,
    Request,
    count_numbers,
    hole_of,
    holes_of,
    join_idle,
    match_page,
    page_numbers,
    piece_of,
    plain,
)
from k2cli.ranges import Ints
from k2cli.records import TRADES
from k2cli.storage.gaps import Gap, GapWatch, opened_gaps
from k2cli.storage.opengaps import (
    MAX_GAPS,
    GapNotes,
    Hole,
    OpenGap,
    OpenGaps,
    overlay,
    shrunk,
    without,
)
from k2cli.storage.position import Position, Series

NOT_FETCHED: Final = "not fetched yet"
NOTHING_YET: Final = "the exchange does not have them yet"
NOT_ASKED_FOR: Final = "the exchange sent other trades than those asked for"
PAGE_IDS: Final = 1_000  # what an exchange serves at once; also the size of a small gap
MAX_PIECES: Final = 4_000
_MIN_IDS: Final = 100  # a shorter page that does not end a request slows the next one down
_QUEUED_ROWS: Final = 20_000
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 600.0
_MAX_S: Final = 86_400.0  # that an exchange may demand
_REPORTED_FAILURES: Final = 3  # in a row
_MAX_REFUSALS: Final = 3  # in a row, of one symbol
_NOTES_S: Final = 60.0  # after which changes are committed without rows


@dataclass(slots=True)
class _SeriesGaps:
    """The state of one series."""

    pieces: list[Piece] = field(default_factory=list)  # ascending and disjoint
    refusals: int = 0
    refused: str | None = None  # why no more of its trades are asked for
    since_failures: int = 0
    since_due_s: float = 0.0
    is_streamed: bool = False
    newest: int = -1

    def undecided(self) -> list[Piece]:
        """Return the pieces whose numbers may be too old for --backfill."""
        return [each for each in self.pieces if each.is_between_runs and not each.is_idle]

    def due(self, now_s: float) -> list[Piece]:
        """Return the pieces that may be asked for now."""
        return [
            each
            for each in self.pieces
            if not each.is_idle and not each.is_between_runs and each.due_s <= now_s
        ]


class GapLedger:
    """The open gaps of the subscribed series of one exchange."""

    def __init__(  # noqa: PLR0913  only tests replace the clocks
        self,
        *,
        exchange: str,
        symbols: Iterable[str],
        backfill: Backfill,
        unfilled: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Start without gaps. `unfilled` is why nothing is asked for, if that is so."""
        self.exchange: Final = exchange
        self._backfill = backfill
        self._unfilled = unfilled
        self._clock = clock
        self._now = now
        self._started_s = now()
        self._lock = Lock()
        self._series = {Series(exchange, symbol): _SeriesGaps() for symbol in symbols}
        self._turns = deque(self._series)
        self._unfollowed: dict[Series, Sequence[OpenGap]] = {}  # of symbols that may be added
        self._fetched: deque[Fetched] = deque()  # not taken yet
        self._taken: list[Fetched] = []  # not committed yet
        self._changed: set[Series] = set()  # since the last notes
        self._noted: set[Series] = set()  # in notes that are not committed yet
        self._changed_s: float | None = None  # since when there are changes to commit
        self._outages = 0  # in a row
        self._paused_until_s = 0.0
        self._given_up: dict[tuple[Series, str], list[Hole]] = {}  # not reported yet

    # --- the sink's side

    @property
    def series(self) -> Collection[Series]:
        """The subscribed series."""
        return self._series.keys()

    def follow(self, symbols: Iterable[str]) -> None:
        """Note the gaps of more symbols, and try to fill those of earlier runs. Any thread."""
        with self._lock:
            for symbol in symbols:
                series = Series(self.exchange, symbol)
                if series not in self._series:
                    self._series[series] = _SeriesGaps()
                    self._turns.append(series)
                    self._add(series, self._unfollowed.pop(series, ()))

    def load(self, gaps: OpenGaps) -> None:
        """Add the open gaps of earlier runs; those of other symbols wait for `follow`."""
        with self._lock:
            for series, some in gaps.items():
                if series in self._series:
                    self._add(series, some)
                elif series.exchange == self.exchange:
                    self._unfollowed[series] = some

    def notes(self) -> GapNotes:
        """Return what the next commit has to note about gaps."""
        with self._lock:
            self._noted |= self._changed
            self._changed = set()
            return GapNotes(
                reason=self._unfilled or NOT_FETCHED,
                now_s=int(self._now()),
                updates={series: self._plain(series) for series in self._noted},
                filled=holes_of(self._taken),
            )

    def opened(self, gaps: Sequence[Gap]) -> None:
        """Add gaps that were just found."""
        reason, now_s = self._unfilled or NOT_FETCHED, int(self._now())
        found = opened_gaps(self.exchange, gaps, reason=reason, now_s=now_s)
        with self._lock:
            for series, some in shrunk(found, MAX_GAPS).items():
                if series in self._series:
                    self._add(series, some)

    def committed(self, position: Position, watch: GapWatch, observe: Observer) -> None:
        """Record a commit of everything that was taken, and report the gaps it filled."""
        with self._lock:
            self._noted.clear()
            if not self._changed:
                self._changed_s = None
            taken, self._taken = self._taken, []
            for series, state in self._series.items():
                if state.pieces:
                    stored = position.of(series)
                    state.pieces = without(state.pieces, stored.exact)
                    state.newest = max(state.newest, stored.top)
                if not state.is_streamed and watch.has_streamed(series.symbol):
                    state.is_streamed = True
            self._limit_by_count()
            given_up, self._given_up = self._given_up, {}
        for series, filled in holes_of(taken).items():
            observe(
                "gap_filled",
                table=TRADES.table,
                symbol=series.symbol,
                first=filled[0][0],
                last=filled[-1][1],
                filled=count_numbers(filled),
            )
        _report_open(observe, given_up)

    def report_left(self, observe: Observer) -> None:
        """Report the gaps that were not reported yet, at the end of a run."""
        with self._lock:
            given_up, self._given_up = self._given_up, {}
            for series, state in self._series.items():
                for piece in state.pieces:
                    if not piece.is_idle and piece.failures < _REPORTED_FAILURES:
                        given_up.setdefault((series, piece.reason), []).append(hole_of(piece))
        _report_open(observe, given_up)

    def count_waiting(self) -> int:
        """Return how many gaps may be filled: those with trades that the exchange may have."""
        gaps = self.open_gaps().values()
        return sum(gap.reason != NOT_LISTED for some in gaps for gap in some)

    def open_gaps(self) -> dict[Series, Sequence[OpenGap]]:
        """Return the open gaps of every series, including trades that are not committed yet."""
        with self._lock:
            gaps: dict[Series, Sequence[OpenGap]] = {
                series: self._plain(series) for series in self._series
            }
            for each in (*self._fetched, *self._taken):
                gaps[each.series] = overlay(each.gaps, gaps[each.series])
            return gaps

    @property
    def has_changes(self) -> bool:
        """Whether the notes have news for the next commit."""
        return bool(self._changed or self._noted)

    @property
    def has_taken(self) -> bool:
        """Whether fetched trades were taken and are not committed yet."""
        return bool(self._taken)

    def is_commit_due(self) -> bool:
        """Return whether changes need a commit of their own: at most once a minute."""
        now_s, since_s = self._clock(), self._changed_s
        if since_s is None or now_s - since_s < _NOTES_S:
            return False
        self._changed_s = now_s
        return True

    # --- the source's side, in the same thread

    def take(self) -> Batch | None:
        """Return the oldest fetched batch, if any."""
        with self._lock:
            if not self._fetched:
                return None
            fetched = self._fetched.popleft()
            self._taken.append(fetched)
            return fetched.batch

    # --- the filler's side

    def next_request(self) -> Request | float:
        """Return the next request, or how long to wait before asking again, in seconds."""
        with self._lock:
            now_s = self._clock()
            wait_s = self._paused_until_s - now_s
            if wait_s > 0:
                return wait_s
            if sum(each.batch.backfilled for each in self._fetched) >= _QUEUED_ROWS:
                return _FIRST_PAUSE_S
            for _ in range(len(self._turns)):
                series = self._turns[0]
                self._turns.rotate(-1)
                request = self._request(series, self._series[series], now_s)
                if request is not None:
                    return request
            return _FIRST_PAUSE_S

    def answered(self, request: Request, page: Page) -> None:
        """Record a page of trades."""
        with self._lock:
            numbers = page_numbers(page, request)
            if numbers is None:
                self._fail(request, NOT_ASKED_FOR)
                return
            known_to = min(page.known_to, request.last)
            if known_to < request.first:
                self._fail(request, NOTHING_YET)
                return
            self._outages = 0
            self._series[request.series].refusals = 0
            self._take_page(request, page, numbers, known_to)
            if known_to < request.last and known_to - request.first + 1 < _MIN_IDS:
                rest = replace(request, first=known_to + 1)
                self._change(rest, self._delayed)

    def found_since(self, request: Request, first: int | None) -> None:
        """Record the first number since the time of --backfill.

        None: the exchange lists none yet. There is one, because the stream has delivered a newer
        trade, so this is asked again.
        """
        with self._lock:
            self._outages = 0
            if first is None:
                self._fail(request, NOTHING_YET)
                return
            self._series[request.series].since_failures = 0
            self._limit(request.series, first)

    def unavailable(self, request: Request, exc: HistoryUnavailable) -> float:
        """Record that nothing is served now; return how long nothing is asked for, in seconds."""
        with self._lock:
            demanded_s = min(exc.retry_in_s, _MAX_S) if exc.retry_in_s > 0 else 0.0
            pause_s = max(demanded_s, _pause_s(self._outages))
            self._outages += 1
            self._paused_until_s = self._clock() + pause_s
            self._fail(request, str(exc))
            return pause_s

    def refused(self, request: Request, reason: str) -> None:
        """Record that asking again is pointless: for these and older trades, after several for
        all trades of the symbol.
        """
        with self._lock:
            state = self._series[request.series]
            state.refusals += 1
            if state.refusals >= _MAX_REFUSALS:
                state.refused = reason
            is_all = state.refused is not None
            for index, piece in enumerate(state.pieces):
                is_old = piece.first <= request.last and not piece.is_between_runs
                is_undecided = request.since_us is not None and piece.is_between_runs
                if not piece.is_idle and (is_all or is_old or is_undecided):
                    state.pieces[index] = self._given(
                        request.series, self._tried(piece, reason), is_idle=True
                    )
            self._mark(request.series)

    # --- with the lock held

    def _add(self, series: Series, gaps: Sequence[OpenGap]) -> None:
        """Add gaps to a series, in place of what is known of them."""
        state = self._series[series]
        unfilled = self._unfilled or state.refused
        pieces = [piece_of(each, unfilled=unfilled) for each in gaps]
        state.pieces = overlay(state.pieces, pieces)
        every = {each: of.pieces for each, of in self._series.items()}
        for each, some in shrunk(every, MAX_PIECES).items():
            self._series[each].pieces = list(some)

    def _request(self, series: Series, state: _SeriesGaps, now_s: float) -> Request | None:
        if state.is_streamed and state.since_due_s <= now_s and state.undecided():
            since_s = max(self._started_s - (self._backfill.duration_s or 0.0), 0.0)
            return Request(series=series, since_us=int(since_s * 1_000_000))
        due = state.due(now_s)
        if not due:
            return None
        chosen = next((each for each in due if each.count <= PAGE_IDS), due[0])
        last = chosen.last
        if chosen.count <= PAGE_IDS:  # and its neighbours, if they are on the same page
            last = max(
                each.last for each in due if chosen.first <= each.last < chosen.first + PAGE_IDS
            )
        return Request(series=series, first=chosen.first, last=last)

    def _take_page(self, request: Request, page: Page, numbers: Ints, known_to: int) -> None:
        """Move the numbers of a page from its pieces to the fetched ones."""
        state = self._series[request.series]
        outside = without(state.pieces, [(request.first, known_to)])
        inside = without(state.pieces, [(-1, request.first - 1), (known_to + 1, END)])
        fetched, missing = match_page(inside, request, page, numbers)
        if fetched.batch.backfilled:
            self._fetched.append(fetched)
        idle = [
            self._given(request.series, self._tried(piece, reason), is_idle=True)
            for piece, reason in missing
        ]
        state.pieces = join_idle(overlay(outside, idle))
        if idle:
            self._mark(request.series)

    def _fail(self, request: Request, reason: str) -> None:
        """Record a request without a usable answer."""
        if request.since_us is not None:
            state = self._series[request.series]
            state.since_due_s = self._clock() + _pause_s(state.since_failures)
            state.since_failures += 1
            return

        def fail(piece: Piece) -> Piece:
            return self._given(request.series, self._delayed(self._tried(piece, reason)))

        self._change(request, fail)
        self._mark(request.series)

    def _change(self, request: Request, change: Callable[[Piece], Piece]) -> None:
        """Change the pieces that a request was for."""
        state = self._series[request.series]
        state.pieces = [
            change(each)
            if each.first <= request.last
            and each.last >= request.first
            and not each.is_idle
            and not each.is_between_runs
            else each
            for each in state.pieces
        ]

    def _delayed(self, piece: Piece) -> Piece:
        """Ask for a piece again later, and later each time."""
        due_s = self._clock() + _pause_s(piece.failures)
        return replace(piece, failures=piece.failures + 1, due_s=due_s)

    def _tried(self, piece: Piece, reason: str) -> Piece:
        return replace(piece, reason=reason, tried_s=int(self._now()), attempts=piece.attempts + 1)

    def _given(self, series: Series, piece: Piece, *, is_idle: bool = False) -> Piece:
        """Report a piece that is not asked for again, or failed repeatedly."""
        if is_idle or piece.failures == _REPORTED_FAILURES:
            self._given_up.setdefault((series, piece.reason), []).append(hole_of(piece))
        return replace(piece, is_idle=True) if is_idle else piece

    def _limit_by_count(self) -> None:
        count = self._backfill.trades
        if count is None:
            return
        for series, state in self._series.items():
            if state.is_streamed and state.undecided():
                self._limit(series, state.newest + 1 - count)

    def _limit(self, series: Series, first: int) -> None:
        """Fetch what was missed between runs from this number on, and leave the rest open."""
        state = self._series[series]
        undecided = state.undecided()
        old = without(undecided, [(max(first, 0), END)])
        new = without(undecided, [(0, first - 1)] if first > 0 else [])
        reason = f"before --backfill {self._backfill}"
        decided = [
            *(self._given(series, replace(each, reason=reason), is_idle=True) for each in old),
            *(replace(each, reason=NOT_FETCHED, is_between_runs=False) for each in new),
        ]
        state.pieces = overlay(state.pieces, sorted(decided, key=hole_of))
        self._mark(series)

    def _mark(self, series: Series) -> None:
        """Note that a series has changes to commit."""
        self._changed.add(series)
        if self._changed_s is None:
            self._changed_s = self._clock()

    def _plain(self, series: Series) -> list[OpenGap]:
        return [plain(each) for each in self._series[series].pieces]


def _pause_s(failures: int) -> float:
    return float(min(_FIRST_PAUSE_S * 2 ** min(failures, 20), _LONGEST_PAUSE_S))


def _report_open(observe: Observer, gaps: Mapping[tuple[Series, str], Sequence[Hole]]) -> None:
    for (series, reason), holes in gaps.items():
        observe(
            "gap_open",
            table=TRADES.table,
            symbol=series.symbol,
            first=min(first for first, _ in holes),
            last=max(last for _, last in holes),
            missing=count_numbers(holes),
            reason=reason,
        )
