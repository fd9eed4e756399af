"""Reads of a consumption: where they are cut, and what waits; no brokers."""

import io
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from builders import trades_batch
from cluster import values_of
from confluent_kafka import Message

from k2cli.codec.encode import wire_header
from k2cli.errors import BadData, NotFound
from k2cli.ingestion.kafka.deadletters import DeadLetterFile
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.registry import NotYet
from k2cli.ingestion.kafka.topics import Place, TopicIdentity
from k2cli.pipelines.consume import ConsumePolicy, Consumption, Feed, Outlets
from k2cli.pipelines.sinks import NdjsonPrinter, PrintedTables
from k2cli.records import TRADES
from k2cli.rejects import RejectLog

GOOD = 1
ROWS = values_of(trades_batch(8), wire_header(GOOD))
Sent = tuple[int, bytes]  # partition and value


class Answer:
    """Word of a topic that never changes."""

    def wait(self, _timeout_s: float) -> bool:
        return True

    def identities(self) -> dict[str, TopicIdentity | None]:
        return {"t": TopicIdentity(id="1", partitions=2)}


class Reader:
    """A member of a group: hands out messages, and then the ends of its partitions."""

    def __init__(self, sent: Sequence[Sent]) -> None:
        self.reading: set[Place] = set()
        self.assigned: set[Place] = set()
        self.at_end: set[Place] = set()
        self.passed: dict[Place, int] = {}
        self.out_of_range: set[Place] = set()
        self.is_topic_gone = False
        self.has_joined, self.joined_at = True, 0.0
        self.reads: list[float] = []  # when
        counts: dict[int, int] = {}
        self._messages: list[Message] = []
        for number, value in sent:
            offset = counts.get(number, 0)
            counts[number] = offset + 1
            self._messages.append(
                Message(topic="t", partition=number, offset=offset, value=value, timestamp=(1, 0))
            )
        self._counts = counts
        self.consumption: Consumption | None = None

    def subscribe(self, _topics: Sequence[str]) -> None:
        places = [("t", 0), ("t", 1)]
        assert self.consumption is not None
        self.consumption.rebalance.assigned(places)
        self.assigned.update(places)
        self.reading.update(places)

    def read(self, at_most: int, timeout_s: float) -> list[Message]:
        assert at_most > 0
        self.reads.append(time.monotonic())
        messages, self._messages = self._messages[:at_most], self._messages[at_most:]
        if not self._messages:
            for number in (0, 1):
                self.passed[("t", number)] = self._counts.get(number, 0)
            self.at_end.update(self.reading)
        if not messages:
            time.sleep(timeout_s)
        return messages

    def ask_identities(self, _topics: object) -> Answer:
        return Answer()

    def bounds(self, places: Sequence[Place]) -> dict[Place, tuple[int, int]]:
        return {place: (0, self._counts.get(place[1], 0)) for place in places}

    def ends(self) -> dict[Place, int]:
        return {}

    def refresh(self, _timeout_s: float) -> None: ...

    def tell(self, _offsets: object) -> None: ...


class Schemas:
    """A registry that knows one schema, says "not yet" some times, and then that it is unknown."""

    def __init__(self, *, not_yet: int = 0, takes_s: float = 0.0) -> None:
        self.left = not_yet
        self._takes_s = takes_s

    def schema(self, schema_id: int) -> Any:
        if schema_id == GOOD:
            return TRADES.avro
        if self.left:
            self.left -= 1
            raise NotYet("not yet")
        time.sleep(self._takes_s)
        raise NotFound("unknown")


class Run:
    """A consumption of one topic of two partitions onto stdout."""

    def __init__(
        self, folder: Path, sent: Sequence[Sent], schemas: Schemas | None = None, **policy: Any
    ) -> None:
        self.printed = io.BytesIO()
        self.rejects = RejectLog(folder / "rejects", run="")
        limits = {"batch_rows": 1000, "commit_interval_s": 60.0, "timeout_s": 1.0}
        self.consumption = Consumption(
            feeds=[
                Feed(
                    topic="t",
                    topic_id="1",
                    kind=TRADES,
                    messages=MessageReader(
                        registry=schemas or Schemas(),
                        topic="t",
                        kind=lambda: TRADES,
                        observe=lambda *_, **__: None,
                    ),
                )
            ],
            outlets=Outlets(
                tables=PrintedTables(NdjsonPrinter(self.printed)),
                letters=DeadLetterFile(self.rejects),
                rejects=self.rejects,
            ),
            policy=ConsumePolicy(**{**limits, **policy}),
            observe=lambda *_, **__: None,
        )
        self.reader = Reader(sent)
        self.reader.consumption = self.consumption

    def run(self) -> None:
        with self.rejects:
            self.consumption.run(self.reader)

    @property
    def rows(self) -> int:
        return self.printed.getvalue().count(b"\n")


def test_what_came_before_a_bad_message_is_committed(tmp_path: Path):
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
    assert run.consumption.committed == {("t", 0): 1, ("t", 1): 2}
    assert run.consumption.totals.messages == 3


def test_a_bad_message_at_first_stops_with_nothing_of_its_partition(tmp_path: Path):
    run = Run(tmp_path, [(0, b"bad"), (0, ROWS[0])], is_bad_fatal=True)
    with pytest.raises(BadData, match="t/0 at offset 0: "):
        run.run()
    assert run.rows == 0
    assert run.consumption.committed.get(("t", 0), 0) == 0


def test_messages_wait_for_their_schema_and_none_is_lost(tmp_path: Path):
    unknown = wire_header(7) + ROWS[1][5:]
    sent = [(0, ROWS[0]), (1, unknown), (0, ROWS[2]), (1, ROWS[3])]
    schemas = Schemas(not_yet=3)
    run = Run(tmp_path, sent, schemas, is_until_end=True)
    run.run()
    assert schemas.left == 0
    assert run.rows == 3
    assert run.consumption.totals.rejects == 1
    assert run.consumption.committed == {("t", 0): 2, ("t", 1): 2}


def test_max_messages_is_exact_while_messages_wait(tmp_path: Path):
    sent = [(0, wire_header(7 + i) + row[5:]) for i, row in enumerate(ROWS)]
    run = Run(tmp_path, sent, Schemas(takes_s=0.3), max_messages=5)
    run.run()
    assert run.consumption.totals.messages == 5
    assert run.consumption.committed[("t", 0)] == 5


def test_a_thousand_unknown_schemas_hold_up_neither_the_group_nor_the_end(tmp_path: Path):
    sent = [(0, wire_header(7 + i) + ROWS[0][5:]) for i in range(1000)]
    run = Run(tmp_path, sent, Schemas(takes_s=0.01), duration_s=2.0)
    started = time.monotonic()
    run.run()
    assert time.monotonic() - started < 3
    times = run.reader.reads
    assert len(times) >= 3
    assert max(later - earlier for earlier, later in pairwise(times)) < 1
    totals = run.consumption.totals
    assert 0 < totals.messages == totals.rejects < 1000
    assert run.consumption.committed[("t", 0)] == totals.messages


def test_what_waits_of_a_partition_that_was_taken_away_is_left_to_its_new_owner(tmp_path: Path):
    unknown = wire_header(7) + ROWS[1][5:]
    schemas = Schemas(not_yet=1 << 30)
    run = Run(tmp_path, [(0, unknown), (1, ROWS[0]), (0, ROWS[2])], schemas, duration_s=0.7)
    read = run.reader.read

    def read_and_revoke(at_most: int, timeout_s: float) -> list[Message]:
        if len(run.reader.reads) == 2:
            run.consumption.rebalance.revoked([("t", 0)])
            run.reader.reading.discard(("t", 0))
        return read(at_most, timeout_s)

    run.reader.read = read_and_revoke  # type: ignore[method-assign]
    run.run()
    assert run.rows == 1
    assert run.consumption.committed == {("t", 1): 1}
