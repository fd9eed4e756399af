"""Reads of a consumption: where they are cut, and what waits; no brokers."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from k2cli.codec.encode import wire_header
from k2cli.errors import BadData
from k2cli.ingestion.kafka.topics import PartitionId
from k2cli.pipelines.printing import NdjsonPrinter, StdoutTables
from support.builders import trades_batch
from support.cluster import values_of
from support.consuming import GOOD, Consumer, Schemas
from support.memory_reader import MemoryBroker, MemoryReader

ROWS = values_of(trades_batch(8), wire_header(GOOD))
Sent = tuple[int, bytes]  # partition and value


class Run:
    """A consumption of one topic of two partitions onto stdout."""

    def __init__(
        self, folder: Path, sent: Sequence[Sent], schemas: Schemas | None = None, **policy: Any
    ) -> None:
        self.printed = io.BytesIO()
        self.broker = MemoryBroker()
        topic_id = self.broker.create("t", partitions=2)
        for number, value in sent:
            self.broker.send("t", number, [value])
        self._consumer = Consumer(
            folder,
            topic="t",
            topic_id=topic_id,
            tables=StdoutTables(NdjsonPrinter(self.printed)),
            schemas=schemas,
            **policy,
        )
        self.consumption = self._consumer.consumption
        self.reader = MemoryReader(self.broker, group="g", rebalance=self.consumption.rebalance)

    def run(self) -> None:
        self._consumer.run(self.reader)

    @property
    def committed(self) -> dict[PartitionId, int]:
        return self.consumption.progress.committed()

    @property
    def rows(self) -> int:
        return self.printed.getvalue().count(b"\n")


def test_what_came_before_a_bad_message_is_committed(tmp_path: Path) -> None:
    sent = [
        (0, ROWS[0]),
        (1, ROWS[1]),
        (0, b"bad"),
        (0, ROWS[2]),
        (1, ROWS[3]),
        (1, b"x"),
        (1, ROWS[4]),
    ]
    run = Run(tmp_path, sent, is_bad_fatal=True)
    with pytest.raises(BadData, match="t/0 at offset 1: "):
        run.run()
    assert run.rows == 3
    assert run.committed == {("t", 0): 1, ("t", 1): 2}
    assert run.consumption.totals.messages == 3


def test_a_bad_message_at_first_stops_with_nothing_of_its_partition(tmp_path: Path) -> None:
    run = Run(tmp_path, [(0, b"bad"), (0, ROWS[0])], is_bad_fatal=True)
    with pytest.raises(BadData, match="t/0 at offset 0: "):
        run.run()
    assert run.rows == 0
    assert run.committed.get(("t", 0), 0) == 0


def test_messages_wait_for_their_schema_and_none_is_lost(tmp_path: Path) -> None:
    unknown = wire_header(7) + ROWS[1][5:]
    sent = [(0, ROWS[0]), (1, unknown), (0, ROWS[2]), (1, ROWS[3])]
    schemas = Schemas(not_yet=3)
    run = Run(tmp_path, sent, schemas, is_until_end=True)
    run.run()
    assert schemas.left == 0
    assert run.rows == 3
    assert run.consumption.totals.rejects == 1
    assert run.committed == {("t", 0): 2, ("t", 1): 2}


def test_max_messages_is_exact_while_messages_wait(tmp_path: Path) -> None:
    sent = [(0, wire_header(7 + i) + row[5:]) for i, row in enumerate(ROWS)]
    run = Run(tmp_path, sent, Schemas(takes_s=0.3), max_messages=5)
    run.run()
    assert run.consumption.totals.messages == 5
    assert run.committed[("t", 0)] == 5


def test_a_thousand_unknown_schemas_hold_up_neither_the_group_nor_the_end(tmp_path: Path) -> None:
    sent = [(0, wire_header(7 + i) + ROWS[0][5:]) for i in range(1000)]
    run = Run(tmp_path, sent, Schemas(takes_s=0.01), duration_s=2.0)
    run.run()
    reads = len(run.reader.reads_s)
    totals = run.consumption.totals
    assert reads >= 3
    # A read asks for half a second, and an answer takes 10 ms or more, so it is at most 51 of them.
    assert totals.messages <= 51 * reads
    assert 0 < totals.messages == totals.rejects < 1000
    assert run.committed[("t", 0)] == totals.messages


def test_what_waits_of_a_partition_that_was_taken_away_is_left_to_its_new_owner(
    tmp_path: Path,
) -> None:
    unknown = wire_header(7) + ROWS[1][5:]
    schemas = Schemas(not_yet=1 << 30)
    run = Run(tmp_path, [(0, unknown), (1, ROWS[0]), (0, ROWS[2])], schemas, duration_s=0.7)
    other = MemoryReader(run.broker, group="g", rebalance=run.consumption.rebalance)

    def join_before_the_third_read() -> None:
        if len(run.reader.reads_s) == 3:
            other.subscribe(["t"])
            run.broker.group("g").members.reverse()  # it gets partition 0

    run.reader.before_read = join_before_the_third_read
    run.run()
    assert run.rows == 1
    assert run.committed == {("t", 1): 1}
