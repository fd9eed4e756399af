"""Records that arrive by every route, in any order, with every accident: each is stored once.

The model is a set of ids. Positions may keep only a few ranges here, so that holes close all the
time, and files are written a few rows at a time.
"""

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pyiceberg.exceptions import CommitStateUnknownException

from k2cli.config import load_settings
from k2cli.flow import Batch
from k2cli.pipelines.sinks import TableSink
from k2cli.pipelines.stream import Pump, PumpPolicy
from k2cli.records import QUOTES, TRADES, RecordKind
from k2cli.rejects import RejectLog
from k2cli.storage import fileload, position
from k2cli.storage.append import OutcomeUnknown
from k2cli.storage.lake import Lake, open_lake
from k2cli.storage.loads import FileKey, LoadEntry
from k2cli.storage.offsets import (
    KEY,
    OffsetPosition,
    Partition,
    PositionMoved,
    Span,
    decode_offsets,
)
from support.builders import START, quote_row, table_of, trade_row
from support.foreign import append_as_another_engine, rewrite_as_another_engine

Id = tuple[str, int]  # symbol and number
SYMBOLS = ("BTCUSDT", "ETHUSDT", "币安人生USDT")
IDS = st.lists(st.tuples(st.sampled_from(SYMBOLS), st.integers(0, 40)), min_size=1, max_size=12)
DAYS = 3
TOPIC = "market.crypto.trades"


class Once(RuleBasedStateMachine):
    """Writes to one table by every route; `stored` is what it must hold."""

    kind: RecordKind

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        patch.setattr(fileload, "_FILE_ROWS", 4)
        patch.setattr(position, "MAX_RANGES", 6)
        patch.setattr(position, "MAX_SERIES", 2)
        self.settings = load_settings({"K2_HOME": str(folder), "K2_TABLE_KEEP_SNAPSHOTS": "50"})
        self.lake: Lake = self.stack.enter_context(open_lake(self.settings, create=True))
        self.table = self.lake.open(self.kind)  # stays open, so it is outdated most of the time
        self.rejects = self.stack.enter_context(RejectLog(folder / "rejects", run=""))
        self.stored: set[Id] = set()
        self.history: list[tuple[int, frozenset[Id]]] = []  # snapshots, and what they hold
        self.loads = 0
        self.loaded: dict[str, set[Id]] = {}  # what each load stored, by its path
        self.received = 0

    def teardown(self) -> None:
        self.stack.close()

    def rows(self, ids: Sequence[Id]) -> pa.Table:
        """Make rows; the day of a row follows from its number, as in an exchange's series."""
        make = trade_row if self.kind is TRADES else quote_row
        self.received += 1
        received = START + timedelta(days=9, microseconds=self.received)
        made = [
            make(
                symbol=symbol,
                source_sequence=number,
                timestamp=START + timedelta(days=number * DAYS // 40, seconds=number),
                ingestion_timestamp=received,
            )
            for symbol, number in ids
        ]
        return table_of(self.kind, made)

    def note(self) -> None:
        snapshot = self.lake.open(self.kind).iceberg.current_snapshot()
        if snapshot is not None:
            self.history.append((snapshot.snapshot_id, frozenset(self.stored)))

    def load(self, rows: pa.Table, between: Sequence[Id] = ()) -> None:
        """Load rows as a file; other ids arrive while it is read."""
        self.loads += 1
        number = self.loads

        entry = LoadEntry(
            loaded_at=number,
            path=f"/{number}",
            digest=f"{number}",
            size_bytes=1,
            layout="binance-trades",
            rejects=0,
            meaning="as it is",
            identity=f"{number}",
        )
        key = FileKey(
            path=entry.path,
            layout=entry.layout,
            meaning=entry.meaning,
            identity=entry.identity,
            digests=(entry.digest,),
        )
        self.table.refresh()
        with self.table.load_file("a.csv", file=entry.identity) as target:
            for batch in rows.to_batches(max_chunksize=3):
                target.write(batch)
            if between:
                self.lake.open(self.kind).append(self.rows(between))
            target.commit(entry, key=key)
        loaded = {(row["symbol"], row["source_sequence"]) for row in rows.to_pylist()}
        self.loaded[entry.path] = loaded - self.stored - set(between)
        left_out = target.result.duplicates + target.result.conflicts
        assert target.result.rows + left_out == rows.num_rows

    # --- the routes

    @rule(ids=IDS, seen=st.lists(st.integers(50, 60), max_size=2))
    def stream(self, ids: list[Id], seen: list[int]) -> None:
        self.pump(self.rows(ids).to_batches(max_chunksize=5), seen)
        self.stored.update(ids)

    def pump(self, batches: Sequence[pa.RecordBatch], seen: Sequence[int]) -> None:
        ids = pa.RecordBatch.from_pydict(
            {
                "exchange": ["BINANCE"] * len(seen),
                "symbol": [SYMBOLS[0]] * len(seen),
                "source_sequence": pa.array(seen, pa.int64()),
            }
        )
        noted = [(self.kind, ids)] if self.kind is TRADES and seen else []
        given = [Batch(rows=[(self.kind, each)], seen=noted, messages=1) for each in batches]

        class Given:
            def batches(self) -> Any:
                return iter(given)

            def stop(self) -> None:
                pass

        sink = TableSink(lake=self.lake, exchange="BINANCE", observe=lambda *_, **__: None)
        policy = PumpPolicy(flush_rows=7, flush_interval_s=60)
        Pump(
            source=Given(),
            sink=sink,
            rejects=self.rejects,
            policy=policy,
            observe=lambda *_, **__: None,
        ).run()

    @rule(ids=IDS)
    def load_a_file(self, ids: list[Id]) -> None:
        self.load(self.rows(ids))
        self.stored.update(ids)

    @rule(ids=IDS, between=IDS)
    def load_a_file_while_others_write(self, ids: list[Id], between: list[Id]) -> None:
        self.load(self.rows(ids), between)
        self.stored.update([*ids, *between])

    @rule(ids=IDS)
    def load_the_same_records_with_other_values(self, ids: list[Id]) -> None:
        """The first one stays, the other one is a conflict: either way there is one."""
        rows = self.rows(ids)
        column = rows.schema.get_field_index(self.kind.compared[1])
        field = rows.schema.field(column)
        zeros = pa.repeat(pa.scalar(Decimal(0), field.type), len(rows))
        self.load(rows.set_column(column, field, zeros))
        self.stored.update(ids)

    @rule(at=st.floats(0, 1))
    def undo_a_load(self, at: float) -> None:
        loads = self.lake.open(self.kind).loads().select(["load", "path"]).to_pylist()
        if loads:
            load = loads[int(at * (len(loads) - 1))]
            gone = self.loaded[load["path"]] & self.stored
            assert self.table.undo_load(load["load"]).rows == len(gone)
            self.stored -= gone

    @rule(ids=IDS, partition=st.integers(0, 1), skew=st.sampled_from([0, 0, 0, 1]))
    def consume(self, ids: list[Id], partition: int, skew: int) -> None:
        """A batch of a consumer that may have been overtaken by another one."""
        place = Partition(TOPIC, "id", partition)
        expected = decode_offsets(self.lake.open(self.kind).stored_position(KEY)).get(place)
        begin = expected or 0
        span = Span(expected=begin + skew or None, reached=begin + skew + len(ids))
        source = OffsetPosition({place: span})
        if span.expected == expected:
            self.table.append(self.rows(ids), source=source)
            self.stored.update(ids)
        else:
            with pytest.raises(PositionMoved):
                self.table.append(self.rows(ids), source=source)

    # --- accidents, and other engines

    @rule(ids=IDS)
    def load_that_is_cut_off(self, ids: list[Id]) -> None:
        with self.lake.open(self.kind).load_file("a.csv", file="cut off") as target:
            for batch in self.rows(ids).to_batches(max_chunksize=3):
                target.write(batch)

    @rule(ids=IDS, does_land=st.booleans())
    def append_whose_answer_is_lost(self, ids: list[Id], does_land: bool) -> None:
        catalog: Any = self.lake._catalog
        commit = catalog.commit_table
        answers = iter([True])

        def lose_one(*args: Any, **kwargs: Any) -> Any:
            if not next(answers, False):
                return commit(*args, **kwargs)
            if does_land:
                commit(*args, **kwargs)
            raise CommitStateUnknownException("the answer was lost")

        with pytest.MonkeyPatch.context() as patch, suppress(OutcomeUnknown):
            patch.setattr(catalog, "commit_table", lose_one)
            self.table.append(self.rows(ids))
        self.stored.update(ids)

    @rule(at=st.floats(0, 1))
    def roll_back(self, at: float) -> None:
        if self.history:
            index = int(at * (len(self.history) - 1))
            snapshot_id, stored = self.history[index]
            with self.lake.open(self.kind).iceberg.manage_snapshots() as manage:
                manage.rollback_to_snapshot(snapshot_id)
            self.stored = set(stored)
            del self.history[index:]

    @rule(number=st.integers(100, 200))
    def append_by_another_engine(self, number: int) -> None:
        ids = [(SYMBOLS[0], number)]
        if ids[0] not in self.stored:
            append_as_another_engine(self.lake.open(self.kind).iceberg, self.rows(ids))
            self.stored.update(ids)

    @rule(is_expiring=st.booleans())
    def rewrite_by_another_engine(self, is_expiring: bool) -> None:
        table = self.lake.open(self.kind).iceberg
        if table.current_snapshot() is not None:
            rewrite_as_another_engine(table, is_expiring=is_expiring)
            if is_expiring:
                self.history = []

    @rule()
    def evolve(self) -> None:
        extra = {"name": "venue", "type": ["null", "string"], "default": None}
        fields = [*self.kind.avro["fields"], extra]
        self.table.evolve({**self.kind.avro, "fields": fields})

    @rule()
    def open_anew(self) -> None:
        self.lake = self.stack.enter_context(open_lake(self.settings))
        self.table = self.lake.open(self.kind)

    @initialize()
    def begin(self) -> None:
        self.note()

    @invariant()
    def the_table_holds_every_id_once(self) -> None:
        found = (
            self.lake.open(self.kind)
            .iceberg.scan()
            .to_arrow()
            .select(["symbol", "source_sequence"])
        )
        held = sorted((row["symbol"], row["source_sequence"]) for row in found.to_pylist())
        assert held == sorted(self.stored)
        self.note()


class OnceTrades(Once):
    kind = TRADES


class OnceQuotes(Once):
    kind = QUOTES


_EFFORT = settings(
    max_examples=10,
    stateful_step_count=14,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a step takes too long to shrink by it
    suppress_health_check=list(HealthCheck),
)
TestTrades = OnceTrades.TestCase
TestTrades.settings = _EFFORT
TestQuotes = OnceQuotes.TestCase
TestQuotes.settings = _EFFORT
