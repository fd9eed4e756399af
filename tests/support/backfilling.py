"""Run a feed of the tiny exchange, with its history, until something has happened."""

import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from io import BytesIO
from typing import Any

from k2cli.config import Backfill, Settings
from k2cli.ingestion.stream import StreamOptions
from k2cli.pipelines.feed import Feed, FeedOptions, open_feed
from k2cli.pipelines.produce import ProduceOptions
from k2cli.pipelines.stream import PumpPolicy
from k2cli.storage.position import Series
from support.streamreading import serving
from support.tinyexchange import TINY_VENUE, TinyServer, trade
from support.tinyhistory import TinyHistory, TinyVenueWithHistory
from support.waiting import PATIENCE_S

BTC = Series("TINY", "BTC/USD")
Event = tuple[str, dict[str, Any]]


class Run:
    """One run of a feed, with its events, until a condition is true."""

    def __init__(self, settings: Settings, history: TinyHistory | None) -> None:
        self.settings = settings
        self.history = history
        self.events: list[Event] = []
        self.out = BytesIO()
        self.totals: dict[str, Any] = {}
        self.rows = 0  # committed so far

    def named(self, event: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == event]

    def stream(
        self,
        numbers: Iterable[int],
        until: Callable[["Run"], object],
        *,
        backfill: str = "1h",
        to_stdout: bool = False,
        produce: ProduceOptions | None = None,
    ) -> "Run":
        deadline = time.monotonic() + PATIENCE_S
        server = TinyServer(*(trade("BTC/USD", number) for number in numbers))
        with serving(server.handle) as url:
            options = replace(
                self._options(url, Backfill(backfill)),
                out=self.out if to_stdout else None,
                produce=produce,
            )
            with open_feed(options, self.settings, self._observe) as feed:

                def check(_: object) -> None:
                    self.rows = feed.totals.rows
                    if until(self):
                        feed.pump.stop()
                    assert time.monotonic() < deadline, self.events

                self._run(feed, check)
        return self

    def _run(self, feed: Feed, check: Callable[[object], None]) -> None:
        try:
            feed.pump.run(check)
        finally:
            feed.report_missing()
            self.totals = feed.summarize()

    def _observe(self, event: str, /, **fields: Any) -> None:
        self.events.append((event, fields))

    def _options(self, url: str, backfill: Backfill) -> FeedOptions:
        values = {each.name: getattr(TINY_VENUE, each.name) for each in fields(TINY_VENUE)}
        values["urls"] = [url]
        venue = TinyVenueWithHistory(**values, history=lambda: self.history)
        return FeedOptions(
            stream=StreamOptions(
                venue=venue,
                instruments=[venue.parse_symbol("BTC/USD")],
                channels=["trades"],
                stale_after_s=PATIENCE_S,
            ),
            policy=PumpPolicy(flush_rows=100_000, flush_interval_s=0.1),
            rejects=self.settings.home / "rejects.ndjson",
            backfill=backfill,
        )


def is_filled(run: Run) -> bool:
    return bool(run.named("gap_filled"))


def is_committed(run: Run) -> bool:
    return bool(run.named("commit"))


def is_filled_to(count: int) -> Callable[[Run], bool]:
    return lambda run: sum(each["filled"] for each in run.named("gap_filled")) >= count


def has_rows(count: int) -> Callable[[Run], bool]:
    return lambda run: run.rows >= count
