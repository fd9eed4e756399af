"""Outages of catalog and disk: the pump waits, keeps its rows, and the next run picks them up."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from k2cli.config import Settings, load_settings
from k2cli.errors import BadData, Conflict, K2Error, Unavailable
from k2cli.flow import Batch
from k2cli.pipelines.sinks import TableSink
from k2cli.pipelines.spill import SpillFolder
from k2cli.records import KINDS, QUOTES, TRADES
from k2cli.rejects import Fault, RejectLog
from k2cli.storage.lake import Lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.position import Series, Stored
from support.builders import quotes_batch, table_of, trade_row, trades_batch
from support.pumping import HOUR_S, MemorySink, MemorySource, ids, pump_of, rejected, trades

Events = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def rejects(tmp_path: Path) -> Iterator[RejectLog]:
    with RejectLog(tmp_path / "rejects.ndjson", run="") as log:
        yield log


def named(events: Events, name: str) -> list[dict[str, Any]]:
    return [fields for event, fields in events if event == name]


# --- the pump


def test_outage_is_waited_out_while_reading_goes_on(rejects: RejectLog) -> None:
    events: Events = []
    sink = MemorySink(outages=[1, 2, 3])
    source = MemorySource([trades(1)] * 100, pause_s=0.1)
    totals = pump_of(source, sink, rejects, events, flush_rows=2).run()
    waits = named(events, "catalog_unavailable")
    assert [each["retry_in_s"] for each in waits] == [0.5, 1.0, 2.0]
    assert [each["rows"] for each in waits] == [2, 7, 17]  # as read until each attempt
    assert "does not answer" in waits[0]["reason"]
    assert (totals.messages, totals.rows) == (100, 100)
    assert not any(line.startswith("keep") for line in sink.log)


def test_waits_start_over_after_an_outage(rejects: RejectLog) -> None:
    events: Events = []
    source = MemorySource([trades(1)] * 100, pause_s=1.0)
    pump_of(source, MemorySink(outages=[1, 2, 5]), rejects, events, flush_rows=1).run()
    assert [each["retry_in_s"] for each in named(events, "catalog_unavailable")] == [0.5, 1.0, 0.5]


def test_reading_pauses_while_memory_is_full(rejects: RejectLog) -> None:
    source = MemorySource([trades(1)] * 10)
    sink = MemorySink(outages=[1, 2, 3])
    size = trades_batch(1).nbytes
    written_at_sleep: list[int] = []

    def sleep(seconds: float) -> None:
        source.clock.advance(seconds)
        written_at_sleep.append(sink.log.count("trades 1"))

    pump = pump_of(source, sink, rejects, flush_rows=1, max_held_bytes=2 * size, sleep=sleep)
    assert pump.run().rows == 10
    assert set(written_at_sleep) == {2}


@pytest.mark.parametrize("is_memory_full", [True, False])
def test_stopped_run_keeps_its_rows_and_reports_them(
    rejects: RejectLog, is_memory_full: bool
) -> None:
    events: Events = []
    source = MemorySource([trades(3)] * 100, pause_s=0.1)
    pump = pump_of(
        source,
        sink := MemorySink(outages=list(range(1, 1_000))),
        rejects,
        events,
        flush_rows=1,
        duration_s=2.0,
        max_held_bytes=1 if is_memory_full else 1 << 30,
        sleep=source.clock.advance,
    )
    with pytest.raises(Unavailable, match="rows were not committed: the catalog") as caught:
        pump.run()
    rows = 3 if is_memory_full else 60
    assert str(caught.value).startswith(f"{rows} rows were not committed")
    assert "next k2 stream" in str(caught.value.hint)
    assert sink.log[-1] == f"keep {rows}"
    assert named(events, "uncommitted_kept") == [{"rows": rows, "files": "kept/rows.arrow"}]
    assert pump.totals.rows == 0


def test_stop_ends_the_wait_for_memory(rejects: RejectLog) -> None:
    source = MemorySource([trades(1)] * 10)
    sink = MemorySink(outages=list(range(1, 1_000)))

    def sleep(seconds: float) -> None:
        source.clock.advance(seconds)
        if source.clock.now_s > 30:
            pump.stop()

    pump = pump_of(source, sink, rejects, flush_rows=1, max_held_bytes=1, sleep=sleep)
    with pytest.raises(Unavailable, match="1 rows were not committed"):
        pump.run()
    assert source.clock.now_s < 31


def test_full_disk_under_the_rejects_is_waited_out(
    rejects: RejectLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No reject is lost, none is written twice, and rows wait for them."""
    write, fails = os.write, [True]

    def write_or_fail(fd: int, data: bytes) -> int:
        if fails[0]:
            raise OSError(28, "No space left on device")
        return write(fd, data[: max(len(data) // 2, 1)])  # a disk that takes a part at a time

    monkeypatch.setattr(os, "write", write_or_fail)
    sink = MemorySink()
    given = [batch for n in range(20) for batch in (trades(1), rejected(b"%d" % n, first=n))]
    events: Events = []
    pump = pump_of(MemorySource(given, pause_s=0.1), sink, rejects, events, flush_rows=1)
    committed_before: list[int] = []

    def on_batch(_: Batch) -> None:
        if pump.totals.messages == 20:
            committed_before.append(pump.totals.rows)
            fails[0] = False

    pump.run(on_batch)
    assert committed_before == [0 + 1]  # before the first reject
    assert "cannot write rejects" in named(events, "catalog_unavailable")[0]["reason"]
    raws = [json.loads(line)["raw"] for line in rejects.path.read_text().splitlines()]
    assert raws == [str(n) for n in range(20)]
    assert pump.totals.rows == 20


def test_rejects_file_of_more_bytes_than_allowed_ends_the_run(rejects: RejectLog) -> None:
    sink = MemorySink()
    given = [batch for _ in range(1_000) for batch in (trades(1), rejected(b"x" * 100))]
    pump = pump_of(MemorySource(given), sink, rejects, max_reject_bytes=2_000)
    with pytest.raises(BadData, match="limit 2000") as caught:
        pump.run()
    assert "--max-reject-bytes" in str(caught.value.hint)
    assert 2_000 < rejects.path.stat().st_size < 2_400
    assert pump.totals.rows == pump.totals.rejects < 20


def test_rejects_of_earlier_runs_count(tmp_path: Path) -> None:
    path = tmp_path / "old.ndjson"
    path.write_bytes(b"x" * 999 + b"\n")
    with RejectLog(path, run="") as log, pytest.raises(BadData, match="limit 1000"):
        pump_of(MemorySource([rejected(b"x")]), MemorySink(), log, max_reject_bytes=1_000).run()


# --- rows that wait for the next run


class BrokenLake:
    """A lake whose appends fail while `failure` is set, for some kinds."""

    def __init__(self, lake: Lake, failure: K2Error | None, kinds: tuple[str, ...]) -> None:
        self._lake = lake
        self.failure = failure
        self.kinds = kinds

    def open(self, kind: Any) -> "BrokenTable":
        return BrokenTable(self, self._lake.open(kind))


class BrokenTable:
    def __init__(self, lake: BrokenLake, table: LakeTable) -> None:
        self._lake = lake
        self._table = table

    def append(self, rows: pa.Table, **over: Any) -> Any:
        if self._lake.failure is not None and self._table.kind.name in self._lake.kinds:
            raise self._lake.failure
        return self._table.append(rows, **over)

    def unfit_rows(self, _: pa.Table) -> dict[int, Fault]:
        return {}


def sink_of(lake: Any, config: Settings, events: Events) -> TableSink:
    def observe(event: str, /, **fields: Any) -> None:
        events.append((event, fields))

    spill = SpillFolder(config, observe)
    return TableSink(lake=lake, exchange="BINANCE", observe=observe, spill=spill)


def kept_files(config: Settings) -> list[Path]:
    return sorted((config.home / "uncommitted").rglob("*.*"))


@pytest.mark.parametrize("failure", [Unavailable("away"), Conflict("another writer")])
@pytest.mark.parametrize("kinds", [tuple(KINDS), ("quotes",)])
def test_rows_of_a_stopped_run_are_committed_by_the_next_one(
    lake: Lake, settings: Settings, rejects: RejectLog, failure: K2Error, kinds: tuple[str, ...]
) -> None:
    events: Events = []
    both = Batch(rows=[(TRADES, trades_batch(5)), (QUOTES, quotes_batch(3))], messages=8)
    pump = pump_of(
        MemorySource([both]), sink_of(BrokenLake(lake, failure, kinds), settings, events), rejects
    )
    uncommitted = 8 if "trades" in kinds else 3
    with pytest.raises(Unavailable, match=f"{uncommitted} rows were not committed"):
        pump.run()
    assert pump.totals.rows == 8 - uncommitted
    assert len(kept_files(settings)) == len(kinds)

    later = Batch(rows=[(TRADES, trades_batch(7))], messages=7)
    totals = pump_of(MemorySource([later]), sink_of(lake, settings, events), rejects).run()
    assert (totals.messages, totals.rows, totals.duplicates) == (7, uncommitted + 2, 5)
    assert sum(each["rows"] for each in named(events, "recovered")) == uncommitted
    assert (lake.open(TRADES).describe().rows, lake.open(QUOTES).describe().rows) == (7, 3)
    assert kept_files(settings) == []


def test_rows_are_kept_over_several_failing_runs(
    lake: Lake, settings: Settings, rejects: RejectLog
) -> None:
    events: Events = []
    broken = BrokenLake(lake, Unavailable("away"), tuple(KINDS))
    for files, count in enumerate((2, 4, 0), start=1):
        source = MemorySource([trades(count)] if count else [])
        pump = pump_of(source, sink_of(broken, settings, events), rejects)
        with pytest.raises(Unavailable, match=f"{count} rows were not committed"):
            pump.run()
        assert len(kept_files(settings)) == min(files, 2)  # a file stays as it was written
    assert [each["rows"] for each in named(events, "recovered")] == [2, 2]  # one at a time
    events.clear()
    totals = pump_of(MemorySource([]), sink_of(lake, settings, events), rejects).run()
    assert [each["rows"] for each in named(events, "recovered")] == [2, 4]
    assert (totals.rows, totals.duplicates) == (4, 2)
    assert kept_files(settings) == []


def test_files_of_earlier_runs_are_committed_once_an_outage_is_over(
    rejects: RejectLog,
) -> None:
    sink = MemorySink(outages=[1], kept=[2, 3, 4])
    source = MemorySource([trades(5), trades(6)], pause_s=HOUR_S)
    totals = pump_of(source, sink, rejects).run()
    assert totals.rows == 2 + 3 + 4 + 5 + 6
    recovered = [line for line in sink.log if line.startswith("recovered")]
    assert recovered == ["recovered 2", "recovered 3", "recovered 4"]
    assert sink.log.index("recovered 3") > sink.log.index("trades 5")


def test_rejects_that_the_file_did_not_take_are_reported(lake: Lake, settings: Settings) -> None:
    events: Events = []
    source = MemorySource([rejected(b"x")])
    with (
        RejectLog(Path("/dev/full"), run="") as log,
        pytest.raises(
            Unavailable, match="1 rejects that could not be written to /dev/full are lost"
        ),
    ):
        pump_of(source, sink_of(lake, settings, events), log, events).run()
    assert named(events, "rejects_lost") == [{"count": 1, "file": "/dev/full"}]


def test_what_passed_between_two_runs_is_a_gap_of_the_restart(
    lake: Lake, settings: Settings, rejects: RejectLog
) -> None:
    """Also where the rows before it were picked up; ids that were only seen are no gap."""
    events: Events = []
    rows = table_of(TRADES, [trade_row(source_sequence=n) for n in (1, 2, 5)]).to_batches()
    first = Batch(rows=[(TRADES, rows[0])], seen=[(TRADES, ids(3, 4))], messages=5)
    broken = BrokenLake(lake, Unavailable("away"), tuple(KINDS))
    with pytest.raises(Unavailable):
        pump_of(MemorySource([first]), sink_of(broken, settings, events), rejects).run()
    later = table_of(TRADES, [trade_row(source_sequence=n) for n in (10, 12)]).to_batches()
    source = MemorySource([Batch(rows=[(TRADES, later[0])], messages=2)])
    totals = pump_of(source, sink_of(lake, settings, events), rejects).run()
    restarts, gaps = named(events, "restart_gap"), named(events, "gap")
    assert [(each["first"], each["last"]) for each in restarts] == [(6, 9)]
    assert [(each["first"], each["last"]) for each in gaps] == [(11, 11)]
    assert totals.missing == 1


def test_rows_that_the_table_refuses_for_good_are_kept_too(
    lake: Lake, settings: Settings, rejects: RejectLog
) -> None:
    events: Events = []
    broken = BrokenLake(lake, BadData("a metadata file is damaged"), tuple(KINDS))
    pump = pump_of(MemorySource([trades(3)]), sink_of(broken, settings, events), rejects, events)
    with pytest.raises(BadData, match="damaged"):
        pump.run()
    (kept,) = named(events, "uncommitted_kept")
    assert kept["rows"] == 3
    totals = pump_of(MemorySource([]), sink_of(lake, settings, events), rejects).run()
    assert totals.rows == 3


def test_rows_that_cannot_be_kept_are_reported_as_lost(
    lake: Lake, settings: Settings, rejects: RejectLog
) -> None:
    (settings.home / "uncommitted").write_text("not a directory")
    events: Events = []
    broken = BrokenLake(lake, Unavailable("away"), tuple(KINDS))
    pump = pump_of(MemorySource([trades(3)]), sink_of(broken, settings, events), rejects, events)
    with pytest.raises(Unavailable, match="3 rows were not committed and are lost"):
        pump.run()
    assert named(events, "uncommitted_lost")[0]["rows"] == 3


# --- the files


def folder_of(config: Settings, events: Events | None = None) -> SpillFolder:
    return SpillFolder(
        config, lambda event, /, **f: None if events is None else events.append((event, f))
    )


def test_file_has_rows_and_seen_ids(settings: Settings) -> None:
    rows = pa.Table.from_batches([trades_batch(3)])
    seen = {Series("BINANCE", "币安人生USDT"): Stored(exact=np.array([[1, 4], [9, 9]]))}
    folder_of(settings).save(TRADES, rows, seen)
    (spilled,) = folder_of(settings).load()
    assert (spilled.kind, spilled.rows, dict(spilled.seen)) == (TRADES, rows, seen)
    spilled.remove()
    assert kept_files(settings) == []


def test_file_is_picked_up_by_one_run_only(settings: Settings) -> None:
    folder_of(settings).save(TRADES, pa.Table.from_batches([trades_batch(3)]), {})
    (held,) = folder_of(settings).load()
    assert list(folder_of(settings).load()) == []
    held.lock.close()  # its process ended without a commit
    (spilled,) = folder_of(settings).load()
    spilled.lock.close()


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"x" * 1_000, "cut"])
def test_file_that_cannot_be_read_stays_and_is_reported(
    settings: Settings, content: bytes | str
) -> None:
    path = folder_of(settings).save(TRADES, pa.Table.from_batches([trades_batch(3)]), {})
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:-20])
    events: Events = []
    assert list(folder_of(settings, events).load()) == []
    assert [each["file"] for each in named(events, "uncommitted_unreadable")] == [str(path)]
    assert path.exists()


def test_rows_go_back_to_the_catalog_they_were_for(home: Path) -> None:
    def config(uri: str) -> Settings:
        return load_settings({"K2_HOME": str(home), "K2_CATALOG_URI": uri})

    rows = pa.Table.from_batches([trades_batch(3)])
    folder_of(config("postgresql://u:first@host/one")).save(TRADES, rows, {})
    assert list(folder_of(config("postgresql://u:first@host/two")).load()) == []
    assert list(folder_of(load_settings({"K2_HOME": str(home)})).load()) == []
    (spilled,) = folder_of(config("postgresql://u:changed@host/one")).load()
    spilled.lock.close()
