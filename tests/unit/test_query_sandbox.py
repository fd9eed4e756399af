"""SQL in processes of its own: what crashes, hangs or grows there ends there."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from k2cli.config import Duration, QuerySettings, Size
from k2cli.errors import BadData, K2Error, Unavailable, UsageError
from k2cli.query.protocol import Frames, Kind, send_frame
from k2cli.query.sandbox import Sandbox, open_sandbox
from k2cli.query.statements import MAX_BYTES
from k2cli.records import KINDS, TableFiles
from support.waiting import PATIENCE_S, ManualClock, wait_for

NOTHING = [TableFiles(kind=kind, paths=(), columns={}, rows=0) for kind in KINDS.values()]
LIMITS = QuerySettings(memory_limit="100MB", threads=1, timeout=Duration(PATIENCE_S))


@pytest.fixture(scope="module")
def spill(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spill")


@pytest.fixture(scope="module")
def sandbox(spill: Path) -> Iterator[Sandbox]:
    """One fork server for all tests: what one does to it, others notice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(spill))
        with open_sandbox() as opened:
            yield opened


def written(sandbox: Sandbox, sql: str, form: str = "csv", limits: QuerySettings = LIMITS) -> bytes:
    sink = io.BytesIO()
    with sandbox.ask(limits, NOTHING, sql) as answer:
        rows = answer.copy(form, sink)
    assert form != "ndjson" or rows == sink.getvalue().count(b"\n")
    return sink.getvalue()


def test_an_error_that_a_query_makes_long_is_cut(sandbox: Sandbox) -> None:
    with pytest.raises(BadData) as caught:
        written(sandbox, "select error(repeat('x', 1000000))")
    assert 4_000 <= len(str(caught.value)) < 5_000


def test_answers_come_in_every_form(sandbox: Sandbox) -> None:
    sql = "select i, i::decimal(18,8) as d from range(3) t(i)"
    lines = ["0,0.00000000", "1,1.00000000", "2,2.00000000"]
    assert written(sandbox, sql).decode().splitlines() == ["i,d", *lines]
    assert written(sandbox, sql, "csv without header").decode().splitlines() == lines
    rows = [json.loads(line) for line in written(sandbox, sql, "ndjson").splitlines()]
    assert rows[2] == {"i": 2, "d": "2.00000000"}
    assert written(sandbox, sql, "parquet")[:4] == b"PAR1"
    with sandbox.ask(LIMITS, NOTHING, sql) as answer:
        batches = list(answer.first(2).batches())
    assert sum(batch.num_rows for batch in batches) == 2
    with sandbox.ask(LIMITS, NOTHING, sql) as answer:
        texts = [text for batch in answer.batches("text") for text in batch["d"].to_pylist()]
        assert [name for name, _ in answer.named_types] == ["i", "d"]
    assert texts == ["0.00000000", "1.00000000", "2.00000000"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("union_value(a := 1)", '"{""a"":1}"'),
        ("[{'h': 7::hugeint, 'u': '6f1d2c3e-0000-8000-8000-000000000001'::uuid}]", None),
        ("['1'::json]", "[1]"),
        ("42::variant", "42"),
        ("'b'::enum('a', 'b')", "b"),
        ("true", "true"),
        ("'10:00:00+02'::timetz", "10:00:00+02"),
    ],
)
def test_types_survive_the_way_between_the_engines(
    sandbox: Sandbox, value: str, text: str | None
) -> None:
    line = written(sandbox, f"select {value} as x").decode().splitlines()[1]
    expected = '"[{""h"":7,""u"":""6f1d2c3e-0000-8000-8000-000000000001""}]"'
    assert line == (text or expected)


@pytest.mark.parametrize(
    "sql",
    [
        "select json_structure(repeat('[', 300000) || repeat(']', 300000))",
        "select ((repeat('[', 300000) || repeat(']', 300000))::json)::variant",
    ],
)
def test_crash_is_one_sentence_and_takes_nothing_along(
    sandbox: Sandbox, spill: Path, sql: str
) -> None:
    with pytest.raises(BadData, match=r"crashed DuckDB \(SIG"):
        written(sandbox, sql)
    assert list(spill.iterdir()) == []
    assert written(sandbox, "select 1 as a") == b"a\n1\n"


@pytest.mark.parametrize(
    "sql",
    [
        "select sleep_ms(100000)",
        "select count(*) from range(1000000000000)",
        "select levenshtein(repeat('a', 200000), repeat('b', 200000))",
        "with recursive t as (select 1 n union all select n + 1 from t) select count(*) from t",
    ],
)
def test_query_that_does_not_end_is_stopped(sandbox: Sandbox, spill: Path, sql: str) -> None:
    begin = time.monotonic()
    with pytest.raises(Unavailable, match=r"longer than 0\.5s") as caught:
        written(sandbox, sql, limits=replace(LIMITS, timeout=Duration(0.5)))
    assert time.monotonic() - begin < PATIENCE_S
    assert "--timeout" in str(caught.value.hint)
    assert list(spill.iterdir()) == []


def test_only_the_time_of_waiting_counts() -> None:
    clock = ManualClock()

    class Slow(socket.socket):
        """Every read takes 0.4 seconds."""

        def recv_into(self, *args: Any, **options: Any) -> int:
            clock.advance(0.4)
            return super().recv_into(*args, **options)

    ours, theirs = socket.socketpair()
    with Slow(fileno=ours.detach()) as ours, theirs:
        frames = Frames(ours, allowance_s=2, clock=clock)

        def received() -> tuple[Kind, bytes]:
            kind, body = frames.receive()
            return kind, bytes(body)

        for body in (b"a", b"b", b"c"):
            send_frame(theirs, Kind.DATA, body)
        assert received() == (Kind.DATA, b"a")
        clock.advance(100)  # of the reader, with what it received
        assert received() == (Kind.DATA, b"b")
        with pytest.raises(TimeoutError):
            frames.receive()


@pytest.mark.parametrize(
    "sql",
    [
        "select len(range(300000000))",
        "select length(repeat('x', 2000000000))",
        "select len(list(i)) from range(100000000) t(i)",
    ],
)
def test_memory_is_bounded(sandbox: Sandbox, spill: Path, sql: str) -> None:
    with pytest.raises(Unavailable, match=r"[Mm]emory") as caught:
        written(sandbox, sql)
    assert "memory_limit" in str(caught.value.hint)
    assert list(spill.iterdir()) == []


def test_spill_and_answer_are_bounded(sandbox: Sandbox, spill: Path) -> None:
    sorting = "select * from range(100000000) order by hash(range) limit 1 offset 90000000"
    limits = replace(LIMITS, spill_limit=Size(50_000_000))
    with pytest.raises(Unavailable, match=r"spill|temp_directory|Memory"):
        written(sandbox, sorting, limits=limits)
    assert list(spill.iterdir()) == []
    with pytest.raises(Unavailable, match="answer is larger than 1,000,000 bytes"):
        written(
            sandbox, "from range(10000000)", limits=replace(LIMITS, answer_limit=Size(1_000_000))
        )


@pytest.mark.parametrize(
    "sql",
    [
        "from query('select 1')",
        "select (select max(a) from query('select 1 as a'))",
        'from system.main."pandas_scan"(null)',
        "with a as materialized (from enable_logging()) from a",
        "select 1 limit (select count(*) from enable_profiling())",
        "from range(3) order by (select 1 from force_checkpoint())",
        "from json_execute_serialized_sql(json_serialize_sql('select 1'))",
        "from query_table('trades')",
        "from arrow_scan(1, 2, 3)",
        "select json_serialize_plan('from pandas_scan(null)')",
        "select write_log('x')",
        "describe from query('select 1')",
        "explain analyze from query('select 1')",
        "pivot (from query('select 1 as a')) on a using count(*)",
        "pivot (from \"query\" /* ( */ ('select 1 as a')) on a using count(*)",
        "from read_parquet('/tmp/*.parquet')",
        "from duckdb_secrets()",
        "from which_secret('s3://warehouse/x', 's3')",
        "from duckdb_variables()",
    ],
)
def test_table_functions_that_are_not_harmless_are_refused(sandbox: Sandbox, sql: str) -> None:
    with pytest.raises(UsageError, match=r"function \w+ is not allowed"):
        written(sandbox, sql)


@pytest.mark.parametrize(
    "sql",
    [
        "from range(2) a, generate_series(1, 2) b, unnest([1, 2]) c",
        "select key from json_each('{\"a\": 1}')",
        "from duckdb_columns()",
        "pivot (from range(3) t(i)) on i using count(*)",
        "pivot (from range(3) t(range)) on range using max(range)",
        "-- a note\n/* and */ explain (format json) select 1",
        "from information_schema.tables",
        "select 'from query(1)' as text",
    ],
)
def test_harmless_table_functions_are_answered(sandbox: Sandbox, sql: str) -> None:
    assert written(sandbox, sql)


def test_statement_is_bounded(sandbox: Sandbox) -> None:
    with pytest.raises(UsageError, match="limit is 100,000"):
        written(sandbox, f"select '{'é' * (MAX_BYTES // 2)}'")
    with pytest.raises(K2Error):
        written(sandbox, f"select {'(' * 40_000}1{')' * 40_000}")
    assert b"600" in written(sandbox, f"select {'+'.join(['1'] * 600)} as x")


def test_query_does_not_see_where_its_answer_goes(sandbox: Sandbox) -> None:
    sql = "select len(current_setting('allowed_paths')) as n"
    assert written(sandbox, sql) == b"n\n0\n"


def test_nothing_outlives_a_client_that_was_killed(tmp_path: Path) -> None:
    code = (
        "from k2cli.config import QuerySettings\n"
        "from k2cli.query.sandbox import open_sandbox\n"
        "import io\n"
        "with open_sandbox() as s, s.ask(QuerySettings(), [], 'select sleep_ms(100000)') as a:\n"
        "    a.copy('csv', io.BytesIO())\n"
    )
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    client = subprocess.Popen([sys.executable, "-c", code], env=env)
    wait_for(lambda: list(tmp_path.glob("k2-query-*/*")))
    client.send_signal(signal.SIGKILL)
    client.wait(PATIENCE_S)
    wait_for(lambda: not list(tmp_path.iterdir()))
