"""The rules of rebalance, rewind and fencing: the same tests over Kafka and over memory.

Tables are in memory in both; what differs is the reader.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from k2cli.records import TRADES
from k2cli.storage.offsets import Partition
from support.cluster import numbered_trades
from support.consuming import Brokers, Consumer, trades_values
from support.memory_tables import MemoryTables

COUNT = 60  # trades in the topic at first, half of them in each partition


class World:
    """A topic with trades, and the table that they go to."""

    def __init__(self, brokers: Brokers, topic: str, folder: Path) -> None:
        self.brokers = brokers
        self.topic = topic
        self.tables = MemoryTables()
        self.topic_id = brokers.create(topic)
        self.sent: dict[bytes, str] = {}  # message ids of the trades, by their values
        self._folder = folder

    def send(self, count: int, *numbers: int) -> None:
        """Send new trades to partitions in turn, to both if none is named."""
        begin = len(self.sent)
        values = trades_values(count, begin=begin)
        ids = numbered_trades(count, begin=begin)["message_id"].to_pylist()
        self.sent.update(zip(values, ids, strict=True))
        chosen = numbers or (0, 1)
        for index, number in enumerate(chosen):
            self.brokers.send(self.topic, number, values[index :: len(chosen)])

    def consumer(self, **policy: Any) -> Consumer:
        """Make a consumer of the topic as it is now."""
        return Consumer(
            self._folder,
            topic=self.topic,
            topic_id=self.topic_id,
            tables=self.tables,
            **{"is_until_end": True, **policy},
        )

    def run(self, consumer: Consumer, group: str, on_read: Callable[[], None]) -> None:
        """Run a consumer to its end, as a member of a group."""
        consumer.run_in(self.brokers, group=f"{self.topic}-{group}", on_read=on_read)

    def run_one(self, group: str = "one", **policy: Any) -> Consumer:
        """Run a new consumer to its end."""
        consumer = self.consumer(**policy)
        self.run(consumer, group, _nothing)
        return consumer

    def recreate(self, count: int) -> None:
        """Recreate the topic, with new trades in it."""
        self.brokers.delete(self.topic)
        self.topic_id = self.brokers.create(self.topic)
        self.send(count)

    def stored(self, topic_id: str = "") -> int:
        """Return the sum of the positions in a topic, by default in the current one."""
        positions = self.tables.positions(TRADES)
        wanted = topic_id or self.topic_id
        return sum(offset for each, offset in positions.items() if each.topic_id == wanted)

    def has_all_once(self) -> bool:
        """Return whether the table has all trades that were ever sent, each once."""
        return self.tables.ids(TRADES) == sorted(self.sent.values())


class ConsumeContract:
    """Subclasses have a fixture `brokers`."""

    @pytest.fixture
    def world(self, brokers: Brokers, topic_name: str, tmp_path: Path) -> World:
        """A topic of two partitions with `COUNT` trades."""
        world = World(brokers, topic_name, tmp_path)
        world.send(COUNT)
        return world

    def test_a_run_stores_everything_and_the_next_one_reads_on(self, world: World) -> None:
        assert world.run_one().totals.rows == COUNT
        world.send(7)
        consumer = world.run_one("two")
        assert (consumer.totals.messages, consumer.totals.rows) == (7, 7)
        assert world.has_all_once()

    def test_what_was_read_is_committed_before_a_partition_is_handed_on(self, world: World) -> None:
        one, two = world.consumer(is_until_end=False), world.consumer()
        with ThreadPoolExecutor(1) as thread:
            started: list[Future[None]] = []

            def on_read() -> None:
                if one.totals.messages == COUNT and not started:
                    started.append(thread.submit(world.run, two, "shared", _nothing))
                if started and started[0].done():
                    one.consumption.stop()

            world.run(one, "shared", on_read)
            started[0].result()
        assert world.has_all_once()
        assert one.totals.rows == COUNT
        assert (two.totals.messages, two.totals.lost_commits) == (0, 0)
        names = [name for name, _ in one.events]
        assert names.index("commit") < names.index("revoked")

    def test_members_that_join_and_leave_store_every_message_once(self, world: World) -> None:
        one = world.consumer(is_until_end=False, commit_interval_s=0.05)
        members = [world.consumer(max_messages=10, batch_rows=3) for _ in range(3)]
        with ThreadPoolExecutor(1) as thread:
            running: list[Future[None]] = []

            def on_read() -> None:
                if running and not running[-1].done():
                    return
                world.send(20)
                if len(running) < len(members):
                    running.append(
                        thread.submit(world.run, members[len(running)], "shared", _nothing)
                    )
                else:
                    one.consumption.stop()

            world.run(one, "shared", on_read)
        world.run_one("shared")
        assert [each.exception() for each in running] == [None] * len(members)
        assert world.has_all_once()

    def test_a_commit_that_another_consumer_was_first_with_is_lost_and_rewound(
        self, world: World
    ) -> None:
        slow = world.consumer()
        others: list[Consumer] = []

        def on_read() -> None:
            if slow.totals.messages == COUNT and not others:
                others.append(world.run_one("other"))
                world.send(10)

        world.run(slow, "slow", on_read)
        assert others[0].totals.rows == COUNT
        assert (slow.totals.lost_commits, slow.totals.rows) == (1, 10)
        assert [name for name, _ in slow.events].count("commit_lost") == 1
        assert world.has_all_once()

    def test_a_table_that_was_rolled_back_is_read_again_from_there(self, world: World) -> None:
        consumer = world.consumer()
        is_rolled_back = False

        def on_read() -> None:
            nonlocal is_rolled_back
            if consumer.totals.messages == COUNT and not is_rolled_back:
                is_rolled_back = True
                world.tables.move(TRADES, Partition(world.topic, world.topic_id, 0), 20)

        world.run(consumer, "one", on_read)
        assert consumer.totals.lost_commits == 1
        assert consumer.totals.rows == 10 + COUNT // 2

    def test_deleted_records_are_a_gap(self, world: World) -> None:
        world.run_one()
        world.send(20, 0)
        first = COUNT // 2
        world.brokers.delete_records(world.topic, 0, first + 15)
        consumer = world.run_one()
        assert (consumer.totals.rows, consumer.totals.missing) == (5, 15)
        (gap,) = consumer.named("gap")
        assert (gap["partition"], gap["first"], gap["last"]) == (0, first, first + 14)

    def test_a_topic_recreated_between_runs_is_read_from_its_start(self, world: World) -> None:
        world.run_one()
        old_id = world.topic_id
        world.recreate(30)
        consumer = world.run_one()
        assert world.has_all_once()
        (event,) = consumer.named("topic_recreated")
        assert (event["old_id"], event["new_id"]) == (old_id, world.topic_id)
        assert (world.stored(old_id), world.stored()) == (COUNT, 30)

    def test_a_topic_recreated_within_a_run_is_read_from_its_start(self, world: World) -> None:
        consumer = world.consumer(is_until_end=False, commit_interval_s=0.05, timeout_s=60.0)
        old_id = world.topic_id

        def on_read() -> None:
            if consumer.totals.rows == COUNT and world.topic_id == old_id:
                world.recreate(90)
            if consumer.totals.rows == COUNT + 90:
                consumer.consumption.stop()

        world.run(consumer, "one", on_read)
        assert world.has_all_once()
        assert (world.stored(old_id), world.stored()) == (COUNT, 90)
        (event,) = consumer.named("topic_recreated")
        assert (event["old_id"], event["new_id"]) == (old_id, world.topic_id)
        assert consumer.totals.lost_commits == 0

    def test_what_is_sent_after_a_start_at_latest_is_read_by_whoever_comes_next(
        self, world: World
    ) -> None:
        assert world.run_one(start="latest").totals.messages == 0
        assert world.stored() == COUNT
        world.send(8)
        assert world.run_one("two", start="latest").totals.rows == 8

    def test_what_came_before_an_undecodable_message_is_committed(self, world: World) -> None:
        world.brokers.send(world.topic, 0, [b"bad"])
        consumer = world.run_one()
        assert (consumer.totals.rows, consumer.totals.rejects) == (COUNT, 1)
        assert world.stored() == COUNT + 1
        assert world.has_all_once()


def _nothing() -> None:
    """Do nothing after a read."""
