"""The pump: totals, when it commits, and what it keeps when something ends early."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from k2cli.errors import BadData, Unavailable
from k2cli.flow import Batch, Committed, Totals
from k2cli.ingestion.binance.venues import VENUES
from k2cli.ingestion.symbols import Market
from k2cli.pipelines.printing import NdjsonPrinter
from k2cli.pipelines.sinks import ForwardingSink, TableSink
from k2cli.records import QUOTES, TRADES
from k2cli.rejects import RejectLog
from k2cli.storage.lake import Lake
from support.builders import batch_of, quote_row, quotes_batch, table_of, trade_row, trades_batch
from support.pumping import MemorySink, MemorySource, ids, pump_of, rejected, trades


@pytest.fixture
def rejects(tmp_path: Path) -> Iterator[RejectLog]:
    with RejectLog(tmp_path / "rejects.ndjson", run="") as log:
        yield log


def test_totals_are_the_sums_of_batches_and_commits(rejects: RejectLog) -> None:
    given = [
        trades(5),
        Batch(rows=[(TRADES, trades_batch(2)), (QUOTES, quotes_batch(3))], messages=5),
        rejected(b"x", b"y"),
        Batch(),
    ]
    sink = MemorySink()
    totals = pump_of(MemorySource(given, pause_s=0.5), sink, rejects).run()
    assert totals.duration_s == 2.0
    assert {**asdict(totals), "duration_s": 0} == {
        "messages": 12,
        "rows": 10,
        "rejects": 2,
        "duplicates": 2,
        "conflicts": 0,
        "missing": 3,
        "commits": 1,
        "reconnects": 0,
        "backfilled": 0,
        "recovered": 0,
        "uncommitted": 0,
        "duration_s": 0,
    }
    assert sink.log == ["trades 5", "trades 2", "quotes 3", "commit"]


def test_commit_comes_after_flush_rows(rejects: RejectLog) -> None:
    sink = MemorySink()
    pump_of(MemorySource([trades(4)] * 5), sink, rejects, flush_rows=8).run()
    two = ["trades 4", "trades 4", "commit"]
    assert sink.log == [*two, *two, "trades 4", "commit"]


def test_commit_comes_after_the_flush_interval_also_without_new_rows(rejects: RejectLog) -> None:
    sink = MemorySink()
    source = MemorySource([trades(1), *[Batch()] * 4], pause_s=0.06)
    pump_of(source, sink, rejects, flush_interval_s=0.1).run()
    assert sink.log == ["trades 1", "commit", "commit"]  # the last one at the end, of nothing


def test_nothing_pending_is_not_committed_while_running(rejects: RejectLog) -> None:
    sink = MemorySink()
    source = MemorySource([Batch()] * 5, pause_s=0.02)
    pump_of(source, sink, rejects, flush_interval_s=0.01).run()
    assert sink.log == ["commit"]


def test_a_new_session_is_counted_and_commits_nothing(rejects: RejectLog) -> None:
    sink = MemorySink()
    given = [trades(1), trades(2, session=1), trades(3, session=1), trades(4, session=3)]
    totals = pump_of(MemorySource(given), sink, rejects).run()
    assert sink.log == ["trades 1", "trades 2", "trades 3", "trades 4", "commit"]
    assert totals.reconnects == 3


def test_ids_without_a_record_reach_the_sink_and_are_committed_in_time(rejects: RejectLog) -> None:
    sink = MemorySink()
    seen = Batch(seen=[(TRADES, ids(7, 8))], messages=2)
    source = MemorySource([seen, *[Batch()] * 4], pause_s=0.06)
    totals = pump_of(source, sink, rejects, flush_interval_s=0.1).run()
    assert sink.log == ["seen trades 2", "commit", "commit"]
    assert (totals.messages, totals.rows) == (2, 0)


def test_duration_stops_the_source(rejects: RejectLog) -> None:
    source = MemorySource([trades(1)] * 1_000, pause_s=0.25)
    totals = pump_of(source, MemorySink(), rejects, duration_s=1).run()
    assert source.is_stopped
    assert totals.duration_s == 1
    assert totals.messages == 4


def test_source_that_fails_keeps_what_was_read(rejects: RejectLog) -> None:
    sink = MemorySink()
    pump = pump_of(MemorySource([trades(3)], failure=Unavailable("gone")), sink, rejects)
    with pytest.raises(Unavailable, match="gone"):
        pump.run()
    assert sink.log == ["trades 3", "commit"]
    assert pump.totals.rows == 3


def test_sink_that_fails_is_not_asked_again(rejects: RejectLog) -> None:
    sink = MemorySink(fails_at_commit=2)
    pump = pump_of(MemorySource([trades(1)] * 5), sink, rejects, flush_rows=1)
    with pytest.raises(Unavailable, match="disk is full"):
        pump.run()
    assert sink.log == ["trades 1", "commit", "trades 1", "commit", "keep 1"]
    assert pump.totals.rows == 1


def test_every_batch_is_seen_with_the_totals_so_far(rejects: RejectLog) -> None:
    given = [trades(1), Batch(), rejected(b"x")]
    seen: list[tuple[Batch, int]] = []
    pump = pump_of(MemorySource(given), MemorySink(), rejects)
    pump.run(lambda batch: seen.append((batch, pump.totals.messages)))
    assert seen == list(zip(given, [1, 1, 2], strict=True))


# --- rejects


def test_rejects_go_into_the_file_and_are_told(rejects: RejectLog, tmp_path: Path) -> None:
    events: list[Any] = []
    source = MemorySource([rejected(b"x", b"y", first=7)])
    pump_of(source, MemorySink(), rejects, events).run()
    file = tmp_path / "rejects.ndjson"
    assert [json.loads(line)["raw"] for line in file.read_text().splitlines()] == ["x", "y"]
    fields = {"count": 2, "position": 7, "reason": "bad b'x'", "file": str(file)}
    assert events == [("reject", fields)]


def test_rejects_are_in_the_file_before_rows_are_committed(
    rejects: RejectLog, tmp_path: Path
) -> None:
    found: list[int] = []

    class Looking(MemorySink):
        def commit(self) -> Committed:
            found.append(len((tmp_path / "rejects.ndjson").read_text().splitlines()))
            return super().commit()

    pump_of(MemorySource([rejected(b"x"), trades(1)]), Looking(), rejects).run()
    assert found == [1]


def test_more_rejects_than_allowed_end_the_run_with_all_before_committed(
    rejects: RejectLog,
) -> None:
    sink = MemorySink()
    source = MemorySource([trades(5), rejected(b"x"), trades(2), rejected(b"y"), trades(9)])
    pump = pump_of(source, sink, rejects, max_rejects=1)
    with pytest.raises(BadData, match=r"2 rejects \(limit 1\)") as caught:
        pump.run()
    assert str(rejects.path) in str(caught.value.hint)
    assert sink.log == ["trades 5", "trades 2", "commit"]


def test_as_many_rejects_as_allowed_are_fine(rejects: RejectLog) -> None:
    source = MemorySource([rejected(b"x"), rejected(b"y")])
    assert pump_of(source, MemorySink(), rejects, max_rejects=2).run().rejects == 2


def test_no_reject_is_allowed_with_zero(rejects: RejectLog) -> None:
    with pytest.raises(BadData):
        pump_of(MemorySource([rejected(b"x")]), MemorySink(), rejects, max_rejects=0).run()


def test_rejects_that_cannot_be_written_end_the_run_before_a_commit() -> None:
    sink = MemorySink()
    with (
        RejectLog(Path("/dev/full"), run="") as full,
        pytest.raises(Unavailable, match="cannot write rejects"),
    ):
        pump_of(MemorySource([trades(1), rejected(b"x")]), sink, full).run()
    assert "commit" not in sink.log


# --- the sinks


def test_table_sink_reports_what_it_did(lake: Lake, rejects: RejectLog) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    sink = TableSink(
        lake=lake, exchange="BINANCE", observe=lambda event, /, **f: events.append((event, f))
    )
    rows = batch_of(TRADES, [trade_row(source_sequence=n) for n in (1, 2, 2, 5)])
    given = [Batch(rows=[(TRADES, rows), (QUOTES, quotes_batch(2))], messages=6)]
    totals = pump_of(MemorySource(given), sink, rejects).run()
    assert (totals.rows, totals.duplicates, totals.missing, totals.commits) == (5, 1, 2, 2)
    kinds = [(event, fields["table"]) for event, fields in events]
    assert kinds == [("gap", "trades_v2"), ("commit", "trades_v2"), ("commit", "quotes_v2")]
    gap, commit, _ = (fields for _, fields in events)
    assert gap == {"table": "trades_v2", "symbol": "BTCUSDT", "first": 3, "last": 4, "missing": 2}
    assert (commit["rows"], commit["duplicates"]) == (3, 1)
    assert commit["snapshot_id"] == lake.open(TRADES).snapshots()[0].snapshot_id
    assert commit["took_ms"] > 0


def test_table_sink_makes_no_snapshot_of_duplicates(lake: Lake, rejects: RejectLog) -> None:
    events: list[str] = []
    totals = Totals()
    for _ in range(2):
        sink = TableSink(
            lake=lake, exchange="X", observe=lambda event, /, **_: events.append(event)
        )
        totals = pump_of(MemorySource([trades(10)]), sink, rejects).run()
    assert (totals.rows, totals.duplicates, totals.commits) == (0, 10, 0)
    assert events.count("commit") == 1


def test_markets_do_not_share_a_position(lake: Lake, rejects: RejectLog) -> None:
    for exchange in ("BINANCE", "BINANCE_US"):
        sink = TableSink(lake=lake, exchange=exchange, observe=lambda *_, **__: None)
        rows = trades_batch(10, exchange=exchange)
        source = MemorySource([Batch(rows=[(TRADES, rows)], messages=10)])
        assert pump_of(source, sink, rejects).run().rows == 10


def test_ids_without_a_record_are_no_gap(lake: Lake, rejects: RejectLog) -> None:
    """An exchange numbers events that are not trades, too."""
    rows = table_of(TRADES, [trade_row(source_sequence=n) for n in (1, 2, 5)]).to_batches()
    given = [Batch(rows=[(TRADES, rows[0])], seen=[(TRADES, ids(3, 4))], messages=5)]
    totals = Totals()
    for _ in range(2):
        sink = TableSink(lake=lake, exchange="BINANCE", observe=lambda *_, **__: None)
        totals = pump_of(MemorySource(given), sink, rejects).run()
        assert totals.missing == 0
    assert (totals.rows, totals.duplicates, totals.commits) == (0, 3, 0)


def test_a_known_id_with_other_values_is_a_conflict(lake: Lake, rejects: RejectLog) -> None:
    events: list[tuple[str, dict[str, Any]]] = []
    sink = TableSink(
        lake=lake, exchange="BINANCE", observe=lambda event, /, **f: events.append((event, f))
    )
    first, other = (
        batch_of(TRADES, [trade_row(source_sequence=7, price=price)])
        for price in (Decimal("1.00000000"), Decimal("2.00000000"))
    )
    given = [Batch(rows=[(TRADES, each)], messages=1) for each in (first, other, first)]
    totals = pump_of(MemorySource(given), sink, rejects, flush_rows=1).run()
    assert (totals.rows, totals.duplicates, totals.conflicts) == (1, 1, 1)
    (line,) = map(json.loads, rejects.path.read_text().splitlines())
    assert "price 2.00000000 (stored 1.00000000)" in line["reason"]
    values = json.loads(line["raw"])
    assert (values["received"]["price"], values["stored"]["price"]) == ("2.00000000", "1.00000000")
    (event,) = [fields for name, fields in events if name == "conflict"]
    assert event["count"] == 1


def test_no_more_than_100_conflicts_are_written(lake: Lake, rejects: RejectLog) -> None:
    sink = TableSink(lake=lake, exchange="BINANCE", observe=lambda *_, **__: None)
    given = [
        Batch(rows=[(TRADES, trades_batch(80, price=Decimal(price)))], messages=80)
        for price in (1, 2, 3)
    ]
    totals = pump_of(MemorySource(given), sink, rejects, flush_rows=1).run()
    assert (totals.rows, totals.conflicts) == (80, 160)
    assert len(rejects.path.read_text().splitlines()) == 100


def ndjson_sink(out: BytesIO, events: list[str] | None = None) -> ForwardingSink:
    def observe(event: str, /, **_: object) -> None:
        if events is not None:
            events.append(event)

    printer = NdjsonPrinter(out)
    return ForwardingSink(write=printer.write, flush=out.flush, exchange="BINANCE", observe=observe)


def test_ndjson_sink_tells_gaps(rejects: RejectLog) -> None:
    events: list[str] = []
    later = table_of(TRADES, [trade_row(source_sequence=1_005)]).to_batches()[0]
    source = MemorySource([trades(1), Batch(rows=[(TRADES, later)], messages=1)])
    totals = pump_of(source, ndjson_sink(BytesIO(), events), rejects).run()
    assert events == ["gap"]
    assert totals.missing == 4


def test_ndjson_sink_prints_each_row_once(rejects: RejectLog) -> None:
    out = BytesIO()
    sink = ndjson_sink(out)
    totals = pump_of(MemorySource([trades(4), trades(6, session=1)]), sink, rejects).run()
    numbers = [json.loads(line)["source_sequence"] for line in out.getvalue().splitlines()]
    assert sorted(numbers) == [1_000 + n for n in range(6)]
    assert (totals.rows, totals.duplicates, totals.commits) == (6, 4, 0)


def test_ndjson_sink_knows_ids_without_a_record(rejects: RejectLog) -> None:
    events: list[str] = []
    rows = table_of(TRADES, [trade_row(source_sequence=n) for n in (1, 2, 4, 6)]).to_batches()
    given = [Batch(rows=[(TRADES, rows[0])], seen=[(TRADES, ids(3, 7))], messages=6)]
    totals = pump_of(MemorySource(given), ndjson_sink(BytesIO(), events), rejects).run()
    assert (totals.rows, totals.missing) == (4, 1)
    assert events == ["gap"]


def test_ndjson_sink_takes_quotes_that_come_late(rejects: RejectLog) -> None:
    def quotes(*numbers: int) -> Batch:
        made = table_of(QUOTES, [quote_row(source_sequence=n) for n in numbers]).to_batches()
        return Batch(rows=[(QUOTES, made[0])], messages=len(numbers))

    given = [quotes(10, 30), quotes(20, 30), quotes(20)]
    totals = pump_of(MemorySource(given), ndjson_sink(BytesIO()), rejects).run()
    assert (totals.rows, totals.duplicates) == (3, 2)


def test_ndjson_sink_prints_at_once(rejects: RejectLog) -> None:
    out = BytesIO()
    lengths: list[int] = []
    pump = pump_of(MemorySource([trades(2)]), ndjson_sink(out), rejects)
    pump.run(lambda _: lengths.append(len(out.getvalue().splitlines())))
    assert lengths == [2]


def test_totals_begin_at_nothing() -> None:
    assert set(asdict(Totals()).values()) == {0}


@pytest.mark.parametrize("target", ["table", "stdout"])
@pytest.mark.parametrize("flush_rows", [1, 1_000])
def test_frames_of_two_connections_are_duplicates_not_conflicts(
    lake: Lake, rejects: RejectLog, target: str, flush_rows: int
) -> None:
    """As during a rollover: spot quotes have no time, so both have their own receive times."""
    quote = (
        b'{"stream":"btcusdt@bookTicker","data":{"u":%d,"s":"BTCUSDT",'
        b'"b":"1","B":"2","a":"3","A":"4"}}'
    )
    trade = (
        b'{"stream":"btcusdt@trade","data":{"e":"trade","E":17231613480%02d,"s":"BTCUSDT","t":%d,'
        b'"p":"1.5","q":"2","T":1723161348055,"m":true,"M":true}}'
    )
    parser = VENUES[Market.SPOT].open_parser([], None)
    now_us = time.time_ns() // 1000
    given = []
    for late_us in (0, 120_000, 500_001):  # of the connections
        frames = [
            frame for n in range(1, 6) for frame in (quote % (3 * n), trade % (late_us % 7, n))
        ]
        times = [now_us + late_us + 1_000 * n for n in range(len(frames))]
        parsed = parser.parse(frames, times, first=1)
        given.append(Batch(rows=parsed.rows, messages=len(frames)))
    sink = (
        TableSink(lake=lake, exchange="BINANCE", observe=lambda *_, **__: None)
        if target == "table"
        else ndjson_sink(BytesIO())
    )
    totals = pump_of(MemorySource(given), sink, rejects, flush_rows=flush_rows).run()
    assert (totals.rows, totals.duplicates, totals.conflicts, totals.missing) == (10, 20, 0, 0)
