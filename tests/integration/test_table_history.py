"""Snapshots of a table: rollbacks, tags and differences, in a real catalog."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from k2cli.config import Settings, load_settings
from k2cli.errors import Conflict, Exists, NotFound, UsageError
from k2cli.records import TRADES
from k2cli.storage.history import Point, TableHistory
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.offsets import OffsetPosition, Partition, Span
from k2cli.storage.rollback import Rollback
from k2cli.storage.state import TAG, read_state
from support.builders import START, table_of, trade_row
from support.consuming import Consumer, trades_values
from support.foreign import append_as_another_engine, rewrite_as_another_engine
from support.memory_reader import MemoryBroker

POINTS = {"now": Point("now", datetime(9999, 1, 1, tzinfo=UTC)), "main": Point("main")}


def trades(*numbers: int, symbol: str = "BTCUSDT") -> pa.Table:
    """Trades with these numbers."""
    rows = [
        trade_row(symbol=symbol, source_sequence=n, timestamp=START + timedelta(seconds=n))
        for n in numbers
    ]
    return table_of(TRADES, rows)


def lost(plan: Rollback) -> dict[str, tuple[int, int]]:
    """Return the rows that a rollback loses and restores, by symbol."""
    return {each.symbol: (each.lost, each.restored) for each in plan.symbols}


def append(lake: Lake, *numbers: int, symbol: str = "BTCUSDT") -> int:
    """Append trades; return the id of the snapshot."""
    snapshot_id = lake.open(TRADES).append(trades(*numbers, symbol=symbol)).snapshot_id
    assert snapshot_id is not None
    return snapshot_id


def point(snapshot_id: int) -> Point:
    """Name a snapshot by its id."""
    return Point(str(snapshot_id))


def roll_back(lake: Lake, to: Point) -> None:
    """Plan a rollback and do it."""
    history = lake.history(TRADES)
    history.roll_back(history.plan_rollback(to))


def rows(lake: Lake) -> int:
    """Return how many rows the table has."""
    return lake.open(TRADES).describe().rows


def refs(lake: Lake) -> dict[str, int]:
    """Return the snapshots that the branches and tags are on."""
    metadata = lake.open(TRADES).iceberg.metadata
    return {name: ref.snapshot_id for name, ref in metadata.refs.items()}


def changes(lake: Lake, before: Point, after: Point) -> dict[str, tuple[int, int]]:
    """Return the rows added and removed, by symbol."""
    found = lake.history(TRADES).diff(before, after).to_pylist()
    assert all(each["exchange"] == "BINANCE" for each in found)
    return {each["symbol"]: (each["added"], each["removed"]) for each in found}


def test_rollback_takes_positions_back_so_rows_are_stored_again_once(lake: Lake) -> None:
    first = append(lake, 1, 2)
    append(lake, 3, 4, 5)
    plan = lake.history(TRADES).plan_rollback(point(first))
    assert (plan.newest_rows, plan.rows, plan.commits) == (5, 2, 1)
    assert (plan.lost_rows, plan.restored_rows, plan.has_expired) == (3, 0, False)
    assert rows(lake) == 5
    roll_back(lake, point(first))
    assert rows(lake) == 2
    assert refs(lake) == {"main": first, TAG: first}
    again = lake.open(TRADES).append(trades(1, 2, 3, 4, 5))
    assert (again.rows, again.duplicates, rows(lake)) == (3, 2, 5)


def test_rollback_restores_rows_that_were_removed(lake: Lake) -> None:
    append_as_another_engine(lake.open(TRADES).iceberg, trades(1, 2, 2))
    before = append(lake, 3)
    assert sum(each.rows for each in lake.open(TRADES).dedupe(None)) == 1
    append(lake, 4)
    plan = lake.history(TRADES).plan_rollback(point(before))
    assert (plan.lost_rows, plan.restored_rows, plan.commits) == (1, 1, 2)
    assert lost(plan) == {"BTCUSDT": (1, 1)}
    roll_back(lake, point(before))
    assert rows(lake) == 4


def test_rollback_shows_the_rows_of_each_symbol(lake: Lake) -> None:
    first = append(lake, 1)
    append(lake, 2, 3)
    append(lake, 1, symbol="ETHUSDT")
    plan = lake.history(TRADES).plan_rollback(point(first))
    assert lost(plan) == {"BTCUSDT": (2, 0), "ETHUSDT": (1, 0)}
    assert (plan.lost_rows, plan.uncounted, plan.has_state) == (3, None, True)
    assert lost(lake.history(TRADES).plan_rollback(Point("main"))) == {}


@pytest.mark.parametrize("is_missing", [True, False])
def test_rollback_to_before_a_damaged_file_is_possible(lake: Lake, is_missing: bool) -> None:
    first = append(lake, 1)
    (kept,) = lake.open(TRADES).plan().paths
    append(lake, 2, 3)
    (damaged,) = {*lake.open(TRADES).plan().paths} - {kept}
    if is_missing:
        Path(damaged).unlink()
    else:
        Path(damaged).write_bytes(b"PAR1 nothing PAR1")
    plan = lake.history(TRADES).plan_rollback(point(first))
    assert damaged in (plan.uncounted or "")
    assert (plan.lost_rows, lost(plan)) == (2, {})
    roll_back(lake, point(first))
    assert lake.open(TRADES).plan().paths == (kept,)


def test_rollback_to_before_the_first_snapshot_of_k2_drops_its_tag(lake: Lake) -> None:
    """Otherwise the state of the lost snapshot would be taken for the table's."""
    append_as_another_engine(lake.open(TRADES).iceberg, trades(1, 2))
    foreign = refs(lake)["main"]
    append(lake, 3)
    assert not lake.history(TRADES).plan_rollback(point(foreign)).has_state
    roll_back(lake, point(foreign))
    assert refs(lake) == {"main": foreign}
    assert read_state(lake.open(TRADES).iceberg).is_lost
    again = lake.open(TRADES).append(trades(1, 2, 3))
    assert (again.rows, rows(lake)) == (1, 3)


def test_rollback_to_another_engines_snapshot_tags_the_one_of_k2_below(lake: Lake) -> None:
    own = append(lake, 1)
    append_as_another_engine(lake.open(TRADES).iceberg, trades(2))
    foreign = refs(lake)["main"]
    append(lake, 3)
    roll_back(lake, point(foreign))
    assert refs(lake) == {"main": foreign, TAG: own}
    assert lake.open(TRADES).append(trades(1, 2, 3)).rows == 1


def test_rollback_by_time_takes_the_newest_snapshot_before_it(lake: Lake) -> None:
    first, second = append(lake, 1), append(lake, 2)
    append(lake, 3)
    times = {each.snapshot_id: each.committed_at for each in lake.open(TRADES).snapshots()}
    history = lake.history(TRADES)
    assert history.plan_rollback(Point("t", times[second])).snapshot_id == second
    early = times[second] - timedelta(milliseconds=1)
    assert history.plan_rollback(Point("t", early)).snapshot_id == first
    with pytest.raises(NotFound, match="no snapshot at or before 1970"):
        history.plan_rollback(Point("t", datetime(1970, 1, 2, tzinfo=UTC)))


def test_rollback_that_another_writer_forestalls_changes_nothing(lake: Lake) -> None:
    first = append(lake, 1)
    append(lake, 2)
    history = lake.history(TRADES)
    plan = history.plan_rollback(point(first))
    newest = append(lake, 3)
    with pytest.raises(Conflict, match="another process changed table trades_v2 meanwhile"):
        history.roll_back(plan)
    assert (rows(lake), refs(lake)["main"]) == (3, newest)


def test_writer_between_the_last_look_and_the_commit_of_a_rollback_wins(lake: Lake) -> None:
    first = append(lake, 1)
    append(lake, 2)
    loads = 0

    def load() -> Table:
        nonlocal loads
        loads += 1
        table = lake.open(TRADES).iceberg
        if loads == 2:  # the first is for the plan
            append(lake, 3)
        return table

    history = TableHistory(TRADES, load=load)
    plan = history.plan_rollback(point(first))
    with pytest.raises(Conflict, match="meanwhile; nothing was changed"):
        history.roll_back(plan)
    assert (loads, rows(lake)) == (3, 3)


def test_tag_is_set_while_others_write(lake: Lake) -> None:
    first = append(lake, 1)
    loads = 0

    def load() -> Table:
        nonlocal loads
        loads += 1
        table = lake.open(TRADES).iceberg
        append(lake, 1 + loads)
        return table

    assert TableHistory(TRADES, load=load).tag("eod") == first
    assert refs(lake)["eod"] == first


def test_rollback_is_not_disturbed_by_commits_without_new_rows(lake: Lake) -> None:
    first = append(lake, 1)
    append(lake, 2)
    history = lake.history(TRADES)
    plan = history.plan_rollback(point(first))
    rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    offsets = OffsetPosition({Partition("t", "id", 0): Span(expected=None, reached=7)})
    assert lake.open(TRADES).append(trades(1), source=offsets).snapshot_id is not None
    history.roll_back(plan)
    assert (rows(lake), refs(lake)) == (1, {"main": first, TAG: first})


def test_rollback_that_another_rollback_forestalls_changes_nothing(lake: Lake) -> None:
    first, second = append(lake, 1), append(lake, 2)
    append(lake, 3)
    history = lake.history(TRADES)
    plan = history.plan_rollback(point(first))
    roll_back(lake, point(second))
    with pytest.raises(Conflict, match="meanwhile; nothing was changed"):
        history.roll_back(plan)
    assert rows(lake) == 2


def test_topics_are_read_again_after_a_rollback_and_stored_once(lake: Lake, tmp_path: Path) -> None:
    broker = MemoryBroker()
    topic_id = broker.create("t", partitions=1)

    def consume() -> int:
        consumer = Consumer(tmp_path, topic="t", topic_id=topic_id, tables=lake, is_until_end=True)
        consumer.run_in(broker, group="g")
        return consumer.totals.messages

    broker.send("t", 0, trades_values(10))
    assert consume() == 10
    before = Point(str(refs(lake)["main"]))
    broker.send("t", 0, trades_values(20, begin=10))
    assert consume() == 20
    roll_back(lake, before)
    assert (rows(lake), consume(), rows(lake)) == (10, 20, 30)
    found = lake.open(TRADES).iceberg.scan().to_arrow()["message_id"]
    assert len(found.unique()) == 30


def test_rollback_is_not_disturbed_by_a_tag_that_is_set_meanwhile(lake: Lake) -> None:
    first = append(lake, 1)
    append(lake, 2)
    history = lake.history(TRADES)
    plan = history.plan_rollback(point(first))
    lake.history(TRADES).tag("other")
    history.roll_back(plan)
    assert rows(lake) == 1


def test_snapshot_that_the_table_was_rolled_back_from_is_refused(lake: Lake) -> None:
    first, second = append(lake, 1), append(lake, 2)
    roll_back(lake, point(first))
    append(lake, 3)
    with pytest.raises(UsageError, match="is not in the history of table trades_v2"):
        lake.history(TRADES).plan_rollback(point(second))


@pytest.fixture
def expiring(tmp_path: Path) -> Settings:
    """Settings that keep four snapshots."""
    return load_settings({"K2_HOME": str(tmp_path), "K2_TABLE_KEEP_SNAPSHOTS": "4"})


def test_tag_outlives_the_expiry_of_writers_and_can_be_rolled_back_to(expiring: Settings) -> None:
    with open_lake(expiring, create=True) as lake:
        first = append(lake, 1)
        second = append(lake, 2)
        assert lake.history(TRADES).tag("before", point(first)) == first
        for number in range(3, 15):
            append(lake, number)
        kept = {each.snapshot_id for each in lake.open(TRADES).snapshots()}
        assert first in kept
        assert second not in kept
        with pytest.raises(NotFound, match="it may have expired"):
            lake.history(TRADES).plan_rollback(point(second))
        assert changes(lake, Point("before"), Point("main")) == {"BTCUSDT": (13, 0)}
        plan = lake.history(TRADES).plan_rollback(Point("before"))
        assert (plan.rows, plan.lost_rows, plan.has_expired) == (1, 13, True)
        roll_back(lake, Point("before"))
        assert (rows(lake), len(lake.open(TRADES).plan().paths)) == (1, 1)
        assert lake.open(TRADES).append(trades(1, 2, 3)).rows == 2


def test_time_whose_snapshots_have_expired_is_not_found(expiring: Settings) -> None:
    with open_lake(expiring, create=True) as lake:
        append(lake, 1)
        (first,) = lake.open(TRADES).snapshots()
        for number in range(2, 15):
            append(lake, number)
        with pytest.raises(NotFound, match="have expired; the oldest one that is kept is from"):
            lake.history(TRADES).plan_rollback(Point("t", first.committed_at))


def test_untagged_snapshot_expires(expiring: Settings) -> None:
    with open_lake(expiring, create=True) as lake:
        first = append(lake, 1)
        lake.history(TRADES).tag("kept")
        assert lake.history(TRADES).untag("kept") == first
        for number in range(2, 12):
            append(lake, number)
        assert first not in {each.snapshot_id for each in lake.open(TRADES).snapshots()}


@pytest.mark.parametrize(
    "name",
    ["", " ", "k2", "main", "123", "../etc", "a/b", "a b", "a\nb", "ä", "-x", "x" * 101, "a\x00"],
)
def test_hostile_names_of_tags_are_refused(lake: Lake, name: str) -> None:
    append(lake, 1)
    before = refs(lake)
    with pytest.raises(UsageError):
        lake.history(TRADES).tag(name)
    assert refs(lake) == before


def test_tag_is_not_moved(lake: Lake) -> None:
    first = append(lake, 1)
    lake.history(TRADES).tag("eod")
    append(lake, 2)
    with pytest.raises(Exists, match="already has the tag eod"):
        lake.history(TRADES).tag("eod")
    assert refs(lake)["eod"] == first


def test_only_tags_of_users_are_removed(lake: Lake) -> None:
    append(lake, 1)
    history = lake.history(TRADES)
    with pytest.raises(UsageError, match="k2's own"):
        history.untag(TAG)
    with pytest.raises(UsageError, match="main is a branch"):
        history.untag("main")
    with pytest.raises(NotFound, match="has no tag 'nothing'"):
        history.untag("nothing")
    assert refs(lake).keys() == {"main", TAG}


def test_table_without_snapshots_has_nothing_to_roll_back_to(lake: Lake) -> None:
    history = lake.history(TRADES)
    for attempt in (
        lambda: history.plan_rollback(POINTS["now"]),
        lambda: history.tag("eod"),
        lambda: history.diff(POINTS["now"], POINTS["main"]),
    ):
        with pytest.raises(NotFound, match="has no snapshots"):
            attempt()


def test_diff_counts_rows_by_symbol_in_both_directions(lake: Lake) -> None:
    first = append(lake, 1)
    append(lake, 2, 3)
    append(lake, 1, symbol="ETHUSDT")
    expected = {"BTCUSDT": (2, 0), "ETHUSDT": (1, 0)}
    assert changes(lake, point(first), Point("main")) == expected
    assert changes(lake, Point("main"), point(first)) == {"BTCUSDT": (0, 2), "ETHUSDT": (0, 1)}
    assert changes(lake, point(first), point(first)) == {}


@pytest.mark.parametrize("is_compacted", [False, True])
def test_diff_over_added_and_removed_rows_ignores_compactions(
    lake: Lake, is_compacted: bool
) -> None:
    append_as_another_engine(lake.open(TRADES).iceberg, trades(1, 2, 2))
    first = append(lake, 3)
    if is_compacted:
        rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
        assert changes(lake, point(first), Point("main")) == {}
    assert sum(each.rows for each in lake.open(TRADES).dedupe(None)) == 1
    append(lake, 4, 5)
    if is_compacted:
        rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=False)
    assert changes(lake, point(first), Point("main")) == {"BTCUSDT": (2, 1)}


def test_diff_over_expired_snapshots_and_a_compaction_shows_the_net_change(lake: Lake) -> None:
    append(lake, 1)
    lake.history(TRADES).tag("before")
    append(lake, 2)
    append(lake, 1, 2, symbol="ETHUSDT")
    rewrite_as_another_engine(lake.open(TRADES).iceberg, is_expiring=True)
    append(lake, 3)
    expected = {"BTCUSDT": (2, 0), "ETHUSDT": (2, 0)}
    assert changes(lake, Point("before"), Point("main")) == expected


def test_diff_of_branches_shows_the_net_change(lake: Lake) -> None:
    first, left = append(lake, 1), append(lake, 2)
    lake.history(TRADES).tag("left")
    roll_back(lake, point(first))
    append(lake, 1, 2, symbol="ETHUSDT")
    expected = {"BTCUSDT": (0, 1), "ETHUSDT": (2, 0)}
    assert changes(lake, point(left), Point("main")) == expected
