"""Gaps of a stream are filled from the exchange's history, or stay open with a reason.

A real table, a real WebSocket, and a history that each test chooses.
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import pytest

from k2cli.config import Settings
from k2cli.pipelines.backfill import ledger
from k2cli.pipelines.backfill.ledger import NOT_FETCHED
from k2cli.pipelines.backfill.pieces import NOT_LISTED
from k2cli.records import TRADES
from k2cli.storage.lake import open_lake
from k2cli.storage.opengaps import OpenGap
from support.backfilling import BTC, Run, is_committed, is_filled, is_filled_to
from support.builders import table_of, trade_row
from support.tinyhistory import TinyHistory


def stored(settings: Settings) -> list[int]:
    with open_lake(settings) as lake:
        rows = lake.open(TRADES).iceberg.scan(selected_fields=("source_sequence",)).to_arrow()
    return sorted(rows["source_sequence"].to_pylist())


def open_gaps(settings: Settings) -> Sequence[OpenGap]:
    with open_lake(settings) as lake:
        return lake.open(TRADES).open_gaps().get(BTC, [])


def described(settings: Settings) -> list[tuple[int, int, str]]:
    return [(each.first, each.last, each.reason) for each in open_gaps(settings)]


def store(settings: Settings, *numbers: int) -> None:
    rows = [
        trade_row(exchange="TINY", symbol="BTC/USD", source_sequence=n, trade_id=f"TINY-{n}")
        for n in numbers
    ]
    with open_lake(settings, create=True) as lake:
        lake.open(TRADES).append(table_of(TRADES, rows))


@pytest.fixture
def _notes_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commit changes of gaps without rows after a moment, not after a minute."""
    monkeypatch.setattr(ledger, "_NOTES_S", 0.2)


# --- during a run


def test_a_gap_during_a_run_is_filled(settings: Settings) -> None:
    history = TinyHistory()
    run = Run(settings, history).stream([1, 2, 3, 8, 9, 5_000], is_filled_to(4_994))
    assert stored(settings) == list(range(1, 5_001))
    assert sum(each["filled"] for each in run.named("gap_filled")) == 4_994
    assert open_gaps(settings) == []
    assert (run.totals["backfilled"], run.totals["missing"]) == (4_994, 4_994)
    assert run.totals["rows"] == run.totals["messages"] - 1 + run.totals["backfilled"]
    assert history.is_closed


def test_rows_from_the_history_are_marked(settings: Settings) -> None:
    Run(settings, TinyHistory()).stream([1, 3], is_filled)
    with open_lake(settings) as lake:
        rows = lake.open(TRADES).iceberg.scan().to_arrow().sort_by("source_sequence")
    marks = [dict(each).get("backfilled") for each in rows["vendor_data"].to_pylist()]
    assert marks == [None, "true", None]


def test_what_the_exchange_does_not_list_stays_open(settings: Settings) -> None:
    history = TinyHistory(listed={4, 6})
    run = Run(settings, history).stream([3, 8], lambda run: run.named("gap_open"))
    assert stored(settings) == [3, 4, 6, 8]
    assert described(settings) == [(5, 5, NOT_LISTED), (7, 7, NOT_LISTED)]
    (event,) = run.named("gap_open")
    assert (event["first"], event["last"], event["missing"]) == (5, 7, 2)
    assert history.requests == [("BTC/USD", 4, 7)]
    assert [(each.attempts, each.tried_s > 0) for each in open_gaps(settings)] == [(1, True)] * 2


@pytest.mark.usefixtures("_notes_are_due")
def test_the_next_run_asks_once_more_for_what_is_open(settings: Settings) -> None:
    Run(settings, TinyHistory(listed=())).stream([3, 5], lambda run: run.named("gap_open"))
    history = TinyHistory()
    Run(settings, history).stream([6], is_filled)
    assert stored(settings) == [3, 4, 5, 6]
    assert history.requests == [("BTC/USD", 4, 4)]
    assert open_gaps(settings) == []


def test_an_outage_of_the_history_pauses_it(settings: Settings) -> None:
    history = TinyHistory(outages=2)
    run = Run(settings, history).stream([3, 5], is_filled)
    assert [each["retry_in_s"] for each in run.named("backfill_paused")] == [1.0, 2.0]
    assert stored(settings) == [3, 4, 5]


@pytest.mark.usefixtures("_notes_are_due")
def test_refused_trades_stay_open_with_the_reason(settings: Settings) -> None:
    history = TinyHistory(refusal="an API key is needed")
    run = Run(settings, history).stream([3, 5], lambda run: run.named("gap_open"))
    assert described(settings) == [(4, 4, "an API key is needed")]
    assert [each["reason"] for each in run.named("gap_open")] == ["an API key is needed"]
    store(settings, 4)  # by any other route
    assert open_gaps(settings) == []
    with open_lake(settings) as lake:
        snapshot = lake.open(TRADES).iceberg.current_snapshot()
    assert snapshot is not None
    assert snapshot.summary is not None
    assert "k2.gaps" not in snapshot.summary.additional_properties


def test_a_gap_is_noted_by_the_commit_that_opens_it(settings: Settings) -> None:
    """A run may be killed right after: the next one fills the gap."""
    run = Run(settings, TinyHistory(is_stuck=True))
    noted: list[tuple[int, int, str]] = []

    def stops(run: Run) -> bool:
        if run.named("commit") and not noted:
            noted.extend(described(settings))
        return bool(noted)

    run.stream([3, 5], stops)
    assert noted == [(4, 4, NOT_FETCHED)]
    assert [each["reason"] for each in run.named("gap_open")] == [NOT_FETCHED]
    Run(settings, TinyHistory()).stream([6], is_filled)
    assert stored(settings) == [3, 4, 5, 6]


def test_a_stop_does_not_wait_for_the_history(settings: Settings) -> None:
    history = TinyHistory(is_stuck=True)
    began = time.monotonic()
    Run(settings, history).stream([3, 5], lambda _: history.requests)
    assert time.monotonic() - began < 60
    assert history.is_closed
    assert described(settings) == [(4, 4, NOT_FETCHED)]


def test_a_bug_of_the_history_ends_the_run(settings: Settings) -> None:
    class Broken(TinyHistory):
        async def trades(self, *_: Any) -> Any:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        Run(settings, Broken()).stream([3, 5], lambda _: False)
    assert stored(settings) == [3, 5]


def test_two_streams_fill_the_same_gap(settings: Settings) -> None:
    """A second stream stores trades while the first one asks for them: each is stored once."""

    class Overtaken(TinyHistory):
        async def trades(self, *args: Any) -> Any:
            if not self.requests:
                store(settings, 4, 5)
            return await super().trades(*args)

    run = Run(settings, Overtaken()).stream([3, 8, 9], is_filled)
    assert stored(settings) == list(range(3, 10))
    assert run.totals["backfilled"] == 4
    assert run.totals["duplicates"] == 2


# --- restart


def test_what_was_missed_between_runs_is_filled_by_age(settings: Settings) -> None:
    store(settings, 98, 99, 100)
    history = TinyHistory(since=150)
    began_us = time.time_ns() // 1000
    run = Run(settings, history).stream([201], is_filled)
    assert stored(settings) == [98, 99, 100, *range(150, 202)]
    (time_us,) = history.times_us
    assert began_us - 3_600_000_000 <= time_us <= time.time_ns() // 1000 - 3_600_000_000
    assert described(settings) == [(101, 149, "before --backfill 1h")]
    assert [each["missing"] for each in run.named("restart_gap")] == [100]
    assert run.named("gap") == []
    assert run.totals["missing"] == 0


def test_what_was_missed_between_runs_is_filled_by_count(settings: Settings) -> None:
    store(settings, 100)
    history = TinyHistory()
    Run(settings, history).stream([201], is_filled, backfill="50")
    assert stored(settings) == [100, *range(152, 202)]
    assert history.times_us == []
    assert described(settings) == [(101, 151, "before --backfill 50")]


def test_a_longer_backfill_fetches_what_a_shorter_one_left(settings: Settings) -> None:
    store(settings, 100)
    Run(settings, TinyHistory(since=150)).stream([201], is_filled)
    Run(settings, TinyHistory(since=120)).stream([202], is_filled, backfill="2h")
    assert stored(settings) == [100, *range(120, 203)]
    assert described(settings) == [(101, 119, "before --backfill 2h")]


def test_gaps_of_earlier_runs_are_filled_before_anything_is_streamed(settings: Settings) -> None:
    Run(settings, TinyHistory(is_stuck=True)).stream([3, 5], is_committed)
    Run(settings, TinyHistory()).stream([], is_filled)
    assert stored(settings) == [3, 4, 5]


def test_filling_older_gaps_first_does_not_hide_what_was_missed_since(settings: Settings) -> None:
    Run(settings, TinyHistory(is_stuck=True)).stream([3, 5], is_committed)
    history = TinyHistory(since=8)
    run = Run(settings, history).stream([9], is_filled_to(2))
    assert [each["missing"] for each in run.named("restart_gap")] == [3]
    assert stored(settings) == [3, 4, 5, 8, 9]
    assert described(settings) == [(6, 7, "before --backfill 1h")]


def test_holes_between_loaded_files_are_not_fetched(settings: Settings) -> None:
    store(settings, 1, 2)
    store(settings, 50, 100)
    history = TinyHistory(since=0)
    Run(settings, history).stream([103], is_filled)
    assert stored(settings) == [1, 2, 50, 100, 101, 102, 103]
    assert history.requests == [("BTC/USD", 101, 102)]


def test_off_fetches_nothing_and_notes_gaps(settings: Settings) -> None:
    store(settings, 1)
    history = TinyHistory()
    Run(settings, history).stream([3, 5], is_committed, backfill="off")
    assert stored(settings) == [1, 3, 5]
    assert (history.requests, history.times_us) == ([], [])
    assert described(settings) == [(2, 2, "backfill is off"), (4, 4, "backfill is off")]
    Run(settings, TinyHistory(since=2)).stream([6], is_filled_to(2))
    assert stored(settings) == [1, 2, 3, 4, 5, 6]


def test_an_exchange_without_history_has_open_gaps(settings: Settings) -> None:
    run = Run(settings, None).stream([3, 5], is_committed)
    assert described(settings) == [(4, 4, "no REST API to fetch them from")]
    assert run.totals["backfilled"] == 0


# --- to stdout


def test_gaps_on_stdout_are_filled_within_the_run(settings: Settings) -> None:
    run = Run(settings, TinyHistory()).stream([3, 8], is_filled, to_stdout=True)
    numbers = [json.loads(line)["source_sequence"] for line in run.out.getvalue().splitlines()]
    assert numbers == [3, 8, 4, 5, 6, 7]
    assert run.totals["backfilled"] == 4
