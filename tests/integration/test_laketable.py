"""A table that is opened once: how often the catalog is asked, and what an outdated one does."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog.sql import SqlCatalog

from k2cli.answers import LakeReader
from k2cli.config import Settings
from k2cli.errors import BadData, Conflict
from k2cli.ingestion.csv.layout import load_layout
from k2cli.ingestion.csv.source import CsvOptions, read_csv
from k2cli.pipelines.conflicts import ConflictReport
from k2cli.pipelines.load import tables
from k2cli.pipelines.load.job import FileToLoad, LoadPolicy
from k2cli.pipelines.load.tables import load_into_tables
from k2cli.pipelines.pump import Allowance
from k2cli.pipelines.sinks import TableSink
from k2cli.records import TRADES
from k2cli.rejects import RejectLog
from k2cli.storage import fileload
from k2cli.storage.groupload import CompleteFile
from k2cli.storage.lake import Lake
from k2cli.storage.laketable import LakeTable
from k2cli.storage.lines import Lines
from k2cli.storage.loads import FileKey, LoadEntry
from support.builders import START, table_of, trade_row
from support.older import make_narrow

FILES = 4
LARGE = Decimal("35962838485.00000001")  # more than narrow tables hold


class Catalog:
    """Counts what is asked of the catalog. A commit, and what it asks in itself, is one of them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.round_trips = 0
        self.commits = 0
        self._is_committing = False
        load_table, commit_table = SqlCatalog.load_table, SqlCatalog.commit_table

        def load(catalog: SqlCatalog, *args: Any, **kwargs: Any) -> Any:
            self.round_trips += not self._is_committing
            return load_table(catalog, *args, **kwargs)

        def commit(catalog: SqlCatalog, *args: Any, **kwargs: Any) -> Any:
            self.commits += 1
            self._is_committing = True
            try:
                return commit_table(catalog, *args, **kwargs)
            finally:
                self._is_committing = False

        patch.setattr(SqlCatalog, "load_table", load)
        patch.setattr(SqlCatalog, "commit_table", commit)

    def take(self) -> tuple[int, int]:
        """Return how many round trips and commits there were since the last call."""
        counts = self.round_trips, self.commits
        self.round_trips = self.commits = 0
        return counts


@pytest.fixture
def catalog(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> Catalog:
    assert lake.kinds()
    return Catalog(monkeypatch)


@pytest.fixture
def load(lake: Lake, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Load the same files, each of five lines; return how many were new."""
    with RejectLog(tmp_path / "rejects", run="") as rejects:

        def run(**over: Any) -> int:
            policy = LoadPolicy(
                rejects=rejects,
                conflicts=ConflictReport(lambda *_, **__: None),
                allowance=Allowance(),
                **over,
            )
            files = [file_of(tmp_path / f"{number}.csv", number) for number in range(FILES)]
            found = load_into_tables(files, lake, policy, lambda _: nullcontext(lambda _: None))
            return sum(outcome.is_new for outcome in found)

        yield run


def file_of(path: Path, number: int) -> FileToLoad:
    lines = [f"2024-01-0{number + 1},1,{size}" for size in range(1, 6)]
    path.write_text("\n".join(["timestamp,price,size", *lines]))
    options = CsvOptions(symbol="ABC", exchange="X", asset_class="equities", currency="EUR")
    reader = read_csv(path, load_layout("generic-trades"), options)
    return FileToLoad(path=str(path), layout="generic-trades", kind=TRADES, reader=reader)


@pytest.mark.parametrize("file_rows", [200_000, 2], ids=["small", "large"])
def test_a_file_costs_one_round_trip_beside_its_commit(
    catalog: Catalog,
    load: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    file_rows: int,
) -> None:
    monkeypatch.setattr(tables, "_GROUP_FILES", 1)
    monkeypatch.setattr(fileload, "_FILE_ROWS", file_rows)
    assert (load(), catalog.take()) == (FILES, (FILES, FILES))
    assert (load(), catalog.take()) == (0, (FILES, 0))
    assert (load(is_forced=True), catalog.take()) == (FILES, (FILES, FILES))
    assert (load(is_repeating=True), catalog.take()) == (FILES, (FILES, FILES))


def test_a_group_of_files_costs_one_round_trip(catalog: Catalog, load: Callable[..., int]) -> None:
    assert (load(), catalog.take()) == (FILES, (1, 1))
    assert (load(), catalog.take()) == (0, (1, 0))


def test_a_commit_of_a_stream_costs_one_round_trip(lake: Lake, catalog: Catalog) -> None:
    sink = TableSink(lake=lake, exchange="BINANCE", observe=lambda *_, **__: None)
    for number in range(3):
        (batch,) = numbered(number).to_batches()
        sink.write(TRADES, batch)
        assert sink.commit().rows == 1
    assert catalog.take() == (1 + 3, 3)  # the first one opens the table


def test_a_question_costs_one_round_trip_and_sees_the_newest_snapshot(
    lake: Lake, settings: Settings, catalog: Catalog
) -> None:
    with LakeReader(settings) as reader:
        for number in range(3):
            lake.open(TRADES).append(numbered(number))
            catalog.take()
            answer = reader.trades()
            assert catalog.take() == (1, 0)
            assert answer.arrow().num_rows == number + 1
            assert catalog.take() == (0, 0)


# --- tables that others have changed since they were opened


def numbered(*numbers: int, **over: Any) -> pa.Table:
    return table_of(TRADES, [trade_row(source_sequence=number, **over) for number in numbers])


def text_ids(*names: str, **over: Any) -> pa.Table:
    rows = [
        trade_row(message_id=f"text-{name}", trade_id=name, source_sequence=None, **over)
        for name in names
    ]
    return table_of(TRADES, rows)


def key_of(name: str) -> FileKey:
    return FileKey(
        path=f"/{name}", layout="generic-trades", meaning="x", identity=name, digests=(name,)
    )


def entry_of(name: str) -> LoadEntry:
    return LoadEntry(
        loaded_at=int(START.timestamp()) * 1_000_000,
        path=f"/{name}",
        digest=name,
        size_bytes=1,
        layout="generic-trades",
        rejects=0,
        meaning="x",
        identity=name,
    )


Load = Callable[[LakeTable, str, pa.Table], bool]


def load_alone(table: LakeTable, name: str, rows: pa.Table) -> bool:
    with table.load_file(f"{name}.csv", file=name) as file:
        for batch in rows.to_batches():
            file.write(batch)
        return file.commit(entry_of(name), key=key_of(name)) is not None


def load_as_group(table: LakeTable, name: str, rows: pa.Table) -> bool:
    file = CompleteFile(
        rows=rows.to_batches(),
        lines=Lines(TRADES, (name,)),
        entry=entry_of(name),
        key=key_of(name),
        after=None,
    )
    return table.load_group([file]) != [None]


both_loads = pytest.mark.parametrize("load_rows", [load_alone, load_as_group])


def stored(lake: Lake) -> list[str]:
    return sorted(lake.open(TRADES).iceberg.scan().to_arrow()["trade_id"].to_pylist())


def test_reading_answers_from_what_was_loaded(lake: Lake) -> None:
    table, other = lake.open(TRADES), lake.open(TRADES)
    other.append(numbered(1, timestamp=START))
    assert (table.describe().rows, table.plan().rows, table.newest()) == (0, 0, None)
    table.refresh()
    assert (table.describe().rows, table.plan().rows, table.newest()) == (1, 1, START)
    assert other.describe().rows == 1


def test_an_append_sees_what_others_stored_and_removed(lake: Lake) -> None:
    table, other = lake.open(TRADES), lake.open(TRADES)
    assert load_alone(other, "a", numbered(1, 2))
    assert table.append(numbered(2, 3)).rows == 1
    (load_id,) = other.loads()["load"].to_pylist()
    other.undo_load(load_id)
    assert table.append(numbered(1, 2, 3)).rows == 2
    assert table.describe().rows == 3


@both_loads
def test_a_file_that_another_process_loaded_is_not_loaded_twice(
    lake: Lake, load_rows: Load
) -> None:
    table, other = lake.open(TRADES), lake.open(TRADES)
    assert load_rows(other, "a", text_ids("1", "2"))
    assert not load_rows(table, "a", text_ids("1", "2"))
    assert load_rows(table, "b", text_ids("2", "3"))
    assert stored(lake) == ["1", "2", "3"]


@both_loads
def test_a_file_that_was_undone_since_is_loaded_again(lake: Lake, load_rows: Load) -> None:
    other = lake.open(TRADES)
    assert load_rows(other, "a", text_ids("1", "2"))
    table = lake.open(TRADES)
    (load_id,) = table.loads()["load"].to_pylist()
    other.undo_load(load_id)
    assert stored(lake) == []
    if load_rows is load_alone:  # its rows were left out as stored before the log was read again
        with pytest.raises(Conflict, match="rows were removed"):
            load_rows(table, "a", text_ids("1", "2"))
    assert load_rows(table, "a", text_ids("1", "2"))
    assert stored(lake) == ["1", "2"]


@both_loads
def test_rows_fit_a_table_that_has_evolved_since(lake: Lake, load_rows: Load) -> None:
    make_narrow(lake)
    table = lake.open(TRADES)
    with pytest.raises(BadData, match="does not fit"):
        load_rows(table, "a", text_ids("1", quantity=LARGE))
    lake.open(TRADES).evolve(TRADES.avro)
    assert load_rows(table, "a", text_ids("1", quantity=LARGE))
    assert stored(lake) == ["1"]


def test_logs_that_have_expired_since_are_read_in_the_newest_snapshot(lake: Lake) -> None:
    other = lake.open(TRADES)
    load_as_group(other, "a", text_ids("1"))
    table = lake.open(TRADES)
    files = set(Path(table.iceberg.location().removeprefix("file://")).rglob("*loads*.parquet"))
    load_as_group(other, "b", text_ids("2"))
    for file in files:  # as expiring the snapshot that names it does
        file.unlink()
    assert table.loaded_before([key_of("a"), key_of("b"), key_of("c")]) == {"a", "b"}
    with pytest.raises(BadData, match="missing"):
        remove_logs_and_read(table)


def remove_logs_and_read(table: LakeTable) -> None:
    for file in Path(table.iceberg.location().removeprefix("file://")).rglob("*loads*.parquet"):
        file.unlink()
    table.loads()
