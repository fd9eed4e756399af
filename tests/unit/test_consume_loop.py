"""What happens to a consumer that a test makes happen in memory only."""

from collections.abc import Callable
from pathlib import Path

import pytest

from k2cli.codec.encode import wire_header
from k2cli.errors import NotFound, Unavailable
from k2cli.records import TRADES
from k2cli.storage.append import Commit
from k2cli.storage.offsets import Partition
from support.cluster import numbered_trades
from support.consume_contract import COUNT, World
from support.consuming import GOOD, Consumer, Schemas, trades_values
from support.memory_reader import MemoryBroker, MemoryReader
from support.memory_tables import MemoryTables
from support.waiting import wait_for


@pytest.fixture
def broker() -> MemoryBroker:
    return MemoryBroker()


@pytest.fixture
def world(broker: MemoryBroker, tmp_path: Path) -> World:
    world = World(broker, "t", tmp_path)
    world.send(COUNT)
    return world


def run(
    broker: MemoryBroker, consumer: Consumer, before_read: Callable[[MemoryReader, int], None]
) -> None:
    """Run a consumer; before each read something happens, by the number of the read."""
    with broker.open_reader(group="g", rebalance=consumer.consumption.rebalance) as reader:
        reader.fetch = 5
        reader.before_read = lambda: before_read(reader, len(reader.reads_s))
        consumer.run(reader)


def test_what_was_not_committed_of_lost_partitions_is_left_to_their_new_owner(
    broker: MemoryBroker, world: World
) -> None:
    consumer = world.consumer()

    def lose(reader: MemoryReader, number: int) -> None:
        if number == 3:
            reader.expire()
            assert world.run_one("other").totals.rows == COUNT

    run(broker, consumer, lose)
    assert (consumer.totals.messages, consumer.totals.rows) == (20, 0)
    assert consumer.totals.lost_commits == 0
    assert world.has_all_once()
    names = [name for name, _ in consumer.events]
    assert names == ["assigned", "revoked", "assigned", "assigned", "revoked"]  # it also rewinds


def test_offsets_behind_the_last_message_are_reached(broker: MemoryBroker, world: World) -> None:
    broker.send_markers("t", 0, 7)
    world.run_one()
    assert world.stored() == COUNT + 7
    assert world.run_one().totals.commits == 0


def test_the_group_is_informed_of_what_is_committed(broker: MemoryBroker, world: World) -> None:
    world.run_one("one")
    world.run_one("two", has_group_offsets=False)
    half = COUNT // 2
    assert broker.group_offsets == {"t-one": {("t", 0): half, ("t", 1): half}}


def test_partitions_that_are_added_are_read_from_their_first_record(
    broker: MemoryBroker, world: World
) -> None:
    world.run_one(start="latest")
    broker.extend("t", 3)
    world.send(6, 2)
    world.run_one(start="latest")
    assert len(world.tables.ids(TRADES)) == 6
    assert world.stored() == COUNT + 6


def test_a_topic_that_stays_deleted_ends_a_run_to_the_end(
    broker: MemoryBroker, world: World
) -> None:
    consumer = world.consumer(timeout_s=0.3, commit_interval_s=0.0)

    def delete(reader: MemoryReader, number: int) -> None:
        if number == 3:
            wait_for(lambda: consumer.totals.rows)
            broker.delete("t")
            reader.report_topic_gone()

    with pytest.raises(NotFound, match="topic t was deleted before it was read to its end"):
        run(broker, consumer, delete)
    (event,) = consumer.named("topic_missing")
    assert event["topic_id"] == world.topic_id
    assert world.stored() == consumer.totals.rows > 0


def test_a_topic_that_is_recreated_in_time_is_read_to_its_end(
    broker: MemoryBroker, world: World
) -> None:
    consumer = world.consumer(timeout_s=60.0, commit_interval_s=0.0)
    old_id = world.topic_id

    def recreate(_: MemoryReader, number: int) -> None:
        if number == 3:
            broker.delete("t")
        if number == 9:
            world.topic_id = broker.create("t")
            world.send(10)

    run(broker, consumer, recreate)
    assert world.stored() == 10
    (event,) = consumer.named("topic_recreated")
    assert event["missing"] == consumer.totals.missing == COUNT - world.stored(old_id)


def test_messages_that_wait_for_their_schema_do_not_outlive_a_rewind(
    broker: MemoryBroker, tmp_path: Path
) -> None:
    world = World(broker, "t", tmp_path)
    values = trades_values(6)
    values[3] = wire_header(GOOD + 1) + values[3][5:]
    broker.send("t", 0, values)
    schemas = Schemas(not_yet=1 << 30)
    consumer = world.consumer(schemas=schemas, commit_interval_s=0.5)

    def move(_: MemoryReader, number: int) -> None:
        if number == 2:  # 0 to 2 are read, the others wait
            world.tables.move(TRADES, Partition("t", world.topic_id, 0), 1)
        if consumer.totals.lost_commits:
            schemas.left = 0

    with broker.open_reader(group="g", rebalance=consumer.consumption.rebalance) as reader:
        reader.before_read = lambda: move(reader, len(reader.reads_s))
        consumer.run(reader)
    ids = numbered_trades(6)["message_id"].to_pylist()
    assert world.tables.ids(TRADES) == sorted(ids[1:3] + ids[4:])
    assert (consumer.totals.lost_commits, consumer.totals.rejects) == (1, 1)


def test_what_certainly_was_read_of_a_recreated_topic_is_committed(
    broker: MemoryBroker, world: World
) -> None:
    consumer = world.consumer(is_until_end=False)
    old_id = world.topic_id

    def recreate(reader: MemoryReader, number: int) -> None:
        if number == 10:  # everything was read; the brokers are asked which topic this is
            reader.report_topic_gone()
        if number == 12:  # reading goes on at the old offsets in the new topic
            world.recreate(100)
        if number == 14:
            reader.report_topic_gone()
        if number == 50:
            consumer.consumption.stop()

    run(broker, consumer, recreate)
    assert (world.stored(old_id), world.stored()) == (COUNT, 100)
    assert world.has_all_once()
    assert consumer.totals.missing == consumer.totals.lost_commits == 0


class DownTables(MemoryTables):
    """Tables whose catalog has stopped."""

    def append(self, *_: object, **__: object) -> Commit:
        """Fail as a catalog does that does not answer."""
        raise Unavailable("the catalog does not answer")


@pytest.mark.timeout(30)
def test_a_run_of_some_time_ends_during_an_outage(broker: MemoryBroker, world: World) -> None:
    """What it could not commit is read again by the next one."""
    tables, world.tables = world.tables, DownTables()
    consumer = world.consumer(is_until_end=False, duration_s=1.0, commit_interval_s=0.0)
    with pytest.raises(Unavailable, match="the catalog does not answer"):
        run(broker, consumer, lambda *_: None)
    assert consumer.named("catalog_unavailable")
    world.tables = tables
    world.run_one()
    assert world.has_all_once()
