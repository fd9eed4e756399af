"""Consumptions within the test's process: of any reader, with a registry and tables in memory."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, cast

from k2cli.codec.encode import wire_header
from k2cli.errors import NotFound
from k2cli.ingestion.kafka.consumer import Rebalance
from k2cli.ingestion.kafka.deadletters import DeadLetterFile
from k2cli.ingestion.kafka.messages import MessageReader
from k2cli.ingestion.kafka.registry import NotYet, Registry
from k2cli.pipelines.consume.loop import Consumption
from k2cli.pipelines.consume.policy import ConsumePolicy, ConsumeTotals, Feed, Outlets, Tables
from k2cli.pipelines.consume.reader import Reader
from k2cli.records import TRADES
from k2cli.rejects import RejectLog
from support.cluster import numbered_trades, values_of

GOOD = 1  # id of the schema that `Schemas` knows


class Brokers(Protocol):
    """Topics and groups, in memory or in Kafka."""

    def create(self, topic: str, *, partitions: int = 2) -> str:
        """Create a topic; return its id."""

    def delete(self, topic: str) -> None:
        """Delete a topic; its name is free when this returns."""

    def send(self, topic: str, partition: int, values: Sequence[bytes | None]) -> None:
        """Append records to a partition."""

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Delete the records of a partition before an offset."""

    def open_reader(self, *, group: str, rebalance: Rebalance) -> AbstractContextManager[Reader]:
        """Open a member of a group, which leaves it at the end."""


class Schemas:
    """A registry that knows one schema, says "not yet" some times, and then that it is unknown."""

    def __init__(self, *, not_yet: int = 0, takes_s: float = 0.0) -> None:
        self.left = not_yet
        self._takes_s = takes_s

    def schema(self, schema_id: int) -> Any:
        """Return a schema."""
        if schema_id == GOOD:
            return TRADES.avro
        if self.left:
            self.left -= 1
            raise NotYet("not yet")
        time.sleep(self._takes_s)
        raise NotFound("unknown")


class Consumer:
    """A consumption of one topic of trades, with what it reports.

    `events` are those of all threads, in the order in which they were reported.
    """

    def __init__(
        self,
        folder: Path,
        *,
        topic: str,
        topic_id: str,
        tables: Tables,
        schemas: Schemas | None = None,
        **policy: Any,
    ) -> None:
        limits = {"batch_rows": 1_000, "commit_interval_s": 60.0, "timeout_s": 1.0}
        self.events: list[tuple[str, dict[str, object]]] = []
        self._rejects = RejectLog(folder / "rejects", run="")
        feed = Feed(
            topic=topic,
            topic_id=topic_id,
            kind=TRADES,
            messages=MessageReader(
                registry=cast("Registry", schemas or Schemas()),
                topic=topic,
                kind=lambda: TRADES,
                observe=self._observe,
            ),
        )
        self.consumption = Consumption(
            feeds=[feed],
            outlets=Outlets(
                tables=tables, letters=DeadLetterFile(self._rejects), rejects=self._rejects
            ),
            policy=ConsumePolicy(**{**limits, **policy}),
            observe=self._observe,
        )

    @property
    def totals(self) -> ConsumeTotals:
        """The totals so far."""
        return self.consumption.totals

    def run(self, reader: Reader, on_read: Callable[[], None] = lambda: None) -> None:
        """Consume to the end; `on_read` is called after every read."""
        with self._rejects:
            self.consumption.run(reader, lambda _: on_read())

    def run_in(
        self, brokers: Brokers, *, group: str, on_read: Callable[[], None] = lambda: None
    ) -> None:
        """Consume to the end as a member of a group, and leave it."""
        with brokers.open_reader(group=group, rebalance=self.consumption.rebalance) as reader:
            self.run(reader, on_read)

    def named(self, event: str) -> list[dict[str, object]]:
        """Return the fields of the events of a name."""
        return [fields for name, fields in self.events if name == event]

    def _observe(self, event: str, /, **fields: object) -> None:
        self.events.append((event, fields))


def trades_values(count: int, *, begin: int = 0) -> list[bytes]:
    """Return the values of trades as messages, with ids from `begin` on."""
    return values_of(numbered_trades(count, begin=begin), wire_header(GOOD))
