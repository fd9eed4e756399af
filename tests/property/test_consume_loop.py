"""The loop of `k2 consume` over a Kafka in memory, while everything around it changes.

A consumer reads a topic to its end. Before each of its reads something happens that a script says:
records arrive or are deleted, the group rebalances, another consumer commits, the topic is
recreated. Whatever the script, the table has every record once after the next run.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as st

from k2cli.ingestion.kafka.consumer import Rebalance
from k2cli.records import TRADES
from k2cli.storage.offsets import Partition
from support.consume_contract import World
from support.consuming import Consumer
from support.memory_reader import MemoryBroker, MemoryReader

TOPIC = "t"
Event = tuple[str, int, int]  # what happens, to which partition, with how many records

EVENTS = st.tuples(
    st.sampled_from(
        (
            *("send", "markers", "delete records", "add partition"),
            *("join", "leave", "expire"),
            *("other consumer", "recreate", "ask", "nothing"),
        )
    ),
    st.integers(0, 1),
    st.integers(1, 9),
)


class Script:
    """Changes the world around a reader, an event before each of its reads."""

    def __init__(
        self, world: World, broker: MemoryBroker, events: Sequence[Event], fetch: int
    ) -> None:
        self.fetch = fetch  # messages of a partition, at each read
        self.other_rows = 0
        self._world = world
        self._broker = broker
        self._events = list(events)
        self._peer: MemoryReader | None = None

    @property
    def is_over(self) -> bool:
        """Whether the world stays as it is from now on."""
        return not self._events

    def play(self, reader: MemoryReader) -> None:
        """Let the next event happen to a reader; after the last one it has the group to itself."""
        if self.is_over:
            self._leave()
            return
        event, number, count = self._events.pop(0)
        happen: dict[str, Callable[[], object]] = {
            "send": lambda: self._world.send(count, number),
            "markers": lambda: self._broker.send_markers(TOPIC, number, count),
            "delete records": lambda: self._delete_records(number, count),
            "add partition": self._add_partition,
            "join": self._join,
            "leave": self._leave,
            "expire": reader.expire,
            "other consumer": lambda: self._run_other(count),
            "recreate": lambda: self._world.recreate(count),
            "ask": reader.report_topic_gone,
            "nothing": lambda: None,
        }
        happen[event]()

    def _delete_records(self, number: int, count: int) -> None:
        log = self._broker.log((TOPIC, number))
        assert log is not None
        self._broker.delete_records(TOPIC, number, log.first + count)

    def _add_partition(self) -> None:
        topic = self._broker.topic(TOPIC)
        assert topic is not None
        self._broker.extend(TOPIC, len(topic.logs) + 1)
        self._world.send(1, len(topic.logs) - 1)

    def _join(self) -> None:
        """Let a member join that reads nothing of its share."""
        if self._peer is None:
            nothing = Rebalance(assigned=lambda _: {}, revoked=_ignore, lost=_ignore)
            self._peer = MemoryReader(self._broker, group=f"{TOPIC}-one", rebalance=nothing)
            self._peer.subscribe([TOPIC])

    def _leave(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None

    def _run_other(self, count: int) -> None:
        """Let a consumer of another group come as far as it can with so many messages."""
        other = self._world.run_one("other", max_messages=count)
        self.other_rows += other.totals.rows


@settings(max_examples=60)
@given(
    events=st.lists(EVENTS, max_size=25),
    batch_rows=st.integers(1, 12),
    fetch=st.integers(1, 6),
)
@example(events=[("nothing", 0, 1)] * 3 + [("recreate", 0, 9)], batch_rows=99, fetch=5)
@example(events=[("ask", 0, 1)] * 4 + [("recreate", 0, 9)], batch_rows=99, fetch=5)
@example(
    events=[("recreate", 0, 1), ("send", 0, 1), ("other consumer", 0, 1)], batch_rows=2, fetch=1
)
@example(events=[("delete records", 0, 1), ("delete records", 0, 9)], batch_rows=1, fetch=1)
@example(events=[("nothing", 0, 1)] * 2 + [("expire", 0, 1)] * 2, batch_rows=2, fetch=5)
def test_every_record_is_stored_once(events: list[Event], batch_rows: int, fetch: int) -> None:
    broker = MemoryBroker()
    with tempfile.TemporaryDirectory() as folder:
        world = World(broker, TOPIC, Path(folder))
        world.send(20)
        script = Script(world, broker, events, fetch)
        consumer = world.consumer(is_until_end=False, batch_rows=batch_rows)
        consume(world, broker, consumer, script)
        last = world.run_one("one")  # its last commit may have been lost to the other consumer
    stored = world.tables.ids(TRADES)
    assert (
        len(stored)
        == len(set(stored))
        == sum((consumer.totals.rows, script.other_rows, last.totals.rows))
    )
    topic = broker.topic(TOPIC)
    assert topic is not None
    positions = world.tables.positions(TRADES)
    for number, log in enumerate(topic.logs):
        # Where everything was deleted that was left, nothing is there to commit a position with.
        assert max(positions.get(Partition(TOPIC, topic.id, number), 0), log.first) == log.end
    left = [value for log in topic.logs for value in log.values.values() if value is not None]
    assert {world.sent[value] for value in left} <= set(stored)
    if "other consumer" not in {name for name, *_ in events}:
        assert (consumer.totals.lost_commits, last.totals.rows) == (0, 0)


def _ignore(_: object) -> None:
    """Do nothing in a rebalance."""


def consume(world: World, broker: MemoryBroker, consumer: Consumer, script: Script) -> None:
    """Run a consumer until its script is over, and everything was read."""
    rebalance = consumer.consumption.rebalance
    with broker.open_reader(group=f"{TOPIC}-one", rebalance=rebalance) as reader:
        reader.fetch = script.fetch
        reader.before_read = lambda: script.play(reader)

        def stop_at_end() -> None:
            if script.is_over and is_read_to_its_end(world, broker, consumer):
                consumer.consumption.stop()

        consumer.run(reader, stop_at_end)


def is_read_to_its_end(world: World, broker: MemoryBroker, consumer: Consumer) -> bool:
    """Return whether a consumer has read all partitions of the current topic."""
    topic, progress = broker.topic(TOPIC), consumer.consumption.progress
    assert topic is not None
    ends = {(TOPIC, number): log.end for number, log in enumerate(topic.logs)}
    is_current = progress.topic_id(TOPIC) == world.topic_id
    return is_current and not progress.must_rewind and progress.next_offsets() == ends
